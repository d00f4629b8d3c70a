"""Times contenders interleaved: median with p20 and p80. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds per call: median, 20th and 80th percentile over `repeats` calls."""

    median: float
    p20: float
    p80: float
    repeats: int


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    repeats: int,
    warmup: int = 1,
    synchronize: Callable[[], object] | None = None,
) -> dict[str, Timing]:
    """Times each contender `repeats` times in turn, A B C A B C …, so that a drift of the machine affects all of them.

    Args:
        contenders: name → the call to time.
        repeats: timed calls of each, at least 1.
        warmup: untimed calls of each before.
        synchronize: called before the clock is read, such as `torch.cuda.synchronize`.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    wait = synchronize or (lambda: None)
    for _ in range(warmup):
        for call in contenders.values():
            call()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, call in contenders.items():
            wait()
            start = time.perf_counter()
            call()
            wait()
            seconds[name].append(time.perf_counter() - start)
    return {name: summarize(values) for name, values in seconds.items()}


def summarize(seconds: list[float]) -> Timing:
    """Median, p20 and p80 (nearest rank) of the given durations."""
    ordered = sorted(seconds)

    def rank(q: float) -> float:
        return ordered[min(len(ordered) - 1, round(q * (len(ordered) - 1)))]

    return Timing(rank(0.5), rank(0.2), rank(0.8), len(ordered))
