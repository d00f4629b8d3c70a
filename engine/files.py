"""Writes files atomically, inside a directory that was opened before, and reads bounded .npz files. Imports no torch,
and NumPy only where arrays are read."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .boundary import meaning, raise_fault
from .bounds import LARGEST_NPZ
from .errors import DataError, PlatformError, UsageError
from .inputs import open_regular
from .locks import lock, wait_for_lock
from .sealing import BLANK, FIELD, AlteredError, NewerError, altered, append_seal, refuse_newer, sealed, verify
from .terminal import say_once

if TYPE_CHECKING:
    from numpy.typing import NDArray

MARKER = ".simclr-engine-run"  # the file by which a folder is known as a run
TEMPORARY = re.compile(r"\..+\.\d{20}\.tmp")  # the names of `Folder.writing` until a file is whole

# Whether names can be looked up in an open directory. If not (Windows), paths are joined and checked before each use.
RELATIVE = {os.open, os.mkdir, os.stat, os.unlink, os.rmdir, os.rename, os.link} <= os.supports_dir_fd
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
# O_PATH also opens a directory that may be written but not listed.
_DIRECTORY = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_PATH", os.O_RDONLY)


class Folder:
    """An open directory; all files of the engine are written through it.

    Links in the path of the directory are followed. Links inside it are not: a link in place of a file is replaced or
    refused, and a link in place of a folder is refused. Names are single parts of a path.

    Before each write, the directory at the path is compared with the one that was opened. If it was removed, moved or
    replaced, the process stops and does not write into the new one.

    Attributes:
        path: the path as the user named it.

    Raises:
        PlatformError: from every method: no space, no permission, or another directory is at the path.
        DataError: from every method: a link, a device or a name that leads elsewhere.
    """

    def __init__(self, path: Path, what: str, above: Folder | None, handle: int | None) -> None:
        self.path, self._what, self._above, self._handle = path, what, above, handle
        # Absolute, because the process may change its working directory.
        self._where: Path = path.absolute() if above is None else above._where / path.name
        self._identity = self._where.stat() if handle is None else os.fstat(handle)
        if not stat.S_ISDIR(self._identity.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is not None:
            with suppress(OSError):
                os.close(handle)

    @classmethod
    def open(cls, path: str | Path, what: str = "", *, make: bool = False) -> Folder:
        """Opens the directory that the user named, following links; with `make`, missing directories are made.

        `what` says what is written there, for error messages: "cannot write the pictures".
        """
        path = Path(path)
        with _clear_errors(path, what):
            if make:
                with suppress(FileExistsError):  # it is a file: "Not a directory" below says more
                    make_folder(path)
            return cls(path, what, None, os.open(path, _DIRECTORY) if RELATIVE else None)

    @classmethod
    def of(cls, place: Path | Folder, what: str = "") -> Folder:
        """Returns an open directory as it is; opens a path, and makes it if it is missing."""
        return place if isinstance(place, Folder) else cls.open(place, what, make=True)

    def folder(self, name: str, what: str = "", *, make: bool = True) -> Folder:
        """Opens a directory inside; with `make`, makes it if it is missing."""
        self.check()
        what = what or self._what
        with _clear_errors(self.path / _plain(name), what):
            if make:
                with suppress(FileExistsError):
                    os.mkdir(self._at(name), dir_fd=self._handle)
                    self._synchronise()
            if stat.S_ISLNK(self.status(name).st_mode):
                raise _refused(self.path / name, "a link in place of a folder of the run")
            handle = os.open(self._at(name), _DIRECTORY | _NO_FOLLOW, dir_fd=self._handle) if RELATIVE else None
            return Folder(self.path / name, what, self, handle)

    def check(self) -> None:
        """Checks that the directory is still the one at its path.

        Raises:
            PlatformError: it was removed, moved or replaced; names where its files are, if that is known.
        """
        if self._above is not None:
            self._above.check()
        with _clear_errors(self.path, self._what):
            try:
                there = self._where.stat() if self._above is None else self._above.status(self.path.name)
            except (FileNotFoundError, NotADirectoryError):
                there = None
        if there is None or not os.path.samestat(there, self._identity):
            now = self._moved_to()
            raise PlatformError(
                "the directory was removed or replaced while this process was using it",
                saw=self.path,
                fix=f"its files, with the last checkpoint, are in {now}: continue there"
                if now
                else "its files are lost: start again, in a directory that nothing else writes to",
            )

    def _moved_to(self) -> Path | None:
        """Where the directory is now, according to Linux; None if it was removed."""
        with suppress(OSError):
            now = Path(f"/proc/self/fd/{self._handle}").readlink()
            if os.path.samestat(now.stat(), self._identity):
                return now
        return None

    def names(self) -> list[str]:
        """The names in it, in alphabetical order."""
        with _clear_errors(self.path, self._what):
            if self._handle is None:
                return sorted(path.name for path in self._where.iterdir())
            listed = os.open(".", os.O_RDONLY, dir_fd=self._handle)
            try:
                return sorted(os.listdir(listed))  # noqa: PTH208  # a descriptor
            finally:
                os.close(listed)

    def kinds(self) -> dict[str, int]:
        """The names in it and their `st_mode`; links are not followed."""
        found = {}
        with _clear_errors(self.path, self._what):
            for name in self.names():
                with suppress(FileNotFoundError):  # removed in the meantime by a process that writes here
                    found[name] = self.status(name).st_mode
        return found

    def status(self, name: str) -> os.stat_result:
        """`lstat` of a name inside; raises FileNotFoundError if it does not exist."""
        return os.stat(self._at(name), dir_fd=self._handle, follow_symlinks=False)

    def is_file(self, name: str) -> bool:
        """Whether the name is a regular file; False for a link."""
        with suppress(OSError):
            return stat.S_ISREG(self.status(name).st_mode)
        return False

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """A file that is synchronised and gets its name at the end of the `with`; if that fails, the old file stays.
        NewerError if a newer version wrote that."""
        self.check()
        with _clear_errors(self.path / _plain(name), self._what):
            if self.is_file(name):
                with suppress(OSError), open(self.path / name, "rb", opener=self._opener) as old:
                    refuse_newer(old, self.path / name)
            temporary, file, held = self._create(name)
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if not held:  # Windows renames no open file
                    file.close()
                self.rename(temporary, name)
            except BaseException:
                with suppress(OSError):  # a full disk or a missing directory must not hide the cause
                    os.unlink(self._at(temporary), dir_fd=self._handle)
                raise
            finally:
                with suppress(OSError):
                    file.close()

    @contextmanager
    def sealing(self, name: str) -> Iterator[IO[bytes]]:
        """`writing` for an .npy or .npz file; a seal follows what was written."""
        with self.writing(name) as file:
            yield file
            append_seal(file, name)

    def _create(self, name: str) -> tuple[str, IO[bytes], bool]:
        """A new file of a name that no process has used, and whether it is locked against `sweep`."""
        stem = os.fsdecode(os.fsencode(name)[:200])  # a name has at most 255 bytes
        while True:
            temporary = f".{stem}.{int.from_bytes(os.urandom(8)):020}.tmp"
            file = open(self.path / temporary, "x+b", opener=self._opener)  # noqa: SIM115  # the caller closes it
            try:
                return temporary, file, lock(file, self._where / temporary)
            except OSError as error:
                file.close()
                with suppress(OSError):
                    os.unlink(self._at(temporary), dir_fd=self._handle)
                if not isinstance(error, BlockingIOError):  # `sweep` took it for a left one
                    raise

    def sweep(self, names: re.Pattern[str] = TEMPORARY) -> None:
        """Removes the temporary files of these names that killed processes left; all stay where there are no locks."""
        for name in self.names():
            if names.fullmatch(name) and self.is_file(name):
                with suppress(OSError), open(self.path / name, "r+b", opener=self._opener) as file:
                    if lock(file, self._where / name):
                        os.unlink(self._at(name), dir_fd=self._handle)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Waits until no other process is in an `alone` of this directory, for files that belong together."""
        handle: int | None = None
        with suppress(OSError):  # Windows opens no directory
            handle = os.open(self._at("."), os.O_RDONLY, dir_fd=self._handle)
            wait_for_lock(handle)
        try:
            yield
        finally:
            if handle is not None:
                os.close(handle)

    def _opener(self, path: str, flags: int) -> int:
        return os.open(self._at(Path(path).name), flags | _NO_FOLLOW, 0o666, dir_fd=self._handle)

    def write(self, name: str, *parts: bytes | memoryview) -> None:
        """Writes a file atomically: temporary file, fsync, rename."""
        with self.writing(name) as file:
            for part in parts:
                file.write(part)

    def write_text(self, name: str, text: str) -> None:
        """`write` for text, as UTF-8. Halves of surrogate pairs, from names that are not UTF-8, become `\\udce9`, as
        JSON spells them."""
        self.write(name, text.encode(errors="backslashreplace"))

    def append(self, name: str, mode: str = "ab") -> IO[Any]:
        """Opens a file for appending in `mode`, and makes it if it is missing. Text is UTF-8."""
        self.check()
        path, text = self.path / _plain(name), "b" not in mode
        with _clear_errors(path, self._what):
            with suppress(FileNotFoundError):
                kind = self.status(name).st_mode
                if stat.S_ISLNK(kind):
                    raise _refused(path, "a link in place of a file of the run")
                if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # a directory is refused by `open`
                    raise _refused(path, "a device or pipe in place of a file of the run")
            encoding, errors = ("utf-8", "replace") if text else (None, None)
            return open(path, mode, encoding=encoding, errors=errors, opener=self._opener)

    def rename(self, name: str, new: str) -> None:
        """Renames a file; a file of the new name is replaced."""
        self.check()
        with _clear_errors(self.path / _plain(new), self._what):
            os.replace(self._at(name), self._at(new), src_dir_fd=self._handle, dst_dir_fd=self._handle)
            self._synchronise()

    def copy(self, name: str, new: str) -> None:
        """Gives a file a second name, as a hard link if possible, else as a copy; a file of that name is replaced."""
        self.remove(new)
        with _clear_errors(self.path / new, self._what):
            try:
                handles = {"src_dir_fd": self._handle, "dst_dir_fd": self._handle}
                os.link(self._at(name), self._at(new), **handles, follow_symlinks=False)
                self._synchronise()
            except OSError:
                with open(self.path / name, "rb", opener=self._opener) as file:
                    self.write(new, file.read())

    def remove(self, name: str) -> None:
        """Removes a file, or a link but not its target; does nothing if there is none."""
        self.check()
        with _clear_errors(self.path / _plain(name), self._what), suppress(FileNotFoundError):
            os.unlink(self._at(name), dir_fd=self._handle)

    def remove_folder(self, name: str) -> None:
        """Removes an empty directory."""
        self.check()
        with _clear_errors(self.path / _plain(name), self._what):
            os.rmdir(self._at(name), dir_fd=self._handle)

    def _synchronise(self) -> None:
        synchronise(self._where if self._handle is None else ".", self._handle)

    def _at(self, name: str) -> str:
        return name if self._handle is not None else str(self._where / name)


def synchronise(folder: Path | str, inside: int | None = None) -> None:
    """Writes the names in a directory to the disk, so that a renamed file survives a power failure.

    Does nothing where a directory cannot be opened for this (Windows, no permission to list it) or has no such call.
    """
    try:
        handle = os.open(folder, os.O_RDONLY, dir_fd=inside)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Makes a directory and those above it that are missing, and synchronises their names; OSError."""
    missing = [one for one in (path, *path.parents) if not one.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for one in missing:
        synchronise(one.parent)


def write_atomic(path: Path, *parts: bytes | memoryview) -> None:
    """Writes a file that the user named, atomically; a link at `path` is replaced, and its target is unchanged. Folders
    that are missing are made.

    Raises:
        PlatformError: no space or no permission; the file at `path` is unchanged.
    """
    Folder.open(path.parent, make=True).write(path.name, *parts)


def write_text_atomic(path: Path, text: str) -> None:
    """`write_atomic` for text, as UTF-8, in the way of `Folder.write_text`."""
    write_atomic(path, text.encode(errors="backslashreplace"))


def read_arrays(path: Path, again: str, *names: str, needed: bool = False) -> list[NDArray[Any]] | None:
    """The named arrays of an .npz file, or the array of an .npy file; None where it is not there or, with a note, where
    it cannot be used: damaged, of a newer version, or unpacking to more than `LARGEST_NPZ`.

    `again` says what writes it again; with `needed`, a file without a seal counts as damaged.
    """
    try:
        with open_regular(path) as file:
            verify(file, path, again, path.name, needed=needed)
            return _arrays_in(file, path, again, names)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, AlteredError, NewerError) as error:
        raise_fault(error)
        cause = error.cause if isinstance(error, DataError) else error.strerror
        say_once(f"note: {path} is not used: {cause}; {again}")
        return None


def _arrays_in(file: IO[bytes], path: Path, again: str, names: tuple[str, ...]) -> list[NDArray[Any]]:
    import numpy as np

    try:
        if not names:
            return [np.load(file, allow_pickle=False)[()]]
        with np.load(file, allow_pickle=False) as held:
            if sum(member.file_size for member in held.zip.infolist()) > LARGEST_NPZ:
                raise ValueError(f"it unpacks to more than {LARGEST_NPZ:,} bytes")
            arrays = [held[name] for name in names]
        if not all(isinstance(array, np.ndarray) for array in arrays):
            raise ValueError("it holds no arrays")
        return arrays
    except Exception as error:  # numpy, zipfile and zlib raise a dozen kinds for damaged files; all mean the same here
        if isinstance(error, OSError | zipfile.BadZipFile):  # a damaged file may claim any size: memory tells nothing
            raise_fault(error)
        raise altered(path, str(error)[:200], again) from error


def expanded(path: str | Path) -> Path:
    """The path with `~` and `~USER` replaced; that of an unknown user stays, and is then not found."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  # Path.expanduser raises a RuntimeError


def named_path(given: str | Path, option: str = "--out") -> Path:
    """The path that the user gave.

    Raises:
        UsageError: it is empty, which pathlib would read as the working directory; or it is not UTF-8, so that
            safetensors could not read the weights in it.
    """
    if not os.fspath(given):
        raise UsageError(f"{option} is empty", saw=repr(given), fix=f"name a path, or leave {option} out")
    if any("\ud800" <= c <= "\udfff" for c in os.fspath(given)):
        raise UsageError(f"{option} is not UTF-8", saw=given, fix="choose another name")
    return Path(given)


def is_plain_name(name: str) -> bool:
    """Whether a name from a recipe, a result or a data set can be the name of a file or folder."""
    return _is_one_part(name) and name.isprintable() and "\\" not in name


def _is_one_part(name: str) -> bool:
    return name not in ("", ".", "..") and not set(name) & {os.sep, os.altsep, "\0"}


def _plain(name: str) -> str:
    if not _is_one_part(name):
        raise DataError("this cannot be the name of a file", saw=repr(name), fix="use a name without slashes")
    return name


def _refused(path: Path, why: str) -> DataError:
    return DataError(f"there is {why}; it is not written through", saw=path, fix="remove it")


@contextmanager
def _clear_errors(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PlatformError(
            f"cannot write {what}".rstrip(),
            saw=f"{path}: {error.strerror or error}",
            fix=f"{meaning(error.errno)[2]}; the existing files are unchanged",
        ) from error


def sealed_tensors(packed: bytes, name: str = "") -> bytes:
    """A safetensors file with a seal in its metadata, and the keys of these sorted: the library writes them in an order
    of chance.

    The file begins with the length of its JSON header in eight bytes; the header may be padded with spaces
    (https://huggingface.co/docs/safetensors).
    """
    end = 8 + int.from_bytes(packed[:8], "little")
    header = json.loads(packed[8:end])
    metadata = dict(sorted((header.pop("__metadata__", {}) | {FIELD: BLANK}).items()))
    text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return sealed(len(text).to_bytes(8, "little") + text + packed[end:], name)
