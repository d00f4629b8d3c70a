"""What an ONNX file says about itself, read from its bytes with the standard library alone.

The light install has no `onnx`, and a file must be judged before onnxruntime opens it. An ONNX file is one protobuf
message, so a walk over its fields is enough: https://protobuf.dev/programming-guides/encoding/ for the encoding,
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto for the field numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
IR_VERSION, GRAPH, METADATA = 1, 7, 14  # fields of ModelProto

# The messages in which a tensor can hide: field number -> the kind of message it holds.
NESTED: dict[str, dict[int, str]] = {
    "model": {GRAPH: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
TENSOR_NAME, TENSOR_EXTERNAL_DATA, TENSOR_DATA_LOCATION = 8, 13, 14
DEEPEST = 64  # levels of nesting; our own files have four


class MalformedError(ValueError):
    """The bytes are not a whole protobuf message."""


@dataclass(frozen=True)
class Field:
    """One field: its number, its value (an int for a varint, else the payload), and all of its bytes with the tag."""

    number: int
    value: int | memoryview
    raw: memoryview

    @property
    def text(self) -> str:
        """The payload as UTF-8."""
        if isinstance(self.value, int):
            raise MalformedError(f"field {self.number} holds a number where text belongs")
        try:
            return bytes(self.value).decode("utf-8")
        except UnicodeDecodeError as error:
            raise MalformedError(f"field {self.number} is not UTF-8") from error


@dataclass(frozen=True)
class Content:
    """What `scan` found.

    Attributes:
        properties: the file's metadata_props, as they stand.
        digest: sha256 (64 hex digits) of every byte of the file but those of the property `without`.
        external: names of the tensors whose values lie in another file.
    """

    properties: dict[str, str]
    digest: str
    external: tuple[str, ...]


def scan(data: bytes, without: str) -> Content:
    """Walks the whole file once.

    Args:
        data: the file.
        without: key of the metadata property that is left out of the digest, since it holds the digest.

    Raises:
        MalformedError: cut short, not a protobuf message, or no model with a graph.
    """
    properties: dict[str, str] = {}
    digest, numbers = hashlib.sha256(), set()
    for field in _fields(memoryview(data)):
        numbers.add(field.number)
        if field.number == METADATA:
            key, value = _entry(field)
            if key in properties:
                raise MalformedError(f"metadata property {key!r} stands twice")
            properties[key] = value
            if key == without:
                continue
        digest.update(field.raw)
    if IR_VERSION not in numbers or GRAPH not in numbers:
        raise MalformedError("no ONNX model: it has no graph")
    return Content(properties, digest.hexdigest(), tuple(_external(memoryview(data), "model", 0)))


def _entry(field: Field) -> tuple[str, str]:
    """Key and value of a StringStringEntryProto."""
    parts = {1: "", 2: ""}
    for part in _fields(_message(field)):
        parts[part.number] = part.text
    return parts[1], parts[2]


def _external(message: memoryview, kind: str, depth: int) -> Iterator[str]:
    """Names of the tensors in `message` that keep their values elsewhere."""
    if depth > DEEPEST:
        raise MalformedError("nested too deeply")
    name, external = "", False
    for field in _fields(message):
        if kind == "tensor":
            if field.number == TENSOR_NAME:
                name = field.text
            external |= field.number == TENSOR_EXTERNAL_DATA
            external |= field.number == TENSOR_DATA_LOCATION and field.value != 0
        elif field.number in NESTED[kind]:
            yield from _external(_message(field), NESTED[kind][field.number], depth + 1)
    if external:
        yield name or "(unnamed)"


def _message(field: Field) -> memoryview:
    if isinstance(field.value, int):
        raise MalformedError(f"field {field.number} holds a number where a message belongs")
    return field.value


def _fields(message: memoryview) -> Iterator[Field]:
    """The fields of one message, in file order."""
    at, end = 0, len(message)
    while at < end:
        start = at
        tag, at = _varint(message, at)
        number, wire_type = tag >> 3, tag & 7
        if number == 0:
            raise MalformedError(f"no protobuf field at byte {start}")
        if wire_type == VARINT:
            value, at = _varint(message, at)
            yield Field(number, value, message[start:at])
            continue
        if wire_type == BYTES:
            length, at = _varint(message, at)
        elif wire_type in (FIXED32, FIXED64):
            length = 4 if wire_type == FIXED32 else 8
        else:
            raise MalformedError(f"no protobuf field at byte {start}")
        if at + length > end:
            raise MalformedError(f"cut short: field {number} needs {at + length - end:,} bytes more")
        yield Field(number, message[at : at + length], message[start : at + length])
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The base-128 number at `at` and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise MalformedError("cut short inside a number")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise MalformedError("a number of more than ten bytes")
