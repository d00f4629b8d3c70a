"""How long a training step takes on this machine, from a few that are timed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from .memory import memory_errors
from .training import Trainer

CALIBRATION_STEPS = 4  # timed steps per view size, after an untimed one


def calibrate(trainer: Trainer, allowance: float = math.inf) -> dict[int, float]:
    """View size → median seconds per step, timed on real steps, which spoil the trainer's weights.

    Args:
        trainer: of the plan whose steps are timed.
        allowance: seconds that it may take. Where whole steps would take longer, parts of a batch are timed, and the
            time of a step is extrapolated from the largest of them, which is rather too long than too short.
    """
    sizes = sorted({size for _, size in trainer.plan.phases()})
    trainer.model.train()
    seconds = dict[int, float]()
    for number, size in enumerate(sizes):
        share = size**2 / sum(other**2 for other in sizes[number:])
        seconds[size], spent = _seconds_per_step(trainer, size, share * allowance)
        allowance -= spent
    return seconds


def _seconds_per_step(trainer: Trainer, size: int, allowance: float) -> tuple[float, float]:
    """Seconds of a step with views of `size` pixels, timed within `allowance` seconds if two images can be; and the
    seconds that this took. Both are of rank 0, so that all ranks make the same steps."""
    spent, times = 0.0, list[float]()
    if allowance < math.inf:
        estimate, spent = _seconds_from_parts(trainer, size, allowance)
        if spent + 2 * estimate > allowance:
            return estimate, spent
    while len(times) < 2 or (len(times) <= CALIBRATION_STEPS and spent + times[-1] <= allowance):
        step = len(times) % trainer.plan.steps_per_epoch
        times.append(_seconds_of(trainer, partial(trainer.train_step, step, size)))
        spent += times[-1]
    return float(np.median(times[1:])), spent


def _seconds_from_parts(trainer: Trainer, size: int, allowance: float) -> tuple[float, float]:
    """Seconds of a step, extrapolated from growing parts of a batch until two whole steps fit into what is left of
    `allowance` or a larger part does not; and the seconds that this took."""
    most = trainer.micro_batch
    parts = trainer.recipe.train.batch_size / trainer.world.size * (4 / 3 if trainer.two_passes else 1)
    images = min(2, most)
    spent = _seconds_of(trainer, partial(trainer.run_part, images, size))  # used only if there is no time for another
    if 2 * spent > allowance:
        return spent / images * parts, spent
    while True:
        seconds = _seconds_of(trainer, partial(trainer.run_part, images, size))
        spent, estimate = spent + seconds, seconds / images * parts
        larger = min(most, 4 * images)
        if images == most or spent + 2 * estimate <= allowance or spent + seconds / images * larger > allowance:
            return estimate, spent
        images = larger


def _seconds_of(trainer: Trainer, work: Callable[[], object]) -> float:
    """Seconds that `work` takes on rank 0."""
    trainer.platform.synchronize()
    start = time.perf_counter()
    with memory_errors(trainer):
        work()
    trainer.platform.synchronize()
    return trainer.world.same(time.perf_counter() - start)
