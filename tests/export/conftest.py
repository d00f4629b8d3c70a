"""A run without training, and its export."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from simclr_engine.checkpoint import encoder_metadata, save_weights
from simclr_engine.export.samples import natural_images
from simclr_engine.export.writer import ExportResult, export_onnx, seal
from simclr_engine.model import build_encoder
from simclr_engine.recipe import Recipe
from simclr_engine.run import Run
from tiny_model import TINY, MakeTiny, tiny_model


def _write_run(directory: Path, arch: str = "resnet18", stem: str = "small", size: int = 32) -> Run:
    """A run directory as `pretrain` leaves it; batch norm has seen images, so its statistics are not 0 and 1."""
    directory.mkdir(parents=True)
    recipe = Recipe.load("cifar10-sgd", overrides={"model.arch": arch, "model.stem": stem})
    data = {"name": "photos", "split": "train", "fingerprint": "ab" * 32, "images": 100, "limit": None}
    data |= {"image_size": size, "class_names": ["cat", "dog", "Čáp"]}
    (directory / "recipe.toml").write_text(recipe.to_toml(), "utf-8")
    (directory / "environment.json").write_text(json.dumps({"finished": True, "ended": 1.0, "data": data}), "utf-8")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        encoder = build_encoder(arch, stem).train()
        images = torch.from_numpy(natural_images(16, size, seed=1)).permute(0, 3, 1, 2).float() / 64 - 2
        for _ in range(4):
            encoder(images)
    save_weights(directory / "encoder.safetensors", encoder, encoder_metadata(recipe, size))
    return Run.open(directory)


@pytest.fixture
def write_run() -> Callable[..., Run]:
    """`_write_run`."""
    return _write_run


@pytest.fixture(scope="session")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """ResNet-18, small stem, 32 px. Not to be changed."""
    return _write_run(tmp_path_factory.mktemp("runs") / "shared")


@pytest.fixture(scope="session")
def shared_export(shared_run: Run, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """Its export. Not to be changed."""
    return export_onnx(shared_run, tmp_path_factory.mktemp("export") / "encoder.onnx")


@pytest.fixture
def exported_file(shared_export: ExportResult, tmp_path: Path) -> Path:
    """A copy of that export, with its checksum, to do anything with."""
    target = tmp_path / "encoder.onnx"
    target.write_bytes(shared_export.file.read_bytes())
    target.with_name("encoder.onnx.sha256").write_bytes(
        shared_export.file.with_name("encoder.onnx.sha256").read_bytes()
    )
    return target


@pytest.fixture
def make_tiny(tmp_path: Path) -> MakeTiny:
    """Writes the tiny model as a sealed file, metadata fields replaced by the arguments."""

    def make(**changes: object) -> Path:
        path = tmp_path / "tiny.onnx"
        path.write_bytes(seal(tiny_model(), replace(TINY, **changes)))  # type: ignore[arg-type]
        return path

    return make
