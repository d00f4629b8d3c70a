"""Writes an export whole, with its checksum and its description beside it, or not at all; says what an output may
replace."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from simclr_engine.errors import DataError, PlatformError, UsageError
from simclr_engine.locks import held_folder, sweep
from simclr_engine.outputs import occupied

from .description import description_path, description_text, is_description
from .metadata import ModelFile, read_model, sidecar_path


def check_target(target: Path, overwrite: bool = False) -> Path:
    """Checks that `target` is the name of an ONNX file, and that it is free or holds an export of ours.

    Raises:
        UsageError: it is not. `overwrite` allows any regular file at `target`; a link, a folder, or something else than
            a checksum and a description at the names of these is always refused.
    """
    if target.suffix != ".onnx" or target.is_dir():
        raise UsageError("the output must be a file name ending in .onnx", saw=target, fix="encoder.onnx")
    for what, beside, is_one in BESIDE:
        path = beside(target)
        if occupied(path) and not is_one(path):
            raise UsageError(
                f"the {what} would replace a file that is not one", saw=path, fix="remove it, or choose another name"
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


_TEMPORARY = re.compile(r".+\.(onnx|onnx\.sha256|json)")
# What lies beside an exported file: its name in errors, where it lies, and whether a file there is one.
BESIDE = (("checksum", sidecar_path, _is_checksum), ("description", description_path, is_description))


def write(path: Path, data: bytes) -> None:
    """Writes a new file, never through a link, and waits for the disk, so that a full disk is reported here."""
    path.unlink(missing_ok=True)
    with path.open("xb") as output:
        output.write(data)
        output.flush()
        os.fsync(output.fileno())


def write_beside(path: Path, file: ModelFile) -> None:
    """Writes checksum and description of `file` beside `path`."""
    write(sidecar_path(path), f"{file.sha256}  ".encode() + os.fsencode(file.path.name) + b"\n")
    write(description_path(path), description_text(file))


def rename(temporary: Path, target: Path) -> None:
    """Gives a file and what lies beside it their names; at no moment is a new file beside an old checksum."""
    for _, beside, _ in BESIDE:
        beside(target).unlink(missing_ok=True)
    temporary.replace(target)
    for _, beside, _ in BESIDE:
        beside(temporary).replace(beside(target))


@contextmanager
def reserved(target: Path) -> Iterator[Path]:
    """A folder beside `target` for the files until they are whole, made before any work is done, so that a place that
    cannot be written is reported at once. Removed at the end; what killed exports to `target` left goes now."""
    prefix = f".{target.stem[:50]}.partial-"
    sweep(target.parent, prefix, _TEMPORARY)
    with ExitStack() as stack:
        with disk_errors(target):
            room = stack.enter_context(held_folder(target.parent, prefix))
        yield room


def remove(file: Path) -> None:
    """Removes a file and what lies beside it, if they exist. A folder that cannot be written holds none of ours."""
    for path in (file, *(beside(file) for _, beside, _ in BESIDE)):
        with suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def disk_errors(target: Path, what: str = "the ONNX file") -> Iterator[None]:
    """Turns failures of the file system into errors that say what they mean for an export."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise PlatformError(
            "the disk is full" if full else f"{what} cannot be written",
            saw=f"{target}: {error.strerror or error}",
            fix="free space, then export again" if full else "choose a folder that exists and that you may write to",
        ) from error
