"""What is written to the terminal: lines, tables, and how the streams write what their encoding lacks.

Text from outside is escaped here, so every module writes through these functions; a test holds them to it.
"""

from __future__ import annotations

import codecs
import sys
import threading
import warnings
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from .errors import EngineError, plain

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


def prepare_streams() -> None:
    """Makes stdout and stderr write any text, whatever their encoding, warnings one escaped line each, and tracebacks
    escaped too.

    Called once, by the command line, before anything is written. A program that imports the package keeps its streams.
    """
    codecs.register_error(ERRORS, _lacking)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # not of every stream that a program puts there
        if reconfigure is not None:
            reconfigure(errors=ERRORS)
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
    _print(lines, sys.stderr)


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
