"""The tiny model with a probe whose answers are known by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tiny_model import TINY, tiny_features, tiny_model

from simclr_engine.export.sealing import seal

CLASSES = ("ant", "bee", "cat")
COEF = np.array([[0.02, -0.01, 0.0], [0.0, 0.01, -0.02]], dtype=np.float32)  # [2 features, 3 classes]
INTERCEPT = np.array([0.1, -0.2, 0.3], dtype=np.float32)
PROBE = {
    "id": "photos-linear-pretrained",
    "data": "photos",
    "accuracy": 0.75,
    "train_images": 100,
    "test_images": 40,
    "class_names": list(CLASSES),
}


def tiny_probe_model(label: str = "label", size: int = 4) -> onnx.ModelProto:
    """`tiny_model` for images of this size, then a Gemm, a Softmax and the most probable class."""
    model = tiny_model(size)
    graph = model.graph
    graph.node.extend(
        [
            helper.make_node("Gemm", ["features", "coef", "intercept"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
            helper.make_node("ArgMax", ["probabilities"], [label], axis=1, keepdims=0),
        ]
    )
    graph.initializer.extend([numpy_helper.from_array(COEF, "coef"), numpy_helper.from_array(INTERCEPT, "intercept")])
    graph.output.extend(
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", len(CLASSES)]),
            helper.make_tensor_value_info(label, TensorProto.INT64, ["batch"]),
        ]
    )
    return model


def write_tiny_probe(path: Path, model: onnx.ModelProto | None = None, **changes: Any) -> Path:
    """Writes it as a sealed file, metadata fields replaced by the arguments."""
    metadata = replace(TINY, **({"probe": PROBE, "class_names": CLASSES} | changes))
    path.write_bytes(seal(model or tiny_probe_model(size=metadata.image_size), metadata))
    return path


def tiny_probabilities(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What it gives, in float64."""
    logits = tiny_features(images) @ COEF.astype(np.float64) + INTERCEPT
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(odds / odds.sum(1, keepdims=True))
