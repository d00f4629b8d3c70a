"""From a recipe and images to a finished run: checks, plan, loop with its monitors, checkpoints, final weights."""

from __future__ import annotations

import io
import json
import math
import os
import platform as host
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from simclr_engine.kernels import pick_augment, pick_nt_xent

from . import __version__
from .checkpoint import LAST, encoder_metadata, keep_last_as, newest_checkpoint, save_last, save_weights
from .data import load_data
from .data.store import ImageStore
from .device import Platform, choose_platform, deterministic_algorithms, keep_freed_memory
from .errors import DataError, EngineError, PlatformError, UsageError
from .memory import loading_errors, memory_errors
from .model import parameter_count
from .monitor import OnlineMonitor
from .parallel import World, check_shares, restarts, run_id, start_world
from .recipe import Recipe
from .run import (
    RUNS,
    Progress,
    Run,
    RunLock,
    RunLog,
    check_directory,
    make_directory,
    progress,
    write_atomic,
    write_text_atomic,
)
from .training import Backends, Plan, Trainer

SAVE_SECONDS = 120.0  # at most this much training is lost to a crash
# From SIGTERM to the end, at the latest: Slurm and Kubernetes kill 30 seconds after it.
STOP_SECONDS = 25.0
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
    deterministic: bool = False,
    quiet: bool = False,
) -> Run:
    """Pretrains an encoder without labels and leaves a run directory.

    Started by torchrun, all its processes train on one batch, each on a share; rank 0 writes.

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
        deterministic: bitwise the same run each time, on the same device with the same versions; slower on CUDA.
        quiet: no progress.

    Returns:
        The finished Run.

    Raises:
        UsageError, DataError, PlatformError: before anything is trained; UsageError too where another process trains
            in `out`, PlatformError too where disk or memory run out: the last checkpoint is kept.
        CheckFailed: training diverged; the last good checkpoint is kept.
        Interrupted: stopped by a signal after saving.
        PeerFailed: on a rank that did not fail, where another did.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    directory = Path(out) if out is not None else RUNS / recipe.name
    if max_minutes is not None and not max_minutes > 0:
        raise UsageError("--max-minutes must be above 0", saw=max_minutes, fix="give the minutes the run may take")
    if deterministic and (compile or max_minutes is not None):
        raise UsageError(
            "--deterministic excludes what depends on measured times",
            saw="--compile" if compile else "--max-minutes",
            fix="leave it out; --epochs sets a length",
        )
    with deterministic_algorithms(deterministic), start_world(device) as world, RunLock(directory) as lock:
        return _pretrain(
            world,
            lock,
            recipe,
            data,
            directory,
            fused=fused,
            augment=augment,
            compile=compile,
            max_minutes=max_minutes,
            limit=limit,
            resume=resume,
            overwrite=overwrite,
            quiet=quiet or not world.main,
        )


def _pretrain(
    world: World,
    lock: RunLock,
    recipe: Recipe,
    data: ImageStore | str | Path | None,
    directory: Path,
    *,
    fused: bool | None,
    augment: str,
    compile: bool | None,
    max_minutes: float | None,
    limit: int | None,
    resume: bool,
    overwrite: bool,
    quiet: bool,
) -> Run:
    """`pretrain` on each rank; what touches the run directory is done by rank 0, the others waiting."""
    world.first(lambda: check_shares(recipe.train, world.size))
    resume, overwrite = world.first(lambda: _after_restart(directory, resume, overwrite))
    world.first(lambda: check_directory(directory, resume=resume, overwrite=overwrite))
    world.first(lambda: lock.take() if directory.is_dir() else None)
    saved = world.first(lambda: _saved_state(directory, recipe)) if resume else None
    started, store = time.perf_counter(), world.leaders_first(lambda: open_data(recipe, data, limit, quiet=quiet))
    trainer, estimate = prepare(
        recipe,
        store,
        device=world.device,
        fused=fused,
        augment=augment,
        compile=compile,
        max_minutes=max_minutes,
        saved=saved,
        world=world,
    )
    recipe = trainer.recipe
    world.first(lambda: make_directory(directory, resume=resume, overwrite=overwrite, lock=lock))
    if saved is not None:
        trainer.load_state_dict(saved)
    log = RunLog(directory, resume_step=trainer.step if resume else None) if world.main else None
    environment = _environment(trainer, store, limit, estimate, max_minutes)
    if saved is not None:
        earlier = world.first(lambda: Run.open(directory).environment)
        environment["seconds"] = earlier.get("seconds", 0.0)
        environment["plan"] = earlier.get("plan", environment["plan"])

    def begin() -> None:
        write_text_atomic(directory / "recipe.toml", recipe.to_toml())
        _write_environment(directory, environment)
        _save_view_samples(directory, trainer)

    world.first(begin)
    _say(quiet, *describe(trainer, estimate))
    before = environment["seconds"]

    def end_log() -> None:
        environment.update(seconds=before + time.perf_counter() - started, peak_bytes=peak_memory(trainer.platform))
        if log is not None:
            log.close()
            _write_environment(directory, environment)

    try:
        give_up = partial(_give_up, directory)
        with stop_requests(give_up) as stop, progress(trainer.plan.total_steps, trainer.step, quiet=quiet) as bar:
            _fit(trainer, directory, log, bar, stop)
    except BaseException:
        with suppress(PlatformError):  # as on a full disk: what was raised first says more
            end_log()
        raise
    end_log()

    def finish() -> dict[str, Any]:
        metadata = encoder_metadata(recipe, store.image_size)
        save_weights(directory / "model.safetensors", trainer.model, metadata)
        save_weights(directory / "encoder.safetensors", trainer.model.encoder, metadata)
        seconds = before + time.perf_counter() - started
        environment.update(finished=True, ended=time.time(), seconds=seconds)
        _write_environment(directory, environment)
        return environment

    environment = world.first(finish)
    # Other machines need not see the directory.
    return Run.open(directory) if world.main else Run(directory, recipe, environment)


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
    world: World = World(),  # noqa: B008  # frozen
) -> tuple[Trainer, Estimate | None]:
    """The trainer, its recipe and plan final.

    With `max_minutes` (or `measure`) some steps are timed first, on another trainer. A run that comes out short takes
    the recipe's settings for short runs, and is then timed with them. One that is resumed (`saved`) keeps its own.
    Where ranks of a `world` could come to different times, rank 0's hold.
    """
    if saved is not None:
        plan = Plan.of(Recipe.from_toml(saved["recipe"]), store, int(saved["total_steps"]))
    else:
        plan = Plan.of(recipe.for_epochs(math.inf), store)
    if world.size > 1:
        compile = bool(compile)  # unless asked for: synchronised batch norm breaks the graph at every layer
    platform = choose_platform(device, recipe.train.precision, compile, plan.total_steps)
    if platform.device.type == "cpu":
        keep_freed_memory()

    def trainer_of(plan: Plan) -> Trainer:
        """With the kernels that serve this plan's recipe: a short run may have another temperature."""
        backends, notes = _backends(platform, plan.recipe, fused, augment)
        with loading_errors(store, platform.device):
            return Trainer(plan.recipe, plan, replace(platform, notes=platform.notes + notes), store, backends, world)

    world.agree(
        {
            "the images": store.fingerprint,
            "the recipe": plan.recipe.hash(),
            "precision": platform.precision,
            "the version of torch": torch.__version__,
        }
    )
    if saved is not None:
        return trainer_of(plan), None
    began, per_step = time.perf_counter(), dict[int, float]()

    def timed(plan: Plan) -> tuple[Plan, dict[int, float]]:
        """View size → seconds of a step, and the plan cut to the time that is left."""
        per_step = world.same(calibrate(trainer_of(plan)))
        if max_minutes is not None:
            left = world.same(max_minutes * 60 * BUDGET_SHARE - (time.perf_counter() - began))
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
            with memory_errors(trainer):
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
    lines += [f"spread   {row}" for row in spread(trainer)]
    lines += [f"note     {note}" for note in p.notes]
    if estimate is not None:
        per = ", ".join(f"{1e3 * s:.0f} ms at {size} px" for size, s in estimate.seconds_per_step.items())
        minutes, peak = estimate.seconds / 60, estimate.peak_bytes / 2**30
        lines.append(f"estimate {minutes:.1f} min of training ({per} a step), peak memory {peak:.2f} GiB so far")
    return lines


def spread(trainer: Trainer) -> list[str]:
    """How a step is spread over ranks and micro-batches, where it is, and what batch norm makes of that."""
    r, world = trainer.recipe, trainer.world
    share = r.train.batch_size // world.size
    rows = []
    if world.size > 1:
        norm = "synchronised" if trainer.synchronised else "local to each rank"
        rows.append(f"{world.size} ranks of {share} images, negatives from all of them; batch norm {norm}")
    if trainer.two_passes:
        ranks = f" on each of {world.size} ranks" if trainer.synchronised else ""
        rows.append(f"micro-batches of {trainer.micro_batch} images{ranks}, over which batch norm takes its statistics")
    dropped = trainer.plan.samples - trainer.plan.steps_per_epoch * r.train.batch_size
    if rows and dropped:
        rows.append(f"{dropped:,} images of each epoch, others each time, fill no batch and are left out")
    return rows


def peak_memory(platform: Platform) -> int:
    """Bytes: the device's peak on CUDA, else the process's peak resident size."""
    if platform.device.type == "cuda":
        return torch.cuda.max_memory_allocated(platform.device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def stop_requests(give_up: Callable[[], None]) -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that the loop ends between two steps; a second SIGINT is not held.

    Who sends SIGTERM will not wait: if the loop has not ended after STOP_SECONDS, `give_up` is called from a thread.
    """
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
        with _deadline(give_up):
            yield event
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)


@contextmanager
def _deadline(give_up: Callable[[], None]) -> Iterator[None]:
    """Calls `give_up` from a thread STOP_SECONDS after SIGTERM.

    Handlers of signals run in the main thread and between two operations of Python, of which a long backward pass is
    one. The descriptor that `set_wakeup_fd` names is written at once.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    ended = threading.Event()

    def watch() -> None:
        while number := os.read(reading, 1):
            if number[0] == signal.SIGTERM:
                if not ended.wait(STOP_SECONDS):
                    give_up()
                return

    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watcher = threading.Thread(target=watch, name="deadline", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        ended.set()
        os.close(writing)
        watcher.join()
        os.close(reading)


def _give_up(directory: Path) -> None:
    """Ends the process in the middle of a step; as after a kill, what is on disk is whole."""
    saved = any((directory / "checkpoints").glob("*.pt"))
    fix = f"go on with: --out {directory} --resume" if saved else "nothing was saved yet: start anew with --overwrite"
    error = Interrupted(
        "stopped in the middle of a step; the checkpoint before it is kept",
        saw=f"a step did not end within {STOP_SECONDS:.0f} s of SIGTERM",
        fix=fix,
    )
    print("error: " + "\n  ".join(error.lines()), file=sys.stderr, flush=True)
    os._exit(Interrupted.exit_code)


def _fit(trainer: Trainer, directory: Path, log: RunLog | None, bar: Progress, stop: threading.Event) -> None:
    """Runs the loop with its callbacks; leaves `last.pt` at the end, also of an interrupted run.

    Every rank comes here; `log` is rank 0's. What makes a rank save or stop (a signal, its clock) holds for all.
    """
    recipe, plan, world, folder = trainer.recipe, trainer.plan, trainer.world, directory / "checkpoints"
    watch, images = recipe.monitor.knn_epochs, recipe.monitor.knn_images
    monitor = OnlineMonitor(trainer.store, recipe.augment, images, trainer.platform, world) if watch else None
    knn = ""

    def show(step: int, row: dict[str, float]) -> None:
        if log is not None:
            log.write("train", step, row)
        bar.update(
            step,
            f"epoch {row['epoch']:.2f}  loss {row['loss']:.3f} (chance {row['chance']:.3f})  p_pos {row['p_pos']:.3f}  "
            f"top-1 {100 * row['top1']:.1f}%  {row['images_per_second']:.0f} img/s{knn}",
        )

    def save() -> None:
        save_last(folder, trainer.state_dict())

    def lasting(step: int) -> str | None:
        """The second name of the checkpoint of `step`, if it is to stay."""
        epoch, into = divmod(step, plan.steps_per_epoch)
        keep = recipe.train.checkpoint_epochs
        return f"epoch_{epoch:04d}.pt" if keep and into == 0 and epoch % keep == 0 else None

    def mend() -> None:
        """Gives the resumed checkpoint the names that a kill kept from it."""
        name = lasting(trainer.step)
        if not all((folder / due).is_file() for due in (LAST, name) if due):
            save()
            if name:
                keep_last_as(folder, name)

    if trainer.step:
        world.first(mend)
    saved_at = step_began = time.monotonic()
    for step in _steps(trainer, show):
        # A step that SIGTERM's deadline may cut is worth a checkpoint each.
        patience = SAVE_SECONDS if time.monotonic() - step_began < STOP_SECONDS / 2 else 0.0
        epoch, into = divmod(step, plan.steps_per_epoch)
        if monitor is not None and (step == plan.total_steps or (into == 0 and epoch % watch == 0)):
            if world.any(stop.is_set())[0]:
                world.first(save)  # first, for the monitor may take longer than the deadline leaves
            row = monitor(trainer.model)
            if log is not None:
                log.write("knn", step, {"epoch": step / plan.steps_per_epoch, **row})
            knn = f"  kNN {100 * row['accuracy']:.1f}%" if "accuracy" in row else ""
        name = lasting(step)
        stopping, due = world.any(stop.is_set(), time.monotonic() - saved_at > patience)
        if name or stopping or due or step == plan.total_steps:
            world.first(save)
            saved_at = time.monotonic()
        if name:
            world.first(partial(keep_last_as, folder, name))
        if stopping and step < plan.total_steps:
            raise Interrupted(
                "stopped; the run is saved",
                saw=f"step {step} of {plan.total_steps}",
                fix=f"go on with: --out {directory} --resume",
            )
        step_began = time.monotonic()


def _steps(trainer: Trainer, show: Callable[[int, dict[str, float]], None]) -> Iterator[int]:
    """The trainer's steps, with an error that helps where one does not fit into memory."""
    with memory_errors(trainer):
        yield from trainer.steps(show)


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


def _after_restart(directory: Path, resume: bool, overwrite: bool) -> tuple[bool, bool]:
    """`resume, overwrite` as given; after the launcher's restart: go on with what this launch has saved, if anything.

    A directory that this launch did not make keeps the user's word, or an old run would be resumed or removed.
    """
    if not restarts() or run_id() is None:
        return resume, overwrite
    try:
        environment = Run.open(directory).environment
    except DataError:
        return resume, overwrite
    if environment.get("launch") != run_id():
        return resume, overwrite
    saved = any((directory / "checkpoints").glob("*.pt"))
    return saved, not saved


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
        "ranks": trainer.world.size,
        "micro_batch": trainer.micro_batch,
        "batch_norm": "synchronised" if trainer.synchronised else "local",
        "launch": run_id(),
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
    """`views.npz`: some images and 16 views of each, of the first epochs, for the report's augmentation sheet.

    Arrays `originals` uint8 `[n, S, S, 3]` and `views` uint8 `[n, 16, S', S', 3]`, the normalisation undone.
    """
    ids = torch.arange(min(images, len(trainer.store)), device=trainer.platform.device)
    views, size = trainer.recipe.train.views, trainer.plan.view_size(trainer.plan.total_steps - 1)
    epochs = range(-(-16 // views))
    batch = torch.cat(
        [trainer.views(ids, epoch, size).float().cpu().reshape(views, len(ids), 3, size, size) for epoch in epochs]
    )[:16]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (trainer.spec.mean, trainer.spec.std))
    pixels = ((batch * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 0, 3, 4, 2)
    originals = np.ascontiguousarray(trainer.store.images[: len(ids)])
    file = io.BytesIO()
    np.savez_compressed(file, originals=originals, views=pixels.numpy())
    write_atomic(directory / "views.npz", file.getbuffer())


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
