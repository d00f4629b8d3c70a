"""Names in zip files that do not say their encoding: Windows writes them in the encoding of its language."""

from __future__ import annotations

import math
import re
import unicodedata
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_UTF8_FLAG = 0x800
_UNICODE_PATH = 0x7075  # an extra field of Info-ZIP with the name in UTF-8
_RARE = 7.0  # nats that an unusual character counts against an encoding


@dataclass(frozen=True)
class _Language:
    """How likely names are in an encoding.

    Attributes:
        encoding: Python's name of it.
        prior: in nats, how common such zip files are.
        ordinary: how many characters are about as common as this one; 0 for an unusual one.
        mixes: whether its letters stand in one word with ASCII's.
    """

    encoding: str
    prior: float
    ordinary: Callable[[str], int]
    mixes: bool = False


def _leads(encoding: str, first: int, last: int, count: int) -> Callable[[str], int]:
    """Two-byte characters whose first byte lies in the rows of the common ones."""

    def ordinary(char: str) -> int:
        coded = char.encode(encoding, "ignore")
        return count if len(coded) == 2 and first <= coded[0] <= last else 0

    return ordinary


def _japanese(char: str) -> int:
    kanji = _leads("cp932", 0x88, 0x97, 2965)(char)
    return 170 if "\u3041" <= char <= "\u30fe" else kanji


def _cyrillic(char: str) -> int:
    return 66 if "А" <= char <= "я" or char in "Ёё" else 0


def _latin(char: str) -> int:
    return 60 if char.isalpha() and unicodedata.name(char, "").startswith("LATIN") else 0


_LANGUAGES = (
    _Language("gbk", 0.0, _leads("gb2312", 0xB0, 0xD7, 3755)),
    _Language("cp949", -2.3, _leads("euc_kr", 0xB0, 0xC8, 2350)),
    _Language("cp932", -1.6, _japanese),
    _Language("big5", -1.6, _leads("big5", 0xA4, 0xC6, 5401)),
    _Language("cp1251", -1.0, _cyrillic),
    _Language("cp866", -1.0, _cyrillic),
    _Language("koi8-r", -3.0, _cyrillic),
    _Language("cp437", -0.5, _latin, mixes=True),
    _Language("cp1252", -0.7, _latin, mixes=True),
    _Language("cp850", -1.0, _latin, mixes=True),
    _Language("cp1250", -2.0, _latin, mixes=True),
)


def member_names(members: Sequence[zipfile.ZipInfo]) -> list[str]:
    """The name of each member: as it says, else in UTF-8, else in the encoding under which all are most ordinary."""
    raw = [None if member.flag_bits & _UTF8_FLAG else _raw(member) for member in members]
    unsaid = list(dict.fromkeys(name for name in raw if name is not None and not name.isascii()))
    encoding = _encoding_of(unsaid) if unsaid else "cp437"
    return [
        member.filename if name is None else _told(member) or name.decode(encoding)
        for member, name in zip(members, raw, strict=True)
    ]


def _raw(member: zipfile.ZipInfo) -> bytes | None:
    try:
        return member.filename.encode("cp437")  # as which Python reads what is not marked as UTF-8
    except UnicodeEncodeError:
        return None


def _told(member: zipfile.ZipInfo) -> str:
    """The name in Info-ZIP's extra field; empty without one."""
    extra = member.extra
    while len(extra) >= 4:
        kind, length = int.from_bytes(extra[:2], "little"), int.from_bytes(extra[2:4], "little")
        if kind == _UNICODE_PATH and 5 < length <= len(extra) - 4:
            return extra[9 : 4 + length].decode("utf-8", "ignore").split("\0")[0]
        extra = extra[4 + length :]
    return ""


def _encoding_of(names: Sequence[bytes]) -> str:
    """UTF-8 if it decodes all of them, else the likeliest; cp437, which decodes anything, if none is likely."""
    parts = list(dict.fromkeys(part for name in names for part in re.split(rb"[/\\]", name) if not part.isascii()))
    best, found = -math.inf, "cp437"
    try:
        b"/".join(parts).decode("utf-8")
        return "utf-8"
    except UnicodeDecodeError:
        pass
    for language in _LANGUAGES:
        try:
            decoded = [name.decode(language.encoding) for name in names]
        except UnicodeDecodeError:
            continue
        score = language.prior + _likelihood("/".join(decoded), language)
        if score > best:
            best, found = score, language.encoding
    return found


def _likelihood(text: str, language: _Language) -> float:
    """Of the distinct characters beyond ASCII, in nats."""
    total = 0.0
    for char in {char for char in text if not char.isascii()}:
        count = language.ordinary(char)
        total -= math.log(count) if count else math.log(100) + _RARE
    if language.mixes:  # one letter in some has an accent, hardly ever two in a row
        total -= _RARE / 2 * len(re.findall(r"(?=[^\W\d_A-Za-z]{2})", text))
    else:
        total -= _RARE / 2 * len(set(re.findall(r"[A-Za-z](?=[^\W\d_A-Za-z])|(?<=[^\W\d_A-Za-z])[A-Za-z]", text)))
    return total
