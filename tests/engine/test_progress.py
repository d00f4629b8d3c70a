"""Progress: lines where there is no terminal, a bar where there is one, nothing where none is wanted."""

from __future__ import annotations

import sys
import time

import pytest

from simclr_engine.progress import INTERVAL, Progress, progress_bar


class Clock:
    """A monotonic clock that a test sets, of a machine that has just started."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    told = Clock()
    monkeypatch.setattr(time, "monotonic", told)
    return told


def test_off_a_terminal_the_first_line_comes_at_once_and_then_few(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(100, "starting") as bar:
        for step in range(1, 101):
            clock.now = float(step)
            bar.update(step, f"step {step}")
    assert capsys.readouterr().err.splitlines() == [
        f"[{step:3d}%] step {step}  {100 - step} s left" for step in (1, 16, 31, 46, 61, 76, 91, 100)
    ]


def test_what_is_left_is_told_from_this_part_of_a_run_alone(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(100, done=80) as bar:
        clock.now = 4.0
        bar.update(82, "on")
    assert capsys.readouterr().err == "[ 82%] on  36 s left\n"


def test_what_ends_within_the_interval_prints_no_line(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("reading", 10, lines=True) as advance:
        clock.now = INTERVAL - 1
        advance(10)
    assert capsys.readouterr().err == ""
    clock.now = 100.0
    with progress_bar("reading", 10, lines=True) as advance:
        clock.now += INTERVAL
        advance(5)
    assert capsys.readouterr().err == "[ 50%] reading  15 s left\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_is_shown_where_nothing_is_wanted(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with Progress(2, show=False) as bar:
        bar.update(2, "done")
    assert capsys.readouterr().err == ""


def test_on_a_terminal_a_bar_shows_the_text_as_it_is_and_no_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with Progress(4, "starting") as bar:
        bar.update(4, "[red]a.png")
    shown = capsys.readouterr().err
    assert "100%" in shown and "[red]a.png" in shown and "[100%]" not in shown
