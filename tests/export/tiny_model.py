"""A model small enough to know its features by hand, and metadata that fit it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from simclr_engine.export.metadata import SCHEMA, ModelMetadata

MakeTiny = Callable[..., Path]

WEIGHT = np.array([[1.0, -2.0], [0.5, 3.0], [-1.0, 0.25]], dtype=np.float32)  # [3 channels, 2 features]

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
