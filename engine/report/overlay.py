"""Several runs in one picture, on common axes. Each function returns a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from .style import LIGHT, MARKERS, Theme, can_draw, new_figure

LONGEST_RUN = 36
MARKS = 9  # marks along a long curve: colour alone does not tell eight runs apart
DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1, 2)))
AXES = {
    "epoch": "epoch",
    "hours": "hours of training steps",
    "minutes": "minutes of training steps",
    "images": "images seen",
}


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
        theme: colours.
    """
    with theme.applied([trace.name for trace in traces]):
        figure, axes = new_figure(5.4, 3.8)
        for trace in traces:
            _curve(axes, trace, theme)
            if len(trace.chance):
                colour = _colour(trace.number, theme)
                axes.plot(trace.at, trace.chance, color=colour, linestyle=":", linewidth=1.2, label="_")
        axes.plot([], [], color=theme.muted, linestyle=":", linewidth=1.2, label="chance, ln(V·B − 1)")
        axes.set_title("Contrastive loss")
        axes.set_ylabel("NT-Xent loss (nats)")
        _finish(figure, axes, against)
        return figure


def knn_overlay(traces: Sequence[Trace], *, against: str = "epoch", classes: int = 0, theme: Theme = LIGHT) -> Figure:
    """Online kNN accuracy (0..1) of each run on a held-out part of its train split.

    Args:
        traces: one or more per picture; positions in the unit of `against`.
        against: `epoch`, `minutes` or `hours` of training, or `images`.
        classes: number of classes, for the chance level; 0 if unknown or if they differ.
        theme: colours.
    """
    with theme.applied([trace.name for trace in traces]):
        figure, axes = new_figure(5.4, 3.8)
        for trace in traces:
            _curve(axes, trace, theme)
        if classes:
            axes.axhline(1 / classes, color=theme.muted, linestyle=":", linewidth=1.2, label="chance")
        axes.set_title("Online kNN, on a part of train")
        axes.set_ylabel("accuracy")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_ylim(bottom=0.0)
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
        theme: colours.
    """
    with theme.applied(runs):
        bar = 0.8 / len(runs)
        figure, axes = new_figure(6.6, 1.6 + max(0.45, 0.22 * len(runs)) * len(methods))
        for r in range(len(runs)):
            at = np.arange(len(methods)) + bar * (r - (len(runs) - 1) / 2)
            bars = [(y, row[r]) for y, row in zip(at, trained, strict=True)]
            known = [(y, value) for y, value in bars if value is not None]
            axes.barh(
                [y for y, _ in known],
                [value for _, value in known],
                height=0.86 * bar,
                color=_colour(r, theme),
            )
            for y, value in known:
                axes.text(value, y, f" {100 * value:.1f}", va="center", fontsize=9, color=theme.muted)
            random = [(y, row[r]) for y, row in zip(at, scratch, strict=True)]
            ticks = [(y, value) for y, value in random if value is not None]
            for y, value in ticks:
                if y not in [place for place, _ in known]:
                    axes.text(value, y, f"  {100 * value:.1f} random", va="center", fontsize=9, color=theme.muted)
            axes.scatter(
                [value for _, value in ticks],
                [y for y, _ in ticks],
                marker="|",
                s=90 * bar + 18,
                linewidths=2.0,
                color=theme.text,
                zorder=3,
            )
        axes.set_yticks(range(len(methods)), methods, fontsize=10)
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlim(0.0, 1.0)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel("accuracy, %")
        axes.set_title("Accuracy by method")
        handles: list[Any] = [Patch(color=_colour(r, theme), label=run_label(run, r)) for r, run in enumerate(runs)]
        mark: dict[str, Any] = {
            "color": theme.text,
            "marker": "|",
            "linestyle": "",
            "markersize": 9,
            "markeredgewidth": 2,
        }
        _legend(figure, [*handles, Line2D([], [], label="random encoder", **mark)])
        return figure


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
    """The running mean over a fortieth of the points, with a few marks; the first points of a mean have fewer."""
    values = np.asarray(trace.values, dtype=np.float64)
    width = max(1, len(values) // 40)
    total = np.cumsum(np.concatenate([[0.0], values]))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - width, 0)
    few = len(values) <= 2 * MARKS
    axes.plot(
        trace.at,
        (total[end] - total[start]) / (end - start),
        color=_colour(trace.number, theme),
        linestyle=DASHES[(trace.number // len(theme.categories)) % len(DASHES)],
        marker=MARKERS[trace.number % len(MARKERS)],
        markersize=4.5,
        markevery=1 if few else (trace.number * len(values) // 40 % (len(values) // MARKS), len(values) // MARKS),
        label=run_label(trace.name, trace.number),
    )


def _finish(figure: Figure, axes: Axes, against: str) -> None:
    axes.set_xlabel(AXES[against])
    axes.set_xlim(left=0.0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, min_n_ticks=3, steps=[1, 2, 2.5, 5, 10]))
    if against == "images":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _legend(figure, axes.get_legend_handles_labels()[0])


def _legend(figure: Figure, handles: Sequence[Any]) -> None:
    """Below the axes, where no curve can run into it."""
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(2, len(handles)),
        fontsize=8.5,
        handlelength=2.2,
        columnspacing=1.4,
    )
