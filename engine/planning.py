"""Makes a trainer with its final plan from a recipe and images, within limits of time and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from simclr_engine.kernels import pick_augment, pick_nt_xent
from simclr_engine.kernels.augmentation.dispatch import BACKENDS

from .budget import CALIBRATION_SHARE, Clock, cost_after, mean_seconds, rest_within, steps_within
from .calibration import calibrate
from .data.loader import stays_in_files
from .data.store import ImageStore
from .device import Platform, choose_platform, keep_freed_memory
from .distributed import World
from .errors import PlatformError, UsageError, counted
from .fitting import FEWEST_STEPS, SMALLEST_BATCH, fit_to_images, shrink_batch
from .flops import pflop_of, within_compute
from .loggers import Listener
from .memory import USABLE, free_memory, largest_divisor, loading_errors, memory_errors, peak_memory, step_memory
from .model import parameter_count
from .recipe import Recipe
from .terminal import say
from .training import Backends, Own, Plan, Trainer


@dataclass(frozen=True)
class RunOptions:
    """How a run is made on this machine: the arguments of `pretrain` other than recipe and images.

    Attributes:
        device: auto | cuda | mps | cpu.
        fused: True and None use the best backend of each kernel, False uses plain PyTorch.
        augment: auto, or the name of an augmentation backend.
        compile: whether to use torch.compile; None decides by device and length of the run.
        batch_norm: sync | local: statistics over all ranks or over those of each; None: sync on CUDA.
        max_minutes: time limit of the whole run.
        max_pflop: limit of its compute, 10^15 operations of the network and the optimizer.
        limit: number of images to train on.
        resume, overwrite: continue or replace an existing run.
        deterministic: use deterministic algorithms.
        quiet: show no progress.
        overrides: settings that override the recipe's, as they were given.
        own: an encoder and a view function of the caller's.
        log: names of loggers beside TensorBoard.
        listeners: what else is called while the run trains.
        allow_skipped: train although more than a few per cent of the files are left out.
        weights: a run or a file of weights that the encoder starts from; None for random weights.
        stem_padding, stem_pool: of the network of those weights, as `load_foreign` takes them.

    Raises:
        UsageError: a limit of time or compute is not above 0, compute is limited for a resumed run, or `deterministic`
            is combined with an option that depends on measured times.
    """

    device: str = "auto"
    fused: bool | None = None
    augment: str = "auto"
    compile: bool | None = None
    max_minutes: float | None = None
    max_pflop: float | None = None
    limit: int | None = None
    resume: bool = False
    overwrite: bool = False
    deterministic: bool = False
    quiet: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)
    own: Own = field(default_factory=Own)
    log: tuple[str, ...] = ()
    listeners: tuple[Listener, ...] = ()
    allow_skipped: bool = False
    weights: str | Path | None = None
    stem_padding: int | None = None
    stem_pool: str | None = None
    batch_norm: str | None = None

    def __post_init__(self) -> None:
        for name, unit in (("max_minutes", "minutes"), ("max_pflop", "PFLOP")):
            limit = getattr(self, name)
            if limit is not None and not 0 < limit < math.inf:
                option = "--" + name.replace("_", "-")
                cause = f"{option} must be above 0 and finite"
                raise UsageError(cause, saw=limit, fix=f"give a number of {unit} above 0, or leave {option} out")
        if self.resume and self.max_pflop is not None:
            raise UsageError(
                "a resumed run keeps its compute",
                saw=f"--max-pflop {self.max_pflop:g} with --resume",
                fix="leave --max-pflop out, or start another run with --out",
            )
        if self.deterministic and (self.compile or self.max_minutes is not None):
            raise UsageError(
                "--deterministic cannot be combined with options that depend on measured times",
                saw="--compile" if self.compile else "--max-minutes",
                fix="leave it out; --epochs sets the length",
            )
        if self.weights is None and (self.stem_padding is not None or self.stem_pool is not None):
            raise UsageError(
                "--stem-padding and --stem-pool are of the network of --weights",
                saw="no --weights",
                fix="leave them out; --set model.stem=NAME chooses the stem of a new network",
            )

    def words(self) -> list[str]:
        """The options that say how to compute, as command-line words, for the command that resumes the run."""
        words = list[str]()
        named = (("device", self.device), ("augment", self.augment), ("batch-norm", self.batch_norm))
        for name, text in named:
            words += [] if text in ("auto", None) else [f"--{name}", text]
        words += [word for name in self.log for word in ("--log", name)]
        choices = (("fused", self.fused), ("compile", self.compile), ("deterministic", self.deterministic or None))
        for name, value in choices:
            words += [] if value is None else [f"--{name}" if value else f"--no-{name}"]
        return words


@dataclass(frozen=True)
class Estimate:
    """Estimated time and memory of a run, from a few steps timed on this machine.

    Attributes:
        seconds: total time of the training steps.
        seconds_per_step: view size → median seconds per step.
        peak_bytes: peak memory so far of the process or, on CUDA, of the device.
    """

    seconds: float
    seconds_per_step: dict[int, float]
    peak_bytes: int


def prepare(
    recipe: Recipe,
    store: ImageStore,
    options: RunOptions,
    world: World = World(),  # noqa: B008  # frozen
    *,
    saved: dict[str, Any] | None = None,
    measure: bool = False,
    clock: Clock | None = None,
) -> tuple[Trainer, Estimate | None]:
    """The trainer with its final recipe and plan.

    What the recipe leaves open is fitted to the images and to the memory of the device. With a time limit (that of
    `clock`) or `measure`, some steps are timed first, on another trainer. If the run turns out short, it uses the
    recipe's settings for short runs and a batch of which enough steps fit, and is timed again with them. A resumed run
    (`saved`) keeps its settings, and its plan unless there is a limit for the rest of it. The times of rank 0 hold for
    all ranks.
    """
    clock = clock or Clock(options.max_minutes)
    if saved is not None:
        plan = Plan.of(Recipe.from_toml(saved["recipe"]), store, int(saved["total_steps"]), saved.get("relaid", ()))
        making = _Making(plan, store, options, world, clock)
        making.step = int(saved["step"])
        return making.resumed()
    recipe, notes = fit_to_images(recipe, len(store), store.image_size, world.size)
    Plan.of(recipe, store)  # refuses a batch larger than the data before its memory is estimated
    platform = choose_platform(options.device, recipe.train.precision, compile=bool(options.compile))
    recipe, more = fit_to_memory(recipe, store, platform, world)
    plan = within_compute(Plan.of(recipe.for_epochs(math.inf), store), options.max_pflop)
    making = _Making(plan, store, options, world, clock)
    making.notes += [*store.notes, *notes, *more]
    return making.planned(recipe, measure=measure)


class _Making:
    """What a trainer is made of while its plan is found; the kernels depend on the recipe of the plan."""

    def __init__(self, plan: Plan, store: ImageStore, options: RunOptions, world: World, clock: Clock) -> None:
        self._store, self._options, self._world, self._clock = store, options, world, clock
        self.plan, self.notes, self.step = plan, list[str](), 0
        self._for_timing = math.inf if clock.limit is None else CALIBRATION_SHARE * clock.limit  # seconds
        self._per_view = dict[int, float]()  # view size → seconds, as timed before
        platform = self._platform()
        if platform.device.type == "cpu":
            keep_freed_memory()
        world.agree(
            {
                "the images": store.fingerprint,
                "the recipe": plan.recipe.hash(),
                "the number of steps": plan.total_steps,
                "precision": platform.precision,
                "the version of torch": torch.__version__,
            }
        )

    def planned(self, recipe: Recipe, *, measure: bool) -> tuple[Trainer, Estimate | None]:
        """The trainer of a new run of `recipe`; its plan and recipe follow from the limit and the speed."""
        per_step = dict[int, float]()
        if self._clock.limit is not None:
            per_step = self._timed()
        epochs = self.plan.total_steps / self.plan.steps_per_epoch
        for _ in range(2):  # the second time for what the settings of short runs cost
            if self._clock.limit is not None:
                recipe = self._enough_steps(recipe, per_step)
            adapted = recipe.for_epochs(epochs)
            if adapted == self.plan.recipe:
                break
            self.plan = within_compute(Plan.of(adapted, self._store), self._options.max_pflop)
            per_step = self._timed() if self._clock.limit is not None else {}
        if not per_step and measure:
            per_step = self._timed()
        if self._clock.limit is not None:
            # A busy machine may look too slow, so that one step is always tried that the whole limit has time for.
            steps_within(self.plan, max(self._clock.left(), self._clock.limit), per_step)
        changes = self.plan.recipe.differences(recipe)
        taken = ", ".join(f"{key} = {value}" for key, value in changes.items())
        if changes:
            self.notes.append(f"a run this short uses {taken} (short_runs of the recipe; values from --set are kept)")
        return self._made(per_step)

    def resumed(self) -> tuple[Trainer, Estimate | None]:
        """The trainer with the saved plan or, within a limit, with the rest of it shortened to fit."""
        if self._clock.limit is None:
            return self._made({})
        per_step = self._calibrated(self._trainer(compile=False))
        self.plan = rest_within(self.plan, self.step, self._world.same(self._clock.left()), per_step)
        return self._made(per_step)

    def _made(self, per_step: dict[int, float]) -> tuple[Trainer, Estimate | None]:
        """The trainer of the plan. Where its model is compiled, that is done, and its steps are timed anew."""
        trainer = self._trainer(self._options.compile)
        if trainer.platform.compile:
            self._compile(trainer)
            if per_step:
                with trainer.undone():
                    per_step = self._calibrated(trainer)
                if self._clock.limit is not None and self.step == 0:
                    self._shorten(per_step)
                    trainer.relay(self.plan)
        if not per_step:
            return trainer, None
        return trainer, Estimate(cost_after(self.plan, self.step, per_step), per_step, peak_memory(trainer.platform))

    def _trainer(self, compile: bool | None) -> Trainer:
        """A trainer of the plan with the kernels for its recipe; a short run may have another temperature."""
        platform = self._platform(compile)
        backends, why = _backends(platform, self.plan.recipe, self._options)
        platform = replace(
            platform, notes=(*platform.notes, *self.notes, *why, *self.plan.notes(), *self._options.own.notes())
        )
        with loading_errors(self._store, platform.device):
            return Trainer(
                self.plan,
                platform,
                self._store,
                backends,
                self._world,
                batch_norm=self._options.batch_norm,
                own=self._options.own,
            )

    def _platform(self, compile: bool | None = False) -> Platform:
        """The platform; for None, whether it compiles depends on the remaining steps of the plan."""
        steps = self.plan.total_steps - self.step
        return choose_platform(self._options.device, self.plan.recipe.train.precision, compile, steps)

    def _compile(self, trainer: Trainer) -> None:
        """Compiles the model for every view size, which takes no time of the limit; says so before and after."""
        sizes = sorted({size for _, size in trainer.plan.phases()})
        self._say(
            f"compiling the encoder for views of {' and '.join(f'{size} px' for size in sizes)}, about a minute for "
            "each; --max-minutes does not count it"
        )
        before = self._clock.uncounted
        with self._clock.paused(), trainer.undone():
            trainer.model.train()
            for size in sizes:
                with memory_errors(trainer):
                    trainer.train_step(0, size)
            trainer.platform.synchronize()
        self._say(f"compiled in {self._clock.uncounted - before:.0f} s")

    def _timed(self) -> dict[int, float]:
        """View size → seconds per step of the plan, which is shortened to the remaining time."""
        per_step = self._calibrated(self._trainer(compile=False))
        if self._clock.limit is not None:
            self._shorten(per_step)
        return per_step

    def _shorten(self, per_step: dict[int, float]) -> None:
        steps = self._world.same(int(self._clock.left() / mean_seconds(self.plan, per_step)))
        self.plan = replace(self.plan, total_steps=min(self.plan.total_steps, max(1, steps)))

    def _calibrated(self, trainer: Trainer) -> dict[int, float]:
        """View size → seconds per step, on the clock of rank 0; half of what is left for timing at a time."""
        allowance, began = max(0.0, self._for_timing / 2), self._clock.seconds()  # earlier timing may have taken longer
        self._say("timing some steps" + (f", for at most {allowance:.0f} s" if 0 < allowance < math.inf else ""))
        train = trainer.recipe.train
        views = train.batch_size * train.views
        known = {size: views * seconds for size, seconds in self._per_view.items()}
        per_step = self._world.same(calibrate(trainer, allowance, known))
        self._per_view |= {size: seconds / views for size, seconds in per_step.items()}
        self._for_timing -= self._world.same(self._clock.seconds() - began)
        return per_step

    def _enough_steps(self, recipe: Recipe, per_step: dict[int, float]) -> Recipe:
        """The recipe with a batch of which enough steps fit into the limit, if they do and the user set none."""
        batch, left = recipe.train.batch_size, self._world.same(self._clock.left())
        steps = left / mean_seconds(self.plan, per_step)
        if steps >= min(FEWEST_STEPS, Plan.of(self.plan.recipe, self._store).total_steps):
            return recipe
        why = f"{steps:.0f} steps of {batch} images would fit into the time"
        most = max(SMALLEST_BATCH, int(batch * steps / FEWEST_STEPS))
        recipe, notes = shrink_batch(recipe, most, why, self._world.size)
        self.notes += notes
        return recipe

    def _say(self, line: str) -> None:
        if not self._options.quiet:
            say(line)


def fit_to_memory(recipe: Recipe, store: ImageStore, platform: Platform, world: World) -> tuple[Recipe, list[str]]:
    """The recipe with a batch whose step is estimated to fit into the free memory, and the notes that say so.

    Raises:
        PlatformError: on a CPU, where the system would kill the process, the user's batch cannot fit.
    """
    if recipe.model.arch == "own":  # whose shapes are not known here
        return recipe, []
    free = free_memory(platform)
    if free is not None and platform.device.type == "cuda" and not stays_in_files(store, platform.device):
        free -= store.images.nbytes
    free = world.same(free)
    if free is None:
        return recipe, []
    views, size, variant = max(
        (
            (variant.train.views, max(size or store.image_size for _, size in _stages(variant)), variant)
            for variant in recipe.variants()
        ),
        key=lambda found: found[0] * found[1] ** 2,
    )
    memory = step_memory(variant.model, variant.head, size, platform.precision)
    fits = memory.views_within(int(USABLE * free)) // views
    share = recipe.train.batch_size // world.size
    images = recipe.train.micro_batch or share
    if images <= fits:
        return recipe, []
    likely = memory.likely(images * views) / 2**30
    needs = f"a step of {images} images ({views} views of {size} px) takes about {likely:.1f} GiB of memory (an "
    needs += f"estimate) and {free / 2**30:.1f} GiB are free"
    recipe, notes = shrink_batch(recipe, fits * world.size, needs, world.size)
    images = recipe.train.micro_batch or recipe.train.batch_size // world.size
    if platform.device.type == "cpu" and memory.least(images * views) > free:
        micro = largest_divisor(share, fits)
        part = f"use --set train.micro_batch={micro} (same batch in parts)"
        fix = part if micro else "use --set data.size=PIXELS with fewer pixels"
        raise PlatformError("there is not enough memory for a training step", saw=needs, fix=fix)
    return recipe, notes


def _stages(recipe: Recipe) -> Sequence[tuple[float, int]]:
    return recipe.train.resolution or ((1.0, 0),)


def describe(trainer: Trainer, estimate: Estimate | None) -> list[str]:
    """The plan in a few lines."""
    r, plan, p = trainer.recipe, trainer.plan, trainer.platform
    epochs = counted(f"{plan.total_steps / plan.steps_per_epoch:.4g}", "epoch")
    sizes = " → ".join(f"{s} px" for s in dict.fromkeys(size for _, size in plan.phases()))
    pflop = pflop_of(plan)
    compute = "" if pflop is None else f"; {pflop:.3g} PFLOP"
    scaled = " (lr × batch/256)" if r.optimizer.lr_per_256 else ""
    layout = "channels_last" if p.channels_last else "contiguous"
    count = f"{parameter_count(trainer.model):,} parameters with its head"
    encoder = "own encoder" if r.model.arch == "own" else f"{r.model.arch} ({r.model.stem} stem)"
    compiled, held = "on" if p.compile else "off", trainer.store.images.nbytes / 2**30
    lines = [
        f"recipe   {r.name}: {encoder}, {count}, τ {r.loss.temperature:g}",
        f"data     {trainer.store.name}: {counted(plan.samples, 'image')} of {plan.image_size} px, "
        f"{r.train.views} views at {sizes}",
        *([f"files    {held:.1f} GiB of images stay there, read a step ahead"] if trainer.streamed else []),
        f"plan     {counted(plan.total_steps, 'step')} of {counted(r.train.batch_size, 'image')} = {epochs}; "
        f"{r.optimizer.name}, peak lr {plan.peak_lr:.4g}{scaled}, {r.schedule.name}{compute}",
        *([f"resumes  after step {trainer.step:,}"] if trainer.step else []),
        f"device   {p.device} ({p.describe()['device_name']}), {p.precision}, {layout}, compile {compiled}",
        f"kernels  augmentation: {trainer.backends.augment}; NT-Xent: {trainer.backends.nt_xent}",
        *([] if pflop is None else [f"memory   {_memory(trainer)}"]),
    ]
    lines += [f"spread   {row}" for row in spread(trainer)]
    lines += [f"note     {note}" for note in p.notes]
    if estimate is not None:
        per = ", ".join(f"{1e3 * s:.0f} ms at {size} px" for size, s in estimate.seconds_per_step.items())
        minutes, peak = estimate.seconds / 60, estimate.peak_bytes / 2**30
        lines.append(f"estimate {minutes:.1f} min of training ({per} a step), peak memory {peak:.2f} GiB so far")
    return lines


def _memory(trainer: Trainer) -> str:
    """What a step is estimated to take, and what is free."""
    recipe, size = trainer.recipe, max(size for _, size in trainer.plan.phases())
    memory = step_memory(recipe.model, recipe.head, size, trainer.platform.precision)
    free = free_memory(trainer.platform)
    there = "" if free is None else f", {free / 2**30:.1f} GiB are free"
    likely = memory.likely(trainer.micro_batch * recipe.train.views) / 2**30
    return f"about {likely:.1f} GiB for a step (an estimate){there}"


def spread(trainer: Trainer) -> list[str]:
    """How a step is spread over ranks and micro-batches, and over what batch norm computes its statistics."""
    r, world = trainer.recipe, trainer.world
    share = r.train.batch_size // world.size
    rows = []
    if world.size > 1:
        norm = "synchronised" if trainer.synchronised else "local to each rank"
        rows.append(f"{world.size} ranks of {counted(share, 'image')}, negatives from all of them; batch norm {norm}")
    if trainer.two_passes:
        ranks = f" on each of {world.size} ranks" if trainer.synchronised else ""
        held = counted(trainer.micro_batch, "image")
        rows.append(f"micro-batches of {held}{ranks}, over which batch norm takes its statistics")
    dropped = trainer.plan.samples - trainer.plan.steps_per_epoch * r.train.batch_size
    if rows and dropped:
        left = counted(dropped, "image")
        rows.append(f"{left} of each epoch do not fill a batch and are skipped (different ones each epoch)")
    return rows


def choose_augment(options: RunOptions, device: torch.device) -> tuple[str, str]:
    """The augmentation backend and the reason for it. Asked also before images are read and packed, which takes long.

    Raises:
        UsageError: there is no backend of this name.
        PlatformError: it does not work on this machine.
    """
    if options.own.view is not None:
        return "own", ""
    wanted = "torch" if options.fused is False and options.augment == "auto" else options.augment
    try:
        return pick_augment(wanted, device)
    except ValueError as error:
        kind = PlatformError if wanted in BACKENDS else UsageError
        raise kind("the augmentation backend is not available", saw=error, fix="use --augment auto") from error


def _backends(platform: Platform, recipe: Recipe, options: RunOptions) -> tuple[Backends, tuple[str, ...]]:
    """The implementation of each kernel on this device, and notes about the choice."""
    plain, dimension, temperature = options.fused is False, recipe.head.dimension, recipe.loss.temperature
    views, why_views = choose_augment(options, platform.device)
    loss, why_loss = pick_nt_xent("torch" if plain else "auto", platform.device, dimension, temperature)
    said = {f"augmentation by {views}": why_views, f"NT-Xent by {loss}": why_loss}
    # With --fused, all reasons are shown; otherwise only those against a faster kernel ("…; no native: …").
    notes = tuple(f"{what}: {why}" for what, why in said.items() if options.fused or "; no " in why)
    return Backends(views, loss), notes
