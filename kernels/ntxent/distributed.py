"""NT-Xent over the ranks of torch.distributed: every rank's rows are told from the rows of all ranks.

Each rank gathers all ẑ, sums its own rows against all columns, and gathers all ℓ: two collectives, both in forward.
With these it knows the whole gradient of its own rows, the terms of the other ranks' losses included, so that backward
communicates nothing. The formulas are those of `reference`.

Rows lie rank by rank, `[W, V·B]`, where B is the number of samples of one rank, the same on all. Two rows are views of
one sample if they are of the same rank and the same sample there.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from . import dispatch, reference, triton


@torch.compiler.disable
def nt_xent(
    z: Tensor,
    views: int = 2,
    temperature: float = 0.5,
    group: dist.ProcessGroup | None = None,
    backend: str = "auto",
) -> Tensor:
    """The loss of the batch of all ranks. Without torch.distributed, or with one rank, that of `dispatch.nt_xent`.

    Args:
        z: this rank's projections `[V·B, D]`, row v·B + i is view v of its sample i. The same shape on every rank.
        views: V ≥ 2.
        temperature: τ > 0.
        group: the ranks that share a batch; None: all of them.
        backend: as in `dispatch.nt_xent`.

    Returns:
        Scalar, float32 (float64 for float64 input): the mean over the rows of all ranks, the same on every rank. Its
        gradient is that of the mean times the number of ranks, because DistributedDataParallel divides by that: the
        parameters then get the gradient of one process with the whole batch.

    Raises:
        ValueError: as `dispatch.nt_xent`.
        RuntimeError: a second derivative, which would need what other ranks know.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
        return dispatch.nt_xent(z, views, temperature, backend)
    dispatch.check_projections(z, views, temperature)
    name, _ = dispatch.pick_nt_xent(backend, z.device, z.shape[1], temperature)
    fused = name == "triton" and z.dtype != torch.float64
    loss: Tensor = _DistributedNTXent.apply(z.contiguous(), views, float(temperature), group, fused)
    return loss


class _DistributedNTXent(torch.autograd.Function):
    """Keeps z of this rank, ẑ of all ranks, and a number for each row of all ranks."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, views: int, temperature: float, group: dist.ProcessGroup | None, fused: bool
    ) -> Tensor:
        rows = len(z)
        first = dist.get_rank(group) * rows
        with torch.autocast(z.device.type, enabled=False), triton.on_device(z.device):
            if fused:
                unit, positive = triton.prepare(z, views)
                everyone = _gather(unit, group)
                part = triton.row_sums(everyone, first, rows, temperature)
                sums, loss = triton.finish(part, positive, views, temperature)
            else:
                unit, _ = reference.normalise(z)
                everyone = _gather(unit, group)
                sums, loss = _sums(unit, everyone, first, views, temperature)
            gathered = _gather(torch.cat((sums, loss[None])), group).view(-1, rows + 1)
        ctx.save_for_backward(z, everyone, gathered[:, :rows].reshape(-1))
        ctx.first, ctx.views, ctx.temperature, ctx.fused = first, views, temperature, fused
        return gathered[:, rows].mean()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the distributed NT-Xent has no second derivative (create_graph=True): it would need the other ranks' "
                "graphs; compute the loss in one process, or without create_graph"
            )
        z, everyone, sums = ctx.saved_tensors
        with torch.autocast(z.device.type, enabled=False), triton.on_device(z.device):
            gradients = triton.gradients if ctx.fused else _gradients
            grad = gradients(grad_output, z, everyone, sums, ctx.first, ctx.views, ctx.temperature)
        return grad, None, None, None, None


def _gather(mine: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Every rank's tensor, one after the other along the first dimension."""
    ranks = dist.get_world_size(group)
    all_of_them = mine.new_empty(ranks * len(mine), *mine.shape[1:])
    # Not all_gather_into_tensor: torch 2.13 warns of it on every rank, and torch 2.11 does not know its new
    # name. It costs NCCL one more copy of what was gathered.
    dist.all_gather(list(all_of_them.chunk(ranks)), mine.contiguous(), group=group)
    return all_of_them


def _strips(rows: int, everyone: Tensor) -> list[slice]:
    """The strips of the first `rows` rows."""
    return [slice(s.start, min(s.stop, rows)) for s in reference.strips(everyone) if s.start < rows]


def _sums(unit: Tensor, everyone: Tensor, first: int, views: int, temperature: float) -> tuple[Tensor, Tensor]:
    """log Σ_{j≠i} exp((s_ij − 1)/τ) `[rows]` of this rank's rows, and the mean of their losses."""
    rows = len(unit)
    log_sum, positive = unit.new_empty(rows), unit.new_empty(rows)
    for strip in _strips(rows, everyone):
        logits = (unit[strip] @ everyone.T).sub_(1).div_(temperature)
        positive[strip] = logits.gather(1, first + reference.positives(strip, rows, views, unit.device)).mean(1)
        logits.diagonal(first + strip.start).fill_(-torch.inf)
        log_sum[strip] = torch.logsumexp(logits, 1)
    return log_sum, (log_sum - positive).mean()


def _gradients(
    grad_output: Tensor, z: Tensor, everyone: Tensor, log_sum: Tensor, first: int, views: int, temperature: float
) -> Tensor:
    """dz of this rank's rows `[rows, D]`, for the mean over its own rows: the mean over all of them times the ranks."""
    rows = len(z)
    unit, norm = reference.normalise(z)
    grad = torch.empty_like(unit)
    for strip in _strips(rows, everyone):
        logits = (unit[strip] @ everyone.T).sub_(1).div_(temperature)
        mine = log_sum[first + strip.start : first + strip.stop, None]
        weights = torch.exp(logits - mine).add_(torch.exp(logits.sub_(log_sum)))
        weights.diagonal(first + strip.start).zero_()
        others = first + reference.positives(strip, rows, views, unit.device)
        weights.scatter_add_(1, others, weights.new_full((), -2 / (views - 1)).expand(others.shape))
        torch.mm(weights, everyone, out=grad[strip])
    grad.mul_(grad_output / (rows * temperature))
    along = (unit * grad).sum(1, keepdim=True) * (norm > reference.EPSILON)
    return (grad - unit * along).div_(norm).to(z.dtype)
