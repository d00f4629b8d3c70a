"""The model that most tests of the export open: two features, known by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from reference.mean_colour import METADATA, mean_colour_model

MakeTiny = Callable[..., Path]

WEIGHT = np.array([[1.0, -2.0], [0.5, 3.0], [-1.0, 0.25]], dtype=np.float32)  # [3 channels, 2 features]

TINY = METADATA


def tiny_model(size: int = 4) -> onnx.ModelProto:
    """Features = mean over the pixels of a uint8 `[batch, size, size, 3]`, times WEIGHT."""
    return mean_colour_model(size, WEIGHT)


def tiny_features(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What `tiny_model` gives, in float64."""
    return images.astype(np.float64).mean((1, 2)) @ WEIGHT.astype(np.float64)
