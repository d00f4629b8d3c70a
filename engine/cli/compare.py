"""`simclr-engine compare`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from ..evaluation.result import Comparison
    from ..report.comparison import ComparedRun


@click.command(name="compare")
@click.argument("runs", metavar="RUN RUN…", nargs=-1, required=True)
@click.option("--out", metavar="FILE.html", help="The page.  [default: compare.html beside the first run]")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(runs: tuple[str, ...], out: str | None, as_json: bool) -> None:
    """Put runs side by side: a table, and a page with their curves on common axes.

    \b
    simclr-engine compare runs/cifar10 runs/cifar10-sgd
    simclr-engine compare runs/* --out side-by-side.html
    """
    from pathlib import Path

    from ..report.compare import write_comparison
    from ..report.comparison import open_runs, to_document

    opened = open_runs(runs)
    page = write_comparison(opened, Path(out) if out else beside(opened[0]))
    if as_json:
        from .options import print_json

        print_json({"out": str(page)} | to_document(opened))
        return
    _print(opened)
    click.echo(f"\nwritten  {page}")


def beside(first: ComparedRun) -> Path:
    """`compare.html` in the directory that holds the first run."""
    directory = first.directory
    parent = directory.parent if directory.name not in ("", "..") else directory.resolve().parent
    return parent / "compare.html"


def _print(runs: Sequence[ComparedRun]) -> None:
    from rich.console import Console

    from ..report.comparison import differing_keys, notes

    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(120, 40 + 24 * len(runs)))
    console.print(_runs_table(runs))
    if any(run.content.comparisons for run in runs):
        console.print()
        console.print(_methods_table(runs))
    if differing_keys(runs):
        console.print()
        console.print(_differences_table(runs))
    for note in notes(runs):
        # Not wrapped: a note may end in a command.
        console.print(f"note: {_printable(note)}", style="yellow", markup=False, soft_wrap=True)


def _table(*columns: str, words: int = 1) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.show_edge = table.pad_edge = False
    for i, name in enumerate(columns):
        table.add_column(Text(_printable(name)), justify="right" if i >= words else "left", overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    from rich.text import Text

    table.add_row(*(Text(_printable(cell)) for cell in cells))


def _printable(words: str) -> str:
    """Foreign text with its control characters made visible."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)


def _runs_table(runs: Sequence[ComparedRun]) -> Table:
    from ..report.comparison import run_cells

    table = _table("run", "recipe", "data", "epochs", "views", "batch", "time", "images/s", "loss", "chance", words=3)
    for run in runs:
        _add(table, run.name, *run_cells(run)[:-1])
    return table


def _accuracy(pair: Comparison | None) -> str:
    """Of a cell, the difference to the random encoder behind it."""
    from ..report.comparison import method_cell

    accuracy, ahead = method_cell(pair)
    return f"{accuracy} ({ahead.removesuffix(' points')})" if ahead.endswith(" points") else accuracy


def _methods_table(runs: Sequence[ComparedRun]) -> Table:
    from ..report.comparison import method_rows
    from ..report.content import short_name

    rows = method_rows(runs)
    names = [run.name for run in runs]
    data = len({short_name(row.data) for row in rows}) > 1
    table = _table("method", *(["data"] if data else []), "train / test", *names, words=1 + data)
    for row in rows:
        where = [short_name(row.data)] if data else []
        size = f"{row.train_images:,} / {row.test_images:,}"
        _add(table, row.name, *where, size, *map(_accuracy, row.cells))
    table.caption = "test accuracy of the pretrained encoder (points ahead of the random one)"
    table.caption_justify = "left"
    return table


def _differences_table(runs: Sequence[ComparedRun]) -> Table:
    from ..report.comparison import differing_keys, recipe_value

    table = _table("hyper-parameter", *(run.name for run in runs))
    for key, values in differing_keys(runs).items():
        _add(table, key, *map(recipe_value, values))
    return table
