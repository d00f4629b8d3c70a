"""A run without training, and its export."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fixtures.tiny_model import TINY, MakeTiny, tiny_model
from fixtures.untrained_run import write_untrained_run
from simclr_engine.data import ImageStore, load_data
from simclr_engine.evaluation.features import encoder_hash, extract_features
from simclr_engine.evaluation.linear import fit_linear
from simclr_engine.evaluation.metrics import confusion_matrix, score
from simclr_engine.evaluation.records import save_result
from simclr_engine.evaluation.result import EvaluationResult
from simclr_engine.export import writer
from simclr_engine.export.graph import OPSET, Traced, seal, trace_encoder
from simclr_engine.export.parity import SpeedUp
from simclr_engine.export.writer import ExportResult
from simclr_engine.run import Run
from simclr_engine.timing import Timing


@pytest.fixture
def write_run() -> Callable[..., Run]:
    """`write_untrained_run`."""
    return write_untrained_run


@pytest.fixture(scope="session")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """ResNet-18, small stem, 32 px. Not to be changed."""
    return write_untrained_run(tmp_path_factory.mktemp("runs") / "shared")


@pytest.fixture(scope="session")
def shared_trace(shared_run: Run) -> Traced:
    """Its graph. Not to be changed."""
    spec = shared_run.recipe.augment
    return trace_encoder(shared_run.encoder(), spec.mean, spec.std, shared_run.image_size, OPSET)


@pytest.fixture(scope="session")
def shared_export(shared_run: Run, shared_trace: Traced, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """Its export. Not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "trace_encoder", lambda *_: shared_trace)
        return writer.export_onnx(shared_run, tmp_path_factory.mktemp("export") / "encoder.onnx")


class LittleEncoder(nn.Module):
    """Two convolutions with batch norm: what a ResNet is made of, exported in a moment. `[B, 3, S, S]` → `[B, 8]`."""

    feature_dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(F.adaptive_avg_pool2d(torch.relu(self.last(self.stem(x))), 1), 1)


def _little_encoder() -> nn.Module:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        encoder = LittleEncoder().train()
        for _ in range(10):
            encoder(torch.randn(16, 3, 32, 32))
    return encoder.eval()


@pytest.fixture(scope="session")
def little_trace(shared_run: Run) -> Traced:
    """The graph of the little encoder. Not to be changed."""
    spec = shared_run.recipe.augment
    return trace_encoder(_little_encoder(), spec.mean, spec.std, shared_run.image_size, OPSET)


@pytest.fixture
def little_run(shared_run: Run, little_trace: Traced, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run whose encoder is the little one, already traced."""
    monkeypatch.setattr(writer, "load_encoder", lambda *_: _little_encoder())
    monkeypatch.setattr(writer, "trace_encoder", lambda *_: little_trace)
    return shared_run


@pytest.fixture
def little_file(little_run: Run, tmp_path: Path) -> Path:
    """Its export in a folder of its own, to do anything with."""
    return writer.export_onnx(little_run, tmp_path / "encoder.onnx").file


@pytest.fixture(scope="session")
def digits_run(shared_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on scikit-learn's digits (in the cache, labelled) with a linear probe of the little encoder. Not to be
    changed."""
    store = load_data("digits")
    directory = tmp_path_factory.mktemp("runs") / "digits"
    directory.mkdir()
    for name in ("recipe.toml", "encoder.safetensors"):
        (directory / name).symlink_to(shared_run.directory / name)
    data = {"name": "digits", "split": store.split, "fingerprint": store.fingerprint, "images": len(store)}
    data |= {"limit": None, "image_size": store.image_size, "class_names": list(store.class_names)}
    (directory / "environment.json").write_text(json.dumps({"finished": True, "ended": 1.0, "data": data}), "utf-8")
    run = Run.open(directory)
    _write_probe(run, store)
    return run


def _write_probe(
    run: Run, store: ImageStore, limit: int | None = None, classes: tuple[int, ...] = tuple(range(10))
) -> str:
    """Fits the little encoder's probe on images of some of the classes, writes it as `evaluate` would; its ID."""
    assert store.labels is not None
    encoder, spec = _little_encoder(), run.recipe.augment
    rows = np.flatnonzero(np.isin(store.labels, classes))[:300]
    features = extract_features(encoder, store.images[rows], spec.mean, spec.std)
    labels = store.labels[rows]
    probe = fit_linear(features, labels, C=1.0)
    confusion = confusion_matrix(labels, probe.predict_proba(features, 10).argmax(1), 10)
    about = {"method": "linear", "init": "pretrained", "protocol": "a test's", "ece": 0.0, "seconds": 0.0}
    about |= {"data": "digits", "train_images": 300, "test_images": 300, "limit": limit}
    scores = score(confusion, store.class_names)
    result = EvaluationResult.from_scores(scores, confusion=confusion, encoder=encoder_hash(encoder), **about)
    return save_result(run.directory / "evaluation", result, probe)


@pytest.fixture
def write_probe() -> Callable[..., str]:
    """`_write_probe`."""
    return _write_probe


@pytest.fixture
def little_digits(digits_run: Run, little_run: Run) -> Run:
    """That run, its encoder the little one, already traced."""
    return digits_run


@pytest.fixture
def fast_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images, and no gate of speed: two small convolutions gain nothing from int8."""
    monkeypatch.setattr(writer, "CALIBRATION_IMAGES", 64)
    monkeypatch.setattr(writer, "compared_images", lambda *_: 200)
    timing = Timing(1.0, 1.0, 1.0, 5)
    monkeypatch.setattr(writer, "measure_speed", lambda *_: SpeedUp(64, timing, replace(timing, median=0.5)))


@pytest.fixture
def make_tiny(tmp_path: Path) -> MakeTiny:
    """Writes the tiny model as a sealed file, metadata fields replaced by the arguments."""

    def make(**changes: Any) -> Path:
        path = tmp_path / "tiny.onnx"
        path.write_bytes(seal(tiny_model(), replace(TINY, **changes)))
        return path

    return make
