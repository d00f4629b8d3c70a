"""OnnxEncoder runs only a graph that takes and gives what its metadata says; anything else is refused in our words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fixtures.tiny_model import TINY, WEIGHT, MakeTiny, tiny_model
from fixtures.tiny_probe import tiny_probe_model, write_tiny_probe
from simclr_engine.errors import DataError
from simclr_engine.export import OnnxEncoder
from simclr_engine.export.sealing import seal


def _not_square() -> onnx.ModelProto:
    model = tiny_model()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 5
    return model


def _wider() -> onnx.ModelProto:
    model = tiny_model()
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "weight")
    weight.CopyFrom(numpy_helper.from_array(np.concatenate([WEIGHT, WEIGHT], axis=1), "weight"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4
    return model


def _another_input() -> onnx.ModelProto:
    model = tiny_model()
    model.graph.input.append(helper.make_tensor_value_info("offset", TensorProto.FLOAT, [2]))
    model.graph.node[-1].output[0] = "product"
    model.graph.node.append(helper.make_node("Add", ["product", "offset"], ["features"]))
    return model


def _takes_floats() -> onnx.ModelProto:
    model = tiny_model()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    return model


def _without_channels() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], ["features"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "flat",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 4, 2])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(np.array([1]), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_not_square, "image_size"),
        (_wider, "feature_dim"),
        (_another_input, "must take uint8 `images`"),
        (_takes_floats, "must take uint8 `images`"),
        (_without_channels, "must take uint8 `images`"),
    ],
)
def test_a_graph_with_other_inputs_or_outputs_than_stated_is_refused(
    tmp_path: Path, make: Callable[[], onnx.ModelProto], says: str
) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(seal(make(), TINY))
    with pytest.raises(DataError, match=says):
        OnnxEncoder(path)


def test_labels_in_a_column_are_refused(tmp_path: Path) -> None:
    model = tiny_probe_model()
    argmax = model.graph.node[-1]
    next(one for one in argmax.attribute if one.name == "keepdims").i = 1
    model.graph.output[-1].CopyFrom(helper.make_tensor_value_info("label", TensorProto.INT64, ["batch", 1]))
    with pytest.raises(DataError, match="a file with a probe must give"):
        OnnxEncoder(write_tiny_probe(tmp_path / "probe.onnx", model))


def test_a_graph_that_onnxruntime_cannot_load_is_an_error_of_the_data(tmp_path: Path) -> None:
    model = tiny_model()
    model.graph.node[-1].op_type = "MatMulOfNobody"
    model.graph.node[-1].domain = "nobody"
    model.opset_import.append(helper.make_opsetid("nobody", 1))
    path = tmp_path / "encoder.onnx"
    path.write_bytes(seal(model, replace(TINY)))
    with pytest.raises(DataError, match="onnxruntime cannot load the file") as caught:
        OnnxEncoder(path)
    assert str(path) in str(caught.value.saw) and "\n" not in str(caught.value.saw)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.bool_])
def test_other_whole_numbers_than_bytes_are_refused_with_the_expected_shape(
    make_tiny: MakeTiny, dtype: type[np.generic]
) -> None:
    with pytest.raises(DataError, match=r"expected uint8 \[N, 4, 4, 3\]") as caught:
        OnnxEncoder(make_tiny()).embed(np.zeros((2, 4, 4, 3), dtype))
    assert np.dtype(dtype).name in str(caught.value.saw)


def test_waiting_threads_spin_only_where_that_is_asked_for(make_tiny: MakeTiny) -> None:
    path = make_tiny()
    for spin in (False, True):
        options = OnnxEncoder(path, spin=spin)._session.get_session_options()
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == str(int(spin))
