"""Reads files of `torch.save` without running anything in them: an interpreter of pickle that calls nothing.

A pickle is a program for a stack machine. Its instructions name functions and classes, which Python's own reader
imports and calls. Here a name stays a name: only torch's functions that rebuild a tensor, and the two dictionaries in
which libraries keep their weights, are carried out, by this module's own code. Everything else (`argparse.Namespace`,
numpy's numbers, whole modules, `os.system`) becomes a `StandIn`, which holds what it was given and does nothing.

The instructions are read by the standard library (`pickletools`); the file formats are those of torch.serialization.
"""

from __future__ import annotations

import math
import mmap
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from .bounds import MOST_DIMENSIONS, MOST_INSTRUCTIONS, MOST_PICKLED
from .inputs import open_regular

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # before the state in the format that torch wrote until version 1.6

_DTYPES: dict[str, torch.dtype] = {
    f"torch.{kind}Storage": dtype
    for kind, dtype in {
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
        "ComplexFloat": torch.complex64,
        "ComplexDouble": torch.complex128,
        "QInt8": torch.int8,
        "QUInt8": torch.uint8,
        "QInt32": torch.int32,
    }.items()
}
_BYTES = ("torch.storage.UntypedStorage", "torch.UntypedStorage")  # a storage without a type
_DICTIONARIES = ("collections.OrderedDict", "collections.defaultdict")


class UnreadableError(ValueError):
    """The file is not one of `torch.save`, is damaged, or asks for more than a checkpoint does."""


@dataclass(eq=False, repr=False)
class StandIn:
    """An object of a class, or the result of a function, that was not imported.

    Attributes:
        name: the class or function, such as `argparse.Namespace`.
        arguments: what it was called with; None for the class or function itself.
        items: what was put into it as into a dictionary.
        state: what its attributes would be, or what its `__setstate__` would get.
    """

    name: str
    arguments: tuple[Any, ...] | None = None
    items: dict[Any, Any] = field(default_factory=dict)
    state: Any = None

    @property
    def entries(self) -> dict[Any, Any]:
        """Its items and its attributes in one dictionary."""
        return {**(self.state if isinstance(self.state, Mapping) else {}), **self.items}


@dataclass(frozen=True, eq=False)
class _Storage:
    """The memory of one or several tensors: its bytes, uint8 `[n]`, and the type of its values."""

    raw: Tensor
    dtype: torch.dtype


# Finds the bytes of a storage, uint8 `[n]`, by its key; the second argument is the size of a value in bytes.
_Place = Callable[[str, int], Tensor]


def read_checkpoint(path: Path) -> object:
    """The object in a file of `torch.save`: nested dictionaries, lists and plain values, tensors, and stand-ins.

    Tensors are views of the file where its layout allows it, private to this process.

    Raises:
        UnreadableError, or any other error of a damaged file.
        OSError: the file cannot be read.
    """
    with open_regular(path) as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # what is written into it stays in this process
        return _from_zip(file, mapped) if mapped[:2] == b"PK" else _from_pickles(mapped)


def read_state(body: bytes) -> object:
    """The object in the bytes of a file of `torch.save` in today's format, if all that it calls makes plain values.

    Raises:
        UnreadableError: also where it names a function or class that is none of torch's for tensors; or any other error
            of damaged bytes.
    """
    return _from_zip(BytesIO(body), bytearray(body), strict=True)


def _from_zip(file: IO[bytes], whole: mmap.mmap | bytearray, strict: bool = False) -> object:
    """The format since torch 1.6: `NAME/data.pkl`, and one member `NAME/data/KEY` for each storage."""
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        pickled = next((name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")), None)
        if pickled is None:
            raise UnreadableError("a zip archive without data.pkl")
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}constants.pkl" in members:
            raise UnreadableError("a TorchScript archive")
        if f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") != b"little":
            raise UnreadableError("numbers in big-endian byte order")
        if members[pickled].file_size > MOST_PICKLED:
            raise UnreadableError(f"a pickle of {members[pickled].file_size:,} bytes")

        def place(key: str, itemsize: int) -> Tensor:
            member = members[f"{folder}data/{key}"]
            if member.compress_type != zipfile.ZIP_STORED:
                raise UnreadableError("compressed values, which torch.save does not write")
            file.seek(member.header_offset)
            header = file.read(30)  # of the member: its last two numbers are the lengths of its name and extra field
            start = member.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
            return _slice(whole, start, member.file_size)

        return _Machine(place, strict).run(BytesIO(archive.read(pickled)))


def _from_pickles(file: mmap.mmap) -> object:
    """The older format: three pickles of numbers, the state, the keys of its storages, and their values in that order.

    A file that begins with the state itself, as plain `pickle` writes it, has no storages.
    """
    first = _Machine(_no_storage).run(file)
    if first != MAGIC:
        return first
    if _Machine(_no_storage).run(file) != PROTOCOL:
        raise UnreadableError("an unknown version of torch's format")
    about = _Machine(_no_storage).run(file)
    if not isinstance(about, dict) or about.get("little_endian") is not True:
        raise UnreadableError("numbers in big-endian byte order")
    state, itemsizes = file.tell(), dict[str, int]()

    def measure(key: str, itemsize: int) -> Tensor:
        itemsizes[key] = itemsize
        return torch.empty(len(file), dtype=torch.uint8, device="meta")

    _Machine(measure).run(file)  # the values come after it, and only it says how large each is
    keys = _Machine(_no_storage).run(file)
    if not isinstance(keys, list):
        raise UnreadableError("no list of storages")
    start, values = file.tell(), dict[str, Tensor]()
    for key in map(_key, keys):
        (count,) = struct.unpack("<q", file[start : start + 8])
        values[key] = _slice(file, start + 8, count * itemsizes.get(key, 1))
        start += 8 + len(values[key])
    file.seek(state)
    return _Machine(lambda key, _: values[key]).run(file)


def _no_storage(key: str, itemsize: int) -> Tensor:
    raise UnreadableError("a tensor whose values are not in the file")


def _slice(whole: Tensor | mmap.mmap | bytearray, start: int, nbytes: int) -> Tensor:
    """These bytes of the file, as a storage of their own: `torch.set_rng_state` reads a storage from its beginning. A
    copy where a tensor of larger values could not view them."""
    if not 0 <= start <= start + nbytes <= len(whole):
        raise UnreadableError(f"cut short: {start + nbytes - len(whole):,} bytes are missing")
    if not nbytes:  # which `frombuffer` refuses
        return torch.empty(0, dtype=torch.uint8)
    if isinstance(whole, Tensor):  # a part of a storage
        raw = whole[start : start + nbytes]
    else:
        raw = torch.frombuffer(whole, dtype=torch.uint8, offset=start, count=nbytes)
    return raw if start % 16 == 0 else raw.clone()


_MADE: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,  # nothing here looks into a set
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
}
_KEYS = (str, bytes, int, float, bool, type(None))  # other keys may take for ever to hash, and name no weights


class _Machine:
    """The stack machine that a pickle is a program for. `place` finds the bytes of a storage; a `strict` machine
    refuses every function and class that it does not carry out."""

    def __init__(self, place: _Place, strict: bool = False) -> None:
        self._place, self._strict = place, strict
        self._left = MOST_INSTRUCTIONS  # items that calls may copy: their arguments may stand in for them many times
        self._storages: dict[str, Tensor] = {}
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, file: IO[bytes] | mmap.mmap) -> Any:
        """The object that one pickle makes; `file` is then behind it."""
        for count, (instruction, argument, _) in enumerate(pickletools.genops(file)):  # type: ignore[arg-type]  # a mmap reads too
            name = instruction.name
            if count >= MOST_INSTRUCTIONS:
                raise UnreadableError(f"a pickle of more than {MOST_INSTRUCTIONS:,} instructions")
            if name in _MADE:
                self._stack.append(_MADE[name]())
            elif not (self._remember(name, argument) or self._collect(name) or self._call(name, argument)):
                if argument is None and name not in ("PROTO", "FRAME", "STOP"):
                    raise UnreadableError(f"an instruction that torch.save does not write: {name}")
                if name not in ("PROTO", "FRAME", "STOP"):  # a number, text or bytes
                    self._stack.append(argument)
        return self._stack.pop()

    def _since_mark(self) -> list[Any]:
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _remember(self, name: str, argument: Any) -> bool:
        """Carries out an instruction about the memo; False for others."""
        if name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[argument])
        else:
            return False
        return True

    def _collect(self, name: str) -> bool:
        """Carries out an instruction about the stack, lists, tuples and dictionaries; False for others."""
        stack = self._stack
        match name:
            case "MARK":
                self._marks.append(len(stack))
            case "POP_MARK":
                self._since_mark()
            case "POP" if self._marks and self._marks[-1] == len(stack):
                self._marks.pop()
            case "POP":
                stack.pop()
            case "DUP":
                stack.append(stack[-1])
            case "LIST" | "FROZENSET":
                stack.append(self._since_mark())
            case "TUPLE":
                stack.append(tuple(self._since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                parts = [stack.pop() for _ in range(int(name[-1]))]
                stack.append(tuple(reversed(parts)))
            case "DICT":
                stack.append(_put({}, self._since_mark()))
            case "APPEND":
                items = [stack.pop()]
                _extend(stack[-1], items)
            case "APPENDS" | "ADDITEMS":
                items = self._since_mark()
                _extend(stack[-1], items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _put(stack[-1], [key, value])
            case "SETITEMS":
                items = self._since_mark()
                _put(stack[-1], items)
            case _:
                return False
        return True

    def _call(self, name: str, argument: Any) -> bool:
        """Carries out an instruction that would import or call something; False for others."""
        stack = self._stack
        match name:
            case "GLOBAL":
                stack.append(self._named(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                last, module = stack.pop(), stack.pop()
                known = isinstance(module, str) and isinstance(last, str)
                stack.append(self._named(f"{module}.{last}" if known else "?"))
            case "EXT1" | "EXT2" | "EXT4":
                stack.append(self._named(f"copyreg extension {argument}"))
            case "INST":
                stack.append(self._result(self._named(argument.replace(" ", ".", 1)), tuple(self._since_mark())))
            case "OBJ":
                made, *arguments = self._since_mark()
                stack.append(self._result(made, tuple(arguments)))
            case "REDUCE" | "NEWOBJ":
                arguments, made = stack.pop(), stack.pop()
                stack.append(self._result(made, arguments))
            case "NEWOBJ_EX":
                _, arguments, made = stack.pop(), stack.pop(), stack.pop()
                stack.append(self._result(made, arguments))
            case "BUILD":
                state, made = stack.pop(), stack[-1]
                if isinstance(made, StandIn):
                    made.state = state[0] if isinstance(state, tuple) and state else state  # (attributes, slots)
                elif isinstance(made, OrderedDict) and isinstance(state, dict):
                    vars(made).update({key: value for key, value in state.items() if key == "_metadata"})
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case _:
                return False
        return True

    def _named(self, name: str) -> StandIn:
        if self._strict and name not in _CARRIED_OUT and name.replace("torch.cuda.", "torch.") not in _TYPES:
            raise UnreadableError(f"it names {name[:80]}, which no checkpoint needs")
        return StandIn(name)

    def _count(self, items: int) -> None:
        self._left -= items
        if self._left < 0:
            raise UnreadableError(f"calls with more than {MOST_INSTRUCTIONS:,} items")

    def _result(self, function: object, arguments: object) -> Any:
        """What stands for the result of a call: a tensor, a dictionary, or a stand-in."""
        if not isinstance(arguments, tuple):
            raise UnreadableError("a call without arguments")
        if not isinstance(function, StandIn) or function.arguments is not None:
            return StandIn("?", arguments)
        if function.name in _DICTIONARIES:
            pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
            if self._strict and arguments and pairs is not arguments[0]:
                raise UnreadableError("a dictionary of no pairs")
            self._count(sum(len(pair) for pair in pairs))
            return _put(OrderedDict(), [part for pair in pairs for part in pair])
        if function.name in _WRAPPERS:
            return arguments[0]
        if function.name == "torch.Size":
            self._count(len(arguments[0]))
            return tuple(arguments[0])
        if function.name == "torch._tensor._rebuild_from_type_v2":
            if _is_rebuilder(arguments[0]):  # (function, type, its arguments, state)
                return self._result(arguments[0], arguments[2])
            return StandIn(function.name, arguments)
        if function.name in _REBUILDERS:
            self._count(sum(len(each) for each in arguments if isinstance(each, tuple | list)))
            return _REBUILDERS[function.name](*arguments)
        return StandIn(function.name, arguments)

    def _storage(self, identifier: object) -> _Storage | StandIn:
        """The storage of a persistent id `("storage", type, key, location, values[, view])`."""
        if not isinstance(identifier, tuple) or identifier[0] != "storage" or len(identifier) > 6:
            return StandIn("a persistent id", identifier if isinstance(identifier, tuple) else ())
        _, kind, key, _, _, *view = identifier
        name = kind.name.replace("torch.cuda.", "torch.") if isinstance(kind, StandIn) else ""
        dtype = torch.uint8 if name in _BYTES else _DTYPES[name]
        key = _key(key)
        if key not in self._storages:
            self._storages[key] = self._place(key, dtype.itemsize)
        raw = self._storages[key]
        if view and view[0] is not None:  # (key, offset, values) of a part of it, in files of torch before 0.4
            _, start, count = view[0]
            raw = _slice(raw, start * dtype.itemsize, count * dtype.itemsize)
        return _Storage(raw, dtype)


def _extend(target: object, items: list[Any]) -> None:
    """Appends to a list. A stand-in for a list or a set takes nothing: no weights are in one."""
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, StandIn):
        raise UnreadableError("a list was expected")


def _put(target: Any, items: list[Any]) -> Any:
    """`target`, a dictionary or the stand-in for one, with these alternating keys and values."""
    into = target.items if isinstance(target, StandIn) else target
    if not isinstance(into, dict) or len(items) % 2:
        raise UnreadableError("pairs for a dictionary were expected")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) in _KEYS:
            into[key] = value
    return target


def _key(key: object) -> str:
    """The name of a storage: text, or a number in old files. What else there may be takes for ever to write out."""
    if not isinstance(key, str | int):
        raise UnreadableError("a storage without a name")
    return str(key)


def _rebuilt(
    storage: object, offset: int, size: Any, stride: Any, *_: object, dtype: torch.dtype | None = None
) -> Tensor:
    """The tensor over these values of a storage, none of which lies outside of it."""
    if not isinstance(storage, _Storage):
        raise UnreadableError("a tensor without a storage")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or len(size) > MOST_DIMENSIONS or any(type(n) is not int or n < 0 for n in numbers):
        raise UnreadableError("a tensor of no possible shape")
    dtype = dtype or storage.dtype
    values = storage.raw[: len(storage.raw) // dtype.itemsize * dtype.itemsize].view(dtype)
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    if math.prod(size) >= 2**60 or (0 not in size and last >= len(values)):
        raise UnreadableError(f"a tensor of more values than the {len(values):,} of its storage")
    if 0 in size:
        return values.new_empty(size)
    return values.as_strided(size, stride, values.storage_offset() + offset)  # counted from the start of the file


def _rebuilt_by_type(storage: object, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    """The same from a storage of bytes; after the stride come two flags, the type, and metadata."""
    return _rebuilt(storage, offset, size, stride, dtype=_dtype(rest[2]))


def _rebuilt_without_values(kind: Any, size: Any, *_: object) -> Tensor:
    return torch.empty(tuple(size), dtype=_dtype(kind), device="meta")


def _rebuilt_sparse(_: object, parts: Any) -> Tensor:
    """A sparse tensor of this size without its values: no encoder has one, and its name is enough for an error."""
    size = tuple(parts[2])
    return torch.sparse_coo_tensor(
        torch.empty((len(size), 0), dtype=torch.int64), torch.empty(0), size, check_invariants=True
    )


def _dtype(kind: object) -> torch.dtype:
    """The type behind a name such as `torch.float32`."""
    known = {str(dtype): dtype for dtype in (*_DTYPES.values(), *_SMALL)}
    return known[kind.name if isinstance(kind, StandIn) else ""]


_SMALL = (torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64)
_WRAPPERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_REBUILDERS: dict[str, Callable[..., Tensor]] = {
    "torch._utils._rebuild_tensor": _rebuilt,
    "torch._utils._rebuild_tensor_v2": _rebuilt,
    "torch._utils._rebuild_tensor_v3": _rebuilt_by_type,
    "torch._utils._rebuild_qtensor": _rebuilt,  # its whole numbers, which no encoder here takes
    "torch._utils._rebuild_meta_tensor_no_storage": _rebuilt_without_values,
    "torch._utils._rebuild_sparse_tensor": _rebuilt_sparse,
}


_CARRIED_OUT = {*_REBUILDERS, *_WRAPPERS, *_DICTIONARIES, "torch.Size", "torch._tensor._rebuild_from_type_v2"}
_TYPES = {*_DTYPES, *_BYTES, *(str(dtype) for dtype in (*_DTYPES.values(), *_SMALL)), "torch.Tensor"}


def _is_rebuilder(function: object) -> bool:
    return isinstance(function, StandIn) and function.arguments is None and function.name in _REBUILDERS
