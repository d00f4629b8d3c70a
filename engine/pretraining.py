"""From a recipe and images to a finished run: checks, plan, loop with its monitors, checkpoints, final weights."""

from __future__ import annotations

import json
import platform as host
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import __version__, stopping
from .checkpoint import LAST, encoder_metadata, keep_last_as, pack_weights, save_last
from .command_line import PROGRAM, resume_command, shell_command
from .data.named import NamedSource
from .data.sources import load_data, open_source
from .data.store import ImageStore
from .device import deterministic_algorithms
from .errors import DataError, PlatformError, UsageError
from .files import Folder
from .memory import memory_errors
from .model import parameter_count
from .monitor import OnlineMonitor
from .parallel import World, check_shares, restarts, run_id, start_world
from .planning import Estimate, describe, peak_memory, prepare
from .recipe import DEFAULT, Recipe
from .resuming import read_stopped, trained_on
from .run import (
    Progress,
    Run,
    RunLock,
    RunLog,
    check_directory,
    make_directory,
    progress,
    public_name,
    run_directory,
)
from .stopping import Interrupted, give_up, stop_requests
from .training import Trainer

SAVE_SECONDS = 120.0  # at most this much training is lost to a crash


def pretrain(
    recipe: Recipe | str | Path | None = None,
    data: ImageStore | str | Path | None = None,
    out: str | Path | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
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
        recipe: a Recipe, the name of one, or a TOML file; None for `cifar10`, or with `resume` for the run's own.
        data: an ImageStore, or what `load_data` takes; None for the recipe's own source, or with `resume` for the
            run's own images, which may be named where they are now.
        out: the run directory; `runs/RECIPE` when None.
        overrides: settings over the recipe's, `{"train.epochs": 200}`.
        device: auto | cuda | mps | cpu.
        fused: True and None take the best backend of each kernel, False the plain PyTorch reference.
        augment: auto, or the augmentation backend by name.
        compile: torch.compile; None decides by device and length.
        max_minutes: a run that would take longer is laid out, warm-up and decay included, to end within this. A run
            that is resumed keeps its plan; where other minutes than its own are given, what is left of it is laid out
            anew to end within them, the time that it has taken counted.
        limit: train on this many images, balanced over classes.
        resume: go on from the newest good checkpoint in `out`, with the run's own recipe, images and limit; others
            are refused.
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
    overrides = overrides or {}
    asked: Recipe | None = None
    if isinstance(recipe, Recipe):
        asked = recipe.override(overrides) if overrides else recipe
    elif recipe is not None or not resume:
        asked = Recipe.load(recipe or DEFAULT, overrides)
    directory = run_directory(out, asked.name if asked else DEFAULT)
    if max_minutes is not None and not max_minutes > 0:
        raise UsageError("--max-minutes must be above 0", saw=max_minutes, fix="give the minutes the run may take")
    if deterministic and (compile or max_minutes is not None):
        raise UsageError(
            "--deterministic excludes what depends on measured times",
            saw="--compile" if compile else "--max-minutes",
            fix="leave it out; --epochs sets a length",
        )
    options = _options(device, fused, augment, compile, deterministic)
    with deterministic_algorithms(deterministic), start_world(device) as world, RunLock(directory) as lock:
        return _pretrain(
            world,
            lock,
            asked,
            data,
            directory,
            overrides=overrides,
            options=options,
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
    asked: Recipe | None,
    data: ImageStore | str | Path | None,
    directory: Path,
    *,
    overrides: Mapping[str, Any],
    options: list[str],
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
    resume, overwrite = world.first(lambda: _after_restart(directory, resume, overwrite))
    world.first(lambda: check_directory(directory, resume=resume, overwrite=overwrite))
    world.first(lambda: lock.take() if directory.is_dir() else None)
    stopped = world.first(lambda: read_stopped(directory)) if resume else None
    if stopped is not None:
        world.first(lambda: stopped.check_settings(asked, overrides, limit))
        recipe, limit, minutes = stopped.recipe, stopped.limit, world.first(lambda: stopped.minutes_left(max_minutes))
    else:
        assert asked is not None
        recipe, minutes = asked, max_minutes
    world.first(lambda: check_shares(recipe.train, world.size))

    def images() -> tuple[ImageStore, str | None]:
        place = stopped.run.locate_data() if data is None and stopped is not None else data
        return open_data(recipe, place, limit, quiet=quiet)

    started, (store, place) = time.perf_counter(), world.leaders_first(images)
    if stopped is not None:
        world.first(lambda: stopped.check_images(store))
        store = replace(store, name=recipe.data.source)
    # One name on all ranks: the places may differ.
    store = replace(store, name=world.same(store.name))
    recipe = trained_on(recipe, store.name, store.image_size)
    trainer, estimate = prepare(
        recipe,
        store,
        device=world.device,
        fused=fused,
        augment=augment,
        compile=compile,
        max_minutes=minutes,
        saved=stopped.state if stopped is not None else None,
        world=world,
    )
    recipe = trainer.recipe
    world.first(lambda: make_directory(directory, resume=resume, overwrite=overwrite, lock=lock))
    environment = _environment(trainer, store, place, limit, estimate, max_minutes)
    if stopped is not None:
        trainer.load_state_dict(stopped.state)
        earlier = stopped.run.environment
        environment |= {"seconds": stopped.seconds, "command": earlier.get("command")}
        environment["data"]["path"] = place = place or stopped.run.data.get("path")
        if minutes is None:
            environment["plan"] = earlier.get("plan", environment["plan"])
        elif estimate is not None:
            environment["plan"]["estimated_seconds"] = stopped.seconds + estimate.seconds
    log = RunLog(lock.folder, resume_step=trainer.step if resume else None) if world.main else None

    def begin() -> None:
        lock.folder.write_text("recipe.toml", recipe.to_toml())
        _write_environment(lock.folder, environment)
        _save_view_samples(lock.folder, trainer)

    world.first(begin)
    # Other ranks write none, and on other machines need not see the directory.
    checkpoints = lock.folder.folder("checkpoints") if world.main else directory / "checkpoints"
    _say(quiet, *describe(trainer, estimate))
    before = environment["seconds"]
    go_on = resume_command(directory, options)
    if isinstance(data, ImageStore) and place is None:  # which no command has
        go_on = f"pretrain(data=…, out={str(directory)!r}, resume=True)"

    def end_log() -> None:
        environment.update(seconds=before + time.perf_counter() - started, peak_bytes=peak_memory(trainer.platform))
        if log is not None:
            log.close()
            _write_environment(lock.folder, environment)

    try:
        with (
            stop_requests(partial(give_up, directory, go_on)) as stop,
            progress(trainer.plan.total_steps, trainer.step, quiet=quiet) as bar,
        ):
            _fit(trainer, checkpoints, log, bar, stop, go_on)
    except BaseException:
        with suppress(PlatformError):  # as on a full disk: what was raised first says more
            end_log()
        raise
    end_log()

    def finish() -> dict[str, Any]:
        metadata = encoder_metadata(recipe, store.image_size)
        lock.folder.write("model.safetensors", pack_weights(trainer.model, metadata))
        lock.folder.write("encoder.safetensors", pack_weights(trainer.model.encoder, metadata))
        seconds = before + time.perf_counter() - started
        environment.update(finished=True, ended=time.time(), seconds=seconds)
        _write_environment(lock.folder, environment)
        return environment

    environment = world.first(finish)
    # Other machines need not see the directory.
    return Run.open(directory) if world.main else Run(directory, recipe, environment)


def open_data(
    recipe: Recipe, data: ImageStore | str | Path | None, limit: int | None, *, quiet: bool = False
) -> tuple[ImageStore, str | None]:
    """The images to train on, and the absolute path of the folder or archive that they come from, if they do.

    Labels stay with the store for the monitors alone. Its name is as the user gave it, but tells no absolute path.
    """
    if isinstance(data, ImageStore):
        store, place = data, None
    else:
        source = str(data) if data is not None else recipe.data.source
        store = load_data(source, split="train", size=recipe.data.size or None, progress=not quiet)
        found = open_source(source)
        place = None if isinstance(found, NamedSource) else str(found.path.absolute())
    return replace(store, name=public_name(store.name)).limit(limit), place


def _options(device: str, fused: bool | None, augment: str, compile: bool | None, deterministic: bool) -> list[str]:
    """Those that were given, on the command line: with them a run goes on as it was begun."""
    words = list[str]()
    for name, text in (("device", device), ("augment", augment)):
        words += [] if text == "auto" else [f"--{name}", text]
    for name, value in (("fused", fused), ("compile", compile), ("deterministic", deterministic or None)):
        words += [] if value is None else [f"--{name}" if value else f"--no-{name}"]
    return words


def _fit(
    trainer: Trainer, folder: Path | Folder, log: RunLog | None, bar: Progress, stop: threading.Event, go_on: str
) -> None:
    """Runs the loop with its callbacks; leaves `last.pt` at the end, also of an interrupted run, which `go_on` resumes.

    Every rank comes here; `folder` (of the checkpoints) and `log` are rank 0's. What makes a rank save or stop (a
    signal, its clock) holds for all.
    """
    recipe, plan, world = trainer.recipe, trainer.plan, trainer.world
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
        held = folder.path if isinstance(folder, Folder) else folder
        if not all((held / due).is_file() for due in (LAST, name) if due):
            save()
            if name:
                keep_last_as(folder, name)

    if trainer.step:
        world.first(mend)
    saved_at = step_began = time.monotonic()
    for step in _steps(trainer, show):
        # A step that SIGTERM's deadline may cut is worth a checkpoint each.
        patience = SAVE_SECONDS if time.monotonic() - step_began < stopping.STOP_SECONDS / 2 else 0.0
        epoch, into = divmod(step, plan.steps_per_epoch)
        if monitor is not None and (step == plan.total_steps or (into == 0 and epoch % watch == 0)):
            if world.any(stop.is_set())[0]:
                world.first(save)  # first, for the monitor may take longer than the deadline leaves
            row = monitor(trainer.model)
            if log is not None:
                log.write("knn", step, {"epoch": step / plan.steps_per_epoch, **row})
            knn = f"  kNN {100 * row['accuracy']:.1f}%" if "accuracy" in row else ""
        name = lasting(step)
        asked, due = world.any(stop.is_set(), time.monotonic() - saved_at > patience)
        if name or asked or due or step == plan.total_steps:
            world.first(save)
            saved_at = time.monotonic()
        if name:
            world.first(partial(keep_last_as, folder, name))
        if asked and step < plan.total_steps:
            raise Interrupted(
                "stopped; the run is saved",
                saw=f"step {step} of {plan.total_steps}",
                fix=f"go on with: {go_on}",
            )
        step_began = time.monotonic()


def _steps(trainer: Trainer, show: Callable[[int, dict[str, float]], None]) -> Iterator[int]:
    """The trainer's steps, with an error that helps where one does not fit into memory."""
    with memory_errors(trainer):
        yield from trainer.steps(show)


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


def _environment(
    trainer: Trainer,
    store: ImageStore,
    place: str | None,
    limit: int | None,
    estimate: Estimate | None,
    max_minutes: float | None,
) -> dict[str, Any]:
    """What environment.json says. It alone has the absolute path of the images: it is not handed on."""
    plan, started = trainer.plan, Path(sys.argv[0]).name == PROGRAM
    return {
        "version": __version__,
        "finished": False,
        "command": shell_command(*sys.argv[1:]) if started else None,
        "commit": _commit(),
        **trainer.platform.describe(),
        "backends": {"augment": trainer.backends.augment, "nt_xent": trainer.backends.nt_xent},
        "notes": list(trainer.platform.notes),
        "versions": {"python": host.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "parameters": parameter_count(trainer.model),
        "ranks": trainer.world.size,
        "micro_batch": trainer.micro_batch,
        "batch_norm": "synchronised" if trainer.synchronised else "local",
        "images_in_files": trainer.streamed,
        "launch": run_id(),
        "data": {
            "name": store.name,
            "path": place,
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


def _save_view_samples(at: Folder, trainer: Trainer, images: int = 4) -> None:
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
    with at.writing("views.npz") as file:
        np.savez_compressed(file, originals=originals, views=pixels.numpy())


def _write_environment(at: Folder, environment: dict[str, Any]) -> None:
    at.write_text("environment.json", json.dumps(environment, indent=2) + "\n")


def _commit() -> str | None:
    """The commit of the checkout this package runs from; None where there is none, or it may not be read."""
    here = Path(__file__).resolve().parent.parent
    try:
        if not (here / ".git").exists():
            return None
        return subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _say(quiet: bool, *lines: str) -> None:
    if not quiet:
        print(*lines, sep="\n", file=sys.stderr, flush=True)
