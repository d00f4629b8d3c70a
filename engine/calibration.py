"""How long a training step takes on this machine, from a few that are timed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from .memory import memory_errors
from .training import Trainer

FEW = 2  # images of the first part of a batch
CALIBRATION_STEPS = 4  # timed steps per view size, after an untimed one


def calibrate(
    trainer: Trainer, allowance: float = math.inf, known: Mapping[int, float] | None = None
) -> dict[int, float]:
    """View size → median seconds per step, timed on real steps, which spoil the trainer's weights.

    Args:
        trainer: of the plan whose steps are timed.
        allowance: seconds that it may take, or twice as many where two images alone take that long. Where whole steps
            would take longer, parts of a batch are timed, and the time of a step is extrapolated from the largest of
            them, which is rather too long than too short.
        known: seconds per step by an earlier timing. They are taken, or those of a smaller size in proportion to the
            area, where there is no time for two images.
    """
    sizes = sorted({size for _, size in trainer.plan.phases()})
    trainer.model.train()
    seconds = dict[int, float]()
    guess: float | None
    for number, size in enumerate(sizes):
        guess = (known or {}).get(size)
        if guess is None and number:
            guess = seconds[sizes[number - 1]] * (size / sizes[number - 1]) ** 2
        if guess is not None and FEW * guess / _parts(trainer) > allowance:
            seconds[size] = guess
            continue
        share = size**2 / sum(other**2 for other in sizes[number:])
        seconds[size], spent = _seconds_per_step(trainer, size, share * allowance, allowance, guess)
        allowance -= spent
    return seconds


def _seconds_per_step(
    trainer: Trainer, size: int, share: float, allowance: float, guess: float | None
) -> tuple[float, float]:
    """Seconds of a step with views of `size` pixels, timed within its `share` of the allowance if two images can be;
    and the seconds that this took. Both are of rank 0, so that all ranks make the same steps."""
    first, spent, times = 0.0, 0.0, list[float]()
    if share < math.inf:
        images = min(FEW, trainer.micro_batch)
        # Pays for all that is made once, such as kernels and threads. What it took says little of the next one, so it
        # is believed only where there is no time for another and nothing else is known.
        first = _seconds_of(trainer, partial(trainer.run_part, images, size))
        if first > allowance:
            return (first / images * _parts(trainer) if guess is None else guess), first
        estimate, spent = _seconds_from_parts(trainer, size, share, images)
        if spent + 2 * estimate > share:
            return estimate, first + spent
    while len(times) < 2 or (len(times) <= CALIBRATION_STEPS and spent + times[-1] <= share):
        step = len(times) % trainer.plan.steps_per_epoch
        times.append(_seconds_of(trainer, partial(trainer.train_step, step, size)))
        spent += times[-1]
    return float(np.median(times[1:])), first + spent


def _parts(trainer: Trainer) -> float:
    """How many times an image's forward and backward pass a step takes."""
    return trainer.recipe.train.batch_size / trainer.world.size * (4 / 3 if trainer.two_passes else 1)


def _seconds_from_parts(trainer: Trainer, size: int, allowance: float, images: int) -> tuple[float, float]:
    """Seconds of a step, extrapolated from growing parts of a batch, of `images` at first, until two whole steps fit
    into what is left of `allowance` or a larger part does not; and the seconds that this took."""
    most, spent = trainer.micro_batch, 0.0
    while True:
        seconds = _seconds_of(trainer, partial(trainer.run_part, images, size))
        spent, estimate = spent + seconds, seconds / images * _parts(trainer)
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
