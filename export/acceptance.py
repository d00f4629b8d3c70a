"""Whether a model may be run: judged by its operators and its shapes, before onnxruntime opens the file.

onnxruntime does whatever a graph says, some of it while it loads: a Loop of 2⁶² rounds, a value of a terabyte. So a
file is accepted only if its operators are those of image encoders, none of which holds a graph of its own, and if the
shapes, followed from `images` `[batch, S, S, 3]` through all nodes, stay within the bounds of `engine/bounds.py`. They
are followed again for each size of a batch that is run, for a graph may depend on it in any way. What is followed
(`shapes.py`) must be what onnxruntime does, exactly: each difference is a way around the bounds.

https://github.com/onnx/onnx/blob/main/onnx/onnx.proto for the numbers of fields. Imports neither torch nor onnx.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

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
from .shapes import FEW, INT64, OPERATORS, Node, RefusedError, Value, results

OPSETS = range(18, 31)  # versions of the standard's operators
STANDARD = ("", "ai.onnx")  # the standard's domain
_MOST_DIMENSIONS, _MOST_INPUTS = 8, 256
_CALL = 1 << 14, 32  # multiplications and values for each of many small products
_INLINED = {"GroupNormalization": 25}  # operators that onnxruntime loads as so many others
# TensorProto.DataType: fp32, uint8, int8, int32, int64, bool, fp16. Others cost more than a value.
_TYPES = (1, 2, 3, 6, INT64, 9, 10)
_FORMS, _INTS = (1, 2, 3, 4, 7), 7  # AttributeProto.type: float, int, text, tensor, list of ints; its field is the next


class ElsewhereError(RefusedError):
    """The values of a tensor lie in another file; says which tensor."""


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
        self._fixed: dict[str, Value] = {}  # initializers
        self._nodes: list[Node] = []
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
        self.fitting(1)

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
        _define(values, "images", Value((images, *(self._image_size,) * 2, 3)))
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
                made = results(node, x)
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
        shapes = {name: value.shape for name, value in values.items()}
        for name, sides in self._declared.items():
            shape = shapes.get(name, sides)
            if len(sides) != len(shape) or any(said not in (0, side) for said, side in zip(sides, shape, strict=True)):
                raise RefusedError(f"{name[:80]!r} of {list(shape)}, said to be {list(sides)}")
        return shapes


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


def _define(values: dict[str, Value], name: str, value: Value) -> None:
    if name in values:
        raise RefusedError(f"two values of the name {name[:80]!r}")
    if value.known is None and min(value.shape, default=1) < 1:
        raise RefusedError(f"the value {name[:80]!r} of {list(value.shape)}, which holds nothing")
    if len(value.shape) > _MOST_DIMENSIONS:
        raise RefusedError(f"the value {name[:80]!r} of {len(value.shape)} dimensions")
    values[name] = value


def _node(message: Field) -> Node:
    node, attributes = Node(), list[Field]()
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
                value = bytes(part.message[:FEW])
            case 5:
                value = _tensor(part)[1]
            case 8:
                listed += part.integers
            case 20:
                form = part.integer
        if part.number not in (1, 13, 20):  # its name, a comment and its type
            filled.append(part.number)
    fits = filled == [form + 1] or (form == _INTS and {*filled} <= {form + 1})
    if form not in _FORMS or not fits or len(listed) > FEW:
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


def _tensor(message: Field) -> tuple[str, Value]:
    """The name and the value of a TensorProto. It may not claim more numbers than it has bytes for."""
    dims, kind, name, raw, listed, elsewhere = list[int](), 0, "", memoryview(b""), list[int](), False
    for part in fields_of(message.message):
        match part.number:
            case 1:
                dims += part.integers
            case 2:
                kind = part.integer
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
    if kind != INT64 or size > FEW:
        return name, Value(shape)
    numbers = (
        np.frombuffer(raw[: 8 * size], dtype="<i8") if len(raw) >= 8 * size > 0 else np.array(listed, dtype=np.int64)
    )
    return name, Value(shape, numbers.reshape(shape) if numbers.size == size else None)


def _costs(node: Node, x: list[Any], made: list[Value]) -> tuple[int, int]:
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
