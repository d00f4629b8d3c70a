"""Paths to splits and classes, and the size that a source's images get."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simclr_engine.data.listing import Listing, arrange, choose_size, held_out_rows, is_image_path
from simclr_engine.errors import DataError


def as_table(listing: Listing) -> dict[str, list[tuple[str, str | None]]]:
    """{split: [(path, class name)]}."""
    return {
        name: [
            (path, None if split.labels is None else listing.class_names[split.labels[row]])
            for row, path in enumerate(split.paths)
        ]
        for name, split in listing.splits.items()
    }


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["b.png", "a.png"], {"all": [("a.png", None), ("b.png", None)]}),
        (["cat/1.png", "ant/2.png"], {"all": [("ant/2.png", "ant"), ("cat/1.png", "cat")]}),
        (  # deeper files belong to the outermost folder
            ["cat/x/1.png", "ant/2.png"],
            {"all": [("ant/2.png", "ant"), ("cat/x/1.png", "cat")]},
        ),
        (
            ["train/cat/1.png", "train/ant/1.png", "test/cat/1.png"],
            {
                "train": [("train/ant/1.png", "ant"), ("train/cat/1.png", "cat")],
                "test": [("test/cat/1.png", "cat")],
            },
        ),
        (  # a split may be unlabelled beside labelled ones, and goes by several names
            ["Train/cat/1.png", "VALID/cat/1.png", "unlabelled/1.png"],
            {
                "train": [("Train/cat/1.png", "cat")],
                "val": [("VALID/cat/1.png", "cat")],
                "unlabeled": [("unlabelled/1.png", None)],
            },
        ),
        (["train/1.png", "test/2.png"], {"train": [("train/1.png", None)], "test": [("test/2.png", None)]}),
        (["test/cat/1.png"], {"test": [("test/cat/1.png", "cat")]}),
        (  # folders around everything are looked through
            ["data/cifar10/train/cat/1.png", "data/cifar10/test/cat/1.png"],
            {
                "train": [("data/cifar10/train/cat/1.png", "cat")],
                "test": [("data/cifar10/test/cat/1.png", "cat")],
            },
        ),
        (["x/cat/1.png", "x/ant/1.png"], {"all": [("x/ant/1.png", "ant"), ("x/cat/1.png", "cat")]}),
        (["photos/1.png", "photos/2.png"], {"all": [("photos/1.png", None), ("photos/2.png", None)]}),
        (  # one class with subfolders is a class, not a wrapping
            ["cat/1.png", "cat/more/2.png"],
            {"all": [("cat/1.png", "cat"), ("cat/more/2.png", "cat")]},
        ),
        (["test/1.png", "exam/1.png"], {"all": [("exam/1.png", "exam"), ("test/1.png", "test")]}),  # a class named test
        ([], {}),
    ],
)
def test_every_layout_is_read_as_documented(paths: list[str], expected: object) -> None:
    listing = arrange(paths)
    assert as_table(listing) == expected
    assert listing.skipped == ()


def test_labels_count_the_sorted_class_names_of_all_splits() -> None:
    listing = arrange(["train/zebra/1.png", "train/Bee/1.png", "test/ant/1.png", "test/zebra/1.png"])
    assert listing.class_names == ("Bee", "ant", "zebra")
    assert listing.splits["train"].labels is not None and listing.splits["train"].labels.tolist() == [0, 2]
    assert listing.splits["test"].labels is not None and listing.splits["test"].labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("paths", "left_out", "reason"),
    [
        (["ant/1.png", "bee/1.png", "preview.png"], "preview.png", "beside the class folders"),
        (["train/ant/1.png", "test/ant/1.png", "train/loose.png"], "train/loose.png", "beside the class folders"),
        (["train/ant/1.png", "test/ant/1.png", "logo.png"], "logo.png", "outside the split folders"),
        (["train/ant/1.png", "docs/1.png"], "docs/1.png", "outside the split folders"),
        (["ant/1.png", "bee/1.png", "ant/1.png"], "ant/1.png", "appears twice"),
    ],
)
def test_files_that_fit_nowhere_are_named_with_their_reason(paths: list[str], left_out: str, reason: str) -> None:
    ((path, why),) = arrange(paths).skipped
    assert path == left_out and reason in why


names = st.sampled_from(["train", "test", "val", "ant", "bee", "x"])
paths_strategy = st.lists(
    st.builds(lambda folders, n: "/".join([*folders, f"{n}.png"]), st.lists(names, max_size=4), st.integers(0, 5)),
    max_size=30,
)


@settings(deadline=None)
@given(paths=paths_strategy, seed=st.integers(0, 1000))
def test_every_path_ends_in_exactly_one_place_whatever_the_order(paths: list[str], seed: int) -> None:
    listing = arrange(paths)
    placed = [path for split in listing.splits.values() for path in split.paths]
    assert Counter(placed + [path for path, _ in listing.skipped]) == Counter(paths)
    shuffled = [paths[i] for i in np.random.default_rng(seed).permutation(len(paths))]
    assert as_table(arrange(shuffled)) == as_table(listing)
    for split in listing.splits.values():
        assert list(split.paths) == sorted(split.paths) and len(split.paths) > 0
        if split.labels is not None:
            for path, label in zip(split.paths, split.labels, strict=True):
                assert listing.class_names[label] in path.split("/")[:-1]


@pytest.mark.parametrize(
    ("path", "is_image"),
    [
        ("a/b.PNG", True),
        ("a/b.JpEg", True),
        ("b.webp", True),
        ("b.bmp", True),
        ("b.jpg.txt", False),
        ("b.gif", False),
        (".hidden.png", False),
        ("a/.git/b.png", False),
        ("__MACOSX/a/b.png", False),
    ],
)
def test_images_are_told_by_extension_in_any_case_and_never_hidden(path: str, is_image: bool) -> None:
    assert is_image_path(path) is is_image


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
