"""Scores of a classifier from its confusion matrix, its calibration, and the spread of features. Imports no torch.

Every degenerate case has a defined value. Definitions are scikit-learn's with `labels` the classes that have test
images and `zero_division=0`: a score whose denominator is zero is 0, and a note says for which classes that happened.
They are computed here from counts, so that kNN and the probe of a file need not wait for `import sklearn`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

CALIBRATION_BINS = 15  # Guo et al. 2017 (arXiv 1706.04599) use 15 equally wide bins
SAMPLE = 10_000  # feature rows that the statistics look at
COLLAPSED_SPREAD = 0.1  # of what isotropic features would have


@dataclass(frozen=True)
class ClassScores:
    """One class: `accuracy` is its recall TP/(TP+FN), `iou` is TP/(TP+FP+FN); all in 0..1, `support` in images."""

    name: str
    support: int
    accuracy: float
    precision: float
    f1: float
    iou: float


@dataclass(frozen=True)
class Scores:
    """All scores of one confusion matrix; fractions in 0..1."""

    accuracy: float
    f1_micro: float
    f1_macro: float
    f1_weighted: float
    mean_iou: float
    per_class: tuple[ClassScores, ...]
    notes: tuple[str, ...]


def confusion_matrix(labels: NDArray[np.int64], predictions: NDArray[np.int64], classes: int) -> csr_array:
    """Counts, sparse int64 `[C, C]`: row = true class, column = predicted class. It has no more cells than images,
    whatever C is.

    Args:
        labels: int64 `[N]`, true classes in 0..classes-1.
        predictions: int64 `[N]`, predicted classes in 0..classes-1.
        classes: number of classes C.

    Raises:
        ValueError: lengths differ, nothing to count, or an index outside 0..C-1.
    """
    from scipy.sparse import csr_array

    if labels.shape != predictions.shape or labels.ndim != 1:
        raise ValueError(f"labels {labels.shape} and predictions {predictions.shape} must both be [N]")
    if len(labels) == 0:
        raise ValueError("there is nothing to score: 0 labels")
    for what, values in (("labels", labels), ("predictions", predictions)):
        if int(values.min()) < 0 or int(values.max()) >= classes:
            raise ValueError(f"{what} must lie in 0..{classes - 1}, saw {int(values.min())}..{int(values.max())}")
    return csr_array((np.ones(len(labels), dtype=np.int64), (labels, predictions)), shape=(classes, classes))


def _ratio(numerator: NDArray[np.int64], denominator: NDArray[np.int64]) -> NDArray[np.float64]:
    """numerator / denominator, 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator > 0)


def score(confusion: csr_array, class_names: Sequence[str]) -> Scores:
    """Every score of a confusion matrix `[C, C]` (row = truth).

    Macro averages run over the classes that have test images; the notes name the others.

    Raises:
        ValueError: the matrix is not `[C, C]` for the given names, or holds no image.
    """
    classes = len(class_names)
    if confusion.shape != (classes, classes):
        raise ValueError(f"confusion must be [{classes}, {classes}] for {classes} class names, saw {confusion.shape}")
    total = int(confusion.sum())
    if total == 0:
        raise ValueError("there is nothing to score: the confusion matrix is empty")
    hits = confusion.diagonal()
    support, predicted = confusion.sum(1), confusion.sum(0)
    recall, precision = _ratio(hits, support), _ratio(hits, predicted)
    # F1 and IoU from counts, not from recall and precision: one zero case instead of three.
    f1, iou = _ratio(2 * hits, support + predicted), _ratio(hits, support + predicted - hits)
    accuracy, present = float(hits.sum() / total), support > 0
    return Scores(
        accuracy=accuracy,
        f1_micro=accuracy,  # one label per image: each miss is one FP and one FN, so micro F1 is the accuracy
        f1_macro=float(f1[present].mean()),
        f1_weighted=float((f1 * support).sum() / total),
        mean_iou=float(iou[present].mean()),
        per_class=tuple(
            ClassScores(str(name), int(support[i]), float(recall[i]), float(precision[i]), float(f1[i]), float(iou[i]))
            for i, name in enumerate(class_names)
        ),
        notes=_zero_notes(support, predicted, class_names),
    )


def _zero_notes(support: NDArray[np.int64], predicted: NDArray[np.int64], names: Sequence[str]) -> tuple[str, ...]:
    """Which classes had nothing to divide by."""
    notes, present = [], int((support > 0).sum())
    macro = f"no test images, so macro figures are over the other {present} of {len(names)} classes"
    for what, empty in (
        (macro, support == 0),
        ("never predicted, so precision is set to 0", predicted == 0),
    ):
        at = np.flatnonzero(empty)
        if len(at):
            shown = ", ".join(str(names[i]) for i in at[:5]) + (f" and {len(at) - 5} more" if len(at) > 5 else "")
            notes.append(f"{what}: {shown}")
    return tuple(notes)


def expected_calibration_error(
    probabilities: NDArray[np.floating], labels: NDArray[np.int64], bins: int = CALIBRATION_BINS
) -> float:
    """Mean distance between confidence and accuracy over equally wide confidence bins, 0..1 (arXiv 1706.04599, eq. 3).

    Args:
        probabilities: `[N, C]`, rows sum to 1; the confidence of a row is its maximum.
        labels: int64 `[N]`, column of the true class.
        bins: number of bins `(i/bins, (i+1)/bins]`.

    Raises:
        ValueError: shapes that do not belong together or no rows.
    """
    if probabilities.ndim != 2 or len(probabilities) != len(labels) or len(labels) == 0 or bins < 1:
        raise ValueError(f"need probabilities [N, C] and labels [N], saw {probabilities.shape} and {labels.shape}")
    confidence = probabilities.max(1).astype(np.float64)
    hit = probabilities.argmax(1) == labels
    at = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.bincount(at, weights=hit - confidence, minlength=bins)  # n_bin · (accuracy − confidence)
    return float(np.abs(gap).sum() / len(labels))


def one_thread() -> AbstractContextManager[object]:
    """Limits BLAS and OpenMP to one thread inside.

    The products of a linear probe or of a 512 × 512 eigenproblem take milliseconds; two threads that meet after each of
    them gain little on an idle machine, and on a busy one they spin for each other: a fit of 2,000 × 512 features was
    seen to take 45 to 104 s with two threads and 4.5 s with one.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it has no hints

    limits: AbstractContextManager[object] = threadpool_limits(limits=1)
    return limits


@dataclass(frozen=True)
class FeatureStatistics:
    """Of up to 10,000 feature rows.

    Attributes:
        dim: D.
        std: mean over dimensions of the standard deviation of the L2-normalised features; 1/√D when isotropic
            around zero, 0 when collapsed (SimSiam, arXiv 2011.10566, section 4.1).
        effective_rank: RankMe, exp of the entropy of the normalised singular values (arXiv 2210.02885); 1..D.
    """

    dim: int
    std: float
    effective_rank: float

    @property
    def collapsed(self) -> bool:
        """Whether the features hardly differ from image to image."""
        return self.std * self.dim**0.5 < COLLAPSED_SPREAD

    def note(self) -> str | None:
        """A sentence for the notes when collapsed."""
        if not self.collapsed:
            return None
        return (
            f"collapse: the features are nearly constant (std of unit features {self.std:.2g}, "
            f"{1 / self.dim**0.5:.2g} when spread evenly; effective rank {self.effective_rank:.1f} of {self.dim})"
        )


def feature_statistics(features: NDArray[np.float32]) -> FeatureStatistics:
    """Statistics of features float32 `[N, D]`, N ≥ 1 (an even sample of 10,000 rows of more)."""
    if len(features) > SAMPLE:
        features = features[np.linspace(0, len(features) - 1, SAMPLE).astype(np.int64)]
    rows = features.astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    # Singular values through the D × D Gram matrix: 20 times faster than an SVD of N × D, and the small ones that
    # this blurs (below 1e-8 of the largest) carry no entropy.
    with one_thread():
        gram = features.astype(np.float64).T @ features
        singular = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0.0, None))
    share = singular / max(float(singular.sum()), 1e-300) + 1e-12
    return FeatureStatistics(
        dim=int(features.shape[1]),
        std=float(rows.std(0).mean()),
        effective_rank=float(np.exp(-(share * np.log(share)).sum())),
    )
