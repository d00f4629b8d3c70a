"""`--deterministic`: bitwise equal runs, and what it refuses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from chaos.training import compare
from fixtures.disturbed_runs import TRAINING, at_step, train
from simclr_engine import pretraining
from simclr_engine.errors import PlatformError, UsageError
from simclr_engine.training import Trainer


def test_deterministic_runs_are_bitwise_equal_and_torch_is_left_as_it_was(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    at_step(monkeypatch, 3, lambda trainer: seen.append(torch.are_deterministic_algorithms_enabled()))
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    runs = [train(tmp_path / name, deterministic=True) for name in ("first", "second")]
    assert seen == [True, True] and not torch.are_deterministic_algorithms_enabled()
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"
    assert compare(tmp_path / "first", tmp_path / "second") == []
    assert compare(tmp_path / "first", undisturbed) == []  # on the CPU the flag changes nothing
    assert [run.environment["deterministic"] for run in runs] == [True, True]
    with pytest.raises(RuntimeError, match="boom"):
        at_step(monkeypatch, 4, lambda trainer: (_ for _ in ()).throw(RuntimeError("boom")))
        train(tmp_path / "third", deterministic=True)
    assert not torch.are_deterministic_algorithms_enabled()


def test_runs_on_several_threads_are_bitwise_equal_too(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for name in ("first", "second"):
            train(tmp_path / name, deterministic=True, recipe=TRAINING.recipe().replace(train__epochs=1))
    finally:
        torch.set_num_threads(threads)
    assert compare(tmp_path / "first", tmp_path / "second") == []


def test_an_operation_without_a_deterministic_form_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pooled(trainer: Trainer) -> None:  # in the words of torch.use_deterministic_algorithms
        raise RuntimeError("max_pool2d_backward_cuda does not have a deterministic implementation, but you set ...")

    at_step(monkeypatch, 0, pooled)
    with pytest.raises(PlatformError, match="no deterministic algorithm on this device") as caught:
        train(tmp_path / "run", deterministic=True)
    assert "max_pool2d_backward_cuda" in str(caught.value.saw)
    with pytest.raises(RuntimeError, match="does not have"):
        train(tmp_path / "other")


@pytest.mark.parametrize("option", [{"compile": True}, {"max_minutes": 1.0}])
def test_what_depends_on_measured_times_is_refused_beside_deterministic(option: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="measured times"):
        train(tmp_path / "run", deterministic=True, **option)
    assert not (tmp_path / "run").exists()


def test_on_cuda_deterministic_neither_compiles_nor_tries_out_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    from simclr_engine import device

    monkeypatch.setattr(device, "pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(device, "precisions", lambda picked: ["bf16", "fp32"])
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/c++")
    chosen = {}
    for wanted in (False, True):
        with device.deterministic_algorithms(wanted):
            platform = device.choose_platform("cuda", steps=1_000_000)
            chosen[wanted] = platform.deterministic, platform.compile, torch.backends.cudnn.benchmark
    assert chosen == {False: (False, True, True), True: (True, False, False)}


def test_fp16_beside_bf16_is_taken_as_asked_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from simclr_engine import device

    monkeypatch.setattr(device, "pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda name: None)
    for available, notes in ((["bf16", "fp16", "fp32"], 1), (["fp16", "fp32"], 0)):
        monkeypatch.setattr(device, "precisions", lambda picked, there=available: there)
        platform = device.choose_platform("cuda", "fp16")
        assert platform.precision == "fp16" and len(platform.notes) == notes
        assert all("--precision bf16" in note for note in platform.notes)


@pytest.mark.parametrize("wanted", [True, False])
def test_the_command_line_passes_deterministic_on(
    wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simclr_engine.cli.pretrain import command

    asked: dict[str, Any] = {}
    monkeypatch.setattr(pretraining, "pretrain", lambda *args, **options: (asked.update(options), exit())[0])
    CliRunner().invoke(command, ["--out", str(tmp_path)] + ["--deterministic"] * wanted)
    assert asked["deterministic"] is wanted
