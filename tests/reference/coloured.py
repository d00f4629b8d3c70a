"""Noisy images whose class is their colour: what any encoder can tell apart, and any probe should."""

from __future__ import annotations

import numpy as np

from simclr_engine.data.store import ImageStore

NAMES = ("red", "green", "blue")
_COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])


def coloured(size: int, seed: int, split: str, side: int = 8) -> ImageStore:
    """`size` images of `side` pixels, the three classes in turn."""
    rng = np.random.default_rng(seed)
    labels = np.arange(size) % 3
    images = _COLOURS[labels][:, None, None, :] + rng.normal(0, 40, (size, side, side, 3))
    return ImageStore.from_arrays(images.clip(0, 255).astype(np.uint8), labels, NAMES, name="colours", split=split)
