"""`simclr-engine compare`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ..terminal import add, show, table, tell
from .options import print_json

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from ..evaluation.result import Comparison
    from ..report.comparison import ComparedRun


@click.command(name="compare")
@click.argument("runs", metavar="RUN RUN...", nargs=-1, required=True)
@click.option(
    "--out",
    metavar="PATH",
    help="HTML page to write.  [default: compare.html in the directory that holds the first run]",
)
@click.option("--overwrite", is_flag=True, help="Replace a file at --out that `compare` did not write.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout instead of text.")
def command(runs: tuple[str, ...], out: str | None, overwrite: bool, as_json: bool) -> None:
    """Compare runs: print a table, and write a page with their curves on common axes.

    \b
    simclr-engine compare runs/cifar10 runs/cifar10-sgd
    simclr-engine compare runs/* --out side-by-side.html
    """
    from pathlib import Path

    from ..report.compare import write_comparison
    from ..report.comparison import open_runs, to_document

    opened = open_runs(runs)
    page = write_comparison(opened, Path(out) if out else beside(opened[0]), overwrite)
    if as_json:
        print_json({"out": str(page)} | to_document(opened))
        return
    _print(opened)
    tell("", f"written  {page}")


def beside(first: ComparedRun) -> Path:
    """`compare.html` in the directory that holds the first run."""
    directory = first.directory
    parent = directory.parent if directory.name not in ("", "..") else directory.resolve().parent
    return parent / "compare.html"


def _print(runs: Sequence[ComparedRun]) -> None:
    from ..report.comparison import differing_keys, notes

    tables = [_runs_table(runs)]
    if any(run.content.comparisons for run in runs):
        tables += [_methods_table(runs)]
    if differing_keys(runs):
        tables += [_differences_table(runs)]
    for i, one in enumerate(tables):
        show(*([""] if i else []), one, width=max(120, 40 + 24 * len(runs)))
    for note in notes(runs):
        tell(f"note: {note}")  # not a part of `show`, which wraps: a note may end in a command


def _runs_table(runs: Sequence[ComparedRun]) -> Table:
    from ..report.comparison import run_cells

    figures = ("epochs", "views", "batch", "time", "images/s", "loss", "chance")
    made = table("run", "recipe", "data", *(f">{name}" for name in figures))
    for run in runs:
        add(made, run.name, *run_cells(run)[:-1])
    return made


def _accuracy(pair: Comparison | None) -> str:
    """The accuracy, followed by the difference to the random encoder."""
    from ..report.comparison import method_cell

    accuracy, ahead = method_cell(pair)
    return f"{accuracy} ({ahead.removesuffix(' points')})" if ahead.endswith(" points") else accuracy


def _methods_table(runs: Sequence[ComparedRun]) -> Table:
    from ..report.comparison import baseline_cell, method_rows
    from ..report.content import short_name

    rows = method_rows(runs)
    names = [f">{run.name}" for run in runs]
    data = len({short_name(row.data) for row in rows}) > 1
    caption = (
        "test accuracy of the pretrained encoder (points ahead of the random one); largest class: naming it always"
    )
    made = table("method", *(["data"] if data else []), ">train / test", *names, ">largest class", caption=caption)
    for row in rows:
        where = [short_name(row.data)] if data else []
        size = f"{row.train_images:,} / {row.test_images:,}"
        add(made, row.name, *where, size, *map(_accuracy, row.cells), baseline_cell(row))
    return made


def _differences_table(runs: Sequence[ComparedRun]) -> Table:
    from ..report.comparison import differing_keys, recipe_value

    made = table("hyper-parameter", *(f">{run.name}" for run in runs))
    for key, values in differing_keys(runs).items():
        add(made, key, *map(recipe_value, values))
    return made
