"""A model passes only with the operators and sizes of an encoder; nothing else reaches onnxruntime."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from fixtures.tiny_model import TINY, tiny_model
from simclr_engine.bounds import MAX_SIZE
from simclr_engine.errors import CheckFailed, DataError
from simclr_engine.export import acceptance
from simclr_engine.export.acceptance import ElsewhereError, RefusedError, check_model
from simclr_engine.export.graph import seal, trace_encoder
from simclr_engine.export.metadata import read_model
from simclr_engine.export.protobuf import MalformedError
from simclr_engine.export.runtime import OnnxEncoder
from simclr_engine.model import build_encoder

BEFORE = Path(__file__).parents[1] / "fixtures" / "before"
ENDLESS = 2**62


def _with(*nodes: onnx.NodeProto, **constants: object) -> onnx.ModelProto:
    """The tiny model with nodes before its own, and constants by name."""
    model = tiny_model()
    own = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *own])
    for name, values in constants.items():
        array = np.asarray(values)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def _loop() -> onnx.ModelProto:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, [])],
    )
    return _with(helper.make_node("Loop", ["rounds", ""], [], body=body), rounds=np.int64(ENDLESS))


def _hidden_loop() -> onnx.ModelProto:
    """The graph of an If hidden in an operator that is allowed."""
    node = helper.make_node("Relu", ["images"], ["r"])
    node.attribute.append(helper.make_attribute("body", helper.make_graph([], "b", [], [])))
    return _with(node)


def _function() -> onnx.ModelProto:
    model = tiny_model()
    node = helper.make_node("Identity", ["a"], ["b"])
    model.functions.append(helper.make_function("own", "Cast", ["a"], ["b"], [node], [helper.make_opsetid("", 20)]))
    return model


def _sparse() -> onnx.ModelProto:
    model = tiny_model()
    values, places = (
        helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0]),
        helper.make_tensor("p", TensorProto.INT64, [1], [0]),
    )
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [ENDLESS]))
    return model


def _claims(count: int) -> onnx.ModelProto:
    model = tiny_model()
    model.graph.initializer.append(TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[count]))
    return model


def _doubled(times: int) -> onnx.ModelProto:
    names = ["images", *(f"d{i}" for i in range(times))]
    return _with(*(helper.make_node("Concat", [a, a], [b], axis=2) for a, b in pairwise(names)))


def _opset(version: int, domain: str = "") -> onnx.ModelProto:
    model = tiny_model()
    model.opset_import[0].version, model.opset_import[0].domain = version, domain
    return model


REFUSED: dict[str, Callable[[], onnx.ModelProto]] = {
    "Loop": _loop,
    "attribute 'body'": _hidden_loop,
    "functions": _function,
    "sparse": _sparse,
    "more than the file holds": lambda: _claims(ENDLESS),
    "Expand gives": lambda: _with(helper.make_node("Expand", ["e", "s"], ["x1"]), e=np.float32([1]), s=[1 << 40]),
    "Expand whose": lambda: _with(helper.make_node("Expand", ["e", "s"], ["x1"]), e=np.float32([1]), s=[1 << 62, 9]),
    "Concat gives": lambda: _doubled(60),
    "ConstantOfShape gives": lambda: _with(helper.make_node("ConstantOfShape", ["s"], ["x1"]), s=[1 << 40]),
    "Range of a kind": lambda: _with(helper.make_node("Range", ["a", "b", "c"], ["x1"]), a=0, b=ENDLESS, c=1),
    "operator 'Tile'": lambda: _with(helper.make_node("Tile", ["images", "s"], ["x1"]), s=[1, 1, 1, 1 << 40]),
    "operator 'Resize'": lambda: _with(helper.make_node("Resize", ["images", "", "", "s"], ["x1"]), s=[2, 9**9, 9, 3]),
    "the domain 'com.microsoft'": lambda: _with(helper.make_node("Relu", ["images"], ["r"], domain="com.microsoft")),
    "version 18": lambda: _opset(6),
    "version 18 to": lambda: _opset(20, "ai.onnx.ml"),
    "at ConstantOfShape": lambda: _with(
        *(helper.make_node("ConstantOfShape", ["s"], [f"c{i}"]) for i in range(3)), s=[1 << 23]
    ),
    "not known beforehand": lambda: _with(helper.make_node("Reshape", ["images", "images"], ["x1"])),
    "two values": lambda: _with(helper.make_node("Relu", ["images"], ["x"])),
    "nothing before it": lambda: _with(helper.make_node("Relu", ["later"], ["r"])),
    "MaxPool gives": lambda: _with(
        helper.make_node("Cast", ["images"], ["f"], to=1),
        helper.make_node("MaxPool", ["f"], ["p"], kernel_shape=[1, 1], pads=[1 << 40] * 4),
    ),
    "Conv gives": lambda: _with(
        helper.make_node("Cast", ["images"], ["f"], to=1),
        helper.make_node("Conv", ["f", "w"], ["p"], pads=[1 << 20] * 4),
        w=np.ones((1, 4, 1, 1), np.float32),
    ),
    "at MatMul": lambda: _with(
        helper.make_node("Cast", ["images"], ["f"], to=1),
        *(helper.make_node("MatMul", ["m", "m"], [f"m{i}"]) for i in range(10)),
        m=np.ones((1 << 12, 1 << 12), np.int8),
    ),
}


@pytest.mark.parametrize("says", REFUSED)
def test_what_no_encoder_needs_is_refused_before_it_runs(says: str) -> None:
    data = REFUSED[says]().SerializeToString()
    tracemalloc.start()
    begin = time.process_time()
    try:
        with pytest.raises(RefusedError, match=says):
            check_model(data, 4)
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()
    assert time.process_time() - begin < 5


def test_a_refused_file_names_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "loop.onnx"
    model = _with(helper.make_node("Tile", ["images", "s"], ["x1"]), s=[1, 1, 1, 2])
    path.write_bytes(seal(model, TINY))
    with pytest.raises(DataError, match="holds what no encoder needs") as caught:
        OnnxEncoder(path)
    assert "Tile" in str(caught.value.saw) and caught.value.exit_code == 4


@pytest.mark.parametrize(("size", "width"), [(1025, 2), (20_000, 2), (0, 2), (4, 1 << 20)])
def test_sizes_that_no_encoder_has_are_refused(tmp_path: Path, size: int, width: int) -> None:
    path = tmp_path / "large.onnx"
    path.write_bytes(seal(tiny_model(), replace(TINY, image_size=size, feature_dim=width)))
    with pytest.raises(DataError, match="image_size" if width == 2 else "feature_dim"):
        read_model(path)


@pytest.mark.parametrize("sign", ["external_data", "data_location"])
@pytest.mark.parametrize("place", ["initializer", "constant"])
def test_weights_elsewhere_are_found_wherever_they_can_stand(place: str, sign: str) -> None:
    tensor = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret.bin")
    tensor.ClearField("data_location" if sign == "external_data" else "external_data")
    model = tiny_model() if place == "initializer" else _with(helper.make_node("Constant", [], ["c"], value=tensor))
    if place == "initializer":
        model.graph.initializer.append(tensor)
    with pytest.raises(ElsewhereError, match="hidden"):
        check_model(model.SerializeToString(), 4)


def test_a_name_that_two_readers_read_differently_is_refused() -> None:
    """Four fixed bytes are no text to protobuf, which passes them over: the operator would be the one before."""
    model = tiny_model()
    node = model.graph.node[0].SerializeToString() + b"\x25Relu"
    graph = b"\x0a" + bytes([len(node)]) + node
    with pytest.raises(MalformedError, match="number where text"):
        check_model(model.SerializeToString()[:2] + b"\x42\x02\x10\x14" + b"\x3a" + bytes([len(graph)]) + graph, 4)


@pytest.mark.parametrize("name", ["encoder.onnx", "encoder.fp16.onnx", "encoder.int8.onnx"])
def test_files_of_earlier_versions_are_still_accepted(name: str) -> None:
    assert read_model(BEFORE / name).metadata.image_size == 32


class _Transformer(nn.Module):
    """What a vision transformer is made of, small: patches, a class token, attention, normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True, norm_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        return self.block(x)[:, 0]


class _Gated(nn.Module):
    """Other layers of encoders: depthwise convolutions, layer norm over channels, gates, average pools."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.SiLU(), nn.AvgPool2d(2))
        self.deep, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.LayerNorm(8)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Hardsigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.norm(self.deep(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return (x * self.gate(x)).mean((2, 3))


@pytest.mark.parametrize("make", [_Transformer, _Gated])
def test_a_caller_s_own_encoder_is_accepted(make: Callable[[], nn.Module]) -> None:
    model = trace_encoder(make().eval(), (0.5,) * 3, (0.25,) * 3, 8, 18).model
    check_model(model.SerializeToString(), 8)


def test_an_encoder_that_no_reader_would_accept_is_not_exported() -> None:
    class Sorted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).sort(1).values

    with pytest.raises(CheckFailed, match="not accepted") as caught:
        trace_encoder(Sorted().eval(), (0.5,) * 3, (0.25,) * 3, 8, 18)
    assert "TopK" in str(caught.value.saw)


def test_the_largest_encoder_is_accepted_at_its_largest_size() -> None:
    """ResNet-50 with a small stem has the most values and multiplications for a pixel."""
    model = trace_encoder(build_encoder("resnet50", "small").eval(), (0.5,) * 3, (0.25,) * 3, 8, 18).model
    check_model(model.SerializeToString(), MAX_SIZE)


def test_shapes_are_followed_as_onnx_follows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, tuple[int, ...]] = {}

    def define(values: dict[str, Any], name: str, value: Any) -> None:
        values[name] = value
        found[name] = value.shape

    monkeypatch.setattr(acceptance, "_define", define)
    model = trace_encoder(_Gated().eval(), (0.5,) * 3, (0.25,) * 3, 8, 18).model
    check_model(model.SerializeToString(), 8)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    compared = 0
    for value in (*inferred.value_info, *inferred.output):
        dims = value.type.tensor_type.shape.dim
        if value.name in found and {d.dim_param for d in dims} <= {"", "batch"}:
            assert list(found[value.name]) == [d.dim_value or acceptance.BATCH for d in dims], value.name
            compared += 1
    assert compared > 20


def test_numbers_of_no_bytes_and_of_too_few_are_no_error_of_ours() -> None:
    opset_of_none = b"\x42\x02\x12\x00"  # field 8 with field 2 as packed numbers, none of them
    with pytest.raises(RefusedError, match="operators of"):
        check_model(tiny_model().SerializeToString() + opset_of_none, 4)
    model = tiny_model()
    model.graph.initializer.append(TensorProto(name="r", data_type=TensorProto.INT64, dims=[1], raw_data=bytes(7)))
    check_model(model.SerializeToString(), 4)
