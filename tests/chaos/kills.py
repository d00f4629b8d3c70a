"""A child process and how it dies: at a call that changes the disk, within a write, at a line, or at a time."""

from __future__ import annotations

import builtins
import io
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

# The lines of these files are places to die at.
TRACED = (
    *(
        "pretraining.py",
        "recording.py",
        "planning.py",
        "training.py",
        "run.py",
        "layout.py",
        "files.py",
        "checkpoint.py",
    ),
    *("cache.py", "pack.py", "sources.py", "locks.py"),
)
# Every way the product changes what is on disk, apart from writes to open files.
CALLS = ("fsync", "replace", "rename", "link", "unlink", "mkdir", "rmdir", "truncate")
FINISHED, FAILED = 0, 70


@dataclass(frozen=True)
class Kill:
    """When a process kills itself.

    Attributes:
        at: `call` (one of CALLS, opening for writing, or a write), `line` (of TRACED), `time` (the parent kills it).
        number: the how many-th of these; seconds for `time`.
        moment: `before`, `half` (of what is written) or `after` the call.
    """

    at: str
    number: float
    moment: str = "before"


@dataclass
class Outcome:
    """How a child ended.

    Attributes:
        killed: by SIGKILL.
        reports: what it said before, line by line.
        seconds: how long it ran.
        error: its traceback, if it failed.
    """

    killed: bool
    reports: list[str] = field(default_factory=list)
    seconds: float = 0.0
    error: str = ""

    def numbers(self, word: str) -> list[int]:
        """The numbers of the reports `WORD NUMBER`."""
        return [int(row.split()[1]) for row in self.reports if row.startswith(f"{word} ")]


Report = Callable[[str], None]


def run_child(work: Callable[[Report], None], watched: Path, kill: Kill | None = None) -> Outcome:
    """Runs `work` in a forked process, which dies by `kill`; without one, it counts the places to die at.

    A fork and not a new interpreter: importing torch takes seconds, a fork milliseconds.
    """
    reading, writing = os.pipe()
    errors = watched.with_name(f"{watched.name}.err")
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _live(work, watched, kill, writing, errors)
    os.close(writing)
    deadline = began + kill.number if kill is not None and kill.at == "time" else None
    text = b""
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([reading], [], [], left)
        if ready:
            chunk = os.read(reading, 1 << 16)
            if not chunk:
                break
            text += chunk
        else:
            os.kill(child, signal.SIGKILL)
            deadline = None
    os.close(reading)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    error = "" if killed or status == FINISHED else errors.read_text("utf-8", "replace") or f"status {status}"
    errors.unlink(missing_ok=True)
    return Outcome(killed, text.decode().splitlines(), time.monotonic() - began, error)


def _live(work: Callable[[Report], None], watched: Path, kill: Kill | None, pipe: int, errors: Path) -> None:
    """The child, from the fork to its end; never returns."""
    code = FAILED
    try:
        log = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        write = os.write

        def report(text: str) -> None:
            write(pipe, f"{text}\n".encode())

        calls, lines = Calls(watched, kill), Lines(kill)
        calls.plant()
        lines.plant()
        work(report)
        sys.settrace(None)
        report(f"calls {calls.count}")
        report(f"lines {lines.count}")
        code = FINISHED
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def die() -> None:
    """As `kill -9` does it: nothing is flushed, closed or cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


class Calls:
    """Counts what changes the disk below a folder, and dies at its place."""

    def __init__(self, watched: Path, kill: Kill | None) -> None:
        self.watched, self.count = str(watched), 0
        self.kill = kill if kill is not None and kill.at == "call" else None

    def plant(self) -> None:
        """Replaces the functions, in this process for good."""
        for name in CALLS:
            setattr(os, name, self._counted(getattr(os, name)))
        opened = io.open

        def open_counted(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            ours = isinstance(file, int) or str(os.fspath(file)).startswith(self.watched)
            if not ours or not set(mode) & set("wax+"):
                return opened(file, mode, *args, **kwargs)
            return CountedFile(self.around(lambda: opened(file, mode, *args, **kwargs)), self)

        io.open = builtins.open = open_counted

    def around(self, call: Callable[[], Any], half: Callable[[], None] = lambda: None) -> Any:
        """Makes the call, unless this is the place to die at."""
        self.count += 1
        kill = self.kill
        if kill is None or self.count != kill.number:
            return call()
        if kill.moment == "half":
            half()
        elif kill.moment == "after":
            call()
        die()

    def _counted(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(first: Any, *args: Any, **kwargs: Any) -> Any:
            # In an opened directory: one of ours, or of a library that removes a tree.
            opened = isinstance(first, int) or not {"dir_fd", "src_dir_fd"}.isdisjoint(kwargs)
            if not opened and not str(os.fspath(first)).startswith(self.watched):
                return real(first, *args, **kwargs)
            return self.around(lambda: real(first, *args, **kwargs))

        return counted


class CountedFile:
    """A file whose writes are counted, and may be cut in half."""

    def __init__(self, file: Any, calls: Calls) -> None:
        self._file, self._calls = file, calls

    def write(self, data: Any) -> Any:
        """Writes all of it, or dies."""

        def half() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        return self._calls.around(lambda: self._file.write(data), half)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> CountedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class Lines:
    """Counts the lines of the product's files that are executed, in every thread, and dies at its own."""

    def __init__(self, kill: Kill | None) -> None:
        self.count = 0
        self.number = kill.number if kill is not None and kill.at == "line" else None
        self.wanted = kill is None or kill.at == "line"

    def plant(self) -> None:
        """Traces this thread and those to come."""
        if self.wanted:
            threading.settrace(self._enter)
            sys.settrace(self._enter)

    def _enter(self, frame: FrameType, event: str, argument: object) -> Any:
        path = frame.f_code.co_filename
        return self._line if path.endswith(TRACED) and f"{os.sep}tests{os.sep}" not in path else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "line":
            self.count += 1
            if self.count == self.number:
                die()
        return self._line
