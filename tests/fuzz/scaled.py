"""Hostile files in every size: small ones that claim or unpack to much, and long ones that a slow reader dies of.

Each maker takes a number from 1 to `LARGEST` and gives a file whose cost to a careless reader grows with it, or with
its square. `make fuzz` feeds one such file in fifty; the bounds of `engine/bounds.py` must hold for all of them.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from .graphs import random_graph
from .mutation import message
from .seeds import PART, Seed

LARGEST = 1 << 17
HUGE = 1 << 62


def scaled(reader: str, rng: Random) -> Seed:
    """A hostile file for a reader, of a size from 1 to `LARGEST`, the small ones as often as the large ones."""
    suffix, make = rng.choice(MAKERS[reader])
    return Seed(make(int(2 ** rng.uniform(0, LARGEST.bit_length() - 1))), "bytes", suffix)


def _tar(header: bytes, body: bytes = b"", times: int = 1) -> bytes:
    whole = (header + body + bytes(-len(body) % 512)) * times + tarfile.TarInfo("ant/1.png").tobuf() + bytes(1024)
    return gzip.compress(whole, 1, mtime=0)


def _member(kind: bytes, nbytes: int, name: str = "ant/1.png") -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, nbytes
    return member.tobuf(tarfile.GNU_FORMAT)


def _sparse(n: int) -> bytes:
    header = bytearray(_member(tarfile.GNUTYPE_SPARSE, 0))
    header[482], header[483:495] = 1, b"00000001000\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    block = (b"00000001000\0" * 42).ljust(504, b"\0")
    return _tar(bytes(header), (block + b"\1" + bytes(7)) * (n // 8) + bytes(512))


def _pax(records: bytes, kind: bytes = tarfile.XHDTYPE, times: int = 1) -> bytes:
    return _tar(_member(kind, len(records), "pax"), records, times)


def _zip_of(n: int, name: Callable[[int], str], data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for at in range(n):
            archive.writestr(name(at), data)
    return buffer.getvalue()


def _png(n: int) -> bytes:
    """As many pixels as n times 640, all there, with transparency."""
    side = int((640 * n) ** 0.5) + 1
    rows = zlib.compressobj(1)
    body = b"".join(rows.compress(bytes(4 * side + 1)) for _ in range(side)) + rows.flush()
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)), (b"IDAT", body), (b"IEND", b""))
    parts = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _jpeg(n: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (1000, 1000)).save(buffer, "JPEG", progressive=True)
    raw = buffer.getvalue()
    return raw[:-2] + raw[raw.rindex(b"\xff\xda") : -2] * n + raw[-2:]


def _frames(n: int, form: str) -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("L", (8, 8), at % 256) for at in range(min(n, 500))]
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def _tiff(n: int) -> bytes:
    data = zlib.compress(bytes(256))
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: 16 * (n // 16 + 1), 323: 16 * (n // 16 + 1), 324: 8}
    tags |= {325: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def _pickled(body: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + body)
        archive.writestr("a/data/0", bytes(16))
    return buffer.getvalue()


def _footed(body: bytes) -> bytes:
    from .seeds import footed

    return footed(_pickled(body))


def _number(n: int) -> bytes:
    return b"\x8a\x08" + n.to_bytes(8, "little")


def _shared(n: int, call: bytes) -> bytes:
    """A list of n items in a memo, and n calls with it."""
    return b"](" + b"N" * n + b"eq\x000](" + call * n + b"e."


def _expanded(n: int) -> bytes:
    """A tensor of n × n × n values, all of them one."""
    stored = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ"
    size = b"(" + _number(n) * 3 + b"t(K\0K\0K\0t"
    one = b"ctorch._utils\n_rebuild_tensor_v2\n(" + stored + b"K\0" + size + b"\x89}tR"
    names = [f"{prefix}.layer1.0.conv1.weight".encode() for prefix in "ab"]
    return b"}(" + b"".join(b"X" + struct.pack("<I", len(name)) + name + one for name in names) + b"u."


def _onnx(nodes: list[tuple[str, list[str], list[str], dict[str, Any]]], **constants: list[int]) -> bytes:
    """A model of ours with other nodes before its own: kind, inputs, outputs, attributes."""
    from .seeds import onnx_of

    rows = []
    for kind, inputs, outputs, attributes in nodes:
        parts: list[tuple[int, int | bytes]] = [(1, name.encode()) for name in inputs]
        parts += [(2, name.encode()) for name in outputs] + [(4, kind.encode())]
        for name, value in attributes.items():
            listed = value if isinstance(value, list) else [value]
            kind_of = (20, 7 if isinstance(value, list) else 2)
            field = 8 if isinstance(value, list) else 3
            parts.append((5, message([(1, name.encode()), *((field, each) for each in listed), kind_of])))
        rows.append(message(parts))
    tensors = [
        message([(1, len(values)), (2, 7), (8, name.encode()), (9, np.array(values, dtype="<i8").tobytes())])
        for name, values in constants.items()
    ]
    return onnx_of(rows, tensors)


def _chain(n: int, kind: str) -> bytes:
    names = ["images", *(f"c{at}" for at in range(min(n, 4000)))]
    attributes = {"axis": 2} if kind == "Concat" else {}
    return _onnx([(kind, [a, a], [b], attributes) for a, b in pairwise(names)])


def _npy(n: int, shape: str) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + bytes(min(n, 4096))


def _npz(n: int) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict.fromkeys(("rows", "truth", "predicted"), np.zeros(n * 200)))
    return buffer.getvalue()


Maker = Callable[[int], bytes]
MAKERS: dict[str, list[tuple[str, Maker]]] = {
    "archive": [
        (".tar.gz", _sparse),
        (".tar.gz", lambda n: _pax(b"11 GNU.sparse.major=1\n" + b"1" * 8 * n)),
        (".tar.gz", lambda n: _pax(b"2 " * 4 * n)),
        (".tar.gz", lambda n: _pax(b"27 GNU.sparse.offset=00001\n" * n)),
        (".tar.gz", lambda n: _pax(b"14 k%07d=\n" % n, tarfile.XGLTYPE, n)),
        (".tar.gz", lambda n: _tar(_member(tarfile.GNUTYPE_LONGNAME, n), b"a" * n, 20)),
        (".tar.gz", lambda n: _tar(_member(tarfile.REGTYPE, 0), times=n)),
        (".tar.gz", lambda n: _tar(_member(tarfile.REGTYPE, 200 * n), bytes(200 * n))),
        (".tar", lambda n: gzip.decompress(_tar(_member(tarfile.REGTYPE, n * n)))),
        (".zip", lambda n: _zip_of(n // 16 + 1, lambda at: f"{at}.png", b"")),
        (".zip", lambda n: _zip_of(1, lambda at: "a/" * (n // 4 + 1) + "1.png", b"x")),
        (".zip", lambda n: _zip_of(1, lambda at: "1.bmp", bytes(300 * n))),
    ],
    "image": [
        (".png", _png),
        (".jpg", _jpeg),
        (".gif", lambda n: _frames(n, "GIF")),
        (".webp", lambda n: _frames(n // 8 + 1, "WEBP")),
        (".tif", lambda n: _frames(n // 8 + 1, "TIFF")),
        (".tif", _tiff),
    ],
    "recipe": [
        (".toml", lambda n: b"a" + b".a" * n + b" = 1\n"),
        (".run", lambda n: b"a" + b' . "a"' * n + b" = 1\n"),
        (".toml", lambda n: b"a = " + b"[" * n + b"]" * n),
        (".toml", lambda n: b"a = " + b"{a = " * n + b"1" + b"}" * n),
        (".toml", lambda n: b"".join(b"[a%d.b.c]\n" % at for at in range(n))),
        (".toml", lambda n: b'base = "cifar10"\n' + b"".join(b"x%d = 1\n" % at for at in range(n // 8 + 1))),
        (".set", lambda n: b"notes = " + b'"' * n),
    ],
    "checkpoint": [
        (".foreign.pt", lambda n: _pickled(b"cbuiltins\nbytearray\n" + _number(n * n) + b"\x85R.")),
        (".pt", lambda n: _footed(b"}X\x01\0\0\0acbuiltins\nbytearray\n" + _number(n << 16) + b"\x85Rs.")),
        (".foreign.pt", lambda n: _pickled(_shared(n, b"ctorch\nSize\nh\0\x85R"))),
        (".foreign.pt", lambda n: _pickled(_shared(n // 4 + 1, b"ccollections\nOrderedDict\nh\0\x85R"))),
        (".foreign.pt", lambda n: _pickled(b"]" * n + b"a" * (n - 1) + b".")),
        (".foreign.pt", lambda n: _pickled(_expanded(n))),
        (".pt", lambda n: _footed(_expanded(n))),
        (".safetensors", lambda n: (n << 20).to_bytes(8, "little") + b"{" + b" " * n),
        (".safetensors", lambda n: n.to_bytes(8, "little") + b'{"a":' + b"[" * n),
    ],
    "onnx": [
        (".onnx", lambda n: _onnx([("Expand", ["images", "s"], ["e"], {})], s=[1, 1, 1, n * n])),
        (".onnx", lambda n: _onnx([("ConstantOfShape", ["s"], ["e"], {})], s=[n * n, n])),
        (".onnx", lambda n: _onnx([("Tile", ["images", "s"], ["e"], {})], s=[1, 1, n, n])),
        (".onnx", lambda n: _onnx([("Range", ["a", "b", "c"], ["e"], {})], a=[0], b=[n * n], c=[1])),
        (".onnx", lambda n: _onnx([("MaxPool", ["images"], ["e"], {"kernel_shape": [1, 1], "pads": [n] * 4})])),
        (".onnx", lambda n: _onnx([("Loop", ["n", ""], [], {})], n=[n])),
        (".onnx", lambda n: _chain(n, "Concat")),
        (".onnx", lambda n: _chain(n, "Add")),
        (".onnx", lambda n: _onnx([("Reshape", ["images", "s"], ["e"], {})], s=list(range(n)))),
        *[(".onnx", random_graph)] * 9,  # each of them is another
    ],
    "result": [
        (".json", lambda n: b"[" * 8 * n),
        (".json", lambda n: b"[" + b"[]," * n + b"[]]"),
        (".json", lambda n: json.dumps({"confusion": [[0] * (n // 64 + 1)] * 64, "n": "9" * n}).encode()),
        (".predictions", _npz),
        (".neighbours", lambda n: _npy(n, f"({n}, {n}, {n})")),
        (".embeddings", lambda n: _npy(n, f"({n * n},)") + PART + _npz(n // 8 + 1)),
    ],
    "table": [
        (".csv", lambda n: b"a," * 8 * n),
        (".csv", lambda n: b'"' * 8 * n),
        (".csv", lambda n: b"".join(b"%x,b\n" % at for at in range(n))),
        (".csv", lambda n: b"a/" * n + b".png,cat\n"),
        (".list", lambda n: b"\n".join(b"%x" % at for at in range(n))),
        (".list", lambda n: b"a/" * 8 * n),
    ],
    "index": [
        (".index", lambda n: _npy(n, f"({n}, {n})") + PART + b"[" * n + PART + b"row,path,class\n"),
        (".index", lambda n: _npy(n, "(1, 2)") + PART + b"{}" + PART + b"a," * n),
    ],
}
