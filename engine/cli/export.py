"""`simclr-engine export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..command_line import command_here
from ..errors import UsageError
from .options import print_json

if TYPE_CHECKING:
    from rich.table import Table

    from simclr_engine.export import ExportResult


@click.command(name="export")
@click.argument("file", default="encoder.onnx", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--run", "run_path", metavar="RUN", help="Run directory.  [default: the newest finished one under runs/]")
@click.option(
    "--probe",
    is_flag=False,
    flag_value="",
    metavar="[ID]",
    help="Put the run's linear probe into the file, which then gives classes too; ID is a result under "
    "RUN/evaluation.  [default ID: the newest of all images]",
)
@click.option("--no-probe", is_flag=True, help="Features only.  [default]")
@click.option("--int8", is_flag=True, help="Also write FILE.int8.onnx, calibrated on the run's images.")
@click.option("--fp16", is_flag=True, help="Also write FILE.fp16.onnx: half the size, for GPU providers.")
@click.option("--data", metavar="NAME|PATH", help="Images to check and calibrate on.  [default: the run's own]")
@click.option("--opset", type=int, default=20, show_default=True, metavar="N", help="ONNX operator set, 18 or newer.")
@click.option("--overwrite", is_flag=True, help="Replace files of these names that are no exports.")
@click.option("--card/--no-card", default=True, help="Measure speed, memory and size of what was written.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(
    file: Path,
    run_path: str | None,
    probe: str | None,
    no_probe: bool,
    int8: bool,
    fp16: bool,
    data: str | None,
    opset: int,
    overwrite: bool,
    card: bool,
    as_json: bool,
) -> None:
    """Write the encoder of a run as one ONNX file that takes uint8 images.

    The file appears only if it gives PyTorch's features; its checksum lies beside it as FILE.sha256.

    \b
    simclr-engine export encoder.onnx
    simclr-engine export encoder.onnx --run runs/first --probe --int8
    """
    from ..run import Run

    wanted, precision = _wanted(probe, no_probe), _precision(int8, fp16)
    run = Run.newest() if run_path is None else Run.open(run_path)
    click.echo(f"run: {run.directory}" + (" (the newest finished one)" if run_path is None else ""), err=True)

    from simclr_engine.export import export_onnx

    result = export_onnx(run, file, opset=opset, probe=wanted, precision=precision, data=data, overwrite=overwrite)
    document = result.to_json()
    if not as_json:
        _show(result)
    if card:
        document |= _card(result, run, show=not as_json)
    if as_json:
        print_json(document)


def _wanted(probe: str | None, no_probe: bool) -> bool | str | None:
    """`--probe` alone means the newest one; with a word behind it, that ID."""
    if probe is None:
        return None
    if no_probe:
        raise UsageError("--probe and --no-probe contradict each other", fix="give one of them")
    if probe.endswith(".onnx"):
        raise UsageError(
            "--probe takes the word behind it for the ID of a probe",
            saw=f"--probe {probe}",
            fix=f"name the file first: {command_here('export', Path(probe), '--probe')}",
        )
    return probe or True


def _precision(int8: bool, fp16: bool) -> str:
    if int8 and fp16:
        raise UsageError("one smaller file is written at a time", saw="--int8 --fp16", fix="export twice")
    return "int8" if int8 else "fp16" if fp16 else "fp32"


def _card(result: ExportResult, run: Any, show: bool) -> dict[str, Any]:
    """Measures what was written; shows it, keeps it in the run, gives it for the JSON document."""
    from simclr_engine.export.card import make_card, show_card
    from simclr_engine.export.writer import record

    made = make_card(result.file, run, [variant.file for variant in result.variants])
    if show:
        click.echo()
        show_card(made)
    document = {"card": made.to_json()}
    record(run, result.to_json() | document)
    return document


def _show(result: ExportResult) -> None:
    """Checksum, size and parity of each file."""
    from rich.console import Console

    console = Console(width=110)
    for one in (result, *result.variants):
        said, p = one.to_json(), one.parity
        click.echo(f"{one.file}  {one.bytes / 1e6:.1f} MB  {one.metadata.precision}  opset {one.opset}  ", nl=False)
        click.echo(f"in {one.seconds:.1f} s\nsha256 {one.sha256}\n{said['input']} → {said['output']}")
        if one.metadata.probe:
            about = one.metadata.probe
            click.echo(f"probe {about['id']}: {about['accuracy']:.2%} of {about['test_images']:,} test images")
        console.print(_table(one))
        batches = ", ".join(str(b) for b in p.batches)
        click.echo(f"on {p.images} images ({p.image_source}) in batches of {batches}; label by {p.label_source}")
        if one.agreement is not None:
            a = one.agreement
            click.echo(f"accuracy on {a.images} images ({a.image_source}); label by {a.label_source}")
        click.echo()


def _table(result: ExportResult) -> Table:
    """Measured figures beside their limits."""
    from rich.table import Table

    from simclr_engine.export.agreement import LOSS_LIMIT, SPEED_UP
    from simclr_engine.export.writer import LIMITS

    p, limits, gated = result.parity, LIMITS[result.metadata.precision], result.metadata.precision != "int8"
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("onnxruntime against PyTorch", "measured", "limit"):
        table.add_column(column, justify="left" if column.startswith("onnx") else "right")

    def row(name: str, measured: str, limit: str) -> None:
        table.add_row(name, measured, limit if gated else "")

    row("largest difference of a feature", f"{p.max_abs:.1e}", f"{limits.absolute:.0e}" if limits.absolute else "")
    either = "or " if limits.absolute else ""
    row("largest relative difference of an image", f"{p.max_relative:.1e}", f"{either}{limits.relative:.0e}")
    row("smallest cosine", f"1 − {max(0.0, 1 - p.min_cosine):.1e}", f"1 − {limits.cosine:.0e}")
    if p.max_probability is not None:
        row("largest difference of a probability", f"{p.max_probability:.1e}", f"{limits.probability:.0e}")
    table.add_row("same label", f"{p.label_agreement:.1%}", "")
    a, speed = result.agreement, result.speed
    if a is not None and a.accuracy is not None and a.accuracy_fp32 is not None:
        lost = f"fp32 − {100 * LOSS_LIMIT:g} point"
        table.add_row(f"accuracy (fp32: {a.accuracy_fp32:.2%})", f"{a.accuracy:.2%}", lost)
    if a is not None:
        table.add_row("same label as the fp32 file", f"{a.agreement:.1%}", "")
    if speed is not None:
        table.add_row(f"speed, batches of {speed.batch}", f"{speed.ratio:.2f} × fp32", f"{SPEED_UP:g} ×")
    return table
