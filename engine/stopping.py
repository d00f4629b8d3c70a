"""Ends a run on a signal: between two steps or, if a step takes too long, in the middle of it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from .errors import EngineError
from .terminal import say_error

# Most time from SIGTERM to the end; Slurm and Kubernetes send SIGKILL 30 seconds after SIGTERM.
STOP_SECONDS = 25.0


class Interrupted(EngineError):
    """Ctrl-C or SIGTERM: the run was saved and can be resumed."""

    exit_code = 130


@contextmanager
def stop_requests(end: Callable[[], None]) -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that the loop ends between two steps; a second SIGINT is not caught.

    The sender of SIGTERM does not wait, so `end` is called from a thread if the loop has not ended after STOP_SECONDS.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def request(number: int, frame: FrameType | None) -> None:
        if event.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        event.set()

    previous = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        with _deadline(end):
            yield event
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)


@contextmanager
def _deadline(end: Callable[[], None]) -> Iterator[None]:
    """Calls `end` from a thread STOP_SECONDS after SIGTERM.

    Signal handlers run in the main thread between two operations of Python, and a long backward pass is one operation.
    The descriptor of `set_wakeup_fd` is written immediately.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    ended = threading.Event()

    def watch() -> None:
        while number := os.read(reading, 1):
            if number[0] == signal.SIGTERM:
                if not ended.wait(STOP_SECONDS):
                    end()
                return

    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watcher = threading.Thread(target=watch, name="deadline", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        ended.set()
        os.close(writing)
        watcher.join()
        os.close(reading)


def give_up(directory: Path, go_on: str) -> None:
    """Ends the process in the middle of a step. As after a kill, the files are intact, and `go_on` resumes the run."""
    saved = any((directory / "checkpoints").glob("*.pt"))
    fix = f"continue with: {go_on}" if saved else "nothing was saved yet: start again with --overwrite"
    error = Interrupted(
        "stopped in the middle of a step; the checkpoint before it is kept",
        saw=f"a step did not end within {STOP_SECONDS:.0f} s of SIGTERM",
        fix=fix,
    )
    say_error(error)
    os._exit(Interrupted.exit_code)
