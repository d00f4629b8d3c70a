"""predict: milliseconds without the warm-up, truth only where it was asked for, a gallery with its own confidences."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fixtures.image_files import encode, write_tree
from fixtures.tiny_probe import CLASSES, tiny_probabilities, write_tiny_probe
from simclr_engine.cli.predict import command
from simclr_engine.export import predict
from simclr_engine.export.embedder import open_embedder
from simclr_engine.report import result_figures

SIZE = 8


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_probe(tmp_path / "encoder.onnx", image_size=SIZE)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Train and test images of each class, as different as noise of one colour each."""
    random = np.random.default_rng(0)
    files = {
        f"{split}/{name}/{i}.png": encode(
            random.normal(random.integers(0, 256, 3), 20, (SIZE, SIZE, 3)).clip(0, 255).astype(np.uint8)
        )
        for split in ("train", "test")
        for name in CLASSES
        for i in range(4)
    }
    return write_tree(tmp_path / "data", files)


def _rows(*arguments: object) -> list[dict[str, Any]]:
    done = CliRunner().invoke(command, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    found: list[dict[str, Any]] = json.loads(done.stdout)["images"]
    return found


def test_the_latency_is_in_milliseconds_and_leaves_the_warm_up_out(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clock() -> Iterator[float]:
        now = 0.0
        for call in range(predict.WARM_UP + predict.TIMED):
            yield now
            now += 7.0 if call < predict.WARM_UP else 0.002 if call % 10 else 0.030  # seconds
            yield now

    monkeypatch.setattr(predict, "time", SimpleNamespace(perf_counter=clock().__next__))
    found = predict.latency(open_embedder(model), np.zeros((3, SIZE, SIZE, 3), np.uint8))
    assert found is not None
    assert (found["p50_ms"], found["p95_ms"]) == (2.0, 30.0)


def test_a_folder_s_classes_are_no_truth_unless_the_images_are_test_images(model: Path, data: Path) -> None:
    assert {row["truth"] for row in _rows(model, data / "test")} == {None}
    assert {row["truth"] for row in _rows(model, "--data", data, "--n", 12)} == set(CLASSES)


def test_the_gallery_shows_each_image_with_its_own_class_confidence_and_truth(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Figure] = result_figures.gallery_figure
    seen: list[tuple[Any, ...]] = []

    def drawn(images: NDArray[np.uint8], names: Any, labels: Any, confidence: Any, *, truth: Any, title: str) -> Figure:
        seen.append((images, labels, confidence, truth))
        return real(images, names, labels, confidence, truth=truth, title=title)

    monkeypatch.setattr(result_figures, "gallery_figure", drawn)
    monkeypatch.setattr(predict, "GALLERY", 5)
    monkeypatch.setattr(predict, "BATCH", 4)  # of three batches
    rows = _rows(model, "--data", data, "--n", 9, "--save", tmp_path / "sheet.png")
    ((images, labels, confidence, truth),) = seen
    expected = tiny_probabilities(images)
    assert len(images) == len(labels) == len(confidence) == len(truth) == 5
    np.testing.assert_array_equal(labels, expected.argmax(1))
    np.testing.assert_allclose(confidence, expected.max(1), atol=1e-5)
    assert [CLASSES[i] for i in truth] == [row["truth"] for row in rows[:5]]
    assert len(set(truth.tolist())) > 1
