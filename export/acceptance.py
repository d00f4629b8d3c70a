"""Whether a model may be run: judged by its operators and its shapes, before onnxruntime opens the file.

onnxruntime does whatever a graph says, some of it while it loads: a Loop of 2⁶² rounds, a value of a terabyte. So a
file is accepted only if its operators are those of image encoders, none of which holds a graph of its own, and if the
shapes, followed from `images` `[batch, S, S, 3]` through all nodes, stay within the bounds of `engine/bounds.py`. They
are followed again for each size of a batch that is run, for a graph may depend on it in any way. Nothing is calculated
with shapes, and what is followed must be what onnxruntime does, exactly: each difference is a way around the bounds.

https://onnx.ai/onnx/operators/ for the operators, https://github.com/onnx/onnx/blob/main/onnx/onnx.proto for the
numbers of fields. Imports neither torch nor onnx.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simclr_engine.bounds import (
    LIVE_FREE,
    LIVE_OF_PIXEL,
    MOST_NODES,
    VALUES_FREE,
    WORK_FREE,
    WORK_OF_PIXEL,
    WORK_OF_VALUE,
)

from .protobuf import Field, fields_of

OPSETS = range(18, 31)  # versions of the standard's operators
STANDARD = ("", "ai.onnx")  # the standard's domain
_FEW = 64  # whole numbers that are known: shapes, axes, paddings
_MOST_DIMENSIONS, _MOST_INPUTS = 8, 256
_LANES = 16  # convolutions lay channels out in blocks of so many, whatever there are
_CALL = 1 << 14, 32  # multiplications and values for each of many small products
_INLINED = {"GroupNormalization": 25}  # operators that onnxruntime loads as so many others
# TensorProto.DataType: fp32, uint8, int8, int32, int64, bool, fp16. Others cost more than a value.
_TYPES, _INT64, _MASK = (1, 2, 3, 6, 7, 9, 10), 7, (1 << 32) - 1  # and the bits of it that are read
_FORMS = {1: 2, 2: 3, 3: 4, 4: 5, 7: 8}  # AttributeProto.type: the field of a float, int, text, tensor, list of ints
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


class ElsewhereError(RefusedError):
    """The values of a tensor lie in another file; says which tensor."""


@dataclass(frozen=True)
class _Value:
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
class _Node:
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


class AcceptedGraph:
    """What of a model decides what running it takes: its operators and the shapes of what is fixed in it.

    Args:
        data: a serialised ModelProto.
        image_size: S of the images that it takes, pixels.

    Raises:
        RefusedError: an operator, a shape or a size that the exporter does not write.
        MalformedError: not a model.
    """

    def __init__(self, data: bytes, image_size: int) -> None:
        self._image_size, self._nbytes = image_size, len(data)
        self._fixed: dict[str, _Value] = {}  # initializers
        self._nodes: list[_Node] = []
        self._kept: set[str] = set()  # outputs of the graph
        self._declared: dict[str, tuple[int, ...]] = {}  # shapes that the file states; 0 for a side that it leaves open
        self._fitting: dict[int, int] = {}  # images that were asked for → that fit
        count = 0
        for part in fields_of(_graph(data)):
            if part.number == 1:
                self._nodes.append(_node(part))
            elif part.number == 5:
                _define(self._fixed, *_tensor(part))
            elif part.number in (11, 12, 13):  # inputs, outputs, and what is between them
                name, shape = _declaration(part)
                if shape is not None and self._declared.setdefault(name, shape) != shape:
                    raise RefusedError(f"two shapes of {name[:80]!r}")
                if part.number == 12:
                    self._kept.add(name)
            elif part.number == 15:
                raise RefusedError("a sparse tensor")
            count += _INLINED.get(self._nodes[-1].kind, 1) if part.number == 1 else 1
            if count > MOST_NODES:
                raise RefusedError(f"more than {MOST_NODES:,} operators and tensors")
        images = (0, image_size, image_size, 3)
        if (said := self._declared.get("images", images)) != images:
            raise RefusedError(
                f"images of {list(said)}, where any number of them is expected and image_size = {image_size}"
            )
        self.shapes(1)

    def fitting(self, images: int) -> int:
        """How many images a run may take at most, of so many: half as many while they need more memory than is allowed.

        Raises:
            RefusedError: one is too many.
        """
        if images not in self._fitting:
            try:
                self.shapes(images)
                self._fitting[images] = images
            except _ManyError:
                if images == 1:
                    raise
                self._fitting[images] = self.fitting(-(-images // 2))
        return self._fitting[images]

    def shapes(self, images: int) -> dict[str, tuple[int, ...]]:
        """The shapes of all values in a run of so many images, by their names.

        Raises:
            RefusedError: it cannot be followed, or takes more than is allowed.
        """
        values = {**self._fixed}
        _define(values, "images", _Value((images, *(self._image_size,) * 2, 3)))
        fixed = set(self._fixed)  # what does not depend on images is computed while the file is loaded
        fixed_left = VALUES_FREE + 2 * self._nbytes
        live, most = values["images"].room(), LIVE_FREE + LIVE_OF_PIXEL * self._image_size**2
        work_left = images * (WORK_FREE + WORK_OF_PIXEL * self._image_size**2)
        last = {name: node for node in self._nodes for name in node.inputs}
        for node in self._nodes:
            if unknown := [name for name in node.inputs if name and name not in values]:
                raise RefusedError(f"{node.kind} takes {unknown[0][:80]!r}, which nothing before it gives")
            x = [values[name] if name else None for name in node.inputs]
            try:
                made = _results(node, x)
                work, scratch = _costs(node, x, made)
            except RefusedError:
                raise
            except Exception as error:  # numpy's and Python's own, for axes and shapes that do not fit
                raise RefusedError(f"{node.kind} whose inputs do not fit: {str(error)[:100]}") from error
            for name, value in zip(node.outputs, made, strict=True):
                live += value.room()
                _define(values, name, value)
            if fixed.issuperset(filter(None, node.inputs)):
                fixed.update(node.outputs)
                fixed_left -= sum(value.room(slice(2)) for value in made)
            work_left -= work
            if live + scratch > most:
                gives = ", ".join(str(list(value.shape)) for value in made)
                raise _ManyError(f"{node.kind} gives {gives}, too much at once, for {images} images")
            if min(work_left, fixed_left) < 0:
                raise RefusedError(f"more than an encoder for {self._image_size} px computes, at {node.kind}")
            done = {name for name in node.inputs if name and last[name] is node} - self._kept - self._fixed.keys()
            live -= sum(values[name].room() for name in done)
        for name, sides in self._declared.items():
            shape = values[name].shape if name in values else sides
            if len(sides) != len(shape) or any(said not in (0, side) for said, side in zip(sides, shape, strict=True)):
                raise RefusedError(f"{name[:80]!r} of {list(shape)}, said to be {list(sides)}")
        return {name: value.shape for name, value in values.items()}


class _ManyError(RefusedError):
    """More images than fit into the memory that a run may take."""


def _graph(data: bytes) -> memoryview:
    """The graph of a ModelProto."""
    opsets: list[tuple[str, int]] = []
    graphs: list[memoryview] = []
    for part in fields_of(memoryview(data)):
        if part.number == 7:
            graphs.append(part.message)
        elif part.number == 8:
            said = {each.number: each for each in fields_of(part.message)}
            opsets.append((said[1].text if 1 in said else "", said[2].integer if 2 in said else 0))
        elif part.number in (20, 25):
            raise RefusedError("training steps or functions of its own")
    if len(opsets) != 1 or opsets[0][0] not in STANDARD or opsets[0][1] not in OPSETS:
        raise RefusedError(f"operators of {opsets[:4]}, not of one version {OPSETS[0]} to {OPSETS[-1]} of the standard")
    if len(graphs) != 1:
        raise RefusedError(f"{len(graphs)} graphs")
    return graphs[0]


def _define(values: dict[str, _Value], name: str, value: _Value) -> None:
    if name in values:
        raise RefusedError(f"two values of the name {name[:80]!r}")
    if value.known is None and min(value.shape, default=1) < 1:
        raise RefusedError(f"the value {name[:80]!r} of {list(value.shape)}, which holds nothing")
    if len(value.shape) > _MOST_DIMENSIONS:
        raise RefusedError(f"the value {name[:80]!r} of {len(value.shape)} dimensions")
    values[name] = value


def _node(message: Field) -> _Node:
    node, attributes = _Node(), list[Field]()
    for part in fields_of(message.message):
        match part.number:
            case 1:
                node.inputs.append(part.text)
            case 2:
                node.outputs.append(part.text)
            case 4:
                node.kind = part.text
            case 5:
                attributes.append(part)
            case 7 if part.text not in STANDARD:
                raise RefusedError(f"an operator of the domain {part.text[:80]!r}")
    while node.outputs and not node.outputs[-1]:
        node.outputs.pop()  # left out
    if node.kind not in OPERATORS:
        raise RefusedError(f"the operator {node.kind[:80]!r}")
    if node.kind != "Split" and len(node.outputs) != 1:
        raise RefusedError(f"{node.kind} with {len(node.outputs)} outputs")
    for name, value in map(_attribute, attributes):
        if name in node.attributes:
            raise RefusedError(f"{node.kind} with {name[:80]!r} twice")
        node.attributes[name] = value
    if node.kind == "Cast" and node.number("to", 0) not in _TYPES:
        raise RefusedError(f"Cast to a type that none has: {node.number('to', 0)}")
    if len(node.inputs) > _MOST_INPUTS:
        raise RefusedError(f"{node.kind} of {len(node.inputs):,} inputs")
    return node


def _attribute(message: Field) -> tuple[str, Any]:
    """The name and the value, which stands where its type says and nowhere else."""
    name, listed, form, filled = "", list[int](), 0, list[int]()
    value: Any = listed
    for part in fields_of(message.message):
        match part.number:
            case 1:
                name = part.text
            case 2:
                value = 0.0  # no shape depends on one
            case 3:
                value = part.integer
            case 4:
                value = bytes(part.message[:_FEW])
            case 5:
                value = _tensor(part)[1]
            case 8:
                listed += part.integers
            case 20:
                form = part.integer
        if part.number not in (1, 13, 20):  # its name, a comment and its type
            filled.append(part.number)
    expected = _FORMS.get(form, -1)
    if set(filled) > {expected} or (form != 7 and filled != [expected]) or len(listed) > _FEW:
        raise RefusedError(f"the attribute {name[:80]!r}, which holds a graph, too much, or what none has")
    return name, value


def _declaration(message: Field) -> tuple[str, tuple[int, ...] | None]:
    """The name and the shape of a ValueInfoProto of a tensor, if it states one; 0 for sides that have a name only."""
    name, sides, types = "", list[int](), list[Field]()
    for part in fields_of(message.message):
        if part.number == 1:
            name = part.text
        elif part.number == 2:
            types.append(part)
    tensors = [each for part in types for each in fields_of(part.message) if each.number != 6]
    if len(types) > 1 or [each.number for each in tensors] != [1] * len(types):
        raise RefusedError(f"{name[:80]!r}, which is no tensor")
    shapes = [each for part in tensors for each in fields_of(part.message) if each.number == 2]
    if len(shapes) > 1:
        raise RefusedError(f"{name[:80]!r} of two shapes")
    if not shapes:
        return name, None
    for part in fields_of(shapes[0].message):
        if part.number == 1:
            sides.append(max([0, *(each.integer for each in fields_of(part.message) if each.number == 1)]))
    return name, tuple(sides)


def _tensor(message: Field) -> tuple[str, _Value]:
    """The name and the value of a TensorProto. It may not claim more numbers than it has bytes for."""
    dims, kind, name, raw, listed, elsewhere = list[int](), 0, "", memoryview(b""), list[int](), False
    for part in fields_of(message.message):
        match part.number:
            case 1:
                dims += part.integers
            case 2:
                kind = part.integer & _MASK
            case 7:
                listed += part.integers
            case 8:
                name = part.text
            case 9:
                raw = part.message
            case 13 | 14:
                elsewhere |= part.number == 13 or part.value != 0
    if elsewhere:
        raise ElsewhereError(name[:80] or "(unnamed)")
    if kind not in _TYPES:
        raise RefusedError(f"the tensor {name[:80]!r} of a type that none has: {kind}")
    shape = tuple(dims)
    if len(dims) > _MOST_DIMENSIONS or min(dims, default=0) < 0 or (size := math.prod(dims)) > len(message.raw):
        raise RefusedError(f"the tensor {name[:80]!r} of {dims[:_MOST_DIMENSIONS]}, more than the file holds")
    if kind != _INT64 or size > _FEW:
        return name, _Value(shape)
    numbers = (
        np.frombuffer(raw[: 8 * size], dtype="<i8") if len(raw) >= 8 * size > 0 else np.array(listed, dtype=np.int64)
    )
    return name, _Value(shape, numbers.reshape(shape) if numbers.size == size else None)


def _results(node: _Node, x: list[Any]) -> list[_Value]:
    """The values that a node gives."""
    if node.kind == "Constant":
        (value,) = node.attributes.values()
        if not isinstance(value, int | list):
            return [value if isinstance(value, _Value) else _Value(())]
        known: NDArray[np.int64] | None = np.array(value, dtype=np.int64)
    elif node.kind == "Shape":
        which = slice(node.number("start", 0), node.number("end", len(x[0].shape)))
        known = np.array(x[0].shape[which], dtype=np.int64)
    elif node.kind in _VIEWS:
        known = x[0].known if node.kind != "Cast" or node.number("to", 0) == _INT64 else None
        # An array that takes no memory, whatever its shape: only views of it are made.
        result = _view(node, x, np.broadcast_to(np.int8(0), x[0].shape) if known is None else known)
        if known is None:
            return [_Value(result.shape)]
        known = result
    else:
        known = _computed(node, x) if all(one is not None and one.known is not None for one in x) else None
    if known is not None:
        return [_Value(known.shape, known if known.size <= _FEW else None)]
    made = _shape(node, x)
    return [_Value(tuple(one)) for one in (made if isinstance(made, list) else [made])]


def _computed(node: _Node, x: list[Any]) -> NDArray[np.int64] | None:
    """What puts shapes together. None calculates with them: what an exporter can calculate, it has."""
    known, axis = [one.known for one in x], node.number("axis", 0)
    match node.kind:
        case "Concat":
            return np.concatenate(known, axis)
        case "Gather":
            return np.asarray(known[0].take(known[1], axis))
        case "Range" if len(whole := range(*map(int, known))) <= _FEW:
            return np.array(whole, dtype=np.int64)
    return None


def _view(node: _Node, x: list[Any], array: NDArray[Any]) -> NDArray[Any]:
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


def _shape(node: _Node, x: list[Any]) -> Any:
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


def _product(node: _Node, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    a, b = a[::-1] if node.number("transA", 0) else a, b[::-1] if node.number("transB", 0) else b
    if a[-1] != b[-2:][0]:
        raise RefusedError(f"{node.kind} of {list(a)} and {list(b)}")
    return (*np.broadcast_shapes(a[:-2], b[:-2]), *a[-2:-1], *b[-1:][: len(b) - 1])


def _windows(node: _Node, sides: Sequence[int], kernel: Sequence[int]) -> list[int]:
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


def _costs(node: _Node, x: list[Any], made: list[_Value]) -> tuple[int, int]:
    """About how many multiplications a node takes, and how many values it may need on the way."""
    size = sum(one.size for one in made)
    work, room = _CALL
    if node.kind in ("MatMul", "Gemm"):
        calls = math.prod(made[0].shape[:-2])
        return size * max(x[0].shape[-2:]) + work * calls, room * calls
    if node.kind == "Conv":
        window, calls = math.prod(x[1].shape[1:]), made[0].shape[0] * node.number("group", 1)
        written_out = window * math.prod(made[0].shape[2:])  # every window of one image
        return size * window + work * calls, written_out + room * calls
    each = math.prod(node.numbers("kernel_shape", ()))  # of pooling
    return WORK_OF_VALUE * (size * each + sum(one.size for one in x if one is not None)), 0
