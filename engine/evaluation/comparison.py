"""The trained encoder beside the random one: results of one method on one data set, paired."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .result import EvaluationResult

METHOD_NAMES = {
    "linear": "linear probe",
    "knn": "kNN",
    "head": "linear head",
    "finetune": "fine-tuning",
    "supervised": "supervised",
    "probe": "probe of the file",
}
FROZEN = ("linear", "knn", "head", "probe")  # methods that leave the encoder as it is


@dataclass(frozen=True, eq=False)
class Comparison:
    """One method on one data set, either of whose inits may not have been run."""

    method: str
    trained: EvaluationResult | None
    scratch: EvaluationResult | None

    @property
    def name(self) -> str:
        """The method in words, with the share of the labels and the folds where they are not all and none."""
        shown, words = self.shown, METHOD_NAMES.get(self.method, self.method)
        part = [f"{100 * shown.label_fraction:g} % of labels"] if shown.label_fraction < 1 else []
        folds = [f"{len(shown.folds)} folds"] if shown.folds else []
        return ", ".join([words, *part, *folds])

    @property
    def shown(self) -> EvaluationResult:
        """The trained encoder's result, or the random one's where there is no other."""
        result = self.trained or self.scratch
        assert result is not None
        return result

    @property
    def both(self) -> tuple[EvaluationResult | None, EvaluationResult | None]:
        """(trained, random)."""
        return self.trained, self.scratch

    @property
    def difference(self) -> float | None:
        """Trained minus random accuracy, as a fraction; None unless both were run."""
        return self.trained.accuracy - self.scratch.accuracy if self.trained and self.scratch else None

    @property
    def epochs_to_baseline(self) -> int | None:
        """The first epoch after which training from the trained encoder is as accurate as training from the random one
        is at its end (means over the folds); None where it never is, or where nothing was trained."""
        if self.trained is None or self.scratch is None or not self.trained.history or not self.scratch.history:
            return None
        goal = epoch_means(self.scratch, "test_accuracy")[-1]
        reached = [i for i, value in enumerate(epoch_means(self.trained, "test_accuracy"), start=1) if value >= goal]
        return reached[0] if reached else None

    @property
    def chance(self) -> float:
        """Accuracy of always naming the largest class, 0..1."""
        support = [row.support for row in self.shown.per_class]
        return max(support) / sum(support)


def compare(results: Iterable[EvaluationResult], own_data: str = "") -> list[Comparison]:
    """Pairs results of the two inits: `own_data` first, then all labels before a part of them, then the most test
    images; the linear probe before the other methods."""
    found: dict[tuple[str, int, int, str, float, int], dict[str, EvaluationResult]] = {}
    for result in results:
        size = (result.data, result.train_images, result.test_images)
        key = (*size, result.method, result.label_fraction, len(result.folds))
        found.setdefault(key, {})[result.init] = result
    methods = list(METHOD_NAMES)
    rank = {method: methods.index(method) for method in methods}

    def order(key: tuple[str, int, int, str, float, int]) -> tuple[object, ...]:
        data, train, test, method, fraction, folds = key
        return (data != own_data, folds > 0 or fraction < 1, -test, -train, data, rank.get(method, 99), method, folds)

    ranked = sorted(found, key=order)
    return [Comparison(key[3], found[key].get("pretrained"), found[key].get("scratch")) for key in ranked]


def epoch_means(result: EvaluationResult, column: str) -> list[float]:
    """A column of the history, one value per epoch: the mean over the folds where there are several."""
    values: dict[int, list[float]] = {}
    for row in result.history:
        values.setdefault(int(row["epoch"]), []).append(float(row[column]))
    return [sum(values[epoch]) / len(values[epoch]) for epoch in sorted(values)]


def percent(fraction: float, images: int) -> str:
    """`57.03 %`: one digit behind the point below 5,000 test images, where a second would be noise."""
    return f"{100 * fraction:.{1 if images < 5_000 else 2}f} %"


def points(fraction: float, images: int) -> str:
    """`+18.2 points`, with the sign always shown."""
    return f"{100 * fraction:+.{1 if images < 5_000 else 2}f} points".replace("-", "−")


def standard_error(result: EvaluationResult) -> float:
    """Of the accuracy, as a fraction, from the number of test images alone (binomial)."""
    return math.sqrt(result.accuracy * (1 - result.accuracy) / result.test_images)
