"""Floors that a benchmark is held to: they hold, are missed, or are said not to be checked."""

from __future__ import annotations

from typing import Any

import pytest

from simclr_engine.bench.rows import Floor, check, judge, missing_row, rate_row, time_row
from simclr_engine.errors import CheckFailed
from simclr_engine.timing import Timing

TIMING = Timing(median=0.02, p20=0.01, p80=0.04, repeats=5)


def row(contender: str, median: float, **more: Any) -> dict[str, Any]:
    return {"name": "a thing", "contender": contender, "median": median, **more}


def test_a_rate_turns_the_percentiles_round_and_a_time_does_not() -> None:
    rate = rate_row("a thing", "ours", 100, TIMING, "views/s")
    assert (rate["median"], rate["p20"], rate["p80"]) == pytest.approx((5000, 2500, 10000))
    time = time_row("a thing", "ours", TIMING)
    assert (time["median"], time["p20"], time["p80"], time["unit"]) == (20, 10, 40, "ms")


@pytest.mark.parametrize(
    ("floor", "holds"),
    [
        (Floor("a thing", "ours", least=50), True),
        (Floor("a thing", "ours", least=51), False),
        (Floor("a thing", "ours", of="theirs", least=2.5), True),
        (Floor("a thing", "ours", of="theirs", least=2.6), False),
        (Floor("a thing", "theirs", of="ours", most=0.4), True),
        (Floor("a thing", "theirs", of="ours", most=0.39), False),
        (Floor("a thing", "ours", of="theirs", most=0.1, field="peak_bytes"), True),
        (Floor("a thing", "ours", of="theirs", most=0.09, field="peak_bytes"), False),
    ],
)
def test_a_floor_compares_medians_or_another_figure(floor: Floor, holds: bool) -> None:
    rows = [row("ours", 50.0, peak_bytes=10), row("theirs", 20.0, peak_bytes=100)]
    if holds:
        (line,) = check(rows, (floor,))
        assert line.startswith("holds: a thing")
    else:
        with pytest.raises(CheckFailed, match="MISSED: a thing"):
            check(rows, (floor,))


def test_the_document_holds_the_ratios() -> None:
    rows = [row("ours", 50.0), row("theirs", 20.0)]
    held, missed, unknown = judge(
        rows,
        (
            Floor("a thing", "ours", of="theirs", least=2),
            Floor("a thing", "ours", most=49),
            Floor("a thing", "ours", of="nobody", least=2),
        ),
    )
    assert (held["value"], held["holds"], held["of"]) == (2.5, True, "theirs")
    assert (missed["value"], missed["holds"]) == (50.0, False)
    assert (unknown["value"], unknown["holds"], unknown["note"]) == (None, None, "nobody was not measured")


def test_an_absent_rival_is_said_and_an_absent_one_of_ours_fails() -> None:
    rows = [row("ours", 50.0), missing_row("a thing", "theirs", "ms")]
    (line,) = check(rows, (Floor("a thing", "ours", of="theirs", least=3),))
    assert line.startswith("not checked") and "theirs was not measured" in line
    for absent in ([missing_row("a thing", "ours", "ms", "no compiler")], []):
        with pytest.raises(CheckFailed, match="ours was not measured"):
            check([*absent, row("theirs", 20.0)], (Floor("a thing", "ours", of="theirs", least=3),))
