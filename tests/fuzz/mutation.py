"""Random changes to a file: of bits and bytes, and of what its format is made of, checksums mended afterwards."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Sequence
from random import Random

LARGEST = 1 << 16  # bytes of an input before it is packed: fuzzing is a matter of many small files
NUMBERS = (0, 1, 2, 7, 8, 127, 128, 255, 256, 511, 512, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
TOKENS = (b"\0", b"\xff" * 8, b"../", b"/", b"\\", b"\x1b[31m", b"<script>", b"\r\n", b"\xe2\x80\xae", b"%s%n", b"'\"")

Change = Callable[[bytes, Random], bytes]


def changed(data: bytes, kind: str, rng: Random, others: Sequence[bytes]) -> bytes:
    """`data` with one to a few changes; `others` are files of the same reader, to splice with."""
    structured = STRUCTURED.get(kind)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if structured is not None and rng.random() < 0.7:
            data = structured(data, rng)
        elif rng.random() < 0.06:
            other = rng.choice(others)
            data = data[: rng.randint(0, len(data))] + other[rng.randint(0, len(other)) :]
        else:
            data = rng.choice(PLAIN)(data, rng)
        data = data[:LARGEST]
    return data


def _flip(data: bytes, rng: Random) -> bytes:
    at = rng.randrange(max(1, len(data)))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :] if data else data


def _overwrite(data: bytes, rng: Random) -> bytes:
    at = rng.randint(0, len(data))
    piece = rng.choice((_number(rng), rng.choice(TOKENS), rng.randbytes(rng.randint(1, 8))))
    return data[:at] + piece + data[at + len(piece) :]


def _insert(data: bytes, rng: Random) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + rng.choice((_number(rng), rng.choice(TOKENS), bytes(rng.randint(1, 2000)))) + data[at:]


def _cut(data: bytes, rng: Random) -> bytes:
    return data[: rng.randint(0, len(data))]


def _remove(data: bytes, rng: Random) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + data[at + rng.randint(1, 64) :]


def _repeat(data: bytes, rng: Random) -> bytes:
    at = rng.randint(0, len(data))
    piece = data[at : at + rng.choice((4, 32, 512, 1024))]
    return data[:at] + piece * rng.randint(1, 4) + data[at:]


def _number(rng: Random) -> bytes:
    width = rng.choice((1, 2, 4, 8))
    value = (rng.choice(NUMBERS) + rng.choice((-1, 0, 0, 1))) % 2 ** (8 * width)
    return value.to_bytes(width, rng.choice(("little", "big")))


PLAIN: tuple[Change, ...] = (_flip, _flip, _overwrite, _overwrite, _insert, _cut, _remove, _repeat)

# Offset and length of a tar header's fields (POSIX.1-1988, `ustar`).
TAR_FIELDS = (
    (0, 100),
    (100, 8),
    (124, 12),
    (124, 12),
    (156, 1),
    (156, 1),
    (157, 100),
    (345, 155),
    (386, 12),
    (482, 13),
)
TAR_VALUES = (b"0", b"1", b"777777777777", b"\x80" + bytes(3) + b"\xff" * 8, b"\xff" * 12, b"-1", b"", b"L", b"K", b"x")
TAR_VALUES += (
    b"g",
    b"S",
    b"2",
    b"3",
    b"5",
    b"../../outside.png",
    b"/outside.png",
    b"ant/\x1b[2J<b>.png",
    b"ant/\n.png",
)


def _tar(data: bytes, rng: Random) -> bytes:
    """One field of one header, its checksum mended."""
    headers = [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]
    if not headers:
        return _overwrite(data, rng)
    at, (start, length) = rng.choice(headers), rng.choice(TAR_FIELDS)
    value = rng.choice((rng.choice(TAR_VALUES), rng.randbytes(length))).ljust(length, b"\0")[:length]
    header = bytearray(data[at : at + 512])
    header[start : start + length] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:at] + bytes(header) + data[at + 512 :]


def _zip(data: bytes, rng: Random) -> bytes:
    """A field of one of a zip file's headers, or two bytes of the same member in both of its headers."""
    headers = [match.start() for match in re.finditer(rb"PK(\x01\x02|\x03\x04|\x05\x06|\x06\x06|\x06\x07)", data)]
    if not headers:
        return _overwrite(data, rng)
    at = rng.choice(headers) + rng.randint(4, 46)
    piece = rng.choice((_number(rng), rng.choice(TOKENS)))
    return data[:at] + piece + data[at + len(piece) :]


def _png(data: bytes, rng: Random) -> bytes:
    """One chunk changed, doubled, removed or of a false length; its checksum mended."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = struct.unpack(">I", data[at : at + 4])[0]
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks:
        return _flip(data, rng)
    which, action = rng.randrange(len(chunks)), rng.randrange(10)
    name, body = chunks[which]
    if action == 0:
        chunks.insert(rng.randint(0, len(chunks)), (name, body))
    elif action == 1:
        del chunks[which]
    elif action == 2:
        chunks[which] = (rng.choice((b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"eXIf", b"acTL", b"fdAT", b"fcTL")), body)
    elif action == 3 and name == b"IHDR":
        sides = [rng.choice((0, 1, 8, 9, 3000, 9000, 65535, 2**31 - 1)) for _ in range(2)]
        chunks[which] = (name, struct.pack(">II", *sides) + body[8:])
    elif action == 4 and name == b"IHDR":
        chunks[which] = (
            name,
            body[:8] + bytes([rng.choice((1, 2, 4, 8, 16)), rng.choice((0, 2, 3, 4, 6))]) + body[10:],
        )
    else:
        chunks[which] = (name, rng.choice(PLAIN)(body, rng))
    return data[:8] + b"".join(struct.pack(">I", len(b)) + n + b + _crc(n + b) for n, b in chunks)


def _crc(data: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(data))


def _jpeg(data: bytes, rng: Random) -> bytes:
    """A segment's marker, its length or a byte shortly behind."""
    markers = [match.start() for match in re.finditer(rb"\xff[\xc0-\xfe]", data)]
    if not markers:
        return _flip(data, rng)
    at = rng.choice(markers) + rng.choice((1, 2, 2, 3, 4, 5, 7, 9, 11))
    piece = _number(rng)[: rng.choice((1, 2))]
    return data[:at] + piece + data[at + len(piece) :]


def _riff(data: bytes, rng: Random) -> bytes:
    """A chunk's name or length in a WebP file, or a byte of its first fields."""
    chunks = [match.start() for match in re.finditer(rb"RIFF|WEBP|VP8.|ANIM|ANMF|ALPH|EXIF|ICCP", data)]
    if not chunks:
        return _flip(data, rng)
    at = rng.choice(chunks) + rng.choice((0, 4, 4, 8, 9, 11, 12, 14, 15))
    piece = _number(rng)[:4]
    return data[:at] + piece + data[at + len(piece) :]


TOML_VALUES = (
    *("0", "-1", "1", "7", "0.5", "1e308", "1e999", "nan", "-inf", "true", '""', '"x"', "[]", "{}", "[[]]", "[1, 1]"),
    *("9" * 30, "9" * 400, "9" * 5000, "0x" + "f" * 600, "1979-05-27", "07:32:00", "1979-05-27T07:32:00Z"),
    *("[[0.5, 16], [1.0, 0]]", '[["a", 1]]', "[" * 200 + "]" * 200, "[" * 3000, '"' + "x" * 20000 + '"', "'''\n\n'''"),
    *('"\\u001b[31m"', '"<script>"', '"a\\nb"', '"\\U0010FFFF"', "{a = {b = {c = 1}}}", '{"" = 1}', '{"a b" = 2}'),
    *('[{epochs = 3, settings = {"train.views" = 2}}]', '[{epochs = 9, settings = {"short_runs" = []}}]'),
)
TOML_KEYS = ("train", "data.size", '"train.epochs"', '""', "a.b.c", "base", "short_runs", "published", '"\\u0000"', "é")


def _toml(data: bytes, rng: Random) -> bytes:
    """Another value, another key, another order of the lines, or a line that was not there."""
    lines = data.decode("utf-8", "replace").split("\n")
    which = rng.randrange(len(lines))
    key, equals, value = lines[which].partition("=")
    action = rng.randrange(8)
    if action < 3 and equals:
        lines[which] = f"{key}= {rng.choice(TOML_VALUES)}"
    elif action == 3 and equals:
        lines[which] = f"{rng.choice(TOML_KEYS)} ={value}"
    elif action == 4:
        lines.insert(rng.randint(0, len(lines)), f"{rng.choice(TOML_KEYS)} = {rng.choice(TOML_VALUES)}")
    elif action == 5:
        lines.insert(rng.randint(0, len(lines)), lines[which])
    elif action == 6:
        lines.insert(
            rng.randint(0, len(lines)), rng.choice(("[train]", "[[short_runs]]", "[published.a]", "[x.y]", "["))
        )
    else:
        del lines[which]
    return "\n".join(lines).encode("utf-8", "replace")


JSON_VALUES = (
    *(
        "0",
        "-1",
        "1",
        "0.5",
        "1e999",
        "NaN",
        "-Infinity",
        "true",
        "null",
        '""',
        '"x"',
        "[]",
        "{}",
        "[[]]",
        "[[1]]",
        "[null]",
    ),
    *(
        "9" * 30,
        "9" * 400,
        "9" * 5000,
        "1" + "0" * 20,
        "[" * 200 + "]" * 200,
        "[" * 60000,
        '{"a":' * 3000 + "1" + "}" * 3000,
    ),
    *(
        '"' + "x" * 20000 + '"',
        '"\\u001b[31m"',
        '"\\ud800"',
        '"<script>alert(1)</script>"',
        '"a\\nb"',
        '["a", 1]',
        '{"a": 1}',
    ),
)
_JSON_VALUE = re.compile(r'"(?:[^"\\]|\\.)*"(?!\s*:)|-?\d[\d.eE+-]*|true|false|null')


def _json(data: bytes, rng: Random) -> bytes:
    """Another value somewhere, another name of a key, or an entry less."""
    text = data.decode("utf-8", "replace")
    values = list(_JSON_VALUE.finditer(text))
    keys = list(re.finditer(r'"[^"]*"(?=\s*:)', text))
    if values and rng.random() < 0.8:
        match, new = rng.choice(values), rng.choice(JSON_VALUES)
    elif keys:
        match, new = rng.choice(keys), rng.choice(('"x"', '""', rng.choice(keys)[0]))
    else:
        return _overwrite(data, rng)
    return (text[: match.start()] + new + text[match.end() :]).encode("utf-8", "replace")


PICKLE = (b"cos\nsystem\n", b"cbuiltins\neval\n", b"cbuiltins\nbytearray\n", b"ctorch\nSize\n", b"ctorch\nTensor\n")
PICKLE += (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_sparse_tensor\n", b"ctorch\nLongStorage\n")
PICKLE += (
    b"ccollections\nOrderedDict\n",
    b"c_codecs\nencode\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch\ndevice\n",
    b"ctorch._tensor\n_rebuild_from_type_v2\n",
    b"ctorch._utils\n_rebuild_tensor_v3\n",
    b"ctorch._utils\n_rebuild_qtensor\n",
    b"ccollections\ndefaultdict\n",
    b"(ios\nsystem\n",
    b"\x82\x01",
    b"\x93",
    b"\x94",
    b"\x90",
    b"\x91",
    b"\x92",
    b"o",
)
PICKLE += (
    b"R",
    b"0",
    b"1",
    b"2",
    b".",
    b"}",
    b"]",
    b"(",
    b")",
    b"t",
    b"\x85",
    b"\x86",
    b"\x87",
    b"Q",
    b"b",
    b"\x81",
    b"s",
    b"u",
)
PICKLE += (
    b"a",
    b"e",
    b"N",
    b"\x88",
    b"h\x00",
    b"h\x01",
    b"q\x00",
    b"j\xff\xff\xff\xff",
    b"J\xff\xff\xff\x7f",
    b"M\xff\xff",
)
PICKLE += (
    b"X\xff\xff\xff\x7f",
    b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
    b"\x8a\xff",
    b"G\x7f\xf0" + bytes(6),
    b"\x80\x02",
    b"\x80\xff",
)


def _pickle(data: bytes, rng: Random) -> bytes:
    """An opcode more, another one, or another number."""
    at, piece = rng.randint(0, len(data)), rng.choice(PICKLE)
    if rng.random() < 0.4:
        numbers = [match.start() for match in re.finditer(rb"[KMJ]", data)]
        if numbers:
            at = rng.choice(numbers)
            width = {75: 1, 77: 2, 74: 4}[data[at]]
            return (
                data[:at]
                + rng.choice((b"K\0", b"J" + _fitted(rng, 4), b"\x8a\x08" + _fitted(rng, 8)))
                + data[at + 1 + width :]
            )
    return data[:at] + piece + data[at + rng.choice((0, 0, 1, len(piece))) :]


def _fitted(rng: Random, width: int) -> bytes:
    return (rng.choice(NUMBERS) % 2 ** (8 * width)).to_bytes(width, "little")


def _safetensors(data: bytes, rng: Random) -> bytes:
    """The JSON header changed and its length mended, most of the time."""
    length = int.from_bytes(data[:8], "little")
    header = _json(data[8 : 8 + length], rng)
    stated = len(header) if rng.random() < 0.9 else rng.choice(NUMBERS)
    return stated.to_bytes(8, "little") + header + data[8 + length :]


def varint(value: int) -> bytes:
    """A protobuf number."""
    rows = bytearray()
    while value > 127:
        rows.append(value & 127 | 128)
        value >>= 7
    return bytes([*rows, value])


def message(fields: Sequence[tuple[int, int | bytes]]) -> bytes:
    """A protobuf message of (number, varint or payload)."""
    parts = []
    for number, value in fields:
        if isinstance(value, int):
            parts.append(varint(number << 3) + varint(value))
        else:
            parts.append(varint(number << 3 | 2) + varint(len(value)) + value)
    return b"".join(parts)


def parsed(data: bytes) -> list[tuple[int, int | bytes]] | None:
    """The reverse of `message`; None for anything else."""
    fields: list[tuple[int, int | bytes]] = []
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        value, at = _read_varint(data, at)
        if tag & 7 == 2 and at + value <= len(data):
            fields.append((tag >> 3, data[at : at + value]))
            at += value
        elif tag & 7 == 0:
            fields.append((tag >> 3, value))
        else:
            return None
    return fields


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data):
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            break
    return value, at


def _protobuf(data: bytes, rng: Random, depth: int = 0) -> bytes:
    """A field of a message, or of one inside it, dropped, doubled, moved, renumbered, or of another value."""
    fields = parsed(data)
    if not fields:
        return rng.choice(PLAIN)(data, rng)
    which = rng.randrange(len(fields))
    number, value = fields[which]
    action = rng.randrange(10)
    if action == 0:
        del fields[which]
    elif action == 1:
        fields.insert(rng.randint(0, len(fields)), fields[which])
    elif action == 2:
        fields[which] = (rng.choice((1, 2, 5, 7, 8, 13, 14, 15, 20, 25)), value)
    elif isinstance(value, int):
        fields[which] = (number, rng.choice((*NUMBERS, value + 1, 2**70, b"", b"x")))
    elif value[:1] in b'[{"0123456789tfn-' and value:
        fields[which] = (number, _json(value, rng))
    elif depth < 5:
        fields[which] = (number, _protobuf(value, rng, depth + 1))
    else:
        fields[which] = (number, rng.choice(PLAIN)(value, rng))
    return message(fields)


def _npy(data: bytes, rng: Random) -> bytes:
    """numpy's header: another type, shape or length."""
    at = data.find(b"{'descr'")
    end = data.find(b"}", at)
    if at < 0 or end < 0:
        return _overwrite(data, rng)
    kind = rng.choice(("|u1", "<i8", "<f4", "|O", "<U8", "<c16", "|V8", "|S4", "<M8[s]", "<f2", "|b1", ">i8"))
    shape = rng.choice(
        ("()", "(0,)", "(4,)", "(2, 8, 8, 3)", "(-1,)", "(10000000000000,)", "(2, -8)", "(99999999999999999999,)")
    )
    header = f"{{'descr': '{kind}', 'fortran_order': {rng.choice((True, False))}, 'shape': {shape}, "
    new = rng.choice((header.encode(), _overwrite(data[at:end], rng), header.encode() + b"'x': 1, "))
    return data[:at] + new.ljust(end - at) + data[end:]


STRUCTURED: dict[str, Change] = {
    "tar": _tar,
    "zip": _zip,
    "png": _png,
    "jpeg": _jpeg,
    "riff": _riff,
    "toml": _toml,
    "json": _json,
    "pickle": _pickle,
    "safetensors": _safetensors,
    "protobuf": _protobuf,
    "npy": _npy,
}
