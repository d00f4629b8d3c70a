"""A run directory as `pretrain` and `evaluate` leave it, written without training and without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simclr_engine.data.store import ImageStore
from simclr_engine.evaluation.metrics import confusion_matrix, score
from simclr_engine.evaluation.records import (
    Neighbours,
    Predictions,
    load_results,
    save_embeddings,
    save_neighbours,
    save_predictions,
    save_result,
    save_steps,
)
from simclr_engine.evaluation.result import EvaluationResult, FoldScores
from simclr_engine.recipe import Recipe
from simclr_engine.run import Run

CLASSES = ("ant", "bee", "cat")


def write_run(
    directory: Path,
    *,
    class_names: Sequence[str] = CLASSES,
    data: str = "photos",
    image_size: int = 16,
    recipe: str = "lars-800",
    finished: bool = True,
    split: str = "train",
    fingerprint: str = "ab" * 32,
) -> Run:
    """recipe.toml and environment.json of a run that has logged and evaluated nothing yet."""
    directory.mkdir(parents=True)
    (directory / "recipe.toml").write_text(Recipe.load(recipe).to_toml(), "utf-8")
    environment = {
        "version": "0.1.0",
        "finished": finished,
        "ended": 1.0,
        "command": None,
        "commit": "c0ffee" * 6,
        "device": "cpu",
        "device_name": "A Processor, 2 threads",
        "precision": "bf16",
        "channels_last": True,
        "compile": False,
        "backends": {"augment": "torch", "nt_xent": "torch"},
        "notes": ["a note of the platform"],
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "parameters": 12_483_904,
        "plan": {"total_steps": 40, "steps_per_epoch": 4, "epochs": 10.0, "peak_lr": 0.6},
        "seconds": 192.0,
        "peak_bytes": 3 << 30,
        "data": {
            "name": data,
            "split": split,
            "fingerprint": fingerprint,
            "images": 512,
            "limit": None,
            "image_size": image_size,
            "class_names": list(class_names),
        },
    }
    (directory / "environment.json").write_text(json.dumps(environment), "utf-8")
    return Run.open(directory)


def write_metrics(run: Run, epochs: int = 10) -> None:
    """A log in which the loss falls by 0.1 nats an epoch from its chance level, ln(255)."""
    chance, rows = math.log(255), []
    for epoch in range(1, epochs + 1):
        row = {"epoch": float(epoch), "loss": chance - 0.1 * epoch, "chance": chance, "lr": 0.6 * (1 - epoch / epochs)}
        row |= {"p_pos": 0.01 * epoch, "top1": 0.02 * epoch, "images_per_second": 321.0}
        rows.append({"event": "train", "step": 4 * epoch, **row})
        row = {
            "epoch": float(epoch),
            "accuracy": 0.3 + 0.01 * epoch,
            "images": 500.0,
            "feature_std": 0.03,
            "rankme": 40.0,
        }
        rows.append({"event": "knn", "step": 4 * epoch, **row})
    (run.directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def result(
    confusion: NDArray[np.int64],
    class_names: Sequence[str] = CLASSES,
    *,
    method: str = "linear",
    init: str = "pretrained",
    data: str = "photos",
    notes: tuple[str, ...] = (),
    **rest: Any,
) -> EvaluationResult:
    """A result over a confusion matrix int64 `[C, C]`; `rest` are further fields, such as `folds` and `history`."""
    fields: dict[str, Any] = {
        "method": method,
        "init": init,
        "protocol": f"{method} by hand",
        "confusion": confusion,
        "ece": 0.125,
        "seconds": 2.5,
        "also": {"weighted k=5": 0.5} if method == "knn" else {},
        "target": "runs/synthetic",
        "data": data,
        "train_images": 2 * int(confusion.sum()),
        "test_images": int(confusion.sum()),
        "image_size": 16,
        "features": {"dim": 8, "std": 0.1, "effective_rank": 5.0},
    }
    return EvaluationResult.from_scores(score(confusion, class_names), notes=notes, **(fields | rest))


def random_confusion(classes: int, images: int, right: float, seed: int = 0) -> NDArray[np.int64]:
    """`images` random images, of which about the fraction `right` is classified rightly."""
    rng = np.random.default_rng(seed)
    labels, guess = rng.integers(0, classes, (2, images))
    return confusion_matrix(labels, np.where(rng.random(images) < right, labels, guess), classes)


def history(epochs: int, final: float, folds: int = 0) -> tuple[dict[str, float], ...]:
    """Rows of a method that trains: accuracy rises evenly to `final` (fold k is k / 100 below), both losses fall."""
    return tuple(
        {
            "fold": float(fold),
            "epoch": float(epoch),
            "step": 4.0 * epoch,
            "train_loss": 2.0 / epoch,
            "test_loss": 2.5 / epoch,
            "test_accuracy": final * epoch / epochs - 0.01 * fold,
            "lr": 0.1 * (1 - epoch / (epochs + 1)),
        }
        for fold in (range(1, folds + 1) if folds else (0,))
        for epoch in range(1, epochs + 1)
    )


def fold_scores(folds: int, accuracy: float) -> tuple[FoldScores, ...]:
    """Fold k is k / 100 below `accuracy`, and a point better on the test split."""
    return tuple(
        FoldScores(fold, accuracy - 0.01 * fold, 0.5 + 0.01 * fold, accuracy - 0.01 * fold + 0.01, 80, 20)
        for fold in range(1, folds + 1)
    )


def predictions(confusion: NDArray[np.int64], side: int = 8, seed: int = 0) -> Predictions:
    """Images that give this confusion matrix int64 `[C, C]`, in random order, with random confidences."""
    rng = np.random.default_rng(seed)
    pairs = np.repeat(np.argwhere(confusion >= 0), confusion.ravel(), axis=0)[rng.permutation(int(confusion.sum()))]
    images = rng.integers(0, 256, (len(pairs), side, side, 3), dtype=np.uint8)
    return Predictions.sampled(pairs[:, 0], pairs[:, 1], rng.random(len(pairs), np.float32), images)


def neighbours(class_names: Sequence[str], queries: int = 4, nearest: int = 8, seed: int = 0) -> Neighbours:
    """Random images; the first neighbour is of the query's class, the cosines fall from 0.9."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(class_names), (queries, 1 + nearest))
    labels[:, 1] = labels[:, 0]
    images = rng.integers(0, 256, (queries, 1 + nearest, 8, 8, 3), dtype=np.uint8)
    cosines = np.broadcast_to(np.linspace(0.9, 0.2, nearest, dtype=np.float32), (queries, nearest))
    return Neighbours(images[:, 0], labels[:, 0], images[:, 1:], labels[:, 1:], cosines.copy(), np.array(class_names))


def write_training(run: Run, class_names: Sequence[str] = CLASSES, images: int = 300) -> None:
    """Methods that train, of both inits, with histories and steps: a linear head, fine-tuning on all and on 30 % of the
    labels, the latter with three folds; the pretrained encoder is better and reaches the other's end at half time."""
    data = run.environment["data"]["name"]
    for init, right in (("pretrained", 0.8), ("scratch", 0.4)):
        for method, fraction, folds in (("head", 1.0, 0), ("finetune", 1.0, 0), ("finetune", 0.3, 3)):
            confusion = random_confusion(len(class_names), images, right)
            one = result(
                confusion,
                class_names,
                method=method,
                init=init,
                data=data,
                loss=1.0 - right,
                label_fraction=fraction,
                folds=fold_scores(folds, right),
                history=history(6, right, folds),
            )
            name = save_result(run.directory / "evaluation", one)
            save_predictions(run.directory / "evaluation", name, predictions(confusion))
            steps = [
                {"fold": float(fold), "step": float(step), "epoch": step / 4, "train_loss": 2.0 / step, "lr": 0.1}
                for fold in range(1 if folds else 0, folds + 1)
                for step in range(1, 25)
            ]
            save_steps(run.directory / "evaluation", name, steps)


def write_predictions(run: Run) -> None:
    """Predictions of every result that has none yet, such as those of `write_evaluation`."""
    directory = run.directory / "evaluation"
    for name, one in load_results(directory).items():
        if not (directory / f"{name}.npz").exists():
            save_predictions(directory, name, predictions(one.confusion))


def write_neighbours(run: Run, class_names: Sequence[str] = CLASSES) -> None:
    """Nearest neighbours of both encoders."""
    for seed, name in enumerate(("neighbours", "neighbours_scratch")):
        save_neighbours(run.directory / "embeddings", name, neighbours(class_names, seed=seed))


def write_evaluation(run: Run, class_names: Sequence[str] = CLASSES, images: int = 300) -> None:
    """Linear probe and kNN of both inits, and test features."""
    for method in ("linear", "knn"):
        for init, right in (("pretrained", 0.7), ("scratch", 0.2)):
            confusion = random_confusion(len(class_names), images, right)
            one = result(confusion, class_names, method=method, init=init, data=run.environment["data"]["name"])
            save_result(run.directory / "evaluation", one)
    rng = np.random.default_rng(1)
    labels = rng.integers(0, len(class_names), images)
    pictures = rng.integers(0, 256, (images, 8, 8, 3), dtype=np.uint8)
    store = ImageStore.from_arrays(pictures, labels, class_names, name=run.environment["data"]["name"], split="test")
    for name in ("test", "test_scratch"):
        features = rng.normal(size=(images, 8)).astype(np.float32) + labels[:, None]
        save_embeddings(run.directory / "embeddings", name, store, features.astype(np.float32))
