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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import forward_ad

from ..dispatch import pick
from . import chunked, fused
from .operators import one_by_one

# Backend → module. Beside `why_not`, each has `forward(z, views, temperature, first, all_gather)` and
# `backward(grad_output, z, everyone, sums, own, first, views, temperature)`. Neither imports what may be missing.
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
        is nothing to tell apart, and loss and gradient are exactly 0. torch.func (grad, vmap, jvp, jacrev …),
        forward-mode derivatives and torch.compile (without graph breaks) work in one process.

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
    if group is not None and not (dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1):
        group = None
    if z.dtype == torch.float64 or (len(z) == views and group is None):
        name = "torch"  # tensor cores have no float64; and of one sample alone the loss is exact there
    loss: Tensor
    if group is None and torch.compiler.is_compiling():
        if torch._C._are_functorch_transforms_active():  # which a compiler traces through torch's own operations only
            return chunked.plain(z, views, float(temperature))
        operator = "nt_xent_forward" if name == "triton" else "nt_xent_chunked_forward"
        loss = getattr(torch.ops.simclr_engine, operator)(z, views, float(temperature))[0]
    else:  # collectives are a graph break
        loss = (_untraced if group is not None else _NTXent.apply)(z, views, float(temperature), name, group)[0]
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


@dataclass(frozen=True)
class _Settings:
    """What a gradient needs beside tensors. first: where the rows begin among those of all ranks; None for a process
    alone."""

    views: int
    temperature: float
    name: str
    first: int | None


class _NTXent(torch.autograd.Function):
    """Loss, and what backward wants of all ẑ, of each row of all ranks, and of this process's rows.

    Keeps these and z. In the form that torch.func, forward-mode derivatives and vmap work with.
    """

    @staticmethod
    def forward(
        z: Tensor, views: int, temperature: float, name: str, group: dist.ProcessGroup | None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        rows, first, all_gather = len(z), 0, None
        if group is not None:
            first, all_gather = dist.get_rank(group) * rows, partial(_all_gather, group)
        everyone, sums, own, loss = BACKENDS[name].forward(z, views, temperature, first, all_gather)
        if all_gather is not None:
            gathered = all_gather(torch.cat((sums, loss[None]))).view(-1, rows + 1)
            sums, loss = gathered[:, :rows].reshape(-1), gathered[:, rows].mean()
        return loss, everyone, sums, own

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        z, views, temperature, name, ctx.group = inputs
        _, *kept = output
        first = None if ctx.group is None else dist.get_rank(ctx.group) * len(z)
        ctx.settings = _Settings(views, temperature, name, first)
        ctx.mark_non_differentiable(*(t for t in kept if t is not None))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(z, *kept)
        ctx.save_for_forward(z, *kept)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return (None,) * 5
        if ctx.group is not None and torch.is_grad_enabled():
            raise _no_second_derivative()
        return _Gradient.apply(grad_output, *ctx.saved_tensors, ctx.settings), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, z_tangent: Tensor | None, *_: None) -> tuple[Tensor | None, None, None, None]:
        if z_tangent is None:
            return None, None, None, None
        with _nested_forward_mode(ctx.saved_tensors) as (z, *kept):
            rows = len(z)  # the sum over the rows and not their mean: its gradient is large enough for float16
            gradient = _Gradient.apply(kept[1].new_full((), rows), z, *kept, ctx.settings)
            tangent = (gradient.to(kept[1].dtype) * z_tangent).sum() / rows
        if ctx.group is not None:
            tangent = _all_gather(ctx.group, tangent[None]).mean()
        return tangent, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        return one_by_one(_NTXent.apply, info.batch_size, in_dims, inputs)


class _Gradient(torch.autograd.Function):
    """The gradient `[rows, D]`, itself differentiable. Its derivatives hold the M × M matrix."""

    @staticmethod
    def forward(
        grad_output: Tensor,
        z: Tensor,
        everyone: Tensor | None,
        sums: Tensor,
        own: Tensor | None,
        how: _Settings,
    ) -> Tensor:
        places = how.first or 0, how.views, how.temperature
        grad: Tensor = BACKENDS[how.name].backward(grad_output, z, everyone, sums, own, *places)
        return grad

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.settings = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        grad_output, z, *kept = ctx.saved_tensors
        if ctx.settings.first is not None:
            raise _no_second_derivative()
        of_one = _Gradient.apply(torch.ones_like(grad_output), z, *kept, ctx.settings)
        along = (of_one * cotangent).sum().to(grad_output.dtype)
        return along, (grad_output * _hessian_product(z, cotangent, ctx.settings)).to(z.dtype), *(None,) * 4

    @staticmethod
    def jvp(ctx: Any, grad_tangent: Tensor | None, z_tangent: Tensor | None, *_: None) -> Tensor:
        if ctx.settings.first is not None:
            raise _no_second_derivative()
        with _nested_forward_mode(ctx.saved_tensors) as (grad_output, z, *kept):
            result = torch.zeros_like(z)
            if grad_tangent is not None:
                result = result + _Gradient.apply(grad_tangent, z, *kept, ctx.settings)
            if z_tangent is not None:
                result = result + (grad_output * _hessian_product(z, z_tangent, ctx.settings)).to(z.dtype)
        return result

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        return one_by_one(_Gradient.apply, info.batch_size, in_dims, inputs)


def _hessian_product(z: Tensor, vector: Tensor, how: _Settings) -> Tensor:
    """The matrix of the loss's second derivatives times `vector`, both `[M, D]`; differentiable."""

    def along(x: Tensor) -> Tensor:
        slope: Tensor = torch.func.grad(lambda y: chunked.plain(y, how.views, how.temperature))(x)
        return (slope * vector).sum()

    product: Tensor = torch.func.grad(along)(z)
    return product


@contextmanager
def _nested_forward_mode(saved: tuple[Tensor | None, ...]) -> Iterator[list[Any]]:
    """What a `jvp` saved, without its own tangents; and a context in which outer forward modes are followed.

    torch switches forward mode off inside a `jvp`, so that a second one around it would silently see constants.
    """
    primals = [t if t is None else forward_ad.unpack_dual(t).primal for t in saved]
    with forward_ad._set_fwd_grad_enabled(True):
        yield primals


def _no_second_derivative() -> RuntimeError:
    return RuntimeError(
        "the distributed NT-Xent has no second derivative (create_graph=True), and torch.func always asks for one: it "
        "would need the other ranks' graphs; compute the loss in one process, or without create_graph"
    )


@torch.compiler.disable
def _untraced(*arguments: Any) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = _NTXent.apply(*arguments)
    return found


def _all_gather(group: dist.ProcessGroup, mine: Tensor) -> Tensor:
    """Every rank's tensor, one after the other along the first dimension."""
    ranks = dist.get_world_size(group)
    gathered = mine.new_empty(ranks * len(mine), *mine.shape[1:])
    # Not all_gather_into_tensor: torch 2.13 warns of it on every rank, and torch 2.11 does not know its new
    # name. It costs NCCL one more copy of what was gathered.
    dist.all_gather(list(gathered.chunk(ranks)), mine.contiguous(), group=group)
    return gathered
