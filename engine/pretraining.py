"""`pretrain`: from a recipe and images to a finished run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from torch import Tensor, nn

from .budget import Clock, Pace, cost_after
from .command_line import resume_command
from .data.datasets import NamedSource
from .data.folder import FolderSource
from .data.left_out import check_left_out
from .data.levels import as_levels
from .data.listing import LARGEST_CHOICE
from .data.sources import PRETRAINING, Data, Selection, load_data, open_source
from .data.store import ImageStore
from .device import deterministic_algorithms, pick_device
from .distributed import World, check_shares, restarts, run_id, start_world
from .errors import DataError, UsageError, nearest
from .files import expanded
from .fitting import LARGEST_ON_CPU
from .flops import longest_within_compute
from .loggers import LOGGERS, Listener
from .memory import memory_errors
from .monitor import OnlineMonitor
from .plan import Plan
from .planning import Estimate, RunOptions, choose_augment, describe, prepare
from .progress import Progress
from .recipe import DEFAULT, Recipe
from .recording import Recording, environment_of, other_than_before
from .resuming import Stopped, read_stopped, trained_on
from .run import Run, RunLock, check_directory, make_directory, public_name, run_directory
from .starting import Start, open_start
from .stopping import Interrupted, give_up, saved_so_far, stop_requests
from .terminal import say
from .training import Meter, Own, Trainer


def pretrain(
    recipe: Recipe | str | Path | None = None,
    data: ImageStore | Data | None = None,
    out: str | Path | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    device: str = "auto",
    fused: bool | None = None,
    augment: str = "auto",
    compile: bool | None = None,
    batch_norm: str | None = None,
    max_minutes: float | None = None,
    max_pflop: float | None = None,
    limit: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    deterministic: bool = False,
    quiet: bool = False,
    encoder: nn.Module | None = None,
    view: Callable[[Tensor], Tensor] | None = None,
    log: Sequence[str] = (),
    on_log: Callable[[int, Mapping[str, Any]], None] | None = None,
    on_checkpoint: Callable[[Path], None] | None = None,
    allow_skipped: bool = False,
    weights: str | Path | None = None,
    stem_padding: int | None = None,
    stem_pool: str | None = None,
    began: float | None = None,
) -> Run:
    """Pretrains an encoder without labels and leaves a run directory.

    Under torchrun, each process trains on a share of the batch, and rank 0 writes.

    Args:
        recipe: a Recipe, the name of one, or a TOML file; None for `cifar10` or, with `resume`, for that of the run.
        data: an ImageStore, or what `load_data` takes, of which the split `pretraining` is used; None for the source of
            the recipe or, with `resume`, for the images of the run. If those were moved, name their new place.
        out: the run directory; `runs/RECIPE` when None.
        overrides: settings that override the recipe's, such as `{"train.epochs": 200}`.
        device: auto | cuda | mps | cpu.
        fused: True and None use the best backend of each kernel, False uses the plain PyTorch reference.
        augment: auto, or the name of an augmentation backend.
        compile: whether to use torch.compile; None decides by device and length of the run.
        batch_norm: sync | local: with several processes, statistics over all of them or over each one's share; None
            synchronises them on CUDA.
        max_minutes: time limit of the whole run. A run that would take longer is shortened, warm-up and decay
            included. A resumed run keeps its plan; if another limit is given, the rest is shortened to end within it,
            counting the time that the run has already taken.
        max_pflop: limit of the compute of the whole run, in 10^15 operations of the network (forward and backward) and
            the optimizer. A run that would take more is shortened as with `max_minutes`. Not for a resumed run.
        limit: train on this many images, balanced over classes.
        resume: continue from the newest good checkpoint in `out`, with the recipe, images and limit of the run;
            others are refused. Only `train.epochs` in `overrides` may be more: the run, finished or not, goes on with
            its schedule laid over that many epochs.
        overwrite: replace the run in `out`.
        deterministic: use deterministic algorithms: runs on the same device with the same versions are bitwise equal;
            slower on CUDA.
        quiet: show no progress.
        encoder: a module of your own in place of the recipe's ResNet, from normalised images `[B, 3, S, S]` to features
            `[B, D]`. It is copied. Its layers take no kernel of ours, and what loads the run must be passed the module
            again: `load_encoder(run, encoder)`, `evaluate(open_target(run, encoder))`.
        view: a function of your own in place of the recipe's augmentation, from images uint8 `[B, 3, S, S]` to one
            random view of each, uint8 or floating in 0..1; transforms of torchvision fit. No fused kernel draws it.
            Views then depend on the batch size and the number of processes, and a resumed run draws the same ones only
            where the function draws from torch's generators alone, which are seeded before each call.
        log: `wandb`, `mlflow` or both, beside metrics.jsonl and TensorBoard; each is an extra to install.
        on_log: called with the step and the row whenever a row was written to metrics.jsonl, on rank 0.
        on_checkpoint: called with the path of each checkpoint when it is written whole, on rank 0. What the two raise
            ends the run, which can be resumed.
        allow_skipped: train although more than 5 % of the files cannot be used.
        weights: a run directory or a file of weights (as `evaluate` takes them) that the encoder starts from, with its
            architecture, stem and normalisation; None for random weights.
        stem_padding, stem_pool: what that file does not say of its network, as `load_foreign` takes them.
        began: `time.perf_counter()` from which `max_minutes` counts; None for now.

    Returns:
        The finished Run.

    Raises:
        UsageError, DataError, PlatformError: before anything is trained. UsageError also if another process trains in
            `out`; PlatformError also if disk space or memory runs out, and the last checkpoint is kept.
        CheckFailed: training diverged; the last good checkpoint is kept.
        Interrupted: a signal stopped the run after it was saved.
        PeerFailed: on a rank that did not fail, if another one did.
    """
    asked: Recipe | None = None
    if isinstance(recipe, Recipe):
        asked = recipe.override(overrides) if overrides else recipe
    elif recipe is not None or not resume:
        asked = Recipe.load(recipe or DEFAULT, overrides)
    if unknown := [name for name in log if name not in LOGGERS]:
        raise UsageError("there is no such logger", saw=unknown[0], fix=nearest(unknown[0], LOGGERS))
    own = Own(encoder, view)
    if asked is not None and encoder is not None:
        asked = asked.override({"model.arch": "own"})
    directory, clock = run_directory(out, asked.name if asked else DEFAULT), Clock(began=began)
    options = RunOptions(
        device=device,
        fused=fused,
        augment=augment,
        compile=compile,
        batch_norm=batch_norm,
        max_minutes=max_minutes,
        max_pflop=max_pflop,
        limit=limit,
        resume=resume,
        overwrite=overwrite,
        deterministic=deterministic,
        quiet=quiet,
        overrides=overrides or {},
        allow_skipped=allow_skipped,
        weights=weights,
        stem_padding=stem_padding,
        stem_pool=stem_pool,
        own=own,
        log=tuple(log),
        listeners=(Listener(on_log or _ignored, on_checkpoint or _ignored),),
    )
    with deterministic_algorithms(deterministic), start_world(device) as world, RunLock(directory) as lock:
        options = replace(options, device=world.device, quiet=quiet or not world.main)
        with world.fail_together():
            choose_augment(options, pick_device(world.device))
            if world.main:
                if asked is not None and not resume:
                    check_shares(asked.train, world.size)
                options = _after_restart(directory, options)
                check_directory(directory, resume=options.resume, overwrite=options.overwrite)
                if directory.is_dir():
                    lock.take()
        options = replace(options, resume=world.same(options.resume), overwrite=world.same(options.overwrite))
        start = start_of(world, asked, options)
        asked = start.recipe if start is not None and asked is not None else asked
        stopped = _stopped(world, directory, asked, options, start)
        return _pretrain(world, lock, asked, data, options, stopped or start, clock)


def _ignored(*_: object) -> None:
    pass


def start_of(world: World, recipe: Recipe | None, options: RunOptions) -> Start | None:
    """The encoder that the options name to start from, on rank 0; its recipe on all ranks. None for random weights."""
    start: Start | None = None
    with world.fail_together():
        if world.main and options.weights is not None:
            named = options.overrides
            recipe = recipe or Recipe.load(DEFAULT)
            start = open_start(options.weights, recipe, named, options.stem_padding, options.stem_pool)
    public = world.same(replace(start, encoder=None) if start is not None else None)
    return start if world.main else public


def _stopped(
    world: World, directory: Path, asked: Recipe | None, options: RunOptions, start: Start | None
) -> Stopped | None:
    """The run to resume, if any; settings that differ from its own are refused."""
    stopped: Stopped | None = None
    with world.fail_together():
        if world.main and options.resume:
            stopped = read_stopped(directory)
            stopped.check_own(options.own)
            if start is not None:
                stopped.check_start(start.about)
            stopped.check_settings(asked, options.overrides, options.limit)
            stopped.minutes_left(options.max_minutes)
            check_shares(stopped.recipe.train, world.size)
    return world.same(stopped)


def _lengthened(world: World, stopped: Stopped, options: RunOptions, images: int) -> Stopped:
    """The run with more epochs, if they are asked for; the same on all ranks."""
    overrides, minutes = world.same((dict(options.overrides), options.max_minutes))
    with world.fail_together():
        if world.main:
            stopped.lengthened(overrides, minutes, images).minutes_left(minutes)
    return stopped.lengthened(overrides, minutes, images)


def _pretrain(
    world: World,
    lock: RunLock,
    asked: Recipe | None,
    data: ImageStore | Data | None,
    options: RunOptions,
    before: Stopped | Start | None,
    clock: Clock,
) -> Run:
    """`pretrain` on each rank. Rank 0 does what changes the run directory while the others wait."""
    stopped = before if isinstance(before, Stopped) else None
    start = before if isinstance(before, Start) else None
    if stopped is not None:
        recipe, options = stopped.recipe, replace(options, limit=options.limit if stopped.lost else stopped.limit)
    else:
        assert asked is not None
        recipe = asked
    with clock.paused():
        store, place = world.leaders_first(lambda: _images(recipe, data, options, stopped))
    # One name on all ranks; the paths may differ.
    store = replace(store, name=world.same(store.name))
    if stopped is not None:
        stopped = _lengthened(world, stopped, options, len(store))
        recipe = stopped.recipe
    minutes = options.max_minutes if stopped is None else stopped.minutes_left(options.max_minutes)
    clock.limit = None if minutes is None else 60 * minutes
    saved = None if stopped is None else stopped.state
    recipe = trained_on(recipe, store.name, store.image_size)
    trainer, estimate = prepare(recipe, store, options, world, saved=saved, clock=clock)

    with world.fail_together():
        if world.main:
            make_directory(lock.directory, resume=options.resume, overwrite=options.overwrite, lock=lock)
    if saved is not None:
        trainer.load_state_dict(saved)
    elif start is not None:
        trainer.start_from(start.encoder)
    environment = environment_of(trainer, options, place, estimate, stopped)
    if start is not None:
        environment["weights"] = start.about
    if not options.quiet:
        said = other_than_before(environment)
        say(*describe(trainer, estimate), *(start.lines() if start is not None else ()), *said)
    # No command can name images that were passed from Python.
    unnamed = isinstance(data, ImageStore) and environment["data"]["path"] is None
    go_on = _how_to_resume(lock.directory, options, unnamed)
    total, done = (_work(trainer.plan, steps) for steps in (trainer.plan.total_steps, trainer.step))
    try:
        with (
            Recording(lock, trainer, environment, clock, options, stopped is not None and stopped.longer) as recording,
            stop_requests(partial(give_up, lock.directory, go_on)) as stop,
            Progress(total, "starting", done=done, show=not options.quiet) as bar,
        ):
            _train(trainer, recording, _Run(stop, bar, go_on, _pace(trainer, estimate, clock, options.max_pflop)))
        return recording.finish()
    except KeyboardInterrupt:
        if world.main:
            say(f"ended at once, without saving; {saved_so_far(lock.directory, go_on)}")
        raise


def _how_to_resume(directory: Path, options: RunOptions, unnamed: bool) -> str:
    """The command, or the call for what was passed from Python, that resumes the run."""
    if unnamed:
        return f"pretrain(data=…, out={str(directory)!r}, resume=True)"
    if options.own.names():
        return f"pretrain(out={str(directory)!r}, resume=True, …) with the same encoder and view"
    return resume_command(directory, options.words())


@dataclass(frozen=True)
class _Run:
    """What the training loop listens to and shows.

    Attributes:
        stop: set by a signal.
        bar: its progress.
        go_on: the command that continues it.
        pace: keeps it within its limit; None without one.
    """

    stop: Event
    bar: Progress
    go_on: str
    pace: Pace | None


def _pace(trainer: Trainer, estimate: Estimate | None, clock: Clock, pflop: float | None) -> Pace | None:
    if clock.limit is None or estimate is None:
        return None
    resumed, plan = trainer.step > 0, trainer.plan  # the rest of a resumed run is never made longer
    most = plan.total_steps if resumed else trainer.recipe.train.epochs * plan.steps_per_epoch
    # A relaid plan with as many steps may have more of the large views, so that its compute is counted anew.
    within = partial(longest_within_compute, pflop=pflop, most=most)
    return Pace(clock, plan, trainer.step, estimate.seconds_per_step, within)


def _train(trainer: Trainer, recording: Recording, run: _Run) -> None:
    """The training loop on every rank. A reason to save or stop on one rank (a signal, its clock) holds for all."""
    world, monitor, stop, pace = trainer.world, OnlineMonitor.of(trainer), run.stop, run.pace
    meter, knn = Meter(trainer), ""
    for step in trainer.remaining():
        with memory_errors(trainer):
            row = meter.row(*trainer.train_step(step))  # whose similarities take memory too
        if row:
            recording.log("train", row)
            run.bar.update(_work(trainer.plan, trainer.step), _in_words(row) + knn)
        slow = time.perf_counter() - trainer.began

        if monitor is not None and monitor.due(trainer.step, trainer.plan):
            if world.any(stop.is_set())[0]:
                recording.save()  # first, because the monitor may exceed the deadline
            row = monitor(trainer.model)
            recording.log("knn", {"epoch": trainer.step / trainer.plan.steps_per_epoch, **row})
            knn = f"  kNN {100 * row['accuracy']:.1f}%" if "accuracy" in row else ""

        paced = pace is not None and world.main and pace.due(trainer.step, trainer.plan)
        asked, due, paced = world.any(stop.is_set(), recording.save_due(slow), paced)
        if pace is not None and paced:
            _follow(trainer, recording, run.bar, pace)
        ends = trainer.step == trainer.plan.total_steps
        if asked or due or paced or ends or recording.lasting_name():
            recording.save()
        if asked and not ends:
            raise Interrupted(
                "stopped; the run is saved",
                saw=f"step {trainer.step} of {trainer.plan.total_steps}",
                fix=f"continue with: {run.go_on}",
            )


def _work(plan: Plan, steps: int) -> int:
    """What the first `steps` steps take, in pixels of one view of each step: larger views take longer."""
    pixels = {size: size**2 for _, size in plan.phases()}
    return round(cost_after(plan, 0, pixels) - cost_after(plan, steps, pixels))


def _follow(trainer: Trainer, recording: Recording, bar: Progress, pace: Pace) -> None:
    """Lays the rest of the plan anew where the machine became slower or faster; rank 0's clock decides for all."""
    before, now = trainer.plan, trainer.world.same(pace.follow(trainer.step, trainer.plan).total_steps)
    if now == before.total_steps:
        return
    trainer.relay(before.relay(trainer.step, now))
    bar.total = _work(trainer.plan, now)
    speed = "slower" if now < before.total_steps else "faster"
    note = f"from step {trainer.step:,} on {before.total_steps:,} → {now:,} steps, since the machine is {speed} now"
    recording.note_plan(note)
    bar.say(note)


def _in_words(row: Mapping[str, float]) -> str:
    """The text of a log row for the progress bar."""
    return (
        f"epoch {row['epoch']:.2f}  loss {row['loss']:.3f} (chance {row['chance']:.3f})  p_pos {row['p_pos']:.3f}  "
        f"top-1 {100 * row['top1']:.1f}%  {row['images_per_second']:.0f} img/s"
    )


def _images(
    recipe: Recipe, data: ImageStore | Data | None, options: RunOptions, stopped: Stopped | None
) -> tuple[ImageStore, dict[str, str]]:
    """`open_data`; for a resumed run its own images, to which other data must be equal."""
    if stopped is None:
        return open_data(recipe, data, options)
    if data is None and not stopped.lost:
        data = stopped.run.locate_data()
    options = replace(options, allow_skipped=True)  # it was started with them
    store, place = open_data(recipe, data, options)
    if place and store.fingerprint != stopped.state["data"]:  # of a version that took the split `train` alone
        with suppress(DataError):
            earlier, _ = open_data(recipe, data, options, "train")
            store = earlier if earlier.fingerprint == stopped.state["data"] else store
    stopped.check_images(store)
    return replace(store, name=recipe.data.source), place or stopped.run.place


def open_data(
    recipe: Recipe, data: ImageStore | Data | None, options: RunOptions, split: str = PRETRAINING
) -> tuple[ImageStore, dict[str, str]]:
    """The images to train on, and the absolute paths of their folder or archive (`path`), table and list, if any.

    Where the recipe has no size, large images are taken smaller on a CPU. Labels are used by the monitors only. The
    name of the store is what the user gave, without an absolute path.

    Raises:
        DataError: more than a few per cent of the files are left out, and this is not allowed; what `load_data` raises.
    """
    place: dict[str, str] = {}
    if isinstance(data, ImageStore):
        store = data
    else:
        source = recipe.data.source if data is None else data
        largest = LARGEST_ON_CPU if pick_device(options.device).type == "cpu" else LARGEST_CHOICE
        size, levels = recipe.data.size or None, as_levels(recipe.data.levels)
        store = load_data(source, split, size, not options.quiet, largest, levels, verify=False)
        if isinstance(source, str | Path | Selection):
            place = _place(source, options)
            if not options.allow_skipped:
                check_left_out(store.name, store.skipped, len(store))
    return replace(store.limit(options.limit), name=public_name(store.name), notes=store.notes), place


def _place(source: str | Path | Selection, options: RunOptions) -> dict[str, str]:
    """Where the images are, as absolute paths; empty for a data set by name. Runs that lie among them are said."""
    found = open_source(source)
    if isinstance(found, NamedSource):
        return {}
    if isinstance(found, FolderSource) and found.runs and not options.quiet:
        say(f"{found.name}: left out {', '.join(found.runs[:5])}: a folder that holds a run")
    tables = source if isinstance(source, Selection) else Selection(source)
    beside = {"labels": tables.labels, "files": tables.files}
    return {"path": str(found.path.absolute())} | {
        name: str(expanded(path).absolute()) for name, path in beside.items() if path is not None
    }


def _after_restart(directory: Path, options: RunOptions) -> RunOptions:
    """The options; after a restart by the launcher, with `resume` set if this launch has saved anything.

    For a directory that this launch did not make, the user's options hold: no old run may be resumed or removed.
    """
    if not restarts() or run_id() is None:
        return options
    try:
        environment = Run.open(directory).environment
    except DataError:
        return options
    if environment.get("launch") != run_id():
        return options
    saved = any((directory / "checkpoints").glob("*.pt"))
    return replace(options, resume=saved, overwrite=not saved, max_pflop=None if saved else options.max_pflop)
