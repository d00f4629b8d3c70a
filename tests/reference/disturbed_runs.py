"""A run of twelve steps in a second, to be disturbed: by a signal, a fault in a step, a full disk, another process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from chaos.training import Training, narrow_encoder
from simclr_engine.checkpoint import newest_checkpoint
from simclr_engine.data.store import ImageStore
from simclr_engine.device import Platform
from simclr_engine.pretraining import Interrupted, pretrain
from simclr_engine.recipe import Recipe
from simclr_engine.training import Backends, Plan, Trainer

TRAINING = Training("narrow", often=False)


def store() -> ImageStore:
    """What the campaign of kills trains on."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (32, 8, 8, 3), dtype=np.uint8)
    return ImageStore.from_arrays(images, np.arange(32) % 2, ("even", "odd"), name="noise", split="train")


@contextmanager
def narrow() -> Iterator[None]:
    """An encoder of which nothing is asked."""
    with mock.patch("simclr_engine.model.build_encoder", narrow_encoder):
        yield


def train(out: Path, **options: Any) -> Any:
    """The twelve steps of the campaign, or what is left of them."""
    recipe = options.pop("recipe", TRAINING.recipe())
    with narrow():
        return pretrain(recipe, store(), out, device="cpu", fused=False, quiet=True, **options)


def newest_step(out: Path) -> int:
    """Where the newest good checkpoint stands."""
    return int(newest_checkpoint(out / "checkpoints")[0]["step"])


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, what: Callable[[Trainer], None]) -> None:
    """Lets something happen between the gradients of `step` (counted from 0) and its update."""
    real = Trainer.gradients

    def gradients(self: Trainer, number: int, size: int | None = None) -> Any:
        result = real(self, number, size)
        if number == step:
            what(self)
        return result

    monkeypatch.setattr(Trainer, "gradients", gradients)


def interrupted(out: Path, monkeypatch: pytest.MonkeyPatch, step: int = 6) -> None:
    """Leaves a run that SIGTERM stopped after the step `step`."""
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        at_step(patch, step - 1, lambda trainer: os.kill(os.getpid(), signal.SIGTERM))
        train(out)
    assert newest_step(out) == step


def trainer_of(recipe: Recipe, precision: str = "fp32") -> Trainer:
    """A trainer with nothing around it."""
    platform = Platform(torch.device("cpu"), precision, channels_last=True, compile=False)
    with narrow():
        trainer = Trainer(recipe, Plan.of(recipe, store()), platform, store(), Backends("torch", "torch"))
    trainer.model.train()
    return trainer
