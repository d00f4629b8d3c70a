"""The pictures of compare.html: accuracies as bars, loss and online kNN as curves on common axes. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from matplotlib.figure import Figure

from . import overlay
from .page import DrawnPicture
from .style import THEMES, Theme, to_png
from .subjects import Subject, method_rows
from .tables import accuracy
from .throughput import in_time, logged_rows, seconds_of_training

MOST_BARS = 12  # methods in the picture of bars; the table has all
UNITS = {"epoch": "epoch", "images": "number of images seen"} | dict.fromkeys(
    ("minutes", "hours"), "time spent in training steps (logged throughput; without start-up and monitoring)"
)
LOSS_WORDS = (
    "What each run minimised, against the {unit}. Dotted: the loss of an encoder that tells no image from another, "
    "which depends on batch size and views."
)
KNN_WORDS = (
    "Watched while training, against the {unit}: kNN (k = 10, cosine) on a part of each run's train split. The test "
    "split is not looked at."
)


def bars(subjects: Sequence[Subject]) -> list[DrawnPicture]:
    """The accuracies of the first methods of the table; none where nothing was evaluated."""
    rows = method_rows(subjects)
    if not rows:
        return []
    numbered = len({one.name for one in rows}) < len(rows)
    shown = rows[:MOST_BARS]
    names = [f"{one.name} ({i + 1})" if numbered else one.name for i, one in enumerate(shown)]
    trained = [[accuracy(cell.trained) if cell and cell.trained else None for cell in one.cells] for one in shown]
    scratch = [[accuracy(cell.scratch) if cell and cell.scratch else None for cell in one.cells] for one in shown]
    runs = [subject.name for subject in subjects]
    caption = "Test accuracy of each method, a bar per run; the upright mark is the random encoder's."
    caption += " In brackets: the row of the table." if numbered else ""
    caption += f" The first {len(shown)} of {len(rows)} rows." if len(shown) < len(rows) else ""
    draw = partial(overlay.accuracy_overlay, names, runs, trained, scratch)
    return [_drawn(caption, lambda theme: draw(theme=theme))]


def curves(subjects: Sequence[Subject]) -> list[DrawnPicture]:
    """Loss and online kNN, each against epochs and against time (images seen where no throughput was logged)."""
    axes = ("epoch", _time_axis(subjects))
    counts = {len(subject.content.data.get("class_names") or ()) for subject in subjects}
    classes = counts.pop() if len(counts) == 1 else 0
    drawn = []
    for event, column, words in (("train", "loss", LOSS_WORDS), ("knn", "accuracy", KNN_WORDS)):
        for against in axes:
            traces = [_trace(i, subject, event, column, against) for i, subject in enumerate(subjects)]
            if found := [trace for trace in traces if trace]:
                if event == "train":
                    draw = partial(overlay.loss_overlay, found, against=against)
                else:
                    draw = partial(overlay.knn_overlay, found, against=against, classes=classes)
                drawn.append(_drawn(words.format(unit=UNITS[against]), _in_theme(draw)))
    return drawn


def _in_theme(draw: Callable[..., Figure]) -> Callable[[Theme], Figure]:
    """`draw` of the moment, whatever the loop that made it does next."""
    return lambda theme: draw(theme=theme)


def _drawn(caption: str, draw: Callable[[Theme], Figure]) -> DrawnPicture:
    return DrawnPicture("Curves", caption, {theme.name: to_png(draw(theme)) for theme in THEMES})


def _time_axis(subjects: Sequence[Subject]) -> str:
    """`minutes` or `hours` where every run with a log has a throughput, else `images`."""
    longest = 0.0
    for subject in subjects:
        times = seconds_of_training(subject.content)
        if logged_rows(subject.content, "train", "epoch") and not (times and times[-1]):
            return "images"
        longest = max([longest, *times])
    return "hours" if longest > 3 * 3600 else "minutes"


def _trace(number: int, subject: Subject, event: str, column: str, against: str) -> overlay.Trace | None:
    """A column of a run's log against epochs, minutes, hours or images; None where it was not logged."""
    content = subject.content
    rows = logged_rows(content, event, "epoch", column)
    if not rows:
        return None
    at = [float(logged["epoch"]) for logged in rows]
    if against == "images":
        at = [epoch * float(content.data.get("images") or 0) for epoch in at]
    elif against != "epoch":
        at = in_time(content, at, 3600.0 if against == "hours" else 60.0)
    chance = [float(logged.get("chance", math.nan)) for logged in rows] if column == "loss" else []
    return overlay.Trace(subject.name, number, at, [float(logged[column]) for logged in rows], chance)
