"""k nearest neighbours by cosine, in numpy, chunk by chunk: a majority vote and a weighted one from the same search."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAJORITY_K = 10
WEIGHTED_K, TEMPERATURE = 200, 0.07  # Wu et al. 2018 (arXiv 1805.01978), the usual weighted protocol
CHUNK_BYTES = 64 << 20  # of similarities, and of votes, held at once
BLOCK = 50  # similarities per block of the candidate search


@dataclass(frozen=True, eq=False)
class NearestNeighbours:
    """What the vote of the neighbours gives for each query.

    Attributes:
        majority: int64 `[Q]`, the most frequent class of the `k` nearest; ties go to the nearest among the tied.
        probabilities: float32 `[Q, C]`, the share of the `k` votes per class.
        weighted: int64 `[Q]`, vote of the `weighted_k` nearest, each weighing exp(cosine / temperature).
        k, weighted_k: neighbours really used (never more than there are train images).
    """

    majority: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    weighted: NDArray[np.int64]
    k: int
    weighted_k: int


def _unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1 (a zero row stays zero)."""
    norm = np.linalg.norm(features, axis=1, keepdims=True)
    return np.ascontiguousarray(features / np.maximum(norm, 1e-12), dtype=np.float32)


def nearest(
    bank: NDArray[np.float32], queries: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k rows of `bank` with the highest cosine to each query, best first.

    Args:
        bank: float32 `[N, D]`.
        queries: float32 `[Q, D]`.
        k: 1..N.

    Returns:
        Cosines float32 `[Q, k]` and rows of the bank int64 `[Q, k]`.

    Raises:
        ValueError: k outside 1..N or different feature sizes.
    """
    if not 1 <= k <= len(bank) or bank.shape[1:] != queries.shape[1:]:
        raise ValueError(f"k must be 1..{len(bank)} and features of one size, saw k={k}, {bank.shape}, {queries.shape}")
    bank, queries = _unit(bank), _unit(queries)
    cosines = np.empty((len(queries), k), dtype=np.float32)
    rows = np.empty((len(queries), k), dtype=np.int64)
    chunk = max(1, CHUNK_BYTES // (4 * len(bank)))
    for start in range(0, len(queries), chunk):
        similarity = queries[start : start + chunk] @ bank.T
        least = _lower_bound(similarity, k)
        for i, row in enumerate(similarity):
            at = np.flatnonzero(row >= least[i])
            best = at[np.argsort(-row[at], kind="stable")[:k]]  # equal cosines keep the order of the bank
            cosines[start + i], rows[start + i] = row[best], best
    return cosines, rows


def _lower_bound(similarity: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """A value per row that at least its k largest entries reach, and hardly more: the k-th largest of block maxima.

    k blocks have a maximum of at least that value, so at least k entries do. Over 50,000 columns this is several times
    faster than a full `argpartition`.
    """
    columns = similarity.shape[1]
    blocks = columns // BLOCK
    if blocks < k:
        return np.partition(similarity, columns - k, axis=1)[:, columns - k]
    maxima = similarity[:, : blocks * BLOCK].reshape(len(similarity), blocks, BLOCK).max(2)
    return np.partition(maxima, blocks - k, axis=1)[:, blocks - k]


def classify_knn(
    bank: NDArray[np.float32],
    labels: NDArray[np.int64],
    queries: NDArray[np.float32],
    classes: int,
    *,
    k: int = MAJORITY_K,
    weighted_k: int = WEIGHTED_K,
    temperature: float = TEMPERATURE,
) -> NearestNeighbours:
    """Labels of `queries` by the vote of their neighbours in `bank`.

    Args:
        bank: float32 `[N, D]`, train features; any length, the cosine is taken.
        labels: int64 `[N]` in 0..classes-1.
        queries: float32 `[Q, D]`.
        classes: number of classes C.
        k: of the majority vote.
        weighted_k, temperature: of the weighted vote.

    Raises:
        ValueError: no train or query rows, or different feature sizes.
    """
    k, weighted_k = min(k, len(bank)), min(weighted_k, len(bank))
    cosines, rows = nearest(bank, queries, max(k, weighted_k))
    votes = labels[rows]
    # Relative to the best cosine: the same vote, and exp cannot overflow.
    weights = np.exp((cosines[:, :weighted_k] - cosines[:, :1]) / temperature)
    majority, weighted = np.empty((2, len(queries)), dtype=np.int64)
    probabilities = np.empty((len(queries), classes), dtype=np.float32)
    chunk = max(1, CHUNK_BYTES // (8 * classes))
    for start in range(0, len(queries), chunk):
        at = slice(start, start + chunk)
        few = votes[at, :k]
        counts = _tally(few, np.ones(few.shape), classes)
        first = np.take_along_axis(counts, few, axis=1).argmax(1)  # of the classes with the most votes, the nearest
        majority[at] = np.take_along_axis(few, first[:, None], axis=1)[:, 0]
        probabilities[at] = counts / k
        weighted[at] = _tally(votes[at, :weighted_k], weights[at], classes).argmax(1)
    return NearestNeighbours(majority, probabilities, weighted, k, weighted_k)


def _tally(votes: NDArray[np.int64], weights: NDArray[np.floating], classes: int) -> NDArray[np.float64]:
    """Sum of weights per query and class, float64 `[Q, C]`."""
    cell = np.arange(len(votes))[:, None] * classes + votes
    total = np.bincount(cell.ravel(), weights=weights.ravel(), minlength=len(votes) * classes)
    return total.astype(np.float64, copy=False).reshape(-1, classes)
