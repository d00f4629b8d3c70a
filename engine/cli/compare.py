"""`simclr-engine compare`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from ..report.subjects import Subject


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
    from ..report.subjects import gather_runs

    subjects = gather_runs(runs)
    page = write_comparison(subjects, Path(out) if out else beside(subjects[0]))
    if as_json:
        from ..report.comparison_document import to_document
        from .options import print_json

        print_json({"out": str(page)} | to_document(subjects))
        return
    _print(subjects)
    click.echo(f"\nwritten  {page}")


def beside(first: Subject) -> Path:
    """`compare.html` in the directory that holds the first run."""
    directory = first.directory
    parent = directory.parent if directory.name not in ("", "..") else directory.resolve().parent
    return parent / "compare.html"


def _print(subjects: Sequence[Subject]) -> None:
    from rich.console import Console

    from ..report.comparability import notes
    from ..report.subjects import differing_keys

    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(120, 40 + 24 * len(subjects)))
    console.print(_runs_table(subjects))
    if any(subject.content.comparisons for subject in subjects):
        console.print()
        console.print(_methods_table(subjects))
    if differing_keys(subjects):
        console.print()
        console.print(_differences_table(subjects))
    for note in notes(subjects):
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


def _runs_table(subjects: Sequence[Subject]) -> Table:
    from ..report.comparison_cells import run_cells

    table = _table("run", "recipe", "data", "epochs", "views", "batch", "time", "images/s", "loss", "chance", words=3)
    for subject in subjects:
        _add(table, subject.name, *run_cells(subject)[:-1])
    return table


def _methods_table(subjects: Sequence[Subject]) -> Table:
    from ..report.comparison_cells import accuracy_of
    from ..report.content import short_name
    from ..report.subjects import method_rows

    rows = method_rows(subjects)
    names = [subject.name for subject in subjects]
    data = len({short_name(one.data) for one in rows}) > 1
    table = _table("method", *(["data"] if data else []), "train / test", *names, words=1 + data)
    for one in rows:
        where = [short_name(one.data)] if data else []
        size = f"{one.train_images:,} / {one.test_images:,}"
        _add(table, one.name, *where, size, *map(accuracy_of, one.cells))
    table.caption = "test accuracy of the pretrained encoder (points ahead of the random one)"
    table.caption_justify = "left"
    return table


def _differences_table(subjects: Sequence[Subject]) -> Table:
    from ..report.comparison_cells import plain
    from ..report.subjects import differing_keys

    table = _table("hyper-parameter", *(subject.name for subject in subjects))
    for key, values in differing_keys(subjects).items():
        _add(table, key, *map(plain, values))
    return table
