"""How long training took, and how fast it was, from the throughput that a run has logged. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .content import ReportContent


def seconds_of_training(content: ReportContent) -> list[float]:
    """Of each logged `train` row with a throughput, how long the training steps up to it took, in seconds: the sum of
    images / throughput, so without start-up and monitoring, and right for a resumed run too."""
    images, spent, before, times = float(content.data.get("images") or 0), 0.0, 0.0, []
    for logged in logged_rows(content, "train", "epoch", "images_per_second"):
        if logged["images_per_second"] > 0:
            spent += max(0.0, logged["epoch"] - before) * images / logged["images_per_second"]
            before = logged["epoch"]
        times.append(spent)
    return times


def images_per_second(content: ReportContent) -> float | None:
    """Throughput of the whole training, as logged; None where it was not."""
    times, rows = seconds_of_training(content), logged_rows(content, "train", "epoch", "images_per_second")
    if not times or not times[-1]:
        return None
    return rows[-1]["epoch"] * float(content.data.get("images") or 0) / times[-1]


def in_time(content: ReportContent, epochs: Sequence[float], unit: float) -> list[float]:
    """When these epochs were reached, in units of so many seconds, between the rows linearly."""
    known = [0.0, *(logged["epoch"] for logged in logged_rows(content, "train", "epoch", "images_per_second"))]
    return [float(t) / unit for t in np.interp(epochs, known, [0.0, *seconds_of_training(content)])]


def logged_rows(content: ReportContent, event: str, *columns: str) -> list[Mapping[str, Any]]:
    """The rows of one kind that have all these columns as finite numbers."""
    rows = [logged for logged in content.metrics if logged.get("event") == event]
    return [
        logged
        for logged in rows
        if all(isinstance(logged.get(c), int | float) and math.isfinite(logged[c]) for c in columns)
    ]
