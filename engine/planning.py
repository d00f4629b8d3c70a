"""From a recipe and images to a trainer with a final plan: kernels picked, steps timed, a budget of minutes kept."""

from __future__ import annotations

import math
import resource
import sys
import time
from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from simclr_engine.kernels import pick_augment, pick_nt_xent

from .data.store import ImageStore
from .device import Platform, choose_platform, keep_freed_memory
from .errors import UsageError
from .memory import loading_errors, memory_errors
from .model import parameter_count
from .parallel import World
from .recipe import Recipe
from .training import Backends, Plan, Trainer

CALIBRATION_STEPS = 4  # timed per view size, after one untimed
# A budget is spent to this share: what is not steps (start-up, monitors, checkpoints) and noise take the rest.
BUDGET_SHARE = 0.96


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
    the recipe's settings for short runs, and is then timed with them. One that is resumed (`saved`) keeps its own, and
    its plan, unless `max_minutes` are given for what is left of it.
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
    began, per_step = time.perf_counter(), dict[int, float]()
    if saved is not None:
        if max_minutes is None:
            return trainer_of(plan), None
        step, per_step = int(saved["step"]), world.same(calibrate(trainer_of(plan)))
        left = world.same(max_minutes * 60 * BUDGET_SHARE - (time.perf_counter() - began))
        plan = rest_within(plan, step, left, per_step)
        trainer = trainer_of(plan)
        return trainer, Estimate(seconds_after(plan, step, per_step), per_step, peak_memory(platform))

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
        raise _too_short(mean)
    return int(seconds / mean)


def seconds_after(plan: Plan, step: int, per_step: dict[int, float]) -> float:
    """What the steps of `plan` take that come after the first `step`."""
    seconds, begin = 0.0, step
    for end, size in plan.phases():
        until = max(begin, round(end * plan.total_steps))
        seconds, begin = seconds + (until - begin) * per_step[size], until
    return seconds


def rest_within(plan: Plan, step: int, seconds: float, per_step: dict[int, float]) -> Plan:
    """`plan`, shortened so that what comes after the first `step` steps takes at most `seconds`.

    The schedule then decays over the fewer steps. A rest that fits stays as it is.

    Raises:
        UsageError: not one step fits.
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
        fix="a longer --max-minutes or a smaller batch",
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
        f"{r.optimizer.name}, peak lr {plan.peak_lr:.4g}{scaled}, {r.schedule.name}",
        *([f"goes on  after step {trainer.step:,}"] if trainer.step else []),
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
