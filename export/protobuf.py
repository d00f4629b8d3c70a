"""Reads protobuf messages field by field, with the standard library alone: the light install has no `onnx`.

https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from simclr_engine.bounds import MOST_NUMBERS

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class MalformedError(ValueError):
    """The bytes are not a whole protobuf message."""


@dataclass(frozen=True)
class Field:
    """One field: its number, its value (an int for a varint, else the payload), and all of its bytes with the tag.

    A payload of the fixed four or eight bytes of a number is neither text nor message: a reader that expects those
    passes it over, and what stands there would be read by one program and not by the other.
    """

    number: int
    value: int | memoryview
    raw: memoryview
    fixed: bool = False

    @property
    def text(self) -> str:
        """The payload as UTF-8."""
        try:
            return bytes(self.message).decode("utf-8")
        except UnicodeDecodeError as error:
            raise MalformedError(f"field {self.number} is not UTF-8") from error

    @property
    def message(self) -> memoryview:
        """The payload."""
        if isinstance(self.value, int) or self.fixed:
            raise MalformedError(f"field {self.number} holds a number where text or a message belongs")
        return self.value

    @property
    def integer(self) -> int:
        """The whole number, 64 bits with sign. Elsewhere than in lists, protobuf passes packed ones over."""
        if not isinstance(self.value, int):
            raise MalformedError(f"field {self.number} holds no whole number")
        return _signed(self.value)

    @property
    def integers(self) -> list[int]:
        """The whole numbers, 64 bits with sign: one, or several that are packed."""
        if isinstance(self.value, int):
            return [_signed(self.value)]
        at, found = 0, list[int]()
        if len(self.message) > MOST_NUMBERS:
            raise MalformedError(f"field {self.number} holds {len(self.message):,} bytes of packed numbers")
        while at < len(self.message):
            value, at = varint_at(self.message, at)
            found.append(_signed(value))
        return found


def fields_of(message: memoryview) -> Iterator[Field]:
    """The fields of one message, in file order."""
    at, end = 0, len(message)
    while at < end:
        start = at
        tag, at = varint_at(message, at)
        number, wire_type = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:  # some readers look at 32 bits of a tag only
            raise MalformedError(f"no protobuf field at byte {start}")
        if wire_type == VARINT:
            value, at = varint_at(message, at)
            yield Field(number, value, message[start:at])
            continue
        if wire_type == BYTES:
            length, at = varint_at(message, at)
        elif wire_type in (FIXED32, FIXED64):
            length = 4 if wire_type == FIXED32 else 8
        else:
            raise MalformedError(f"no protobuf field at byte {start}")
        if at + length > end:
            raise MalformedError(f"cut short: field {number} needs {at + length - end:,} bytes more")
        yield Field(number, message[at : at + length], message[start : at + length], wire_type != BYTES)
        at += length


def varint_at(message: memoryview, at: int) -> tuple[int, int]:
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


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value
