"""The rows every benchmark writes, the document around them, and the floors that `--check` holds them to."""

from __future__ import annotations

import platform
from dataclasses import dataclass
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


def bench_document(rows: list[Row]) -> dict[str, Any]:
    """`{device, versions, rows}` of this machine."""
    import numpy
    import torch

    from simclr_engine.device import choose_platform

    chosen = choose_platform()
    return {
        "device": str(chosen.describe()["device_name"]),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__},
        "rows": rows,
    }


def check(rows: list[Row], floors: tuple[Floor, ...]) -> list[str]:
    """One line per floor that holds.

    Raises:
        CheckFailed: a floor is missed; all floors are named with what was measured.
    """
    found = {(row["name"], row["contender"]): row for row in rows}
    lines, missed = [], False
    for floor in floors:
        ours, rival = found.get((floor.name, floor.contender)), found.get((floor.name, floor.of or floor.contender))
        if ours is None or ours.get(floor.field) is None:
            missed = True
            lines.append(f"MISSED: {floor.name}, {floor.contender} was not measured")
            continue
        if rival is None or rival.get(floor.field) is None:
            lines.append(f"not checked: {floor.name}, {floor.contender}: the rival {floor.of} is not here")
            continue
        value = ours[floor.field] / (rival[floor.field] if floor.of else 1.0)
        unit = f" × {floor.of}" if floor.of else ""
        what = "" if floor.field == "median" else f" {floor.field}"
        holds = (floor.least is None or value >= floor.least) and (floor.most is None or value <= floor.most)
        missed |= not holds
        verdict = "holds" if holds else "MISSED"
        bound = f"at least {floor.least:,.4g}" if floor.most is None else f"at most {floor.most:,.4g}"
        lines.append(f"{verdict}: {floor.name}, {floor.contender}{what}: {value:,.2f}{unit} ({bound})")
    if missed:
        raise CheckFailed(
            "a speed floor was missed",
            saw="; ".join(lines),
            fix="run it again on a quiet machine; if it stays, find what got slower",
        )
    return lines
