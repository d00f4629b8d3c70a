"""Writing files: whole or not at all, and only inside a directory that was opened. Imports no torch and no NumPy."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from .errors import DataError, PlatformError, UsageError

# Whether names are looked up in an open directory. Elsewhere (Windows) paths are joined, and checked before each use.
RELATIVE = {os.open, os.mkdir, os.stat, os.unlink, os.rmdir, os.rename, os.link} <= os.supports_dir_fd
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
# O_PATH: a directory that may be written and not listed can be opened as well.
_DIRECTORY = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_PATH", os.O_RDONLY)


class Folder:
    """A directory that was opened, and the one way in which files of ours come into it.

    Links on the way to it are the user's and are followed. Inside it none is: a link in place of a file is replaced
    or refused, one in place of a folder is refused. Names are single parts of a path.

    Before each write, what stands at the path is compared with what was opened: a process whose directory was removed,
    moved or replaced stops, and never writes into what stands there now.

    Attributes:
        path: as it was named.

    Raises:
        PlatformError: from every method: no space, no permission, or another directory at the path.
        DataError: from every method: a link, a device or a name that leads elsewhere.
    """

    def __init__(self, path: Path, what: str, above: Folder | None, handle: int | None) -> None:
        self.path, self._what, self._above, self._handle = path, what, above, handle
        # Absolute, for the process may go to another working directory.
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
        """The directory that the user named, links followed; with `make` it and those above are made where missing.

        `what` is written there, in the words of an error: "cannot write the pictures".
        """
        path = Path(path)
        with _clear_errors(path, what):
            if make:
                with suppress(FileExistsError):  # a file: below, "Not a directory" says more
                    path.mkdir(parents=True, exist_ok=True)
            return cls(path, what, None, os.open(path, _DIRECTORY) if RELATIVE else None)

    @classmethod
    def of(cls, place: Path | Folder, what: str = "") -> Folder:
        """An opened directory as it is; a path is opened as the user's, and made where it is missing."""
        return place if isinstance(place, Folder) else cls.open(place, what, make=True)

    def folder(self, name: str, what: str = "", *, make: bool = True) -> Folder:
        """A directory inside; with `make` it is made where it is missing."""
        self.check()
        what = what or self._what
        with _clear_errors(self.path / _plain(name), what):
            if make:
                with suppress(FileExistsError):
                    os.mkdir(self._at(name), dir_fd=self._handle)
            if stat.S_ISLNK(self.status(name).st_mode):
                raise _refused(self.path / name, "a link where a run has a folder")
            handle = os.open(self._at(name), _DIRECTORY | _NO_FOLLOW, dir_fd=self._handle) if RELATIVE else None
            return Folder(self.path / name, what, self, handle)

    def check(self) -> None:
        """Compares the directory with what stands at its path.

        Raises:
            PlatformError: it was removed, moved or replaced; says where its files are, if that can be known.
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
                fix=f"its files, with what was saved last, are in {now}: go on there"
                if now
                else "its files went with it: start again, in a directory that nothing else writes to",
            )

    def _moved_to(self) -> Path | None:
        """Where the directory is now, as Linux tells it; None for one that was removed."""
        with suppress(OSError):
            now = Path(f"/proc/self/fd/{self._handle}").readlink()
            if os.path.samestat(now.stat(), self._identity):
                return now
        return None

    def names(self) -> list[str]:
        """What is in it, in alphabetical order."""
        with _clear_errors(self.path, self._what):
            if self._handle is None:
                return sorted(path.name for path in self._where.iterdir())
            listed = os.open(".", os.O_RDONLY, dir_fd=self._handle)
            try:
                return sorted(os.listdir(listed))  # noqa: PTH208  # a descriptor
            finally:
                os.close(listed)

    def kinds(self) -> dict[str, int]:
        """The names in it, each with its `st_mode`; links are not followed."""
        found = {}
        with _clear_errors(self.path, self._what):
            for name in self.names():
                with suppress(FileNotFoundError):  # removed since, by a process that writes here
                    found[name] = self.status(name).st_mode
        return found

    def status(self, name: str) -> os.stat_result:
        """What `lstat` says of a name inside; FileNotFoundError where there is none."""
        return os.stat(self._at(name), dir_fd=self._handle, follow_symlinks=False)

    def is_file(self, name: str) -> bool:
        """Whether a regular file has the name; a link is none."""
        with suppress(OSError):
            return stat.S_ISREG(self.status(name).st_mode)
        return False

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """A file that gets its name at the end of the `with`, synchronised; if that fails, what stood there stays."""
        self.check()
        temporary = f".{_plain(name)}.{os.getpid()}.tmp"
        with _clear_errors(self.path / name, self._what):
            try:
                with self._create(temporary) as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                self.rename(temporary, name)
            except BaseException:
                with suppress(OSError):  # a full disk, a directory that is gone: must not hide the cause
                    os.unlink(self._at(temporary), dir_fd=self._handle)
                raise

    def _create(self, name: str) -> IO[bytes]:
        path = self.path / name
        try:
            return open(path, "xb", opener=self._opener)
        except FileExistsError:  # left by a process of the same number that was killed, or a link that waits for us
            os.unlink(self._at(name), dir_fd=self._handle)
            return open(path, "xb", opener=self._opener)

    def _opener(self, path: str, flags: int) -> int:
        return os.open(self._at(Path(path).name), flags | _NO_FOLLOW, 0o666, dir_fd=self._handle)

    def write(self, name: str, *parts: bytes | memoryview) -> None:
        """A file whole or not at all: temporary file, fsync, rename."""
        with self.writing(name) as file:
            for part in parts:
                file.write(part)

    def write_text(self, name: str, text: str) -> None:
        """`write` for text, as UTF-8."""
        self.write(name, text.encode())

    def append(self, name: str, mode: str = "ab") -> IO[Any]:
        """A file opened in `mode`, which is one that appends; made where it is missing. Text is UTF-8."""
        self.check()
        path, text = self.path / _plain(name), "b" not in mode
        with _clear_errors(path, self._what):
            with suppress(FileNotFoundError):
                kind = self.status(name).st_mode
                if stat.S_ISLNK(kind):
                    raise _refused(path, "a link where a run has a file")
                if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # a directory is refused by `open`
                    raise _refused(path, "a device or pipe where a run has a file")
            encoding, errors = ("utf-8", "replace") if text else (None, None)
            return open(path, mode, encoding=encoding, errors=errors, opener=self._opener)

    def rename(self, name: str, new: str) -> None:
        """Gives a file another name; what had that name goes."""
        self.check()
        with _clear_errors(self.path / _plain(new), self._what):
            os.replace(self._at(name), self._at(new), src_dir_fd=self._handle, dst_dir_fd=self._handle)

    def copy(self, name: str, new: str) -> None:
        """A second name for a file, where the file system has hard links, else a copy; what had that name goes."""
        self.remove(new)
        with _clear_errors(self.path / new, self._what):
            try:
                handles = {"src_dir_fd": self._handle, "dst_dir_fd": self._handle}
                os.link(self._at(name), self._at(new), **handles, follow_symlinks=False)
            except OSError:
                with open(self.path / name, "rb", opener=self._opener) as file:
                    self.write(new, file.read())

    def remove(self, name: str) -> None:
        """Removes a file, or a link and not what it leads to; nothing where there is none."""
        self.check()
        with _clear_errors(self.path / _plain(name), self._what), suppress(FileNotFoundError):
            os.unlink(self._at(name), dir_fd=self._handle)

    def remove_folder(self, name: str) -> None:
        """Removes an empty directory."""
        self.check()
        with _clear_errors(self.path / _plain(name), self._what):
            os.rmdir(self._at(name), dir_fd=self._handle)

    def _at(self, name: str) -> str:
        return name if self._handle is not None else str(self._where / name)


def write_atomic(path: Path, *parts: bytes | memoryview) -> None:
    """Writes a file that the user named, whole or not at all; a link at `path` is replaced, not written through.

    Raises:
        PlatformError: no space or no permission; what stood at `path` is untouched.
    """
    Folder.open(path.parent).write(path.name, *parts)


def write_text_atomic(path: Path, text: str) -> None:
    """`write_atomic` for text, as UTF-8."""
    write_atomic(path, text.encode())


def named_path(given: str | Path, option: str = "--out") -> Path:
    """A path that the user gave.

    Raises:
        UsageError: it is empty, which pathlib takes for the working directory.
    """
    if not os.fspath(given):
        raise UsageError(f"{option} is empty", saw=repr(given), fix=f"name a place, or leave {option} out")
    return Path(given)


def is_plain_name(name: str) -> bool:
    """Whether a name from a recipe, a result or a data set can stand for one file or folder."""
    return _is_one_part(name) and name.isprintable() and "\\" not in name


def _is_one_part(name: str) -> bool:
    return name not in ("", ".", "..") and not set(name) & {os.sep, os.altsep, "\0"}


def _plain(name: str) -> str:
    if not _is_one_part(name):
        raise DataError("this cannot be the name of a file", saw=repr(name), fix="take a name without slashes")
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
            fix="free space or choose another place; what was there is intact",
        ) from error
