"""One method on one encoder, over all tasks of an evaluation: predictions become an EvaluationResult."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.store import ImageStore
from .collapse import feature_statistics
from .comparison import FROZEN
from .guards import require_finite
from .methods import METHODS, Prediction, Training
from .metrics import confusion_matrix, expected_calibration_error, score
from .result import EvaluationResult, FoldScores
from .target import Encoder
from .task import Task


@dataclass(frozen=True, eq=False)
class Assignment:
    """What every method of an evaluation works on; `notes` go into every result."""

    train: ImageStore
    test: ImageStore
    tasks: Sequence[Task]
    training: Training
    label_fraction: float
    limit: int | None
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Outcome:
    """A result with what is stored beside it; arrays over the scored images, in the order of `rows` of `store`."""

    result: EvaluationResult
    prediction: Prediction
    steps: tuple[Mapping[str, float], ...]
    store: ImageStore
    rows: NDArray[np.int64]
    classes: NDArray[np.int64]
    probabilities: NDArray[np.float32]


def run_method(name: str, encoder: Encoder, asked: Assignment, target: Path, start: float) -> Outcome:
    """One method on one encoder, over all tasks."""
    train, test = asked.train, asked.test
    assert train.labels is not None and test.labels is not None  # check_splits has refused anything else
    notes, statistics = list(asked.notes), {}
    if name in FROZEN and name != "probe":
        for store in (train, test):
            require_finite(encoder.features(store))
        found = feature_statistics(encoder.features(train))
        statistics, collapse = asdict(found), found.note()
        notes += [collapse] if collapse else []
    predictions = [METHODS[name](encoder, task, asked.training) for task in asked.tasks]
    first, crossed = predictions[0], asked.tasks[0].fold > 0
    if crossed:
        store, rows = train, np.concatenate([task.held_out for task in asked.tasks])
    else:
        store, rows = test, np.arange(len(test))
    scored = [task.scored for task in asked.tasks]
    classes = np.concatenate([p.classes[:n] for p, n in zip(predictions, scored, strict=True)])
    probabilities = np.concatenate([p.probabilities[:n] for p, n in zip(predictions, scored, strict=True)])
    assert store.labels is not None
    truth = store.labels[rows]
    folds = tuple(map(_fold_scores, asked.tasks, predictions)) if crossed else ()
    also = {
        variant: float(
            (np.concatenate([p.also[variant][:n] for p, n in zip(predictions, scored, strict=True)]) == truth).mean()
        )
        for variant in first.also
        if all(variant in p.also for p in predictions)
    }
    if folds:
        also["test split, mean of the folds' models"] = float(np.mean([one.test_accuracy for one in folds]))
    confusion = confusion_matrix(truth, classes, len(test.class_names))
    words = encoder.words if name in FROZEN else f"from {encoder.start}"
    result = EvaluationResult.from_scores(
        score(confusion, test.class_names),
        notes=(*notes, *dict.fromkeys(note for p in predictions for note in p.notes)),
        method=name,
        init=encoder.init,
        protocol=f"{first.protocol}; {_counted(asked)}, {test.image_size} px, {words}",
        confusion=confusion,
        ece=expected_calibration_error(probabilities, truth),
        seconds=round(time.perf_counter() - start, 3),
        also=also,
        target=str(target),
        data=train.name,
        train_images=len(asked.tasks[0].rows),
        test_images=len(truth),
        image_size=test.image_size,
        limit=asked.limit,
        features=statistics,
        encoder=encoder.sha256,
        loss=None if first.votes else _cross_entropy(probabilities, truth),
        label_fraction=asked.label_fraction,
        folds=folds,
        history=tuple(row for p in predictions for row in p.history),
    )
    steps = tuple(row for p in predictions for row in p.steps)
    return Outcome(result, first, steps, store, rows, classes, probabilities)


def _counted(asked: Assignment) -> str:
    """`50,000 train / 10,000 test images of cifar10`, or what of them."""
    train, test, task = asked.train, asked.test, asked.tasks[0]
    where = f"images of {Path(train.name).name}"
    share = f" ({100 * asked.label_fraction:g} % of the labels, stratified)" if asked.label_fraction < 1 else ""
    if task.fold:
        of_all = len(task.rows) + len(task.held_out)
        return (
            f"{len(asked.tasks)} stratified folds of {of_all:,} {train.split} {where}{share}, each scored by the model "
            f"that learnt from the others ({len(task.rows):,})"
        )
    return f"{len(task.rows):,} {train.split}{share} / {len(test):,} {test.split} {where}"


def _fold_scores(task: Task, prediction: Prediction) -> FoldScores:
    assert task.train.labels is not None and task.test.labels is not None
    truth, n = task.train.labels[task.held_out], task.scored
    return FoldScores(
        fold=task.fold,
        accuracy=float((prediction.classes[:n] == truth).mean()),
        loss=0.0 if prediction.votes else _cross_entropy(prediction.probabilities[:n], truth),
        test_accuracy=float((prediction.classes[n:] == task.test.labels).mean()),
        train_images=len(task.rows),
        held_out_images=n,
    )


def _cross_entropy(probabilities: NDArray[np.float32], truth: NDArray[np.int64]) -> float:
    """Mean −ln p of the true class, nats; a probability of 0 counts as the smallest of float32."""
    picked = np.take_along_axis(probabilities, truth[:, None], axis=1)[:, 0].astype(np.float64)
    return float(-np.log(np.maximum(picked, np.finfo(np.float32).tiny)).mean())
