"""A small part of the campaigns of kills and of faults; `make chaos` runs the whole."""

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


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler (cc) to build the interposer with")
def test_a_call_that_fails_is_said_and_loses_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "chaos.faults", "--most", "4", "--jobs", "1", "--folder", str(tmp_path / "cases")]
    environment = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    first, codes = done.stdout.splitlines()
    assert re.match(r"\d\d calls failed", first), done.stdout
    for case in ("pack-folder", "pack-archive", "embed", "report", "pretrain"):
        assert re.search(rf"{case} EIO [34], {case} ENOSPC [34]", first), done.stdout
    assert "with 3" in codes and codes.endswith("0 tracebacks; 0 checkpoints or packed copies lost"), done.stdout
