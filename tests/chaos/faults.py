"""The fault campaign: the N-th call that touches the run, the cache, the data or the output fails, for every N.

    PYTHONPATH=tests python -m chaos.faults

A process that has imported what takes seconds is forked for each N, with `faults.c` loaded before everything else.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

SOURCE = Path(__file__).with_name("faults.c")
ERRORS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC}
DOCUMENTED = (0, 3, 4)  # what a fault of the machine may end with: it did not matter, or it is said
DEADLINE = 300  # seconds of one command
LIBRARY = "SIMCLR_ENGINE_FAULTS"


@dataclass(frozen=True)
class Fault:
    """Which call fails: the `number`-th, and for ENOSPC all after it that take space; 0 fails none."""

    error: str = "EIO"
    number: int = 0


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (negative for a signal), its output, its calls, and the call that failed."""

    code: int
    out: str
    said: str
    calls: int
    failed: str


@dataclass(frozen=True)
class Case:
    """A command of the campaign.

    Attributes:
        name: of the case, and of its folder.
        words: the command.
        watched: folders, below that of the case, in which calls fail.
        begin: makes what it reads in an empty folder.
        resumes: the words for the next run, from the folder and how this one ended; None for the same.
        examine: what is lost after a fault; None for what only the next run shows.
        result: what an undisturbed run and the next one must have in common.
    """

    name: str
    words: tuple[str, ...]
    watched: tuple[str, ...]
    begin: Callable[[Path], None]
    result: Callable[[Path, Ended], object]
    resumes: Callable[[Path, Ended], tuple[str, ...]] | None = None
    examine: Callable[[Path, Ended], list[str]] | None = None


@dataclass
class Tally:
    """The counts of a campaign; `wrong` is empty if everything held."""

    faults: Counter[str] = field(default_factory=Counter)
    codes: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def lines(self) -> list[str]:
        """The counts in words."""
        tracebacks, lost = (sum(word in row for row in self.wrong) for word in ("traceback", "lost"))
        codes = ", ".join(f"{count} with {code}" for code, count in sorted(self.codes.items()))
        each = ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items()))
        return [
            f"{sum(self.faults.values())} calls failed in {self.seconds:.0f} s of processor time: {each}",
            f"exit codes: {codes}; {tracebacks} tracebacks; {lost} checkpoints or packed copies lost",
            *(f"WRONG {row}" for row in self.wrong),
        ]


def run_command(words: tuple[str, ...], case: Case, folder: Path, fault: Fault) -> Ended:
    """Runs the command in `folder` in a forked process in which the fault is planted."""
    files = [folder.with_name(f"{folder.name}.{kind}") for kind in ("out", "err", "end")]
    child = os.fork()
    if child == 0:
        _live(words, case, folder, fault, files)
    deadline = time.monotonic() + DEADLINE
    while not (status := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    out, said, end = (file.read_text("utf-8", "replace") if file.exists() else "" for file in files)
    calls, _, failed = end.partition(" ")
    for file in files:
        file.unlink(missing_ok=True)
    return Ended(os.waitstatus_to_exitcode(status[1]), out, said, int(calls or 0), failed)


def _live(words: tuple[str, ...], case: Case, folder: Path, fault: Fault, files: list[Path]) -> None:
    """The child, from the fork to its end; never returns."""
    from simclr_engine.cli.main import main

    library, code = ctypes.CDLL(os.environ[LIBRARY]), 99
    library.fault_said.restype = ctypes.c_char_p
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number if number < 3 else 9)
    os.environ["SIMCLR_ENGINE_CACHE"] = str(folder / "cache")
    os.chdir(folder)
    sys.argv = ["simclr-engine", *words]
    watched = ":".join(str(folder / name) for name in case.watched)
    library.fault_arm(ctypes.c_long(fault.number), ERRORS[fault.error], os.fsencode(watched))
    try:
        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException as error:
        os.write(2, f"Traceback: {error!r}".encode())
    finally:
        calls = library.fault_count()
        os.write(9, b"%d %s" % (calls, library.fault_said()))
        sys.stdout.flush()
        os._exit(code)


def run_fault(case: Case, template: Path, folder: Path, fault: Fault, expected: object) -> tuple[Ended, list[str]]:
    """One fault: the command, what it left, and the next run, which no fault disturbs."""
    shutil.copytree(template, folder, symlinks=True)
    ended = run_command(case.words, case, folder, fault)
    wrong = []
    if "Traceback" in ended.said:
        wrong.append(f"traceback: {ended.said[-1500:]}")
    elif ended.code not in DOCUMENTED:
        wrong.append(f"exit code {ended.code}: {ended.said[-300:]}")
    elif ended.code and ("error: " not in ended.said or "fix: " not in ended.said):
        wrong.append(f"unexplained: {ended.said[-300:]}")
    elif (
        ended.code == 0
        and "Input/output error" not in ended.out + ended.said  # it names what was left out
        and (found := case.result(folder, ended)) != expected
    ):
        wrong.append(f"lost: exit code 0 with {str(found)[:300]}, not {str(expected)[:300]}: {ended.said[-300:]}")
    wrong += case.examine(folder, ended) if case.examine else []
    words = case.resumes(folder, ended) if case.resumes else case.words
    again = run_command(words, case, folder, Fault())
    if again.code:
        wrong.append(f"the next run ends with {again.code}: {again.said[-300:]}")
    elif (found := case.result(folder, again)) != expected:
        wrong.append(f"lost: after the next run {str(found)[:300]}, not {str(expected)[:300]}; first {ended}"[:1500])
    if not wrong:
        shutil.rmtree(folder)
    return ended, wrong


def campaign(cases: list[Case], folder: Path, most: int, jobs: int, progress: Callable[[Tally], None]) -> Tally:
    """Every case with both errors: at most `most` calls each, evenly spread, or all; `jobs` beside each other."""
    tally = Tally()
    for case in cases:
        template, undisturbed = folder / f"{case.name}-begin", folder / f"{case.name}-undisturbed"
        template.mkdir()
        case.begin(template)
        for error in ERRORS:
            shutil.rmtree(undisturbed, ignore_errors=True)
            shutil.copytree(template, undisturbed, symlinks=True)
            whole = run_command(case.words, case, undisturbed, Fault(error))
            if whole.code:
                raise RuntimeError(f"{case.name} fails undisturbed: {whole.said}")
            expected = case.result(undisturbed, whole)
            share = min(most, whole.calls)
            numbers = sorted({1 + round(i * (whole.calls - 1) / max(1, share - 1)) for i in range(share)})
            faults = [Fault(error, number) for number in numbers]

            def work(fault: Fault, case: Case = case, expected: object = expected) -> tuple[Ended, list[str]]:
                at = folder / f"{case.name}-{fault.error}-{fault.number}"
                return run_fault(case, folder / f"{case.name}-begin", at, fault, expected)

            for fault, ended, wrong in _beside_each_other(work, faults, folder, jobs):
                if ended.failed:
                    tally.faults[f"{case.name} {error}"] += 1
                    tally.codes[ended.code] += 1
                where = f"{case.name} {error} {fault.number} ({ended.failed}): "
                tally.wrong += [where + row for row in wrong]
                tally.seconds = sum(os.times()[2:4])
                progress(tally)
    return tally


def _beside_each_other(
    work: Callable[[Fault], tuple[Ended, list[str]]], faults: list[Fault], folder: Path, jobs: int
) -> Iterator[tuple[Fault, Ended, list[str]]]:
    """What `work` returns for each fault, in forked processes."""
    waiting, running = faults[::-1], dict[int, tuple[Fault, Path]]()
    while waiting or running:
        while waiting and len(running) < jobs:
            fault = waiting.pop()
            file = folder / f"result-{fault.error}-{fault.number}.json"
            if not (child := os.fork()):
                try:
                    ended, wrong = work(fault)
                    file.write_text(json.dumps([asdict(ended), wrong]), "utf-8")
                except BaseException as error:
                    file.write_text(json.dumps([asdict(Ended(99, "", "", 0, "")), [f"campaign: {error!r}"]]), "utf-8")
                finally:
                    os._exit(0)
            running[child] = fault, file
        child, _ = os.wait()
        fault, file = running.pop(child)
        about, wrong = json.loads(file.read_text("utf-8"))
        file.unlink()
        yield fault, Ended(**about), wrong


def with_library(arguments: list[str], folder: Path) -> int:
    """Builds the library and runs this module again with it; the exit code."""
    built = folder / "faults.so"
    compiler = shutil.which("cc")
    if compiler is None:
        print("skipped: there is no C compiler (cc) to build the interposer with")
        return 0
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(built), str(SOURCE), "-ldl"], check=True)
    environment = os.environ | {"LD_PRELOAD": str(built), LIBRARY: str(built), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "chaos.faults", *arguments], env=environment, check=False).returncode


def main() -> int:
    """Runs the campaign and prints its counts; exit code 1 if anything did not hold."""
    parser = argparse.ArgumentParser(prog="python -m chaos.faults", description="Fails one call after the other.")
    add = parser.add_argument
    add("--most", type=int, default=10_000, help="calls of each command and error, evenly spread  [default: all]")
    add("--case", action="append", help="only this command; may be repeated")
    add("--jobs", type=int, default=2, help="processes beside each other")
    add(
        "--folder", type=Path, help="an empty folder for the cases; failing ones stay there  [default: a temporary one]"
    )
    options = parser.parse_args()
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="faults-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if LIBRARY not in os.environ:
        words = sys.argv[1:] if options.folder else [*sys.argv[1:], "--folder", str(folder)]
        return with_library(words, folder)
    from .faulted import cases

    chosen = [case for case in cases() if not options.case or case.name in options.case]
    tally = campaign(chosen, folder, options.most, options.jobs, _show_progress)
    print("\n".join(tally.lines()))
    if tally.wrong:
        print(f"kept: {folder}")
    else:
        shutil.rmtree(folder)
    return int(bool(tally.wrong))


def _show_progress(tally: Tally) -> None:
    if sys.stderr.isatty():
        print(f"\r{sum(tally.faults.values())} faults, {len(tally.wrong)} wrong ", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
