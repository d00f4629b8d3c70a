"""Kills by the hundred: which cases there are, how each goes, and the counts over all of them."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from . import packing, training
from .kills import Kill, Report, run_child
from .packing import Packing
from .training import Training

# Of the cases; full-sized checkpoints take a second each to write.
PACKING, FULL_SIZED, DAMAGED = 0.3, 0.04, 0.4
KILLS_IN_A_ROW = 4
NEVER = 1e6


@dataclass
class Tally:
    """The counts of a campaign; `wrong` is empty if everything held."""

    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    equal: int = 0
    checkpoints: int = 0
    sources: int = 0
    caches: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The counts in words."""
        lost, unreadable = (sum(word in row for row in self.wrong) for word in ("lost checkpoint", "unreadable cache"))
        ways = ", ".join(f"{count} {way}" for way, count in sorted(self.kills.items()))
        return [
            f"{sum(self.kills.values())} kills in {self.seconds:.0f} s: {ways}",
            f"{self.runs} training runs resumed to their end, {self.equal} bitwise equal to an undisturbed one",
            f"{self.checkpoints} checkpoints examined after kills, {lost} lost",
            f"{self.sources} sources packed to their end; {self.caches} cache entries examined after kills, "
            f"{unreadable} unreadable",
            *(f"WRONG {row}" for row in self.wrong),
        ]


@dataclass(frozen=True)
class Size:
    """How many places to die at an undisturbed process has, and how long it takes."""

    calls: int
    lines: int
    seconds: float


def run(kills: int, folder: Path, seed: int, only: int | None, progress: Callable[[Tally], None]) -> Tally:
    """Kills `kills` processes, case after case; a case that goes wrong leaves its folder.

    Args:
        only: the number of the one case to run.
    """
    tally, began, sizes = Tally(), time.monotonic(), dict[object, Size]()
    number = only or 0
    while sum(tally.kills.values()) < kills:
        chance = random.Random(f"{seed}/{number}")
        budget = kills - sum(tally.kills.values())
        if chance.random() < PACKING:
            pack = Packing(chance.choice(["archive", "folder"]), chance.random() < DAMAGED)
            wrong = _pack_case(pack, folder / f"case{number}", folder, sizes, chance, budget, tally)
        else:
            encoder = "resnet18" if chance.random() < FULL_SIZED else "narrow"
            train = Training(encoder, chance.random() < 0.5)
            wrong = _training_case(train, folder / f"case{number}", folder, sizes, chance, budget, tally)
        tally.wrong += [f"case {number}: {row}" for row in wrong]
        if not wrong:
            shutil.rmtree(folder / f"case{number}", ignore_errors=True)
        tally.seconds = time.monotonic() - began
        progress(tally)
        number += 1
        if only is not None:
            break
    return tally


def draw_kill(chance: random.Random, size: Size) -> Kill:
    """Any moment: half of them at calls that change the disk, where most is at stake in the shortest time."""
    at = chance.choices(["call", "line", "time"], [0.5, 0.3, 0.2])[0]
    if at == "call":
        return Kill(at, chance.randint(1, size.calls), chance.choice(["before", "half", "after"]))
    return Kill(at, chance.randint(1, size.lines)) if at == "line" else Kill(at, chance.uniform(0, size.seconds))


def _training_case(
    case: Training,
    directory: Path,
    folder: Path,
    sizes: dict[object, Size],
    chance: random.Random,
    budget: int,
    tally: Tally,
) -> list[str]:
    reference = folder / f"undisturbed-{case.encoder}"
    if case not in sizes:
        shutil.rmtree(reference, ignore_errors=True)
        sizes[case] = _measured(lambda report: case.work(reference, report, resume=False), reference)
    saved = False
    for _ in range(min(budget, chance.randint(1, KILLS_IN_A_ROW))):
        kill = draw_kill(chance, sizes[case])
        resume = saved
        outcome = run_child(lambda report: case.work(directory, report, resume=resume), directory, kill)  # noqa: B023  # called within the iteration
        if outcome.error:
            return [f"after a kill: {outcome.error}"]
        if outcome.killed:
            tally.kills[f"at a {kill.at}"] += 1
        count, wrong = training.examine(directory, outcome)
        tally.checkpoints += count
        saved = saved or bool(outcome.numbers("saved"))
        if wrong:
            return [f"{row} ({kill})" for row in wrong]
    outcome = run_child(lambda report: case.work(directory, report, resume=saved), directory)
    tally.runs += 1
    if outcome.error:
        return [f"the last resume: {outcome.error}"]
    wrong = training.compare(directory, reference)
    tally.equal += not wrong
    return wrong


def _pack_case(
    case: Packing,
    directory: Path,
    folder: Path,
    sizes: dict[object, Size],
    chance: random.Random,
    budget: int,
    tally: Tally,
) -> list[str]:
    case.begin(directory)
    said = _finished(case, directory)
    if case not in sizes:
        undisturbed = folder / "undisturbed-packing"
        shutil.rmtree(undisturbed, ignore_errors=True)
        case.begin(undisturbed)
        sizes[case] = _measured(lambda report: case.work(undisturbed, report), undisturbed)
    if case.damaged:
        case.damage(directory)
    else:
        shutil.rmtree(directory / "cache")
    for _ in range(min(budget, chance.randint(1, KILLS_IN_A_ROW))):
        kill = draw_kill(chance, sizes[case])
        before = packing.entries(directory)
        outcome = run_child(lambda report: case.work(directory, report), directory, kill)
        if outcome.error:
            return [f"after a kill: {outcome.error}"]
        if outcome.killed:
            tally.kills[f"at a {kill.at}"] += 1
        elif [row for row in outcome.reports if row.startswith("read")] != said:
            return ["unreadable cache: another fingerprint"]
        count, wrong = packing.examine(directory)
        tally.caches += count
        if wrong and not (case.damaged and packing.entries(directory) == before):  # ours, not yet replaced
            return [f"{row} ({kill})" for row in wrong]
    tally.sources += 1
    if _finished(case, directory) != said or packing.examine(directory)[1]:
        return ["unreadable cache: after the last packing"]
    shutil.rmtree(packing.entries(directory)[0])
    if _finished(case, directory) != said or packing.left(directory):
        return [f"killed processes left {packing.left(directory)}"]
    return []


def _finished(case: Packing, directory: Path) -> list[str]:
    outcome = run_child(lambda report: case.work(directory, report), directory)
    return [row for row in outcome.reports if row.startswith("read")] or [outcome.error]


def _measured(work: Callable[[Report], None], watched: Path) -> Size:
    """Runs it undisturbed: once for the places, once for the time, which counting lines would stretch."""
    places = run_child(work, watched)
    shutil.rmtree(watched / "cache", ignore_errors=True)
    timed = run_child(work, watched, Kill("time", NEVER))
    if error := places.error or timed.error:
        raise RuntimeError(error)
    return Size(places.numbers("calls")[0], places.numbers("lines")[0], timed.seconds)
