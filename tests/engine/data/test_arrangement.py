"""Folders to splits and classes: what people have, and what becomes of each image."""

from __future__ import annotations

import time
import unicodedata
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simclr_engine.data.arrangement import arrange, sorted_names, split_named
from simclr_engine.data.listing import HOLDS_RUN, Listing


def files(folders: Mapping[str, int]) -> list[str]:
    """So many images in each folder, "" for the outermost."""
    return [f"{folder}/{n}.png".lstrip("/") for folder, count in folders.items() for n in range(count)]


def decided(folders: Mapping[str, int], wrapped: str = "") -> dict[str, dict[str, int]]:
    """{split: {class, "" without labels: images}}, and under `left out` what is in none."""
    listing = arrange([wrapped + path for path in files(folders)])
    result: dict[str, dict[str, int]] = {}
    for name, split in listing.splits.items():
        if split.labels is None:
            result[name] = {"": len(split.paths)}
        else:
            result[name] = {listing.class_names[i]: n for i, n in Counter(split.labels.tolist()).items()}
    if listing.skipped:
        result["left out"] = {"": len(listing.skipped)}
    return result


UNLABELED = {"train": {"a": 9, "b": 9}, "unlabeled": {"": 50}}
LAYOUTS: dict[str, tuple[dict[str, int], dict[str, dict[str, int]]]] = {
    "a class called train": (
        {"bicycle": 30, "bus": 30, "car": 30, "train": 30},
        {"all": {"bicycle": 30, "bus": 30, "car": 30, "train": 30}},
    ),
    "a class called test": ({"test": 20, "exam": 20}, {"all": {"exam": 20, "test": 20}}),
    "classes with the names of two splits among many": (
        {"cooking": 20, "running": 20, "swimming": 20, "testing": 10, "training": 10},
        {"all": {"cooking": 20, "running": 20, "swimming": 20, "testing": 10, "training": 10}},
    ),
    "splits beside sample images": (
        {"dataset/train/a": 20, "dataset/train/b": 20, "dataset/test/a": 9, "dataset/test/b": 9, "sample_images": 12},
        {"train": {"a": 20, "b": 20}, "test": {"a": 9, "b": 9}, "unlabeled": {"": 12}},
    ),
    "one stray picture beside class folders": (
        {"": 1, "a": 20, "b": 20},
        {"all": {"a": 20, "b": 20}, "unlabeled": {"": 1}},
    ),
    "one stray picture beside a folder of class folders": (
        {"": 1, "set/a": 20, "set/b": 20},
        {"all": {"a": 20, "b": 20}, "unlabeled": {"": 1}},
    ),
    "a stray picture in a test split is not trained on": (
        {"train/a": 9, "train/b": 9, "test": 1, "test/a": 9, "test/b": 9},
        {"train": {"a": 9, "b": 9}, "test": {"a": 9, "b": 9}, "left out": {"": 1}},
    ),
    "pictures beside a sub-folder": ({"": 300, "import-2024-05": 20}, {"all": {"": 320}}),
    "pictures beside sub-folders": ({"": 100, "one": 40, "two": 60}, {"all": {"": 200}}),
    "unlabeled beside train": ({"train/a": 9, "train/b": 9, "unlabeled": 50}, UNLABELED),
    "unlabelled beside the classes": (
        {"a": 9, "b": 9, "unlabelled": 50},
        {"all": {"a": 9, "b": 9}, "unlabeled": {"": 50}},
    ),
    "dev, eval and holdout are held out": (
        {"train": 50, "dev": 5, "eval": 6, "holdout": 7},
        {"train": {"": 50}, "val": {"": 11}, "test": {"": 7}},
    ),
    "validation alone beside train": (
        {"Training Set/a": 9, "Training Set/b": 9, "Validation Set/a": 5, "Validation Set/b": 5},
        {"train": {"a": 9, "b": 9}, "val": {"a": 5, "b": 5}},
    ),
    "names of splits with numbers and fillers": (
        {"train2017": 50, "val2017": 5, "test_images": 7, "unlabeled2017": 9},
        {"train": {"": 50}, "val": {"": 5}, "test": {"": 7}, "unlabeled": {"": 9}},
    ),
    "classes above the splits": (
        {"cat/train": 9, "cat/test": 5, "dog/train": 9, "dog/test": 5},
        {"train": {"cat": 9, "dog": 9}, "test": {"cat": 5, "dog": 5}},
    ),
    "splits inside a folder of images": (
        {"images/train": 9, "images/val": 5},
        {"train": {"": 9}, "val": {"": 5}},
    ),
    "a folder of images inside each split": (
        {"train/images": 9, "valid/images": 5},
        {"train": {"": 9}, "val": {"": 5}},
    ),
    "a test split beside its classes": (
        {"cat": 9, "dog": 9, "test/cat": 5, "test/dog": 5},
        {"train": {"cat": 9, "dog": 9}, "test": {"cat": 5, "dog": 5}},
    ),
    "documentation beside class folders": (
        {"cat": 100, "dog": 100, "docs": 2},
        {"all": {"cat": 100, "dog": 100}, "unlabeled": {"": 2}},
    ),
    "train alone beside documentation": (
        {"train/cat": 100, "train/dog": 100, "docs": 2},
        {"train": {"cat": 100, "dog": 100}, "unlabeled": {"": 2}},
    ),
    "a small class is no stray": ({"normal": 1000, "rare": 3}, {"all": {"normal": 1000, "rare": 3}}),
    "folders twenty deep": ({"/".join("abcdefghijklmnopqrst") + "/x": 5, "other": 5}, {"all": {"a": 5, "other": 5}}),
    "a lone folder of classes": ({"photos/cat": 9, "photos/dog": 9}, {"all": {"cat": 9, "dog": 9}}),
    "no train split": ({"test/cat": 9, "test/dog": 9}, {"test": {"cat": 9, "dog": 9}}),
}


@pytest.mark.parametrize("wrapped", ["", "set/"], ids=["folder", "in a folder"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_layout_that_people_have_is_guessed_wrongly(layout: str, wrapped: str) -> None:
    folders, expected = LAYOUTS[layout]
    assert decided(folders, wrapped) == expected


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("Train", "train"),
        ("training_set", "train"),
        ("TrainData", "train"),
        ("seg_test", "test"),
        ("held-out", "test"),
        ("VALID", "val"),
        ("dev", "val"),
        ("images", None),
        ("trains", None),
        ("brain_training", None),
        ("2017", None),
    ],
)
def test_a_split_is_told_by_its_name_alone(name: str, split: str | None) -> None:
    assert split_named(name) == split


def test_classes_that_are_all_numbers_sort_as_numbers() -> None:
    assert sorted_names(["10", "9", "-1", "01", "1"]) == ("-1", "01", "1", "9", "10")
    assert sorted_names(["10", "9", "x"]) == ("10", "9", "x")
    assert sorted_names(["²", "10", "9"]) == ("10", "9", "²")
    assert sorted_names(["1" * 5000, "2"])[0] == "2"


def test_what_lies_in_a_folder_with_a_run_is_left_out() -> None:
    listing = arrange(["a/1.png", "b/1.png", "runs/one/figures/x.png"], [("runs/one", HOLDS_RUN)])
    assert as_table(listing) == {"all": [("a/1.png", "a"), ("b/1.png", "b")]}
    assert listing.skipped == (("runs/one", HOLDS_RUN),)


def test_a_table_names_the_classes_and_folders_the_splits() -> None:
    paths = ["train/1.png", "train/2.png", "train/3.png", "test/4.png", "test/5.png"]
    listing = arrange(paths, labels={"train/1.png": "cat", "train/2.png": "dog", "test/4.png": "cat"})
    assert as_table(listing) == {
        "train": [("train/1.png", "cat"), ("train/2.png", "dog")],
        "test": [("test/4.png", "cat")],
        "unlabeled": [("train/3.png", None)],
    }
    assert listing.skipped == (("test/5.png", "has no label in the table"),)


def test_the_tree_counts_every_image_once() -> None:
    listing = arrange(files({"set/train/a": 4, "set/train/b/deep": 5, "set/test/a": 2, "set/test/b": 1, "more": 3}))
    assert listing.tree == (
        ("train", "set/train/a", "a", 4),
        ("train", "set/train/b", "b", 5),
        ("test", "set/test/a", "a", 2),
        ("test", "set/test/b", "b", 1),
        ("unlabeled", "more", "", 3),
    )


def test_names_in_two_unicode_forms_stay_two_classes() -> None:
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert set(decided({composed: 2, apart: 2})["all"]) == {composed, apart}


def test_a_hundred_thousand_folders_take_no_quadratic_time() -> None:
    paths = [f"{n}/1.png" for n in range(100_000)]
    began = time.process_time()
    assert len(arrange(paths).class_names) == 100_000
    assert time.process_time() - began < 20  # 1 s


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
        (  # a lone folder says nothing, with folders in it neither: the archive of a folder begins with its name
            ["cat/1.png", "cat/more/2.png"],
            {"all": [("cat/1.png", None), ("cat/more/2.png", None)]},
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


names = st.sampled_from(["train", "test", "val", "unlabeled", "ant", "bee", "docs", "images"])
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
