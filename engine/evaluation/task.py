"""What a method learns from and what it must predict: a share of the labels, the folds of a cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..data.store import ImageStore
from ..errors import DataError, UsageError

SEED = 0  # of every draw below: one encoder's tasks are those of the other


@dataclass(frozen=True, eq=False)
class Task:
    """One training set and the images to predict. No method is given the labels of the latter.

    Attributes:
        train, test: the splits.
        rows: int64 `[n]`, rows of `train` whose labels may be learnt from.
        held_out: int64 `[m]`, rows of `train` that are scored in place of the test split; empty without folds.
        fold: 1-based; 0 without folds.
    """

    train: ImageStore
    test: ImageStore
    rows: NDArray[np.int64]
    held_out: NDArray[np.int64]
    fold: int = 0

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return len(self.test.class_names)

    @property
    def labels(self) -> NDArray[np.int64]:
        """int64 `[n]`, the labels of `rows`."""
        assert self.train.labels is not None
        return self.train.labels[self.rows]

    @property
    def queries(self) -> list[tuple[ImageStore, NDArray[np.int64]]]:
        """What to predict, in order: the held-out fold where there is one, then the test split."""
        fold = [(self.train, self.held_out)] if self.fold else []
        return [*fold, (self.test, np.arange(len(self.test)))]

    @property
    def scored(self) -> int:
        """How many of the first queries count: the held-out fold, or the test split."""
        return len(self.held_out) if self.fold else len(self.test)

    def of_queries(self, train: NDArray[np.float32], test: NDArray[np.float32]) -> NDArray[np.float32]:
        """The rows `[Q, ...]` of the queries, from values of all images of both splits."""
        return np.concatenate([train[self.held_out], test]) if self.fold else test


def tasks(train: ImageStore, test: ImageStore, fraction: float = 1.0, folds: int = 0) -> list[Task]:
    """The task of an evaluation, or one per fold.

    Args:
        train, test: splits with labels.
        fraction: share of the train labels, in (0, 1]; stratified, and the smaller shares lie within the larger.
        folds: K ≥ 2 to cross-validate on the labelled images, each fold held out once, stratified; 0 for none.

    Raises:
        UsageError: a fraction or a number of folds that cannot be.
        DataError: a class left without images, or with fewer than folds.
    """
    if not 0 < fraction <= 1:
        raise UsageError("the share of the labels must be above 0 and at most 1", saw=fraction, fix="0.1 is a tenth")
    if folds and folds < 2:
        raise UsageError("a cross-validation needs at least two folds", saw=folds, fix="--folds 5")
    assert train.labels is not None
    rows = labelled_rows(train.labels, fraction, train.class_names)
    none = np.empty(0, dtype=np.int64)
    if not folds:
        return [Task(train, test, rows, none)]
    fold_of = _fold_numbers(train.labels[rows], folds, train.class_names)
    return [Task(train, test, rows[fold_of != k], rows[fold_of == k], k + 1) for k in range(folds)]


def labelled_rows(labels: NDArray[np.int64], fraction: float, class_names: Sequence[str]) -> NDArray[np.int64]:
    """Rows int64 `[n]`, ascending: the share `fraction` of each class, rounded to whole images.

    Raises:
        DataError: a class that has images would be left without one.
    """
    if fraction == 1:
        return np.arange(len(labels))
    rng = np.random.default_rng(SEED)
    taken = []
    for label in np.unique(labels):
        at = rng.permutation(np.flatnonzero(labels == label))
        count = int(np.floor(fraction * len(at) + 0.5))
        if not count:
            least = f"{0.5 / len(at):.2g}"
            raise DataError(
                "so small a share of the labels leaves a class without images",
                saw=f"{fraction:g} of the {len(at)} images of {class_names[label]!r}",
                fix=f"--label-fraction {least} or more",
            )
        taken.append(at[:count])
    return np.sort(np.concatenate(taken))


def _fold_numbers(labels: NDArray[np.int64], folds: int, class_names: Sequence[str]) -> NDArray[np.int64]:
    """int64 `[n]` in 0..folds-1, every class spread evenly."""
    from sklearn.model_selection import StratifiedKFold

    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < folds:
        smallest = int(counts.argmin())
        raise DataError(
            "a class has fewer images than there are folds",
            saw=f"{int(counts[smallest])} of {class_names[classes[smallest]]!r}, {folds} folds",
            fix="fewer --folds, a larger --label-fraction, or more images of that class",
        )
    numbers = np.empty(len(labels), dtype=np.int64)
    split = StratifiedKFold(folds, shuffle=True, random_state=SEED).split(np.zeros(len(labels)), labels)
    for k, (_, held_out) in enumerate(split):
        numbers[held_out] = k
    return numbers
