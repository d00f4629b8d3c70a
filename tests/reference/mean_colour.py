"""An ONNX graph whose features are known by hand, the mean colour times a matrix, and metadata that fit it."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from simclr_engine.export.metadata import SCHEMA, ModelMetadata

# For images of 4 px and two features; `dataclasses.replace` makes it fit others.
METADATA = ModelMetadata(
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


def mean_colour_model(size: int, weight: NDArray[np.float32]) -> onnx.ModelProto:
    """Features `[batch, D]` = mean over the pixels of uint8 `[batch, size, size, 3]`, times `weight` `[3, D]`."""
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=0),
        helper.make_node("MatMul", ["m", "weight"], ["features"]),
    ]
    tensors = [numpy_helper.from_array(np.array([1, 2]), "axes"), numpy_helper.from_array(weight, "weight")]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", size, size, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", weight.shape[1]])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
