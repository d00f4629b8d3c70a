"""Steps that fail: a gradient that is not finite, memory that is not there."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures.disturbed_runs import TRAINING, at_step, newest_step, train, trainer_of
from simclr_engine import memory, training
from simclr_engine.errors import CheckFailed, PlatformError
from simclr_engine.memory import images_that_fit, is_out_of_memory, largest_divisor
from simclr_engine.training import Trainer


def test_an_infinite_gradient_under_a_finite_loss_stops_the_run_before_it_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflow(trainer: Trainer) -> None:
        next(trainer.model.parameters()).grad[0, 0, 0, 0] = torch.inf

    at_step(monkeypatch, 8, overflow)  # the ninth
    with pytest.raises(CheckFailed, match="a gradient is no longer finite") as caught:
        train(tmp_path / "run")
    assert "step 9" in str(caught.value.saw) and "lower optimizer.lr" in str(caught.value.fix)
    assert newest_step(tmp_path / "run") == 8
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(row)["step"] for row in rows) == 8


@pytest.mark.parametrize("fault", ["gradient", "optimizer"])
def test_a_state_is_not_saved_after_a_gradient_or_with_an_optimizer_that_is_not_finite(fault: str) -> None:
    trainer = trainer_of(TRAINING.recipe())
    trainer.train_step(0)
    trainer.state_dict()
    if fault == "gradient":  # in the middle of a row, so that only the flag remembers
        parameter = next(trainer.model.parameters())
        parameter.grad = torch.full_like(parameter, torch.nan)
        trainer._note_gradients()
        parameter.grad = torch.zeros_like(parameter)
        trainer._note_gradients()
    else:
        next(iter(trainer.optimizer.state.values()))["momentum_buffer"][0, 0, 0, 0] = torch.inf
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    with pytest.raises(CheckFailed, match="no longer finite"):
        trainer.state_dict()


def test_under_fp16_the_scaler_leaves_the_step_out_and_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def overflow(trainer: Trainer) -> None:
        next(trainer.model.parameters()).grad[0, 0, 0, 0] = torch.inf

    trainer = trainer_of(TRAINING.recipe(), "fp16")
    at_step(monkeypatch, 1, overflow)
    trainer.train_step(0)
    before, scale = [p.detach().clone() for p in trainer.model.parameters()], trainer.scaler.get_scale()
    trainer.train_step(1)
    assert all(torch.equal(p, q) for p, q in zip(trainer.model.parameters(), before, strict=True))
    assert trainer.scaler.get_scale() == scale / 2
    trainer.train_step(2)
    assert not any(torch.equal(p, q) for p, q in zip(trainer.model.parameters(), before, strict=True))
    trainer.state_dict()


# No memory


ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore of it"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
    "python": MemoryError(),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_running_out_of_memory_names_the_batch_and_a_micro_batch_that_divides_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(trainer: Trainer) -> None:
        raise ERRORS[kind]

    at_step(monkeypatch, 9, fails)
    with pytest.raises(PlatformError, match="not enough memory") as caught:
        train(tmp_path / "run")
    assert caught.value.exit_code == 3 and newest_step(tmp_path / "run") == 8
    assert "batch 8, 2 views of 8 px" in str(caught.value.saw)
    assert "--set train.micro_batch=4" in str(caught.value.fix) and "--batch-size 4" in str(caught.value.fix)
    assert "(estimate: half of what did not fit)" in str(caught.value.fix)


def test_running_out_of_memory_while_the_time_is_measured_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(trainer: Trainer) -> None:
        raise ERRORS["cuda"]

    at_step(monkeypatch, 0, fails)
    with pytest.raises(PlatformError, match="not enough memory"):
        train(tmp_path / "run", max_minutes=1)
    assert not (tmp_path / "run").exists()


def test_running_out_of_memory_in_the_figures_of_the_log_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ERRORS["cuda"]

    monkeypatch.setattr(training, "contrastive_metrics", fails)
    with pytest.raises(PlatformError, match="not enough memory"):
        train(tmp_path / "run")


def test_other_errors_of_a_step_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(trainer: Trainer) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    at_step(monkeypatch, 1, fails)
    with pytest.raises(RuntimeError, match="mat1"):
        train(tmp_path / "run")
    assert not is_out_of_memory(ValueError("out of memory"))


def test_on_cuda_the_estimate_comes_from_two_smaller_steps_after_the_failed_one_is_freed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = TRAINING.recipe().replace(train__batch_size=32)
    trainer = trainer_of(recipe)
    trainer.platform = replace(trainer.platform, device=torch.device("cuda"))
    alive: list[Any] = []
    measured: list[int] = []

    def fails() -> None:
        activations = torch.zeros(1000)
        alive.append(weakref.ref(activations))
        raise ERRORS["cuda"]

    def peak(_: Trainer, images: int) -> int:
        assert alive[0]() is None, "the failed step still holds its memory"
        measured.append(images)
        return 1000 + 100 * images

    monkeypatch.setattr(memory, "_peak_bytes", peak)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2000, 9999))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 1000)
    with pytest.raises(PlatformError) as caught, memory.memory_errors(trainer):
        fails()
    assert measured == [2, 4]  # 90 % of 3000 bytes are 17 images
    assert "--set train.micro_batch=16" in str(caught.value.fix)
    assert "about 17 fit, from the peak memory of steps of 2 and 4" in str(caught.value.fix)

    def never(_: Trainer, images: int) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(memory, "_peak_bytes", never)
    with pytest.raises(PlatformError, match=r"micro_batch=1\b.*not even 4 images fit"), memory.memory_errors(trainer):
        fails()


def test_the_two_smaller_steps_of_the_estimate_compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(TRAINING.recipe())

    def compiled(_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a size that is used once was compiled")

    trainer.forward = compiled
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 77)
    assert memory._peak_bytes(trainer, 4) == 77
    assert all(p.grad is None for p in trainer.model.parameters())


def test_images_that_do_not_fit_beside_the_model_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise ERRORS["cuda"]

    monkeypatch.setattr("simclr_engine.training.Resident", full)
    with pytest.raises(PlatformError, match="for the model and the images") as caught:
        train(tmp_path / "run")
    assert "32 images of 8 px" in str(caught.value.saw) and "--limit" in str(caught.value.fix)


def test_the_estimate_is_a_line_through_two_points() -> None:
    assert images_that_fit((8, 1_800), (16, 2_600), 10_000) == 90
    assert images_that_fit((8, 1_800), (16, 2_600), 999) == 0
    assert images_that_fit((8, 500), (16, 500), 10_000) == 16
    assert [largest_divisor(4096, limit) for limit in (300, 256, 4096, 1, 0)] == [256, 256, 4096, 1, 0]
    assert largest_divisor(30, 7) == 6
