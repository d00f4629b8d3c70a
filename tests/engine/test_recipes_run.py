"""The five published systems run for real: two steps at batch 64, stopped, resumed; one is exported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fixtures.disturbed_runs import at_step
from simclr_engine import OnnxEncoder, export_onnx, load_data, load_encoder
from simclr_engine.pretraining import Interrupted, pretrain
from simclr_engine.recipe import Recipe

SYSTEMS = ("lars-800", "few-labels-50", "quick-10", "scratch-100", "two-protocols")


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_published_recipe_trains_stops_and_resumes_and_one_is_exported(
    name: str, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = load_data(str(shared_data / "cifar10-jpeg-mini.tar.xz"), split="train", size=16).limit(128)
    settings = {"train.batch_size": 64, "train.epochs": 1, "monitor.log_steps": 1, "monitor.knn_images": 40}
    recipe = Recipe.load(name, overrides=settings)
    out = tmp_path / name
    at_step(monkeypatch, 0, lambda trainer: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        pretrain(recipe, store, out, device="cpu", quiet=True)
    monkeypatch.undo()
    run = pretrain(recipe, store, out, device="cpu", resume=True, quiet=True)
    losses = [row["loss"] for row in run.metrics if row["event"] == "train"]
    assert len(losses) == 2
    assert all(np.isfinite(losses))
    assert run.recipe.model == Recipe.load("cifar10").model  # one graph for all five: exporting one shows it
    if name != "quick-10":
        return
    result = export_onnx(run, tmp_path / "encoder.onnx")
    images = store.images[:5]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (recipe.augment.mean, recipe.augment.std))
    with torch.no_grad():
        expected = load_encoder(run)((torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std)
    assert np.abs(OnnxEncoder(result.file).embed(images) - expected.numpy()).max() < 1e-4


@pytest.mark.slow
def test_the_two_commands_work_as_typed(shared_data: Path, tmp_path: Path) -> None:
    data = str(shared_data / "cifar10-jpeg-mini.tar.xz")
    first = ["pretrain", "--fused", "--data", data, "--epochs", "1", "--limit", "64", "--batch-size", "32"]
    first += ["--set", "data.size=16"]
    for command in (first, ["export", "encoder.onnx"]):
        done = subprocess.run(
            [sys.executable, "-m", "simclr_engine", *command], capture_output=True, text=True, cwd=tmp_path, timeout=300
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "cifar10" / "encoder.safetensors").is_file()
    assert OnnxEncoder(tmp_path / "encoder.onnx").image_size == 16
