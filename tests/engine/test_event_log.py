"""TensorBoard's own reader finds every curve of an evaluation under the name of its protocol."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simclr_engine.errors import PlatformError
from simclr_engine.event_log import RunLog, write_scalars

Curves = dict[str, list[tuple[int, float]]]


def read(folder: Path) -> Curves:
    """Every scalar of the event files in this folder: tag → [(step, value)], by TensorBoard's reader."""
    from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(folder), size_guidance={TENSORS: 0}).Reload()
    tags = events.Tags()
    curves = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags["scalars"]}
    for tag in tags["tensors"]:  # what newer readers make of a scalar
        curves[tag] = [(e.step, float(make_ndarray(e.tensor_proto))) for e in events.Tensors(tag)]
    return curves


def folders(root: Path) -> list[str]:
    """The folders that TensorBoard shows as curves of their own."""
    return sorted({str(file.parent.relative_to(root)) for file in root.rglob("events.out.tfevents.*")})


def near(points: list[tuple[int, float]]) -> Any:
    return [(step, pytest.approx(value, rel=1e-6)) for step, value in points]  # events hold float32


def history(fold: int = 0, epochs: int = 3) -> list[dict[str, Any]]:
    return [
        {"fold": fold, "epoch": e, "step": 79 * e, "train_loss": 2.0 - 0.1 * e - fold, "test_loss": 1.8 - 0.1 * e}
        | {"test_accuracy": 0.3 + 0.1 * e, "lr": 0.01 / e}
        for e in range(1, epochs + 1)
    ]


def steps(fold: int = 0, count: int = 4) -> list[dict[str, Any]]:
    return [
        {"fold": fold, "step": 79 * i, "epoch": float(i), "train_loss": 2.3 - 0.2 * i, "lr": 0.1 / (i + 1)}
        for i in range(count)
    ]


def test_every_curve_of_the_protocol_is_read_back_with_its_steps_and_values(tmp_path: Path) -> None:
    assert write_scalars(tmp_path, history(), steps(), "finetune-pretrained") == (tmp_path / "finetune-pretrained",)
    found = read(tmp_path / "finetune-pretrained")
    assert set(found) == {"test/accuracy", "test/loss", "train/loss_epoch", "train/loss_step", "lr"}
    assert found["test/accuracy"] == near([(79, 0.4), (158, 0.5), (237, 0.6)])
    assert found["test/loss"] == near([(79, 1.7), (158, 1.6), (237, 1.5)])
    assert found["train/loss_epoch"] == near([(79, 1.9), (158, 1.8), (237, 1.7)])
    assert found["train/loss_step"] == near([(0, 2.3), (79, 2.1), (158, 1.9), (237, 1.7)])
    # Of the two the finer: one value a step, though the epochs know the rate at these steps too.
    assert found["lr"] == near([(0, 0.1), (79, 0.05), (158, 0.1 / 3), (237, 0.025)])


def test_without_steps_the_rate_is_that_of_the_epochs(tmp_path: Path) -> None:
    write_scalars(tmp_path, history(), [], "head-scratch")
    found = read(tmp_path / "head-scratch")
    assert found["lr"] == near([(79, 0.01), (158, 0.005), (237, 0.01 / 3)])
    assert "train/loss_step" not in found


def test_protocols_are_folders_beside_each_other_and_beside_the_runs_own_log(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.write("train", 4, {"loss": 5.0})
    log.close()
    for group in ("finetune-pretrained", "finetune-scratch"):
        write_scalars(tmp_path / "tensorboard", history(), steps(), group)
    assert folders(tmp_path / "tensorboard") == [".", "finetune-pretrained", "finetune-scratch"]
    assert read(tmp_path / "tensorboard")["train/loss"] == [(4, 5.0)]


@pytest.mark.parametrize("first", [0, 1])
def test_folds_above_one_have_folders_of_their_own(tmp_path: Path, first: int) -> None:
    rows = [row for fold in (first, 2, 3) for row in history(fold)]
    fine = [row for fold in (first, 2) for row in steps(fold)]  # the third has no steps
    written = write_scalars(tmp_path, rows, fine, "finetune-scratch")
    base = tmp_path / "finetune-scratch"
    assert written == (base, base / "fold-2", base / "fold-3")
    for fold, folder in zip((first, 2, 3), written, strict=True):
        assert read(folder)["train/loss_epoch"] == near([(79 * e, 2.0 - 0.1 * e - fold) for e in (1, 2, 3)])
    assert read(base / "fold-2")["lr"] == near([(79 * i, 0.1 / (i + 1)) for i in range(4)])
    assert read(base / "fold-3")["lr"] == near([(79, 0.01), (158, 0.005), (237, 0.01 / 3)])


def test_a_second_evaluation_replaces_the_curves_and_nothing_else(tmp_path: Path) -> None:
    rows = [row for fold in (1, 2) for row in history(fold)]
    write_scalars(tmp_path, rows, [], "head-pretrained")
    write_scalars(tmp_path, history(), [], "head-scratch")
    kept = tmp_path / "head-pretrained" / "notes.txt"
    kept.write_text("mine")
    write_scalars(tmp_path, history(epochs=1), [], "head-pretrained")
    assert folders(tmp_path) == ["head-pretrained", "head-scratch"]
    assert not (tmp_path / "head-pretrained" / "fold-2").exists()
    assert kept.read_text() == "mine"
    assert read(tmp_path / "head-pretrained")["test/accuracy"] == near([(79, 0.4)])
    assert len(read(tmp_path / "head-scratch")["test/accuracy"]) == 3


def test_numbers_of_numpy_are_numbers_and_what_is_unknown_gives_no_point(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"step": np.int64(1), "test_accuracy": np.float32(0.25), "test_loss": None, "lr": np.float64(0.5)},
        {"fold": 0, "step": 2, "test_accuracy": True, "test_loss": "1.0", "epoch": 3, "other": 7.0},
    ]
    write_scalars(tmp_path, rows, [], "g")
    assert read(tmp_path / "g") == {"test/accuracy": [(1, 0.25)], "lr": [(1, 0.5)]}


def test_rows_are_drawn_in_the_order_of_their_steps(tmp_path: Path) -> None:
    write_scalars(tmp_path, reversed(history()), reversed(steps()), "g")
    found = read(tmp_path / "g")
    assert [step for step, _ in found["train/loss_step"]] == [0, 79, 158, 237]
    assert [step for step, _ in found["test/loss"]] == [79, 158, 237]


def test_nothing_to_draw_leaves_nothing(tmp_path: Path) -> None:
    assert write_scalars(tmp_path, [], [], "g") == ()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("group", ["", ".", "..", "a/b", "/tmp", "a\\b", "a\nb", ".hidden"])
def test_a_group_that_is_no_plain_folder_name_is_refused(tmp_path: Path, group: str) -> None:
    with pytest.raises(ValueError, match="plain folder name"):
        write_scalars(tmp_path, history(), [], group)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PlatformError, match="for TensorBoard") as caught:
        write_scalars(tmp_path / "file", history(), [], "g")
    assert "Not a directory" in str(caught.value.saw)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PlatformError, match="No space left"):
        write_scalars(tmp_path, history(), [], "g")
