"""`nt_xent`: check the arguments, pick a backend, compute the loss of one process or of all ranks.

Over ranks, each rank's rows are told from the rows of all ranks. A rank gathers all ẑ, sums its own rows against all
columns, and gathers all sums: two collectives, both in forward. With these it knows the whole gradient of its own rows,
the terms of the other ranks' losses included, so backward does not communicate. One process is the case where its own
rows are all rows.

Rows lie rank by rank, `[W, V·B]`, where B is the number of samples of one rank, the same on all. Two rows are views of
one sample if they are of the same rank and the same sample there.
"""

from __future__ import annotations

import math
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..dispatch import pick
from . import chunked, fused

# Backend → module. Beside `why_not`, each has `forward(z, views, temperature, first, all_gather)` and
# `backward(grad_output, z, everyone, sums, first, views, temperature)`. Neither imports what may be missing.
BACKENDS: dict[str, ModuleType] = {"triton": fused, "torch": chunked}
PREFERENCE = {"cuda": ("triton", "torch")}


def pick_nt_xent(
    backend: str = "auto", device: torch.device | str = "cpu", dimension: int = 128, temperature: float = 0.5
) -> tuple[str, str]:
    """The backend that `nt_xent` would use for projections of this width, and why.

    Returns:
        (name, reason).

    Raises:
        ValueError: there is no backend of this name, or it cannot serve this; the message says why.
    """
    return pick("NT-Xent", BACKENDS, PREFERENCE, backend, device, dimension, temperature)


def nt_xent(
    z: Tensor,
    views: int = 2,
    temperature: float = 0.5,
    backend: str = "auto",
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """NT-Xent, the normalised temperature-scaled cross entropy, of two or more views of each sample.

    Vectors are normalised inside. Each row is told from all other rows; its positives are the other views of the same
    sample. The loss of random vectors is about ln(V·B − 1). See `chunked` for the formula and its source.

    Args:
        z: projections `[V·B, D]`, row v·B + i is view v of sample i; any float dtype, contiguous or not.
        views: V ≥ 2.
        temperature: τ > 0.
        backend: "auto" or a name; see `pick_nt_xent`.
        group: of torch.distributed, such as `dist.group.WORLD`: negatives then come from all its ranks, and z has the
            same shape on each. None, or a group of one rank: this process alone.

    Returns:
        Scalar, float32 (float64 for float64 input): the mean over rows, over ranks the same on every rank. The gradient
        has z's dtype and is itself differentiable. NaN or infinite entries give NaN. B = 1 is defined: with V = 2 there
        is nothing to tell apart, and the loss is 0.

        Over ranks the gradient is that of the mean times the number of ranks, because DistributedDataParallel divides
        by that: the parameters then get the gradient of one process with the whole batch.

    Raises:
        ValueError: shape, views or temperature out of range; a backend that cannot serve this.
        RuntimeError: a second derivative over ranks, which would need the other ranks' graphs.

    Example:
        >>> z = torch.randn(2 * 64, 128, requires_grad=True)
        >>> nt_xent(z, views=2, temperature=0.5).backward()
    """
    check_projections(z, views, temperature)
    name, _ = pick_nt_xent(backend, z.device, z.shape[1], temperature)
    if z.dtype == torch.float64:
        name = "torch"  # tensor cores have no float64
    if group is not None and not (dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1):
        group = None
    traced = name == "triton" and group is None  # two operators that a compiler knows; all else is a graph break
    loss: Tensor = (_NTXent.apply if traced else _untraced)(z, views, float(temperature), name, group)
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


class _NTXent(torch.autograd.Function):
    """Keeps z of this process, what the backend wants of all ẑ, and a number for each row of all ranks."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, views: int, temperature: float, name: str, group: dist.ProcessGroup | None
    ) -> Tensor:
        rows, first, all_gather = len(z), 0, None
        if group is not None:
            first, all_gather = dist.get_rank(group) * rows, partial(_all_gather, group)
        everyone, sums, loss = BACKENDS[name].forward(z, views, temperature, first, all_gather)
        if all_gather is not None:
            gathered = all_gather(torch.cat((sums, loss[None]))).view(-1, rows + 1)
            sums, loss = gathered[:, :rows].reshape(-1), gathered[:, rows].mean()
        ctx.save_for_backward(z, everyone, sums)
        ctx.first, ctx.views, ctx.temperature, ctx.name, ctx.alone = first, views, temperature, name, group is None
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None, None]:
        z, everyone, sums = ctx.saved_tensors
        # What a compiler traces is differentiated once, whether or not it traces with gradients enabled.
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            grad = BACKENDS[ctx.name].backward(grad_output, z, everyone, sums, ctx.first, ctx.views, ctx.temperature)
        elif ctx.alone:  # create_graph=True: the gradient must itself be differentiable
            (grad,) = torch.autograd.grad(
                chunked.plain(z, ctx.views, ctx.temperature), z, grad_output, create_graph=True
            )
        else:
            raise RuntimeError(
                "the distributed NT-Xent has no second derivative (create_graph=True): it would need the other ranks' "
                "graphs; compute the loss in one process, or without create_graph"
            )
        return grad, None, None, None, None


@torch.compiler.disable
def _untraced(*arguments: Any) -> Tensor:
    loss: Tensor = _NTXent.apply(*arguments)
    return loss


def _all_gather(group: dist.ProcessGroup, mine: Tensor) -> Tensor:
    """Every rank's tensor, one after the other along the first dimension."""
    ranks = dist.get_world_size(group)
    gathered = mine.new_empty(ranks * len(mine), *mine.shape[1:])
    # Not all_gather_into_tensor: torch 2.13 warns of it on every rank, and torch 2.11 does not know its new
    # name. It costs NCCL one more copy of what was gathered.
    dist.all_gather(list(gathered.chunk(ranks)), mine.contiguous(), group=group)
    return gathered
