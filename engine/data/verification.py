"""Images that are too many to be compared with their fingerprint before they are used: compared while they are used."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..sealing import AlteredError

_READ_BYTES = 1 << 20


def running_hashes(
    shape: tuple[int, ...], paths: Sequence[Path], start: int, labels: NDArray[np.int64] | None
) -> Iterator[str]:
    """The sha256 of shape and pixels up to the end of each file, and at last with the labels: `store.fingerprint`.

    Args:
        shape: of all images.
        paths: files of their pixels, after `start` bytes of header.
        labels: int64 `[N]`.
    """
    digest, buffer = hashlib.sha256(repr(shape).encode()), memoryview(bytearray(_READ_BYTES))
    for path in paths:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            while count := file.readinto(buffer):  # this and hashing leave the interpreter to other threads
                digest.update(buffer[:count])
        yield digest.hexdigest()
    if labels is not None:
        digest.update(np.ascontiguousarray(labels, dtype=np.int64).data)
    yield digest.hexdigest()


class Verification:
    """Compares the files of a split with the hashes in its description, once, in a thread of its own.

    Args:
        hashes: of `running_hashes`.
        said: for each of them what to name if it differs, and the hash that was found at packing; None if not known.
        paths: of the image files.
    """

    def __init__(self, hashes: Iterator[str], said: Sequence[tuple[Path, str | None]], paths: Sequence[Path]) -> None:
        self._hashes, self._said, self._paths = hashes, said, paths
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._error: AlteredError | None = None

    def __call__(self, wait: bool) -> None:
        """Begins, unless it has begun, and with `wait` waits for the end; else it takes the time that others leave.

        Raises:
            AlteredError: names the file that is damaged. The next start looks at all of them before it uses them.
        """
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, args=(not wait,), name="verification", daemon=True)
                self._thread.start()
        if wait:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self, behind: bool) -> None:
        if behind and sys.platform == "linux":  # elsewhere a priority is that of the whole process
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        try:
            for path, wanted in self._said:  # noqa: B007  # the error names it
                if wanted not in (None, next(self._hashes)):
                    raise ValueError("its content is not what was packed")
        except Exception as error:  # also one of the disk: what was not read is not verified
            why = error.strerror if isinstance(error, OSError) else error
            fix = "run again: the images are packed again first. Start a run that saw the damaged ones with --overwrite"
            self._error = AlteredError("a file of the packed images is damaged", saw=f"{path}: {why}", fix=fix)
            for one in self._paths:  # a file with another time is looked at before it is used
                with suppress(OSError):
                    os.utime(one)
