"""The trainer of the benchmarks that time training steps: the network of `cifar10-sgd`, on images of noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simclr_engine.data.store import ImageStore
from simclr_engine.device import Platform
from simclr_engine.distributed import World
from simclr_engine.kernels import pick_augment, pick_nt_xent
from simclr_engine.recipe import Recipe
from simclr_engine.training import Backends, Plan, Trainer


def noise(count: int, size: int) -> NDArray[np.uint8]:
    """uint8 `[count, size, size, 3]`, the same every time."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def bench_recipe(batch: int, name: str = "cifar10-sgd") -> Recipe:
    """A recipe for steps of `batch` images."""
    return Recipe.load(name, overrides={"train.batch_size": batch, "short_runs": []})


def bench_trainer(
    recipe: Recipe,
    platform: Platform,
    store: ImageStore,
    augment: str = "auto",
    nt_xent: str = "auto",
    world: World | None = None,
) -> Trainer:
    """A trainer at its first step.

    Args:
        recipe: its model, loss and batch size.
        platform: what it computes on.
        store: its images.
        augment, nt_xent: backends by name.
        world: the ranks; None is a process alone.
    """
    loss, _ = pick_nt_xent(nt_xent, platform.device, recipe.head.dimension, recipe.loss.temperature)
    backends = Backends(pick_augment(augment, platform.device)[0], loss)
    trainer = Trainer(Plan.of(recipe, store), platform, store, backends, world or World())
    trainer.model.train()
    return trainer
