"""Which pictures the log of a pretraining run gives: its curves, its monitors, its augmentation sheet."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..evaluation.records import LARGEST
from . import augmentation, curves
from .content import ReportContent
from .picture import PRETRAINING, Picture
from .style import Theme

SHEET_VIEWS = 16


def curve_pictures(content: ReportContent) -> list[Picture]:
    rows = [r for r in content.metrics if r.get("event") == "train"]
    images, found = int(content.data.get("images") or 0), []
    epoch, loss, level = _columns(rows, "epoch", "loss", "chance")
    if epoch:
        caption = (
            f"What is minimised. It ends at {loss[-1]:.3f}, {level[-1] - loss[-1]:.3f} nats below the {level[-1]:.3f} "
            "of an encoder that tells no image from another."
        )
        found.append(
            Picture(
                "loss", PRETRAINING, caption, lambda t: curves.loss_curve(epoch, loss, level, images=images, theme=t)
            )
        )
    at, p_pos, top1, chance = _columns(rows, "epoch", "p_pos", "top1", "chance")
    if at:
        caption = (
            "For each view: is another view of its own image the nearest among all views of the batch? "
            f"At the end for {100 * top1[-1]:.1f} % of them; {100 * p_pos[-1]:.1f} % of the softmax falls on it."
        )

        def contrast(theme: Theme) -> Figure:
            return curves.contrast_curve(at, p_pos, top1, chance, images=images, theme=theme)

        found.append(Picture("contrast", PRETRAINING, caption, contrast))
    when, lr = _columns(rows, "epoch", "lr")
    if when:
        caption = f"Warm-up and decay as laid over this run; peak {max(lr):.3g}."
        found.append(
            Picture("learning-rate", PRETRAINING, caption, lambda t: curves.lr_curve(when, lr, images=images, theme=t))
        )
    return found


def monitor_pictures(content: ReportContent) -> list[Picture]:
    rows = [r for r in content.metrics if r.get("event") == "knn"]
    images, classes = int(content.data.get("images") or 0), len(content.data.get("class_names") or ())
    found = []
    epoch, accuracy, sample = _columns(rows, "epoch", "accuracy", "images")
    if epoch:
        caption = (
            f"Watched while training, on {int(sample[-1]):,} images of the train split: a fifth of them is classified "
            "by the others. The test split is not looked at, and the labels do not reach the training."
        )

        def knn(theme: Theme) -> Figure:
            monitored = int(sample[-1])
            return curves.knn_curve(epoch, accuracy, monitored=monitored, classes=classes, images=images, theme=theme)

        found.append(Picture("online-knn", PRETRAINING, caption, knn))
    at, std = _columns(rows, "epoch", "feature_std")
    ranked, rank = _columns(rows, "epoch", "rankme")
    if at:
        dim = 2048 if content.run.recipe.model.arch == "resnet50" else 512
        caption = (
            "The collapse alarm, without labels: at 0 all images have become one point. The effective rank (RankMe) "
            "says how many directions the features use."
        )

        def spread(theme: Theme) -> Figure:
            return curves.feature_curve(at, std, rank if ranked == at else None, dim=dim, images=images, theme=theme)

        found.append(Picture("feature-spread", PRETRAINING, caption, spread))
    return found


def view_pictures(content: ReportContent) -> list[Picture]:
    """The augmentation sheet from views.npz, where the run has one; a warning where that is damaged."""
    path = content.run.directory / "views.npz"
    if not path.exists():
        return []
    found = _read_views(path)
    if found is None:
        warnings.warn(f"the report has no augmentation sheet: {path} is damaged", stacklevel=2)
        return []
    originals, views = found
    if views.shape[1] >= SHEET_VIEWS:
        originals, views = originals[:1], views[:1, :SHEET_VIEWS]
    whose = (
        "an image as stored (framed), and {} of its views"
        if len(views) == 1
        else ("images as stored (framed), and {} views of each")
    )
    caption = (
        f"What the encoder was shown: {whose.format(views.shape[1])}. "
        "The loss asks it to recognise the views of one image among all others."
    )
    return [
        Picture(
            "augmentation", PRETRAINING, caption, lambda t: augmentation.augmentation_sheet(originals, views, theme=t)
        )
    ]


def _read_views(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
    """Originals `[N, S, S, 3]` and their views `[N, V, S, S, 3]`, or None where these are not what the file holds."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if sum(member.file_size for member in file.zip.infolist()) > LARGEST:
                return None
            originals, views = np.asarray(file["originals"]), np.asarray(file["views"])
    except Exception:  # numpy, zipfile and zlib raise a dozen kinds for damaged files; all mean the same here
        return None
    whole = originals.dtype == views.dtype == np.uint8 and originals.ndim == 4 and views.ndim == 5
    whole = whole and len(originals) == len(views) and 0 not in views.shape
    return (originals, views) if whole and originals.shape[-1] == views.shape[-1] == 3 else None


def _columns(rows: Iterable[Mapping[str, Any]], *names: str) -> list[list[float]]:
    """The named columns of the rows that have all of them as finite numbers."""
    whole = [r for r in rows if all(isinstance(r.get(n), int | float) and np.isfinite(r[n]) for n in names)]
    return [[float(r[n]) for r in whole] for n in names]
