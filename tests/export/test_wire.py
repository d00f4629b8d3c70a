"""The walk over an ONNX file's bytes finds what onnx finds, and answers damage with one kind of error."""

from __future__ import annotations

import contextlib
import hashlib

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fixtures.tiny_model import tiny_model
from simclr_engine.export.wire import MalformedError, scan

OUTSIDE = {"location": "../secret.bin", "offset": "0", "length": "4"}


def _external(name: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, value in OUTSIDE.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def test_properties_are_those_that_onnx_reads() -> None:
    model = tiny_model()
    helper.set_model_props(model, {"a": "1", "ключ": "značka", "empty": ""})
    found = scan(model.SerializeToString(), without="none")
    assert found.properties == {p.key: p.value for p in model.metadata_props}
    assert found.external == ()


def test_the_digest_covers_every_byte_but_the_property_that_holds_it() -> None:
    model = tiny_model()
    helper.set_model_props(model, {"a": "1"})
    plain = model.SerializeToString()
    model.metadata_props.add(key="digest", value="anything")
    assert scan(model.SerializeToString(), without="digest").digest == hashlib.sha256(plain).hexdigest()
    assert scan(model.SerializeToString(), without="a").digest != hashlib.sha256(plain).hexdigest()


@pytest.mark.parametrize("place", ["initializer", "constant", "subgraph", "sparse", "function"])
def test_external_data_is_found_wherever_a_tensor_can_stand(place: str) -> None:
    model, tensor = tiny_model(), _external("hidden")
    if place == "initializer":
        model.graph.initializer.append(tensor)
    elif place == "constant":
        model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))
    elif place == "sparse":
        model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=tensor, dims=[1]))
    elif place == "function":
        node = helper.make_node("Constant", [], ["c"], value=tensor)
        model.functions.append(helper.make_function("own", "F", [], ["c"], [node], [helper.make_opsetid("", 20)]))
    else:
        branch = helper.make_graph([], "branch", [], [], [tensor])
        model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch))
    assert "hidden" in scan(model.SerializeToString(), without="").external


@pytest.mark.parametrize("sign", ["external_data", "data_location"])
def test_either_sign_of_external_data_suffices(sign: str) -> None:
    model, tensor = tiny_model(), _external("hidden")
    tensor.ClearField("data_location" if sign == "external_data" else "external_data")
    model.graph.initializer.append(tensor)
    assert scan(model.SerializeToString(), without="").external == ("hidden",)


def test_a_file_cut_short_anywhere_is_malformed() -> None:
    data = tiny_model().SerializeToString()
    whole = scan(data, without="")
    for length in range(len(data)):
        try:
            assert scan(data[:length], without="").digest != whole.digest
        except MalformedError:
            continue


def test_a_property_that_stands_twice_is_refused() -> None:
    model = tiny_model()
    for value in ("1", "2"):
        model.metadata_props.add(key="a", value=value)
    with pytest.raises(MalformedError, match="twice"):
        scan(model.SerializeToString(), without="")


def test_endless_nesting_is_refused() -> None:
    graph = b""
    for _ in range(300):  # graph > node > attribute > graph …
        for tag in (0x32, 0x2A, 0x0A):
            size, length = len(graph), b""
            while size >= 0x80:
                length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
            graph = bytes([tag]) + length + bytes([size]) + graph
    size, length = len(graph), b""
    while size >= 0x80:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    with pytest.raises(MalformedError, match="deeply"):
        scan(b"\x08\x0a\x3a" + length + bytes([size]) + graph, without="")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_give_a_malformed_error_and_no_other(data: bytes) -> None:
    with contextlib.suppress(MalformedError):
        scan(data, without="")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_single_flipped_bit_passes_unseen(data: st.DataObject) -> None:
    model = tiny_model()
    helper.set_model_props(model, {"a": "1"})
    raw = bytearray(model.SerializeToString())
    whole = scan(bytes(raw), without="digest")
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(MalformedError):
        assert scan(bytes(raw), without="digest").digest != whole.digest


def test_a_weight_is_not_mistaken_for_external() -> None:
    model = tiny_model()
    model.graph.initializer.append(numpy_helper.from_array(np.arange(5000, dtype=np.float32), "large"))
    assert scan(model.SerializeToString(), without="").external == ()
