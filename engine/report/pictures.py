"""Which pictures a run gives, with the caption of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from matplotlib.figure import Figure

from ..evaluation.comparison import Comparison, percent
from ..evaluation.records import load_embeddings, result_id
from . import augmentation, confusion, curves, embedding
from .content import ReportContent, short_name
from .style import Theme, can_draw

PRETRAINING, EVALUATION = "Pretraining", "Evaluation"


@dataclass(frozen=True)
class Picture:
    """One picture: `name` is its file in figures/, `draw` makes it in a theme."""

    name: str
    section: str
    caption: str
    draw: Callable[[Theme], Figure]


def run_pictures(content: ReportContent) -> list[Picture]:
    """All pictures that the run's log and results allow, evaluation first."""
    found = [p for one in content.comparisons if one.trained is not None for p in classifier_pictures(one)]
    return [
        *found,
        *_maps(content.run.directory),
        *_training_curves(content),
        *_monitors(content),
        *_views(content),
    ]


def classifier_pictures(one: Comparison) -> list[Picture]:
    """Confusion matrix and scores per class of the trained encoder's result (or of the only one there is)."""
    result, table = one.shown, one.shown.per_class
    scratch = [row.accuracy for row in one.scratch.per_class] if one.trained and one.scratch else None
    best, worst = max(table, key=lambda row: row.accuracy), min(table, key=lambda row: row.accuracy)
    name, unnamed = result_id(result), _unnamed(result.class_names)
    method = one.name if result.init == "pretrained" else f"{one.name} of the random encoder"
    method = method[0].upper() + method[1:] if method.islower() else method

    def matrix(theme: Theme) -> Figure:
        return confusion.confusion_figure(result.confusion, result.class_names, title=one.name, theme=theme)

    def bars(theme: Theme) -> Figure:
        return confusion.per_class_figure(
            result.class_names,
            [row.accuracy for row in table],
            [row.f1 for row in table],
            [row.iou for row in table],
            [row.support for row in table],
            title=one.name,
            scratch_accuracy=scratch,
            theme=theme,
        )

    return [
        Picture(
            f"confusion-{name}",
            EVALUATION,
            f"{method}: {percent(result.accuracy, result.test_images)} of {result.test_images:,} test images are right "
            f"(the diagonal).{unnamed}",
            matrix,
        ),
        Picture(
            f"per-class-{name}",
            EVALUATION,
            f"{method}: the easiest class is {best.name} ({100 * best.accuracy:.1f} %), the hardest {worst.name} "
            f"({100 * worst.accuracy:.1f} %). Accuracy: how much of a class is found; IoU = TP / (TP + FP + FN)."
            f"{unnamed}",
            bars,
        ),
    ]


def _maps(directory: Path) -> list[Picture]:
    """The test features of the trained encoder and of the random one, as maps."""
    return [*_map(directory, "test", "pretrained"), *_map(directory, "test_scratch", "random")]


def _map(directory: Path, split: str, encoder: str) -> list[Picture]:
    found = load_embeddings(directory / "embeddings", split)
    if found is None or found.features.shape[1] < 2 or len(found.features) < 2:
        return []
    coordinates, share = embedding.principal_components(np.asarray(found.features))
    axis_names = (f"component 1 ({100 * share[0]:.1f} % of the variance)", f"component 2 ({100 * share[1]:.1f} %)")

    def draw(theme: Theme) -> Figure:
        return embedding.embedding_figure(
            coordinates,
            found.labels,
            found.class_names,
            axis_names=axis_names,
            title=f"PCA, {encoder} encoder",
            theme=theme,
        )

    caption = (
        f"The {len(coordinates):,} test images of {short_name(found.data)} as the {encoder} encoder sees them, "
        f"along the two directions of largest variance ({100 * sum(share):.0f} % of it)."
    )
    return [Picture(f"embedding-pca-{encoder}", EVALUATION, caption + _unnamed(found.class_names), draw)]


def _training_curves(content: ReportContent) -> list[Picture]:
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


def _monitors(content: ReportContent) -> list[Picture]:
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


def _views(content: ReportContent) -> list[Picture]:
    """The augmentation sheet from views.npz, where the run has one."""
    try:
        with np.load(content.run.directory / "views.npz", allow_pickle=False) as file:
            originals, views = file["originals"], file["views"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return []
    whole = originals.dtype == views.dtype == np.uint8 and originals.ndim == 4 and views.ndim == 5
    if not whole or len(originals) != len(views) or 0 in views.shape:
        return []
    caption = (
        f"What the encoder was shown: images as stored (framed), and {views.shape[1]} of their views. "
        "The loss asks it to recognise the views of one image among all others."
    )
    return [
        Picture(
            "augmentation", PRETRAINING, caption, lambda t: augmentation.augmentation_sheet(originals, views, theme=t)
        )
    ]


def _columns(rows: Iterable[Mapping[str, Any]], *names: str) -> list[list[float]]:
    """The named columns of the rows that have all of them as finite numbers."""
    whole = [r for r in rows if all(isinstance(r.get(n), int | float) and np.isfinite(r[n]) for n in names)]
    return [[float(r[n]) for r in whole] for n in names]


def _unnamed(class_names: Iterable[str]) -> str:
    """What a caption adds when the picture cannot spell every class name."""
    if all(can_draw(name) for name in class_names):
        return ""
    return " “class 3” is the class of that number: no font of the picture has the letters of its name."
