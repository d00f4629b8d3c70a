"""A small part of each campaign; `make chaos` runs the whole."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures import TESTS


def test_killed_runs_and_packings_lose_nothing_and_end_bitwise_equal(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "chaos", "--kills", "14", "--seed", "1", "--folder", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = [int(number) for number in re.findall(r"\d+", re.sub(r" in \d+ s:.*", "", done.stdout))]
    kills, runs, equal, checkpoints, lost, sources, caches, unreadable = counts
    assert kills == 14 and runs == equal >= 3 and sources >= 2, done.stdout
    assert checkpoints > 10 and caches > 0 and lost == unreadable == 0, done.stdout


def sampled(*words: str) -> list[str]:
    """What a campaign printed that found nothing wrong."""
    environment = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_with_less_address_space_a_command_gives_the_same_or_says_why() -> None:
    lines = sampled("chaos.memory", "--only", "data pack", "--only", "embed", "--steps", "3")
    assert sum(int(re.search(r": (\d+) ×", line)[1]) for line in lines if " × " in line) == 8, lines
    assert any(line.startswith("embed") and line.endswith("exit code 3") for line in lines), lines


def test_a_hostile_run_writes_nothing_outside_and_ends_as_documented() -> None:
    cases = ("links in place of files", "pipes in place of documents", "rows of any kind", "huge documents")
    words = [word for case in cases for word in ("--only", case)]
    lines = sampled("chaos.hostile_runs", *words, "--command", "resume", "--command", "compare")
    assert lines[0].startswith("4 hostile run directories, 8 commands"), lines
    assert lines[1] == "0 bytes written outside, 0 tracebacks"


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler (cc) to build the interposer with")
def test_a_call_that_fails_is_said_and_loses_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "chaos.faults", "--most", "4", "--jobs", "1", "--folder", str(tmp_path / "cases")]
    environment = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    first, codes = done.stdout.splitlines()
    assert re.match(r"\d\d calls failed", first), done.stdout
    for case in ("pack-folder", "pack-archive", "pack-zip", "embed", "report", "pretrain"):
        assert re.search(rf"{case} EIO [34], {case} ENOSPC [34]", first), done.stdout
    assert "with 3" in codes and codes.endswith("0 tracebacks; 0 checkpoints or packed copies lost"), done.stdout
