"""`bench race`: the accuracy of encoders that had the same time, or the same compute.

Each entry (a contender and a seed) runs in a process of its own with its own share of the cores, and leaves a folder:
the run directory and `row.json`. A race that is called again goes on where it was stopped.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simclr_engine.boundary import engine_error
from simclr_engine.errors import CheckFailed, DataError, EngineError, PlatformError, UsageError
from simclr_engine.files import write_atomic
from simclr_engine.outputs import check_writable
from simclr_engine.run import public_name
from simclr_engine.sealing import read_json, sealed_json
from simclr_engine.stopping import Interrupted, end_in_order
from simclr_engine.terminal import prepare_streams, say_error

from .rows import Row, missing_row, single_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from simclr_engine.data.store import ImageStore
    from simclr_engine.evaluation import EvaluationResult
    from simclr_engine.run import Run

LIGHTLY = "lightly"
CONTENDERS = ("cifar10-sgd", "cifar10-fast")
METHODS = {"linear": "linear probe", "knn": "kNN, k = 10"}
HELD_OUT = 5_000  # of the 50,000 train images of CIFAR-10; of other data, the same tenth
ROW, RUN = "row.json", "run"


@dataclass(frozen=True)
class Entry:
    """One contender with one seed.

    Attributes:
        contender: a recipe, or `lightly`.
        data: as `load_splits` takes it.
        minutes, pflop: its limit of time (calibration and monitors included) or of compute, whichever is given.
        held_out: whether to train on nine tenths of train and be scored on the last one, so that test stays unseen.
        threads: of its process.
        folder: where its run and its row are.
    """

    contender: str
    seed: int
    data: str
    minutes: float | None
    pflop: float | None
    held_out: bool
    threads: int
    folder: str

    @property
    def name(self) -> str:
        """Of the recipe or its file."""
        return Path(self.contender).stem


def race(
    data: str,
    folder: Path,
    minutes: float | None = None,
    pflop: float | None = None,
    contenders: Sequence[str] = CONTENDERS,
    seeds: int = 1,
    held_out: bool = False,
    together: bool = False,
) -> list[Row]:
    """Rows of linear and kNN accuracy in percent: each entry's, and mean and standard deviation over the seeds.

    Entries run seed by seed, so that a drift of the machine meets all contenders; with `together`, the contenders of
    one seed run at the same time on an equal share of the cores each.

    Raises:
        UsageError: an unknown contender, or not exactly one limit.
        Interrupted: by Ctrl-C; what was trained is kept.
        DataError: the folder holds another race, or a file in the place of a row.
        PlatformError: the folder cannot be written to.
        EngineError: an entry failed; the others' rows are kept. Of the kind that all failed ones had, else CheckFailed.
    """
    _check(contenders, minutes, pflop)
    share = max(1, _cores() // (len(contenders) if together else 1))
    limit = f"{minutes:g}min" if minutes is not None else f"{pflop:g}pflop"
    races = [
        [
            Entry(c, seed, data, minutes, pflop, held_out, share, str(folder / f"{Path(c).stem}-{limit}-seed{seed}"))
            for c in contenders
        ]
        for seed in range(seeds)
    ]
    check_writable(folder / ROW)  # before anything is trained
    for entry in chain(*races):
        _row_of(entry)
    failed, rows = dict[str, int](), list[Row]()
    for entries in races:
        for heat in [entries] if together else [[entry] for entry in entries]:
            failed |= _run(heat)
            rows += [row for entry in heat for row in _rows_of(entry)]
    if failed:
        agreed = {*failed.values()}
        kinds = (UsageError, PlatformError, DataError, Interrupted)
        kind: type[EngineError] = next((one for one in kinds if agreed == {one.exit_code}), CheckFailed)
        raise kind("an entry of the race failed", saw=", ".join(failed), fix="see what it said above")
    return rows + summary(rows)


def _check(contenders: Sequence[str], minutes: float | None, pflop: float | None) -> None:
    from simclr_engine.recipe import recipe_names

    if (minutes is None) == (pflop is None):
        raise UsageError("a race needs one limit", saw=f"minutes {minutes}, PFLOP {pflop}", fix="--minutes or --pflop")
    names = [Path(name).stem for name in contenders]
    if len(set(names)) < len(names):
        raise UsageError("two contenders have one name", saw=", ".join(contenders), fix="give the files other names")
    known = [*recipe_names(), LIGHTLY]
    for name in contenders:
        if name not in known and not name.endswith(".toml"):
            raise UsageError("there is no such contender", saw=name, fix=f"a recipe file, or one of {', '.join(known)}")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(heat: Sequence[Entry]) -> dict[str, int]:
    """Runs the entries at the same time; those that have their row already are not run again. Names those that failed,
    with their exit code.

    Ctrl-C reaches their processes too: they save, and end before this one does. No other exception leaves them behind,
    and SIGTERM is one (`end_in_order`).
    """
    waiting = [entry for entry in heat if "missing" in _row_of(entry)]
    processes: list[subprocess.Popen[bytes]] = []
    stopped = False
    try:
        for entry in waiting:
            call = [sys.executable, "-m", "simclr_engine.bench.race", json.dumps(asdict(entry))]
            processes.append(subprocess.Popen(call, env={**os.environ, "OMP_NUM_THREADS": str(entry.threads)}))
        while any(process.poll() is None for process in processes):
            try:
                for process in processes:
                    process.wait()
            except KeyboardInterrupt:
                stopped = True
    finally:
        for process in processes:
            process.terminate()  # nothing where it has ended
        for process in processes:
            process.wait()
    if stopped:
        raise Interrupted("the race was stopped", saw=f"{len(waiting)} running", fix="the same command continues it")
    return {f"{e.name}, seed {e.seed}": p.returncode for e, p in zip(waiting, processes, strict=True) if p.returncode}


def _row_of(entry: Entry) -> dict[str, Any]:
    """What the folder holds of this entry. `missing` says why it has no figures: it may be run again, since a contender
    may have been installed in the meantime.

    Raises:
        DataError: the row of another entry, or a file that is no row.
    """
    path = Path(entry.folder, ROW)
    if not path.is_file():
        return {"missing": "failed"}
    fix = "move it away, or name another folder with --runs"
    try:
        row = read_json(path, fix)
        theirs, ours = dict(row["entry"]), asdict(entry)
        if "missing" not in row and not all(0 <= row["accuracy"][method] <= 1 for method in METHODS):
            raise ValueError("an accuracy out of range")
    except (ValueError, KeyError, TypeError) as error:
        saw = f"{path}: {type(error).__name__}: {error}"
        raise DataError("the file is not the row of a race", saw=saw, fix=fix) from error
    differ = [key for key in ours if key != "folder" and theirs.get(key) != ours[key]]
    if differ and "missing" not in row:
        raise DataError(
            "the folder holds another race",
            saw="; ".join(f"{key}: {theirs.get(key)}, asked {ours[key]}" for key in differ) + f" in {entry.folder}",
            fix="name another folder with --runs",
        )
    return row


def _rows_of(entry: Entry) -> Iterator[Row]:
    """A row for each method; missing ones of an entry that could not run."""
    result = _row_of(entry)
    for method, words in METHODS.items():
        if "missing" in result:
            yield missing_row(words, f"{entry.name}, seed {entry.seed}", "%", result["missing"])
        else:
            about = {key: value for key, value in result.items() if key not in ("accuracy", "entry")}
            about["data"] = public_name(entry.data)
            about |= {key: getattr(entry, key) for key in ("seed", "minutes", "held_out", "threads")}
            who = f"{entry.name}, seed {entry.seed}"
            yield single_row(words, who, 100 * result["accuracy"][method], "%", of=entry.name, **about)


def summary(rows: Sequence[Row]) -> list[Row]:
    """Mean, sd and the points ahead of the first contender over the seeds; only where there are two seeds or more."""
    summed = []
    for words in METHODS.values():
        of: dict[str, list[float]] = {}
        for row in rows:
            if row["name"] == words and "of" in row:
                of.setdefault(row["of"], []).append(row["median"])
        for contender, values in of.items():
            if len(values) < 2:
                continue
            first = next(iter(of.values()))
            figures = {"median": statistics.fmean(values), "p20": min(values), "p80": max(values), "unit": "%"}
            also = {"sd": statistics.stdev(values), "repeats": len(values)}
            if first is not values and len(first) == len(values):
                pairs = [a - b for a, b in zip(values, first, strict=True)]
                also |= {"ahead": statistics.fmean(pairs), "ahead_sd": statistics.stdev(pairs)}
            summed.append({"name": words, "contender": f"{contender}, mean of {len(values)} seeds", **figures, **also})
    return summed


def enter(entry: Entry) -> None:
    """Trains and scores one entry in this process, and writes its row."""
    began = time.perf_counter()
    Path(entry.folder).mkdir(parents=True, exist_ok=True)
    splits = _splits(entry)
    if entry.contender == LIGHTLY:
        from .lightly_simclr import train_lightly

        try:
            about = train_lightly(splits[0], Path(entry.folder), entry.minutes, entry.pflop, entry.seed)
        except ImportError:
            about = {"missing": "not installed"}
    else:
        about = _train_ours(entry, splits[0])
    if "missing" not in about:
        target = Path(entry.folder, about.pop("weights"))
        about["accuracy"] = {r.method: r.accuracy for r in _score(target, splits)}
        about["seconds_with_evaluation"] = time.perf_counter() - began
    write_atomic(Path(entry.folder, ROW), sealed_json({"entry": asdict(entry), **about}))


def _splits(entry: Entry) -> tuple[ImageStore, ImageStore]:
    from simclr_engine.data import load_splits
    from simclr_engine.data.listing import held_out_rows

    train, test = load_splits(entry.data)
    if not entry.held_out:
        return train, test
    assert train.labels is not None
    out = held_out_rows(train.labels, min(HELD_OUT, len(train) // 10) / len(train))
    return train.subset(np.flatnonzero(~out)), replace(train.subset(np.flatnonzero(out)), split="held out of train")


def _score(target: Path, splits: tuple[ImageStore, ImageStore]) -> list[EvaluationResult]:
    from simclr_engine.evaluation import evaluate_all

    return evaluate_all(target, splits, list(METHODS), progress=True)


def _train_ours(entry: Entry, train: ImageStore) -> dict[str, Any]:
    from simclr_engine.pretraining import pretrain

    directory = Path(entry.folder, RUN)
    under_way = (directory / "checkpoints").is_dir()
    limits: dict[str, Any] = {"max_minutes": entry.minutes, "max_pflop": entry.pflop}
    run = pretrain(
        None if under_way else entry.contender,
        train,
        directory,
        overrides=None if under_way else {"train.seed": entry.seed},
        resume=under_way,
        overwrite=not under_way,
        **({} if under_way else limits),
    )
    return {"weights": RUN, **_figures(run)}


def _figures(run: Run) -> dict[str, Any]:
    """What a finished run took. Two clocks: `seconds` is cold, with reading images, calibration and monitors;
    `step_seconds` are those of the training steps alone."""
    rows = [row for row in run.metrics if row["event"] == "train"]
    batch, plan, done, step_seconds = run.recipe.train.batch_size, run.environment["plan"], 0, 0.0
    for row in rows:
        step_seconds += (row["step"] - done) * batch / row["images_per_second"]
        done = row["step"]
    views = run.recipe.train.views
    return {
        "recipe": run.recipe.name,
        "images": run.data["images"],
        "steps": done,
        "epochs": done / plan["steps_per_epoch"],
        "views_per_image": views * batch * done / run.data["images"],
        "pflop": plan["pflop"],
        "seconds": run.environment["seconds"],
        "step_seconds": step_seconds,
        "device": run.environment["device_name"],
        "precision": run.environment["precision"],
        "versions": run.environment["versions"],
        "commit": run.environment["commit"],
    }


def draw(document: dict[str, Any]) -> Figure:
    """A matplotlib Figure: accuracy of each entry against PFLOP, seconds and views per image."""
    from matplotlib.figure import Figure

    axes = {"pflop": "compute, PFLOP", "seconds": "time, minutes", "views_per_image": "views per image"}
    names = list(METHODS.values())
    figure = Figure(figsize=(12, 7), layout="constrained")
    panels = figure.subplots(len(names), len(axes), sharey="row", squeeze=False)
    entries = [row for row in document["rows"] if row.get("of") is not None]
    contenders = list(dict.fromkeys(row["of"] for row in entries))
    for line, name in zip(panels, names, strict=True):
        for axis, (key, words) in zip(line, axes.items(), strict=True):
            for i, contender in enumerate(contenders):
                of = [row for row in entries if row["name"] == name and row["of"] == contender]
                x = [row[key] / (60 if key == "seconds" else 1) for row in of]
                axis.scatter(x, [row["median"] for row in of], color=f"C{i}", label=contender, s=45)
            axis.set_xlabel(words)
            axis.set_xlim(0, 1.05 * axis.get_xlim()[1])  # with room for the points at the edge
            axis.set_axisbelow(True)
            axis.grid(color="#e2e8f0")
            axis.spines[["top", "right"]].set_visible(False)
        line[0].set_ylabel(f"{name}, %")
    if contenders:
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=len(contenders))
    figure.suptitle(f"{document['device']}; torch {document['versions']['torch']}", fontsize="small")
    return figure


def main(entry: str) -> None:
    """Runs the entry in this process; an error is told as the command line tells it, and ends with its exit code."""
    try:
        enter(Entry(**json.loads(entry)))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BaseException as error:  # what a library in Rust raises is no Exception
        if (ours := engine_error(error)) is None:
            raise
        say_error(ours)
        raise SystemExit(ours.exit_code) from None


if __name__ == "__main__":
    prepare_streams()
    end_in_order()
    main(sys.argv[1])
