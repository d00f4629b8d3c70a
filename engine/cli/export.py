"""`simclr-engine export`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..command_line import command_here
from ..errors import UsageError, counted
from ..terminal import add, say, show, table, tell
from .options import print_json, selected, selection_options

if TYPE_CHECKING:
    from rich.table import Table

    from simclr_engine.export import ExportResult, WebPage


@click.command(name="export")
@click.argument("file", metavar="[FILE.onnx|DIR]", required=False, type=click.Path(path_type=Path))
@click.option("--run", "run_path", metavar="RUN", help="Run directory.  [default: the newest finished run under runs/]")
@click.option(
    "--probe",
    is_flag=False,
    flag_value="",
    metavar="[ID]",
    help="Include a linear probe of the run, so that the file also returns class probabilities. ID is a result under "
    "RUN/evaluation.  [default ID: the newest one learned from all images]",
)
@click.option("--no-probe", is_flag=True, help="Export the features only. This is the default.")
@click.option(
    "--int8/--no-int8",
    default=None,
    help="Also write FILE.int8.onnx, calibrated on the images of --data.  [default: no; with --web, yes]",
)
@click.option("--fp16", is_flag=True, help="Also write FILE.fp16.onnx, half the size, for GPUs.")
@click.option(
    "--web",
    is_flag=True,
    help="Write the folder DIR instead: a page that runs the model in the browser. Any static web server can serve it.",
)
@click.option(
    "--runtime",
    metavar="DIR",
    help="Folder of the npm package onnxruntime-web, for --web.  [default: node_modules/onnxruntime-web]",
)
@click.option(
    "--data",
    metavar="NAME|PATH",
    help="Images to check and calibrate with: a data set, a folder or an archive.  [default: those of the run]",
)
@selection_options
@click.option(
    "--opset",
    type=int,
    default=18,
    show_default=True,
    metavar="N",
    help="Version of the ONNX operator set, at least 18; of the int8 file at least 19.",
)
@click.option("--overwrite", is_flag=True, help="Replace files of these names even if `export` did not write them.")
@click.option(
    "--card/--no-card", default=True, show_default=True, help="Measure speed, memory and size of the written files."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout instead of text.")
def command(
    file: Path | None,
    run_path: str | None,
    probe: str | None,
    no_probe: bool,
    int8: bool | None,
    fp16: bool,
    web: bool,
    runtime: str | None,
    data: str | None,
    labels: str | None,
    files: str | None,
    opset: int,
    overwrite: bool,
    card: bool,
    as_json: bool,
) -> None:
    """Write the encoder of a run as one ONNX file that takes uint8 images.

    The file is written only if its features match PyTorch's. Its checksum is written to FILE.onnx.sha256, and
    what a program must know of it (class names, size, how images are resized) to FILE.json. Prints the measured
    differences and their limits.

    \b
    simclr-engine export encoder.onnx
    simclr-engine export encoder.onnx --run runs/first --probe --int8
    simclr-engine export page/ --web --runtime node_modules/onnxruntime-web
    """
    from ..run import Run, unfinished_notes

    wanted = _wanted(probe, no_probe)
    if web or runtime is not None:
        _check_web(web, file, fp16, overwrite)
    file = file or Path("page" if web else "encoder.onnx")
    precision = [name for name, asked in (("int8", int8), ("fp16", fp16)) if asked] or "fp32"
    run = Run.newest() if run_path is None else Run.open(run_path)
    say(f"run: {run.directory}" + (" (the newest finished one)" if run_path is None else ""))
    for note in unfinished_notes(run.unfinished):
        say(f"note: {note}")

    from simclr_engine.export import export_onnx, export_web
    from simclr_engine.export.samples import SYNTHETIC

    images = selected(data, labels, files)
    page: WebPage | None = None
    if web:
        asked = False if no_probe else wanted
        page = export_web(run, file, runtime, opset=opset, probe=asked, int8=int8, data=images)
        result, document = page.exported, page.to_json()
    else:
        result = export_onnx(
            run, file, opset=opset, probe=wanted, precision=precision, data=images, overwrite=overwrite
        )
        document = result.to_json()
    if result.parity.image_source == SYNTHETIC:
        say("note: the images of the run are gone, so the file was checked on noise; --data NAME|PATH names real ones")
    if not as_json:
        _show(result)
    if page is not None:
        _show_page(page, run, no_probe, sizes=not as_json)
    elif card:
        document |= _card(result, run, shown=not as_json)
    if as_json:
        print_json(document)


def _wanted(probe: str | None, no_probe: bool) -> bool | str | None:
    """`--probe` alone means the newest probe; `--probe ID` means that one."""
    if probe is None:
        return None
    if no_probe:
        raise UsageError("--probe and --no-probe cannot be used together", fix="give one of them")
    if probe.endswith(".onnx"):
        raise UsageError(
            "--probe takes the word after it as the ID of a probe",
            saw=f"--probe {probe}",
            fix=f"name the file first: {command_here('export', Path(probe), '--probe')}",
        )
    return probe or True


def _check_web(web: bool, file: Path | None, fp16: bool, overwrite: bool) -> None:
    """Refuses options that say nothing of what is written."""
    if not web:
        raise UsageError("--runtime is for --web alone", fix="add --web, or leave --runtime out")
    for name, given in (("--fp16", fp16), ("--overwrite", overwrite)):
        if given:
            raise UsageError(f"--web and {name} cannot be used together", fix=f"leave {name} out")
    if file is not None and file.suffix.lower() == ".onnx":
        raise UsageError("--web writes a folder", saw=file, fix="name a folder: page/")


def _show_page(page: WebPage, run: Any, no_probe: bool, sizes: bool) -> None:
    """Says on stderr what the page lacks; prints its sizes and how to see it, unless stdout is for JSON."""
    if page.note:
        say(f"note: {page.note}")
    if not page.exported.metadata.probe and not no_probe:
        first = command_here("evaluate", run.directory, "--method", "linear")
        say(f"note: the run has no linear probe, so the page compares pictures and names no classes; first: {first}")
    if sizes:
        runtime = f"onnxruntime-web {page.runtime}".strip()
        server = ["python3", "-m", "http.server", "--directory", str(page.folder)]
        ours, theirs = (page.page_bytes + page.model_bytes) / 2**20, page.runtime_bytes / 2**20
        tell(
            f"{page.folder}  {ours:.1f} MiB with the model, and {theirs:.1f} MiB of {runtime}",
            f"serve the folder over http, for example: {shlex.join(server)}",
        )


def _card(result: ExportResult, run: Any, shown: bool) -> dict[str, Any]:
    """Measures the written files, shows and records the figures, and returns them for the JSON document."""
    from simclr_engine.bench.card import make_card, show_card
    from simclr_engine.export.writer import record

    made = make_card(result.file, run, [variant.file for variant in result.variants])
    if shown:
        tell("")
        show_card(made)
    document = {"card": made.to_json()}
    record(run, result.to_json() | document)
    return document


def _show(exported: ExportResult) -> None:
    """Prints checksum, size and parity of each file."""
    for result in (exported, *exported.variants):
        said, p = result.to_json(), result.parity
        size = f"{result.bytes / 2**20:.1f} MiB"
        tell(
            f"{result.file}  {size}  {result.metadata.precision}  opset {result.opset}  in {result.seconds:.1f} s",
            f"sha256 {result.sha256}",
            f"{said['input']} → {said['output']}",
        )
        if result.metadata.probe:
            about = result.metadata.probe
            tell(f"probe {about['id']}: {about['accuracy']:.2%} of {counted(about['test_images'], 'test image')}")
        show(_table(result), width=110)
        batches = ", ".join(str(b) for b in p.batches)
        tell(f"on {counted(p.images, 'image')} ({p.image_source}) in batches of {batches}; label by {p.label_source}")
        if result.agreement is not None:
            a = result.agreement
            tell(f"accuracy on {counted(a.images, 'image')} ({a.image_source}); label by {a.label_source}")
        tell("")


def _table(result: ExportResult) -> Table:
    """The measured figures and their limits."""
    from simclr_engine.export.parity import LOSS_LIMIT, SPEED_UP
    from simclr_engine.export.writer import LIMITS

    p, limits, gated = result.parity, LIMITS[result.metadata.precision], result.metadata.precision != "int8"
    made = table("onnxruntime against PyTorch", "#measured", "#limit", rule=False)

    def row(name: str, measured: str, limit: str) -> None:
        add(made, name, measured, limit if gated else "")

    row("largest difference of a feature", f"{p.max_abs:.1e}", f"{limits.absolute:.0e}" if limits.absolute else "")
    either = "or " if limits.absolute else ""
    row("largest relative difference of an image", f"{p.max_relative:.1e}", f"{either}{limits.relative:.0e}")
    row("smallest cosine", f"1 − {max(0.0, 1 - p.min_cosine):.1e}", f"1 − {limits.cosine:.0e}")
    if p.max_probability is not None:
        row("largest difference of a probability", f"{p.max_probability:.1e}", f"{limits.probability:.0e}")
    add(made, "same label", f"{p.label_agreement:.1%}", "")
    a, speed = result.agreement, result.speed
    if a is not None and a.accuracy is not None and a.accuracy_fp32 is not None:
        lost = f"fp32 − {100 * LOSS_LIMIT:g} point"
        add(made, f"accuracy (fp32: {a.accuracy_fp32:.2%})", f"{a.accuracy:.2%}", lost)
    if a is not None:
        add(made, "same label as the fp32 file", f"{a.agreement:.1%}", "")
    if speed is not None:
        add(made, f"speed, batches of {speed.batch}", f"{speed.ratio:.2f} × fp32", f"{SPEED_UP:g} ×")
    return made
