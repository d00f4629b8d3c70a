"""Which run is the newest, what a run was started with each time, and who else writes into it: no clock decides."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chaos.training import compare
from fixtures.disturbed_runs import RECIPE, interrupted, newest_step, store, train
from fixtures.synthetic_run import random_confusion, result, write_run
from simclr_engine import recording, resuming
from simclr_engine import run as run_module
from simclr_engine.errors import DataError, UsageError
from simclr_engine.evaluation import records
from simclr_engine.evaluation.linear import LinearProbe
from simclr_engine.evaluation.records import Outcome, load_predictions, load_results, numbers, save_result
from simclr_engine.export.probe import saved_probes
from simclr_engine.files import Folder
from simclr_engine.report.content import load_content, run_facts
from simclr_engine.run import Run


def start_anew(text: str) -> dict[str, Any]:
    """environment.json as an older version wrote it."""
    return {key: value for key, value in json.loads(text).items() if key not in ("starts", "number", "threads")}


# The newest


def test_the_run_that_ended_last_is_the_newest_though_the_clock_was_set_back(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "runs" / "of an older version")
    clock = iter([4e9, 3e9, 2e9, 1e9])
    for name in ("c", "a", "b"):
        moment = next(clock)
        monkeypatch.setattr(recording.time, "time", lambda moment=moment: moment)
        train(tmp_path / "runs" / name)
        assert Run.newest(tmp_path / "runs").directory.name == name
    for name in ("c", "a", "b"):
        os.utime(tmp_path / "runs" / name / "environment.json", (5e9, 5e9) if name == "c" else (1, 1))
    assert Run.newest(tmp_path / "runs").directory.name == "b"
    train(tmp_path / "runs" / "a", resume=True, recipe=RECIPE, overrides={"train.epochs": 4})  # and ends again
    assert Run.newest(tmp_path / "runs").directory.name == "a"
    assert Run.open(tmp_path / "runs" / "a").environment["number"] == 4


def test_runs_of_older_versions_are_ordered_by_their_dates_below_all_others(tmp_path: Path) -> None:
    for name, about in {"a": {"ended": 9e9}, "b": {"ended": 5}, "c": {"ended": 1, "number": 1}}.items():
        run = write_run(tmp_path / name)
        (run.directory / "environment.json").write_text(json.dumps(run.environment | about))
    assert Run.newest(tmp_path).directory.name == "c"
    (tmp_path / "c" / "environment.json").unlink()
    assert Run.newest(tmp_path).directory.name == "a"


@pytest.mark.parametrize("number", ["-1", "null", '"7"', "1e3", "true", "[9]", str(2**64)])
def test_a_number_that_no_run_takes_counts_as_none(number: str, tmp_path: Path) -> None:
    good, bad = (write_run(tmp_path / name).directory / "environment.json" for name in ("a", "b"))
    good.write_text(good.read_text().replace('"ended"', '"number": 1, "ended"'))
    bad.write_text(bad.read_text().replace('"ended"', f'"number": {number}, "ended"'))
    assert Run.newest(tmp_path).directory.name == "a"


def test_the_probe_that_was_written_last_is_the_newest_whatever_the_clock_says(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    folder = run.directory / "evaluation"
    weights = np.ones((2, 3), np.float32)
    probe = LinearProbe(
        weights, np.ones(2, np.float32), np.ones(3, np.float32), np.ones(3, np.float32), np.arange(2), 1.0, 7, True
    )
    for data, age in (("zoo", 1), ("ants", 9e9), ("mice", 5e8), ("zoo", 2)):
        name = save_result(folder, result(random_confusion(3, 30, 0.5), data=data), probe)
        os.utime(folder / f"{name}.safetensors", (age, age))
        assert saved_probes(run.directory)[0][0] == name
    assert numbers(folder) == {f"{name}-linear-pretrained": n for name, n in (("ants", 2), ("mice", 3), ("zoo", 4))}
    assert len(load_results(folder)) == 3


# What each start used


def test_each_start_is_kept_and_other_kernels_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    interrupted(out, monkeypatch)
    about = json.loads((out / "environment.json").read_text())
    (first,) = about["starts"]
    assert first["step"] == 0 and first["backends"] == {"augment": "torch", "nt_xent": "torch"}
    first["backends"]["augment"] = "native"  # not compiled on every machine
    (out / "environment.json").write_text(json.dumps(about))
    train(out, resume=True, quiet=False)
    shown = capsys.readouterr().err
    assert "note: resumed with augment native → torch: weights may differ" in shown
    starts = Run.open(out).environment["starts"]
    assert starts[0] == first and [start["step"] for start in starts] == [0, 6]
    assert starts[1]["backends"]["augment"] == "torch" and starts[1]["time"] >= first["time"]
    facts = dict(run_facts(load_content(Run.open(out))))
    assert facts["resumed"] == "after step 6 with augment native → torch"


def test_a_start_with_the_same_kernels_says_nothing_and_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    interrupted(out, monkeypatch)
    (out / "environment.json").write_text(json.dumps(start_anew((out / "environment.json").read_text())))
    train(out, resume=True, quiet=False)
    assert "resumed with" not in capsys.readouterr().err
    assert [start.get("step") for start in Run.open(out).environment["starts"]] == [None, 6]
    assert dict(run_facts(load_content(Run.open(out))))["resumed"] == "after step 6"


def test_another_version_device_or_thread_is_a_change_and_a_new_entry_is_none() -> None:
    before = {"device": "cpu", "versions": {"torch": "2.12", "numpy": "2"}, "precision": "bf16", "commit": None}
    now = {"device": "cuda:0", "versions": {"torch": "2.13", "numpy": "2"}, "precision": "bf16", "threads": 2}
    assert run_module.changes(before, now) == ["device cpu → cuda:0", "torch 2.12 → 2.13"]


def test_a_run_that_is_restarted_without_end_keeps_its_first_start_and_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    interrupted(out, monkeypatch)
    monkeypatch.setattr(recording, "MOST_STARTS", 3)
    about = json.loads((out / "environment.json").read_text())
    about["starts"] = [{"step": step} for step in range(7)]
    (out / "environment.json").write_text(json.dumps(about))
    train(out, resume=True)
    assert [start["step"] for start in Run.open(out).environment["starts"]] == [0, 5, 6, 6]


# A description that is lost


@pytest.mark.parametrize("how", ["torn", "missing", "a list", "a pipe", "with recipe.toml"])
def test_a_good_checkpoint_goes_on_without_its_description_and_the_loss_is_said(
    how: str, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    interrupted(out, monkeypatch)
    file = out / "environment.json"
    if how == "torn":
        file.write_bytes(file.read_bytes()[:300])
    elif how == "a list":
        file.write_text("[]")
    else:
        file.unlink()
    if how == "a pipe":
        os.mkfifo(file)
    elif how == "with recipe.toml":
        (out / "recipe.toml").unlink()
    train(out, resume=True)
    assert "the checkpoint is good, but" in (said := capsys.readouterr().err) and resuming.LOST in said
    assert compare(out, undisturbed) == []
    about = Run.open(out).environment
    assert any(resuming.LOST in note for note in about["notes"]) and [start["step"] for start in about["starts"]] == [6]


def test_without_its_description_a_run_takes_the_limit_again_and_other_images_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("fixtures.disturbed_runs.store", lambda: replace(store().limit(24), name="noise"))
        interrupted(out, patch, 4)
    (out / "environment.json").unlink()
    with pytest.raises(DataError, match="not what the run was started on"):
        train(out, resume=True)
    train(out, resume=True, limit=24)
    assert newest_step(out) == 9 and Run.open(out).environment["data"]["limit"] == 24


def test_a_checkpoint_is_never_passed_over_because_memory_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    interrupted(out, monkeypatch)

    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(torch, "load", no_memory)
    monkeypatch.setattr("builtins.bytearray", no_memory)
    with pytest.raises(MemoryError):
        newest_step(out)


# Two at once


def test_two_evaluations_at_once_leave_files_that_belong_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = store()
    assert images.labels is not None
    folder, threads = Folder.open(tmp_path), list[threading.Thread]()

    def outcome(right: bool) -> Outcome:
        classes = images.labels if right else 1 - images.labels
        confusion = np.diag([16, 16]) if right else np.array([[0, 16], [16, 0]])
        probabilities = np.full((32, 2), 0.75 if right else 0.25, np.float32)
        found = result(confusion, images.class_names)
        return Outcome(found, None, (), images, np.arange(32), classes, probabilities)

    saving = records.save_predictions

    def interleaved(*args: Any) -> None:
        if not threads:  # the first: a second one comes between its files
            threads.append(threading.Thread(target=lambda: outcome(False).save(folder, images)))
            threads[0].start()
            threads[0].join(0.2)
        saving(*args)

    monkeypatch.setattr(records, "save_predictions", interleaved)
    outcome(True).save(folder, images)
    threads[0].join()
    (name, found), *_ = load_results(tmp_path).items()
    stored = load_predictions(tmp_path, name)
    assert stored is not None and found.accuracy == float((stored.truth == stored.predicted).mean()) == 0.0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_lock_with_a_second_name_is_held_and_not_written(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "key").write_text("")
    (tmp_path / "run" / ".lock").hardlink_to(tmp_path / "key")
    with run_module.RunLock(tmp_path / "run") as lock:
        lock.take()
        with pytest.raises(UsageError, match="another process"), run_module.RunLock(tmp_path / "run") as second:
            second.take()
        assert (tmp_path / "key").read_text() == ""


def test_the_time_of_an_end_is_shown_whatever_it_says(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for ended in (2.0**62, time.time()):
        facts = dict(run_facts(load_content(Run(run.directory, run.recipe, run.environment | {"ended": ended}))))
        assert facts["ended"].endswith("UTC")
