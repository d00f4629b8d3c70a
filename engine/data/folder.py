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
from unicodedata import normalize

from ..boundary import raise_fault
from ..bounds import MAX_DEPTH
from ..errors import DataError
from ..files import MARKER
from ..inputs import open_regular
from ..progress import progress_bar
from . import cache
from .archive import unread
from .decode import HEAD_BYTES, image_format
from .levels import FULL_LEVELS, Levels, levels_key
from .listing import LAYOUTS, Blob, has_image_ending, is_hidden, is_label_file
from .pack import KEEP_BYTES, in_threads
from .tables import LabelTable

_BATCH = 64
_READ_BYTES = 4 << 20
States = list[tuple[str, cache.FileState]]


@dataclass(frozen=True)
class _Scan:
    """What one walk over a folder saw.

    Attributes:
        images: sorted (relative path, `file_state`) of every file with the ending of an image, or of the label of one.
        others: the same of every other file that may be an image all the same.
        refused: sorted (path, reason) of what cannot be read.
        runs: sorted folders that hold a run.
        looked_ns: when the walk began.
    """

    images: States
    others: States
    refused: list[tuple[str, str]]
    runs: list[str]
    looked_ns: int

    def states(self) -> object:
        """All of it that a hash of the images depends on."""
        return (self.images, self.refused, self.others) if self.others else (self.images, self.refused)


@dataclass(frozen=True)
class FolderSource:
    """Images below a folder; links to files and folders are followed, loops of them are harmless.

    The folder is walked once for each such object; another object sees what has changed since.

    Attributes:
        path, name: of the folder, and what the user called it.
        labels: the class of each image, from a table; None where folders are classes.
        listed: the images, relative to the folder; None for all that are in it.
        levels: how 16-bit images become 8 bits, see `decode_image`.
    """

    path: Path
    name: str
    labels: LabelTable | None = None
    listed: tuple[str, ...] | None = None
    levels: Levels = FULL_LEVELS
    kind: ClassVar[str] = "folder"

    @cached_property
    def _scan(self) -> _Scan:
        scan = _Scan([], [], [], [], time.time_ns())
        for relative, entry in _walk(self.path, scan) if self.listed is None else _listed(self.path, self.listed):
            is_image = has_image_ending(relative) or is_label_file(relative)
            if not is_image and (reason := unread(relative)):
                scan.refused.append((relative, reason))
                continue
            try:
                status = entry.stat()
            except (OSError, ValueError) as error:
                raise_fault(error)
                why = error.strerror if isinstance(error, OSError) else error
                if is_image or self.listed is not None:
                    scan.refused.append((relative, f"cannot be opened ({why})"))
                continue
            if stat.S_ISREG(status.st_mode):
                (scan.images if is_image else scan.others).append((relative, cache.file_state(status)))
            elif is_image:
                scan.refused.append((relative, "not a regular file"))
        for part in (scan.images, scan.others, scan.refused, scan.runs):
            part.sort()
        return scan

    @cached_property
    def _found(self) -> dict[str, tuple[str, list[str]]]:
        """The hash of the images, and their sorted paths, once they are known."""
        return {}

    @cached_property
    def _contents(self) -> dict[str, bytes]:
        """Files that were read to be hashed and not handed on yet, if all of them together are few bytes."""
        return {}

    @cached_property
    def _unread(self) -> dict[str, str]:
        """Why a file could not be read when it was to be hashed."""
        return {}

    def content(self, progress: bool = False) -> str:
        """Which images these are: sha256 over the relative path and the bytes of every image, and over their labels.

        The files are read only if `file_state` of one differs from last time.

        Args:
            progress: whether a bar shows how many have been hashed.
        """
        if not self._found:
            self._found["images"] = self._recall() or self._look(progress)
        about = f" labels {self.labels.digest}" if self.labels is not None else ""
        return f"folder {self._found['images'][0]}{about}{levels_key(self.levels)}"

    @property
    def runs(self) -> list[str]:
        """The folders in it that hold a run of ours, and are left out."""
        return self._scan.runs

    def _recall(self) -> tuple[str, list[str]] | None:
        note = cache.recall_digest(self.path, self._scan.states())
        if note is None:
            return None
        digest, unnamed = note
        return digest, sorted([path for path, _ in self._scan.images] + unnamed)

    def _look(self, progress: bool) -> tuple[str, list[str]]:
        """Hashes the images, and finds those without the ending of one."""
        scan = self._scan
        unnamed = self._unnamed()
        images = sorted(scan.images + unnamed)
        if all(is_label_file(path) for path, _ in images):
            first = f", {scan.refused[0][0]}: {scan.refused[0][1]}" if scan.refused else ""
            raise DataError(
                f"no images in the folder {self.path}",
                saw=f"{len(scan.others) + len(scan.refused):,} other files{first}",
                fix=f"give a folder that holds {LAYOUTS}",
            )
        digest = self._hash(images, progress)
        if not self._unread:  # it may be readable next time
            changed_ns = max(max(state[3:]) for _, state in images + scan.others)
            names = [path for path, _ in unnamed]
            found = (digest, names)
            cache.remember_digest(self.path, scan.states(), found, changed_ns=changed_ns, looked_ns=scan.looked_ns)
        return digest, [path for path, _ in images]

    def _unnamed(self) -> States:
        """Of the files without the ending of an image, those that are one by their bytes."""
        others = self._scan.others
        batches = (others[start : start + _BATCH] for start in range(0, len(others), _BATCH))
        found = []
        for batch, are in in_threads(partial(_are_images, self.path), batches):
            found += [one for one, is_one in zip(batch, are, strict=True) if is_one]
        return found

    def old_content(self) -> str:
        """What `content` was in versions that relied on relative path, size and modification time."""
        digest = hashlib.sha256(b"folder\n")
        for path, (_, _, nbytes, _, mtime_ns) in self._scan.images:
            digest.update(repr((path, nbytes, mtime_ns)).encode())
        for row in self._scan.refused:
            digest.update(repr(row).encode())
        return digest.hexdigest()

    def _hash(self, images: States, progress: bool) -> str:
        """The sha256 of all images, or of the reason why one cannot be read."""
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
        self.content(progress)
        _, images = self._found["images"]
        with progress_bar("reading", len(images), "images", progress) as advance:
            for path in images:
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
            with open_regular(folder / path) as file:
                kept: bytes | None = file.read(_READ_BYTES)
                digest = hashlib.sha256(kept or b"")
                while more := file.read(_READ_BYTES):
                    digest.update(more)
                    kept = None
        except OSError as error:
            raise_fault(error)
            results.append((path, f"cannot be opened ({error.strerror})", None))
        else:
            results.append((path, digest.digest(), kept if keep else None))
    return results


def _are_images(folder: Path, batch: States) -> tuple[States, list[bool]]:
    """Whether each file is an image by its first bytes; one that cannot be opened is none."""
    are = []
    for path, _ in batch:
        try:
            with open_regular(folder / path) as file:
                are.append(image_format(file.read(HEAD_BYTES)) is not None)
        except OSError as error:
            raise_fault(error)
            are.append(False)
    return batch, are


def _walk(folder: Path, scan: _Scan) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every visible file below `folder` with its relative POSIX path; a folder inside itself is not entered again.

    Folders that hold a run or cannot be read are put into `scan`.
    """
    waiting: list[tuple[Path, str, tuple[tuple[int, int], ...]]] = [(folder, "", ())]
    while waiting:
        at, prefix, above = waiting.pop()
        try:
            status = at.stat()
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                continue
            if len(above) > MAX_DEPTH:
                scan.refused.append((prefix.rstrip("/"), f"lies more than {MAX_DEPTH} folders deep"))
                continue
            with os.scandir(at) as entries:
                inside = list(entries)
        except OSError as error:
            raise_fault(error)
            if not above:
                raise DataError(
                    f"the folder {folder} cannot be read", saw=error.strerror, fix="check the path and its permissions"
                ) from error
            scan.refused.append((prefix.rstrip("/"), f"the folder cannot be read ({error.strerror})"))
            continue
        if any(entry.name == MARKER for entry in inside):
            if not above:
                raise DataError(f"{folder} holds a run, not images to train on", fix="name the folder of the images")
            scan.runs.append(prefix.rstrip("/"))
            continue
        for entry in inside:
            if is_hidden(entry.name):
                continue
            if _is_folder(entry):
                waiting.append((at / entry.name, f"{prefix}{entry.name}/", (*above, identity)))
            else:
                yield prefix + entry.name, entry


def _listed(folder: Path, paths: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    """The files of a list: relative paths of those in the folder, absolute ones of others, each once."""
    for path in dict.fromkeys(_within(folder.absolute(), path) for path in paths):
        if not path.isascii():  # a list from another system may write é in the other of its two forms
            forms = (path, normalize("NFC", path), normalize("NFD", path))
            path = next((form for form in forms if os.path.lexists(folder / form)), path)
        yield path, folder / path


def _within(folder: Path, path: str) -> str:
    whole = Path(os.path.normpath(folder / path))
    return (whole.relative_to(folder) if whole.is_relative_to(folder) else whole).as_posix()


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # a link to itself; it is reported when the file is opened
        raise_fault(error)
        return False
