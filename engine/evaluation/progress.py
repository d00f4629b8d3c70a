"""How far an evaluation is: a bar on a terminal, elsewhere a line now and then. Always to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]
INTERVAL = 15.0  # seconds between lines


@contextmanager
def show_progress(what: str, total: int, wanted: bool) -> Iterator[Advance | None]:
    """A function that takes the number of images just done; None where no progress is wanted."""
    if not wanted:
        yield None
    elif not sys.stderr.isatty():
        yield _lines(what, total)
    else:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        # The text may hold brackets from a file's name, which rich would take for markup.
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
        clocks = (TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, *clocks, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda images: bar.advance(task, images)


def _lines(what: str, total: int) -> Advance:
    """Says nothing of what is done within a quarter of a minute."""
    start = last = time.monotonic()
    done = 0

    def advance(images: int) -> None:
        nonlocal done, last
        done, now = done + images, time.monotonic()
        if now - last >= INTERVAL and done:
            last = now
            left = (now - start) * (total - done) / done
            print(f"[{100 * done // max(1, total):3d}%] {what}  {left:.0f} s left", file=sys.stderr, flush=True)

    return advance
