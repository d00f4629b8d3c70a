"""A folder of images as a source."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from ..errors import DataError
from .decode import EXTENSIONS
from .listing import LAYOUTS, Blob, is_hidden
from .progress import progress_bar

MAX_DEPTH = 16


@dataclass(frozen=True)
class FolderSource:
    """Images below a folder; links to files and folders are followed, loops of them are harmless."""

    path: Path
    name: str
    kind: ClassVar[str] = "folder"

    @cached_property
    def _files(self) -> tuple[list[tuple[str, int, int]], list[tuple[str, str]], int]:
        """Sorted (relative path, bytes, mtime in ns) of the images, the refused ones, and the number of other files."""
        images: list[tuple[str, int, int]] = []
        refused: list[tuple[str, str]] = []
        others = 0
        for relative, entry in _walk(self.path, "", (), refused):
            if not entry.name.lower().endswith(EXTENSIONS):
                others += 1
                continue
            try:
                status = entry.stat()
            except OSError as error:
                refused.append((relative, f"cannot be opened ({error.strerror})"))
                continue
            if stat.S_ISREG(status.st_mode):
                images.append((relative, status.st_size, status.st_mtime_ns))
            else:
                refused.append((relative, "not a regular file"))
        return sorted(images), sorted(refused), others

    def content(self) -> str:
        """sha256 of the listing: relative path, size and modification time of every image (not of the pixels)."""
        images, refused, others = self._files
        if not images:
            raise DataError(
                f"no images in the folder {self.path}",
                saw=f"{others} other files" + (f", {refused[0][0]}: {refused[0][1]}" if refused else ""),
                fix=f"give a folder that holds {LAYOUTS}",
            )
        digest = hashlib.sha256(b"folder\n")
        for row in (*images, *refused):
            digest.update(repr(row).encode())
        return digest.hexdigest()

    def blobs(self, contents: bool = True, progress: bool = False) -> Iterator[Blob]:
        """Every refused file with its reason, then every image with its place (the bytes are read on decoding).

        Args:
            contents: the same as of an archive; of no effect here.
            progress: whether a bar shows how many have been taken.
        """
        images, refused, _ = self._files
        for path, reason in refused:
            yield Blob(path, None, reason)
        with progress_bar("reading", len(images), "images", progress) as advance:
            for path, _, _ in images:
                yield Blob(path, self.path / path)
                advance(1)


def _walk(
    folder: Path, prefix: str, above: tuple[tuple[int, int], ...], refused: list[tuple[str, str]]
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every visible file below `folder` with its relative POSIX path; a folder inside itself is not entered again."""
    try:
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in above or len(above) > MAX_DEPTH:
            return
        with os.scandir(folder) as scan:
            entries = list(scan)
    except OSError as error:
        if not above:
            raise DataError(
                f"the folder {folder} cannot be read", saw=error.strerror, fix="check the path and its permissions"
            ) from error
        refused.append((prefix.rstrip("/"), f"the folder cannot be read ({error.strerror})"))
        return
    for entry in entries:
        if is_hidden(entry.name):
            continue
        if _is_folder(entry):
            yield from _walk(folder / entry.name, f"{prefix}{entry.name}/", (*above, identity), refused)
        else:
            yield prefix + entry.name, entry


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; it is reported when the file is opened
        return False
