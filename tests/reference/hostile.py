"""Text and objects made to break their reader, and what must hold of the error and the memory it took."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from simclr_engine.errors import EngineError

LONG = "9" * 5000  # more digits than Python turns into a number
DEEP = "[" * 100_000


def whole_and_short(error: EngineError) -> None:
    """An error that a terminal can show: printable, a few lines."""
    assert len(str(error)) < 3000 and all(c.isprintable() or c == "\n" for c in str(error))


@contextmanager
def little_memory(limit: int) -> Iterator[None]:
    """Fails where more than `limit` bytes were taken at once."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit, f"{peak:,} bytes"


class Calls:
    """Unpickled, this would run the function; the file says which."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call
