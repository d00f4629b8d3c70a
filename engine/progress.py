"""Shows progress on stderr: a bar on a terminal, otherwise a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .errors import plain
from .terminal import display, say

Advance = Callable[[int], None]  # takes the number of units that were done since the last call

INTERVAL = 15.0  # seconds between two lines without a terminal


class Progress:
    """Shows how many of `total` units of work are done.

    Args:
        total: units of work; 0 if the number is not known.
        label: the work, in a few words.
        done: units that are done at the start.
        unit: `bytes` shows amounts of bytes; anything else shows a percentage.
        show: False shows nothing.
        lines: without a terminal, print plain lines at the start, at the end and every INTERVAL.
        short: print no line if the work ends within INTERVAL.
    """

    def __init__(
        self,
        total: int,
        label: str = "",
        *,
        done: int = 0,
        unit: str = "",
        show: bool = True,
        lines: bool = True,
        short: bool = False,
    ) -> None:
        self.total, self.done, self._label = total, done, label
        self._bar: Any = _bar(unit) if show and display().isatty() else None
        self._lines = show and lines and self._bar is None
        self._began, self._at_first, self._short = time.monotonic(), done, short
        self._said = self._began if short else -INTERVAL
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(plain(label), total=total, completed=done)

    def advance(self, count: int = 1) -> None:
        """Adds `count` units."""
        self.update(self.done + count, self._label)

    def update(self, done: int, text: str) -> None:
        """Sets the number of units that are done; `text` describes the state."""
        self.done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=plain(text))
            return
        now = time.monotonic()
        ends = done >= self.total and not self._short
        if self._lines and (ends or now - self._said >= INTERVAL):
            self._said = now
            rate = (done - self._at_first) / max(1e-9, now - self._began)
            left = f"  {(self.total - done) / rate:.0f} s left" if rate > 0 else ""
            say(f"[{100 * done // max(1, self.total):3d}%] {text}{left}")

    def say(self, line: str) -> None:
        """Prints a line above the bar or among the lines, if they are shown."""
        if self._bar is not None or self._lines:
            say(line)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        """Ends the bar and restores the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


@contextmanager
def progress_bar(
    label: str, total: int, unit: str = "images", show: bool = True, lines: bool = False
) -> Iterator[Advance]:
    """A `Progress` as a function that takes the number of units done since the last call.

    Without a terminal it is silent; with `lines` it prints lines if the work takes longer than INTERVAL.
    """
    with Progress(total, label, unit=unit, show=show, lines=lines, short=True) as progress:
        yield progress.advance


def _bar(unit: str) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    amount = DownloadColumn(binary_units=True) if unit == "bytes" else TextColumn("{task.percentage:>3.0f}%")
    # The text may hold brackets from a file name, which rich would read as markup.
    columns = (BarColumn(bar_width=24), amount, TextColumn("{task.description}", markup=False))
    clocks = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    return Bar(*columns, *clocks, console=Console(file=display()))
