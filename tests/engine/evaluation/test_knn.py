"""kNN equals a plain float64 loop, whatever the chunks, and breaks ties as stated."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from fixtures.hostile import little_memory
from simclr_engine.evaluation import knn
from simclr_engine.evaluation.knn import classify_knn, nearest

Features = NDArray[np.float32]


def features(rows: int, dim: int = 16, seed: int = 0) -> Features:
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


def cosines(bank: Features, queries: Features) -> NDArray[np.float64]:
    a, b = (x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (bank, queries))
    return b @ a.T


# 7: every row is a neighbour; 130: blocks of the candidate search do not fill the bank; 12,000: they do.
@pytest.mark.parametrize(("rows", "k"), [(7, 7), (130, 1), (130, 10), (12_000, 10), (12_000, 200)])
def test_the_nearest_rows_are_those_of_a_full_sort(rows: int, k: int) -> None:
    bank, queries = features(rows), features(40, seed=1)
    value, at = nearest(bank, queries, k)
    truth = cosines(bank, queries)
    expected = np.sort(truth, axis=1)[:, ::-1][:, :k]
    np.testing.assert_allclose(value, expected, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(truth, at, axis=1), expected, atol=1e-5)
    assert all(len(set(row)) == k for row in at.tolist())


def test_length_of_the_features_does_not_matter() -> None:
    bank, queries = features(200), features(20, seed=1)
    scaled = bank * np.random.default_rng(2).uniform(0.1, 10, (200, 1)).astype(np.float32)
    np.testing.assert_array_equal(nearest(bank, queries, 5)[1], nearest(scaled, 3 * queries, 5)[1])


def test_chunks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, queries = features(500), features(61, seed=1)
    labels = np.random.default_rng(3).integers(0, 5, 500)
    whole = classify_knn(bank, labels, queries, 5)
    monkeypatch.setattr(knn, "CHUNK_BYTES", 7 * 4 * 500)
    parts = classify_knn(bank, labels, queries, 5)
    np.testing.assert_array_equal(parts.majority, whole.majority)
    np.testing.assert_array_equal(parts.weighted, whole.weighted)


def test_majority_and_weighted_vote_equal_a_plain_loop() -> None:
    bank, queries = features(300), features(50, seed=1)
    labels = np.random.default_rng(3).integers(0, 4, 300)
    found = classify_knn(bank, labels, queries, 4, k=9, weighted_k=60, temperature=0.07)
    for i, row in enumerate(cosines(bank, queries)):
        order = np.argsort(-row)
        votes = [int(labels[j]) for j in order[:9]]
        most = max(votes.count(c) for c in range(4))
        assert found.majority[i] == next(c for c in votes if votes.count(c) == most)
        np.testing.assert_allclose(found.probabilities[i], [votes.count(c) / 9 for c in range(4)], atol=1e-6)
        weight = [sum(np.exp(row[j] / 0.07) for j in order[:60] if labels[j] == c) for c in range(4)]
        assert found.weighted[i] == int(np.argmax(weight))


def test_the_vote_takes_little_memory_beside_its_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "CHUNK_BYTES", 1 << 20)
    bank, queries, labels = features(300), features(300, seed=1), np.arange(300) * 16
    with little_memory(300 * 5000 * 4 + (8 << 20)):
        found = classify_knn(bank, labels, queries, 5000)
    assert (found.probabilities.argmax(1) % 16 == 0).all()


def test_a_tie_goes_to_the_nearest_among_the_tied() -> None:
    angles = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    bank = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    # Nearest to the query at angle 0: classes 2, 1, 0, 0, 1. Classes 0 and 1 tie with two votes; 1 is nearer than 0.
    found = classify_knn(bank, np.array([2, 1, 0, 0, 1]), np.array([[1.0, 0.0]], dtype=np.float32), 3, k=5)
    assert found.majority.tolist() == [1]


def test_identical_rows_are_taken_in_the_order_of_the_bank() -> None:
    bank = np.repeat(features(1), 9, axis=0)
    assert nearest(bank, bank[:2], 4)[1].tolist() == [[0, 1, 2, 3]] * 2


def test_k_is_cut_to_the_size_of_the_bank_and_said() -> None:
    found = classify_knn(features(6), np.array([0, 0, 0, 1, 1, 1]), features(3, seed=1), 2)
    assert (found.k, found.weighted_k) == (6, 6)


def test_zero_features_are_no_nan() -> None:
    bank = features(20)
    bank[3] = 0.0
    assert np.isfinite(nearest(bank, np.zeros((2, 16), np.float32), 5)[0]).all()


@pytest.mark.parametrize(("k", "dim"), [(0, 16), (21, 16), (5, 15)])
def test_an_impossible_k_or_size_is_refused(k: int, dim: int) -> None:
    with pytest.raises(ValueError, match=r"k must be 1\.\.20"):
        nearest(features(20), features(3, dim=dim), k)
