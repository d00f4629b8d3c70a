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

from collections.abc import Callable

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


def normalise(z: Tensor) -> tuple[Tensor, Tensor]:
    """ẑ and max(‖z‖, ε) `[M, 1]`, in float32 at least; finite rows of any length, where ‖z‖ itself may overflow."""
    z = z if z.dtype == torch.float64 else z.float()
    # Dividing by the largest entry first keeps the squares finite. Rows within [−1, 1] are left exactly as they are.
    scale = z.detach().abs().amax(1, keepdim=True).clamp_min(1)
    scaled = z / scale
    norm = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    floor = EPSILON / scale
    return scaled / torch.maximum(norm, floor), scale * torch.maximum(norm, floor)


def strips(columns: Tensor, rows: int) -> list[slice]:
    """Slices of the `rows` rows of a matrix with a column for each row of `columns`, each slice of a few MiB."""
    budget = STRIP_BYTES.get(columns.device.type, STRIP_BYTES_ELSEWHERE)
    step = max(1, budget // (len(columns) * columns.element_size()))
    return [slice(first, min(first + step, rows)) for first in range(0, rows, step)]


def positives(rows: slice, total: int, views: int, device: torch.device) -> Tensor:
    """int64 `[rows, V−1]`: the columns that hold the other views of each row's sample."""
    row = torch.arange(rows.start, rows.stop, device=device)[:, None]
    return (row + torch.arange(1, views, device=device) * (total // views)) % total


def forward(
    z: Tensor,
    views: int,
    temperature: float,
    first: int = 0,
    all_gather: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """What `loss` needs of the rows z `[rows, D]`.

    Args:
        z: this process's projections.
        views: V.
        temperature: τ.
        first: where these rows begin among those of all ranks.
        all_gather: collects a tensor of each rank, one after the other; None for a process alone.

    Returns:
        ẑ of all ranks (None for a process alone: backward computes it again), log Σ_{j≠i} exp((s_ij − 1)/τ) `[rows]`,
        and the mean loss of these rows.
    """
    with torch.autocast(z.device.type, enabled=False):
        unit, _ = normalise(z)
        everyone = None if all_gather is None else all_gather(unit)
        columns = unit if everyone is None else everyone
        rows = len(unit)
        log_sum, positive = unit.new_empty(rows), unit.new_empty(rows)
        for strip in strips(columns, rows):
            logits = _logits(unit[strip], columns, temperature)
            positive[strip] = logits.gather(1, first + positives(strip, rows, views, z.device)).mean(1)
            logits.diagonal(first + strip.start).fill_(-torch.inf)
            if _has_fixed_maximum(temperature, everyone):
                log_sum[strip] = logits.exp_().sum(1).log_()
            else:
                log_sum[strip] = torch.logsumexp(logits, 1)
        return everyone, log_sum, (log_sum - positive).mean()


def backward(
    grad_output: Tensor,
    z: Tensor,
    everyone: Tensor | None,
    log_sum: Tensor,
    first: int,
    views: int,
    temperature: float,
) -> Tensor:
    """dz `[rows, D]` of the mean loss over these rows, from what `forward` returned, with log_sum of all ranks."""
    with torch.autocast(z.device.type, enabled=False):
        unit, norm = normalise(z)
        columns = unit if everyone is None else everyone
        rows = len(unit)
        grad = torch.empty_like(unit)
        inverse = torch.exp(-log_sum)
        for strip in strips(columns, rows):
            weights = _logits(unit[strip], columns, temperature)
            own = slice(first + strip.start, first + strip.stop)
            if _has_fixed_maximum(temperature, everyone):
                weights.exp_().mul_(inverse[own, None] + inverse)  # one exponential serves P_ij and P_ji
            else:
                weights = torch.exp(weights - log_sum[own, None]).add_(torch.exp(weights - log_sum))
            weights.diagonal(own.start).zero_()
            # Late in training P_ip + P_pi approaches 2/(V−1): their difference is taken before anything is summed up.
            others = first + positives(strip, rows, views, z.device)
            weights.scatter_add_(1, others, weights.new_full((), -2 / (views - 1)).expand(others.shape))
            torch.mm(weights, columns, out=grad[strip])
        if everyone is None:
            grad.div_(rows * temperature).mul_(grad_output)
        else:  # the same up to rounding; runs over ranks that are resumed keep their bits
            grad.mul_(grad_output / (rows * temperature))
        # Through the normalisation: the part along ẑ drops out, but below ε the norm is a constant.
        along = (unit * grad).sum(1, keepdim=True) * (norm > EPSILON)
        return (grad - unit * along).div_(norm).to(z.dtype)


def _has_fixed_maximum(temperature: float, everyone: Tensor | None) -> bool:
    """Whether 1/τ serves as the maximum of all logits. Over ranks each row has its own, as it always had."""
    return everyone is None and temperature >= FIXED_MAXIMUM_FROM


def _logits(unit: Tensor, columns: Tensor, temperature: float) -> Tensor:
    """(s_ij − 1)/τ for some rows and all columns."""
    return (unit @ columns.T).sub_(1).div_(temperature)


def plain(z: Tensor, views: int, temperature: float) -> Tensor:
    """The same loss from differentiable operations only. Holds the M × M matrix: for second derivatives."""
    with torch.autocast(z.device.type, enabled=False):
        unit, _ = normalise(z)
        total = len(unit)
        logits = unit @ unit.T / temperature
        positive = logits.gather(1, positives(slice(0, total), total, views, z.device)).mean(1)
        itself = torch.eye(total, dtype=torch.bool, device=z.device)
        return (torch.logsumexp(logits.masked_fill(itself, -torch.inf), 1) - positive).mean()
