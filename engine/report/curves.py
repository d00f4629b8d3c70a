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
        axes.plot(epoch, loss, color=theme.trained, label="loss", **_marks(epoch))
        axes.plot(epoch, chance, color=theme.chance, linestyle=(0, (4, 3)), label="chance, ln(V·B − 1)")
        axes.set_title("Contrastive loss")
        axes.set_ylabel("NT-Xent loss (nats)")
        _epochs(axes, images)
        axes.legend(loc="best")
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
        axes.plot(epoch, top1, color=theme.trained, label="top-1: the positive is nearest", **_marks(epoch))
        axes.plot(epoch, p_pos, color=theme.second, label="p_pos: softmax mass on it", **_marks(epoch))
        axes.plot(epoch, np.exp(-np.asarray(chance)), color=theme.chance, linestyle=(0, (4, 3)), label="chance")
        axes.set_title("Finding the positive view")
        axes.set_ylabel("share of views")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_ylim(bottom=0.0)
        _epochs(axes, images)
        axes.legend(loc="best")
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
        axes.legend(loc="best")
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
        (spread,) = axes.plot(epoch, std, color=theme.trained, label="standard deviation (left)", **_marks(epoch))
        even = axes.axhline(
            dim**-0.5, color=theme.chance, linestyle=(0, (4, 3)), linewidth=1.4, label="1/√D: spread evenly (left)"
        )
        lines = [spread, even]
        axes.set_title("Spread of the features")
        axes.set_ylabel("std of unit features")
        axes.set_ylim(0.0, 1.15 * max(dim**-0.5, *std))
        if rank is not None:
            right = axes.twinx()
            lines += right.plot(
                epoch, rank, color=theme.second, label="effective rank, RankMe (right)", **_marks(epoch)
            )
            right.set_ylabel(f"effective rank, of {dim}")
            right.set_ylim(bottom=0.0)
            right.grid(False)
        _epochs(axes, images)
        axes.legend(handles=lines, loc="lower right")
        return figure


def _marks(points: Sequence[float]) -> dict[str, Any]:
    """Marks on every point of a short curve, so that one or two points are seen at all."""
    return {"marker": "o", "markersize": 3.5} if len(points) <= FEW_POINTS else {}


def _epochs(axes: Axes, images: int) -> None:
    axes.set_xlabel("epoch" + (f" (of {images:,} images)" if images else ""))
    axes.set_xlim(left=0.0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, min_n_ticks=3, steps=[1, 2, 2.5, 5, 10]))
