"""The gates: PyTorch's features and labels, the first node that diverges; the smaller file's labels and speed."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fixtures.image_files import encode, noise, write_tree
from simclr_engine.data import ImageStore, load_data
from simclr_engine.errors import CheckFailed
from simclr_engine.evaluation.linear import fit_linear
from simclr_engine.export import parity
from simclr_engine.export.parity import (
    BATCHES,
    FP16,
    Agreement,
    Labeller,
    Parity,
    SpeedUp,
    check_agreement,
    check_speed,
    compare_files,
    fair_labeller,
    labeller,
    measure,
    nearest_neighbour,
)
from simclr_engine.export.samples import Samples, images_of, natural_images, parity_samples
from simclr_engine.run import Run
from simclr_engine.timing import Timing

N = sum(BATCHES)
RNG = np.random.default_rng(0)
FEATURES = np.abs(RNG.standard_normal((N, 8))).astype(np.float32)
IMAGES = RNG.integers(0, 256, (N, 4, 4, 3), dtype=np.uint8)
LARGEST = Labeller(lambda features: features.argmax(1), "largest feature")


def _measure(candidate: NDArray[np.float32], reference: NDArray[np.float32] = FEATURES) -> Parity:
    """Parity of an encoder that knows its features by image; it must be called with `BATCHES`."""
    table = {image.tobytes(): row for image, row in zip(IMAGES, candidate, strict=True)}
    sizes: list[int] = []

    def embed(images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        sizes.append(len(images))
        return [np.stack([table[image.tobytes()] for image in images])]

    parity = measure(reference, embed, LARGEST, Samples(IMAGES, None, "noise"))
    assert sizes == list(BATCHES)
    return parity


def test_the_measures_are_those_of_their_definition() -> None:
    other = FEATURES.copy()
    other[70, 3] += 0.5
    other[5] = other[5][::-1]
    p = _measure(other)
    delta = (other - FEATURES).astype(np.float64)
    assert p.max_abs == pytest.approx(np.abs(delta).max())
    norms = np.linalg.norm(FEATURES.astype(np.float64), axis=1)
    assert p.max_relative == pytest.approx((np.linalg.norm(delta, axis=1) / norms).max(), rel=1e-6)
    a, b = FEATURES.astype(np.float64), other.astype(np.float64)
    cosine = (a * b).sum(1) / norms / np.linalg.norm(b, axis=1)
    assert p.min_cosine == pytest.approx(cosine.min(), abs=1e-12)
    assert p.label_agreement == (FEATURES.argmax(1) == other.argmax(1)).mean() < 1


PROBABLE = (FEATURES / FEATURES.sum(1, keepdims=True)).astype(np.float32)


def _measure_probe(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> Parity:
    """Parity of a file whose features are exact and whose probe gives these, against `PROBABLE`."""
    cuts = iter(np.split(np.arange(N), np.cumsum(BATCHES)[:-1]))

    def run(images: NDArray[np.uint8]) -> list[NDArray[Any]]:
        rows = next(cuts)
        return [FEATURES[rows], probabilities[rows], labels[rows]]

    return measure(FEATURES, run, LARGEST, Samples(IMAGES, None, "noise"), PROBABLE)


def test_probabilities_have_a_limit_of_their_own() -> None:
    for off, holds in ((0.9e-4, True), (1.1e-4, False)):
        other = PROBABLE.copy()
        other[70, 2] -= np.float32(off)
        p = _measure_probe(other, other.argmax(1))
        assert p.max_probability == pytest.approx(off, rel=1e-2) and p.wrong_labels == 0 and p.holds() is holds
    assert _measure_probe(PROBABLE, PROBABLE.argmax(1)).bounds()["max_probability"] == 1e-9


def test_a_label_must_be_the_most_probable_class() -> None:
    labels = PROBABLE.argmax(1)
    assert _measure_probe(PROBABLE, labels).holds()
    for wrong in ((labels[3] + 1) % 8, -1, 8):
        spoilt = labels.copy()
        spoilt[3] = wrong
        p = _measure_probe(PROBABLE, spoilt)
        assert p.wrong_labels == 1 and not p.holds()


def test_two_classes_closer_than_the_limit_may_change_places(monkeypatch: pytest.MonkeyPatch) -> None:
    close, other = PROBABLE.copy(), PROBABLE.copy()
    close[9] = other[9] = 0
    close[9, :2], other[9, :2] = (0.50004, 0.49996), (0.49996, 0.50004)
    monkeypatch.setattr(sys.modules[__name__], "PROBABLE", close)
    assert _measure_probe(other, other.argmax(1)).holds()
    other[9, :2] = (0.4997, 0.5003)
    close[9, :2] = (0.5003, 0.4997)
    assert _measure_probe(other, other.argmax(1)).wrong_labels == 1


def test_fp16_is_held_to_its_own_stated_limits() -> None:
    within = _measure(FEATURES * np.float32(1 + 2.5e-3))
    assert not within.holds() and within.holds(FP16)
    assert not _measure(FEATURES * np.float32(1 + 4e-3)).holds(FP16)
    turned = FEATURES + np.float32(0.02) * RNG.standard_normal(FEATURES.shape).astype(np.float32)
    assert not _measure(turned).holds(FP16)


def _off(scale: float, by: float) -> bool:
    """Whether features reaching `scale` of which each is off by `by` pass."""
    reference = FEATURES / FEATURES.max() * np.float32(scale)
    return _measure(reference + np.float32(by), reference).holds()


def test_the_limit_is_absolute() -> None:
    assert _off(1.0, 0.9e-4)
    assert not _off(1.0, 1.1e-4)


def test_features_too_large_for_the_absolute_limit_have_a_relative_one() -> None:
    assert _off(1000.0, 4e-4)
    assert not _off(1000.0, 2e-2)


def test_small_features_that_point_elsewhere_do_not_pass() -> None:
    small = FEATURES * np.float32(1e-5)
    assert _measure(small * 1, small).holds()
    assert not _measure(small[:, ::-1].copy(), small).holds()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_feature_that_is_not_finite_does_not_pass(value: float) -> None:
    other = FEATURES.copy()
    other[73, 7] = value
    with np.errstate(invalid="ignore"):
        assert not _measure(other).holds()


def test_features_of_zero_agree_with_themselves_alone() -> None:
    zero = np.zeros_like(FEATURES)
    assert _measure(zero, zero).holds()
    assert not _measure(FEATURES * np.float32(1e-5), zero).holds()


def test_bounds_are_powers_of_ten_that_hold() -> None:
    p = replace(_measure(FEATURES), max_abs=2.2e-6, max_relative=1e-6, min_cosine=1 - 3e-8)
    bounds = p.bounds()
    assert (bounds["max_abs"], bounds["max_relative"]) == (1e-5, 1e-6)
    assert bounds["min_cosine"] == 1 - 1e-7
    assert json.loads(json.dumps(bounds)) == bounds


def test_made_up_images_never_change_and_have_the_spectrum_of_photographs() -> None:
    images = natural_images(40, 64)
    assert np.array_equal(images, natural_images(40, 64)) and images.shape == (40, 64, 64, 3)
    assert not np.array_equal(images, natural_images(40, 64, seed=1))
    assert images.min() == 0 and images.max() == 255
    gray = images.mean(3)
    power = (np.abs(np.fft.fft2(gray - gray.mean((1, 2), keepdims=True))) ** 2).mean(0)
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
    inside = (radius > 0.03) & (radius < 0.4)
    slope = np.polyfit(np.log(radius[inside]), np.log(power[inside]), 1)[0]
    assert -2.3 < slope < -1.7  # amplitude 1/f: power 1/f²


def _run_over(run: Run, store: ImageStore, limit: int | None) -> Run:
    data = {"name": "digits", "fingerprint": store.fingerprint, "limit": limit, "image_size": 32}
    return replace(run, environment=run.environment | {"data": data})


@pytest.mark.parametrize("limit", [None, 300])
def test_images_are_the_run_s_own_if_the_cache_has_them(shared_run: Run, limit: int | None) -> None:
    store = load_data("digits").limit(limit)
    samples = parity_samples(shared_run, 74, images_of(_run_over(shared_run, store, limit)))
    assert samples.source == "images that it was trained on" and samples.labels is not None
    at = np.linspace(0, len(store) - 1, 74).round().astype(int)
    assert np.array_equal(samples.images, store.images[at])
    assert store.labels is not None and np.array_equal(samples.labels, store.labels[at])


@pytest.mark.parametrize("limit", [None, 300])
def test_other_images_of_the_same_name_are_not_taken(shared_run: Run, limit: int | None) -> None:
    store = load_data("digits")
    run = _run_over(shared_run, replace(store, fingerprint="00" * 32), limit)
    assert images_of(run) is None
    assert parity_samples(run, 74, None).source.startswith("synthetic")


def test_images_that_left_the_cache_are_packed_again_from_their_place(
    shared_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMCLR_ENGINE_CACHE", str(tmp_path / "cache"))
    files = {f"{name}/{i}.png": encode(noise(10 * n + i)) for n, name in enumerate("ab") for i in range(6)}
    write_tree(tmp_path / "photos", files)
    store = load_data(tmp_path / "photos", size=32)
    run = _run_over(shared_run, replace(store, name="photos"), None)
    run.environment["data"]["path"] = str(tmp_path / "photos")
    shutil.rmtree(tmp_path / "cache")
    found = images_of(run)
    assert found is not None and found.train.fingerprint == store.fingerprint
    shutil.rmtree(tmp_path / "cache")
    write_tree(tmp_path / "photos", {"a/0.png": encode(noise(99))})
    assert images_of(run) is None  # others by now


def test_labels_come_from_the_newest_probe_that_fits(tmp_path: Path) -> None:
    truth = (FEATURES[:, 0] > FEATURES[:, 1]).astype(np.int64) + 2 * (FEATURES[:, 2] > 1)
    probe = fit_linear(FEATURES, truth, C=1.0)
    (tmp_path / "evaluation").mkdir()
    probe.save(tmp_path / "evaluation" / "toys-linear-pretrained.safetensors")
    fit_linear(FEATURES[:, :4], truth, C=1.0).save(tmp_path / "evaluation" / "z-linear-pretrained.safetensors")
    fit_linear(FEATURES, 3 - truth, C=1.0).save(tmp_path / "evaluation" / "toys-linear-scratch.safetensors")
    (tmp_path / "evaluation" / "bad-linear-pretrained.safetensors").write_bytes(b"{}")
    found = labeller(tmp_path, 8, None)
    assert found.source == "linear probe toys-linear-pretrained"
    scores = (FEATURES - probe.mean) / probe.scale @ probe.coef.T + probe.intercept
    assert np.array_equal(found.label(FEATURES), probe.classes[scores.argmax(1)])


def test_a_probe_on_all_images_is_taken_before_a_newer_one_on_some(tmp_path: Path) -> None:
    truth = (FEATURES[:, 0] > FEATURES[:, 1]).astype(np.int64)
    folder = tmp_path / "evaluation"
    folder.mkdir()
    for age, name in enumerate(("a-linear-pretrained", "b-n40-linear-pretrained", "c-n9-linear-pretrained")):
        fit_linear(FEATURES, truth, C=1.0).save(folder / f"{name}.safetensors")
        os.utime(folder / f"{name}.safetensors", (1000 + age, 1000 + age))
    assert labeller(tmp_path, 8, None).source == "linear probe a-linear-pretrained"
    (folder / "a-linear-pretrained.safetensors").unlink()
    assert labeller(tmp_path, 8, None).source == "linear probe c-n9-linear-pretrained"


def test_without_a_probe_the_nearest_neighbour_answers(tmp_path: Path) -> None:
    unit = FEATURES / np.linalg.norm(FEATURES, axis=1, keepdims=True)
    cosine = unit @ unit.T - 2 * np.eye(N)
    truth = RNG.integers(0, 5, N)
    assert np.array_equal(labeller(tmp_path, 8, None).label(FEATURES), cosine.argmax(1))
    assert np.array_equal(labeller(tmp_path, 8, truth).label(FEATURES), truth[cosine.argmax(1)])


class _Known:
    """A session whose features are known by the first pixel of an image."""

    def __init__(self, features: NDArray[np.float32]) -> None:
        self.features = features

    def run(self, names: list[str], inputs: dict[str, NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        return [self.features[inputs["images"][:, 0, 0, 0]]]


def test_agreement_is_that_of_its_definition() -> None:
    random = np.random.default_rng(0)
    images = np.zeros((200, 8, 8, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(200)
    labels = random.integers(0, 3, 200)
    ours = random.standard_normal((200, 5)).astype(np.float32)
    theirs = ours + np.float32(0.3) * random.standard_normal((200, 5)).astype(np.float32)
    store = ImageStore.from_arrays(images, labels, split="test images")
    by = Labeller(lambda f: f[:, :3].argmax(1), "largest of three")
    found = compare_files(_Known(ours), _Known(theirs), store, by)
    a, b = ours[:, :3].argmax(1), theirs[:, :3].argmax(1)
    assert found.accuracy == (b == labels).mean() and found.accuracy_fp32 == (a == labels).mean()
    assert found.agreement == (a == b).mean() < 1
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert (found.min_cosine, found.mean_cosine) == pytest.approx((cosines.min(), cosines.mean()), rel=1e-5)
    assert (found.images, found.image_source, found.label_source) == (200, "test images", "largest of three")
    plain = compare_files(_Known(ours), _Known(theirs), replace(store, labels=None), by)
    assert plain.accuracy is None and plain.accuracy_fp32 is None and plain.agreement == found.agreement


FOUND = Agreement(0.6, 0.605, 0.97, 0.9998, 0.999, 2000, "linear probe", "test images")


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, True),
        ({"accuracy": 0.595}, True),
        ({"accuracy": 0.5945}, False),
        ({"accuracy": 0.7}, True),
        ({"accuracy": float("nan")}, False),
        ({"accuracy": 0.58, "images": 40}, True),  # one image of forty
        ({"accuracy": 0.555, "images": 40}, False),
        ({"accuracy": None, "accuracy_fp32": None}, True),
        ({"accuracy": None, "accuracy_fp32": None, "mean_cosine": 0.98}, False),
    ],
)
def test_a_file_may_lose_a_point_of_accuracy_and_no_more(changes: dict[str, float | None], passes: bool) -> None:
    found = replace(FOUND, **changes)
    if passes:
        check_agreement(found, "int8")
    else:
        with pytest.raises(CheckFailed, match="int8") as caught:
            check_agreement(found, "int8")
        assert "linear probe" in str(caught.value.saw)


def _speed(seconds: float) -> SpeedUp:
    return SpeedUp(64, Timing(0.24, 0.2, 0.3, 5), Timing(seconds, 0.1, 0.4, 5))


def test_int8_must_be_a_fifth_faster_and_the_error_says_what_is_missing() -> None:
    check_speed(_speed(0.1999), vnni=True)
    for vnni in (True, False):
        with pytest.raises(CheckFailed, match="not faster") as caught:
            check_speed(_speed(0.21), vnni)
        assert ("no VNNI" in str(caught.value.saw)) is not vnni and "1.14 ×" in str(caught.value.saw)


def test_the_probe_labels_only_what_it_knows() -> None:
    class Probe:
        id, class_names = "x-linear-pretrained", ("a", "b")

        def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
            return features

    images = np.zeros((4, 8, 8, 3), np.uint8)
    theirs = ImageStore.from_arrays(images, np.array([0, 1, 0, 1]), ("a", "b"))
    others = ImageStore.from_arrays(images, np.array([0, 1, 0, 1]), ("b", "a"))
    plain = ImageStore.from_arrays(images)
    for store, probe, source in (
        (theirs, Probe(), "linear probe"),
        (plain, Probe(), "linear probe"),
        (others, Probe(), "nearest neighbour"),
        (theirs, None, "nearest neighbour"),
    ):
        assert fair_labeller(store, probe).source.startswith(source)  # type: ignore[arg-type]  # of a probe it takes no more than this


def test_large_images_are_compared_in_smaller_numbers() -> None:
    counts = [parity.compared_images(size) for size in (16, 32, 64, 224)]
    assert counts == [2000, 2000, 500, 256]


def _clusters(labels: list[int]) -> NDArray[np.float32]:
    """Features `[N, 4]` that point towards an axis for each label, every row a little apart."""
    random = np.random.default_rng(0)
    return (np.eye(4)[labels] + random.uniform(0, 0.1, (len(labels), 4))).astype(np.float32)


def test_a_probe_that_saw_some_classes_gives_their_numbers_not_places(tmp_path: Path) -> None:
    truth = np.array([1, 3] * 20)
    features = _clusters(truth.tolist())
    (tmp_path / "evaluation").mkdir()
    fit_linear(features, truth, C=1.0).save(tmp_path / "evaluation" / "toys-linear-pretrained.safetensors")
    found = labeller(tmp_path, 4, None)
    assert found.source == "linear probe toys-linear-pretrained"
    np.testing.assert_array_equal(found.label(features), truth)


def test_an_image_with_zero_features_changes_no_other_s_neighbour() -> None:
    truth = np.array([0, 1, 2, 3] * 5)
    features = _clusters(truth.tolist())
    dead = np.concatenate([np.zeros((1, 4), np.float32), features])
    rows = nearest_neighbour(None).label(dead)
    np.testing.assert_array_equal(rows[1:], nearest_neighbour(None).label(features) + 1)
    np.testing.assert_array_equal(nearest_neighbour(np.concatenate([[9], truth])).label(dead)[1:], truth)


def _measured(reference: NDArray[np.float32], given: NDArray[np.float32], labels: NDArray[np.int64]) -> Parity:
    """Parity of a file with exact features, these probabilities and these labels."""
    features = np.eye(N, 4, dtype=np.float32) + 1
    parts = iter([slice(a, b) for a, b in itertools.pairwise(np.cumsum((0, *BATCHES)))])

    def run(images: NDArray[np.uint8]) -> list[NDArray[Any]]:
        rows = next(parts)
        return [features[rows], given[rows], labels[rows]]

    images = np.zeros((N, 4, 4, 3), np.uint8)
    return measure(features, run, LARGEST, Samples(images, None, "noise"), reference)


def test_a_label_that_is_second_in_the_file_s_probabilities_is_wrong() -> None:
    close = np.tile(np.array([0.50004, 0.49996], np.float32), (N, 1))  # within the limit of a probability
    first, second = np.zeros(N, np.int64), np.zeros(N, np.int64)
    second[[0, 70]] = 1
    assert _measured(close, close, first).holds()
    found = _measured(close, close, second)
    assert found.wrong_labels == 2 and not found.holds()
