"""`simclr-engine bench`."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from .options import add, print_json, show, table

# Each is a module of bench/ with `rows(repeats, …)` and `floors()`; what it takes to see every line of it run quickly.
BENCHES: dict[str, dict[str, Any]] = {
    "epoch": {"views": 8, "size": 16, "monitored": 40},
    "nt-xent": {"sizes": (64, 128)},
    "augment": {"views": 32, "size": 16},
    "optimizer": {"shape": (2, 16, 48)},
    "evaluate": {"train": 300, "test": 100, "dim": 16},
    "store": {"gigabytes": 0.02, "size": 16, "batch": 8},
    "scaling": {"images": 4, "size": 16, "sleep": 0.01},
    "export": {"size": 16, "batches": (1, 4), "compile": False, "processes": 1},
}


@click.command(name="bench")
@click.argument("name", type=click.Choice(list(BENCHES)))
@click.option(
    "--repeats", type=click.IntRange(min=1), default=7, show_default=True, help="Timed calls of each contender."
)
@click.option("--small", is_flag=True, help="Tiny sizes: to see every line run, not to compare anything.")
@click.option("--check", is_flag=True, help="Exit 1 where a floor is missed.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the JSON here too.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.png", help="Draw the rows.")
@click.option(
    "--sheet",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.png",
    help="augment: one image, 16 views of it, a row for each backend.",
)
@click.option("--run", metavar="RUN", help="export, evaluate: measure this run.  [default: a synthetic one]")
@click.option("--compile/--no-compile", default=None, help="export: torch.compile too.  [default: yes]")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
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
    as_json: bool,
) -> None:
    """Measure this machine: contenders interleaved, median with p20 and p80.

    \b
    epoch      a training step, ours and with each part switched off, beside a plain one
    nt-xent    the loss: time, memory and error beside the usual ways to write it
    augment    views per second of each backend beside other libraries
    optimizer  an update of LARS and of Muon, beside a plain loop and torch's Muon
    store      images from files larger than memory beside images in memory
    scaling    the data path in one process and in two
    evaluate   probe, kNN and maps over 50,000 x 512 features beside scikit-learn
    export     the exported files beside PyTorch: speed, memory, size, start-up
    """
    # Before torch is loaded: its profiler announces every start and stop on stderr, and warns of what was there before.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

    from simclr_engine.bench.rows import bench_document
    from simclr_engine.bench.rows import check as check_floors

    from ..errors import UsageError

    if sheet is not None and name != "augment":
        raise UsageError("--sheet belongs to bench augment", saw=name, fix="simclr-engine bench augment --sheet FILE")
    given = {k: v for k, v in (("run", run), ("compile", compile)) if v is not None}
    for option, belongs_to in (("run", ("export", "evaluate")), ("compile", ("export",))):
        if option in given and name not in belongs_to:
            fix = f"simclr-engine bench {belongs_to[0]}"
            raise UsageError(f"--{option} belongs to bench {' and bench '.join(belongs_to)}", saw=name, fix=fix)
    if small and check:
        raise UsageError("--check has no meaning at --small sizes", fix="give one of them")
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
        from io import BytesIO

        from simclr_engine.bench.rows import draw

        from ..files import write_atomic

        drawn = BytesIO()
        draw(document).savefig(drawn, dpi=120, format=plot.suffix[1:] or None)
        write_atomic(plot, drawn.getbuffer())
    if sheet is not None:
        from ..data import load_data

        module.sheet(load_data("glyphs", split="test").images[7], 16, sheet)
    if as_json:
        print_json(document)
    else:
        _table(document)
    if check:
        for line in check_floors(document["rows"], floors):
            click.echo(line, err=True)


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
    """What a row holds beside its time."""
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
