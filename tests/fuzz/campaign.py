"""Many inputs: slices for worker processes, a new one where an input has killed or hung the last, and the counts."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FIVE = ("archive", "image", "recipe", "checkpoint", "onnx")
READERS = (*FIVE, "result", "table", "index")
SLICE = 250  # inputs of one reader before it is the next one's turn
WALL = 60.0  # seconds without an answer: the machine may be busy, a hang is for ever
START = 120.0  # seconds for a worker to import everything


@dataclass
class Tally:
    """Counts of one reader."""

    inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, int] = (0.0, -1)  # seconds of processor time, number of the input
    seconds: float = 0.0
    peak: tuple[int, int] = (0, -1)  # bytes, number of the input
    longest: int = 0  # characters of a message
    failures: dict[str, list[Any]] = field(default_factory=dict)  # what -> [how often, the file of the first]

    def add(self, row: Sequence[Any]) -> None:
        """A line of a worker."""
        _, index, kind, seconds, grown, message, failure, saved = row
        self.inputs += 1
        self.outcomes["crash" if failure else kind] += 1
        self.seconds += seconds
        self.slowest = max(self.slowest, (seconds, index))
        self.peak = max(self.peak, (grown, index))
        self.longest = max(self.longest, message)
        if failure:
            known = self.failures.setdefault(failure.split(": ")[0], [0, saved, failure])
            known[0] += 1

    def refused(self) -> int:
        """Inputs that were answered with an error of the product."""
        return self.inputs - self.outcomes["accepted"] - self.outcomes["crash"]


def slices(counts: dict[str, int]) -> list[tuple[str, int, int]]:
    """(reader, first, end), the readers in turn."""
    rows = [(first, reader) for reader, count in counts.items() for first in range(0, count, SLICE)]
    rows.sort(key=lambda row: row[0])
    return [(reader, first, min(first + SLICE, counts[reader])) for first, reader in rows]


def run(
    counts: dict[str, int],
    *,
    seed: int,
    corpus: Path,
    seconds: float | None = None,
    wall: float = WALL,
    progress: Callable[[dict[str, Tally]], None] | None = None,
) -> dict[str, Tally]:
    """Feeds `counts` inputs to each reader, and stops after `seconds` at the latest.

    A failing input is left in `corpus`, made smaller where it did not kill its process.
    """
    tallies = {reader: Tally() for reader in counts}
    waiting = slices(counts)
    end = time.monotonic() + seconds if seconds is not None else float("inf")
    while waiting and time.monotonic() < end:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            room = Path(folder) / "room"
            waiting = _work(waiting, tallies, room, seed=seed, corpus=corpus, end=end, wall=wall, progress=progress)
    return tallies


def _work(
    waiting: list[tuple[str, int, int]],
    tallies: dict[str, Tally],
    room: Path,
    *,
    seed: int,
    corpus: Path,
    end: float,
    wall: float,
    progress: Callable[[dict[str, Tally]], None] | None,
) -> list[tuple[str, int, int]]:
    """One worker, for as long as it lives; returns what it left undone."""
    job = {"room": str(room), "seed": seed, "corpus": str(corpus), "slices": waiting}
    process = _start(job)
    assert process.stdout is not None
    lines = _Lines(process.stdout.fileno())
    left = list(waiting)
    try:
        if lines.read(START) != b"ready":
            raise RuntimeError("the worker did not start")
        while left:
            line = lines.read(min(wall, max(0.0, end - time.monotonic())))
            if line is None and time.monotonic() >= end:
                return []
            if not line:
                why = f"no answer within {wall:g} s" if line is None else f"the process ended with {process.wait()}"
                _blame(left, tallies, room, seed, corpus, why)
            else:
                tallies[left[0][0]].add(json.loads(line))
            reader, first, stop = left.pop(0)
            if first + 1 < stop:
                left.insert(0, (reader, first + 1, stop))
            elif progress is not None:
                progress(tallies)
            if not line:
                return left
        return []
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _start(job: dict[str, Any]) -> subprocess.Popen[bytes]:
    tests = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((tests, os.environ.get("PYTHONPATH", ""))).rstrip(os.pathsep)
    }
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-m", "fuzz.worker", json.dumps(job)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)


class _Lines:
    """Lines of a pipe, each waited for so long and no longer."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._rest = descriptor, b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(descriptor, selectors.EVENT_READ)

    def read(self, seconds: float) -> bytes | None:
        """The next line; None where none came in time, empty at the end."""
        while b"\n" not in self._rest:
            if not self._selector.select(seconds):
                return None
            piece = os.read(self._descriptor, 1 << 16)
            if not piece:
                return b""
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line


def _blame(
    left: list[tuple[str, int, int]], tallies: dict[str, Tally], room: Path, seed: int, corpus: Path, why: str
) -> None:
    """Counts the input that the worker died of, and keeps it: it still lies in the worker's room."""
    reader, index, _ = left[0]
    found = sorted((room / "in" / "side").glob("input*")) if (room / "in" / "side").is_dir() else []
    if not found:
        raise RuntimeError(f"the worker ended between two inputs: {why}")
    corpus.mkdir(parents=True, exist_ok=True)
    saved = corpus / f"{reader}-{seed}-{index}{found[0].name.removeprefix('input')}"
    shutil.copy(found[0], saved)
    tallies[reader].add([reader, index, "killed", 0.0, 0, 0, f"{why}: input {index}", str(saved)])


def table(tallies: dict[str, Tally]) -> str:
    """The counts, a line for each reader."""
    head = f"{'reader':<12}{'inputs':>9}{'accepted':>10}{'refused':>9}{'crashes':>9}"
    head += f"{'CPU s':>8}{'slowest':>11}{'peak':>9}  refused by"
    rows = [head]
    for reader, tally in tallies.items():
        kinds = {kind: n for kind, n in tally.outcomes.most_common() if kind not in ("accepted", "crash")}
        numbers = (
            f"{tally.inputs:>9,}{tally.outcomes['accepted']:>10,}{tally.refused():>9,}{tally.outcomes['crash']:>9,}"
        )
        cost = f"{tally.seconds:>8.0f}{1000 * tally.slowest[0]:>8,.0f} ms{tally.peak[0] >> 20:>6,} MB"
        rows.append(f"{reader:<12}{numbers}{cost}  {', '.join(f'{kind} {n:,}' for kind, n in kinds.items())}")
    total = sum(tally.inputs for reader, tally in tallies.items() if reader in FIVE)
    crashes = sum(tally.outcomes["crash"] for tally in tallies.values())
    rows.append(
        f"{total:,} inputs over the {sum(r in tallies for r in FIVE)} readers of foreign files, {crashes:,} crashes"
    )
    for reader, tally in tallies.items():
        for times, saved, failure in tally.failures.values():
            again = f"PYTHONPATH=tests python -m fuzz --replay {saved}" if saved else ""
            rows.append(f"\n{reader}, {times:,} times: {failure[:300]}\n    {again}")
    return "\n".join(rows)
