"""A caller's functions, wandb and mlflow get what metrics.jsonl gets, and cost a run nothing when they fail."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from simclr_engine import Recipe, pretrain
from simclr_engine.data import ImageStore
from simclr_engine.errors import PlatformError, UsageError
from simclr_engine.loggers import open_logger

SETTINGS = {"train.epochs": 2}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What stand-ins of wandb and mlflow were told."""
    told: list[tuple[Any, ...]] = []

    def record(name: str) -> Any:
        return lambda *args, **options: told.append((name, *args, options))

    def init(**options: Any) -> Any:
        told.append(("init", options))
        return SimpleNamespace(log=record("log"), finish=record("finish"))

    wandb = ModuleType("wandb")
    wandb.init = init  # type: ignore[attr-defined]  # a module made here
    client = SimpleNamespace(
        get_experiment_by_name=lambda name: None,
        create_experiment=lambda name: f"experiment {name}",
        create_run=lambda at, run_name: SimpleNamespace(info=SimpleNamespace(run_id=f"{run_name} in {at}")),
        log_batch=record("batch"),
        update_run=record("update"),
        set_terminated=record("ended"),
    )
    mlflow, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    mlflow.MlflowClient = lambda: client  # type: ignore[attr-defined]  # a module made here
    entities.Metric = lambda name, value, now, step: (name, value, step)  # type: ignore[attr-defined]  # a module made here
    entities.Param = lambda name, value: (name, value)  # type: ignore[attr-defined]  # a module made here
    for module in (wandb, mlflow, entities):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return told


def small(out: Path, **options: Any) -> Any:
    """A run of a few steps on images of noise."""
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    settings = {"train.batch_size": 8, "train.epochs": 2, "train.precision": "fp32", "monitor.log_steps": 1}
    recipe = Recipe.load("quick-10", overrides=settings)
    store = ImageStore.from_arrays(images, np.arange(16) % 2, name="noise")
    return pretrain(recipe, store, out, fused=False, compile=False, quiet=True, **options)


def test_a_caller_gets_every_row_of_the_log_and_every_checkpoint(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    saved: list[Path] = []

    def on_checkpoint(path: Path) -> None:
        assert path.stat().st_size > 1000  # it is there, and whole
        saved.append(path)

    run = small(
        tmp_path / "a", on_log=lambda step, row: rows.append({"step": step, **row}), on_checkpoint=on_checkpoint
    )
    assert rows == [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]
    assert {row["event"] for row in rows} == {"train", "knn"} and saved[-1] == run.directory / "checkpoints" / "last.pt"


def test_what_a_caller_raises_ends_the_run_which_can_be_resumed(tmp_path: Path) -> None:
    def stop(path: Path) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        small(tmp_path / "a", on_checkpoint=stop)
    assert small(tmp_path / "a", resume=True).environment["finished"]


def test_wandb_and_mlflow_get_the_rows_and_keep_their_ids(tmp_path: Path, calls: list[tuple[Any, ...]]) -> None:
    run = small(tmp_path / "a", log=["wandb", "mlflow"])
    ids = run.environment["loggers"]
    (init,) = (options for name, options in ((c[0], c[-1]) for c in calls) if name == "init")
    assert (init["project"], init["name"], init["id"]) == ("simclr-engine", "a", ids["wandb"])
    assert init["config"]["train.batch_size"] == 8 and ids["mlflow"] == "a in experiment simclr-engine"
    rows = [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]
    logged = [
        (call[1]["train/loss"], call[-1]["step"]) for call in calls if call[0] == "log" and "train/loss" in call[1]
    ]
    assert logged == [(row["loss"], row["step"]) for row in rows if row["event"] == "train"]
    metrics = [one for call in calls if call[0] == "batch" and len(call) > 3 for one in call[2]]
    assert {(row["loss"], row["step"]) for row in rows if "loss" in row} == {
        m[1:] for m in metrics if m[0] == "train/loss"
    }
    assert [call[1:] for call in calls if call[0] in ("finish", "ended")] == [
        ({"exit_code": 0},),
        (ids["mlflow"], "FINISHED", {}),
    ]


def test_a_resumed_run_goes_on_under_the_same_id(calls: list[tuple[Any, ...]]) -> None:
    assert open_logger("wandb", "a", SETTINGS, "abc")[1] == "abc" and calls[0][1]["id"] == "abc"
    assert open_logger("mlflow", "a", SETTINGS, "def")[1] == "def" and calls[1] == (
        "update",
        "def",
        {"status": "RUNNING"},
    )


def test_a_logger_that_fails_says_so_once_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, calls: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(sys.modules["wandb"], "init", lambda **_: SimpleNamespace(log=fails, finish=fails))
    listener, _ = open_logger("wandb", "a", SETTINGS, None)
    for step in range(3):
        listener.on_log(step, {"event": "train", "loss": 1.0})
    assert capsys.readouterr().err == "warning: wandb failed and gets no more rows: ConnectionError: no network\n"


def test_a_logger_that_is_absent_or_does_not_start_is_refused(
    monkeypatch: pytest.MonkeyPatch, calls: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys.modules["wandb"], "init", lambda **_: 1 / 0)
    with pytest.raises(PlatformError, match="does not start") as caught:
        open_logger("wandb", "a", SETTINGS, None)
    assert "WANDB_MODE=offline" in str(caught.value.fix)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(PlatformError, match="needs mlflow") as caught:
        open_logger("mlflow", "a", SETTINGS, None)
    assert "simclr-engine[mlflow]" in str(caught.value.fix)
    with pytest.raises(UsageError, match="no such logger"):
        small(tmp_path / "a", log=["tensorbored"])
