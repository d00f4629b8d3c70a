"""`nt_xent`: check the arguments, pick a backend, run it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from . import reference

# Same signature for all: (z, views, temperature) -> loss.
BACKENDS: dict[str, Callable[[Tensor, int, float], Tensor]] = {"torch": reference.nt_xent}


def pick_nt_xent(backend: str = "auto", device: torch.device | str = "cpu") -> tuple[str, str]:
    """The backend that `nt_xent` would use, and why: for a run to say and to record.

    Returns:
        (name, reason).

    Raises:
        ValueError: a backend that this build does not have.
    """
    if backend == "auto":
        return "torch", f"chunked PyTorch, the only NT-Xent of this build on {torch.device(device).type}"
    if backend not in BACKENDS:
        raise ValueError(
            f"NT-Xent backend {backend!r} is not in this build; it has {', '.join(BACKENDS)} (or auto, to let it pick)"
        )
    return backend, "asked for by name"


def nt_xent(z: Tensor, views: int = 2, temperature: float = 0.5, backend: str = "auto") -> Tensor:
    """NT-Xent, the normalised temperature-scaled cross entropy, of two or more views of each sample.

    Vectors are normalised inside. Each row is told from all other rows; its positives are the other views of the same
    sample. The loss of vectors that say nothing is about ln(V·B − 1). See `reference` for the formula and its source.

    Args:
        z: projections `[V·B, D]`, row v·B + i is view v of sample i; any float dtype, contiguous or not.
        views: V ≥ 2.
        temperature: τ > 0.
        backend: "auto" or a name; see `pick_nt_xent`.

    Returns:
        Scalar, float32 (float64 for float64 input): the mean over rows. The gradient has z's dtype, and is itself
        differentiable. NaN or infinite entries give NaN. B = 1 is defined: nothing to tell apart for V = 2, loss 0.

    Raises:
        ValueError: shape, views or temperature out of range; a backend that is not there.

    Example:
        >>> z = torch.randn(2 * 64, 128, requires_grad=True)
        >>> nt_xent(z, views=2, temperature=0.5).backward()
    """
    check_projections(z, views, temperature)
    name, _ = pick_nt_xent(backend, z.device)
    return BACKENDS[name](z, views, float(temperature))


def check_projections(z: Tensor, views: int, temperature: float) -> None:
    """Raise ValueError unless z is float `[V·B, D]` with V ≥ 2 and the temperature is positive and finite."""
    if z.ndim != 2 or not z.is_floating_point():
        raise ValueError(f"z must be floating point [V·B, D], not {z.dtype} {list(z.shape)}")
    if isinstance(views, bool) or not isinstance(views, int) or views < 2:
        raise ValueError(f"views must be at least 2 (contrast needs a positive), not {views!r}")
    if len(z) == 0 or len(z) % views or z.shape[1] == 0:
        raise ValueError(f"z is {list(z.shape)}: rows must be a positive multiple of views={views}, D at least 1")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be positive and finite, not {temperature!r}")
