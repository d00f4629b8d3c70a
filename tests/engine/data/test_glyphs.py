"""The glyphs data set: reproducible, balanced, its splits apart, drawn fast, and hard for anything but the letter."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageChops
from sklearn.linear_model import LogisticRegression

from simclr_engine.data import glyphs
from simclr_engine.data.glyphs import CLASS_NAMES, TEST_TYPEFACES, TRAIN_TYPEFACES, make_glyphs
from simclr_engine.errors import DataError, PlatformError

Splits = dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]


@pytest.fixture(scope="module")
def splits() -> Splits:
    return {split: make_glyphs(split)[:2] for split in ("train", "test")}


def image_hashes(images: NDArray[np.uint8]) -> set[str]:
    return {hashlib.sha256(image.tobytes()).hexdigest() for image in images}


def test_both_splits_have_the_promised_shape_and_type(splits: Splits) -> None:
    for split, count in (("train", 4000), ("test", 1000)):
        images, labels = splits[split]
        assert images.shape == (count, 24, 24, 3) and images.dtype == np.uint8 and images.flags.c_contiguous
        assert labels.shape == (count,) and labels.dtype == np.int64


def test_every_class_is_equally_frequent_and_in_no_order(splits: Splits) -> None:
    assert make_glyphs("test")[2] == tuple("ABCDEFGHIJ")
    for images, labels in splits.values():
        assert np.bincount(labels, minlength=10).tolist() == [len(images) // 10] * 10
        # Shuffled, a run of equal neighbours is as long as chance makes it: one in ten.
        assert 0.05 < np.mean(labels[1:] == labels[:-1]) < 0.15


def test_a_second_call_gives_the_same_images_whatever_numpys_global_seed(splits: Splits) -> None:
    for seed, split in ((1, "train"), (2, "test")):
        np.random.seed(seed)
        before = np.random.get_state()[1].copy()
        images, labels, _ = make_glyphs(split)
        assert np.array_equal(images, splits[split][0]) and np.array_equal(labels, splits[split][1])
        assert np.array_equal(np.random.get_state()[1], before), "the global generator was used"


def test_another_process_draws_the_same_images_and_imports_no_torch(splits: Splits) -> None:
    program = (
        "import sys, hashlib; from simclr_engine.data.glyphs import make_glyphs;"
        "images, labels, _ = make_glyphs('test');"
        "assert 'torch' not in sys.modules and 'matplotlib.pyplot' not in sys.modules;"
        "print(hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    images, labels = splits["test"]
    assert there == hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()


def test_no_image_occurs_twice_and_the_splits_share_none(splits: Splits) -> None:
    train, test = (image_hashes(splits[split][0]) for split in ("train", "test"))
    assert len(train) == 4000 and len(test) == 1000 and not train & test


def test_each_split_draws_from_a_stream_and_typefaces_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, set[str]]] = []
    original = glyphs._letters

    def remember(
        random: np.random.Generator, labels: NDArray[np.int64], typefaces: tuple[str, ...]
    ) -> NDArray[np.float64]:
        seen.append((repr(random.bit_generator.seed_seq.entropy), set(typefaces)))
        return original(random, labels, typefaces)

    monkeypatch.setattr(glyphs, "_letters", remember)
    make_glyphs("train")
    make_glyphs("test")
    (train_seed, train_faces), (test_seed, test_faces) = seen
    assert train_seed != test_seed
    assert len(train_faces) == 18 and len(test_faces) == 4 and not train_faces & test_faces


def test_no_typeface_is_a_symbol_size_or_last_resort_font() -> None:
    unwanted = ("LastResort", "STIXNonUni", "STIXSiz", "cmsy", "cmex")
    assert not [name for name in TRAIN_TYPEFACES + TEST_TYPEFACES if name.startswith(unwanted)]


@pytest.mark.parametrize("typeface", TRAIN_TYPEFACES + TEST_TYPEFACES)
def test_every_typeface_draws_ten_different_letters_that_fit(typeface: str) -> None:
    masters = [glyphs._master(typeface, letter) for letter in CLASS_NAMES]
    for letter, master in zip(CLASS_NAMES, masters, strict=True):
        left, top, right, bottom = master.getbbox() or (0, 0, 0, 0)
        assert 55 <= bottom - top <= 90 and 10 <= right - left <= 100, f"{letter} in {typeface}: no letter's outline"
        # Centred by the outline: the pose assumes it.
        assert abs(left + right - master.width) <= 1 and abs(top + bottom - master.height) <= 1
    for i, master in enumerate(masters):
        for other in masters[:i]:
            difference = np.asarray(ImageChops.difference(master, other), dtype=np.float64).sum() / 255
            assert difference > 120, (
                f"two letters of {typeface} look alike"
            )  # pixels of 160²; the closest are F and E, C and G


def test_a_letter_stands_where_it_was_drawn_upright_and_not_mirrored() -> None:
    random = np.random.Generator(np.random.PCG64(5))
    labels = np.full(200, CLASS_NAMES.index("F"), dtype=np.int64)
    coverage = glyphs._letters(random, labels, ("DejaVuSans-Bold",))
    mean = coverage.mean(0)
    half = glyphs.IMAGE_SIZE // 2
    assert coverage.min() >= 0 and coverage.max() <= 1
    # F: heavier above than below and left than right; mirrored or upside down one of the two turns round.
    assert mean[:half].sum() > 1.2 * mean[half:].sum() and mean[:, :half].sum() > 1.2 * mean[:, half:].sum()
    # In the frame: the outermost pixels are all but free, even at the largest and most displaced.
    edge = np.concatenate([coverage[:, [0, -1]].reshape(200, -1), coverage[:, :, [0, -1]].reshape(200, -1)], axis=1)
    assert edge.mean() < 0.02


def test_the_letter_stands_out_and_is_lighter_in_half_of_the_images(
    splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[NDArray[np.float64]] = []
    original = glyphs._letters

    def remember(*arguments: object) -> NDArray[np.float64]:
        drawn.append(original(*arguments))
        return drawn[-1]

    monkeypatch.setattr(glyphs, "_letters", remember)
    images, _, _ = make_glyphs("test")
    ink = drawn[0]
    luminance = images @ np.array([0.299, 0.587, 0.114]) / 255
    paper = 1 - ink
    difference = (luminance * ink).sum((1, 2)) / ink.sum((1, 2)) - (luminance * paper).sum((1, 2)) / paper.sum((1, 2))
    assert 0.45 < np.mean(difference > 0) < 0.55
    assert np.mean(np.abs(difference) > 0.08) > 0.95, "letters drown in their background"


def test_raw_pixels_and_mean_colours_say_next_to_nothing_about_the_letter(splits: Splits) -> None:
    train, labels = splits["train"]
    test, truth = splits["test"]

    def accuracy(view: NDArray[np.float64], other: NDArray[np.float64]) -> float:
        mean, scale = view.mean(0), view.std(0)
        probe = LogisticRegression(C=1e-3, max_iter=300).fit((view - mean) / scale, labels)
        return float(probe.score((other - mean) / scale, truth))

    def pixels(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return np.asarray([np.asarray(Image.fromarray(i).convert("L").reduce(2)).ravel() for i in images], float)

    assert accuracy(train.mean((1, 2)), test.mean((1, 2))) < 0.16
    assert accuracy(pixels(train), pixels(test)) < 0.2


def test_both_splits_are_drawn_within_ten_seconds_of_one_core() -> None:
    start = time.process_time()
    make_glyphs("train")
    make_glyphs("test")
    assert time.process_time() - start < 10


def test_an_unknown_split_is_refused_by_name() -> None:
    with pytest.raises(DataError) as refused:
        make_glyphs("validation")
    assert refused.value.saw == "validation" and "train or test" in str(refused.value)


def test_a_missing_typeface_names_the_file_and_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs, "TRAIN_TYPEFACES", ("NoSuchFace",))
    with pytest.raises(PlatformError, match="matplotlib") as missing:
        glyphs._master("NoSuchFace", "A")
    assert "NoSuchFace.ttf" in str(missing.value.saw)
