"""A small part of the kill campaign; `make chaos` runs the whole."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

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
