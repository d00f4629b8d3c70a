"""The pictures of compare.html, several runs on common axes: accuracies as bars, loss and online kNN as curves.

Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from .comparison import ComparedRun, method_rows
from .content import in_time, logged_rows, seconds_of_training
from .style import LIGHT, MARKERS, SMALL, Picture, Theme, can_draw, legend_below, new_figure, running_mean, wrapped
from .tables import accuracy

MOST_BARS = 12  # methods in the picture of bars; the table has all
LONGEST_RUN = 36
GAP = 0.8  # between the bars of two methods, in bars
MARKS = 9  # marks along a long curve: colour alone does not tell eight runs apart
DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1, 2)))
AXES = {
    "epoch": "epoch",
    "hours": "hours of training steps",
    "minutes": "minutes of training steps",
    "images": "images seen",
}
ALONG = {"epoch": "Along the epochs of each run.", "images": "Along the images that each run has seen."}
ALONG |= dict.fromkeys(
    ("minutes", "hours"), "Along the time spent in training steps (logged throughput; without start-up and monitoring)."
)
LOSS_NOTE = (
    "Loss: what each run minimised; dotted, that of an encoder that tells no image from another, which depends on "
    "batch size and views."
)
KNN_NOTE = (
    "Online kNN (k = 10, cosine): watched while training, on a part of each run's train split. The test split is not "
    "looked at."
)


@dataclass(frozen=True)
class Trace:
    """A column of one run's log, all `[n]`; `number` is the run's place among those compared, 0-based.

    `chance` is the level that a constant encoder would score at these positions; empty where there is none.
    """

    name: str
    number: int
    at: Sequence[float]
    values: Sequence[float]
    chance: Sequence[float] = ()


def loss_overlay(traces: Sequence[Trace], *, against: str = "epoch", theme: Theme = LIGHT) -> Figure:
    """NT-Xent loss (nats) of each run (a running mean of long ones), its chance level ln(V·B − 1) dotted beside it.

    Args:
        traces: one or more per picture; positions in the unit of `against`.
        against: `epoch`, `minutes` or `hours` of training, or `images`.
    """
    with theme.applied([trace.name for trace in traces]):
        figure, axes = new_figure("Contrastive loss", 2.5)
        dotted: dict[str, Any] = {"linestyle": ":", "linewidth": 1.2}
        for trace in traces:
            _curve(axes, trace, theme)
            if len(trace.chance):
                axes.plot(trace.at, trace.chance, color=_colour(trace.number, theme), label="_", **dotted)
        axes.plot([], [], color=theme.muted, label="chance, ln(V·B − 1)", **dotted)
        axes.set(ylabel="NT-Xent loss (nats)")
        _finish(figure, axes, against)
        return figure


def knn_overlay(traces: Sequence[Trace], *, against: str = "epoch", classes: int = 0, theme: Theme = LIGHT) -> Figure:
    """Online kNN accuracy (0..1) of each run on a held-out part of its train split.

    Args:
        traces: one or more per picture; positions in the unit of `against`.
        against: `epoch`, `minutes` or `hours` of training, or `images`.
        classes: number of classes, for the chance level; 0 if unknown or if they differ.
    """
    with theme.applied([trace.name for trace in traces]):
        figure, axes = new_figure("Online kNN, on a part of train", 2.5)
        for trace in traces:
            _curve(axes, trace, theme)
        if classes:
            axes.axhline(1 / classes, color=theme.muted, linestyle=":", linewidth=1.2, label="chance")
        axes.set(ylabel="accuracy", ylim=(0.0, None))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        _finish(figure, axes, against)
        return figure


def accuracy_overlay(
    methods: Sequence[str],
    runs: Sequence[str],
    trained: Sequence[Sequence[float | None]],
    scratch: Sequence[Sequence[float | None]],
    *,
    theme: Theme = LIGHT,
) -> Figure:
    """Accuracies (0..1) of every method, a bar per run, the random encoder's as a mark on it.

    Args:
        methods: M names.
        runs: R names, in the order of the curves.
        trained, scratch: `[M][R]`, None where one was not run.
    """
    with theme.applied(runs):
        present = [
            [r for r in range(len(runs)) if (trained[m][r], scratch[m][r]) != (None, None)] for m in range(len(methods))
        ]
        bar = 1 / (max(map(len, present)) + GAP)  # the fullest method takes one unit, the others less
        ends = np.cumsum([bar * (len(shown) + GAP) for shown in present]) - 0.5
        figure, axes = new_figure("Accuracy by method", 1.2 + 0.17 * (ends[-1] + 0.5) / bar)
        middles = [end - bar * (len(shown) + GAP) / 2 for end, shown in zip(ends, present, strict=True)]
        for r in range(len(runs)):
            at = {
                m: middles[m] + bar * (present[m].index(r) - (len(present[m]) - 1) / 2)
                for m in range(len(methods))
                if r in present[m]
            }
            bars = {y: trained[m][r] for m, y in at.items()}
            marks = {y: scratch[m][r] for m, y in at.items()}
            _accuracies(axes, bars, marks, bar, _colour(r, theme), theme)
        axes.set_yticks(middles, [wrapped(method) for method in methods])
        axes.grid(axis="y", visible=False)
        axes.set(ylim=(ends[-1], -0.5), xlim=(0.0, 1.0), xlabel="test accuracy")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        handles: list[Any] = [Patch(color=_colour(r, theme), label=run_label(run, r)) for r, run in enumerate(runs)]
        mark: dict[str, Any] = {"marker": "|", "linestyle": "", "markersize": 9, "markeredgewidth": 2}
        _legend(figure, [*handles, Line2D([], [], label="random encoder", color=theme.text, **mark)])
        return figure


def _accuracies(
    axes: Axes,
    trained: Mapping[float, float | None],
    scratch: Mapping[float, float | None],
    bar: float,
    colour: str,
    theme: Theme,
) -> None:
    """One run's bars of height `bar` at the places where it has a value, and the marks of its random encoder."""
    words: dict[str, Any] = {"va": "center", "fontsize": SMALL, "color": theme.muted}
    bars = {y: value for y, value in trained.items() if value is not None}
    marks = {y: value for y, value in scratch.items() if value is not None}
    axes.barh(list(bars), list(bars.values()), height=0.86 * bar, color=colour)
    for y, value in bars.items():
        axes.text(value, y, f" {100 * value:.1f}", **words)
    for y, value in marks.items():
        if y not in bars:
            axes.text(value, y, f"  {100 * value:.1f} random", **words)
    mark: dict[str, Any] = {"marker": "|", "s": 90 * bar + 18, "linewidths": 2.0, "zorder": 3}
    axes.scatter(list(marks.values()), list(marks), color=theme.text, **mark)


def run_label(name: str, number: int) -> str:
    """A run's name in a legend: shortened in its middle, or `run 3` where no font has its letters."""
    if not can_draw(name):
        return f"run {number + 1}"
    half = (LONGEST_RUN - 1) // 2
    short = name if len(name) <= LONGEST_RUN else f"{name[:half]}…{name[-half:]}"
    return short if not short.startswith("_") else f" {short}"  # matplotlib hides labels that start with `_`


def _colour(number: int, theme: Theme) -> str:
    return theme.categories[number % len(theme.categories)]


def _curve(axes: Axes, trace: Trace, theme: Theme) -> None:
    """The running mean over a fortieth of the points, with a few marks."""
    count = len(trace.values)
    few = count <= 2 * MARKS
    axes.plot(
        trace.at,
        running_mean(trace.values, max(1, count // 40)),
        color=_colour(trace.number, theme),
        linestyle=DASHES[(trace.number // len(theme.categories)) % len(DASHES)],
        marker=MARKERS[trace.number % len(MARKERS)],
        markersize=4.5,
        markevery=1 if few else (trace.number * count // 40 % (count // MARKS), count // MARKS),
        label=run_label(trace.name, trace.number),
    )


def _finish(figure: Figure, axes: Axes, against: str) -> None:
    axes.set(xlabel=AXES[against], xlim=(0.0, None))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, min_n_ticks=3, steps=[1, 2, 2.5, 5, 10]))
    if against == "images":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _legend(figure, axes.get_legend_handles_labels()[0])


def _legend(figure: Figure, handles: Sequence[Any]) -> None:
    legend_below(figure, 2, handles=handles, handlelength=2.2)


def accuracy_pictures(runs: Sequence[ComparedRun]) -> list[Picture]:
    """The accuracies of the first methods of the table; none where nothing was evaluated."""
    rows = method_rows(runs)
    if not rows:
        return []
    numbered = len({row.name for row in rows}) < len(rows)
    shown = rows[:MOST_BARS]
    names = [f"{row.name} ({i + 1})" if numbered else row.name for i, row in enumerate(shown)]
    trained = [[accuracy(cell.trained) if cell and cell.trained else None for cell in row.cells] for row in shown]
    scratch = [[accuracy(cell.scratch) if cell and cell.scratch else None for cell in row.cells] for row in shown]
    caption = "Test accuracy of each method, a bar per run; the upright mark is the random encoder's."
    caption += " In brackets: the row of the table." if numbered else ""
    caption += f" The first {len(shown)} of {len(rows)} rows." if len(shown) < len(rows) else ""
    bars = partial(accuracy_overlay, names, [run.name for run in runs], trained, scratch)
    return [Picture("methods", "Figures", caption, bars)]


def curve_pictures(runs: Sequence[ComparedRun]) -> list[Picture]:
    """Loss and online kNN, each against epochs and against time (images seen where no throughput was logged)."""
    counts = {len(run.content.data.get("class_names") or ()) for run in runs}
    knn = partial(knn_overlay, classes=counts.pop() if len(counts) == 1 else 0)
    pictures = []
    for event, column, note, figure in (
        ("train", "loss", LOSS_NOTE, partial(loss_overlay)),
        ("knn", "accuracy", KNN_NOTE, knn),
    ):
        for against in ("epoch", _time_axis(runs)):
            traces = [_trace(i, run, event, column, against) for i, run in enumerate(runs)]
            if logged := [trace for trace in traces if trace]:
                curves = partial(figure, logged, against=against)
                pictures.append(Picture(f"{column}-{against}", "Figures", ALONG[against], curves, note))
    return pictures


def _time_axis(runs: Sequence[ComparedRun]) -> str:
    """`minutes` or `hours` where every run with a log has a throughput, else `images`."""
    longest = 0.0
    for run in runs:
        times = seconds_of_training(run.content)
        if logged_rows(run.content, "train", "epoch") and not (times and times[-1]):
            return "images"
        longest = max([longest, *times])
    return "hours" if longest > 3 * 3600 else "minutes"


def _trace(number: int, run: ComparedRun, event: str, column: str, against: str) -> Trace | None:
    """A column of a run's log against epochs, minutes, hours or images; None where it was not logged."""
    content = run.content
    rows = logged_rows(content, event, "epoch", column)
    if not rows:
        return None
    at = [float(row["epoch"]) for row in rows]
    if against == "images":
        at = [epoch * content.images for epoch in at]
    elif against != "epoch":
        at = in_time(content, at, 3600.0 if against == "hours" else 60.0)
    chance = [float(row.get("chance", math.nan)) for row in rows] if column == "loss" else []
    return Trace(run.name, number, at, [float(row[column]) for row in rows], chance)
