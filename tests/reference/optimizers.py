"""Float64 truths of the optimizers and schedules, one parameter at a time, as the papers write them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def lars_step(
    w: Array, g: Array, v: Array, *, lr: float, momentum: float, decay: float, eta: float, form: str, adapt: bool
) -> tuple[Array, Array]:
    """One LARS step of one parameter: new weight and momentum buffer."""
    u = g + decay * w
    ratio = 1.0
    if adapt:
        w_norm = np.sqrt((w**2).sum())
        below = np.sqrt((u**2).sum()) if form == "google" else np.sqrt((g**2).sum()) + decay * w_norm
        if w_norm > 0 and below > 0:
            ratio = eta * w_norm / below
    v = momentum * v + lr * ratio * u
    return w - v, v
