"""A model passes only with the operators and sizes of an encoder; nothing else reaches onnxruntime."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from fixtures.tiny_model import TINY, tiny_model
from simclr_engine.bounds import MAX_SIZE
from simclr_engine.errors import CheckFailed, DataError
from simclr_engine.export.acceptance import AcceptedGraph, ElsewhereError, RefusedError
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


def _dimensions(count: int) -> onnx.ModelProto:
    """Their product alone would take minutes."""
    model = tiny_model()
    model.graph.initializer.append(TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[ENDLESS] * count))
    return model


def _doubled(times: int) -> onnx.ModelProto:
    names = ["images", *(f"d{i}" for i in range(times))]
    return _with(*(helper.make_node("Concat", [a, a], [b], axis=2) for a, b in pairwise(names)))


def _opset(version: int, domain: str = "") -> onnx.ModelProto:
    model = tiny_model()
    model.opset_import[0].version, model.opset_import[0].domain = version, domain
    return model


def _two_values_at_once() -> onnx.ModelProto:
    """protobuf and onnxruntime may not mean the same one."""
    node = helper.make_node("Constant", [], ["c"], value_ints=[ENDLESS])
    node.attribute[0].i = 0
    return _with(node)


def _many_at_once() -> onnx.ModelProto:
    """No value is large; all are needed at the end."""
    names = [f"e{i}" for i in range(9)]
    return _with(
        helper.make_node("Cast", ["images"], ["f"], to=1),
        helper.make_node("Expand", ["f", "s"], ["e"]),
        *(helper.make_node("Relu", ["e"], [name]) for name in names),
        helper.make_node("Sum", names, ["r"]),
        s=[1 << 18, 1, 1, 1],
    )


def _calculated(kind: str, **constants: object) -> onnx.ModelProto:
    """A shape of numbers that are calculated; what stands before it may depend on the batch in any way."""
    return _with(
        helper.make_node("Shape", ["images"], ["n"], end=1),
        helper.make_node(kind, ["n", "a"], ["d"]),
        helper.make_node("ConstantOfShape", ["d"], ["r"]),
        **constants,
    )


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
    "Range gives": lambda: _with(helper.make_node("Range", ["a", "b", "c"], ["x1"]), a=0, b=ENDLESS, c=1),
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
    "shape that is not known beforehand": lambda: _calculated("Div", a=[-2]),
    "not known before": lambda: _calculated("Sub", a=[2]),
    "'value_floats'": lambda: _with(helper.make_node("Constant", [], ["c"], value_floats=[1.0] * 9)),
    "'value_ints'": _two_values_at_once,
    "'LRN'": lambda: _with(helper.make_node("LRN", ["images"], ["r"], size=ENDLESS)),
    "Conv of 4 dimensions": lambda: _with(
        helper.make_node("Reshape", ["images", "s"], ["p"]),
        helper.make_node("Conv", ["p", "w"], ["r"]),
        s=[0, 1, 4, 4, 3, 1],
        w=np.ones((1, 1, 2, 2, 1, 1), np.float32),
    ),
    "paddings that are not stated": lambda: _with(
        helper.make_node("MaxPool", ["images"], ["p"], kernel_shape=[1, 1], auto_pad="VALID", pads=[9, 9, 9, 9])
    ),
    "Relu gives .* too much at once": _many_at_once,
    "Cast to a type that none has: 11": lambda: _with(
        helper.make_node("Cast", ["images"], ["f"], to=TensorProto.DOUBLE)
    ),
    "the tensor 'd' of a type that none has: 11": lambda: _with(d=np.ones(1)),
    "holds nothing": lambda: _with(helper.make_node("Slice", ["images", "a", "b"], ["r"]), a=[2], b=[ENDLESS]),
    "with 2 outputs": lambda: _with(helper.make_node("Dropout", ["images"], ["r", "mask"])),
    "type that none has: 8": lambda: _with(helper.make_node("Cast", ["images"], ["r"], to=TensorProto.STRING)),
    "Cast with to": lambda: _with(helper.make_node("Cast", ["images"], ["r"], to=[1])),
    "'t' of a type that none has: 8": lambda: _with(
        helper.make_node("Expand", ["t", "s"], ["r"]), t=np.array(["long"]), s=[1 << 20]
    ),
    "300 inputs": lambda: _with(helper.make_node("Sum", ["images"] * 300, ["r"])),
    "the tensor 'c' of": lambda: _dimensions(1 << 16),
    "of 9 dimensions": lambda: _with(helper.make_node("Reshape", ["images", "s"], ["r"]), s=[0, *[1] * 7, -1]),
    "more than 4,000 operators and tensors": lambda: _with(
        *(helper.make_node("GroupNormalization", ["images", "a", "a"], [f"r{i}"], num_groups=1) for i in range(200)),
        a=[1.0],
    ),
    "MatMul gives": lambda: _with(
        helper.make_node("Cast", ["images"], ["f"], to=1),
        helper.make_node("Expand", ["f", "s"], ["e"]),
        helper.make_node("Reshape", ["e", "t"], ["m"]),
        helper.make_node("MatMul", ["m", "m"], ["r"]),
        s=[1 << 16, 4, 4, 3],
        t=[-1, 1, 1],
    ),
    "Conv .*fit|at Conv": lambda: _with(
        helper.make_node("Cast", ["images"], ["f"], to=1),
        helper.make_node("Expand", ["f", "s"], ["e"]),
        helper.make_node("Reshape", ["e", "t"], ["m"]),
        helper.make_node("Conv", ["m", "w"], ["r"], group=1 << 18),
        s=[1 << 14, 4, 4, 3],
        t=[3, 1 << 18, 1, 1],
        w=np.ones((1 << 18, 1, 1, 1), np.float32),
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
            AcceptedGraph(data, 4)
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()
    assert time.process_time() - begin < 5


def test_a_graph_is_followed_for_every_size_of_a_batch(tmp_path: Path) -> None:
    """For one image it is small."""
    model = _with(
        helper.make_node("Shape", ["images"], ["n"], end=1),
        helper.make_node("Gather", ["sizes", "n"], ["s"]),
        helper.make_node("ConstantOfShape", ["s"], ["r"]),
        sizes=[1, 1, 1, ENDLESS],
    )
    path = tmp_path / "file.onnx"
    path.write_bytes(seal(model, TINY))
    runs: list[int] = []
    assert len(OnnxEncoder(path).embed(np.zeros((3, 4, 4, 3), np.uint8), advance=runs.append)) == 3
    assert runs == [2, 1]


def test_a_batch_shrinks_to_what_fits_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, images = tmp_path / "file.onnx", np.random.default_rng(0).integers(0, 256, (33, 4, 4, 3), np.uint8)
    path.write_bytes(seal(tiny_model(), TINY))
    whole = OnnxEncoder(path).embed(images)
    monkeypatch.setattr("simclr_engine.export.acceptance.LIVE_OF_PIXEL", 0)
    monkeypatch.setattr("simclr_engine.export.acceptance.LIVE_FREE", 500)  # values; an image has 48
    taken: list[int] = []
    assert np.array_equal(OnnxEncoder(path).embed(images, advance=taken.append), whole)
    assert max(taken) < 6 and sum(taken) == 33


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
        AcceptedGraph(model.SerializeToString(), 4)


def test_a_name_that_two_readers_read_differently_is_refused() -> None:
    """Four fixed bytes are no text to protobuf, which passes them over: the operator would be the one before."""
    model = tiny_model()
    node = model.graph.node[0].SerializeToString() + b"\x25Relu"
    graph = b"\x0a" + bytes([len(node)]) + node
    with pytest.raises(MalformedError, match="number where text"):
        AcceptedGraph(model.SerializeToString()[:2] + b"\x42\x02\x10\x14" + b"\x3a" + bytes([len(graph)]) + graph, 4)


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
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
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
    AcceptedGraph(model.SerializeToString(), 8)


def test_an_encoder_that_no_reader_would_accept_is_not_exported() -> None:
    class Sorted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).sort(1).values

    with pytest.raises(CheckFailed, match="not accepted") as caught:
        trace_encoder(Sorted().eval(), (0.5,) * 3, (0.25,) * 3, 8, 18)
    assert "TopK" in str(caught.value.saw)


def test_an_encoder_that_fixes_the_size_of_a_batch_is_not_exported() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)).view(len(x), 3)

    with pytest.raises(CheckFailed, match="batches of two images only"):
        trace_encoder(Fixed().eval(), (0.5,) * 3, (0.25,) * 3, 8, 18)


def test_the_largest_encoder_is_accepted_at_its_largest_size() -> None:
    """ResNet-50 with a small stem has the most values and multiplications for a pixel."""
    model = trace_encoder(build_encoder("resnet50", "small").eval(), (0.5,) * 3, (0.25,) * 3, 8, 18).model
    for part in (model.graph.value_info, model.graph.input, model.graph.output):
        del part[:]  # they state the sides of small images
    AcceptedGraph(model.SerializeToString(), MAX_SIZE)


def test_the_shapes_of_an_encoder_are_those_of_onnx() -> None:
    model = trace_encoder(_Gated().eval(), (0.5,) * 3, (0.25,) * 3, 8, 18).model
    found = AcceptedGraph(model.SerializeToString(), 8).shapes(7)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    compared = 0
    for value in (*inferred.value_info, *inferred.output):
        dims = value.type.tensor_type.shape.dim
        if value.name in found and {d.dim_param for d in dims} <= {"", "batch"}:
            assert list(found[value.name]) == [d.dim_value or 7 for d in dims], value.name
            compared += 1
    assert compared > 20


def _declared(name: str, *sides: int | str) -> onnx.ModelProto:
    model = tiny_model()
    place = model.graph.input if name == "images" else model.graph.value_info
    del place[:]
    place.append(helper.make_tensor_value_info(name, TensorProto.UINT8, sides))
    return model


DECLARED: dict[str, Callable[[], onnx.ModelProto]] = {
    "images of .* any number": lambda: _declared("images", 1 << 27, 4, 4, 3),
    "images of .* image_size = 4": lambda: _declared("images", "batch", 5, 4, 3),
    "'x' of .*, said to be": lambda: _declared("x", 1 << 27, 4, 4, 3),
}


@pytest.mark.parametrize("says", DECLARED)
def test_shapes_that_a_file_states_are_those_it_has(says: str) -> None:
    """onnxruntime believes them, and computes with them while it loads."""
    with pytest.raises(RefusedError, match=says):
        AcceptedGraph(DECLARED[says]().SerializeToString(), 4)


def test_a_tag_of_more_than_32_bits_hides_no_node() -> None:
    """Cut to 32 bits it is that of a graph."""
    with pytest.raises(MalformedError, match="no protobuf field"):
        AcceptedGraph(tiny_model().SerializeToString() + b"\xba\x80\x80\x80\x10\x00", 4)


def test_numbers_of_no_bytes_and_of_too_few_are_no_error_of_ours() -> None:
    opset_of_none = b"\x42\x02\x12\x00"  # field 8 with field 2 as packed numbers, none of them
    with pytest.raises(MalformedError, match="no whole number"):
        AcceptedGraph(tiny_model().SerializeToString() + opset_of_none, 4)
    model = tiny_model()
    model.graph.initializer.append(TensorProto(name="r", data_type=TensorProto.INT64, dims=[1], raw_data=bytes(7)))
    AcceptedGraph(model.SerializeToString(), 4)
