"""How a file takes its name: whole, with its checksum beside it, or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from simclr_engine.errors import DataError, PlatformError, UsageError

from .metadata import read_model, sidecar_path


def check_target(target: Path) -> Path:
    """Refuses names that are no ONNX file's, and files that we did not write."""
    if target.suffix != ".onnx" or target.is_dir():
        raise UsageError("the output must be a file name ending in .onnx", saw=target, fix="encoder.onnx")
    if target.exists():
        try:
            read_model(target)
        except DataError as error:
            raise UsageError(
                "the output exists and is not an intact export of simclr-engine",
                saw=f"{target}: {error.cause}",
                fix="remove it, or choose another name",
            ) from error
    return target


def write(path: Path, data: bytes) -> None:
    """Writes and waits for the disk, so that a full one is told here."""
    with path.open("wb") as output:
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
                temporary.write_bytes(b"")
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
