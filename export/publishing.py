"""Writes an export whole, with its checksum beside it, or not at all; says what an output may replace."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from simclr_engine.errors import DataError, PlatformError, UsageError
from simclr_engine.files import occupied

from .metadata import read_model, sidecar_path


def check_target(target: Path, overwrite: bool = False) -> Path:
    """Checks that `target` is the name of an ONNX file, and that it is free or holds an export of ours.

    Raises:
        UsageError: it is not. `overwrite` allows any regular file at `target`; a link, a folder, or something else than
            a checksum at the checksum's name is always refused.
    """
    if target.suffix != ".onnx" or target.is_dir():
        raise UsageError("the output must be a file name ending in .onnx", saw=target, fix="encoder.onnx")
    sidecar = sidecar_path(target)
    if occupied(sidecar) and not _is_checksum(sidecar):
        raise UsageError(
            "the checksum would replace a file that is not one", saw=sidecar, fix="remove it, or choose another name"
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
    """Whether the file is one line in the format of `sha256sum`, which can be computed again."""
    try:
        with path.open("rb") as file:
            return re.fullmatch(rb"[0-9a-f]{64}[^\n]*\n?", file.read(4096)) is not None
    except OSError:
        return False


def write(path: Path, data: bytes) -> None:
    """Writes a new file, never through a link, and waits for the disk, so that a full disk is reported here."""
    path.unlink(missing_ok=True)
    with path.open("xb") as output:
        output.write(data)
        output.flush()
        os.fsync(output.fileno())


def temporary_path(target: Path) -> Path:
    return target.with_name(f".{target.stem}.{os.getpid()}.partial.onnx")


@contextmanager
def reserved(*targets: Path | None) -> Iterator[None]:
    """Creates an empty file beside each target before any work is done, so that a folder that cannot be written is
    reported at once. Removes them at the end."""
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
    """Removes a file and its checksum if they exist. A folder that cannot be written holds none of ours."""
    for path in (file, sidecar_path(file)):
        with suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turns failures of the file system into errors that say what they mean for an export."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise PlatformError(
            "the disk is full" if full else "the ONNX file cannot be written",
            saw=f"{target}: {error.strerror or error}",
            fix="free space, then export again" if full else "choose a folder that exists and that you may write to",
        ) from error
