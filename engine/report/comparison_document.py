"""What `compare --json` prints of several runs. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..evaluation.result import Comparison
from .comparability import notes
from .content import published_figures
from .subjects import Subject, differing_keys, method_rows, published_recipes
from .tables import accuracy, difference
from .throughput import images_per_second


def to_document(subjects: Sequence[Subject]) -> dict[str, Any]:
    """What `compare --json` prints: plain lists, numbers and text."""
    names = [subject.name for subject in subjects]
    methods = []
    for one in method_rows(subjects):
        about = {"method": one.name, "data": one.data, "train_images": one.train_images, "test_images": one.test_images}
        results = [_scores(cell) | {"run": name} for name, cell in zip(names, one.cells, strict=True) if cell]
        methods.append(about | {"runs": results})
    published = [
        {"recipe": recipe.name, "source": str(recipe.published.get("source", recipe.origin)), "results": rows}
        for recipe in published_recipes(subjects)
        if (rows := [dict(figure) for figure in published_figures(recipe)])
    ]
    return {
        "runs": [_about(subject) for subject in subjects],
        "methods": methods,
        "differences": {key: dict(zip(names, values, strict=True)) for key, values in differing_keys(subjects).items()},
        "published": published,
        "notes": notes(subjects),
    }


def _about(subject: Subject) -> dict[str, Any]:
    content, env = subject.content, subject.content.run.environment
    return {
        "name": subject.name,
        "directory": str(subject.directory),
        "finished": bool(env.get("finished")),
        "recipe": subject.recipe.name,
        "data": str(content.data.get("name", "")),
        "images": int(content.data.get("images") or 0),
        "epochs": content.trained_epochs,
        "planned_epochs": content.epochs,
        "views": subject.recipe.train.views,
        "batch_size": subject.recipe.train.batch_size,
        "seconds": env.get("seconds"),
        "images_per_second": images_per_second(content),
        "loss": content.last("loss"),
        "chance": content.last("chance"),
        "device": str(env.get("device_name") or env.get("device") or ""),
        "precision": str(env.get("precision") or ""),
    }


def _scores(one: Comparison) -> dict[str, Any]:
    """Both encoders' scores of one method."""
    plain: dict[str, Any] = {"difference": difference(one)}
    for init, result in (("pretrained", one.trained), ("scratch", one.scratch)):
        if result is not None:
            plain[init] = {
                "accuracy": accuracy(result),
                "fold_sd": result.fold_spread[1] if result.fold_spread else None,
                "f1_macro": result.f1_macro,
                "mean_iou": result.mean_iou,
                "ece": result.ece,
                "loss": result.loss,
                "protocol": result.protocol,
                "encoder": result.encoder,
            }
    return plain | {"epochs_to_baseline": one.epochs_to_baseline}
