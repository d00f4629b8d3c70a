"""The process that feeds the readers: its memory is limited, and it may die; `campaign.py` watches over it.

Started as `python -m fuzz.worker JOB` with a JSON object: `room`, `seed`, `corpus`, `slices` as `[reader, first, end]`.
It prints `ready`, then one JSON array for each input.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from simclr_engine.bounds import COSTS, MEMORY, SECONDS

from .mutation import changed
from .readers import Outcome, Room, run_input
from .scaled import scaled
from .seeds import Seed, seeds_of

ADDRESS_SPACE = 2 << 30  # bytes that inputs may claim beyond what the libraries have taken
SCALED = 0.02  # of all inputs: those of `scaled`
_TRIES, _SECONDS = 400, 3.0  # to make a failing input smaller


@dataclass(frozen=True)
class Input:
    """One input: `data` before and `raw` after sealing and the changes that follow it."""

    seed: Seed
    data: bytes
    raw: bytes


def make_input(reader: str, seed: int, index: int, outside: str) -> Input:
    """The input of this number: the first ones are the seeds themselves, all others are changed from one of them."""
    seeds = seeds_of(reader, outside)
    if index < len(seeds):
        return Input(seeds[index], seeds[index].data, seeds[index].seal(seeds[index].data))
    rng = Random(f"{seed} {reader} {index}")
    if rng.random() < SCALED:
        one = scaled(reader, rng)
        return Input(one, one.data, one.data)
    one = rng.choice(seeds)
    data = changed(one.data, one.kind, rng, [other.data for other in seeds])
    raw = one.seal(data)
    return Input(one, data, changed(raw, "", rng, [raw]) if rng.random() < 0.15 and len(raw) < 1 << 16 else raw)


def prepare() -> None:
    """Small bounds and a small network, so that an input costs little and a bomb need not be large to be one."""
    import torch

    from simclr_engine import checkpoint
    from simclr_engine.data import archive

    def tiny(arch: str, stem: str) -> torch.nn.Module:
        if arch != "resnet18" or stem not in ("small", "imagenet"):
            raise ValueError(f"arch {arch!r}, stem {stem!r}")
        return torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1, bias=False))

    checkpoint.build_encoder = tiny
    archive.GROWTH_FREE_BYTES = 8 << 20
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def limit_memory() -> None:
    """No more than `ADDRESS_SPACE` beyond what is taken now."""
    taken = _status("VmSize")
    if taken:
        resource.setrlimit(resource.RLIMIT_AS, (taken + ADDRESS_SPACE, taken + ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 20, 256 << 20))


def _status(field: str) -> int:
    """Bytes of a line in /proc/self/status; 0 where there is no such file."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:  # noqa: PTH123  # each input does it
            return next((int(line.split()[1]) << 10 for line in file if line.startswith(f"{field}:")), 0)
    except OSError:
        return 0


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: resets the peak resident set size
    except OSError:
        return


def judged(reader: str, one: Input, room: Room) -> tuple[Outcome, int]:
    """What became of an input, and the bytes of memory that it filled at its peak; both bounds of `bounds` hold."""
    _forget_peak()
    before, begin = _status("VmRSS"), time.process_time()
    outcome = run_input(reader, one.raw, one.seed.suffix, room)
    grown, seconds = max(0, _status("VmHWM") - before), time.process_time() - begin
    of_byte, of_million = COSTS[reader]
    if grown > MEMORY + of_byte * len(one.raw) and not outcome.failure:
        outcome = Outcome(outcome.kind, f"{grown >> 20:,} MB of memory", outcome.message)
    if seconds > SECONDS + of_million * len(one.raw) / 1e6 and not outcome.failure:
        outcome = Outcome(outcome.kind, f"{seconds:.1f} s of processor time", outcome.message)
    return outcome, grown


def smaller(reader: str, one: Input, failure: str, room: Room) -> bytes:
    """A shorter input with the same failure, found by leaving out pieces; the changes are to `data` where those to
    `raw` would break its seal."""
    sealed = one.raw == one.seed.seal(one.data)
    data, tries, end = one.data if sealed else one.raw, 0, time.monotonic() + _SECONDS
    seal = one.seed.seal if sealed else bytes
    step = max(1, len(data) // 2)
    while step and tries < _TRIES and time.monotonic() < end:
        at = 0
        while at < len(data) and tries < _TRIES and time.monotonic() < end:
            shorter = data[:at] + data[at + step :]
            tries += 1
            try:
                again = run_input(reader, seal(shorter), one.seed.suffix, room)
            except Exception:  # what cannot be sealed is no input
                again = Outcome("")
            if signature(again.failure) == signature(failure):
                data = shorter
            else:
                at += step
        step //= 2
    return seal(data)


def signature(failure: str) -> str:
    """What two failures have in common that are one: the kind of error and the place."""
    return failure.split(": ")[0]


def main(job: dict[str, Any]) -> None:
    """Runs the slices of a job, one line of JSON for each input."""
    report = os.fdopen(os.dup(1), "w", encoding="utf-8")
    silent = os.open(os.devnull, os.O_WRONLY)
    if not job.get("loud"):
        faulthandler.enable(os.fdopen(os.dup(2), "w"))
        os.dup2(silent, 2)
    os.dup2(silent, 1)
    corpus = Path(job["corpus"])
    corpus.mkdir(parents=True, exist_ok=True)
    corpus = corpus.resolve()
    room = Room(Path(job["room"]))
    prepare()
    for reader, *_ in job["slices"]:  # libraries and the seeds' own work, which counts against no input
        outside = str(room.outside)
        for seed in seeds_of(reader, outside)[:3]:
            run_input(reader, seed.seal(seed.data), seed.suffix, room)
    room.settle()
    limit_memory()
    report.write("ready\n")
    report.flush()
    seen: set[tuple[str, str]] = set()
    for reader, first, end in job["slices"]:
        for index in range(first, end):
            one = make_input(reader, job["seed"], index, outside)
            begin = time.process_time()
            outcome, grown = judged(reader, one, room)
            seconds, saved = time.process_time() - begin, ""
            if outcome.failure and (reader, signature(outcome.failure)) not in seen:
                seen.add((reader, signature(outcome.failure)))
                saved = str(corpus / f"{reader}-{job['seed']}-{index}{one.seed.suffix}")
                Path(saved).write_bytes(smaller(reader, one, outcome.failure, room) if seconds < 1 else one.raw)
            row = [reader, index, outcome.kind, round(seconds, 4), grown, outcome.message, outcome.failure, saved]
            report.write(json.dumps(row) + "\n")
            report.flush()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
