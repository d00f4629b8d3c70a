"""The time limit of a run: what counts towards it, how many steps fit, and how the plan follows the machine's speed."""

from __future__ import annotations

import math
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from .errors import UsageError
from .plan import Plan

# Share of a time limit that is planned for; the last save, the weights and noise take the rest.
BUDGET_SHARE = 0.96
CALIBRATION_SHARE = 0.1  # most of a limit that steps are timed for
# Where a run with a limit is saved and its speed looked at: shares of its steps or of its time, whichever come first.
CHECKPOINTS = (0.1, 0.35, 0.65, 0.9)
TOLERANCE = 0.03  # of the limit by which the end may be off before the plan is laid again
EVIDENCE = 0.01  # of the limit: the shortest time that a speed is judged by


class Clock:
    """The time of a run that counts: all since it was made but packing and compilation.

    Args:
        minutes: the limit; None for none.
        began: `time.perf_counter()` when the run began; None for now.

    Attributes:
        limit: the limit in seconds.
        uncounted: seconds that do not count.
    """

    def __init__(self, minutes: float | None = None, began: float | None = None) -> None:
        self.limit = None if minutes is None else 60 * minutes
        self.began = time.perf_counter() if began is None else began
        self.uncounted = 0.0

    def seconds(self) -> float:
        """The time that counts, so far."""
        return time.perf_counter() - self.began - self.uncounted

    def left(self) -> float:
        """What is left of the limit to plan for, seconds. There must be a limit."""
        assert self.limit is not None
        return BUDGET_SHARE * self.limit - self.seconds()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose time does not count."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.uncounted += time.perf_counter() - began


class Pace:
    """Keeps a run within its limit: at a few checkpoints the length of the plan follows the speed of the machine.

    Only rank 0's clock counts. Batch and learning rate at each point of the schedule stay.

    Args:
        clock: with a limit.
        plan: of the run.
        step: steps that are done.
        per_step: view size → seconds per step, as timed before.
        most: (plan, steps that are done) → the steps that it may have at most.
    """

    def __init__(
        self, clock: Clock, plan: Plan, step: int, per_step: dict[int, float], most: Callable[[Plan, int], int]
    ) -> None:
        assert clock.limit is not None
        self._clock, self._limit, self._per_step, self._most = clock, clock.limit, dict(per_step), most
        self._first, self._at, self._seconds, self._passed = step, step, clock.seconds(), 0

    def due(self, step: int, plan: Plan) -> bool:
        """Whether the next checkpoint is reached, and enough time has passed since the last one to judge the speed."""
        seconds = self._clock.seconds()
        if step <= self._at or step >= plan.total_steps or seconds - self._seconds < EVIDENCE * self._limit:
            return False
        done = max(seconds / self._limit, (step - self._first) / (plan.total_steps - self._first))
        passed = bisect_right(CHECKPOINTS, done)
        is_due, self._passed = passed > self._passed, max(passed, self._passed)
        return is_due

    def follow(self, step: int, plan: Plan) -> Plan:
        """The plan, relaid after `step` if it would end too late or too early; at least one step remains."""
        seconds = self._clock.seconds()
        expected = cost_after(plan, self._at, self._per_step) - cost_after(plan, step, self._per_step)
        ratio = (seconds - self._seconds) / max(expected, 1e-9)
        self._per_step = {size: ratio * each for size, each in self._per_step.items()}
        self._at, self._seconds = step, seconds
        left = self._clock.left()
        if abs(cost_after(plan, step, self._per_step) - left) <= TOLERANCE * self._limit:
            return plan
        most = self._most(plan, step)
        return plan.relay(step, max(step + 1, longest(plan, step, left, self._per_step, most)))


def mean_seconds(plan: Plan, per_step: dict[int, float]) -> float:
    """Mean of `per_step`, the seconds at each view size, over the phases of progressive resolution."""
    previous, mean = 0.0, 0.0
    for end, size in plan.phases():
        mean += (end - previous) * per_step[size]
        previous = end
    return mean


def steps_within(plan: Plan, seconds: float, per_step: dict[int, float]) -> int:
    """Number of steps that fit into `seconds`.

    Raises:
        UsageError: none does.
    """
    mean = mean_seconds(plan, per_step)
    if seconds < mean:
        raise _too_short(mean)
    return int(seconds / mean)


def cost_after(plan: Plan, step: int, per_step: Mapping[int, float]) -> float:
    """What the steps of `plan` after the first `step` cost: `per_step` is seconds or operations at each view size."""
    cost, begin = 0.0, step
    for end, size in plan.phases():
        planned = round(end * plan.first_length)
        steps = range(plan.total_steps)
        until = bisect_left(steps, planned, lo=min(begin, len(steps)), key=lambda at: math.floor(plan.planned(at)))
        cost, begin = cost + (until - begin) * per_step[size], until
    return cost


def rest_within(plan: Plan, step: int, seconds: float, per_step: dict[int, float]) -> Plan:
    """`plan`, relaid so that the steps after the first `step` ones take at most `seconds`.

    The rest of the schedule is then compressed. A plan that fits is not changed.

    Raises:
        UsageError: the time is too short for one step.
    """
    fitting = longest(plan, step, seconds, per_step, plan.total_steps)
    if plan.total_steps > step == fitting:
        raise _too_short(per_step[plan.view_size(step)])
    return plan.relay(step, fitting)


def longest(plan: Plan, step: int, limit: float, per_step: dict[int, float], most: int) -> int:
    """The largest length up to `most` at which the steps after `step` cost at most `limit`; `step` if none does.

    `per_step`: seconds or operations at each view size, and `limit` in the same unit.
    """
    totals = range(step + 1, most + 1)

    def cost(total: int) -> float:
        return cost_after(plan.relay(step, total), step, per_step)

    return step + bisect_right(totals, limit, key=cost)


def _too_short(seconds: float) -> UsageError:
    return UsageError(
        "the time is too short for one step",
        saw=f"{seconds:.1f} s a step",
        fix="use a longer --max-minutes or a smaller batch",
    )
