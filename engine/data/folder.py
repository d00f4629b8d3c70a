"""A folder of images as a source."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

from ..errors import DataError
from ..progress import progress_bar
from . import cache
from .decode import EXTENSIONS
from .listing import LAYOUTS, Blob, is_hidden
from .pack import KEEP_BYTES, in_threads

MAX_DEPTH = 16
_BATCH = 64
_READ_BYTES = 4 << 20


@dataclass(frozen=True)
class _Scan:
    """What one walk over a folder saw.

    Attributes:
        images: sorted (relative path, `file_state`) of every image.
        refused: sorted (path, reason) of what cannot be read.
        others: the number of other files.
        looked_ns: when the walk began.
    """

    images: list[tuple[str, cache.FileState]]
    refused: list[tuple[str, str]]
    others: int
    looked_ns: int


@dataclass(frozen=True)
class FolderSource:
    """Images below a folder; links to files and folders are followed, loops of them are harmless.

    The folder is walked once for each such object; another object sees what has changed since.
    """

    path: Path
    name: str
    kind: ClassVar[str] = "folder"

    @cached_property
    def _scan(self) -> _Scan:
        looked_ns = time.time_ns()
        images: list[tuple[str, cache.FileState]] = []
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
                images.append((relative, cache.file_state(status)))
            else:
                refused.append((relative, "not a regular file"))
        return _Scan(sorted(images), sorted(refused), others, looked_ns)

    @cached_property
    def _contents(self) -> dict[str, bytes]:
        """Files that were read to be hashed and not handed on yet, if all of them together are few bytes."""
        return {}

    @cached_property
    def _unread(self) -> dict[str, str]:
        """Why a file could not be read when it was to be hashed."""
        return {}

    def content(self, progress: bool = False) -> str:
        """Which images these are: sha256 over the relative path and the bytes of every image.

        The files are read only if `file_state` of one differs from last time.

        Args:
            progress: whether a bar shows how many have been hashed.
        """
        scan = self._scan
        if not scan.images:
            first = f", {scan.refused[0][0]}: {scan.refused[0][1]}" if scan.refused else ""
            raise DataError(
                f"no images in the folder {self.path}",
                saw=f"{scan.others} other files{first}",
                fix=f"give a folder that holds {LAYOUTS}",
            )
        states = (scan.images, scan.refused)
        digest = cache.recall_digest(self.path, states)
        if digest is None:
            digest = self._hash(progress)
            if not self._unread:  # it may be readable next time
                changed_ns = max(max(state[3:]) for _, state in scan.images)
                cache.remember_digest(self.path, states, digest, changed_ns=changed_ns, looked_ns=scan.looked_ns)
        return f"folder {digest}"

    def old_content(self) -> str:
        """What `content` was in versions that relied on relative path, size and modification time."""
        digest = hashlib.sha256(b"folder\n")
        for path, (_, _, nbytes, _, mtime_ns) in self._scan.images:
            digest.update(repr((path, nbytes, mtime_ns)).encode())
        for row in self._scan.refused:
            digest.update(repr(row).encode())
        return digest.hexdigest()

    def _hash(self, progress: bool) -> str:
        """The sha256 of all images, or of the reason why one cannot be read."""
        images = self._scan.images
        keep = sum(state[2] for _, state in images) <= KEEP_BYTES
        digest = hashlib.sha256(repr(self._scan.refused).encode())
        batches = ([path for path, _ in images[start : start + _BATCH]] for start in range(0, len(images), _BATCH))
        with progress_bar("hashing", len(images), "images", progress) as advance:
            for results in in_threads(partial(_read_files, self.path, keep), batches):
                for path, of_file, content in results:
                    digest.update(repr((path, of_file)).encode())
                    if isinstance(of_file, str):
                        self._unread[path] = of_file
                    elif content is not None:
                        self._contents[path] = content
                advance(len(results))
        return digest.hexdigest()

    def blobs(self, contents: bool = True, progress: bool = False) -> Iterator[Blob]:
        """Every refused file with its reason, then every image with its bytes (if they were kept) or its place.

        Args:
            contents: whether the bytes are wanted, or the names are enough. Bytes are handed over once.
            progress: whether a bar shows how many have been taken.
        """
        for path, reason in self._scan.refused:
            yield Blob(path, None, reason)
        with progress_bar("reading", len(self._scan.images), "images", progress) as advance:
            for path, _ in self._scan.images:
                content = self._contents.pop(path, None) if contents else None
                if path in self._unread:
                    yield Blob(path, None, self._unread[path])
                else:
                    yield Blob(path, self.path / path if content is None else content)
                advance(1)


def _read_files(folder: Path, keep: bool, paths: list[str]) -> list[tuple[str, bytes | str, bytes | None]]:
    """(relative path, sha256 of the file or the reason why it cannot be read, its bytes if they are to be kept)."""
    results: list[tuple[str, bytes | str, bytes | None]] = []
    for path in paths:
        try:
            with (folder / path).open("rb", buffering=0) as file:
                kept: bytes | None = file.read(_READ_BYTES)
                digest = hashlib.sha256(kept or b"")
                while more := file.read(_READ_BYTES):
                    digest.update(more)
                    kept = None
        except OSError as error:
            results.append((path, f"cannot be opened ({error.strerror})", None))
        else:
            results.append((path, digest.digest(), kept if keep else None))
    return results


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
