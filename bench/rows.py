"""The rows every benchmark writes, the document around them, and the floors that `--check` compares them with.
Loads no torch before it is needed."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from simclr_engine.errors import CheckFailed
from simclr_engine.timing import Timing

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

Row = dict[str, Any]


@dataclass(frozen=True)
class Floor:
    """A bound: in the rows of `name`, `field` of `contender` is at `least` or at `most` this value, or this multiple of
    the same field of the contender `of`."""

    name: str
    contender: str
    least: float | None = None
    of: str | None = None
    most: float | None = None
    field: str = "median"


def row(name: str, contender: str, figures: Timing, unit: str, **more: Any) -> Row:
    """A row of figures in `unit`, and `more` beside them."""
    start = {"name": name, "contender": contender, "median": figures.median, "p20": figures.p20, "p80": figures.p80}
    return {**start, "unit": unit, "repeats": figures.repeats, **more}


def rate_row(name: str, contender: str, items: int, timing: Timing, unit: str, **more: Any) -> Row:
    """A row of items per second; p20 is the slow end and p80 the fast one, as for any rate."""
    rates = Timing(items / timing.median, items / timing.p80, items / timing.p20, timing.repeats)
    return row(name, contender, rates, unit, **more)


def time_row(name: str, contender: str, timing: Timing, **more: Any) -> Row:
    """A row of milliseconds per call; p20 is the fast end."""
    milliseconds = Timing(1e3 * timing.median, 1e3 * timing.p20, 1e3 * timing.p80, timing.repeats)
    return row(name, contender, milliseconds, "ms", **more)


def single_row(name: str, contender: str, value: float, unit: str, **more: Any) -> Row:
    """A row of a value that was taken once."""
    return row(name, contender, Timing(value, value, value, 1), unit, **more)


def missing_row(name: str, contender: str, unit: str, note: str = "not installed") -> Row:
    """A row for a contender that cannot run here, with the reason."""
    return {"name": name, "contender": contender, "median": None, "p20": None, "p80": None, "unit": unit, "note": note}


def figure(value: float) -> str:
    """Four significant digits, or a whole number."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def table_line(row: Row) -> str:
    """A row as a line of a Markdown table: measured, contender, median, p20, p80, unit."""
    figures = ["not measured", "", ""] if row["median"] is None else [figure(row[k]) for k in ("median", "p20", "p80")]
    return f"| {' | '.join([row['name'], row['contender'].replace('|', '/'), *figures, row['unit']])} |"


def first_line(error: Exception) -> str:
    """Why a contender failed, in one line; the others still run."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def bench_document(rows: list[Row], floors: tuple[Floor, ...] = ()) -> dict[str, Any]:
    """`{device, versions, commit, rows, floors}` of this machine and checkout."""
    import numpy
    import torch

    from simclr_engine.device import choose_platform
    from simclr_engine.recording import commit_of_checkout

    return {
        "device": str(choose_platform().describe()["device_name"]),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__},
        "commit": commit_of_checkout(),
        "rows": rows,
        "floors": judge(rows, floors),
    }


def judge(rows: list[Row], floors: tuple[Floor, ...]) -> list[dict[str, Any]]:
    """Each floor with the `value` that was measured (a ratio where there is a rival) and whether it `holds`.

    Without a value, of ours or of the rival, both are None, and `note` says who was not measured.
    """
    measured = {(row["name"], row["contender"]): row for row in rows}
    verdicts = []
    for floor in floors:
        verdict: dict[str, Any] = {**asdict(floor), "value": None, "holds": None}
        ours, rival = (measured.get((floor.name, who), {}).get(floor.field) for who in (floor.contender, floor.of))
        if ours is None or (floor.of and rival is None):
            verdict["note"] = f"{floor.contender if ours is None else floor.of} was not measured"
        else:
            value = verdict["value"] = ours / rival if floor.of else ours
            low, high = floor.least is None or value >= floor.least, floor.most is None or value <= floor.most
            verdict["holds"] = low and high
        verdicts.append(verdict)
    return verdicts


def check(rows: list[Row], floors: tuple[Floor, ...]) -> list[str]:
    """One line per floor that holds, or whose rival was not measured.

    Raises:
        CheckFailed: a floor is missed, or ours was not measured; all floors are named with what was.
    """
    lines, missed = [], False
    for verdict in judge(rows, floors):
        what = f"{verdict['name']}, {verdict['contender']}"
        if verdict["value"] is None:
            ours = verdict["note"].startswith(verdict["contender"])
            missed |= ours
            lines.append(f"{'MISSED' if ours else 'not checked'}: {what}: {verdict['note']}")
            continue
        missed |= not verdict["holds"]
        what += "" if verdict["field"] == "median" else f" {verdict['field']}"
        unit = f" × {verdict['of']}" if verdict["of"] else ""
        bound = f"at least {verdict['least']:,.4g}" if verdict["most"] is None else f"at most {verdict['most']:,.4g}"
        lines.append(f"{'holds' if verdict['holds'] else 'MISSED'}: {what}: {verdict['value']:,.2f}{unit} ({bound})")
    if missed:
        raise CheckFailed(
            "a speed floor was missed",
            saw="; ".join(lines),
            fix="run it again on a quiet machine; if it stays, find what got slower",
        )
    return lines


def peak_extra_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The peak of what `call` allocates through torch, in bytes, its result included.

    On CUDA from the caching allocator's own count; on the CPU, whose allocator keeps none, from the profiler's record
    of every allocation and release, added up in the order they happened.
    """
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    results = profile.profiler.kineto_results
    events = [e for e in results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(accumulate(sizes), default=0)


def draw(document: dict[str, Any]) -> Figure:
    """A matplotlib Figure of `{device, versions, rows}`; whiskers from p20 to p80, a logarithmic scale.

    Contenders without a figure are named in the margin with their reason.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    names = list(dict.fromkeys(row["name"] for row in document["rows"] if row["median"] is not None))
    heights = [sum(row["name"] == name and row["median"] is not None for row in document["rows"]) for name in names]
    figure = Figure(figsize=(9, 1.1 + sum(0.32 * n + 0.5 for n in heights)), layout="constrained")
    panels = figure.subplots(len(names), 1, squeeze=False, height_ratios=heights)[:, 0] if names else ()
    for axis, name in zip(panels, names, strict=True):
        rows = [row for row in document["rows"] if row["name"] == name and row["median"] is not None]
        medians = [row["median"] for row in rows]
        whiskers = [
            [row["median"] - min(row["p20"], row["p80"]) for row in rows],
            [max(row["p20"], row["p80"]) - row["median"] for row in rows],
        ]
        colours = ["#2b6cb0" if row["contender"].startswith("ours") else "#a0aec0" for row in rows]
        # Points, not bars: a bar's length means nothing on a logarithmic scale.
        places = list(range(len(rows)))
        axis.errorbar(medians, places, xerr=whiskers, fmt="none", ecolor="#4a5568", capsize=3, zorder=1)
        axis.scatter(medians, places, c=colours, s=45, zorder=2)
        axis.set_yticks(places, [row["contender"] for row in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.grid(axis="x", color="#e2e8f0")
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_title(f"{name} ({rows[0]['unit']})", fontsize="small", loc="left")
        for index, median in enumerate(medians):
            text = f"{median:,.0f}" if median >= 100 else f"{median:.3g}"
            axis.annotate(text, (median, index), (7, 5), textcoords="offset points", fontsize="x-small")
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    absent = sorted({f"{r['contender']}: {r.get('note', '')}"[:110] for r in document["rows"] if r["median"] is None})
    versions = ", ".join(f"{k} {v}" for k, v in document["versions"].items())
    figure.suptitle(f"{document['device']}; {versions}", fontsize="small")
    if absent:
        figure.supxlabel("not measured: " + "\n".join(absent), fontsize="xx-small", ha="center")
    return figure
