"""Splits that no honest probe can use are refused, each with what was seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simclr_engine.data.store import ImageStore
from simclr_engine.errors import DataError
from simclr_engine.evaluation.guards import check_splits, overlapping_images


def store(size: int = 300, seed: int = 0, side: int = 8, classes: tuple[str, ...] = ("ant", "bee")) -> ImageStore:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (size, side, side, 3), dtype=np.uint8)
    return ImageStore.from_arrays(images, np.arange(size) % len(classes), classes, name="photos", split=f"split {seed}")


def with_copies(train: ImageStore, test: ImageStore, count: int) -> ImageStore:
    """`test` with its first images replaced by the last ones of train."""
    images = test.images.copy()
    images[:count] = train.images[len(train) - count :]
    return replace(test, images=images)


def test_separate_splits_pass_without_a_note() -> None:
    assert check_splits(store(seed=0), store(seed=1)) == ()


@pytest.mark.parametrize("count", [0, 1, 17])
def test_copies_are_counted(count: int) -> None:
    train, test = store(seed=0), store(seed=1)
    assert overlapping_images(train, with_copies(train, test, count)) == count


def test_one_percent_of_copies_is_noted_and_more_is_refused() -> None:
    train, test = store(seed=0), store(seed=1)  # 300 test images: 3 are 1 %
    assert check_splits(train, with_copies(train, test, 3)) == (
        "3 of 300 test images are in train too, pixel for pixel",
    )
    with pytest.raises(DataError, match="memory test") as caught:
        check_splits(train, with_copies(train, test, 4))
    assert str(caught.value.saw).startswith("4 of 300")


def test_a_pixel_apart_is_no_copy() -> None:
    train = store(seed=0)
    images = train.images.copy()
    images[:, 0, 0, 0] ^= 1
    assert overlapping_images(train, replace(train, images=images)) == 0


def test_unlabelled_images_are_refused() -> None:
    with pytest.raises(DataError, match="needs labels"):
        check_splits(store(seed=0), ImageStore.from_arrays(store(seed=1).images))


def test_one_class_is_refused_also_where_a_second_has_only_a_name() -> None:
    with pytest.raises(DataError, match="at least two classes"):
        check_splits(store(seed=0, classes=("ant",)), store(seed=1, classes=("ant",)))
    lonely = replace(store(seed=0), labels=np.zeros(300, dtype=np.int64))
    with pytest.raises(DataError, match="at least two classes"):
        check_splits(lonely, store(seed=1))


def test_different_classes_and_different_sizes_are_refused() -> None:
    with pytest.raises(DataError, match="different classes") as caught:
        check_splits(store(seed=0), store(seed=1, classes=("ant", "cow")))
    assert caught.value.saw == "bee, cow"
    with pytest.raises(DataError, match="different sizes"):
        check_splits(store(seed=0), store(seed=1, side=9))
