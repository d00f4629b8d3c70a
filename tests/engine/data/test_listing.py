"""The size that a source's images get, and the rows that are held out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simclr_engine.data.listing import choose_size, held_out_rows
from simclr_engine.errors import DataError


@pytest.mark.parametrize(
    ("dimensions", "size"),
    [
        ({(32, 32): 60_000}, 32),
        ({(8, 8): 3}, 8),
        ({(224, 224): 3}, 224),
        ({(2048, 2048): 12}, 224),  # as 2048 × 2047 are
        ({(2048, 2047): 12}, 224),
        ({(40, 30): 5}, 30),  # one shape, but no square
        ({(50, 60): 1, (70, 90): 1, (200, 100): 1}, 70),  # the median of 50, 70, 100
        ({(50, 50): 9, (20, 90): 1}, 50),  # counted by image, not by shape
        ({(1000, 800): 2, (900, 900): 1}, 224),
        ({(9, 12): 2, (10, 10): 1}, 16),
    ],
)
def test_the_size_is_the_images_own_or_the_median_shorter_side(
    dimensions: dict[tuple[int, int], int], size: int
) -> None:
    chosen, why = choose_size(Counter(dimensions))
    assert chosen == size
    assert (why == "") == (len(dimensions) == 1 and set(dimensions) <= {(size, size)})
    assert why == "" or f"{size} × {size}" in why


def test_images_too_small_to_learn_from_are_refused() -> None:
    with pytest.raises(DataError, match="at least 8 pixels"):
        choose_size(Counter({(7, 7): 3}))


@settings(deadline=None)
@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=8), fraction=st.sampled_from([0.1, 0.2, 0.5]))
def test_the_held_out_share_is_the_same_of_every_class(counts: list[int], fraction: float) -> None:
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int64)
    chosen = held_out_rows(labels, fraction)
    np.testing.assert_array_equal(chosen, held_out_rows(labels, fraction))
    for label, count in enumerate(counts):
        taken = int(chosen[labels == label].sum())
        assert abs(taken - fraction * count) <= 1 and taken < count
        assert taken >= 1 or count == 1


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    copies=st.integers(0, 60),
    seed=st.integers(0, 1000),
)
def test_copies_are_all_held_out_or_all_kept(counts: list[int], copies: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int64)
    picture = np.arange(len(labels))
    for _ in range(copies):  # across classes too
        a, b = random.integers(0, len(labels), 2)
        picture[a] = picture[b]
    numbers = np.unique(picture, return_inverse=True)[1].astype(np.int64)
    chosen = held_out_rows(labels, 0.2, numbers)
    assert not set(numbers[chosen]) & set(numbers[~chosen])
    for label in np.unique(labels):
        assert (~chosen[labels == label]).any()


def test_copies_in_two_classes_leave_about_a_fifth_held_out() -> None:
    """Every picture lies in two of three classes, as pictures with two labels do."""
    labels = np.concatenate([np.repeat(np.arange(3), 100), (np.repeat(np.arange(3), 100) + 1) % 3]).astype(np.int64)
    numbers = np.tile(np.arange(300), 2).astype(np.int64)
    chosen = held_out_rows(labels, 0.2, numbers)
    assert np.bincount(labels[chosen]).tolist() == [40, 40, 50]  # the last class is what the others left to it


def test_without_copies_the_same_rows_are_held_out_as_ever() -> None:
    labels = (np.arange(40) % 4).astype(np.int64)
    assert np.flatnonzero(held_out_rows(labels, 0.2)).tolist() == [9, 16, 18, 19, 22, 23, 24, 37]
    np.testing.assert_array_equal(held_out_rows(labels, 0.2, np.arange(40)), held_out_rows(labels, 0.2))
