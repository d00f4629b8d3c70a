"""What a command may write over: what it wrote itself. Asked before any work. Imports no torch."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .boundary import meaning, raise_fault
from .errors import PlatformError, UsageError
from .files import Folder
from .inputs import open_regular
from .sealing import NewerError


def occupied(path: Path) -> bool:
    """Whether a file lies at `path`.

    Raises:
        UsageError: there is a link, a folder or a device. These are never replaced, and links never written through.
    """
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        saw, fix = f"{path}: {error.strerror}", meaning(error.errno)[2]
        raise PlatformError("the output cannot be reached", saw=saw, fix=fix) from error
    if stat.S_ISREG(mode):
        return True
    kind = "a link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "no file"
    raise UsageError(f"the output would replace {kind}", saw=path, fix="remove it, or choose another name")


@dataclass(frozen=True)
class Output:
    """A file that a command will write.

    Attributes:
        path: where; None if it was not asked for.
        is_ours: whether the file at this path was written by the same command. It looks at what such a file has at a
            fixed place, never for words, which a user may write too. An error means that it was not.
        ending: what the name must end in; "" for any.
    """

    path: Path | None
    is_ours: Callable[[Path], bool]
    ending: str = ""


def check_outputs(*outputs: Output, overwrite: bool = False) -> None:
    """Refuses outputs that cannot be written, or would replace what the same command did not write, before any work.

    Raises:
        UsageError: one name for two; another ending; something else lies there (with `overwrite`, a link or a folder).
        NewerError: a newer version wrote what lies there.
        PlatformError: the folder cannot be written to.
    """
    asked = [(output.path, output) for output in outputs if output.path is not None]
    names = [os.path.realpath(path) for path, _ in asked]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError("two outputs have one name", saw=twice, fix="give each a name of its own")
    for path, output in asked:
        if path.suffix.lower() != output.ending and output.ending:
            kind = output.ending[1:].upper()
            raise UsageError(f"this output is written as {kind}", saw=path, fix=f"end the name in {output.ending}")
        if occupied(path) and not overwrite and not _is(output, path):
            raise UsageError(
                "the output exists and was not written by this command",
                saw=path,
                fix="choose another name, or replace it with --overwrite",
            )
        check_writable(path)


def _is(output: Output, path: Path) -> bool:
    try:
        return output.is_ours(path)
    except NewerError:
        raise
    except Exception as error:  # foreign bytes make a library raise anything
        raise_fault(error)
        return False


def check_writable(path: Path) -> None:
    """Makes a temporary file where `write_atomic` will, or in the nearest folder there is, and removes it.

    Raises:
        PlatformError: no file can be made there.
        NewerError: a newer version wrote what lies there.
    """
    first = next((one for one in (path, *path.parents) if os.path.lexists(one.parent)), path)
    with suppress(_TriedError), Folder.open(first.parent).writing(first.name):
        raise _TriedError


class _TriedError(Exception):
    """The file could be made; it is not kept."""


def png_by(software: str) -> Callable[[Path], bool]:
    """Tells PNG files in which this stands as `Software`; such a file needs not be a PNG at all."""

    def is_one(path: Path) -> bool:
        from PIL import Image

        with open_regular(path) as file, Image.open(file, formats=["PNG"]) as image:
            return bool(image.info.get("Software") == software)

    return is_one
