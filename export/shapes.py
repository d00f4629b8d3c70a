"""What the operators of image encoders make of shapes, exactly as onnxruntime does: nothing is computed but a few whole
numbers that are shapes themselves. Nothing calculates with them: what an exporter can calculate, it has.

https://onnx.ai/onnx/operators/. Imports neither torch nor onnx.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEW = 64  # whole numbers that are known: shapes, axes, paddings
INT64 = 7  # TensorProto.DataType
_LANES = 16  # convolutions lay channels out in blocks of so many, whatever there are
# What is written for a ResNet and its probe, in fp32, fp16 and int8, and what a caller's own encoder may have besides,
# such as a vision transformer.
_VIEWS = frozenset(
    ("Identity", "Cast", "Dropout", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Expand")
)
_BROADCAST = frozenset(
    (
        *("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Mean", "Sum", "PRelu", "Where"),
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or"),
    )
)
_REDUCING = frozenset(
    ("ArgMax", "ArgMin", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare")
)
_SAME = frozenset(  # as the first input
    (
        *("Relu", "Softmax", "LogSoftmax", "QuantizeLinear", "DequantizeLinear", "BatchNormalization", "Clip"),
        *("LayerNormalization", "InstanceNormalization", "GroupNormalization", "ScatterND"),
        *("LeakyRelu", "Elu", "Selu", "Gelu", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Erf"),
        *("Softplus", "Softsign", "Exp", "Log", "Sqrt", "Reciprocal", "Neg", "Abs", "Floor", "Sign", "Not"),
    )
)
_OTHERS = (
    *("Conv", "MaxPool", "AveragePool", "GlobalAveragePool", "MatMul", "Gemm", "Concat", "Split", "Gather", "GatherND"),
    *("Pad", "Shape", "Constant", "ConstantOfShape", "Range"),
)
OPERATORS = _VIEWS | _BROADCAST | _REDUCING | _SAME | {*_OTHERS}


class RefusedError(ValueError):
    """The model is not one that the exporter writes; says what of it is not."""


@dataclass(frozen=True)
class Value:
    """The shape of a value, and its numbers where it is a few whole ones that are known."""

    shape: tuple[int, ...]
    known: NDArray[np.int64] | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def room(self, channels: slice = slice(1, 2)) -> int:
        """How many values it takes if these sides of it, channels of a map or a weight, are laid out in blocks."""
        sides = list(self.shape)
        if len(sides) == 4:
            sides[channels] = [-(-side // _LANES) * _LANES for side in sides[channels]]
        return math.prod(sides)

    def numbers(self) -> list[int]:
        if self.known is None:
            raise RefusedError("a shape that is not known beforehand")
        return [int(number) for number in self.known.ravel()]


@dataclass
class Node:
    """An operator; its attributes are whole numbers, lists of them, text as bytes, and tensors as values."""

    kind: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)

    def number(self, name: str, default: int) -> int:
        value = self.attributes.get(name, default)
        if not isinstance(value, int):
            raise RefusedError(f"{self.kind} with {name} that is no whole number")
        return value

    def numbers(self, name: str, default: Iterable[int]) -> list[int]:
        return list(self.attributes.get(name, default))


def results(node: Node, x: list[Any]) -> list[Value]:
    """The values that a node gives."""
    if node.kind == "Constant":
        (value,) = node.attributes.values()
        if not isinstance(value, int | list):
            return [value if isinstance(value, Value) else Value(())]
        known: NDArray[np.int64] | None = np.array(value, dtype=np.int64)
    elif node.kind == "Shape":
        which = slice(node.number("start", 0), node.number("end", len(x[0].shape)))
        known = np.array(x[0].shape[which], dtype=np.int64)
    elif node.kind in _VIEWS:
        known = x[0].known if node.kind != "Cast" or node.number("to", 0) == INT64 else None
        # An array that takes no memory, whatever its shape: only views of it are made.
        result = _view(node, x, np.broadcast_to(np.int8(0), x[0].shape) if known is None else known)
        if known is None:
            return [Value(result.shape)]
        known = result
    else:
        known = _computed(node, x) if all(one is not None and one.known is not None for one in x) else None
    if known is not None:
        return [Value(known.shape, known if known.size <= FEW else None)]
    made = _shape(node, x)
    return [Value(tuple(one)) for one in (made if isinstance(made, list) else [made])]


def _computed(node: Node, x: list[Any]) -> NDArray[np.int64] | None:
    """What puts shapes together. None calculates with them: what an exporter can calculate, it has."""
    known, axis = [one.known for one in x], node.number("axis", 0)
    match node.kind:
        case "Concat":
            return np.concatenate(known, axis)
        case "Gather":
            return np.asarray(known[0].take(known[1], axis))
        case "Range" if len(whole := range(*map(int, known))) <= FEW:
            return np.array(whole, dtype=np.int64)
    return None


def _view(node: Node, x: list[Any], array: NDArray[Any]) -> NDArray[Any]:
    match node.kind:
        case "Reshape":
            kept = not node.number("allowzero", 0)
            return array.reshape([array.shape[i] if kept and n == 0 else n for i, n in enumerate(x[1].numbers())])
        case "Flatten":
            before = array.shape[: node.number("axis", 1)]
            return array.reshape(math.prod(before), -1)
        case "Transpose":
            return array.transpose(node.numbers("perm", range(array.ndim)[::-1]))
        case "Squeeze":
            return array.squeeze(_axes(x) or None)
        case "Unsqueeze":
            return np.expand_dims(array, x[1].numbers())
        case "Expand":
            return np.broadcast_to(array, np.broadcast_shapes(array.shape, tuple(x[1].numbers())))
        case "Slice":
            starts, ends = x[1].numbers(), x[2].numbers()
            axes = x[3].numbers() if len(x) > 3 and x[3] else range(len(starts))
            steps = x[4].numbers() if len(x) > 4 and x[4] else [1] * len(starts)
            where = [slice(None)] * array.ndim
            for start, end, at, step in zip(starts, ends, axes, steps, strict=True):
                where[at] = slice(max(start, -array.shape[at]), end, step)
            return array[tuple(where)]
    return array


def _shape(node: Node, x: list[Any]) -> Any:
    """The shape of what a node gives, or those of all that it gives."""
    kind, shape, axis = node.kind, x[0].shape, node.number("axis", 0)
    match kind:
        case "Conv":
            weight = x[1].shape
            if weight[1] * node.number("group", 1) != shape[1]:
                raise RefusedError(f"Conv of {list(weight)} over {list(shape)}")
            return (shape[0], weight[0], *_windows(node, shape[2:], weight[2:]))
        case "MaxPool" | "AveragePool":
            return (*shape[:2], *_windows(node, shape[2:], node.numbers("kernel_shape", ())))
        case "GlobalAveragePool":
            return (*shape[:2], *[1] * len(shape[2:]))
        case "MatMul" | "Gemm":
            return _product(node, shape, x[1].shape)
        case "Concat":
            at = range(len(shape))[axis]
            return (*shape[:at], sum(one.shape[at] for one in x), *shape[at + 1 :])
        case "Split":
            at, parts = range(len(shape))[axis], len(node.outputs)
            each = -(-shape[at] // parts)
            sides = x[1].numbers() if len(x) > 1 else [*[each] * (parts - 1), shape[at] - each * (parts - 1)]
            return [(*shape[:at], side, *shape[at + 1 :]) for side in sides]
        case "Gather":
            at = range(len(shape))[axis]
            return (*shape[:at], *x[1].shape, *shape[at + 1 :])
        case "GatherND" if not node.number("batch_dims", 0):
            return (*x[1].shape[:-1], *shape[x[1].shape[-1] :])
        case "Pad" if len(x) < 4 or x[3] is None:
            pads = x[1].numbers()
            return tuple(sum(part) for part in zip(shape, pads[: len(shape)], pads[len(shape) :], strict=True))
        case "ConstantOfShape":
            return tuple(x[0].numbers())
        case "Range":
            return (len(range(*(one.numbers()[0] for one in x))),)
        case "GatherND" | "Pad":
            raise RefusedError(f"{kind} of a kind that is not followed")
    if kind in _BROADCAST:
        return np.broadcast_shapes(*(one.shape for one in x))
    if kind in _REDUCING:
        axes = (axis,) if kind.startswith("Arg") else _axes(x)
        if not axes and node.number("noop_with_empty_axes", 0):
            return shape
        gone, kept = {range(len(shape))[at] for at in axes or range(len(shape))}, node.number("keepdims", 1)
        return tuple(1 if at in gone else side for at, side in enumerate(shape) if kept or at not in gone)
    return shape


def _axes(x: list[Any]) -> tuple[int, ...]:
    return tuple(x[1].numbers()) if len(x) > 1 and x[1] is not None else ()


def _product(node: Node, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    a, b = a[::-1] if node.number("transA", 0) else a, b[::-1] if node.number("transB", 0) else b
    if a[-1] != b[-2:][0]:
        raise RefusedError(f"{node.kind} of {list(a)} and {list(b)}")
    return (*np.broadcast_shapes(a[:-2], b[:-2]), *a[-2:-1], *b[-1:][: len(b) - 1])


def _windows(node: Node, sides: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """The sides of what a window of this size gives as it is moved over an image."""
    n = len(kernel)
    strides, dilations = node.numbers("strides", [1] * n), node.numbers("dilations", [1] * n)
    pads = node.numbers("pads", [0] * 2 * n)
    if n != 2 or min([*kernel, *strides, *dilations]) < 1 or min(pads) < 0:
        raise RefusedError(f"{node.kind} of {n} dimensions, or with steps or paddings below their least")
    if node.attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise RefusedError(f"{node.kind} with paddings that are not stated")
    found = []
    for i, (side, step) in enumerate(zip(sides, strides, strict=True)):
        if (free := side + pads[i] + pads[i + n] - dilations[i] * (kernel[i] - 1) - 1) < 0:
            raise RefusedError(f"{node.kind} of {list(kernel)} over {list(sides)}")
        up = node.number("ceil_mode", 0) and -(-free // step) * step < side + pads[i]  # starts within the image
        found.append((-(-free // step) if up else free // step) + 1)
    return found
