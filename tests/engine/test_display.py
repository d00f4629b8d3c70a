"""A display that fails never ends the work; a stdout that is the product is an error; a run outlives its terminal."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

from fixtures.disturbed_runs import RECIPE, at_step, narrow, newest_step, store, train
from fixtures.image_files import class_tree, write_tree
from simclr_engine import stopping
from simclr_engine.cli.main import main
from simclr_engine.errors import PlatformError
from simclr_engine.pretraining import Interrupted, pretrain
from simclr_engine.progress import Progress
from simclr_engine.terminal import Display, display, prepare_streams, say, tell


def full() -> TextIO:
    return Path("/dev/full").open("w")


def gone() -> TextIO:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


def closed() -> TextIO:
    stream = io.StringIO()
    stream.close()
    return stream


class Terminal(io.StringIO):
    """A terminal that hangs up after some writes."""

    encoding = "utf-8"

    def __init__(self, writes: int) -> None:
        super().__init__()
        self.left = writes

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise OSError(5, "Input/output error")
        return super().write(text)


BROKEN = {"full": full, "gone": gone, "closed": closed, "hung up": lambda: Terminal(0), "none": lambda: None}


@pytest.fixture(autouse=True)
def _streams(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The streams and what shows warnings, as they were."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    yield


@pytest.mark.parametrize("how", BROKEN)
def test_what_a_broken_display_cannot_show_is_dropped(how: str) -> None:
    shown = Display(BROKEN[how]())
    for _ in range(3):
        assert shown.write("a line\n") == 7
        shown.flush()
    assert shown.isatty() is False


def test_a_display_that_failed_once_stays_off() -> None:
    terminal = Terminal(1)
    shown = Display(terminal)
    shown.write("a")
    shown.write("b")
    terminal.left = 9
    shown.write("c")
    assert terminal.getvalue() == "a"


def test_text_that_the_encoding_lacks_is_shown_escaped_and_the_rest_as_it_is() -> None:
    raw = io.BytesIO()
    shown = Display(io.TextIOWrapper(raw, encoding="ascii", errors="strict"))
    shown.write("1 → 2")
    shown.write(" on")
    shown.flush()
    assert raw.getvalue() == b"1 \\u2192 2 on"


@pytest.mark.parametrize("how", BROKEN)
def test_a_run_of_twelve_steps_outlives_its_display(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", BROKEN[how]())
    with narrow():
        run = pretrain(RECIPE, store(), tmp_path / "run", device="cpu", fused=False)
    assert run.environment["finished"] and newest_step(tmp_path / "run") == 12


@pytest.mark.parametrize("writes", [0, 1, 4])
def test_a_bar_whose_terminal_hangs_up_still_counts(writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal(writes))
    monkeypatch.setenv("TERM", "xterm")
    with Progress(4, "starting") as bar:
        for step in range(1, 5):
            bar.update(step, f"step {step}")
            bar.say("a note")
    assert bar.done == 4


def test_say_without_a_stderr_does_not_write_to_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    say("a note")
    assert capsys.readouterr().out == "" and display().isatty() is False


@pytest.mark.parametrize("how", ["full", "closed", "none"])
def test_a_stdout_that_is_the_product_and_cannot_be_written_is_an_error(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", BROKEN[how]())
    prepare_streams(product=True)
    with pytest.raises(PlatformError, match="stdout cannot be written"):
        tell("a document")


def test_a_reader_of_the_product_that_is_gone_ends_the_command_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", gone())
    prepare_streams(product=True)
    with pytest.raises(SystemExit) as ended:
        tell("a list")
    assert ended.value.code == 0


@pytest.mark.parametrize(("words", "code"), [([], 0), (["--json"], 3)])
def test_a_full_stdout_fails_a_command_only_where_it_is_the_product(
    words: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tree(tmp_path / "set", class_tree(("ant", "bee"), each=3))
    monkeypatch.setenv("SIMCLR_ENGINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["simclr-engine", "data", "pack", str(tmp_path / "set"), *words])
    monkeypatch.setattr(sys, "stdout", full())
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == code and list((tmp_path / "cache" / "data").glob("*/meta.json"))
    assert ("stdout cannot be written" in capsys.readouterr().err) is bool(code)


CLOSED = """
import os, sys
from simclr_engine.terminal import prepare_streams
prepare_streams()
number = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
os.write(2, b"of a library")
os.write(number, b"ours")
"""


def test_a_file_never_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    command = ["sh", "-c", 'exec "$0" -c "$1" "$2" <&- >&- 2>&-', sys.executable, CLOSED, str(tmp_path / "last.pt")]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0
    assert (tmp_path / "last.pt").read_bytes() == b"ours"


# Signals


def signals(*numbers: int) -> Callable[[Any], None]:
    def sent(_: Any) -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    return sent


@pytest.fixture
def terminal() -> Iterator[None]:
    """A terminal whose end is heard, however the suite was started."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("numbers", [(signal.SIGHUP,), (signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)])
def test_a_closed_terminal_and_a_second_ctrl_c_save_the_step(
    numbers: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGHUP)
    at_step(monkeypatch, 5, signals(*numbers))
    with pytest.raises(Interrupted, match="the run is saved"):
        train(tmp_path / "run")
    assert newest_step(tmp_path / "run") == 6 and signal.getsignal(signal.SIGHUP) == before


def test_a_third_ctrl_c_ends_at_once_and_says_that_it_does_not_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at_step(monkeypatch, 5, signals(signal.SIGINT, signal.SIGINT, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run")
    second, last = capsys.readouterr().err.splitlines()
    assert "Ctrl-C once more ends it at once, without saving" in second
    assert last.startswith("ended at once, without saving; continue with: ") and newest_step(tmp_path / "run") == 4


@pytest.mark.usefixtures("terminal")
def test_under_nohup_a_closed_terminal_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    at_step(monkeypatch, 5, signals(signal.SIGHUP))
    assert train(tmp_path / "run").environment["finished"]


@pytest.mark.usefixtures("terminal")
def test_a_step_that_does_not_end_is_cut_after_a_hangup_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "STOP_SECONDS", 0.01)
    ended = stopping.threading.Event()
    with stopping.stop_requests(ended.set) as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert ended.wait(10) and stop.is_set()
