"""Pictures of a pretraining run: curves of its log, its monitors, its augmentation sheet. Imports no torch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from ..errors import counted
from ..files import MARKER, read_arrays
from ..sealing import has_seal
from .content import ReportContent, logged_rows
from .style import (
    DASHED,
    FEW_POINTS,
    LIGHT,
    PRETRAINING,
    Picture,
    Sheet,
    Theme,
    Tile,
    legend_below,
    new_figure,
    running_mean,
)

SHEET_VIEWS = 16


def loss_curve(
    epoch: Sequence[float], loss: Sequence[float], chance: Sequence[float], *, images: int = 0, theme: Theme = LIGHT
) -> Figure:
    """NT-Xent loss (nats) per epoch beside its chance level ln(V·B − 1), all `[n]`.

    Args:
        epoch: position, in epochs.
        loss: at these positions.
        chance: what a constant encoder would score.
        images: images per epoch, for the axis; 0 if unknown.
    """
    with theme.applied():
        figure, axes = new_figure("Contrastive loss")
        _line(axes, epoch, loss, theme.trained, "loss")
        axes.plot(epoch, chance, color=theme.chance, linestyle=DASHED, label="chance, ln(V·B − 1)")
        axes.set(ylabel="NT-Xent loss (nats)")
        _epochs(axes, images)
        legend_below(figure)
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
        figure, axes = new_figure("Finding the other view of an image")
        _line(axes, epoch, top1, theme.trained, "it is nearest")
        _line(axes, epoch, p_pos, theme.second, "softmax on it")
        axes.plot(epoch, np.exp(-np.asarray(chance)), color=theme.chance, linestyle=DASHED, label="chance")
        axes.set(ylabel="share of views", ylim=(0.0, None))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        _epochs(axes, images)
        legend_below(figure)
        return figure


def lr_curve(epoch: Sequence[float], lr: Sequence[float], *, images: int = 0, theme: Theme = LIGHT) -> Figure:
    """The learning rate along the run, both `[n]`."""
    with theme.applied():
        figure, axes = new_figure("Learning rate")
        axes.plot(epoch, lr, color=theme.trained, **_marks(epoch))
        axes.set(ylabel="learning rate", ylim=(0.0, None))
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
    """
    with theme.applied():
        figure, axes = new_figure("Online kNN, on a part of train")
        axes.plot(epoch, accuracy, color=theme.trained, marker="o", markersize=4.5, label="kNN, k = 10, cosine")
        if classes:
            axes.axhline(1 / classes, color=theme.chance, linestyle=DASHED, linewidth=1.4, label="chance")
        unit = "accuracy" + (f" ({counted(monitored, 'image')})" if monitored else "")
        axes.set(ylabel=unit, ylim=(0.0, None))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        _epochs(axes, images)
        legend_below(figure)
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
    even = dim**-0.5
    with theme.applied():
        figure, axes = new_figure("Spread of the features")
        lines = axes.plot(epoch, std, color=theme.trained, label="std (left)", **_marks(epoch))
        marked: dict[str, Any] = {"linewidth": 1.4, "label": "even spread, 1/√D (left)"}
        lines.append(axes.axhline(even, color=theme.chance, linestyle=DASHED, **marked))
        axes.set(ylabel="std of unit features", ylim=(0.0, 1.15 * max(even, *std)))
        if rank is not None:
            right = axes.twinx()
            lines += right.plot(epoch, rank, color=theme.second, label="RankMe (right)", **_marks(epoch))
            right.set(ylabel=f"effective rank, of {dim}", ylim=(0.0, 1.15 * max(1.0, *rank)))
            right.grid(False)
        _epochs(axes, images)
        legend_below(figure, handles=lines)
        return figure


def _line(axes: Axes, epoch: Sequence[float], values: Sequence[float], colour: str, name: str) -> None:
    """A curve; a long one is drawn faintly, with its running mean over a twentieth of the points on top."""
    if len(values) <= FEW_POINTS:
        axes.plot(epoch, values, color=colour, label=name, **_marks(epoch))
        return
    width = len(values) // 20
    axes.plot(epoch, values, color=colour, alpha=0.28, linewidth=1.0)
    axes.plot(epoch, running_mean(values, width), color=colour, label=f"{name} (mean of {width})")


def _marks(points: Sequence[float]) -> dict[str, Any]:
    """Marks on every point of a short curve, so that one or two points are seen at all."""
    return {"marker": "o", "markersize": 3.5} if len(points) <= FEW_POINTS else {}


def _epochs(axes: Axes, images: int) -> None:
    axes.set(xlabel="epoch" + (f" (of {counted(images, 'image')})" if images else ""), xlim=(0.0, None))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, min_n_ticks=3, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, min_n_ticks=3, steps=[1, 2, 2.5, 5, 10]))


def augmentation_sheet(
    originals: NDArray[np.uint8], views: NDArray[np.uint8], *, title: str = "", theme: Theme = LIGHT
) -> Figure:
    """Images and what the encoder gets to see of them.

    Args:
        originals: uint8 `[N, S, S, 3]`, or one image `[S, S, 3]`.
        views: uint8 `[N, V, S', S', 3]`, or `[V, S', S', 3]` for one image; the normalisation undone.
        title: above the sheet.

    Returns:
        A grid: for one image its views in rows of eight, for several one row each; the original stands first, framed.

    Raises:
        ValueError: the arrays do not belong together.
    """
    if originals.ndim == 3:
        originals, views = originals[None], views[None]
    if views.ndim != 5 or len(views) != len(originals) or views.shape[1] < 1:
        raise ValueError(f"need originals [N, S, S, 3] and views [N, V, S, S, 3], saw {originals.shape}, {views.shape}")
    count = views.shape[1]
    columns = 1 + min(8, count)
    rows = [(i, start) for i in range(len(originals)) for start in range(0, count, columns - 1)]
    with theme.applied():
        figure = Figure(figsize=(0.78 * columns, 0.78 * len(rows) + 0.35), layout="constrained")
        words = title or f"Originals (framed) and {count} views of each"
        figure.suptitle(words, x=0.01, ha="left", fontsize=10.5, weight="bold")
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for row, (i, start) in enumerate(rows):
            shown = [originals[i] if start == 0 else None, *views[i, start : start + columns - 1]]
            for column, axes in enumerate(grid[row]):
                image = shown[column] if column < len(shown) else None
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(image is not None and column == 0)
                if image is None:
                    axes.axis("off")
                    continue
                small = image.shape[0] * image.shape[1] <= 96 * 96
                axes.imshow(image, interpolation="nearest" if small else "antialiased")
                if column == 0:
                    axes.spines[:].set(color=theme.trained, linewidth=2.2)
        return figure


def pretraining_pictures(content: ReportContent) -> list[Picture]:
    """What the log and views.npz of a run give: curves, monitors, the augmentation sheet."""
    return [*_curve_pictures(content), *_monitor_pictures(content), *_view_pictures(content)]


def _picture(name: str, caption: str, draw: partial[Figure]) -> Picture:
    return Picture(name, PRETRAINING, caption, draw)


def _curve_pictures(content: ReportContent) -> list[Picture]:
    images, pictures = content.images, []
    epoch, loss, level = _columns(content, "train", "epoch", "loss", "chance")
    if epoch:
        caption = (
            f"It ends at {loss[-1]:.3f}, {level[-1] - loss[-1]:.3f} nats below the {level[-1]:.3f} of an encoder that "
            "tells no image from another."
        )
        pictures.append(_picture("loss", caption, partial(loss_curve, epoch, loss, level, images=images)))
    epoch, p_pos, top1, level = _columns(content, "train", "epoch", "p_pos", "top1", "chance")
    if epoch:
        caption = (
            "Is the view nearest to a view of its own image? At the end for "
            f"{100 * top1[-1]:.1f} %; {100 * p_pos[-1]:.1f} % of the softmax falls on it."
        )
        draw = partial(contrast_curve, epoch, p_pos, top1, level, images=images)
        pictures.append(_picture("contrast", caption, draw))
    epoch, lr = _columns(content, "train", "epoch", "lr")
    if epoch:
        caption = f"Warm-up and decay as laid over this run; peak {max(lr):.3g}."
        pictures.append(_picture("learning-rate", caption, partial(lr_curve, epoch, lr, images=images)))
    return pictures


def _monitor_pictures(content: ReportContent) -> list[Picture]:
    images, classes, pictures = content.images, len(content.data.get("class_names") or ()), []
    epoch, accuracy, sample = _columns(content, "knn", "epoch", "accuracy", "images")
    if epoch:
        monitored = int(sample[-1])
        caption = (
            f"On {counted(monitored, 'image')} of train, a fifth of them classified by the others: the test split is "
            "not looked at, and the labels do not reach the training."
        )
        draw = partial(knn_curve, epoch, accuracy, monitored=monitored, classes=classes, images=images)
        pictures.append(_picture("online-knn", caption, draw))
    epoch, std = _columns(content, "knn", "epoch", "feature_std")
    ranked, rank = _columns(content, "knn", "epoch", "rankme")
    if epoch:
        dim = content.run.environment.get("feature_dim")  # not of older runs
        dim = dim if isinstance(dim, int) else 2048 if content.run.recipe.model.arch == "resnet50" else 512
        caption = (
            "The collapse alarm: at a std of 0 all images have become one point. RankMe is the effective rank: how "
            "many directions the features use."
        )
        draw = partial(feature_curve, epoch, std, rank if ranked == epoch else None, dim=dim, images=images)
        pictures.append(_picture("feature-spread", caption, draw))
    return pictures


def _view_pictures(content: ReportContent) -> list[Picture]:
    """The augmentation sheet from views.npz, where the run has one; a warning where that is damaged."""
    path = content.run.directory / "views.npz"
    if not path.exists():
        return []
    arrays = _read_views(path)
    if arrays is None:
        warnings.warn(f"the report has no augmentation sheet: {path} is damaged", stacklevel=2)
        return []
    originals, views = arrays
    if views.shape[1] >= SHEET_VIEWS:
        originals, views = originals[:1], views[:1, :SHEET_VIEWS]
    count = views.shape[1]
    whose = f"an image as stored (framed), and {count} of its views"
    if len(views) > 1:
        whose = f"images as stored (framed), and {count} views of each"
    caption = f"What the encoder was shown: {whose}. The loss asks it to recognise them among all others."
    tiles = [
        Tile(image, "an image as it is stored" if i == 0 else "a view of the image before it", "" if i else "origin")
        for original, seen in zip(originals, views, strict=True)
        for i, image in enumerate([original, *seen])
    ]
    columns = 2 + -(-count // 2) if count <= 8 else math.ceil(math.sqrt(count + 4))  # the original is 2 × 2
    sheet = Sheet("Views", tiles, columns, columns, wide=False)
    draw = partial(augmentation_sheet, originals, views)
    return [Picture("augmentation", PRETRAINING, caption, draw, sheet=sheet)]


def _read_views(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
    """Originals `[N, S, S, 3]` and their views `[N, V, S, S, 3]`, or None where these are not what the file holds."""
    needed = has_seal(path.parent / MARKER)
    arrays = read_arrays(path, "only `simclr-engine pretrain` draws them", "originals", "views", needed=needed)
    if arrays is None:
        return None
    originals, views = arrays
    whole = originals.dtype == views.dtype == np.uint8 and originals.ndim == 4 and views.ndim == 5
    whole = whole and len(originals) == len(views) and 0 not in views.shape
    return (originals, views) if whole and originals.shape[-1] == views.shape[-1] == 3 else None


def _columns(content: ReportContent, event: str, *names: str) -> list[list[float]]:
    """The named columns of the rows that have all of them as finite numbers."""
    rows: Sequence[Mapping[str, Any]] = logged_rows(content, event, *names)
    return [[float(row[name]) for row in rows] for name in names]
