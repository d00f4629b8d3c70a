"""Pictures of a pretraining run, from the columns of its log. Each function returns a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .style import LIGHT, Theme, new_figure

FEW_POINTS = 40  # up to here every point is marked
SMALL: dict[str, Any] = {"fontsize": 8, "handlelength": 1.6, "columnspacing": 1.2}


def loss_curve(
    epoch: Sequence[float], loss: Sequence[float], chance: Sequence[float], *, images: int = 0, theme: Theme = LIGHT
) -> Figure:
    """NT-Xent loss (nats) per epoch beside its chance level ln(V·B − 1), all `[n]`.

    Args:
        epoch: position, in epochs.
        loss: at these positions.
        chance: what a constant encoder would score.
        images: images per epoch, for the axis; 0 if unknown.
        theme: colours.
    """
    with theme.applied():
        figure, axes = new_figure()
        _line(axes, epoch, loss, theme.trained, "loss")
        axes.plot(epoch, chance, color=theme.chance, linestyle=(0, (4, 3)), label="chance, ln(V·B − 1)")
        axes.set_title("Contrastive loss")
        axes.set_ylabel("NT-Xent loss (nats)")
        _epochs(axes, images)
        _legend(figure)
        return figure


def contrast_curve(
    epoch: Sequence[float],
    p_pos: Sequence[float],
    top1: Sequence[float],
    chance: Sequence[float],
    *,
    images: int = 0,
    theme: Theme = LIGHT,
) -> Figure:
    """How surely the positive is found among V·B − 1 candidates, all `[n]`: `p_pos` and `top1` in 0..1.

    `chance` is the chance level of the loss; exp(−chance) is that of both curves.
    """
    with theme.applied():
        figure, axes = new_figure()
        _line(axes, epoch, top1, theme.trained, "top-1: it is nearest")
        _line(axes, epoch, p_pos, theme.second, "p_pos: softmax mass on it")
        axes.plot(epoch, np.exp(-np.asarray(chance)), color=theme.chance, linestyle=(0, (4, 3)), label="chance")
        axes.set_title("Finding the other view of an image")
        axes.set_ylabel("share of views")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_ylim(bottom=0.0)
        _epochs(axes, images)
        _legend(figure)
        return figure


def lr_curve(epoch: Sequence[float], lr: Sequence[float], *, images: int = 0, theme: Theme = LIGHT) -> Figure:
    """The learning rate along the run, both `[n]`."""
    with theme.applied():
        figure, axes = new_figure()
        axes.plot(epoch, lr, color=theme.trained, **_marks(epoch))
        axes.set_title("Learning rate")
        axes.set_ylabel("learning rate")
        axes.set_ylim(bottom=0.0)
        _epochs(axes, images)
        return figure


def knn_curve(
    epoch: Sequence[float],
    accuracy: Sequence[float],
    *,
    monitored: int = 0,
    classes: int = 0,
    images: int = 0,
    theme: Theme = LIGHT,
) -> Figure:
    """Online kNN accuracy (0..1) on a held-out part of the train split, both `[n]`.

    Args:
        epoch: position, in epochs.
        accuracy: at these positions.
        monitored: images of that part, for the axis; 0 if unknown.
        classes: number of classes, for the chance level; 0 if unknown.
        images: images per epoch, for the axis; 0 if unknown.
        theme: colours.
    """
    with theme.applied():
        figure, axes = new_figure()
        axes.plot(epoch, accuracy, color=theme.trained, marker="o", markersize=4.5, label="kNN, k = 10, cosine")
        if classes:
            axes.axhline(1 / classes, color=theme.chance, linestyle=(0, (4, 3)), linewidth=1.4, label="chance")
        axes.set_title("Online kNN, on a part of train")
        axes.set_ylabel("accuracy" + (f" ({monitored:,} images)" if monitored else ""))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_ylim(bottom=0.0)
        _epochs(axes, images)
        _legend(figure)
        return figure


def feature_curve(
    epoch: Sequence[float],
    std: Sequence[float],
    rank: Sequence[float] | None,
    *,
    dim: int = 512,
    images: int = 0,
    theme: Theme = LIGHT,
) -> Figure:
    """The collapse alarm, all `[n]`: standard deviation of the unit-length features, and RankMe where it was logged.

    `dim` is D; 1/√D is the deviation of features spread evenly over the sphere.
    """
    with theme.applied():
        figure, axes = new_figure()
        (spread,) = axes.plot(epoch, std, color=theme.trained, label="std (left)", **_marks(epoch))
        even = axes.axhline(
            dim**-0.5, color=theme.chance, linestyle=(0, (4, 3)), linewidth=1.4, label="1/√D: even spread (left)"
        )
        lines = [spread, even]
        axes.set_title("Spread of the features")
        axes.set_ylabel("std of unit features")
        axes.set_ylim(0.0, 1.15 * max(dim**-0.5, *std))
        if rank is not None:
            right = axes.twinx()
            lines += right.plot(epoch, rank, color=theme.second, label="RankMe (right)", **_marks(epoch))
            right.set_ylabel(f"effective rank, of {dim}")
            right.set_ylim(bottom=0.0)
            right.grid(False)
        _epochs(axes, images)
        figure.legend(handles=lines, loc="outside lower center", ncols=3, **SMALL)
        return figure


def _line(axes: Axes, epoch: Sequence[float], values: Sequence[float], colour: str, name: str) -> None:
    """A curve; a long one is drawn faintly, with its running mean over a twentieth of the points on top."""
    if len(values) <= FEW_POINTS:
        axes.plot(epoch, values, color=colour, label=name, **_marks(epoch))
        return
    width = len(values) // 20
    total = np.cumsum(np.concatenate([[0.0], values]))
    start = np.maximum(np.arange(1, len(values) + 1) - width, 0)
    mean = (total[1:] - total[start]) / (np.arange(1, len(values) + 1) - start)
    axes.plot(epoch, values, color=colour, alpha=0.28, linewidth=1.0)
    axes.plot(epoch, mean, color=colour, label=f"{name} (mean of {width})")


def _legend(figure: Figure) -> None:
    """Below the axes, where no curve can run into it."""
    figure.legend(loc="outside lower center", ncols=3, **SMALL)


def _marks(points: Sequence[float]) -> dict[str, Any]:
    """Marks on every point of a short curve, so that one or two points are seen at all."""
    return {"marker": "o", "markersize": 3.5} if len(points) <= FEW_POINTS else {}


def _epochs(axes: Axes, images: int) -> None:
    axes.set_xlabel("epoch" + (f" (of {images:,} images)" if images else ""))
    axes.set_xlim(left=0.0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, min_n_ticks=3, steps=[1, 2, 2.5, 5, 10]))
