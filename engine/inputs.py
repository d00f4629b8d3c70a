"""Opens files that the user names or that lie where one may have been put: regular ones, up to a stated size.

What is refused raises an OSError that says why in its `strerror`, so that every reader's own message names it.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

from .bounds import LARGEST_HEADER

_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
# Opened in the moment after it was looked at, a pipe does not wait, and a terminal does not become ours.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)


class UnfitError(OSError):
    """The file is not a regular one, or is larger than what is read of its kind."""


def open_regular(path: Path, largest: int | None = None) -> BufferedReader:
    """A regular file, opened for reading in binary. A pipe would wait for ever, and a device has no end.

    Args:
        path: links are followed.
        largest: the most bytes that it may have.

    Raises:
        UnfitError: it is not a regular file, or it is larger.
        OSError: it cannot be opened, or is a folder.
    """
    _require_regular(path, path.stat(), largest)  # some devices act when they are opened
    descriptor = os.open(path, _FLAGS)
    try:
        _require_regular(path, os.fstat(descriptor), largest)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path, largest: int) -> bytes:
    """All bytes of a regular file.

    Raises:
        OSError: as `open_regular`; also of a file that grows while it is read, or that has more than it says.
    """
    with open_regular(path, largest) as file:
        stated = os.fstat(file.fileno()).st_size
        data = file.read(stated + 1)
        if len(data) > stated:  # it is written to at the moment, or is one of those in /proc, which say 0
            data += file.read(largest + 1 - len(data))
        _require_size(path, len(data), largest)
        return data


def read_text(path: Path, largest: int) -> str:
    """All text of a regular file in UTF-8, without the mark (BOM) that some editors put before it.

    Raises:
        OSError: as `read_bytes`.
        UnicodeDecodeError: it is not UTF-8.
    """
    return read_bytes(path, largest).decode("utf-8-sig")


def check_safetensors(path: Path) -> None:
    """Refuses what the library would wait for, or whose header it would read into memory whatever its size.

    Raises:
        OSError: not a regular file, or a header beyond `LARGEST_HEADER`.
    """
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
    if length > LARGEST_HEADER:
        saw = f"it begins with a header of {length:,} bytes; at most {LARGEST_HEADER:,} are read"
        raise UnfitError(errno.EFBIG, saw, str(path))


def _require_regular(path: Path, status: os.stat_result, largest: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a device")
        raise UnfitError(errno.EINVAL, f"it is {kind}, not a regular file", str(path))
    _require_size(path, status.st_size, largest)


def _require_size(path: Path, nbytes: int, largest: int | None) -> None:
    if largest is not None and nbytes > largest:
        raise UnfitError(errno.EFBIG, f"it has {nbytes:,} bytes; at most {largest:,} are read", str(path))
