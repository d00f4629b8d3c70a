"""`simclr-engine bench`."""

from __future__ import annotations

from importlib import import_module

import click

from .options import print_json

BENCHES = ("epoch", "augment")


@click.command(name="bench")
@click.argument("name", type=click.Choice(BENCHES))
@click.option(
    "--repeats", type=click.IntRange(min=1), default=7, show_default=True, help="Timed calls of each contender."
)
@click.option("--check", is_flag=True, help="Exit 1 where a speed floor is missed.")
@click.option("--out", type=click.Path(dir_okay=False), metavar="FILE", help="Write the JSON document here too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(name: str, repeats: int, check: bool, out: str | None, as_json: bool) -> None:
    """Measure this machine: contenders interleaved, median with p20 and p80.

    \b
    epoch    a training step, ours and with parts switched off, beside a plain one
    augment  views per second of the augmentation beside its peers
    """
    module = import_module(f"simclr_engine.bench.{name}")
    from simclr_engine.bench.rows import bench_document
    from simclr_engine.bench.rows import check as check_floors

    document = bench_document(module.rows(repeats=repeats))
    if out:
        import json
        from pathlib import Path

        from ..run import write_text_atomic

        write_text_atomic(Path(out), json.dumps(document, indent=2) + "\n")
    if as_json:
        print_json(document)
    else:
        _table(document)
    if check:
        for line in check_floors(document["rows"], module.FLOORS):
            click.echo(line, err=True)


def _table(document: dict[str, object]) -> None:
    from rich.console import Console
    from rich.table import Table

    rows = document["rows"]
    assert isinstance(rows, list)
    table = Table(title=str(document["device"]), box=None, pad_edge=False, header_style="bold", title_justify="left")
    for column in ("measured", "contender", "median", "p20", "p80", "unit"):
        table.add_column(column, justify="right" if column in ("median", "p20", "p80") else "left")
    for row in rows:
        if row["median"] is None:
            figures = [row.get("note", "–"), "", ""]
        else:
            figures = [f"{row[k]:,.0f}" for k in ("median", "p20", "p80")]
        table.add_row(row["name"], row["contender"], *figures, row["unit"])
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table)
