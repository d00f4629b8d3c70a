"""The trained encoder beside the random one: results of one method on one data set, paired."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .result import EvaluationResult

METHOD_NAMES = {"linear": "linear probe", "knn": "kNN"}


@dataclass(frozen=True, eq=False)
class Comparison:
    """One method on one data set, either of whose inits may not have been run."""

    method: str
    trained: EvaluationResult | None
    scratch: EvaluationResult | None

    @property
    def name(self) -> str:
        """The method in words."""
        return METHOD_NAMES.get(self.method, self.method)

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
    def chance(self) -> float:
        """Accuracy of always naming the largest class, 0..1."""
        support = [row.support for row in self.shown.per_class]
        return max(support) / sum(support)


def compare(results: Iterable[EvaluationResult], own_data: str = "") -> list[Comparison]:
    """Pairs results of the two inits: `own_data` first, then the most test images; linear before the other methods."""
    found: dict[tuple[str, int, int, str], dict[str, EvaluationResult]] = {}
    for result in results:
        key = (result.data, result.train_images, result.test_images, result.method)
        found.setdefault(key, {})[result.init] = result
    order = sorted(found, key=lambda k: (k[0] != own_data, -k[2], -k[1], k[0], k[3] != "linear", k[3]))
    return [Comparison(key[3], found[key].get("pretrained"), found[key].get("scratch")) for key in order]


def percent(fraction: float, images: int) -> str:
    """`57.03 %`: one digit behind the point below 5,000 test images, where a second would be noise."""
    return f"{100 * fraction:.{1 if images < 5_000 else 2}f} %"


def points(fraction: float, images: int) -> str:
    """`+18.2 points`, with the sign always shown."""
    return f"{100 * fraction:+.{1 if images < 5_000 else 2}f} points".replace("-", "−")


def standard_error(result: EvaluationResult) -> float:
    """Of the accuracy, as a fraction, from the number of test images alone (binomial)."""
    return math.sqrt(result.accuracy * (1 - result.accuracy) / result.test_images)
