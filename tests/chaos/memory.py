"""Less and less address space: each command from what it needs down to what its imports take.

    PYTHONPATH=tests python -m chaos.memory

What must hold: no checkpoint is lost, an exit code of 0 means the same result as with enough memory, and an error that
our code sees has exit code 3. A library in another language may abort the process, and Python itself may hang: that is
counted and listed.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # a forked process has none of its parent's threads

import argparse
import json
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fixtures.image_files import class_tree, write_tree

from .commands import Ended, address_space, preload, run_command

STEPS = 20  # of 5 % of what lies between the imports and the need
SECONDS = 120  # after which a command counts as hung: Python waits forever for a thread whose start found no memory
NO_MEMORY, NOT_DONE = 3, -1
TINY = {"train.batch_size": 8, "train.epochs": 1, "train.precision": "fp32", "short_runs": "[]"}
TINY |= {"head.hidden": "[16]", "head.dimension": 8, "monitor.knn_epochs": 0, "optimizer.lr": 0.06}
SETTINGS = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
PRETRAIN = ["pretrain", "--recipe", "cifar10-sgd", *SETTINGS, "--data", "photos", "--out", "run", "--device", "cpu"]


@dataclass(frozen=True)
class Command:
    """A command of the campaign: its words, and what of its output must be equal."""

    words: list[str]
    result: Callable[[Path, str], Any]


def _scores(folder: Path, out: str) -> Any:
    keys = ("method", "init", "accuracy", "confusion", "encoder", "train_images", "test_images")
    return [[row[key] for key in keys] for row in json.loads(out)["results"]]


def _packed(folder: Path, out: str) -> Any:
    row = json.loads(out)
    return row["splits"], row["skipped"], row["class_names"]


COMMANDS = {
    "data pack": Command(["data", "pack", "photos", "--json"], _packed),
    "embed": Command(
        ["embed", "encoder.onnx", "photos", "--out", "v.npy"],
        lambda folder, _: [(folder / name).read_bytes() for name in ("v.npy", "v.csv")],
    ),
    "evaluate": Command(["evaluate", "run", "--method", "linear", "--json"], _scores),
    "export": Command(
        ["export", "e.onnx", "--run", "run", "--no-card"], lambda folder, _: (folder / "e.onnx").read_bytes()
    ),
    "pretrain": Command(
        ["pretrain", "--resume", "run", "--epochs", "2"],
        lambda folder, _: (folder / "run" / "encoder.safetensors").read_bytes(),
    ),
}


@dataclass
class Tally:
    """The counts of a campaign; `wrong` is empty if everything held."""

    ends: Counter[tuple[str, str]] = field(default_factory=Counter)
    aborts: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The counts in words."""
        return [
            *(f"{command}: {count} × {how}" for (command, how), count in sorted(self.ends.items())),
            *(f"ended by a library or by Python: {row}" for row in self.aborts),
            *(f"WRONG {row}" for row in self.wrong),
        ]


def prepare(folder: Path, trained: bool) -> None:
    """Images, an exported file, and a finished run of one epoch where one is needed."""
    write_tree(folder / "photos", class_tree(("ant", "bee"), each=12))
    if trained:
        _done(run_command(PRETRAIN, folder))
        _done(run_command(["export", "encoder.onnx", "--run", "run", "--no-card"], folder))
    else:
        from fixtures.tiny_probe import write_tiny_probe

        write_tiny_probe(folder / "encoder.onnx")
    shutil.rmtree(folder / "cache", ignore_errors=True)


def _done(ended: Ended) -> Ended:
    if ended.code:
        raise RuntimeError(f"with enough memory: exit code {ended.code}: {ended.err}")
    return ended


def squeeze(name: str, base: Path, folder: Path, steps: int, tally: Tally) -> None:
    """One command with less and less memory, each time in a copy of `base`."""
    command, whole = COMMANDS[name], _copied(base, folder / "whole")
    if name in ("evaluate", "export", "pretrain"):  # which find their images packed
        _done(run_command(["data", "pack", "photos"], base))
    ended = _done(run_command(command.words, whole))
    expected, least, most = command.result(whole, ended.out), address_space(), ended.peak
    for step in range(steps + 1):
        limit = least + (most - least) * (steps - step) // steps
        at = f"{name} with {limit / 2**20:,.0f} MiB, {100 * (steps - step) // steps} % of what it needs beyond imports"
        here = _copied(base, folder / "here")
        ended = run_command(command.words, here, limit=limit, seconds=SECONDS)
        last = (ended.err.strip().splitlines() or [""])[-1]
        if ended.code < 0:
            how = "hung" if ended.code == -signal.SIGALRM else f"signal {-ended.code}"
            tally.aborts.append(f"{at}: {how}: {last[:160]}")
        elif ended.code == 0 and command.result(here, ended.out) != expected:
            tally.wrong.append(f"{at}: another result with exit code 0")
        elif ended.code == NO_MEMORY and "PyO3 is resuming a panic" in ended.err:
            tally.aborts.append(f"{at}: a library in Rust broke, and printed its traceback")
        elif ended.code not in (0, NO_MEMORY) or "Traceback" in ended.err:
            tally.wrong.append(f"{at}: exit code {ended.code}: {last[:160]}")
        elif ended.code == NO_MEMORY and "memory" not in ended.err and "threads" not in ended.err:
            tally.wrong.append(f"{at}: the cause is not said: {ended.err.strip()[:300]}")
        how = "killed by a signal" if ended.code < 0 else f"exit code {ended.code}"
        tally.ends[name, how] += 1
        if (here / "run").exists() and _newest(here) < _newest(base):
            tally.wrong.append(f"{at}: lost checkpoint")


def _newest(folder: Path) -> int:
    from simclr_engine.checkpoint import newest_checkpoint
    from simclr_engine.errors import DataError

    try:
        return int(newest_checkpoint(folder / "run" / "checkpoints")[0]["step"])
    except DataError:
        return NOT_DONE


def _copied(base: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder, symlinks=True)
    return folder


def run(names: list[str], steps: int, folder: Path) -> Tally:
    """The campaign over some commands."""
    tally, base = Tally(), folder / "base"
    base.mkdir(parents=True)
    preload()
    prepare(base, trained=bool({"evaluate", "export", "pretrain"} & set(names)))
    for name in names:
        squeeze(name, base, folder, steps, tally)
    return tally


def main() -> int:
    """Runs the campaign and prints its counts; exit code 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m chaos.memory", description="Takes memory away from commands.")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--only", action="append", choices=list(COMMANDS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        tally = run(options.only or list(COMMANDS), options.steps, Path(folder).resolve())
    print("\n".join(tally.lines()))
    return int(bool(tally.wrong))


if __name__ == "__main__":
    sys.exit(main())
