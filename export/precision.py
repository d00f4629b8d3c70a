"""The smaller files: int8, by static quantization that is calibrated on the run's own images, and fp16.

Activations are uint8 per tensor, weights int8 per channel and symmetric, written as QuantizeLinear/DequantizeLinear
pairs, which onnxruntime fuses into integer convolutions when it loads the file (U8S8; its default S8S8 left 12 of 20
in float on x86). Normalisation, pooling and probe stay in float.

The range of an activation is what calibration saw of it, from the smallest to the largest value. For a ResNet-18 on
CIFAR-10 (512 calibration and 2,000 test images, probe at 60.55 % in fp32) that gave 60.35 %, and no image's features
left their direction further than a cosine of 0.9995; entropy calibration gave 60.40 % and 0.9996, the 99.999th
percentile 60.50 % and 0.9971, the 99.99th 60.55 % and 0.989. The accuracies do not differ by more than chance; the
percentiles spoil single images, and either needs all activations in memory, where a range needs two numbers.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from simclr_engine.data.store import Pixels
from simclr_engine.errors import CheckFailed, DataError

from .runtime import CPU, INPUT, available_threads, batches, open_session

CALIBRATION_IMAGES = 512
FEWEST_IMAGES = 32
REDUCED = ("Conv", "Add", "Relu", "MaxPool")  # what is computed in int8 or fp16
LARGEST_FP16 = float(np.finfo(np.float16).max)
QDQ_OPSET = 19  # onnx's own reference implementation knows DequantizeLinear from here on
DIGITS = 3  # of a range that are kept: the last ones depend on the machine, and the same run must give the same file
VNNI_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


def has_vnni(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor multiplies int8 without saturating in 16 bits; False if the system does not say."""
    try:
        text = cpuinfo.read_text("ascii", errors="replace")
    except OSError:
        return False
    flags = (line.partition(":")[2].split() for line in text.splitlines() if line.startswith("flags"))
    return any(VNNI_FLAGS.intersection(each) for each in flags)


def check_calibration(images: Pixels) -> None:
    """Checks that there are enough images to calibrate on.

    Raises:
        DataError: fewer than `FEWEST_IMAGES`.
    """
    if len(images) < FEWEST_IMAGES:
        raise DataError(
            f"int8 needs at least {FEWEST_IMAGES} images to calibrate on",
            saw=f"{len(images)} images",
            fix=f"--data NAME|PATH with {FEWEST_IMAGES} images or more ({CALIBRATION_IMAGES} are used), or no --int8",
        )


def quantize(model: onnx.ModelProto, images: NDArray[np.uint8], reduce_range: bool) -> onnx.ModelProto:
    """The model with its convolutions, additions and max-pools in int8.

    Args:
        model: with the input `images` and batch norm folded; not changed.
        images: uint8 `[N, S, S, 3]` to calibrate on.
        reduce_range: weights of 7 bits, for processors without VNNI, which add two products in 16 bits and saturate.

    Returns:
        A model of the same inputs and outputs. The same arguments give the same model.

    Raises:
        DataError: too few images.
    """
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData

    check_calibration(images)
    shaped = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    ranges = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in activation_ranges(shaped, images).items()
    }
    with _quiet():
        quantizer = QDQQuantizer(
            shaped,
            per_channel=True,
            reduce_range=reduce_range,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
            nodes_to_quantize=[],
            nodes_to_exclude=[],
            op_types_to_quantize=list(REDUCED),
            extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
        )
        quantizer.quantize_model()
    quantized: onnx.ModelProto = quantizer.model.model
    _sort(quantized.graph)
    del quantized.graph.value_info[:]  # of tensors that are now of another type
    used = {node.domain for node in quantized.graph.node}
    kept = [o for o in quantized.opset_import if o.domain in used]
    for standard in kept:
        if not standard.domain:  # the operators of the graph are the same in both
            standard.version = max(standard.version, QDQ_OPSET)
    del quantized.opset_import[:]
    quantized.opset_import.extend(kept)
    return quantized


def _sort(graph: onnx.GraphProto) -> None:
    """Sorts the nodes by their inputs, as ONNX requires. The quantizer appends its own at the end."""
    made = {name for node in graph.node for name in node.output}
    ready: set[str] = set()
    waiting, ordered = list(graph.node), []
    while waiting:
        position = next(i for i, node in enumerate(waiting) if all(n in ready or n not in made for n in node.input))
        node = waiting.pop(position)
        ready.update(node.output)
        ordered.append(node)
    del graph.node[:]
    graph.node.extend(ordered)


def activation_ranges(model: onnx.ModelProto, images: NDArray[np.uint8]) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of every tensor that enters or leaves a quantized node, 0 included.

    The extremes are taken inside the graph, so that no activation outlives its batch.
    """
    names = _activations(model)
    measured = onnx.ModelProto()
    measured.CopyFrom(model)
    for name in names:
        for kind in ("ReduceMin", "ReduceMax"):
            node = helper.make_node(kind, [name], [f"{name}/{kind}"], f"{name}/{kind}", keepdims=0)
            measured.graph.node.append(node)
            measured.graph.output.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, []))
    session = open_session(measured.SerializeToString())
    lows, highs = ([f"{name}/{kind}" for name in names] for kind in ("ReduceMin", "ReduceMax"))
    low, high = np.zeros(len(names)), np.zeros(len(names))
    for batch in batches(images):
        extremes = np.array(session.run([*lows, *highs], {INPUT: batch}), dtype=np.float64)
        low = np.minimum(low, extremes[: len(names)])
        high = np.maximum(high, extremes[len(names) :])
    return {n: (_rounded(a), _rounded(b)) for n, a, b in zip(names, low, high, strict=True)}


def _activations(model: onnx.ModelProto) -> list[str]:
    weights = {tensor.name for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in REDUCED]
    return list(dict.fromkeys(n for node in nodes for n in (*node.input, *node.output) if n and n not in weights))


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS - 1}e}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the root logger, to which onnxruntime's quantizer logs advice about how it is called."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def check_fused(float_model: onnx.ModelProto, quantized: onnx.ModelProto) -> int:
    """Checks that onnxruntime computes all convolutions in int8 when it loads the file; returns their number.

    Raises:
        CheckFailed: names those that stay in float.
    """
    asked = [node for node in float_model.graph.node if node.op_type == "Conv"]
    kinds = {node.output[0]: node for node in _as_loaded(quantized).graph.node if node.op_type.endswith("Conv")}
    fused = [node for node in kinds.values() if node.op_type == "QLinearConv"]
    if len(fused) >= len(asked):
        return len(fused)
    left = [node.name for node in kinds.values() if node.op_type != "QLinearConv"]
    weights = {node.name: node.input[1] for node in asked}
    raise CheckFailed(
        f"{len(asked) - len(fused)} of {len(asked)} convolutions stay in float in the int8 file",
        saw=", ".join(f"{name} with {weights[name]}" if name in weights else name for name in left),
        fix="update onnxruntime, or export without --int8",
    )


def _as_loaded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph as onnxruntime runs it, after its own optimizations."""
    with tempfile.TemporaryDirectory(prefix="simclr-engine-") as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = available_threads()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CPU])
        return onnx.load(options.optimized_model_filepath)


def halve(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its convolutions, and what stands between them, in fp16.

    Normalisation, pooling (a sum of many values) and probe stay in fp32, and so do the types of inputs and outputs.

    Raises:
        CheckFailed: a weight is too large for fp16.
    """
    halved = onnx.ModelProto()
    halved.CopyFrom(model)
    graph = halved.graph
    del graph.value_info[:]  # of tensors that are now of another type
    inside = [node for node in graph.node if node.op_type in REDUCED]
    made = {name for node in inside for name in node.output}
    weights = {name for node in inside for name in node.input} & {tensor.name for tensor in graph.initializer}
    for tensor in graph.initializer:
        if tensor.name in weights:
            _halve_tensor(tensor)
    nodes: list[onnx.NodeProto] = []
    cast: set[str] = set()
    for node in graph.node:
        half = node.op_type in REDUCED
        for at, name in enumerate(node.input):
            if name in weights or (name in made) == half:
                continue
            other = f"{name}/{'fp16' if half else 'fp32'}"
            if other not in cast:
                cast.add(other)
                to = TensorProto.FLOAT16 if half else TensorProto.FLOAT
                nodes.append(helper.make_node("Cast", [name], [other], other, to=to))
            node.input[at] = other
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return halved


def _halve_tensor(tensor: TensorProto) -> None:
    values = numpy_helper.to_array(tensor)
    if values.size and float(np.abs(values).max()) > LARGEST_FP16:
        raise CheckFailed(
            "a weight is too large for fp16",
            saw=f"{tensor.name}: {np.abs(values).max():.3g}, fp16 ends at {LARGEST_FP16:g}",
            fix="export without --fp16",
        )
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), tensor.name))
