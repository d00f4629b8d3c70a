"""Shares of the labels and folds: stratified, nested, without overlap, refused where a class would be empty."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simclr_engine.data.store import ImageStore
from simclr_engine.errors import DataError, UsageError
from simclr_engine.evaluation.task import labelled_rows, tasks


def store(labels: np.ndarray, split: str = "train") -> ImageStore:
    images = np.zeros((len(labels), 8, 8, 3), np.uint8)
    return ImageStore.from_arrays(images, labels.astype(np.int64), ["a", "b", "c"], name="s", split=split)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(20, 60), min_size=3, max_size=3),
    fraction=st.floats(0.05, 1.0),
    seed=st.integers(0, 99),
)
def test_a_share_of_the_labels_is_that_share_of_each_class(counts: list[int], fraction: float, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(3), counts))
    rows = labelled_rows(labels, fraction, "abc")
    assert (np.diff(rows) > 0).all()
    for label, count in enumerate(counts):
        assert abs((labels[rows] == label).sum() - fraction * count) <= 0.5 + 1e-9


def test_smaller_shares_lie_within_larger_ones_and_none_is_the_first_images() -> None:
    labels = np.arange(3000) % 3
    shares = [set(labelled_rows(labels, f, "abc").tolist()) for f in (0.01, 0.1, 0.3, 1.0)]
    assert [len(one) for one in shares] == [30, 300, 900, 3000]
    assert shares[0] < shares[1] < shares[2] < shares[3]
    assert max(shares[0]) > 1000  # drawn from everywhere, not the head of the file


def test_folds_hold_every_labelled_image_out_once_and_keep_the_classes_even() -> None:
    train = store(np.arange(300) % 3)
    found = tasks(train, store(np.arange(30) % 3, "test"), fraction=0.5, folds=5)
    assert [task.fold for task in found] == [1, 2, 3, 4, 5]
    held_out = np.concatenate([task.held_out for task in found])
    assert sorted(held_out.tolist()) == labelled_rows(train.labels, 0.5, "abc").tolist()
    for task in found:
        assert not set(task.rows) & set(task.held_out)
        assert len(task.rows) == 120 and task.scored == 30
        assert np.bincount(train.labels[task.held_out]).tolist() == [10, 10, 10]


def test_queries_are_the_held_out_fold_and_then_the_test_split() -> None:
    train, test = store(np.arange(60) % 3), store(np.arange(30) % 3, "test")
    (whole,) = tasks(train, test)
    of_train, of_test = np.arange(60.0, dtype=np.float32)[:, None], -np.arange(30.0, dtype=np.float32)[:, None]
    assert whole.of_queries(of_train, of_test) is of_test and whole.scored == 30
    task = tasks(train, test, folds=3)[1]
    both = task.of_queries(of_train, of_test)[:, 0]
    np.testing.assert_array_equal(both, [*task.held_out, *-np.arange(30)])
    assert [(one.split, len(rows)) for one, rows in task.queries] == [("train", 20), ("test", 30)]


def test_a_class_that_would_be_left_empty_is_named() -> None:
    labels = np.array([0] * 100 + [1] * 100 + [2] * 4)
    with pytest.raises(DataError, match="leaves a class") as refused:
        tasks(store(labels), store(labels, "test"), fraction=0.1)
    assert "'c'" in refused.value.saw and "4 images" in refused.value.saw
    assert tasks(store(labels), store(labels, "test"), fraction=0.125)[0].classes == 3


def test_a_class_with_one_image_cannot_be_cross_validated_and_is_named() -> None:
    labels = np.array([0] * 10 + [1] * 10 + [2])
    with pytest.raises(DataError, match="fewer images than there are folds") as refused:
        tasks(store(labels), store(labels, "test"), folds=5)
    assert refused.value.saw == "1 of 'c', 5 folds"


@pytest.mark.parametrize(("fraction", "folds"), [(0.0, 0), (1.5, 0), (-0.1, 0), (float("nan"), 0), (1.0, 1), (1.0, -3)])
def test_impossible_shares_and_folds_are_refused(fraction: float, folds: int) -> None:
    data = store(np.arange(30) % 3)
    with pytest.raises(UsageError):
        tasks(data, data, fraction, folds)
