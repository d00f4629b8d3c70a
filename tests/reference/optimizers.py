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
        if form == "paper" and not g.any():
            ratio = 0.0
    v = momentum * v + lr * ratio * u
    return w - v, v


def orthogonal_factor(matrix: Array, steps: int) -> Array:
    """U·p(S/‖S‖)·Vᵀ by the singular value decomposition; p is σ ← 3.4445σ − 4.7750σ³ + 2.0315σ⁵, `steps` times."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u * newton_schulz(s / np.sqrt((s**2).sum()), steps)) @ vt


def newton_schulz(s: Array, steps: int) -> Array:
    """What `steps` steps make of singular values."""
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return s


def muon_step(
    w: Array, g: Array, v: Array, *, lr: float, momentum: float, decay: float, steps: int, orthogonal: bool
) -> tuple[Array, Array]:
    """One Muon step of one parameter, SGD with Nesterov's momentum if not `orthogonal`: new weight and buffer."""
    v = momentum * v + g
    u = g + momentum * v
    if orthogonal:
        matrix = u.reshape(len(u), -1)
        rows, columns = matrix.shape
        u = (max(1.0, rows / columns) ** 0.5 * orthogonal_factor(matrix, steps)).reshape(u.shape)
    return (1 - lr * decay) * w - lr * u, v
