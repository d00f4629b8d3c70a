"""The methods on frozen features: each learns on train features, predicts the test split and says how.

None of them is given the labels of the test split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .knn import TEMPERATURE, classify_knn
from .linear import HELD_OUT, LinearProbe, fit_linear

Features = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a method says about the test images.

    Attributes:
        protocol: how, as the beginning of the protocol sentence.
        classes: int64 `[N]`, the predicted class.
        probabilities: float32 `[N, C]`.
        notes: what the method has to say about itself.
        also: int64 `[N]` by name: what variants of the method predict.
        probe: the fitted linear probe, where there is one.
    """

    protocol: str
    classes: Labels
    probabilities: Features
    notes: tuple[str, ...] = ()
    also: Mapping[str, Labels] = field(default_factory=dict)
    probe: LinearProbe | None = None


def predict_linear(train: Features, labels: Labels, test: Features, classes: int) -> Prediction:
    """The linear probe, fitted on train features float32 `[N, D]` with their labels int64 `[N]`."""
    probe = fit_linear(train, labels)
    how = f"C={probe.C:g}" + (f" chosen on {100 * HELD_OUT:.0f} % of train" if probe.chosen else "")
    probabilities = probe.predict_proba(test, classes)
    return Prediction(
        protocol=f"linear probe (scikit-learn LogisticRegression, lbfgs, {how}, standardised)",
        classes=probabilities.argmax(1),
        probabilities=probabilities,
        notes=probe.notes,
        probe=probe,
    )


def predict_knn(train: Features, labels: Labels, test: Features, classes: int) -> Prediction:
    """The vote of the nearest train features."""
    found = classify_knn(train, labels, test, classes)
    return Prediction(
        protocol=f"kNN (cosine, k={found.k} majority; variant: k={found.weighted_k} weighted, T={TEMPERATURE:g})",
        classes=found.majority,
        probabilities=found.probabilities,
        also={f"weighted k={found.weighted_k}": found.weighted},
    )


METHODS: dict[str, Callable[[Features, Labels, Features, int], Prediction]] = {
    "linear": predict_linear,
    "knn": predict_knn,
}
