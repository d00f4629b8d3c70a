"""What several commands share: `--set KEY=VALUE`, `--json`, and tables for the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from ..data import Selection


def parse_overrides(pairs: Sequence[str]) -> dict[str, str]:
    """`["a.b=c", …]` → `{"a.b": "c"}`."""
    overrides = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError("--set takes KEY=VALUE", saw=pair, fix="for example --set train.epochs=200")
        overrides[key.strip()] = value.strip()
    return overrides


def selection_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds `--labels` and `--list` to a command that takes images; `selected` makes one of the three."""
    labels = click.option(
        "--labels",
        metavar="FILE.csv",
        help="Table of the classes: a column of files and a column of labels. Folders are then no classes.",
    )
    files = click.option(
        "--list",
        "files",
        metavar="FILE",
        help="Use the images that this file lists, one path on each line, relative to the data or else to the file.",
    )
    return labels(files(command))


def selected(data: str | None, labels: str | None, files: str | None) -> str | Selection | None:
    """The images that a user named by `--data`, `--labels` and `--list`; None for none."""
    if labels is None and files is None:
        return data
    from ..data import Selection

    return Selection(data, labels, files)


def print_json(document: dict[str, Any]) -> None:
    """Prints the document of `--json` to stdout."""
    click.echo(json.dumps(document, indent=2))


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
    made.title, made.caption = title and _text(title), caption and _text(caption)
    for name in columns:
        number, right = name.startswith("#"), name.startswith(("#", ">"))
        made.add_column(
            _text(name[right:]),
            justify="right" if right else "left",
            no_wrap=number,
            overflow="ellipsis" if number else "fold",
        )
    return made


def add(to: Table, *cells: str | Text, style: str = "") -> None:
    """Adds a row. Text is shown as it is: markup is not interpreted, and control characters are escaped."""
    to.add_row(*(_text(cell) if isinstance(cell, str) else cell for cell in cells), style=style)


def show(*parts: RenderableType, width: int | None = None) -> None:
    """Prints to stdout, as wide as the terminal. To a file or a pipe it prints `width` columns; None means 80."""
    from rich.console import Console

    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=width)
    for part in parts:
        console.print(part, markup=False)


def plain(words: str) -> str:
    """Text from outside with its control characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)


def _text(words: str) -> Text:
    from rich.text import Text

    return Text(plain(words))
