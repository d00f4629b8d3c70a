"""`simclr-engine evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from ..evaluation import EvaluationResult
    from ..evaluation.comparison import Comparison

FULL_TABLE = 30  # classes; with more, the five best and the five worst are listed


@click.command(name="evaluate")
@click.argument("target", metavar="RUN|FILE.onnx")
@click.option("--data", metavar="NAME|PATH", help="Labelled images; a run's own by default.")
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(["linear", "knn"]),
    help="May be repeated.  [default: linear]",
)
@click.option(
    "--init",
    "inits",
    multiple=True,
    type=click.Choice(["pretrained", "scratch"]),
    help="May be repeated.  [default: both; of a file, pretrained]",
)
@click.option(
    "--limit", type=click.IntRange(min=2), metavar="N", help="At most N images of each split, balanced over classes."
)
@click.option("--out", metavar="DIR", help="Write results and pictures there instead of into the run.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(
    target: str,
    data: str | None,
    methods: tuple[str, ...],
    inits: tuple[str, ...],
    limit: int | None,
    out: str | None,
    as_json: bool,
) -> None:
    """Score the frozen encoder of a run or an ONNX file, beside the same network with random weights.

    \b
    simclr-engine evaluate runs/cifar10 --method linear --method knn
    simclr-engine evaluate encoder.onnx --data photos/ --json
    """
    from pathlib import Path

    from ..evaluation import evaluate
    from ..evaluation.comparison import compare
    from ..evaluation.target import INITS, open_target

    subject = open_target(target)
    inits = inits or (INITS if subject.run is not None else INITS[:1])
    results = evaluate(target, data, list(methods or ("linear",)), list(inits), limit=limit, out=out, progress=True)
    assert isinstance(results, list)
    comparisons = compare(results)
    written = _write(target, comparisons, Path(out) if out else None, subject.run is not None)
    if as_json:
        from .options import print_json

        document = {"target": target, "data": results[0].data, "results": [r.to_dict() for r in results]}
        print_json(document | {"report": str(written) if written else None})
        return
    _print(target, results, comparisons)
    if written is not None:
        click.echo(f"\nwritten  {written}")


def _write(target: str, comparisons: Sequence[Comparison], out: Path | None, is_run: bool) -> Path | None:
    """The pictures, and the run's page; returns what a reader opens."""
    if out is not None:
        from ..report.build import write_pictures

        for one in comparisons:
            write_pictures(one, out)
        return out
    if not is_run:
        return None
    from ..report import write_report
    from ..run import Run

    return write_report(Run.open(target))


def _print(target: str, results: Sequence[EvaluationResult], comparisons: Sequence[Comparison]) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    console.print(f"{target} on {results[0].data}\n", markup=False)
    console.print(_methods_table(comparisons))
    for one in comparisons:
        console.print()
        console.print(_class_table(one))
    console.print()
    for result in results:
        console.print(f"{result.method}, {result.init}: {result.protocol}", style="dim", markup=False)
        for note in result.notes:
            console.print(f"  note: {note}", style="yellow", markup=False)


def _table(title: str | None, *columns: str) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title) if title else None, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    table.show_edge = table.pad_edge = False
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    return table


def _methods_table(comparisons: Sequence[Comparison]) -> Table:
    from ..evaluation.comparison import percent, points, standard_error

    table = _table(None, "method", "pretrained", "random", "difference", "±", "macro F1", "mean IoU", "ECE")
    for one in comparisons:
        shown, n = one.shown, one.shown.test_images
        accuracies = [percent(r.accuracy, n) if r else "–" for r in one.both]
        gain = points(one.difference, n).removesuffix(" points") if one.difference is not None else "–"
        error = f"{100 * standard_error(shown):.1f}"
        scores = (f"{shown.f1_macro:.4f}", f"{shown.mean_iou:.4f}", f"{shown.ece:.3f}")
        table.add_row(one.name, *accuracies, gain, error, *scores)
        for variant in shown.also:
            values = [percent(r.also[variant], n) if r and variant in r.also else "–" for r in one.both]
            table.add_row(f"  {variant}", *values, style="dim")
    table.caption = "accuracy on the test split; ± one standard error; ECE: expected calibration error"
    table.caption_justify = "left"
    return table


def _class_table(one: Comparison) -> Table:
    from rich.text import Text

    rows = list(range(len(one.shown.per_class)))
    title = f"{one.name}, per class ({one.shown.init} encoder)"
    if len(rows) > FULL_TABLE:
        rows.sort(key=lambda i: -one.shown.per_class[i].accuracy)
        rows = rows[:5] + rows[-5:]
        title += f": the best and worst of {len(one.shown.per_class):,}"
    table = _table(title, "class", "images", "accuracy", "random", "difference", "precision", "F1", "IoU")
    for i in rows:
        row = one.shown.per_class[i]
        other, gain = "–", "–"
        if one.trained is not None and one.scratch is not None:
            scratch = one.scratch.per_class[i].accuracy
            other, gain = f"{100 * scratch:.1f} %", f"{100 * (row.accuracy - scratch):+.1f}".replace("-", "−")
        scores = (f"{row.precision:.4f}", f"{row.f1:.4f}", f"{row.iou:.4f}")
        table.add_row(Text(row.name), f"{row.support:,}", f"{100 * row.accuracy:.1f} %", other, gain, *scores)
    return table
