"""The seal of a file: the version of its format and the hash of its content, inside the file itself.

A seal is a piece of text, `simclr-engine seal 1 sha256 … simclr-engine seal`: the first field of a JSON document, a
field in the metadata of a safetensors file, a comment in TOML; in an .npy or .npz file it follows the last byte, where
readers do not look. The hash is of the bytes of the file, with zeros in its own place, and of the name of the file
where that says what it holds. Files of earlier versions have no seal.

It finds accidents, not forgeries: whoever changes a file on purpose can seal it again. Imports no NumPy.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from .bounds import LARGEST_DOCUMENT
from .documents import to_json
from .errors import DataError
from .inputs import open_regular

FORMAT = 1
FIELD = "seal"
_SIGN = "simclr-engine seal"  # at both ends, so that a seal with a damaged letter is not taken for none
_ZEROS = "0" * 64
BLANK = f"{_SIGN} {FORMAT} sha256 {_ZEROS} {_SIGN}"
_VERSION = re.compile(rb"%s (\d{1,9}) " % _SIGN.encode())
_SEAL = re.compile(rb"(%s \d sha256 )([0-9a-f]{64})( %s)" % ((_SIGN.encode(),) * 2))
_HEAD, _TAIL = 64 << 10, 256  # a seal lies within the first or the last bytes of a file


class AlteredError(DataError):
    """A file is not as it was written."""


class NewerError(DataError):
    """A file was written by a newer version, and stays as it is."""

    def __init__(self, path: Path, version: int, ours: int = FORMAT) -> None:
        super().__init__(
            "the file was written by a newer version of simclr-engine",
            saw=f"{path}: format {version}; this version reads up to {ours}",
            fix="update simclr-engine",
        )


def sealed(raw: bytes, name: str = "") -> bytes:
    """A file that holds `BLANK` once, near its beginning, with the hash filled in.

    `name` is that of the file, if it belongs to the content: the same bytes under another name are then altered.
    """
    digest = _begun(name)
    digest.update(raw)
    return raw.replace(BLANK.encode(), BLANK.replace(_ZEROS, digest.hexdigest()).encode(), 1)


def _begun(name: str) -> hashlib._Hash:
    return hashlib.sha256(f"{name}\0".encode(errors="surrogateescape"))


def sealed_json(plain: Mapping[str, Any], name: str = "") -> bytes:
    """A JSON document in UTF-8 with a seal; DataError for one that `read_json` would refuse as too large."""
    raw = (to_json({FIELD: BLANK, **plain}, indent=1) + "\n").encode()
    if len(raw) > LARGEST_DOCUMENT:
        saw = f"{name or 'a document'} of {len(raw):,} bytes; at most {LARGEST_DOCUMENT:,} are read"
        fix = "use fewer images or classes, or shorter names of them"
        raise DataError("a document would be larger than what is read again, so it is not written", saw=saw, fix=fix)
    return sealed(raw, name)


def append_seal(file: IO[bytes], name: str) -> None:
    """Seals a file that is open for reading and writing, at its end."""
    file.flush()
    file.seek(0)
    digest = hashlib.file_digest(file, lambda: _begun(name))  # type: ignore[arg-type]  # our files have `readinto`
    digest.update(BLANK.encode())
    file.write(BLANK.replace(_ZEROS, digest.hexdigest()).encode())


def refuse_newer(file: IO[bytes], path: Path) -> bytes:
    """The first and last bytes of a file, where a seal may be; NewerError if that is a newer version's."""
    edges = file.read(_HEAD)
    size = file.seek(0, 2)
    file.seek(max(len(edges), size - _TAIL))
    edges += file.read(_TAIL)
    version = max(map(int, _VERSION.findall(edges)), default=FORMAT)
    if version > FORMAT:
        raise NewerError(path, version)
    return edges


def verify(file: IO[bytes], path: Path, again: str, name: str = "", *, needed: bool = False) -> None:
    """Compares a file that is open at its beginning, where it stands again afterwards, with its seal, if it has one.

    Args:
        path, again: for the error: its path, and what writes it again.
        name: as of `sealed`.
        needed: whether a file without a seal is refused, as earlier versions wrote it.

    Raises:
        AlteredError: the file is not what was sealed.
        NewerError: it was written by a newer version.
    """
    edges = refuse_newer(file, path)
    if _SIGN.encode() in edges:
        found = _SEAL.findall(edges)
        blank = _SEAL.sub(rb"\g<1>%s\g<3>" % _ZEROS.encode(), edges)
        digest, end = _begun(name), file.seek(0, 2) - len(edges[_HEAD:])
        digest.update(blank[:_HEAD])
        file.seek(min(_HEAD, end))
        while piece := file.read(min(1 << 20, end - file.tell())):
            digest.update(piece)
        digest.update(blank[_HEAD:])
        if len(found) != 1 or found[0][1] != digest.hexdigest().encode():
            raise altered(path, "its content is not what was written under this name", again)
    elif needed:
        cause = "the file was written by an earlier version, or its end is missing"
        raise AlteredError(cause, saw=f"{path}: it has no seal", fix=again)
    file.seek(0)


def verify_file(path: Path, again: str, name: str = "", *, needed: bool = False) -> None:
    """`verify` for the file at `path`; OSError where it cannot be read."""
    with open_regular(path) as file:
        verify(file, path, again, name, needed=needed)


def has_seal(path: Path) -> bool:
    """Whether a file has a seal, right or wrong: those that were written with it then have one too."""
    try:
        with open_regular(path) as file:
            return _SIGN.encode() in refuse_newer(file, path)
    except OSError:
        return False


def altered(path: Path, why: str, again: str) -> AlteredError:
    """The error for a file that is damaged."""
    return AlteredError("the file is damaged, or it was changed or renamed", saw=f"{path}: {why}", fix=again)


def read_json(path: Path, again: str, name: str = "", *, ours: int = FORMAT, needed: bool = False) -> dict[str, Any]:
    """The fields of a JSON document, after `verify`; one whose field `format` is more than `ours` is a newer version's.

    Raises OSError where it cannot be read, ValueError where it is no JSON object.
    """
    with open_regular(path, LARGEST_DOCUMENT) as file:
        try:
            fields = json.loads(file.read())
        except RecursionError as error:
            raise ValueError("brackets nested too deeply") from error
        if not isinstance(fields, dict):
            raise ValueError(f"a {type(fields).__name__} instead of an object")
        if isinstance(version := fields.get("format"), int) and version > ours:
            raise NewerError(path, version, ours)
        file.seek(0)
        verify(file, path, again, name, needed=needed)
    fields.pop(FIELD, None)
    return fields


def is_sealed_document(path: Path, *keys: str) -> bool:
    """Whether the file is a JSON document with these keys, as `sealed_json` wrote it; other versions add keys.

    Raises:
        DataError, OSError, ValueError: it is none.
    """
    return read_json(path, "", needed=True).keys() >= {*keys}
