"""Ends a run on a signal: between two steps or, if a step takes too long, in the middle of it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from .errors import EngineError
from .terminal import say, say_error

if TYPE_CHECKING:
    import subprocess

# Most time from SIGTERM to the end; Slurm and Kubernetes send SIGKILL 30 seconds after SIGTERM.
STOP_SECONDS = 25.0
_HANGUP = getattr(signal, "SIGHUP", signal.SIGTERM)  # Windows has none


class Interrupted(EngineError):
    """Ctrl-C, SIGTERM or SIGHUP: the run was saved and can be resumed."""

    exit_code = 130


@contextmanager
def stop_requests(end: Callable[[], None]) -> Iterator[threading.Event]:
    """An event that SIGINT, SIGTERM and SIGHUP set, so that the loop ends between two steps and saves.

    A second SIGINT says so, and a third one raises KeyboardInterrupt at once. The sender of SIGTERM, and a terminal
    that is closed, do not wait: `end` is called from a thread if the loop has not ended after STOP_SECONDS.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    asked = 0

    def request(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        event.set()
        asked += number == signal.SIGINT
        if number == signal.SIGINT and asked == 2:
            say("the run ends after this step and is saved; Ctrl-C once more ends it at once, without saving")
        elif number == signal.SIGINT and asked > 2:
            raise KeyboardInterrupt

    with _handling(request), _deadline(end):
        yield event


@contextmanager
def stop_together(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[Callable[[], bool]]:
    """Stops the processes with this one: no exception and no signal leaves them behind.

    Yields a function that waits for them and says whether SIGINT, SIGTERM or SIGHUP came meanwhile. The latter two are
    passed on as SIGTERM; a Ctrl-C has reached them from the terminal. An exception within the `with` goes on after they
    got SIGTERM and have ended. Processes may be added within it.
    """
    came = set[int]()

    def stop(number: int, frame: FrameType | None = None) -> None:
        came.add(number)
        if came - {signal.SIGINT}:
            for process in processes:
                process.terminate()

    def wait() -> bool:
        if came:  # perhaps while a process was started, and was not in the list yet
            stop(min(came))
        for process in processes:
            process.wait()
        return bool(came)

    with _handling(stop):
        try:
            yield wait
        except BaseException:
            stop(signal.SIGTERM)
            wait()
            raise


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP go to the handler. Python allows that in the main thread only; elsewhere nothing
    changes."""
    caught = {signal.SIGINT, signal.SIGTERM}
    if signal.getsignal(_HANGUP) != signal.SIG_IGN:  # by `nohup`: the run is to outlive its terminal
        caught.add(_HANGUP)
    main = threading.current_thread() is threading.main_thread()
    previous = {s: signal.signal(s, handler) for s in caught} if main else {}
    try:
        yield
    finally:
        for s, before in previous.items():
            signal.signal(s, before)


@contextmanager
def _deadline(end: Callable[[], None]) -> Iterator[None]:
    """Calls `end` from a thread STOP_SECONDS after SIGTERM or SIGHUP.

    Signal handlers run in the main thread between two operations of Python, and a long backward pass is one operation.
    The descriptor of `set_wakeup_fd` is written immediately.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    ended = threading.Event()

    def watch() -> None:
        while number := os.read(reading, 1):
            if number[0] in (signal.SIGTERM, _HANGUP):
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


def saved_so_far(directory: Path, go_on: str) -> str:
    """How a run goes on that could not be saved at its end: from its last checkpoint, if there is one."""
    saved = any((directory / "checkpoints").glob("*.pt"))
    return f"continue with: {go_on}" if saved else "nothing was saved yet: start again with --overwrite"


def give_up(directory: Path, go_on: str) -> None:
    """Ends the process in the middle of a step. As after a kill, the files are intact, and `go_on` resumes the run."""
    error = Interrupted(
        "stopped in the middle of a step; the checkpoint before it is kept",
        saw=f"a step did not end within {STOP_SECONDS:.0f} s of the signal",
        fix=saved_so_far(directory, go_on),
    )
    say_error(error)
    os._exit(Interrupted.exit_code)
