"""Curves of a method that trains: probe head, fine-tuning, supervised; the trained encoder beside the random one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from .style import LIGHT, Theme

Rows = Sequence[Mapping[str, float]]
Curves = NDArray[np.float64]
FEW_POINTS = 40  # up to here every point is marked
SMOOTH = 20  # more steps than that many times 2 are drawn faintly, their running mean over a twentieth on top


def training_figure(
    trained: Rows = (),
    scratch: Rows = (),
    *,
    trained_steps: Rows = (),
    scratch_steps: Rows = (),
    reached: int | None = None,
    scored: str = "test",
    images: int = 0,
    title: str = "",
    theme: Theme = LIGHT,
) -> Figure:
    """Accuracy and loss on the scored images, train loss per epoch and per step, and the learning rate.

    With several folds, each is a thin line; the mean is a thick one, in a band of ± one standard deviation (n − 1).

    Args:
        trained, scratch: history of the run from the pretrained and from the random encoder: rows with `fold`, `epoch`,
            `test_accuracy` (0..1), `test_loss` and `train_loss` (nats), `lr`.
        trained_steps, scratch_steps: rows with `fold`, `step`, `train_loss`; without them there is no such panel.
        reached: the first epoch at which `trained` is as accurate as `scratch` at its end; it is marked.
        scored: what the accuracy is measured on, such as `test` or `held-out fold`.
        images: how many images that are, for the axis; 0 if unknown.
        title: above all.
        theme: colours.

    Raises:
        ValueError: there is no row.
    """
    if not trained and not scratch:
        raise ValueError("there is no history to draw")
    per_step = bool(trained_steps or scratch_steps)
    with theme.applied():
        figure = Figure(figsize=(6.4, 7.6 if per_step else 5.4), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, weight="bold")
        grid = figure.subplots(3 if per_step else 2, 2)
        both = (
            (scratch, "random encoder", theme.scratch, "s", (0, (5, 1.5))),
            (trained, "pretrained encoder", theme.trained, "o", "solid"),
        )
        panels = (
            ("test_accuracy", f"{_capital(scored)} accuracy", _of(scored, images)),
            ("test_loss", f"{_capital(scored)} loss", "cross-entropy (nats)"),
            ("train_loss", "Train loss, per epoch", "cross-entropy (nats)"),
            ("lr", "Learning rate", "learning rate"),
        )
        for axes, (column, heading, unit) in zip(grid.flat, panels, strict=False):
            for rows, name, colour, marker, dashes in both:
                if rows:
                    _per_epoch(axes, rows, column, name, colour, marker, dashes)
            _dress(axes, heading, unit, "epoch")
        accuracy = grid.flat[0]
        accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
        grid.flat[3].set_ylim(bottom=0.0)
        if reached is not None and trained and scratch:
            _mark_reached(accuracy, scratch, reached, theme)
        if per_step:
            for rows, name, colour, *_, dashes in (
                (scratch_steps, *both[0][1:]),
                (trained_steps, *both[1][1:]),
            ):
                if rows:
                    _per_step(grid.flat[4], rows, name, colour, dashes)
            _dress(grid.flat[4], "Train loss, per step", "cross-entropy (nats)", "step")
            grid.flat[5].axis("off")
        handles, names = accuracy.get_legend_handles_labels()
        place: dict[str, Any] = {"fontsize": 8, "handlelength": 2.4}
        if per_step:
            grid.flat[5].legend(handles, names, loc="center left", **place)
        else:
            figure.legend(handles, names, loc="outside lower center", ncols=2, **place)
        return figure


def by_fold(rows: Rows, position: str, column: str) -> tuple[NDArray[np.float64], Curves]:
    """The positions that all folds have, float64 `[n]`, and the column there, float64 `[folds, n]`."""
    folds: dict[int, dict[float, float]] = {}
    for row in rows:
        if column in row and position in row:
            folds.setdefault(int(row.get("fold", 0)), {})[float(row[position])] = float(row[column])
    common = sorted(set.intersection(*(set(one) for one in folds.values()))) if folds else []
    return np.array(common), np.array([[one[x] for x in common] for one in folds.values()]).reshape(len(folds), -1)


def _per_epoch(axes: Axes, rows: Rows, column: str, name: str, colour: str, marker: str, dashes: Any) -> None:
    at, values = by_fold(rows, "epoch", column)
    if not len(at):
        return
    marks: dict[str, Any] = {"marker": marker, "markersize": 3.5} if len(at) <= FEW_POINTS else {}
    if len(values) > 1:
        name = f"{name}: mean of {len(values)} folds ± sd"
        mean, sd = values.mean(0), values.std(0, ddof=1)
        axes.fill_between(at, mean - sd, mean + sd, color=colour, alpha=0.18, linewidth=0)
        axes.plot(at, values.T, color=colour, alpha=0.45, linewidth=0.7)
    axes.plot(at, values.mean(0), color=colour, label=name, linestyle=dashes, **marks)


def _per_step(axes: Axes, rows: Rows, name: str, colour: str, dashes: Any) -> None:
    at, values = by_fold(rows, "step", "train_loss")
    if not len(at):
        return
    mean, width = values.mean(0), len(at) // SMOOTH
    if width < 2:
        axes.plot(at, mean, color=colour, label=name, linestyle=dashes)
        return
    total = np.cumsum(np.concatenate([[0.0], mean]))
    start = np.maximum(np.arange(1, len(at) + 1) - width, 0)
    smooth = (total[1:] - total[start]) / (np.arange(1, len(at) + 1) - start)
    axes.plot(at, mean, color=colour, alpha=0.3, linewidth=0.8)
    axes.plot(at, smooth, color=colour, label=name, linestyle=dashes)


def _mark_reached(axes: Axes, scratch: Rows, reached: int, theme: Theme) -> None:
    goal = float(by_fold(scratch, "epoch", "test_accuracy")[1].mean(0)[-1])
    axes.axhline(
        goal, color=theme.chance, linestyle=(0, (1, 1.5)), linewidth=1.4, label="final accuracy, random encoder"
    )
    axes.axvline(
        reached, color=theme.chance, linewidth=1.2, label=f"reached by the pretrained one: epoch {reached}", zorder=1
    )


def _dress(axes: Axes, heading: str, unit: str, position: str) -> None:
    axes.set_title(heading, fontsize=9)
    axes.set_xlabel(position)
    axes.set_ylabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


def _of(scored: str, images: int) -> str:
    return "accuracy" + (f" ({images:,} images)" if images else "")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
