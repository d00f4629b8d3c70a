"""`make gpu` without a device: every line runs, and whatever ends a part leaves the rows that it finished."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from fixtures import ROOT
from fixtures.disturbed_runs import narrow
from simclr_engine.bench import gpu, gpu_parts
from simclr_engine.bench.gpu import Part, Session, batches, run_all, run_part
from simclr_engine.bench.gpu_report import report
from simclr_engine.bench.row_file import RowFile
from simclr_engine.errors import PlatformError

# Writes numbered rows for ever; "deaf" does not answer SIGINT, "child" starts another process that would live on.
STUB = """
import os, signal, subprocess, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from simclr_engine.bench.row_file import RowFile
path, kind = Path(sys.argv[1]), sys.argv[2]
if kind == "deaf":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
if kind == "child":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("child", child.pid, flush=True)
rows = RowFile(path)
for number in range(10_000):
    figures = dict(median=number, p20=0, p80=0, padding="y" * 5000)
    rows.add(dict(name="stub", contender=str(number), unit="x", **figures))
    print("row " + str(number), flush=True)  # in one piece: a kill may come between two
    if kind == "memory" and number == 3:
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory is over
    if kind in ("deaf", "child", "hang") and number == 2:
        time.sleep(600)
"""


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """SIGINT as `make gpu` takes it: a suite in the background of a shell ignores it, and its processes would too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def stub(folder: Path, kind: str, seconds: float = 60) -> Part:
    """A part that takes no second to start: `rows` alone, without torch."""
    code = folder / "stub.py"
    code.write_text(STUB.format(root=str(ROOT)))
    rows = folder / f"{kind}.rows"
    return Part(kind, [sys.executable, str(code), str(rows), kind], seconds, rows)


def started(lines: list[str], text: str) -> Any:
    """Something to give to `say`, and what waits until a line with this text was said."""
    seen = threading.Event()

    def say(line: str) -> None:
        lines.append(line)
        if text in line:
            seen.set()

    return say, seen


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_part_that_is_killed_at_any_moment_leaves_every_finished_row(seed: int, tmp_path: Path) -> None:
    lines: list[str] = []
    say, seen = started(lines, f"row {random.Random(seed).randint(1, 40)}")
    part = stub(tmp_path, "kill")

    def kill() -> None:
        seen.wait(60)
        found = subprocess.run(["pgrep", "-f", str(part.rows)], capture_output=True, text=True).stdout.split()
        for pid in found:
            os.kill(int(pid), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    found = run_part(part, 120, say)
    killer.join()
    finished = [int(line.split()[1]) for line in lines if line.startswith("row")]
    assert found["status"] == "killed by SIGKILL"
    assert [int(one["contender"]) for one in found["rows"]][: len(finished)] == finished and len(finished) >= 2
    assert part.log.read_text().splitlines() == lines


@pytest.mark.parametrize(("kind", "status"), [("hang", "stopped after"), ("deaf", "killed: SIGINT did not end it")])
def test_a_part_that_hangs_is_asked_to_stop_and_then_killed(kind: str, status: str, tmp_path: Path) -> None:
    part = stub(tmp_path, kind)
    found = run_part(part, left=20.0, grace=0.5)
    assert status in found["status"] and len(found["rows"]) == 3
    assert ("SIGINT" in found["status"]) == (kind == "deaf")


def test_what_a_part_started_ends_with_it(tmp_path: Path) -> None:
    lines: list[str] = []
    run_part(stub(tmp_path, "child"), left=20.0, say=lines.append, grace=0.5)
    child = int(next(line for line in lines if line.startswith("child")).split()[1])
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{child}/stat").read_text().split(")")[1].split()[0] == "Z":
                return
        except FileNotFoundError:
            return
    raise AssertionError("the child lives on")


def test_an_interrupt_of_the_whole_stops_what_runs_and_notes_its_rows(tmp_path: Path) -> None:
    lines: list[str] = []
    session, part = Session(tmp_path, dry=True), stub(tmp_path, "hang")
    say, seen = started(lines, "row 2")

    def run(name: str) -> None:
        session.note(name, run_part(part, 120, say))

    def interrupt() -> None:
        seen.wait(60)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run_all(run, ["hang", "never"], 1)
    found = Session(tmp_path, dry=True).document["parts"]
    assert list(found) == ["hang"] and found["hang"]["status"] != "done" and len(found["hang"]["rows"]) == 3


def test_a_part_without_memory_is_named_and_keeps_its_rows(tmp_path: Path) -> None:
    found = run_part(stub(tmp_path, "memory"), left=60)
    assert found["status"] == "killed by SIGKILL" and len(found["rows"]) == 4


def test_parts_that_are_done_fail_or_come_too_late_say_so(tmp_path: Path) -> None:
    def run(code: str, left: float = 60) -> dict[str, Any]:
        return run_part(Part("one", [sys.executable, "-c", code], 60, tmp_path / "one.rows"), left)

    assert run("print(1)")["status"] == "done"
    assert run("raise SystemExit(3)")["status"] == "failed (exit 3)"
    assert run("never", left=-1)["status"].startswith("not run")


def test_a_torn_row_is_left_out_and_the_next_one_is_whole(tmp_path: Path) -> None:
    rows = RowFile(tmp_path / "some.rows")
    assert rows.read() == [] and not rows.has("a", "x")
    rows.add({"name": "a", "contender": "x", "median": 1})
    with rows.path.open("a") as file:
        file.write('{"name": "a", "contender": "y", "med')
    rows.add({"name": "a", "contender": "z", "median": 3})
    rows.add({"name": "a", "contender": "x", "median": 2})  # measured again
    assert [(one["contender"], one["median"]) for one in rows.read()] == [("x", 2), ("z", 3)]
    assert rows.has("a", "z") and not rows.has("a", "y")


def test_a_session_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    session = Session(tmp_path, dry=True)
    row = {"name": "training step", "contender": "ours, compiled", "median": 5.0, "p20": 4.0, "p80": 6.0, "unit": "x"}
    session.note("core: a", {"status": "done", "seconds": 1.0, "rows": [row]})
    session.note("core: b", {"status": "stopped after 3 s", "seconds": 3.0, "rows": []})
    again = Session(tmp_path, dry=True)
    assert [again.open(name) for name in ("core: a", "core: b", "core: c")] == [False, True, True]
    (tmp_path / "core--b.rows").write_text("{}")
    assert Session(tmp_path, dry=False).open("core: a")  # other sizes: nothing of it counts
    assert not (tmp_path / "core--b.rows").exists()


def test_the_compiled_step_comes_first_and_the_tests_last_and_at_once() -> None:
    names = list(gpu_parts.parts(ROOT / "tests" / "gpu"))
    assert names[0] == "core: ours, compiled"
    *single, last = batches(names)
    assert all(len(one) == 1 for one in single)
    assert len(last) >= 4 and all(name.startswith("tests: ") for name in last)


def test_the_report_says_what_was_measured_what_was_not_and_what_to_tune() -> None:
    def row(name: str, contender: str, median: float | None, **more: Any) -> dict[str, Any]:
        figures = dict.fromkeys(("median", "p20", "p80"), median)
        return {"name": name, "contender": contender, "unit": "views/s"} | figures | more

    def part(*rows: dict[str, Any], status: str = "done") -> dict[str, Any]:
        return {"status": status, "seconds": 9.0, "rows": list(rows)}

    steps = row("training step", "ours, compiled", 90_000.0), row("training step", "plain eager TF32 NCHW", 30_000.0)
    parts = {
        "core": part(*steps),
        "stem": part(row("stem", "3 channels", 5.0), row("stem", "8 channels", 7.0)),
        "augment: dali": part(row("augment", "DALI", None, note="not installed")),
        "tests: ntxent": part(status="stopped after 240 s"),
    }
    text = report({"device": "X", "versions": {}, "commit": None, "dry": False, "parts": parts})
    assert "goal 60,000: 90,000 (1.50 × the goal)" in text and "beside plain eager TF32, goal 2: 3.00 ×" in text
    assert "- tests: ntxent: stopped after 240 s" in text and "- augment: dali, DALI: not installed" in text
    assert "padded to 8 channels? Best: **8 channels** (3 channels 5, 8 channels 7 views/s)" in text
    assert "| augment | DALI | not measured |  |  | views/s | not installed |" in text
    assert "dry run" not in text


@pytest.mark.slow
def test_a_dry_run_shows_every_line_without_a_device(tmp_path: Path) -> None:
    with narrow():
        done = CliRunner().invoke(
            gpu.main, ["--dry", "--together", "--out", str(tmp_path), "--tests", str(ROOT / "tests/gpu")]
        )
    document = json.loads((tmp_path / "gpu.json").read_text())
    assert {name: part["status"] for name, part in document["parts"].items()} == dict.fromkeys(
        gpu_parts.parts(ROOT / "tests" / "gpu"), "done"
    )
    assert done.exit_code == 0, done.output
    assert document["dry"] and "no figure here means anything" in (tmp_path / "gpu.md").read_text()
    assert all(part["rows"] for name, part in document["parts"].items() if not name.startswith("tests: "))
    failed = [r for part in document["parts"].values() for r in part["rows"] if "Error" in r.get("note", "")]
    assert failed == []


def test_without_a_device_it_says_how_to_see_it_run(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    done = CliRunner().invoke(gpu.main, ["--out", str(tmp_path / "x")])
    assert isinstance(done.exception, PlatformError) and "make gpu DRY=1" in str(done.exception)
    assert not (tmp_path / "x").exists()
