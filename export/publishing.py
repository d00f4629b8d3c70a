"""How a file takes its name: whole, with its checksum beside it, or not at all."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from simclr_engine.errors import DataError, PlatformError, UsageError

from .metadata import read_model, sidecar_path


def check_target(target: Path, overwrite: bool = False) -> Path:
    """Refuses names that are no ONNX file's, and files that we did not write.

    Raises:
        UsageError: also with `overwrite`, which is of `target` alone, where a link or a folder is in the way, or what
            has the name of its checksum is none.
    """
    if target.suffix != ".onnx" or target.is_dir():
        raise UsageError("the output must be a file name ending in .onnx", saw=target, fix="encoder.onnx")
    sidecar = sidecar_path(target)
    if occupied(sidecar) and not _is_checksum(sidecar):
        raise UsageError(
            "the checksum would replace a file that is none", saw=sidecar, fix="remove it, or choose another name"
        )
    if occupied(target) and not overwrite:
        try:
            read_model(target)
        except DataError as error:
            raise UsageError(
                "the output exists and is not an intact export of simclr-engine",
                saw=f"{target}: {error.cause}",
                fix="choose another name, or replace it with --overwrite",
            ) from error
    return target


def _is_checksum(path: Path) -> bool:
    """Whether it is one line as `sha256sum` writes it: nothing is lost with it that the file beside it does not say."""
    try:
        with path.open("rb") as file:
            return re.fullmatch(rb"[0-9a-f]{64}[^\n]*\n?", file.read(4096)) is not None
    except OSError:
        return False


def occupied(path: Path) -> bool:
    """Whether a file lies at `path`.

    Raises:
        UsageError: a link, a folder or a device does: these are never replaced, and never written through.
    """
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise PlatformError("the output cannot be reached", saw=f"{path}: {error.strerror}") from error
    if stat.S_ISREG(mode):
        return True
    kind = "a link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "no file"
    raise UsageError(f"the output would replace {kind}", saw=path, fix="remove it, or choose another name")


def write(path: Path, data: bytes) -> None:
    """Writes a temporary file anew, not through a link, and waits for the disk, so that a full one is told here."""
    path.unlink(missing_ok=True)
    with path.open("xb") as output:
        output.write(data)
        output.flush()
        os.fsync(output.fileno())


def temporary_path(target: Path) -> Path:
    return target.with_name(f".{target.stem}.{os.getpid()}.partial.onnx")


@contextmanager
def reserved(*targets: Path | None) -> Iterator[None]:
    """An empty file beside each target, made before any work is done, so that a folder that cannot be written is told
    at once; taken away in the end."""
    temporaries = [temporary_path(target) for target in targets if target is not None]
    try:
        for temporary, target in zip(temporaries, targets, strict=False):
            with disk_errors(target or temporary):
                temporary.unlink(missing_ok=True)  # of a process of this number that was killed
                temporary.open("xb").close()  # not through a link
        yield
    finally:
        for temporary in temporaries:
            remove(temporary)


def remove(file: Path) -> None:
    """A file and its checksum, where they are; a folder that cannot be written has none of ours."""
    for path in (file, sidecar_path(file)):
        with suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Failures of the file system as what they mean for an export."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise PlatformError(
            "the disk is full" if full else "the ONNX file cannot be written",
            saw=f"{target}: {error.strerror or error}",
            fix="free space, then export again" if full else "choose a folder that exists and that you may write to",
        ) from error
