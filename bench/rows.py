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
    """`contender` must reach `least` (unit of the rows of `name`), or `least` times `of` where a rival is named."""

    name: str
    contender: str
    least: float
    of: str | None = None


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


def missing_row(name: str, contender: str, unit: str) -> Row:
    """A contender that is not installed: named, never dropped."""
    return {
        "name": name,
        "contender": contender,
        "median": None,
        "p20": None,
        "p80": None,
        "unit": unit,
        "note": "not installed",
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
    medians = {(row["name"], row["contender"]): row["median"] for row in rows}
    lines, missed = [], False
    for floor in floors:
        value = medians[floor.name, floor.contender] / (medians[floor.name, floor.of] if floor.of else 1.0)
        unit = f" × {floor.of}" if floor.of else ""
        holds = value >= floor.least
        missed |= not holds
        verdict = "holds" if holds else "MISSED"
        lines.append(f"{verdict}: {floor.name}, {floor.contender}: {value:,.2f}{unit} (floor {floor.least:,g})")
    if missed:
        raise CheckFailed(
            "a speed floor was missed",
            saw="; ".join(lines),
            fix="run it again on a quiet machine; if it stays, find what got slower",
        )
    return lines
