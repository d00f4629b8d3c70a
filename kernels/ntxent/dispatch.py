"""`nt_xent`: check the arguments, pick a backend, run it."""

from __future__ import annotations

import math
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import reference, triton

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Backend → module. Each has `why_not(device, dimension, temperature)`, which says what keeps it from
# serving that ("" if nothing does), and `nt_xent(z, views, temperature)`. None of them imports what may be missing.
BACKENDS: dict[str, ModuleType] = {"triton": triton, "torch": reference}
# What `auto` tries, in this order, by kind of device; the last one serves everywhere.
PREFERENCE = {"cuda": ("triton", "torch")}


def pick_nt_xent(
    backend: str = "auto", device: torch.device | str = "cpu", dimension: int = 128, temperature: float = 0.5
) -> tuple[str, str]:
    """The backend that `nt_xent` would use for projections of this width, and why: for a run to say and to record.

    Returns:
        (name, reason).

    Raises:
        ValueError: no backend of this name, or one that cannot serve this; the message says what keeps it.
    """
    device = torch.device(device)
    if backend != "auto":
        if backend not in BACKENDS:
            raise ValueError(f"there is no NT-Xent backend {backend!r}; there are auto, {', '.join(BACKENDS)}")
        if reason := BACKENDS[backend].why_not(device, dimension, temperature):
            raise ValueError(f"the NT-Xent backend {backend!r} cannot serve {device.type} here: {reason}")
        return backend, "asked for by name"
    missing: list[tuple[str, str]] = []
    for name in PREFERENCE.get(device.type, ("torch",)):
        reason = BACKENDS[name].why_not(device, dimension, temperature)
        if not reason:
            return name, f"the fastest for {device.type}" + "".join(f"; no {other}: {why}" for other, why in missing)
        missing.append((name, reason))
    raise AssertionError("the PyTorch backend serves every device")


def nt_xent(
    z: Tensor,
    views: int = 2,
    temperature: float = 0.5,
    backend: str = "auto",
    group: ProcessGroup | None = None,
) -> Tensor:
    """NT-Xent, the normalised temperature-scaled cross entropy, of two or more views of each sample.

    Vectors are normalised inside. Each row is told from all other rows; its positives are the other views of the same
    sample. The loss of vectors that say nothing is about ln(V·B − 1). See `reference` for the formula and its source.

    Args:
        z: projections `[V·B, D]`, row v·B + i is view v of sample i; any float dtype, contiguous or not.
        views: V ≥ 2.
        temperature: τ > 0.
        backend: "auto" or a name; see `pick_nt_xent`.
        group: of torch.distributed, such as `dist.group.WORLD`: negatives then come from all its ranks, and the
            gradient is what DistributedDataParallel averages; see `distributed`. None: this process alone.

    Returns:
        Scalar, float32 (float64 for float64 input): the mean over rows. The gradient has z's dtype, and is itself
        differentiable. NaN or infinite entries give NaN. B = 1 is defined: nothing to tell apart for V = 2, loss 0.

    Raises:
        ValueError: shape, views or temperature out of range; a backend that is not there.

    Example:
        >>> z = torch.randn(2 * 64, 128, requires_grad=True)
        >>> nt_xent(z, views=2, temperature=0.5).backward()
    """
    if group is not None:
        from . import distributed

        return distributed.nt_xent(z, views, temperature, group, backend)
    check_projections(z, views, temperature)
    name, _ = pick_nt_xent(backend, z.device, z.shape[1], temperature)
    loss: Tensor = BACKENDS[name].nt_xent(z, views, float(temperature))
    return loss


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
