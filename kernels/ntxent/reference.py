"""The PyTorch backend of NT-Xent: exact, on any device, in memory that grows with M·D instead of M².

M = V·B rows, row v·B + i is view v of sample i, ẑ = z / max(‖z‖, ε), s_ij = ẑ_i·ẑ_j.

    loss     = mean_i [ log Σ_{j≠i} exp(s_ij/τ) − mean_{p ∈ pos(i)} s_ip/τ ],   pos(i): the other views of i's sample
    ∂loss/∂ẑ_i = 1/(Mτ) Σ_j [ P_ij + P_ji − 2·1(j ∈ pos(i))/(V−1) ] ẑ_j,        P_ij = exp(s_ij/τ) / Σ_{k≠i} exp(s_ik/τ)

For V = 2 this is NT-Xent (Chen et al., "A simple framework for contrastive learning", 2020, eq. 1); for V > 2 it is the
"outside" form of supervised contrastive learning (Khosla et al., 2020, eq. 2) with one class per sample. Because the
vectors are normalised, no logit exceeds 1/τ: with that as the maximum, sums over columns need no running maximum.

The M × M matrix exists a few rows at a time, once in forward and once more in backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

EPSILON = 1e-12  # as torch.nn.functional.normalize
# Bytes of one strip of the M × M matrix, of which a few are alive at once. On the CPU they should stay in its caches;
# elsewhere a strip must be worth the launches it takes.
STRIP_BYTES = {"cpu": 8 * 2**20}
STRIP_BYTES_ELSEWHERE = 64 * 2**20
# exp((s − 1)/τ) reaches down to exp(−2/τ), which float32 holds while 2/τ < 87. Below this τ each row has a maximum of
# its own.
FIXED_MAXIMUM_FROM = 0.03


def why_not(device: torch.device, dimension: int, temperature: float) -> str:
    """Nothing keeps it from serving any device, width or temperature."""
    return ""


@torch.compiler.disable
def nt_xent(z: Tensor, views: int, temperature: float) -> Tensor:
    """The loss. Arguments as `dispatch.nt_xent`, which checks them. A graph break under torch.compile."""
    return _NTXent.apply(z, views, temperature)


def normalise(z: Tensor) -> tuple[Tensor, Tensor]:
    """ẑ and max(‖z‖, ε) `[M, 1]`, in float32 at least; finite rows of any length, where ‖z‖ itself may overflow."""
    z = z if z.dtype == torch.float64 else z.float()
    # Dividing by the largest entry first keeps the squares finite. Rows within [−1, 1] are left exactly as they are.
    scale = z.detach().abs().amax(1, keepdim=True).clamp_min(1)
    scaled = z / scale
    norm = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    floor = EPSILON / scale
    return scaled / torch.maximum(norm, floor), scale * torch.maximum(norm, floor)


def strips(unit: Tensor) -> list[slice]:
    """Slices of rows of the M × M matrix of `unit` `[M, D]`, each of a few MiB."""
    budget = STRIP_BYTES.get(unit.device.type, STRIP_BYTES_ELSEWHERE)
    step = max(1, budget // (len(unit) * unit.element_size()))
    return [slice(first, min(first + step, len(unit))) for first in range(0, len(unit), step)]


def positives(rows: slice, total: int, views: int, device: torch.device) -> Tensor:
    """int64 `[rows, V−1]`: the columns that hold the other views of each row's sample."""
    row = torch.arange(rows.start, rows.stop, device=device)[:, None]
    return (row + torch.arange(1, views, device=device) * (total // views)) % total


class _NTXent(torch.autograd.Function):
    """Keeps z and a number per row; everything else is computed again in backward."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, views: int, temperature: float) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            unit, _ = normalise(z)
            loss, log_sum = _forward(unit, views, temperature)
        ctx.save_for_backward(z, log_sum)
        ctx.views, ctx.temperature = views, temperature
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        z, log_sum = ctx.saved_tensors
        with torch.autocast(z.device.type, enabled=False):
            if torch.is_grad_enabled():
                # create_graph=True: the gradient must itself be differentiable, so it is taken from the plain formula.
                loss = plain(z, ctx.views, ctx.temperature)
                (grad,) = torch.autograd.grad(loss, z, grad_output, create_graph=True)
                return grad, None, None
            unit, norm = normalise(z)
            grad = _backward(unit, log_sum, ctx.views, ctx.temperature).mul_(grad_output)
            # Through the normalisation: the part along ẑ drops out, but below ε the norm is a constant.
            along = (unit * grad).sum(1, keepdim=True) * (norm > EPSILON)
            return (grad - unit * along).div_(norm).to(z.dtype), None, None


def _forward(unit: Tensor, views: int, temperature: float) -> tuple[Tensor, Tensor]:
    """The loss, and log Σ_{j≠i} exp((s_ij − 1)/τ) `[M]`."""
    total = len(unit)
    log_sum, positive = unit.new_empty(total), unit.new_empty(total)
    for rows in strips(unit):
        logits = _logits(unit, rows, temperature)
        positive[rows] = logits.gather(1, positives(rows, total, views, unit.device)).mean(1)
        logits.diagonal(rows.start).fill_(-torch.inf)
        if temperature >= FIXED_MAXIMUM_FROM:
            log_sum[rows] = logits.exp_().sum(1).log_()
        else:
            log_sum[rows] = torch.logsumexp(logits, 1)
    return (log_sum - positive).mean(), log_sum


def _backward(unit: Tensor, log_sum: Tensor, views: int, temperature: float) -> Tensor:
    """∂loss/∂ẑ `[M, D]`."""
    total = len(unit)
    grad = torch.empty_like(unit)
    inverse = torch.exp(-log_sum)
    for rows in strips(unit):
        weights = _logits(unit, rows, temperature)
        if temperature >= FIXED_MAXIMUM_FROM:
            weights.exp_().mul_(inverse[rows, None] + inverse)  # one exponential serves P_ij and P_ji
        else:
            weights = torch.exp(weights - log_sum[rows, None]).add_(torch.exp(weights - log_sum))
        weights.diagonal(rows.start).zero_()
        # Late in training P_ip + P_pi approaches 2/(V−1): their difference is taken before anything is summed up.
        others = positives(rows, total, views, unit.device)
        weights.scatter_add_(1, others, weights.new_full((), -2 / (views - 1)).expand(others.shape))
        torch.mm(weights, unit, out=grad[rows])
    return grad.div_(total * temperature)


def _logits(unit: Tensor, rows: slice, temperature: float) -> Tensor:
    """(s_ij − 1)/τ for some rows and all columns."""
    return (unit[rows] @ unit.T).sub_(1).div_(temperature)


def plain(z: Tensor, views: int, temperature: float) -> Tensor:
    """The same loss from differentiable operations only. Holds the M × M matrix: for second derivatives."""
    unit, _ = normalise(z)
    total = len(unit)
    logits = unit @ unit.T / temperature
    positive = logits.gather(1, positives(slice(0, total), total, views, z.device)).mean(1)
    itself = torch.eye(total, dtype=torch.bool, device=z.device)
    return (torch.logsumexp(logits.masked_fill(itself, -torch.inf), 1) - positive).mean()
