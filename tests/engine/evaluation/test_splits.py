"""Shares of the labels and folds are stratified, nested, without overlap; splits that no honest probe can use are
refused with what was seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.hostile import little_memory
from simclr_engine.data.store import ImageStore
from simclr_engine.errors import DataError, UsageError
from simclr_engine.evaluation.splits import (
    OVERLAPS,
    _fold_numbers,
    check_splits,
    copies_in_folds,
    labelled_rows,
    make_splits,
    overlapping_images,
)


def store(labels: np.ndarray, split: str = "train") -> ImageStore:
    images = np.random.default_rng(len(labels)).integers(0, 256, (len(labels), 8, 8, 3), dtype=np.uint8)
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
    found = make_splits(train, store(np.arange(30) % 3, "test"), fraction=0.5, folds=5)
    assert [split.fold for split in found] == [1, 2, 3, 4, 5]
    held_out = np.concatenate([split.held_out for split in found])
    assert sorted(held_out.tolist()) == labelled_rows(train.labels, 0.5, "abc").tolist()
    for split in found:
        assert not set(split.rows) & set(split.held_out)
        assert len(split.rows) == 120 and split.scored == 30
        assert np.bincount(train.labels[split.held_out]).tolist() == [10, 10, 10]


def test_folds_of_many_classes_take_little_memory() -> None:
    labels = np.repeat(np.arange(1000), 5)
    _fold_numbers(labels[:10], 2, ["a", "b"], None, 0)  # loads scikit-learn
    with little_memory(2 << 20):
        found = _fold_numbers(labels, 5, [""] * 1000, None, 0)
    assert np.bincount(found).tolist() == [1000] * 5


def test_queries_are_the_held_out_fold_and_then_the_test_split() -> None:
    train, test = store(np.arange(60) % 3), store(np.arange(30) % 3, "test")
    (whole,) = make_splits(train, test)
    of_train, of_test = np.arange(60.0, dtype=np.float32)[:, None], -np.arange(30.0, dtype=np.float32)[:, None]
    assert whole.of_queries(of_train, of_test) is of_test and whole.scored == 30
    split = make_splits(train, test, folds=3)[1]
    both = split.of_queries(of_train, of_test)[:, 0]
    np.testing.assert_array_equal(both, [*split.held_out, *-np.arange(30)])
    assert [(one.split, len(rows)) for one, rows in split.queries] == [("train", 20), ("test", 30)]


def test_a_class_that_would_be_left_empty_is_named() -> None:
    labels = np.array([0] * 100 + [1] * 100 + [2] * 4)
    with pytest.raises(DataError, match="leaves a class") as refused:
        make_splits(store(labels), store(labels, "test"), fraction=0.1)
    assert "'c'" in refused.value.saw and "4 images" in refused.value.saw
    assert make_splits(store(labels), store(labels, "test"), fraction=0.125)[0].classes == 3


def test_a_class_with_one_image_cannot_be_cross_validated_and_is_named() -> None:
    labels = np.array([0] * 10 + [1] * 10 + [2])
    with pytest.raises(DataError, match="fewer images than there are folds") as refused:
        make_splits(store(labels), store(labels, "test"), folds=5)
    assert refused.value.saw == "1 of 'c', 5 folds"


def test_a_class_of_copies_cannot_be_cross_validated_and_is_named() -> None:
    train = store(np.arange(60) % 3)
    images = train.images.copy()
    images[2::3] = images[2]
    with pytest.raises(DataError, match="fewer images than there are folds") as refused:
        make_splits(replace(train, images=images), store(np.arange(30) % 3, "test"), folds=5)
    assert refused.value.saw == "1 of 'c' that is no copy, 5 folds"


@pytest.mark.parametrize(("fraction", "folds"), [(0.0, 0), (1.5, 0), (-0.1, 0), (float("nan"), 0), (1.0, 1), (1.0, -3)])
def test_impossible_shares_and_folds_are_refused(fraction: float, folds: int) -> None:
    data = store(np.arange(30) % 3)
    with pytest.raises(UsageError):
        make_splits(data, data, fraction, folds)


def photos(size: int = 300, seed: int = 0, side: int = 8, classes: tuple[str, ...] = ("ant", "bee")) -> ImageStore:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (size, side, side, 3), dtype=np.uint8)
    return ImageStore.from_arrays(images, np.arange(size) % len(classes), classes, name="photos", split=f"split {seed}")


def with_copies(train: ImageStore, test: ImageStore, count: int) -> ImageStore:
    """`test` with its first images replaced by the last ones of train."""
    images = test.images.copy()
    images[:count] = train.images[len(train) - count :]
    return replace(test, images=images)


def test_separate_splits_pass_without_a_note() -> None:
    assert check_splits(photos(seed=0), photos(seed=1)) == ()


@pytest.mark.parametrize("count", [0, 1, 17])
def test_copies_are_counted(count: int) -> None:
    train, test = photos(seed=0), photos(seed=1)
    assert overlapping_images(train, with_copies(train, test, count)) == count


def test_one_percent_of_copies_is_noted_and_more_is_refused() -> None:
    train, test = photos(seed=0), photos(seed=1)  # 300 test images: 3 are 1 %
    assert check_splits(train, with_copies(train, test, 3)) == (
        "3 of 300 test images are in train too, pixel for pixel",
    )
    with pytest.raises(DataError, match="memory test") as caught:
        check_splits(train, with_copies(train, test, 4))
    assert str(caught.value.saw).startswith("4 of 300") and "--allow-overlap" in str(caught.value.fix)
    (marked,) = check_splits(train, with_copies(train, test, 4), allow_overlap=True)
    assert marked.startswith("4 of 300 test images are in train too") and OVERLAPS in marked


def test_a_pixel_apart_is_no_copy() -> None:
    train = photos(seed=0)
    images = train.images.copy()
    images[:, 0, 0, 0] ^= 1
    assert overlapping_images(train, replace(train, images=images)) == 0


def test_unlabelled_images_are_refused() -> None:
    with pytest.raises(DataError, match="needs labels"):
        check_splits(photos(seed=0), ImageStore.from_arrays(photos(seed=1).images))


def test_one_class_is_refused_also_where_a_second_has_only_a_name() -> None:
    with pytest.raises(DataError, match="at least two classes"):
        check_splits(photos(seed=0, classes=("ant",)), photos(seed=1, classes=("ant",)))
    lonely = replace(photos(seed=0), labels=np.zeros(300, dtype=np.int64))
    with pytest.raises(DataError, match="at least two classes"):
        check_splits(lonely, photos(seed=1))


def test_different_classes_and_different_sizes_are_refused() -> None:
    with pytest.raises(DataError, match="different classes") as caught:
        check_splits(photos(seed=0), photos(seed=1, classes=("ant", "cow")))
    assert caught.value.saw == "bee, cow"
    with pytest.raises(DataError, match="different sizes"):
        check_splits(photos(seed=0), photos(seed=1, side=9))


def of_classes(labels: list[int], names: tuple[str, ...], seed: int = 0) -> ImageStore:
    return replace(photos(len(labels), seed, classes=names), labels=np.array(labels, dtype=np.int64))


@pytest.mark.parametrize(
    ("train", "test"),
    [("Cat", "cat"), ("caf\u00e9", "cafe\u0301"), ("cats", "cat"), ("01", "1"), ("New York", "new_york")],
    ids=["case", "unicode forms", "plural", "leading zero", "spaces"],
)
def test_classes_that_look_alike_in_train_and_test_are_named(train: str, test: str) -> None:
    names = (train, "dog", test)
    with pytest.raises(DataError, match="look alike") as caught:
        check_splits(of_classes([0, 1] * 9, names), of_classes([2, 1] * 9, names, 1))
    assert ascii(train)[1:3] in ascii(caught.value.saw) and "in train" in str(caught.value.saw)


def test_splits_without_a_common_class_are_refused() -> None:
    names = ("a", "b", "x", "y")
    with pytest.raises(DataError, match="share no class") as caught:
        check_splits(of_classes([0, 1] * 9, names), of_classes([2, 3] * 9, names, 1))
    assert caught.value.saw == "a, b in train, x, y in split 1"


def test_classes_that_only_the_test_split_has_are_noted_with_their_images() -> None:
    names = ("ant", "bee", "yak")
    (note,) = check_splits(of_classes([0, 1] * 9, names), of_classes([0, 1, 2] * 6, names, 1))
    assert note == "6 test images are of classes that train lacks, so none of them can be right: yak"
    assert check_splits(of_classes([0, 1, 2] * 6, names), of_classes([0, 1] * 9, names, 1)) == ()


def test_copies_of_an_image_are_in_one_fold_and_counted() -> None:
    train = photos(60)
    images = train.images.copy()
    images[30:45] = images[:15]  # across classes: row 30 + n has the other class where n is odd
    train = replace(train, images=images)
    found = make_splits(train, photos(20, 1), folds=3)
    fold_of = np.empty(60, dtype=np.int64)
    for split in found:
        fold_of[split.held_out] = split.fold
        assert not set(split.rows) & set(split.held_out)
    np.testing.assert_array_equal(fold_of[:15], fold_of[30:45])
    assert copies_in_folds(found) == ("15 of 60 images are copies of others; copies are in one fold",)
    assert copies_in_folds(make_splits(photos(60), photos(20, 1), folds=3)) == ()
    assert copies_in_folds(make_splits(train, photos(20, 1))) == ()


def test_another_seed_draws_other_labels_and_folds() -> None:
    train, test = store(np.arange(60) % 3), store(np.arange(30) % 3, "test")
    same, other = (make_splits(train, test, 0.5, folds=3, seed=seed)[0].rows.tolist() for seed in (0, 1))
    assert same == make_splits(train, test, 0.5, folds=3)[0].rows.tolist() != other
