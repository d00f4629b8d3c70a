"""Locks that the system frees when their process ends, however it ends. They tell what a killed process left from what
a running one uses; age and process numbers do not. Imports no torch."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]  # a module, or nothing

HELD = "lock"  # the file in a temporary folder that its process holds
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}  # some network mounts


def lock(file: IO[Any], path: Path) -> bool:
    """Locks an open file until it is closed or its process ends; False if there are no locks here.

    Raises:
        BlockingIOError: another has the lock, or has removed the file from `path` in the meantime.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        there = path.stat()
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        if error.errno in (errno.EACCES, errno.ENOENT):
            raise BlockingIOError(errno.EWOULDBLOCK, error.strerror, str(path)) from error
        raise
    if not os.path.samestat(there, os.fstat(file.fileno())):
        raise BlockingIOError(errno.EWOULDBLOCK, "it was replaced", str(path))
    return True


def wait_for_lock(handle: int) -> None:
    """Waits for the lock of an open file or directory; returns immediately if there are no locks here."""
    if fcntl is not None:
        with suppress(OSError):  # NFS locks no directory
            fcntl.flock(handle, fcntl.LOCK_EX)


@contextmanager
def held_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder in `parent` that `sweep` leaves alone while this process lives; removed at the end, if it is there.

    Raises:
        OSError: it cannot be made.
    """
    folder, file = _made(parent, prefix)
    try:
        yield folder
    finally:
        clear(folder)
        file.close()


def _made(parent: Path, prefix: str) -> tuple[Path, IO[bytes]]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with suppress(FileNotFoundError, BlockingIOError):  # `sweep` came between: it took the folder for a left one
            file = (folder / HELD).open("xb")
            if not lock(file, folder / HELD):
                file.close()  # Windows renames no folder with an open file
            return folder, file
        if not parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(parent))


def sweep(parent: Path, prefix: str, ours: re.Pattern[str]) -> None:
    """Clears the folders of `held_folder` that killed processes left of what has these names. Folders without the lock
    file stay, and all on a file system without locks."""
    with suppress(OSError):
        for folder in [path for path in parent.iterdir() if path.name.startswith(prefix) and not path.is_symlink()]:
            with suppress(OSError):
                folder.rmdir()  # killed before it had its lock file; a running process makes another
            with suppress(OSError), (folder / HELD).open("r+b") as file:
                if lock(file, folder / HELD):
                    clear(folder, ours)


def clear(folder: Path, ours: re.Pattern[str] | None = None) -> None:
    """Removes what has these names, or all that is in it. The lock file goes last, so that a kill leaves a folder to
    `sweep`, and the folder if nothing else was in it."""
    with suppress(OSError):
        for path in [path for path in folder.iterdir() if path.name != HELD]:
            if ours is None or ours.fullmatch(path.name):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        (folder / HELD).unlink(missing_ok=True)
        folder.rmdir()
