"""`simclr-engine export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import print_json

if TYPE_CHECKING:
    from simclr_engine.export import ExportResult


@click.command(name="export")
@click.argument("file", default="encoder.onnx", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--run", "run_path", metavar="RUN", help="Run directory.  [default: the newest finished one under runs/]")
@click.option("--opset", type=int, default=20, show_default=True, metavar="N", help="ONNX operator set, 18 or newer.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(file: Path, run_path: str | None, opset: int, as_json: bool) -> None:
    """Write the encoder of a run as one ONNX file that takes uint8 images.

    The file appears only if it gives PyTorch's features; its checksum lies beside it as FILE.sha256.

    \b
    simclr-engine export encoder.onnx
    simclr-engine export encoder.onnx --run runs/first
    """
    from ..run import Run

    run = Run.newest() if run_path is None else Run.open(run_path)
    click.echo(f"run: {run.directory}" + (" (the newest finished one)" if run_path is None else ""), err=True)

    from simclr_engine.export import export_onnx

    result = export_onnx(run, file, opset=opset)
    if as_json:
        print_json(result.to_json())
    else:
        _show(result)


def _show(result: ExportResult) -> None:
    """The checksum, the size and the parity table."""
    from rich.console import Console
    from rich.table import Table

    from simclr_engine.export.parity import COSINE_LIMIT, LIMIT, RELATIVE_LIMIT

    card, p = result.to_json(), result.parity
    click.echo(f"{result.file}  {result.bytes / 1e6:.1f} MB  opset {result.opset}  in {result.seconds:.1f} s")
    click.echo(f"sha256 {result.sha256}")
    click.echo(f"{card['input']} → {card['output']}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("onnxruntime against PyTorch", "measured", "limit"):
        table.add_column(column, justify="left" if column.startswith("onnx") else "right")
    table.add_row("largest difference of a feature", f"{p.max_abs:.1e}", f"{LIMIT:.0e}")
    table.add_row("largest relative difference of an image", f"{p.max_relative:.1e}", f"or {RELATIVE_LIMIT:.0e}")
    table.add_row("smallest cosine", f"1 − {max(0.0, 1 - p.min_cosine):.1e}", f"1 − {COSINE_LIMIT:.0e}")
    table.add_row("same label", f"{p.label_agreement:.1%}", "")
    Console(width=110).print(table)
    batches = ", ".join(str(b) for b in p.batches)
    click.echo(f"on {p.images} images ({p.image_source}) in batches of {batches}; label by {p.label_source}")
