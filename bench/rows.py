"""The rows every benchmark writes, the document around them, and the floors that `--check` holds them to."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from typing import Any

from simclr_engine.errors import CheckFailed
from simclr_engine.timing import Timing

Row = dict[str, Any]


@dataclass(frozen=True)
class Floor:
    """A bound in the rows of `name`: `field` of `contender` is at `least` or at `most` so much, or so many `of`s."""

    name: str
    contender: str
    least: float | None = None
    of: str | None = None
    most: float | None = None
    field: str = "median"


def rate_row(name: str, contender: str, items: int, timing: Timing, unit: str, **more: Any) -> Row:
    """A row of items per second; p20 is the slow end and p80 the fast one, as for any rate."""
    return {
        "name": name,
        "contender": contender,
        "median": items / timing.median,
        "p20": items / timing.p80,
        "p80": items / timing.p20,
        "unit": unit,
        "repeats": timing.repeats,
        **more,
    }


def time_row(name: str, contender: str, timing: Timing, **more: Any) -> Row:
    """A row of milliseconds per call; p20 is the fast end."""
    return {
        "name": name,
        "contender": contender,
        "median": 1e3 * timing.median,
        "p20": 1e3 * timing.p20,
        "p80": 1e3 * timing.p80,
        "unit": "ms",
        "repeats": timing.repeats,
        **more,
    }


def missing_row(name: str, contender: str, unit: str, note: str = "not installed") -> Row:
    """A contender that cannot run here: named, with the reason, never dropped."""
    return {
        "name": name,
        "contender": contender,
        "median": None,
        "p20": None,
        "p80": None,
        "unit": unit,
        "note": note,
    }


def bench_document(rows: list[Row], floors: tuple[Floor, ...] = ()) -> dict[str, Any]:
    """`{device, versions, rows, floors}` of this machine."""
    import numpy
    import torch

    from simclr_engine.device import choose_platform

    chosen = choose_platform()
    return {
        "device": str(chosen.describe()["device_name"]),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__},
        "rows": rows,
        "floors": judge(rows, floors),
    }


def judge(rows: list[Row], floors: tuple[Floor, ...]) -> list[dict[str, Any]]:
    """Each floor with the `value` that was measured (a ratio where there is a rival) and whether it `holds`.

    Without a value, of ours or of the rival, both are None, and `note` says who was not measured.
    """
    found = {(row["name"], row["contender"]): row for row in rows}
    judged = []
    for floor in floors:
        verdict: dict[str, Any] = {**asdict(floor), "value": None, "holds": None}
        ours, rival = (found.get((floor.name, who), {}).get(floor.field) for who in (floor.contender, floor.of))
        if ours is None or (floor.of and rival is None):
            verdict["note"] = f"{floor.contender if ours is None else floor.of} was not measured"
        else:
            value = verdict["value"] = ours / rival if floor.of else ours
            low, high = floor.least is None or value >= floor.least, floor.most is None or value <= floor.most
            verdict["holds"] = low and high
        judged.append(verdict)
    return judged


def check(rows: list[Row], floors: tuple[Floor, ...]) -> list[str]:
    """One line per floor that holds, or whose rival is not here.

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
