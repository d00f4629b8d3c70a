"""The evaluation methods: each learns from labelled images, predicts others, and says how.

None of them is given the labels of what it predicts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..progress import Advance, progress_bar
from .encoders import Encoder
from .knn import TEMPERATURE, classify_knn
from .linear import HELD_OUT, LinearProbe, fit_linear
from .splits import SEED, Split

if TYPE_CHECKING:
    from ..recipe import Recipe


@dataclass(frozen=True)
class Training:
    """How the methods that train do it.

    Attributes:
        recipe: opens the recipe whose settings are taken; methods that do not train never ask.
        seconds: what the pretraining took; 0 if unknown.
        progress: show bars on a terminal.
        seed: of the weights of the linear layer, the order of the images and their crops, and the choice of C.
        device: that torch computes on, as `choose_platform` takes it.
    """

    recipe: Callable[[], Recipe]
    seconds: float
    progress: bool
    seed: int = SEED
    device: str = "auto"

    def bar(self, what: str, total: int) -> AbstractContextManager[Advance | None]:
        """A progress bar over `total` images."""
        return progress_bar(what, total, show=self.progress, lines=True)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a method says about the queries of a split.

    Attributes:
        protocol: how, as the beginning of the protocol sentence.
        classes: int64 `[Q]`, the predicted class.
        probabilities: float32 `[Q, C]`.
        votes: whether these are shares of votes rather than probabilities, so that their cross-entropy means nothing.
        notes: what the method has to say about itself.
        also: int64 `[Q]` by name: what variants of the method predict.
        probe: the fitted linear probe, where there is one.
        history, steps: rows per epoch and per step of a method that trains (see `EvaluationResult.history`).
    """

    protocol: str
    classes: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    votes: bool = False
    notes: tuple[str, ...] = ()
    also: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    probe: LinearProbe | None = None
    history: tuple[Mapping[str, float], ...] = ()
    steps: tuple[Mapping[str, float], ...] = ()


def predict_linear(encoder: Encoder, split: Split, training: Training) -> Prediction:
    """The linear probe on frozen features."""
    of_train, of_test = encoder.features(split.train), encoder.features(split.test)
    probe = fit_linear(of_train[split.rows], split.labels, seed=training.seed)
    how = f"C={probe.C:g}" + (f" chosen by log-loss on {100 * HELD_OUT:.0f} % of train" if probe.chosen else "")
    probabilities = probe.predict_proba(split.of_queries(of_train, of_test), split.classes)
    return Prediction(
        protocol=f"linear probe (scikit-learn LogisticRegression, lbfgs, {how}, standardised)",
        classes=probabilities.argmax(1),
        probabilities=probabilities,
        notes=probe.notes,
        probe=probe,
    )


def predict_knn(encoder: Encoder, split: Split, training: Training) -> Prediction:
    """The vote of the nearest train features."""
    of_train, of_test = encoder.features(split.train), encoder.features(split.test)
    vote = classify_knn(of_train[split.rows], split.labels, split.of_queries(of_train, of_test), split.classes)
    return Prediction(
        protocol=f"kNN (cosine, k={vote.k} majority; variant: k={vote.weighted_k} weighted, T={TEMPERATURE:g})",
        classes=vote.majority,
        probabilities=vote.probabilities,
        votes=True,
        also={f"weighted k={vote.weighted_k}": vote.weighted},
    )


def predict_probe(encoder: Encoder, split: Split, training: Training) -> Prediction:
    """What an exported file says by the probe inside it; nothing is learnt."""
    if split.fold or len(split.rows) < len(split.train):
        raise UsageError(
            "the probe of a file learns nothing, so neither a share of the labels nor folds mean anything to it",
            saw="--method probe with --label-fraction or --folds",
            fix="leave them away, or take --method linear",
        )
    probabilities, labels = encoder.predict(split.test, training.progress)
    return Prediction(protocol=encoder.probe, classes=labels, probabilities=probabilities)
