"""What is written to the terminal: lines, tables, and how the streams bear what they cannot write.

Text from outside is escaped here, so every module writes through these functions; a test holds them to it.
"""

from __future__ import annotations

import codecs
import errno
import functools
import os
import sys
import threading
import warnings
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO, cast

from .errors import EngineError, PlatformError, plain

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

# Our own signs, for encodings that lack them: cp1252, cp437, ASCII.
SIGNS = {
    "→": "->",
    "─": "-",
    "–": "-",
    "—": "-",
    "−": "-",
    "×": "x",
    "±": "+-",
    "…": "...",
    "·": "|",
    "≥": ">=",
    "≤": "<=",
    "✓": "yes",
    "✗": "no",
    "τ": "tau",
    "’": "'",
    "\u00a0": " ",
}
ERRORS = "simclr_engine.terminal"  # name of the codec error handler


class Display:
    """A text stream whose errors never end the work: what cannot be shown is dropped.

    The first error of the system (closed, full, no reader) switches the stream off.

    Args:
        stream: where to write; None where the process was started without it.
        product: whether the text is what the command was called for. Then a stream that cannot be written is an error,
            and one whose reader is gone, as after `| head`, ends the command.
    """

    def __init__(self, stream: TextIO | None, product: bool = False) -> None:
        self._stream, self._product = stream, product

    def write(self, text: str) -> int:
        """Writes the text, or drops it."""
        if text != "":  # click asks by "" what kind of stream it is, and hides the answer of a broken one
            self._do("write", text)
        return len(text)

    def flush(self) -> None:
        """Flushes what was written."""
        self._do("flush")

    def _do(self, name: str, *text: str) -> None:
        with suppress(RuntimeError):  # from a signal handler within a write
            try:
                if self._stream is None:
                    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
                getattr(self._stream, name)(*text)
            except (OSError, ValueError) as error:  # a closed stream raises a ValueError
                if isinstance(error, UnicodeError) and text and not text[0].isascii():
                    self._do(name, text[0].encode("ascii", "backslashreplace").decode())
                elif not isinstance(error, BlockingIOError):  # its reader is slow
                    self._fail(error)

    def _fail(self, error: Exception) -> None:
        product, self._product = self._product, False
        self._stream = open(os.devnull, "w")  # noqa: SIM115, PTH123  # for the rest of the process; os.devnull is text
        if product and isinstance(error, BrokenPipeError):
            raise SystemExit(0)
        if product:
            saw = getattr(error, "strerror", None) or error
            raise PlatformError("stdout cannot be written", saw=saw, fix="free space, or write elsewhere") from error

    def isatty(self) -> bool:
        """Whether a terminal shows it."""
        with suppress(OSError, ValueError):
            return self._stream is not None and self._stream.isatty()
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_stream"], name)


def display() -> TextIO:
    """stderr as a `Display`: what a program has put there now, or what `prepare_streams` made of it."""
    return cast("TextIO", sys.stderr if isinstance(sys.stderr, Display) else Display(sys.stderr))


def prepare_streams(product: bool = False) -> None:
    """Makes stdout and stderr write any text, whatever their encoding and state, warnings one escaped line each, and
    tracebacks escaped too.

    Called once, by the command line, before anything is written. A program that imports the package keeps its streams.

    Args:
        product: whether the command was called for what it prints to stdout; see `Display`.
    """
    codecs.register_error(ERRORS, _lacking)
    for number in range(3):  # a file of ours must not get the number of a closed stream, to which libraries write
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        stream = stream.__dict__["_stream"] if isinstance(stream, Display) else stream
        with suppress(AttributeError, OSError, ValueError):  # not every stream that a program puts there can do this
            stream.reconfigure(errors=ERRORS)
        setattr(sys, name, Display(stream, product and name == "stdout"))
    warnings.showwarning = _warn
    sys.excepthook = _trace
    threading.excepthook = lambda about: _trace(about.exc_type, about.exc_value, about.exc_traceback)


def _lacking(error: UnicodeError) -> tuple[str, int]:
    """Codec error handler: a sign of ours becomes a similar one, anything else visible as `\\u4e2d`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(SIGNS.get(c, c.encode("unicode_escape").decode()) for c in lacking), error.end


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    say(f"warning: {message}")


def _trace(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    import traceback

    say(*"".join(traceback.format_exception(kind, error, trace)).rstrip().split("\n"))


def say(*lines: str) -> None:
    """Prints lines to stderr; what a terminal would obey is escaped."""
    _print(lines, display())


@functools.cache
def say_once(line: str) -> None:
    """Says a line once in a process, which may open the same file or source more than once."""
    say(line)


def tell(*lines: str) -> None:
    """Prints lines to stdout; what a terminal would obey is escaped."""
    _print(lines, sys.stdout)


def say_error(error: EngineError) -> None:
    """Prints an error to stderr: the cause, and below it what was seen and the fix."""
    first, *rest = error.lines()
    say(f"error: {first}", *(f"  {row}" for row in rest))


def _print(lines: tuple[str, ...], to: TextIO) -> None:
    print("\n".join(map(plain, lines)), file=to, flush=True)


def table(*columns: str, title: str = "", caption: str = "", rule: bool = True) -> Table:
    """An empty table for the terminal.

    Args:
        columns: names. A column `#name` holds numbers: aligned right, never broken over lines. A column `>name` is
            aligned right too, but may break.
        title: shown above the table.
        caption: shown below the table.
        rule: whether a line is drawn below the header.
    """
    from rich import box
    from rich.table import Table

    look = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0)} if rule else {"box": None, "header_style": "bold"}
    made = Table(**look, show_edge=False, pad_edge=False, title_justify="left", caption_justify="left")
    made.title, made.caption = title and styled(title), caption and styled(caption)
    for name in columns:
        number, right = name.startswith("#"), name.startswith(("#", ">"))
        made.add_column(
            styled(name[right:]),
            justify="right" if right else "left",
            no_wrap=number,
            overflow="ellipsis" if number else "fold",
        )
    return made


def add(to: Table, *cells: str | Text, style: str = "") -> None:
    """Adds a row. Text is shown as it is: markup is not interpreted, and control characters are escaped."""
    to.add_row(*(styled(plain(cell)) if isinstance(cell, str) else cell for cell in cells), style=style)


def show(*parts: RenderableType, width: int | None = None) -> None:
    """Prints tables, styled text and lines of our own to stdout, as wide as the terminal; to a file or a pipe `width`
    columns wide, where None means 80."""
    from rich.console import Console

    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=width)
    for part in parts:
        console.print(part, markup=False)


def styled(words: str, style: str = "") -> Text:
    """Text for `add` and `show` in a style of rich, escaped; line breaks stay."""
    from rich.text import Text

    return Text("\n".join(map(plain, words.split("\n"))), style=style)
