"""A training run that is killed and resumed until it is done, held against one that was never stopped."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from simclr_engine import checkpoint, model, pretraining, recording
from simclr_engine.checkpoint import load_checkpoint, newest_checkpoint
from simclr_engine.data.store import ImageStore
from simclr_engine.errors import DataError
from simclr_engine.recipe import Recipe

from .kills import Outcome, Report

CLOCKED = ("images_per_second", "views_per_second")


@dataclass(frozen=True)
class Training:
    """One run of the campaign.

    Attributes:
        encoder: `narrow`, whose checkpoints are written in a moment, or `resnet18`, whose ones are 90 MB.
        often: save after every step, not at the end of an epoch alone.
    """

    encoder: str
    often: bool

    def work(self, directory: Path, report: Report, *, resume: bool) -> None:
        """Trains in `directory`, from the start or from where it was killed; reports each checkpoint that is saved."""
        if self.encoder == "narrow":
            model.build_encoder = narrow_encoder
        if self.often:
            recording.SAVE_SECONDS = 0.0
        saving, keeping = checkpoint.save_last, checkpoint.keep_last_as

        def save_last(folder: Path, state: dict[str, Any]) -> None:
            saving(folder, state)
            report(f"saved {state['step']}")

        def keep_last_as(folder: Path, name: str) -> None:
            keeping(folder, name)
            report(f"kept {int(name[6:10])}")

        recording.save_last, recording.keep_last_as = save_last, keep_last_as
        pretraining.pretrain(
            self.recipe(),
            _store(),
            directory,
            device="cpu",
            fused=False,
            resume=resume,
            overwrite=not resume,
            quiet=True,
        )

    def recipe(self) -> Recipe:
        """Twelve steps of eight images; dropout, so that the state of the generator matters."""
        return Recipe.load(
            "cifar10-sgd",
            overrides={
                "train.batch_size": 8,
                "train.epochs": 3 if self.encoder == "narrow" else 1,
                "train.precision": "fp32",
                "train.checkpoint_epochs": 1,
                "head.hidden": [16],
                "head.dimension": 8,
                "head.dropout": 0.2,
                "monitor.log_steps": 1,
                "monitor.knn_epochs": 1,
                "monitor.knn_images": 20,
                "optimizer.lr": 0.06,
                "short_runs": [],
            },
        )


def narrow_encoder(arch: str, stem: str) -> nn.Module:
    """Eight channels in place of a ResNet: what is tested is saving and resuming, not convolutions."""
    encoder = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    encoder.feature_dim = 8
    return encoder


@cache
def _store() -> ImageStore:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (32, 8, 8, 3), dtype=np.uint8)
    return ImageStore.from_arrays(images, np.arange(32) % 2, ("even", "odd"), name="noise", split="train")


def examine(directory: Path, outcome: Outcome) -> tuple[int, list[str]]:
    """After a kill: how many checkpoints there are, and what is wrong with them and with the log."""
    folder, wrong = directory / "checkpoints", list[str]()
    paths = sorted(folder.glob("*.pt"))
    for path in paths:
        try:
            load_checkpoint(path)
        except DataError as error:
            wrong.append(f"torn checkpoint: {path.name}: {error.cause}")
    saved = max(outcome.numbers("saved"), default=0)
    if saved:
        try:
            step = newest_checkpoint(folder)[0]["step"]
        except DataError as error:
            wrong.append(f"lost checkpoint: step {saved} was saved, none is good: {error}")
        else:
            if step < saved:
                wrong.append(f"lost checkpoint: step {saved} was saved, the newest is {step}")
    wrong += [
        f"lost checkpoint: epoch {epoch} was kept"
        for epoch in outcome.numbers("kept")
        if not (folder / f"epoch_{epoch:04d}.pt").is_file()
    ]
    wrong += [f"torn log: line {i} of {n}" for i, n in _torn(directory / "metrics.jsonl") if i < n]
    return len(paths), wrong


def _torn(log: Path) -> list[tuple[int, int]]:
    """(line, number of lines) of each line that is no JSON."""
    lines = log.read_text("utf-8").splitlines() if log.is_file() else []
    torn = []
    for i, line in enumerate(lines, 1):
        try:
            json.loads(line)
        except json.JSONDecodeError:
            torn.append((i, len(lines)))
    return torn


def compare(directory: Path, reference: Path) -> list[str]:
    """After the end: what differs from the run that was never stopped."""
    wrong = []
    ours, theirs = (load_checkpoint(d / "checkpoints" / "last.pt") for d in (directory, reference))
    wrong += [f"differs: {key}" for key in ("step", "model", "optimizer", "rng") if not _equal(ours[key], theirs[key])]
    for name in ("model.safetensors", "encoder.safetensors"):  # whose metadata stand in any order
        if not _equal(load_file(directory / name), load_file(reference / name)):
            wrong.append(f"differs: {name}")
    if (directory / "recipe.toml").read_bytes() != (reference / "recipe.toml").read_bytes():
        wrong.append("differs: recipe.toml")
    if _torn(directory / "metrics.jsonl"):
        wrong.append("torn log: after the end")
    if _rows(directory) != _rows(reference):
        wrong.append("differs: the rows of metrics.jsonl")
    if not json.loads((directory / "environment.json").read_text("utf-8"))["finished"]:
        wrong.append("differs: the run does not say that it finished")
    if (extra := _names(directory) ^ _names(reference)) - {Path("checkpoints/previous.pt")}:
        wrong.append("differs: files " + ", ".join(sorted(map(str, extra))))
    return wrong


def _rows(directory: Path) -> list[dict[str, Any]]:
    lines = (directory / "metrics.jsonl").read_text("utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCKED} for line in lines]


def _names(directory: Path) -> set[Path]:
    """Every file, but for TensorBoard's: each process writes one of its own."""
    files = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    return {path for path in files if path.parts[0] != "tensorboard"}


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)
