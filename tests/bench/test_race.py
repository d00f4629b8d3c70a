"""A race trains its entries with one limit, scores them at their last step, and goes on where it was stopped."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simclr_engine.bench import race as subject
from simclr_engine.bench.race import Entry, draw, main, race, summary
from simclr_engine.data.store import ImageStore
from simclr_engine.errors import CheckFailed, DataError, EngineError, PlatformError, UsageError
from simclr_engine.run import Run
from simclr_engine.stopping import Interrupted, end_in_order
from simclr_engine.training import Trainer

RECIPE = """
base = "cifar10-sgd"
short_runs = []
[head]
hidden = [8]
dimension = 4
[train]
batch_size = 16
[monitor]
knn_epochs = 0
log_steps = 1
"""
PFLOP = 3e-5  # four steps of this recipe on images of 8 pixels


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries run in this process, on few and small images."""
    random = np.random.default_rng(0)
    labels = np.arange(240) % 3
    images = (80 * labels[:, None, None, None] + random.integers(0, 60, (240, 8, 8, 3))).astype(np.uint8)
    stores = [ImageStore.from_arrays(images[i::4], labels[i::4], name="grays", split=str(i)) for i in range(2)]
    monkeypatch.setattr(subject, "_splits", lambda entry: tuple(stores))

    def run(heat: Sequence[Entry]) -> dict[str, int]:
        for entry in heat:
            if "missing" in subject._row_of(entry):
                subject.enter(entry)
        return {}

    monkeypatch.setattr(subject, "_run", run)


def _row(contender: str, value: float, name: str = "linear probe") -> dict[str, Any]:
    return {"name": name, "contender": f"{contender}, seed 0", "of": contender, "median": value}


def test_the_summary_has_mean_sd_and_the_paired_difference() -> None:
    rows = [_row(who, v) for v, who in [(50, "a"), (58, "b"), (52, "a"), (62, "b")]]
    first, second = summary(rows)
    assert (first["contender"], first["median"], first["sd"]) == ("a, mean of 2 seeds", 51, pytest.approx(2**0.5))
    assert "ahead" not in first and second["median"] == 60
    assert second["ahead"] == 9 and second["ahead_sd"] == pytest.approx(2**0.5)
    assert summary(rows[:2]) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [({}, "needs one limit"), ({"minutes": 1, "pflop": 1}, "needs one limit"),
     ({"minutes": 1, "contenders": ["cifar11"]}, "no such contender"),
     ({"minutes": 1, "contenders": ["a/x.toml", "b/x.toml"]}, "two contenders have one name")],
)  # fmt: skip
def test_a_race_that_cannot_be_meant_is_refused(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        race("digits", tmp_path / "races", **given)
    assert not (tmp_path / "races").exists()


@pytest.mark.parametrize(
    ("codes", "kind"), [([4, 4], DataError), ([3, 3], PlatformError), ([4, 3], CheckFailed), ([-9, -9], CheckFailed)]
)
def test_an_entry_that_fails_is_named_and_the_others_are_kept(
    codes: list[int], kind: type[EngineError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = iter(codes)
    monkeypatch.setattr(subject, "_run", lambda heat: {f"{e.contender}, seed {e.seed}": next(failing) for e in heat})
    with pytest.raises(kind, match="cifar10-sgd, seed 0, cifar10-sgd, seed 1"):
        race("digits", tmp_path, pflop=1, contenders=["cifar10-sgd"], seeds=2)


def _entry(folder: Path | str) -> Entry:
    return Entry("cifar10-sgd", 0, "digits", None, 1.0, False, 1, str(folder))


def test_an_error_of_an_entry_is_told_as_the_command_line_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(entry: Entry) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", entry.folder)

    monkeypatch.setattr(subject, "enter", full)
    with pytest.raises(SystemExit) as ended:
        main(json.dumps(asdict(_entry(tmp_path))))
    assert ended.value.code == PlatformError.exit_code and str(tmp_path) in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_told_before_any_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "_run", None)
    with pytest.raises(PlatformError, match="/proc/nope"):
        race("digits", Path("/proc/nope"), pflop=1)


@pytest.mark.parametrize("text", ['{"my": 1}', "[1, 2]", "{", '{"entry": {}, "accuracy": {"linear": "high"}}'])
def test_a_file_in_the_place_of_a_row_is_named_before_anything_is_trained(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "_run", None)
    mine = tmp_path / "cifar10-sgd-1pflop-seed1" / "row.json"
    mine.parent.mkdir()
    mine.write_text(text)
    with pytest.raises(DataError, match=str(mine)):
        race("digits", tmp_path, pflop=1, contenders=["cifar10-sgd"], seeds=2)
    assert mine.read_text() == text


def test_a_race_that_is_stopped_or_fails_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM to the race alone, and an error where its second process is started."""
    started: list[subprocess.Popen[bytes]] = []

    def start(call: list[str], **more: Any) -> subprocess.Popen[bytes]:
        if len(started) == 2:
            raise BlockingIOError
        started.append(popen(["sleep", "600"]))
        return started[-1]

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", start)
    timer = threading.Timer(0.5, signal.pthread_kill, (threading.get_ident(), signal.SIGTERM))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        for number in handlers:
            signal.signal(number, signal.SIG_DFL)
        end_in_order()
        timer.start()
        with pytest.raises(SystemExit):
            subject._run([_entry(tmp_path)])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    with pytest.raises(BlockingIOError):
        subject._run([_entry(tmp_path)] * 2)
    assert [process.returncode for process in started] == [-signal.SIGTERM] * 2


def test_held_out_images_are_a_tenth_of_train_and_not_trained_on() -> None:
    entry = Entry("cifar10-sgd", 0, "digits", None, 1.0, False, 1, "folder")
    train, test = subject._splits(entry)
    part, held_out = subject._splits(replace(entry, held_out=True))
    assert len(part) + len(held_out) == len(train) and len(held_out) == pytest.approx(len(train) / 10, abs=10)
    hashes = [{image.tobytes() for image in store.images} for store in (part, held_out, train)]
    assert hashes[0] | hashes[1] == hashes[2]
    assert held_out.split == "held out of train" != test.split


@pytest.mark.usefixtures("here")
def test_an_interrupted_race_goes_on_and_is_not_run_twice(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.train_step

    def stopped(trainer: Trainer, number: int, size: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        if number == 1:
            signal.raise_signal(signal.SIGINT)
        return step(trainer, number, size)

    given: dict[str, Any] = {"data": "digits", "folder": tmp_path / "r", "pflop": PFLOP, "contenders": [recipe]}
    monkeypatch.setattr(Trainer, "train_step", stopped)
    with pytest.raises(Interrupted):
        race(**given, held_out=True)
    monkeypatch.setattr(Trainer, "train_step", step)
    rows = race(**given, held_out=True)

    assert [row["name"] for row in rows] == ["linear probe", "kNN, k = 10"]
    (run,) = (tmp_path / "r").glob("*/run")
    plan = Run.open(run).environment["plan"]
    for row in rows:
        assert row["steps"] == plan["total_steps"] == 4 and row["pflop"] == pytest.approx(PFLOP, rel=0.2)
        assert row["views_per_image"] == pytest.approx(2 * 4 * 16 / row["images"], rel=0.05)
        assert 10 < row["median"] <= 100 and 0 < row["step_seconds"] < row["seconds"]
        assert str(tmp_path) not in json.dumps(row)
    figure = draw({"device": "a machine", "versions": {"torch": "2"}, "rows": rows})
    points = [[float(v) for v in axis.collections[0].get_offsets()[0]] for axis in figure.axes]
    values = [row["median"] for row in rows for _ in range(3)]
    assert [y for _, y in points] == pytest.approx(values)
    assert [x for x, _ in points[:3]] == pytest.approx(
        [rows[0]["pflop"], rows[0]["seconds"] / 60, rows[0]["views_per_image"]]
    )
    monkeypatch.delattr(subject, "enter")
    assert race(**given, held_out=True) == rows
    with pytest.raises(DataError, match="held_out: True, asked False"):
        race(**given)


@pytest.mark.usefixtures("here")
def test_a_peer_that_is_not_installed_is_named_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightly", None)
    rows = race("digits", tmp_path, pflop=PFLOP, contenders=["lightly"])
    assert [(row["median"], row["note"]) for row in rows] == [(None, "not installed")] * 2
    tried: list[Entry] = []
    monkeypatch.setattr(subject, "enter", tried.append)
    race("digits", tmp_path, pflop=PFLOP, contenders=["lightly"])
    assert [entry.name for entry in tried] == ["lightly"]  # it may have been installed since
