"""Whether an int8 or fp16 file still says what the fp32 one says, and is faster: the measures and their gates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from simclr_engine.data import ImageStore
from simclr_engine.errors import CheckFailed
from simclr_engine.export import agreement
from simclr_engine.export.agreement import Agreement, SpeedUp, check_agreement, check_speed, compare, fair_labeller
from simclr_engine.export.labels import Labeller
from simclr_engine.timing import Timing


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
    found = compare(_Known(ours), _Known(theirs), store, by)
    a, b = ours[:, :3].argmax(1), theirs[:, :3].argmax(1)
    assert found.accuracy == (b == labels).mean() and found.accuracy_fp32 == (a == labels).mean()
    assert found.agreement == (a == b).mean() < 1
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert (found.min_cosine, found.mean_cosine) == pytest.approx((cosines.min(), cosines.mean()), rel=1e-5)
    assert (found.images, found.image_source, found.label_source) == (200, "test images", "largest of three")
    plain = compare(_Known(ours), _Known(theirs), replace(store, labels=None), by)
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
    counts = [agreement.compared_images(size, "int8") for size in (16, 32, 64, 224)]
    assert counts == [2000, 2000, 500, 256] and agreement.compared_images(32, "fp16") == 256
