"""A run without training, its export, and a model small enough to know its features by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from simclr_engine.checkpoint import encoder_metadata, save_weights
from simclr_engine.export.metadata import SCHEMA, ModelMetadata
from simclr_engine.export.samples import natural_images
from simclr_engine.export.writer import ExportResult, export_onnx, seal
from simclr_engine.model import build_encoder
from simclr_engine.recipe import Recipe
from simclr_engine.run import Run

MakeRun = Callable[..., Run]
MakeTiny = Callable[..., Path]

WEIGHT = np.array([[1.0, -2.0], [0.5, 3.0], [-1.0, 0.25]], dtype=np.float32)  # [3 channels, 2 features]


def write_run(directory: Path, arch: str = "resnet18", stem: str = "small", size: int = 32) -> Run:
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


@pytest.fixture(scope="session")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """ResNet-18, small stem, 32 px. Not to be changed."""
    return write_run(tmp_path_factory.mktemp("runs") / "shared")


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


TINY = ModelMetadata(
    schema=SCHEMA,
    project_version="0.1.0",
    architecture="resnet18",
    stem="small",
    feature_dim=2,
    image_size=4,
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    interpolation="bilinear",
    class_names=("ant", "bee"),
    data_fingerprint="cd" * 32,
    recipe="tiny",
    recipe_hash="ef" * 32,
    parity={"max_abs": 1e-5, "max_relative": 1e-5, "min_cosine": 0.999999999, "images": 74, "batches": [1, 2, 7, 64]},
)


def tiny_model() -> onnx.ModelProto:
    """Features = mean over the pixels of a uint8 `[batch, 4, 4, 3]`, times WEIGHT."""
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=0),
        helper.make_node("MatMul", ["m", "weight"], ["features"]),
    ]
    tensors = [numpy_helper.from_array(np.array([1, 2]), "axes"), numpy_helper.from_array(WEIGHT, "weight")]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 4, 4, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 2])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def tiny_features(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What `tiny_model` gives, in float64."""
    return images.astype(np.float64).mean((1, 2)) @ WEIGHT.astype(np.float64)


@pytest.fixture
def make_tiny(tmp_path: Path) -> MakeTiny:
    """Writes the tiny model as a sealed file, metadata fields replaced by the arguments."""

    def make(**changes: object) -> Path:
        path = tmp_path / "tiny.onnx"
        path.write_bytes(seal(tiny_model(), replace(TINY, **changes)))  # type: ignore[arg-type]
        return path

    return make
