"""From a recipe and images to a finished run: checks, plan, loop with its monitors, checkpoints, final weights."""

from __future__ import annotations

import json
import math
import platform as host
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from simclr_engine.kernels import pick_augment, pick_nt_xent

from . import __version__
from .checkpoint import encoder_metadata, keep_last_as, newest_checkpoint, save_last, save_weights
from .data import load_data
from .data.store import ImageStore
from .device import Platform, choose_platform, keep_freed_memory
from .errors import EngineError, UsageError
from .model import parameter_count
from .monitor import OnlineMonitor
from .recipe import Recipe
from .run import RUNS, Progress, Run, RunLog, check_directory, make_directory, progress, write_text_atomic
from .training import Backends, Plan, Trainer

SAVE_SECONDS = 120.0  # at most this much training is lost to a crash
CALIBRATION_STEPS = 4  # timed per view size, after one untimed
# A budget is spent to this share: what is not steps (start-up, monitors, checkpoints) and noise take the rest.
BUDGET_SHARE = 0.96


class Interrupted(EngineError):
    """Ctrl-C or SIGTERM: the run was saved and can be resumed."""

    exit_code = 130


@dataclass(frozen=True)
class Estimate:
    """What a run will take, from steps that were timed on this machine (an estimate, not a measurement of the run).

    Attributes:
        seconds: of all training steps.
        seconds_per_step: view size → median seconds.
        peak_bytes: peak memory of the process or, on CUDA, of the device, so far.
    """

    seconds: float
    seconds_per_step: dict[int, float]
    peak_bytes: int


def pretrain(
    recipe: Recipe | str | Path = "cifar10",
    data: ImageStore | str | Path | None = None,
    out: str | Path | None = None,
    *,
    device: str = "auto",
    fused: bool | None = None,
    augment: str = "auto",
    compile: bool | None = None,
    max_minutes: float | None = None,
    limit: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> Run:
    """Pretrains an encoder without labels and leaves a run directory.

    Args:
        recipe: a Recipe, the name of one, or a TOML file.
        data: an ImageStore, or what `load_data` takes; None for the recipe's own source.
        out: the run directory; `runs/RECIPE` when None.
        device: auto | cuda | mps | cpu.
        fused: True and None take the best backend of each kernel, False the plain PyTorch reference.
        augment: auto, or the augmentation backend by name.
        compile: torch.compile; None decides by device and length.
        max_minutes: a run that would take longer is laid out, warm-up and decay included, to end within this.
        limit: train on this many images, balanced over classes.
        resume: go on from the newest good checkpoint in `out`.
        overwrite: replace the run in `out`.
        quiet: no progress.

    Returns:
        The finished Run.

    Raises:
        UsageError, DataError, PlatformError: before anything is trained.
        CheckFailed: training diverged; the last good checkpoint is kept.
        Interrupted: stopped by a signal after saving.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    directory = Path(out) if out is not None else RUNS / recipe.name
    if max_minutes is not None and not max_minutes > 0:
        raise UsageError("--max-minutes must be above 0", saw=max_minutes, fix="give the minutes the run may take")
    check_directory(directory, resume=resume, overwrite=overwrite)
    saved = _saved_state(directory, recipe) if resume else None
    started, store = time.time(), open_data(recipe, data, limit, quiet=quiet)
    trainer, estimate = prepare(
        recipe,
        store,
        device=device,
        fused=fused,
        augment=augment,
        compile=compile,
        max_minutes=max_minutes,
        saved=saved,
    )
    recipe = trainer.recipe
    make_directory(directory, overwrite=overwrite)
    if saved is not None:
        trainer.load_state_dict(saved)
    log = RunLog(directory, resume_step=trainer.step if resume else None)
    environment = _environment(trainer, store, limit, estimate, max_minutes)
    if saved is not None:
        earlier = Run.open(directory).environment
        environment["seconds"] = earlier.get("seconds", 0.0)
        environment["plan"] = earlier.get("plan", environment["plan"])
    write_text_atomic(directory / "recipe.toml", recipe.to_toml())
    _write_environment(directory, environment)
    _save_view_samples(directory, trainer)
    _say(quiet, *describe(trainer, estimate))
    before = environment["seconds"]
    try:
        with stop_requests() as stop, progress(trainer.plan.total_steps, trainer.step, quiet=quiet) as bar:
            _fit(trainer, directory, log, bar, stop)
    finally:
        log.close()
        environment.update(seconds=before + time.time() - started, peak_bytes=peak_memory(trainer.platform))
        _write_environment(directory, environment)
    metadata = encoder_metadata(recipe, store.image_size)
    save_weights(directory / "model.safetensors", trainer.model, metadata)
    save_weights(directory / "encoder.safetensors", trainer.model.encoder, metadata)
    environment.update(finished=True, ended=time.time(), seconds=before + time.time() - started)
    _write_environment(directory, environment)
    return Run.open(directory)


def open_data(
    recipe: Recipe, data: ImageStore | str | Path | None, limit: int | None, *, quiet: bool = False
) -> ImageStore:
    """The images to train on; labels stay with the store for the monitors alone."""
    if isinstance(data, ImageStore):
        return data.limit(limit)
    source = str(data) if data is not None else recipe.data.source
    return load_data(source, split="train", size=recipe.data.size or None, progress=not quiet).limit(limit)


def prepare(
    recipe: Recipe,
    store: ImageStore,
    *,
    device: str = "auto",
    fused: bool | None = None,
    augment: str = "auto",
    compile: bool | None = None,
    max_minutes: float | None = None,
    saved: dict[str, Any] | None = None,
    measure: bool = False,
) -> tuple[Trainer, Estimate | None]:
    """The trainer, its recipe and plan final.

    With `max_minutes` (or `measure`) some steps are timed first, on another trainer. A run that comes out short takes
    the recipe's settings for short runs, and is then timed with them. One that is resumed (`saved`) keeps its own.
    """
    if saved is not None:
        plan = Plan.of(Recipe.from_toml(saved["recipe"]), store, int(saved["total_steps"]))
    else:
        plan = Plan.of(recipe.for_epochs(math.inf), store)
    platform = choose_platform(device, recipe.train.precision, compile, plan.total_steps)
    if platform.device.type == "cpu":
        keep_freed_memory()

    def trainer_of(plan: Plan) -> Trainer:
        """With the kernels that serve this plan's recipe: a short run may have another temperature."""
        backends, notes = _backends(platform, plan.recipe, fused, augment)
        return Trainer(plan.recipe, plan, replace(platform, notes=platform.notes + notes), store, backends)

    if saved is not None:
        return trainer_of(plan), None
    began, per_step = time.perf_counter(), dict[int, float]()

    def timed(plan: Plan) -> tuple[Plan, dict[int, float]]:
        """View size → seconds of a step, and the plan cut to the time that is left."""
        per_step = calibrate(trainer_of(plan))
        if max_minutes is not None:
            left = max_minutes * 60 * BUDGET_SHARE - (time.perf_counter() - began)
            plan = Plan.of(plan.recipe, store, min(plan.total_steps, steps_within(plan, left, per_step)))
        return plan, per_step

    if max_minutes is not None:
        plan, per_step = timed(plan)
    adapted = recipe.for_epochs(plan.total_steps / plan.steps_per_epoch)
    if adapted != plan.recipe:
        plan, per_step = Plan.of(adapted, store), {}
    if not per_step and (max_minutes is not None or measure):
        plan, per_step = timed(plan)
    changes = adapted.differences(recipe)
    if changes:
        taken = ", ".join(f"{key} = {value}" for key, value in changes.items())
        note = f"a run this short takes {taken} (the recipe's short_runs; what you --set stays)"
        platform = replace(platform, notes=(*platform.notes, note))
    trainer = trainer_of(plan)
    if not per_step:
        return trainer, None
    seconds = sum(per_step[size] * count for size, count in plan.sizes().items())
    return trainer, Estimate(seconds, per_step, peak_memory(platform))


def calibrate(trainer: Trainer) -> dict[int, float]:
    """View size → median seconds per step, timed on real steps; the trainer's weights are of no use afterwards."""
    sizes = {size for _, size in trainer.plan.phases()}
    trainer.model.train()
    seconds = {}
    for size in sorted(sizes):
        times = []
        for i in range(CALIBRATION_STEPS + 1):
            trainer.platform.synchronize()
            start = time.perf_counter()
            trainer.train_step(i % trainer.plan.steps_per_epoch, size)
            trainer.platform.synchronize()
            times.append(time.perf_counter() - start)
        seconds[size] = float(np.median(times[1:]))
    return seconds


def steps_within(plan: Plan, seconds: float, per_step: dict[int, float]) -> int:
    """How many steps fit into `seconds`, the phases of progressive resolution weighted by their cost."""
    previous, mean = 0.0, 0.0
    for end, size in plan.phases():
        mean += (end - previous) * per_step[size]
        previous = end
    if seconds < mean:
        raise UsageError(
            "the time is too short for one step",
            saw=f"{mean:.1f} s a step",
            fix="a longer --max-minutes or a smaller batch",
        )
    return int(seconds / mean)


def describe(trainer: Trainer, estimate: Estimate | None) -> list[str]:
    """The plan in a few lines."""
    r, plan, p = trainer.recipe, trainer.plan, trainer.platform
    epochs = plan.total_steps / plan.steps_per_epoch
    sizes = " → ".join(f"{s} px" for s in dict.fromkeys(size for _, size in plan.phases()))
    scaled = " (lr × batch/256)" if r.optimizer.lr_per_256 else ""
    layout = "channels_last" if p.channels_last else "contiguous"
    count = f"{parameter_count(trainer.model):,} parameters with its head"
    compiled = "on" if p.compile else "off"
    lines = [
        f"recipe   {r.name}: {r.model.arch} ({r.model.stem} stem), {count}, τ {r.loss.temperature:g}",
        f"data     {trainer.store.name}: {plan.samples:,} images of {plan.image_size} px, "
        f"{r.train.views} views at {sizes}",
        f"plan     {plan.total_steps:,} steps of {r.train.batch_size} images = {epochs:.4g} epochs; "
        f"{r.optimizer.name}, peak lr {plan.peak_lr:.4g}{scaled}, {r.schedule.name}",
        f"device   {p.device} ({p.describe()['device_name']}), {p.precision}, {layout}, compile {compiled}",
        f"kernels  augmentation: {trainer.backends.augment}; NT-Xent: {trainer.backends.nt_xent}",
    ]
    lines += [f"note     {note}" for note in p.notes]
    if estimate is not None:
        per = ", ".join(f"{1e3 * s:.0f} ms at {size} px" for size, s in estimate.seconds_per_step.items())
        minutes, peak = estimate.seconds / 60, estimate.peak_bytes / 2**30
        lines.append(f"estimate {minutes:.1f} min of training ({per} a step), peak memory {peak:.2f} GiB so far")
    return lines


def peak_memory(platform: Platform) -> int:
    """Bytes: the device's peak on CUDA, else the process's peak resident size."""
    if platform.device.type == "cuda":
        return torch.cuda.max_memory_allocated(platform.device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that the loop ends between two steps; a second SIGINT is not held."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def request(number: int, frame: FrameType | None) -> None:
        if event.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        event.set()

    previous = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)


def _fit(trainer: Trainer, directory: Path, log: RunLog, bar: Progress, stop: threading.Event) -> None:
    """Runs the loop with its callbacks; leaves `last.pt` at the end, also of an interrupted run."""
    recipe, plan, folder = trainer.recipe, trainer.plan, directory / "checkpoints"
    watch = recipe.monitor.knn_epochs
    monitor = (
        OnlineMonitor(trainer.store, recipe.augment, recipe.monitor.knn_images, trainer.platform) if watch else None
    )
    knn = ""

    def show(step: int, row: dict[str, float]) -> None:
        log.write("train", step, row)
        bar.update(
            step,
            f"epoch {row['epoch']:.2f}  loss {row['loss']:.3f} (chance {row['chance']:.3f})  p_pos {row['p_pos']:.3f}  "
            f"top-1 {100 * row['top1']:.1f}%  {row['images_per_second']:.0f} img/s{knn}",
        )

    saved_at = time.monotonic()
    for step in trainer.steps(show):
        epoch, into = divmod(step, plan.steps_per_epoch)
        if monitor is not None and (step == plan.total_steps or (into == 0 and epoch % watch == 0)):
            row = monitor(trainer.model)
            log.write("knn", step, {"epoch": step / plan.steps_per_epoch, **row})
            knn = f"  kNN {100 * row['accuracy']:.1f}%" if "accuracy" in row else ""
        keep = recipe.train.checkpoint_epochs
        numbered = bool(keep) and into == 0 and epoch % keep == 0
        if numbered or stop.is_set() or step == plan.total_steps or time.monotonic() - saved_at > SAVE_SECONDS:
            save_last(folder, trainer.state_dict())
            saved_at = time.monotonic()
        if numbered:
            keep_last_as(folder, f"epoch_{epoch:04d}.pt")
        if stop.is_set() and step < plan.total_steps:
            raise Interrupted(
                "stopped; the run is saved",
                saw=f"step {step} of {plan.total_steps}",
                fix=f"go on with: --out {directory} --resume",
            )


def _saved_state(directory: Path, recipe: Recipe) -> dict[str, Any]:
    """The newest good checkpoint of a run that is to be resumed; worse ones are named on stderr."""
    state, path, complaints = newest_checkpoint(directory / "checkpoints")
    for complaint in complaints:
        print(f"warning: {complaint}; {path.name} is taken instead", file=sys.stderr)
    theirs = Recipe.from_toml(state["recipe"])
    if theirs not in recipe.variants():
        changed = theirs.differences(recipe)
        raise UsageError(
            "the run was started with another recipe",
            saw="differs in " + ", ".join(changed),
            fix="resume with the same recipe and settings",
        )
    return state


def _backends(platform: Platform, recipe: Recipe, fused: bool | None, augment: str) -> tuple[Backends, tuple[str, ...]]:
    """The kernels' implementations by what the device offers, and what there is to say about them."""
    plain = fused is False
    dimension, temperature = recipe.head.dimension, recipe.loss.temperature
    try:
        views, why_views = pick_augment("torch" if plain and augment == "auto" else augment, platform.device)
        loss, why_loss = pick_nt_xent("torch" if plain else "auto", platform.device, dimension, temperature)
    except ValueError as error:
        raise UsageError(
            "the kernel backend is not to be had", saw=error, fix="--augment auto takes the best there is"
        ) from error
    said = {f"augmentation by {views}": why_views, f"NT-Xent by {loss}": why_loss}
    # Asked for, everything is said; otherwise what keeps a faster kernel from serving ("…; no native: …").
    notes = tuple(f"{what}: {why}" for what, why in said.items() if fused or "; no " in why)
    return Backends(views, loss), notes


def _environment(
    trainer: Trainer, store: ImageStore, limit: int | None, estimate: Estimate | None, max_minutes: float | None
) -> dict[str, Any]:
    plan = trainer.plan
    return {
        "version": __version__,
        "finished": False,
        "command": " ".join(["simclr-engine", *sys.argv[1:]]) if Path(sys.argv[0]).name == "simclr-engine" else None,
        "commit": _commit(),
        **trainer.platform.describe(),
        "backends": {"augment": trainer.backends.augment, "nt_xent": trainer.backends.nt_xent},
        "notes": list(trainer.platform.notes),
        "versions": {"python": host.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "parameters": parameter_count(trainer.model),
        "data": {
            "name": store.name,
            "split": store.split,
            "fingerprint": store.fingerprint,
            "images": len(store),
            "limit": limit,
            "image_size": store.image_size,
            "class_names": list(store.class_names),
        },
        "plan": {
            "total_steps": plan.total_steps,
            "steps_per_epoch": plan.steps_per_epoch,
            "epochs": plan.total_steps / plan.steps_per_epoch,
            "peak_lr": plan.peak_lr,
            "max_minutes": max_minutes,
            "estimated_seconds": estimate.seconds if estimate else None,
        },
        "seconds": 0.0,
    }


def _save_view_samples(directory: Path, trainer: Trainer, images: int = 4) -> None:
    """`views.npz`: some images and their views of the first epochs, for the report's augmentation sheet.

    Arrays `originals` uint8 `[n, S, S, 3]` and `views` uint8 `[n, 8, S', S', 3]`, the normalisation undone.
    """
    ids = torch.arange(min(images, len(trainer.store)), device=trainer.platform.device)
    views, size = trainer.recipe.train.views, trainer.plan.view_size(trainer.plan.total_steps - 1)
    epochs = range(-(-8 // views))
    batch = torch.cat(
        [trainer.views(ids, epoch, size).float().cpu().reshape(views, len(ids), 3, size, size) for epoch in epochs]
    )[:8]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (trainer.spec.mean, trainer.spec.std))
    pixels = ((batch * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 0, 3, 4, 2)
    originals = np.ascontiguousarray(trainer.store.images[: len(ids)])
    np.savez_compressed(directory / "views.npz", originals=originals, views=pixels.numpy())


def _write_environment(directory: Path, environment: dict[str, Any]) -> None:
    write_text_atomic(directory / "environment.json", json.dumps(environment, indent=2) + "\n")


def _commit() -> str | None:
    """The commit of the checkout this package runs from; None where it is installed without one."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None
    try:
        return subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _say(quiet: bool, *lines: str) -> None:
    if not quiet:
        print(*lines, sep="\n", file=sys.stderr, flush=True)
