"""Makes a trainer with its final plan from a recipe and images, within limits of time and memory."""

from __future__ import annotations

import gc
import math
import resource
import sys
import time
import traceback
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simclr_engine.kernels import pick_augment, pick_nt_xent

from .data.store import ImageStore
from .device import Platform, choose_platform, keep_freed_memory
from .distributed import World
from .errors import PlatformError, UsageError
from .flops import flops_of, flops_per_step
from .model import parameter_count
from .recipe import Recipe
from .training import Backends, Plan, Trainer

CALIBRATION_STEPS = 4  # timed steps per view size, after an untimed one
# Share of a time budget that is planned for steps; start-up, monitors, checkpoints and noise take the rest.
BUDGET_SHARE = 0.96
# Share of the device's memory that a step may use; the allocator cannot fill all of it.
USABLE = 0.9
_SAID = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


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
    allow_skipped: bool = False
    weights: str | Path | None = None
    stem_padding: int | None = None
    stem_pool: str | None = None
    batch_norm: str | None = None

    def __post_init__(self) -> None:
        for name, unit in (("max_minutes", "minutes"), ("max_pflop", "PFLOP")):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                option = "--" + name.replace("_", "-")
                raise UsageError(f"{option} must be above 0", saw=limit, fix=f"give a number of {unit} above 0")
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
) -> tuple[Trainer, Estimate | None]:
    """The trainer with its final recipe and plan.

    With `options.max_minutes` or `measure`, some steps are timed first, on another trainer. If the run turns out short,
    it uses the recipe's settings for short runs and is timed again with them. A resumed run (`saved`) keeps its
    settings, and its plan unless `max_minutes` limit the rest of it. The times of rank 0 hold for all ranks.
    """
    making = _Making(recipe, store, options, world, saved)
    if saved is not None:
        return making.resumed(saved)
    plan, per_step = within_compute(making.plan, options.max_pflop), dict[int, float]()
    if options.max_minutes is not None:
        plan, per_step = making.timed(plan)
    adapted = recipe.for_epochs(plan.total_steps / plan.steps_per_epoch)
    if adapted != plan.recipe:
        plan, per_step = within_compute(Plan.of(adapted, store), options.max_pflop), {}
    if not per_step and (options.max_minutes is not None or measure):
        plan, per_step = making.timed(plan)
    changes = adapted.differences(recipe)
    taken = ", ".join(f"{key} = {value}" for key, value in changes.items())
    notes = [f"a run this short uses {taken} (short_runs of the recipe; values from --set are kept)"] if changes else []
    trainer = making.trainer(plan, *notes)
    if not per_step:
        return trainer, None
    return trainer, Estimate(seconds_after(plan, 0, per_step), per_step, peak_memory(trainer.platform))


class _Making:
    """The parts of a trainer: the platform is chosen; the kernels depend on the recipe of the plan."""

    def __init__(
        self, recipe: Recipe, store: ImageStore, options: RunOptions, world: World, saved: dict[str, Any] | None
    ) -> None:
        self._store, self._options, self._world = store, options, world
        if saved is not None:
            self.plan = Plan.of(Recipe.from_toml(saved["recipe"]), store, int(saved["total_steps"]))
        else:
            self.plan = Plan.of(recipe.for_epochs(math.inf), store)
        precision = recipe.train.precision
        self._platform = choose_platform(options.device, precision, options.compile, self.plan.total_steps)
        if self._platform.device.type == "cpu":
            keep_freed_memory()
        world.agree(
            {
                "the images": store.fingerprint,
                "the recipe": self.plan.recipe.hash(),
                "the number of steps": self.plan.total_steps,
                "precision": self._platform.precision,
                "the version of torch": torch.__version__,
            }
        )
        self._began = time.perf_counter()

    def trainer(self, plan: Plan, *notes: str) -> Trainer:
        """The trainer with the kernels for this recipe; a short run may have another temperature."""
        backends, why = _backends(self._platform, plan.recipe, self._options)
        platform = replace(self._platform, notes=(*self._platform.notes, *notes, *why, *plan.notes()))
        with loading_errors(self._store, platform.device):
            return Trainer(plan, platform, self._store, backends, self._world, self._options.batch_norm)

    def timed(self, plan: Plan) -> tuple[Plan, dict[int, float]]:
        """The plan, shortened to the remaining time, and view size → seconds per step."""
        per_step = self._world.same(calibrate(self.trainer(plan)))
        if self._options.max_minutes is not None:
            steps = steps_within(plan, self._seconds_left(), per_step)
            plan = replace(plan, total_steps=min(plan.total_steps, steps))
        return plan, per_step

    def resumed(self, saved: dict[str, Any]) -> tuple[Trainer, Estimate | None]:
        """The trainer with the saved plan, or with the rest of it shortened to fit into `max_minutes`."""
        if self._options.max_minutes is None:
            return self.trainer(self.plan), None
        step, per_step = int(saved["step"]), self._world.same(calibrate(self.trainer(self.plan)))
        plan = rest_within(self.plan, step, self._seconds_left(), per_step)
        trainer = self.trainer(plan)
        return trainer, Estimate(seconds_after(plan, step, per_step), per_step, peak_memory(trainer.platform))

    def _seconds_left(self) -> float:
        minutes = self._options.max_minutes
        assert minutes is not None
        return self._world.same(minutes * 60 * BUDGET_SHARE - (time.perf_counter() - self._began))


def calibrate(trainer: Trainer) -> dict[int, float]:
    """View size → median seconds per step, timed on real steps, which spoil the trainer's weights."""
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


def mean_cost(plan: Plan, per_step: Mapping[int, float]) -> float:
    """Mean cost of a step, over the phases of progressive resolution; `per_step` has the cost at each view size."""
    previous, mean = 0.0, 0.0
    for end, size in plan.phases():
        mean += (end - previous) * per_step[size]
        previous = end
    return mean


def steps_within(plan: Plan, seconds: float, per_step: dict[int, float]) -> int:
    """Number of steps that fit into `seconds`.

    Raises:
        UsageError: the time is too short for one step.
    """
    mean = mean_cost(plan, per_step)
    if seconds < mean:
        raise _too_short(mean)
    return int(seconds / mean)


def within_compute(plan: Plan, pflop: float | None) -> Plan:
    """`plan`, shortened to at most so much compute; None sets no limit.

    Raises:
        UsageError: it is less than one step takes.
    """
    if pflop is None:
        return plan
    mean = mean_cost(plan, {size: flops_per_step(plan.recipe, size) for _, size in plan.phases()}) / 1e15
    if pflop < mean:
        raise UsageError(
            "the compute is too little for one step",
            saw=f"--max-pflop {pflop:g}, {mean:.2g} PFLOP a step",
            fix="use a larger --max-pflop or a smaller batch",
        )
    return replace(plan, total_steps=min(plan.total_steps, int(pflop / mean)))


def seconds_after(plan: Plan, step: int, per_step: dict[int, float]) -> float:
    """Seconds that the steps of `plan` take after the first `step`."""
    seconds, begin = 0.0, step
    for end, size in plan.phases():
        until = max(begin, round(end * plan.total_steps))
        seconds, begin = seconds + (until - begin) * per_step[size], until
    return seconds


def rest_within(plan: Plan, step: int, seconds: float, per_step: dict[int, float]) -> Plan:
    """`plan`, shortened so that the steps after the first `step` ones take at most `seconds`.

    The schedule then decays over fewer steps. A plan that fits is not changed.

    Raises:
        UsageError: the time is too short for one step.
    """
    totals = range(step + 1, plan.total_steps + 1)

    def cost(total: int) -> float:
        return seconds_after(replace(plan, total_steps=total), step, per_step)

    fitting = bisect_right(totals, seconds, key=cost)
    if totals and not fitting:
        raise _too_short(per_step[plan.view_size(step)])
    return replace(plan, total_steps=step + fitting)


def _too_short(seconds: float) -> UsageError:
    return UsageError(
        "the time is too short for one step",
        saw=f"{seconds:.1f} s a step",
        fix="use a longer --max-minutes or a smaller batch",
    )


def describe(trainer: Trainer, estimate: Estimate | None) -> list[str]:
    """The plan in a few lines."""
    r, plan, p = trainer.recipe, trainer.plan, trainer.platform
    epochs = plan.total_steps / plan.steps_per_epoch
    sizes = " → ".join(f"{s} px" for s in dict.fromkeys(size for _, size in plan.phases()))
    scaled = " (lr × batch/256)" if r.optimizer.lr_per_256 else ""
    layout = "channels_last" if p.channels_last else "contiguous"
    count = f"{parameter_count(trainer.model):,} parameters with its head"
    compiled, held = "on" if p.compile else "off", trainer.store.images.nbytes / 1e9
    lines = [
        f"recipe   {r.name}: {r.model.arch} ({r.model.stem} stem), {count}, τ {r.loss.temperature:g}",
        f"data     {trainer.store.name}: {plan.samples:,} images of {plan.image_size} px, "
        f"{r.train.views} views at {sizes}",
        *([f"files    {held:.1f} GB of images stay there, read a step ahead"] if trainer.streamed else []),
        f"plan     {plan.total_steps:,} steps of {r.train.batch_size} images = {epochs:.4g} epochs; "
        f"{r.optimizer.name}, peak lr {plan.peak_lr:.4g}{scaled}, {r.schedule.name}; {flops_of(plan) / 1e15:.3g} PFLOP",
        *([f"resumes  after step {trainer.step:,}"] if trainer.step else []),
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
    """How a step is spread over ranks and micro-batches, and over what batch norm computes its statistics."""
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
        rows.append(f"{dropped:,} images of each epoch do not fill a batch and are skipped (different ones each epoch)")
    return rows


def peak_memory(platform: Platform) -> int:
    """Peak memory in bytes: of the device on CUDA, else resident memory of the process."""
    if platform.device.type == "cuda":
        return torch.cuda.max_memory_allocated(platform.device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _backends(platform: Platform, recipe: Recipe, options: RunOptions) -> tuple[Backends, tuple[str, ...]]:
    """The implementation of each kernel on this device, and notes about the choice."""
    plain, augment = options.fused is False, options.augment
    dimension, temperature = recipe.head.dimension, recipe.loss.temperature
    try:
        views, why_views = pick_augment("torch" if plain and augment == "auto" else augment, platform.device)
        loss, why_loss = pick_nt_xent("torch" if plain else "auto", platform.device, dimension, temperature)
    except ValueError as error:
        raise UsageError("the kernel backend is not available", saw=error, fix="use --augment auto") from error
    said = {f"augmentation by {views}": why_views, f"NT-Xent by {loss}": why_loss}
    # With --fused, all reasons are shown; otherwise only those against a faster kernel ("…; no native: …").
    notes = tuple(f"{what}: {why}" for what, why in said.items() if options.fused or "; no " in why)
    return Backends(views, loss), notes


@contextmanager
def memory_errors(trainer: Trainer) -> Iterator[None]:
    """A context for steps of `trainer`. Running out of memory becomes a PlatformError that says what would fit."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        # The frames keep the activations of the failed step alive; their memory is needed for measuring.
        traceback.clear_frames(error.__traceback__)
        raise out_of_memory(trainer, error) from error


@contextmanager
def loading_errors(store: ImageStore, device: torch.device) -> Iterator[None]:
    """The same for making a trainer, which puts the model and, on CUDA, all images into memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise PlatformError(
            "there is not enough memory for the model and the images",
            saw=f"{len(store):,} images of {store.image_size} px, {store.images.nbytes / 2**30:.2f} GiB, on {device}",
            fix="use --limit N, --set data.size=PIXELS, or --device cpu, which leaves the images on disk",
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. On the CPU, and in cuBLAS, this is a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error).lower() for said in _SAID)


def out_of_memory(trainer: Trainer, error: BaseException) -> PlatformError:
    """The error of a step that did not fit. If the device reports memory, small steps are measured first."""
    train, share = trainer.recipe.train, trainer.recipe.train.batch_size // trainer.world.size
    now = min(trainer.micro_batch, share)
    fits, why = _measured_fit(trainer, now)
    micro = largest_divisor(share, min(fits, now - 1))
    size = max(size for _, size in trainer.plan.phases())
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    held = f"{now} at a time of a batch of {train.batch_size}" if now < train.batch_size else f"batch {now}"
    saw = f"{held}, {train.views} views of {size} px: {first[:160]}"
    if micro < 1:
        fix = "use a smaller model or smaller images: not even one image would fit (an estimate)"
    else:
        batch = micro * trainer.world.size
        fix = f"use --set train.micro_batch={micro} (same batch in parts) or --batch-size {batch} (estimate: {why})"
    return PlatformError("there is not enough memory for a training step", saw=saw, fix=fix)


def images_that_fit(small: tuple[int, int], large: tuple[int, int], capacity: int) -> int:
    """How many images a step may have, from the peak memory of two smaller steps, each given as (images, bytes).

    Memory is assumed to grow linearly: a constant part (weights, gradients) and the same amount for each image.
    """
    (n, bytes_n), (m, bytes_m) = small, large
    each = (bytes_m - bytes_n) / (m - n)
    if each <= 0:  # too small a difference to extrapolate
        return m
    return max(0, int((capacity - (bytes_n - each * n)) / each))


def largest_divisor(whole: int, limit: int) -> int:
    """The largest divisor of `whole` that is at most `limit`; 0 if there is none."""
    return next((d for d in range(min(whole, limit), 0, -1) if whole % d == 0), 0)


def _measured_fit(trainer: Trainer, now: int) -> tuple[int, str]:
    """How many images would fit, and what the estimate is based on."""
    small = max(2, now // 32)
    # With other ranks, batch norm would wait for them; devices other than CUDA report no peak that can be reset.
    if trainer.platform.device.type != "cuda" or trainer.world.size > 1 or 2 * small >= now:
        return now // 2, "half of what did not fit"
    device = trainer.platform.device
    try:
        peaks = [(images, _peak_bytes(trainer, images)) for images in (small, 2 * small)]
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return small // 2, f"not even {2 * small} images fit"
    free, _ = torch.cuda.mem_get_info(device)
    capacity = int(USABLE * (free + torch.cuda.memory_reserved(device)))
    fits = images_that_fit(peaks[0], peaks[1], capacity)
    return fits, f"about {fits} fit, from the peak memory of steps of {small} and {2 * small}"


def _peak_bytes(trainer: Trainer, images: int) -> int:
    """The peak memory of the device in one forward and backward pass of this many images, at the largest view size."""
    device = trainer.platform.device
    trainer.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    ids = trainer.sample_ids(trainer.step)[:images]
    views = trainer.views(ids, 0, max(size for _, size in trainer.plan.phases()))
    with trainer.platform.autocast():
        z = trainer.model(views)  # not `forward`, which would be compiled for a size that is used once
    z.float().square().sum().backward()
    trainer.optimizer.zero_grad(set_to_none=True)
    return torch.cuda.max_memory_allocated(device)
