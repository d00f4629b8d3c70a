"""int8 and fp16: which ranges, which nodes, the same bytes again, what cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from fixtures.run_graph import graph_features
from simclr_engine.errors import CheckFailed, DataError
from simclr_engine.export import precision
from simclr_engine.export.graph import Traced
from simclr_engine.export.parity import FP16, Difference
from simclr_engine.export.precision import QDQ_OPSET, halve
from simclr_engine.export.runtime import open_session
from simclr_engine.export.samples import natural_images

IMAGES = natural_images(48, 32, seed=3)


def _tensors(model: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.fixture(scope="module")
def little_int8(little_trace: Traced) -> onnx.ModelProto:
    return precision.quantize(little_trace.model, IMAGES, reduce_range=False)


def test_ranges_are_the_extremes_of_every_activation(little_trace: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "DIGITS", 7)
    found = precision.activation_ranges(little_trace.model, IMAGES)
    exposed = onnx.ModelProto()
    exposed.CopyFrom(little_trace.model)
    exposed.graph.output.extend(onnx.ValueInfoProto(name=n) for n in found if n != "features")
    values = open_session(exposed.SerializeToString()).run(list(found), {"images": IMAGES})
    assert len(found) == 5  # normalised images, two convolutions, two ReLUs
    for name, value in zip(found, values, strict=True):
        assert found[name] == pytest.approx((min(0, value.min()), max(0, value.max())), rel=1e-5), name


def test_a_range_covers_images_of_every_batch(little_trace: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    dark, bright = np.zeros((70, 32, 32, 3), np.uint8), np.full((3, 32, 32, 3), 255, np.uint8)
    name = next(n.input[0] for n in little_trace.model.graph.node if n.op_type == "Conv")
    low, high = precision.activation_ranges(little_trace.model, np.concatenate([dark, bright]))[name]
    only_dark = precision.activation_ranges(little_trace.model, dark)[name]
    only_bright = precision.activation_ranges(little_trace.model, bright)[name]
    assert (low, high) == (only_dark[0], only_bright[1]) and only_dark[1] == 0 == only_bright[0]


def test_convolutions_are_u8s8_per_channel_and_the_rest_is_float(little_int8: onnx.ModelProto) -> None:
    tensors = _tensors(little_int8)
    made = {name: node for node in little_int8.graph.node for name in node.output}
    convolutions = [node for node in little_int8.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 2
    for node in convolutions:
        activation, weight = (made[name] for name in node.input[:2])
        assert tensors[activation.input[2]].dtype == np.uint8 and tensors[activation.input[1]].shape == ()
        values, scales, zeros = (tensors[name] for name in weight.input)
        assert values.dtype == np.int8 and scales.shape == (8,) and not zeros.any()
        assert (np.abs(values.astype(int)).reshape(8, -1).max(1) == 127).all()
    first = little_int8.graph.node[: [n.op_type for n in little_int8.graph.node].index("QuantizeLinear")]
    assert [node.op_type for node in first] == ["Transpose", "Cast", "Mul", "Sub"]
    assert not any(node.op_type.endswith("QuantizeLinear") for node in little_int8.graph.node[-2:])
    assert [(o.domain, o.version) for o in little_int8.opset_import] == [("", QDQ_OPSET)]
    onnx.checker.check_model(little_int8, full_check=True)


def test_without_vnni_the_weights_keep_seven_bits(little_trace: Traced) -> None:
    reduced = _tensors(precision.quantize(little_trace.model, IMAGES, reduce_range=True))
    weights = [v for v in reduced.values() if v.dtype == np.int8 and v.ndim == 4]
    assert len(weights) == 2 and all(np.abs(w.astype(int)).max() == 64 for w in weights)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu avx2 avx512f", False), ("fpu avx512_vnni", True), ("avx_vnni", True), ("amx_int8", True), (None, False)],
)
def test_vnni_is_read_from_the_processor_s_flags(tmp_path: Path, flags: str | None, expected: bool) -> None:
    file = tmp_path / "cpuinfo"
    if flags is not None:
        file.write_text(f"processor\t: 0\nmodel name\t: avx_vnni in a name\nflags\t\t: {flags}\n")
    assert precision.has_vnni(file) is expected


@pytest.fixture(scope="module")
def resnet_int8(shared_trace: Traced) -> onnx.ModelProto:
    return precision.quantize(shared_trace.model, IMAGES, reduce_range=False)


def test_all_twenty_convolutions_of_a_resnet18_run_in_int8(shared_trace: Traced, resnet_int8: onnx.ModelProto) -> None:
    assert precision.check_fused(shared_trace.model, resnet_int8) == 20
    reference, found = (graph_features(m, IMAGES[:8]) for m in (shared_trace.model, resnet_int8))
    assert 0.99 < Difference.between(reference, found).min_cosine < 0.999999


def test_the_same_images_give_the_same_int8_file_in_another_process(
    shared_trace: Traced, resnet_int8: onnx.ModelProto, tmp_path: Path
) -> None:
    onnx.save(shared_trace.model, tmp_path / "float.onnx")
    np.save(tmp_path / "images.npy", IMAGES)
    code = (
        "import os, numpy, onnx; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]) if hasattr(os, "
        "'sched_setaffinity') else None\n"
        "from simclr_engine.export.precision import quantize\n"
        "model = quantize(onnx.load('float.onnx'), numpy.load('images.npy'), False)\n"
        "open('int8.onnx', 'wb').write(model.SerializeToString(deterministic=True))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "123"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert (tmp_path / "int8.onnx").read_bytes() == resnet_int8.SerializeToString(deterministic=True)


def test_a_convolution_that_stays_in_float_is_named(little_trace: Traced, little_int8: onnx.ModelProto) -> None:
    assert precision.check_fused(little_trace.model, little_int8) == 2
    spoilt = onnx.ModelProto()
    spoilt.CopyFrom(little_int8)
    made = {name: node for node in spoilt.graph.node for name in node.output}
    node = next(n for n in spoilt.graph.node if n.op_type == "Conv")
    node.input[0] = made[made[node.input[0]].input[0]].input[0]  # what is quantized, before it is
    with pytest.raises(CheckFailed, match="1 of 2 convolutions stay in float") as caught:
        precision.check_fused(little_trace.model, spoilt)
    assert "with encoder.stem.0.weight" in str(caught.value.saw) and "encoder.last" not in str(caught.value.saw)


def test_fewer_than_32_images_do_not_calibrate(little_trace: Traced) -> None:
    with pytest.raises(DataError, match="at least 32 images"):
        precision.quantize(little_trace.model, IMAGES[:31], reduce_range=False)
    precision.check_calibration(IMAGES[:32])


def test_a_range_does_not_depend_on_the_order_of_the_batches(little_trace: Traced) -> None:
    dark, bright = np.zeros((64, 32, 32, 3), np.uint8), np.full((64, 32, 32, 3), 255, np.uint8)  # a batch each
    name = next(node.input[0] for node in little_trace.model.graph.node if node.op_type == "Conv")
    one, other = (
        precision.activation_ranges(little_trace.model, np.concatenate(parts))[name]
        for parts in ((dark, bright), (bright, dark))
    )
    assert one == other and one[0] < 0 < one[1]


def test_nothing_is_quantized_between_the_pooling_and_the_features(little_trace: Traced) -> None:
    model = precision.quantize(little_trace.model, natural_images(32, 32, seed=3), reduce_range=False)
    made = {name: node for node in model.graph.node for name in node.output}
    chain: list[onnx.NodeProto] = [made["features"]]
    while chain[-1].op_type != "GlobalAveragePool":
        chain.append(made[chain[-1].input[0]])
    kinds = [node.op_type for node in chain]
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(kinds), kinds
    assert made[chain[-1].input[0]].op_type == "DequantizeLinear"  # of the last convolution


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
