"""`simclr-engine bench`."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..terminal import add, say, show, table, tell
from .options import Number, print_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MADE_BY = "simclr-engine bench"  # stands in a picture, which the next one may replace
DOCUMENT = ("device", "versions", "rows", "floors")  # what the JSON document of every version has
PATH = click.Path(dir_okay=False, path_type=Path)


@click.group(name="bench")
def command() -> None:
    """Benchmark one part of the engine on this machine against alternatives."""


_PLOT = click.option("--plot", type=PATH, metavar="PATH", help="Draw the rows as a PNG file, such as rows.png.")


def _document(function: Callable[..., None]) -> Callable[..., None]:
    """The options of every benchmark about the document that it writes."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout instead of text."),
        click.option("--overwrite", is_flag=True, help="Replace files of these names that `bench` did not write."),
        click.option("--out", type=PATH, metavar="PATH", help="Also write the JSON document to this file."),
    ):
        function = option(function)
    return function


def _add(name: str, words: str, small: dict[str, Any], *further: Callable[..., Any]) -> None:
    """Adds the command of the module of bench/ of this name; `small` are the sizes of `--small`."""

    @click.option(
        "--repeats",
        type=click.IntRange(min=1),
        default=7,
        show_default=True,
        metavar="N",
        help="Number of timed calls of each contender.",
    )
    @click.option(
        "--small", is_flag=True, help="Use tiny sizes, to test that the benchmark runs. The figures mean nothing."
    )
    @click.option("--check", is_flag=True, help="Exit with 1 if a figure misses its floor.")
    @_document
    @_PLOT
    def run(**options: Any) -> None:
        _measure(name, small if options.pop("small") else None, **options)

    for option in further:
        run = option(run)
    text = f"Measure {words}.\n\nThe calls of the contenders are interleaved. The table shows median, p20 and p80."
    command.command(name, help=text, short_help=words)(run)


_RUN = click.option("--run", metavar="RUN", help="The run directory to measure.  [default: a synthetic run]")
_SHEET = click.option(
    "--sheet", type=PATH, metavar="PATH", help="Draw one image and 16 of its views, one row per backend, as a PNG file."
)
_COMPILE = click.option("--compile/--no-compile", default=None, help="Also measure torch.compile.  [default: compile]")

_add(
    "epoch",
    "a training step: ours, ours with one part switched off at a time, and a plain one",
    {"views": 8, "size": 16, "monitored": 40},
)
_add("nt-xent", "time, memory and error of the loss, compared with common implementations", {"sizes": (64, 128)})
_add("augment", "views per second of each backend, compared with other libraries", {"views": 32, "size": 16}, _SHEET)
_add(
    "optimizer",
    "an update of LARS and of Muon, compared with a plain loop and torch's Muon",
    {"shape": (2, 16, 48), "narrow": True},
)
_add(
    "store",
    "reading images from files larger than memory, compared with images in memory",
    {"gigabytes": 0.02, "size": 16, "batch": 8},
)
_add("scaling", "the data path in one process and in two", {"images": 4, "size": 16, "sleep": 0.01})
_add(
    "evaluate",
    "probe, kNN and maps over 50,000 x 512 features, compared with scikit-learn",
    {"train": 300, "test": 100, "dim": 16},
    _RUN,
)
_add(
    "export",
    "speed, memory, size and start-up of the exported files, compared with PyTorch",
    {"size": 16, "batches": (1, 4), "compile": False, "processes": 1},
    _RUN,
    _COMPILE,
)


@command.command("race", short_help="accuracy of recipes that had the same time or compute")
@click.option("--data", required=True, metavar="NAME|PATH", help="The labelled images, as for `pretrain`.")
@click.option("--minutes", type=Number(min=0, min_open=True), metavar="MINUTES", help="Time limit of each entry.")
@click.option(
    "--pflop",
    type=Number(min=0, min_open=True),
    metavar="PFLOP",
    help="Limit of compute of each entry, in 10^15 operations of the network and the optimizer.",
)
@click.option(
    "--contender",
    "contenders",
    multiple=True,
    metavar="NAME|PATH",
    help="A recipe, or `lightly` for a plain loop of its parts; may be repeated.  [default: cifar10-sgd, cifar10-fast]",
)
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Runs of each.")
@click.option("--held-out", is_flag=True, help="Train on 9/10 of train and score on the rest; test stays unseen.")
@click.option(
    "--together", is_flag=True, help="Run the contenders of a seed side by side, each on a share of the cores."
)
@click.option(
    "--runs",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs/race"),
    show_default=True,
    metavar="DIR",
    help="Where the runs are kept; the same command continues a race that was stopped.",
)
@_document
@_PLOT
def race(
    out: Path | None, plot: Path | None, overwrite: bool, as_json: bool, runs: Path, contenders: tuple[str, ...],
    **options: Any,
) -> None:  # fmt: skip
    """Train several recipes with the same limit of time or compute and compare their accuracies.

    Each entry is scored by linear probe and kNN (cosine, k = 10) at its last epoch. Without --together, entries run one
    after another on all cores, seed by seed.
    """
    from simclr_engine.bench import race as racing
    from simclr_engine.bench.rows import bench_document

    _check_outputs(overwrite, out, plot)
    document = bench_document(racing.race(folder=runs, contenders=contenders or racing.CONTENDERS, **options))
    _write_document(document, out)
    _write_picture(lambda: racing.draw(document), plot)
    _show(document, as_json)


@command.command("clients", short_help="an exported file in other programs, compared with ours")
@click.argument("files", nargs=-1, required=True, metavar="FILE.onnx...", type=PATH)
@click.option("--data", default="glyphs", show_default=True, metavar="NAME|PATH", help="The images, as for `pretrain`.")
@click.option(
    "--n", "images", type=click.IntRange(min=2), default=100, show_default=True, metavar="N", help="Number of images."
)
@click.option(
    "--node",
    "node_modules",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="The node_modules in which onnxruntime-node and onnxruntime-web are.  [default: where Node looks]",
)
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@click.option(
    "--check", is_flag=True, help="Exit with 1 if an installed client does not give what the file gives here."
)
@_document
def clients(
    files: tuple[Path, ...], check: bool, markdown: bool, out: Path | None, overwrite: bool, as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Run exported files in onnxruntime for Node and the web, OpenVINO, OpenCV, tract, onnx and onnx2torch.

    Shows for each that is installed the largest difference of a feature to our own runtime on the same file, and the
    share of images that get the same label.
    """
    from simclr_engine.bench import clients as subject
    from simclr_engine.bench.rows import bench_document

    _check_outputs(overwrite, out)
    document = bench_document(subject.rows(files, **options))
    _write_document(document, out)
    try:
        if markdown and not as_json:
            tell(*subject.markdown(document["rows"]).splitlines())
        else:
            _show(document, as_json, _table_of_clients)
    finally:  # also where the reader of stdout is gone, which ends the command
        if check:
            subject.check(document["rows"])


def _measure(
    name: str,
    small: dict[str, Any] | None,
    repeats: int,
    check: bool,
    out: Path | None,
    plot: Path | None,
    overwrite: bool,
    as_json: bool,
    sheet: Path | None = None,
    **given: Any,
) -> None:
    # Set before torch is loaded: its profiler logs every start and stop to stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

    from simclr_engine.bench.rows import bench_document, draw
    from simclr_engine.bench.rows import check as check_floors

    from ..data import load_data
    from ..errors import UsageError

    if small is not None and check:
        raise UsageError("--check cannot be used with --small", fix="give one of them")
    _check_outputs(overwrite, out, plot, sheet)
    module = import_module(f"simclr_engine.bench.{name.replace('-', '_')}")
    given = {key: value for key, value in given.items() if value is not None}
    floors = () if small is not None else module.floors(given.get("run")) if name == "export" else module.floors()
    document = bench_document(module.rows(repeats=repeats, **(small or {}) | given), floors)
    if name == "export":
        document |= module.about()
    _write_document(document, out)
    _write_picture(lambda: draw(document), plot)
    _write_picture(lambda: module.sheet(load_data("glyphs", split="test").images[7], 16), sheet)
    try:
        _show(document, as_json)
    finally:  # also where the reader of stdout is gone, which ends the command
        if check:
            for line in check_floors(document["rows"], floors):
                say(line)


def _check_outputs(overwrite: bool, out: Path | None, *pictures: Path | None) -> None:
    from ..outputs import Output, check_outputs, png_by
    from ..sealing import is_sealed_document

    document = Output(out, lambda path: is_sealed_document(path, *DOCUMENT))
    check_outputs(document, *(Output(path, png_by(MADE_BY), ".png") for path in pictures), overwrite=overwrite)


def _write_document(document: dict[str, Any], out: Path | None) -> None:
    if out is not None:
        from ..files import write_atomic
        from ..sealing import sealed_json

        write_atomic(out, sealed_json(document))


def _write_picture(draw: Callable[[], Figure], path: Path | None) -> None:
    if path is not None:
        from io import BytesIO

        from ..files import write_atomic

        drawn = BytesIO()
        draw().savefig(drawn, dpi=120, format="png", metadata={"Software": MADE_BY})
        write_atomic(path, drawn.getbuffer())


def _table(document: dict[str, Any]) -> None:
    columns = ("measured", "contender", "#median", "#p20", "#p80", "unit", "also")
    measured = table(*columns, title=str(document["device"]), rule=False)
    for row in document["rows"]:
        if row["median"] is None:
            add(measured, row["name"], row["contender"], "–", "", "", "", row.get("note", ""))
            continue
        figures = [f"{row[k]:,.0f}" if row[k] >= 100 else f"{row[k]:.3g}" for k in ("median", "p20", "p80")]
        add(measured, row["name"], row["contender"], *figures, row["unit"], _also(row))
    show(measured, width=200)


def _show(document: dict[str, Any], as_json: bool, table: Callable[[dict[str, Any]], None] = _table) -> None:
    if as_json:
        print_json(document)
    else:
        table(document)


def _table_of_clients(document: dict[str, Any]) -> None:
    from simclr_engine.bench.clients import UNIT

    def share(labels: float | None) -> str:
        return "" if labels is None else f"{labels:.0%}"

    columns = ("file", "client", "version", "#images", f"#{UNIT}", "#same label", "#as fp32", "also")
    measured = table(*columns, title=str(document["device"]), rule=False)
    for row in document["rows"]:
        difference = "–" if row["median"] is None else f"{row['median']:.1e}"
        labels = share(row.get("label_agreement")), share(row.get("fp32_agreement"))
        about = row.get("client_version", "–"), str(row["images"])
        add(measured, row["name"], row["contender"], *about, difference, *labels, row.get("note", ""))
    show(measured, width=200)


def _also(row: dict[str, Any]) -> str:
    """The figures of a row other than its time."""
    shown = {
        "peak_bytes": lambda v: f"peak {v / 2**20:,.1f} MiB",
        "gradient_error": lambda v: f"gradient error {v:.1e}",
        "max_error": lambda v: f"max error {v:.1e}",
        "mean_error": lambda v: f"mean difference {v:.1e}",
        "gigabytes_per_second": lambda v: f"{v:,.0f} GB/s",
        "seconds_per_epoch": lambda v: f"{v:,.1f} s/epoch",
        "tflops": lambda v: f"{v:,.3g} TFLOP/s",
        "share_of_peak": lambda v: f"{100 * v:.0f} % of peak",
        "first_call_seconds": lambda v: f"first call {v:.1f} s",
        "efficiency": lambda v: f"{100 * v:.0f} % of ideal",
        "mib_above_few": lambda v: f"{v:,.0f} MiB above few images in memory",
        "images_read": lambda v: f"{v:,} images read through",
        "shape": lambda v: "{} matrices of {} × {:,}".format(*v),
        "lowest": lambda v: f"singular values from {v:.2f}",
        "highest": lambda v: f"to {v:.2f}",
        "cosine": lambda v: f"cosine with the exact factor {v:.3f}",
        "sd": lambda v: f"sd {v:.1f}",
        "ahead": lambda v: f"{v:+.1f} points against the first",
        "pflop": lambda v: f"{v:.3g} PFLOP",
        "views_per_image": lambda v: f"{v:.3g} views per image",
        "seconds": lambda v: f"{v / 60:.1f} min",
        "lost_points": lambda v: f"{v:.2f} points lost",
    }
    return ", ".join(show(row[key]) for key, show in shown.items() if key in row)
