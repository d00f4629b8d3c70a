"""The label is the file's own output: held to the file's own probabilities by the gate, and passed on as it is."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fixtures.tiny_model import TINY
from fixtures.tiny_probe import tiny_probabilities, tiny_probe_model, write_tiny_probe
from simclr_engine.data.store import ImageStore
from simclr_engine.export.evaluator import difference_to_pytorch, probe_predictions
from simclr_engine.export.parity import BATCHES, Parity, measure

N = sum(BATCHES)


def _measured(reference: NDArray[np.float32], given: NDArray[np.float32], labels: NDArray[np.int64]) -> Parity:
    """Parity of a file with exact features, these probabilities and these labels."""
    features = np.eye(N, 4, dtype=np.float32) + 1
    parts = iter([slice(a, b) for a, b in itertools.pairwise(np.cumsum((0, *BATCHES)))])

    def run(images: NDArray[np.uint8]) -> list[NDArray[Any]]:
        rows = next(parts)
        return [features[rows], given[rows], labels[rows]]

    images = np.zeros((N, 4, 4, 3), np.uint8)
    return measure(
        features, run, lambda f: f.argmax(1), images, label_source="", image_source="", probabilities=reference
    )


def test_a_label_that_is_second_in_the_file_s_own_probabilities_is_wrong_however_close_it_is() -> None:
    close = np.tile(np.array([0.50004, 0.49996], np.float32), (N, 1))  # within the limit of a probability
    first, second = np.zeros(N, np.int64), np.zeros(N, np.int64)
    second[[0, 70]] = 1
    assert _measured(close, close, first).holds()
    found = _measured(close, close, second)
    assert found.wrong_labels == 2 and not found.holds()


def test_the_evaluator_scores_the_label_that_the_file_gives_and_not_one_of_its_own(tmp_path: Path) -> None:
    model = tiny_probe_model()
    model.graph.node[-1].op_type = "ArgMin"  # a file whose label is not the most probable class
    path = write_tiny_probe(tmp_path / "probe.onnx", model)
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), dtype=np.uint8)
    expected = tiny_probabilities(images)
    assert (expected.argmin(1) != expected.argmax(1)).all()
    for _ in range(2):  # computed, then from the cache
        _, labels = probe_predictions(path, ImageStore.from_arrays(images))
        assert np.array_equal(labels, expected.argmin(1))


def test_what_a_smaller_file_lost_is_said_in_percent_and_with_the_two_accuracies_in_their_places() -> None:
    parity = {**TINY.parity, "agreement": 0.987, "images_compared": 2000, "accuracy": 0.604, "accuracy_fp32": 0.6055}
    said = difference_to_pytorch(replace(TINY, precision="int8", parity=parity))
    assert said.startswith("int8 file: features differ from PyTorch's by at most 1e-05")
    assert "98.7 % of 2,000 images get the label that they get in fp32" in said
    assert said.endswith(", 60.4 % get the right one (60.6 % in fp32)")
    without = {**TINY.parity, "agreement": 0.987, "images_compared": 2000}
    assert "get the right one" not in difference_to_pytorch(replace(TINY, precision="fp16", parity=without))
