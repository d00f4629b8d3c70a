"""How fast is a training step? Ours, ours with one choice undone, and a plain one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from simclr_engine.data.store import ImageStore
from simclr_engine.device import Platform, choose_platform, keep_freed_memory
from simclr_engine.model import SimCLR
from simclr_engine.optim import build_optimizer
from simclr_engine.recipe import Recipe
from simclr_engine.timing import interleave
from simclr_engine.training import Backends, Plan, Trainer

from .baselines.step import plain_step
from .rows import Floor, Row, rate_row

# 1.9 was seen with bf16 instructions; without them (plain fp32 on both sides) there is no floor to hold.
FLOORS = (Floor("training step", "ours", 1.5, of="plain eager fp32 NCHW"),)


def rows(views: int = 64, size: int = 32, repeats: int = 7, device: str = "auto") -> list[Row]:
    """Views per second of a whole step (augment, forward, loss, backward, update), contenders interleaved.

    Args:
        views: rows of a batch, V·B with V = 2.
        size: side of images and views, pixels.
        repeats: timed steps per contender.
        device: auto | cuda | mps | cpu.
    """
    recipe = Recipe.load("cifar10-sgd", overrides={"train.batch_size": views // 2, "train.epochs": 1000})
    images = np.random.default_rng(0).integers(0, 256, (4 * views, size, size, 3), dtype=np.uint8)
    store = ImageStore.from_arrays(images, name="noise")
    plan = Plan.of(recipe, store)
    best = choose_platform(device)
    if best.device.type == "cpu":
        keep_freed_memory()

    def ours(platform: Platform) -> Callable[[], object]:
        trainer = Trainer(recipe, plan, platform, store, Backends("auto", "auto"))
        trainer.model.train()
        return lambda: trainer.train_step(0)

    def plain() -> Callable[[], object]:
        torch.manual_seed(0)
        model = SimCLR(recipe.model, recipe.head).to(best.device).train()
        optimizer = build_optimizer(model, recipe.optimizer, 0.01)
        augmenter = Trainer(
            recipe, plan, Platform(best.device, "fp32", False, False), store, Backends("torch", "torch")
        )
        return lambda: plain_step(
            model, optimizer, augmenter.views(augmenter.sample_ids(0), 0, size), recipe.loss.temperature
        )

    contenders = {
        "ours": ours(best),
        "ours, fp32": ours(Platform(best.device, "fp32", best.channels_last, False)),
        "ours, contiguous": ours(Platform(best.device, best.precision, False, False)),
        "plain eager fp32 NCHW": plain(),
    }
    timings = interleave(contenders, repeats, warmup=2, synchronize=best.synchronize)
    more = {"views": views, "size": size, "precision": best.precision}
    return [rate_row("training step", name, views, t, "views/s", **more) for name, t in timings.items()]
