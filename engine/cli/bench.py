"""`simclr-engine bench`."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..terminal import add, say, show, table
from .options import print_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MADE_BY = b"simclr-engine bench"  # stands in a picture, which the next one may replace
# Each name is a module of bench/ with `rows(repeats, …)` and `floors()`; the arguments are the sizes of `--small`.
BENCHES: dict[str, dict[str, Any]] = {
    "epoch": {"views": 8, "size": 16, "monitored": 40},
    "nt-xent": {"sizes": (64, 128)},
    "augment": {"views": 32, "size": 16},
    "optimizer": {"shape": (2, 16, 48), "narrow": True},
    "evaluate": {"train": 300, "test": 100, "dim": 16},
    "store": {"gigabytes": 0.02, "size": 16, "batch": 8},
    "scaling": {"images": 4, "size": 16, "sleep": 0.01},
    "export": {"size": 16, "batches": (1, 4), "compile": False, "processes": 1},
}


@click.command(name="bench")
@click.argument("name", metavar="NAME", type=click.Choice(list(BENCHES)))
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
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PATH",
    help="Also write the JSON document to this file.",
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PATH",
    help="Draw the rows as a picture, such as rows.png.",
)
@click.option(
    "--sheet",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PATH",
    help="augment only: draw one image and 16 of its views, one row per backend, as a picture.",
)
@click.option(
    "--run", metavar="RUN", help="export and evaluate only: the run directory to measure.  [default: a synthetic run]"
)
@click.option(
    "--compile/--no-compile", default=None, help="export only: also measure torch.compile.  [default: compile]"
)
@click.option("--overwrite", is_flag=True, help="Replace files of these names that `bench` did not write.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout instead of text.")
def command(
    name: str,
    repeats: int,
    small: bool,
    check: bool,
    out: Path | None,
    plot: Path | None,
    sheet: Path | None,
    run: str | None,
    compile: bool | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Benchmark one part of the engine on this machine against alternatives.

    The calls of the contenders are interleaved. The table shows the median, p20 and p80 of each one.

    \b
    epoch      a training step: ours, ours with one part switched off at a time, and a plain one
    nt-xent    time, memory and error of the loss, compared with common implementations
    augment    views per second of each backend, compared with other libraries
    optimizer  an update of LARS and of Muon, compared with a plain loop and torch's Muon
    store      reading images from files larger than memory, compared with images in memory
    scaling    the data path in one process and in two
    evaluate   probe, kNN and maps over 50,000 x 512 features, compared with scikit-learn
    export     speed, memory, size and start-up of the exported files, compared with PyTorch
    """
    # Set before torch is loaded: its profiler logs every start and stop to stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

    from simclr_engine.bench.rows import bench_document
    from simclr_engine.bench.rows import check as check_floors

    from ..errors import UsageError
    from ..files import check_output

    if sheet is not None and name != "augment":
        raise UsageError(
            "--sheet is an option of bench augment", saw=name, fix="simclr-engine bench augment --sheet PATH"
        )
    given = {k: v for k, v in (("run", run), ("compile", compile)) if v is not None}
    for option, belongs_to in (("run", ("export", "evaluate")), ("compile", ("export",))):
        if option in given and name not in belongs_to:
            fix = f"simclr-engine bench {belongs_to[0]}"
            raise UsageError(f"--{option} is an option of bench {' and bench '.join(belongs_to)}", saw=name, fix=fix)
    if small and check:
        raise UsageError("--check cannot be used with --small", fix="give one of them")
    for path, mark in ((out, b'"device"'), (plot, MADE_BY), (sheet, MADE_BY)):
        if path is not None:
            check_output(path, mark, overwrite)
    module = import_module(f"simclr_engine.bench.{name.replace('-', '_')}")
    floors = () if small else module.floors(run) if name == "export" else module.floors()
    sizes = (BENCHES[name] if small else {}) | given
    document = bench_document(module.rows(repeats=repeats, **sizes), floors)
    if name == "export":
        document |= module.about()
    if out is not None:
        import json

        from ..files import write_text_atomic

        write_text_atomic(out, json.dumps(document, indent=2) + "\n")
    if plot is not None:
        from simclr_engine.bench.rows import draw

        _write_picture(draw(document), plot)
    if sheet is not None:
        from ..data import load_data

        _write_picture(module.sheet(load_data("glyphs", split="test").images[7], 16), sheet)
    if as_json:
        print_json(document)
    else:
        _table(document)
    if check:
        for line in check_floors(document["rows"], floors):
            say(line)


def _write_picture(figure: Figure, path: Path) -> None:
    from io import BytesIO

    from ..files import write_atomic

    drawn, kind = BytesIO(), path.suffix[1:].lower() or "png"
    about = {"Software": MADE_BY.decode()} if kind == "png" else None
    figure.savefig(drawn, dpi=120, format=kind, metadata=about)
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
        "lost_points": lambda v: f"{v:.2f} points lost",
    }
    return ", ".join(show(row[key]) for key, show in shown.items() if key in row)
