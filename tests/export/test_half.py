"""fp16: what is halved, what is not, and what cannot be."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from fixtures.run_graph import graph_features
from simclr_engine.errors import CheckFailed
from simclr_engine.export.graph import Traced
from simclr_engine.export.half import halve
from simclr_engine.export.parity import FP16, Difference
from simclr_engine.export.samples import natural_images

IMAGES = natural_images(48, 32, seed=3)


def test_fp16_halves_the_convolutions_and_nothing_else(little_trace: Traced) -> None:
    halved = halve(little_trace.model)
    onnx.checker.check_model(halved, full_check=True)
    kinds = {tensor.name: tensor.data_type for tensor in halved.graph.initializer}
    assert {name for name, kind in kinds.items() if kind == TensorProto.FLOAT16} == {
        f"encoder.{layer}.{part}" for layer in ("stem.0", "last.0") for part in ("weight", "bias")
    }
    assert kinds["scale"] == kinds["offset"] == TensorProto.FLOAT
    assert halved.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert [node.op_type for node in halved.graph.node].count("Cast") == 3
    reference, found = (graph_features(m, IMAGES) for m in (little_trace.model, halved))
    assert np.abs(reference - found).max() > 0 and Difference.between(reference, found).holds(FP16)


def test_a_weight_too_large_for_fp16_is_named(little_trace: Traced) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(little_trace.model)
    tensor = next(t for t in model.graph.initializer if t.name == "encoder.last.0.weight")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1e6), tensor.name))
    with pytest.raises(CheckFailed, match="too large for fp16") as caught:
        halve(model)
    assert "encoder.last.0.weight" in str(caught.value.saw)
