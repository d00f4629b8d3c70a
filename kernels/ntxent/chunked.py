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

from .operators import register

EPSILON = 1e-12  # as torch.nn.functional.normalize
# Bytes of one strip of the M × M matrix, of which a few are alive at once. On the CPU they should stay in its caches;
# elsewhere a strip must be worth the launches it takes.
STRIP_BYTES = {"cpu": 8 * 2**20}
STRIP_BYTES_ELSEWHERE = 64 * 2**20
# Below this τ each row's sum is taken relative to the row's own maximum. exp((s − 1)/τ) reaches down to exp(−2/τ),
# which float32 holds while 2/τ < 87 (τ > 0.023), but digits are lost before: s is rounded to 6e-8, (s − 1)/τ to more.
FIXED_MAXIMUM_FROM = 0.06


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
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor]:
    """What `loss` needs of the rows z `[rows, D]`.

    Args:
        z: this process's projections.
        views: V.
        temperature: τ.
        first: where these rows begin among those of all ranks.
        all_gather: collects a tensor of each rank, one after the other; None for a process alone.

    Returns:
        ẑ of all ranks (None for a process alone: backward computes it again), log Σ_{j≠i} exp((s_ij − 1)/τ) `[rows]`,
        the gaps `[rows, V−1]` of `_from_own_maximum` (None where the maximum is fixed), and the mean loss of these
        rows.
    """
    with torch.autocast(z.device.type, enabled=False):
        unit, _ = normalise(z)
        everyone = None if all_gather is None else all_gather(unit)
        columns = unit if everyone is None else everyone
        rows = len(unit)
        log_sum, losses = unit.new_empty(rows), unit.new_empty(rows)
        gaps = unit.new_empty(rows, views - 1) if has_own_maximum(len(columns), views, temperature) else None
        for strip in strips(columns, rows):
            logits = _logits(unit[strip], columns, temperature)
            others = first + positives(strip, rows, views, z.device)
            logits.diagonal(first + strip.start).fill_(-torch.inf)
            if gaps is not None:
                log_sum[strip], gaps[strip], losses[strip] = _from_own_maximum(logits, others)
                continue
            positive = logits.gather(1, others).mean(1)
            # Over ranks each row has its own maximum, as it always had: runs that are resumed keep their bits.
            log_sum[strip] = logits.exp_().sum(1).log_() if everyone is None else torch.logsumexp(logits, 1)
            losses[strip] = log_sum[strip] - positive
        return everyone, log_sum, gaps, losses.mean()


def backward(
    grad_output: Tensor,
    z: Tensor,
    everyone: Tensor | None,
    log_sum: Tensor,
    gaps: Tensor | None,
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
            if everyone is None and gaps is None:
                weights.exp_().mul_(inverse[own, None] + inverse)  # one exponential serves P_ij and P_ji
            else:
                weights = torch.exp(weights - log_sum[own, None]).add_(torch.exp(weights - log_sum))
            weights.diagonal(own.start).zero_()
            # Late in training P_ip + P_pi approaches 2/(V−1): their difference is taken before anything is summed up.
            local = positives(strip, rows, views, z.device)
            if gaps is None:
                weights.scatter_add_(1, first + local, weights.new_full((), -2 / (views - 1)).expand(local.shape))
            else:  # row i is its k-th view's (V − k)-th
                weights.scatter_(1, first + local, gaps[strip] + gaps.flip(1).gather(0, local))
            torch.mm(weights, columns, out=grad[strip])
        # Not in place, for grad_output may be a batch of them (`is_grads_batched`).
        if everyone is None:
            grad = grad.div_(rows * temperature) * grad_output
        else:  # the same up to rounding; runs over ranks that are resumed keep their bits
            grad = grad * (grad_output / (rows * temperature))
        # Through the normalisation: the part along ẑ drops out, but below ε the norm is a constant.
        along = (unit * grad).sum(1, keepdim=True) * (norm > EPSILON)
        return (grad - unit * along).div_(norm).to(z.dtype)


def has_own_maximum(columns: int, views: int, temperature: float) -> bool:
    """Whether a row's sum is taken relative to its own maximum: at low τ, and where there is nothing but one sample,
    whose loss is then exactly 0 with two views."""
    return temperature < FIXED_MAXIMUM_FROM or columns == views


def _from_own_maximum(logits: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row of logits (its diagonal −∞, overwritten here): log Σ_j exp(logit_j), its gaps and its loss.

    The gaps `[rows, V−1]` are P_ip − 1/(V−1), which go to zero late in training. With two views that is −Σ P_ij over
    the negatives, and the loss is log(1 + what they add): neither is the small difference of rounded numbers.
    """
    positive = logits.gather(1, others)
    maximum = logits.amax(1, keepdim=True)
    near = torch.exp(positive - maximum)
    negatives = logits.scatter_(1, others, -torch.inf).sub_(maximum).exp_().sum(1, keepdim=True)
    positives_sum = near.sum(1, keepdim=True)
    total, count = negatives + positives_sum, others.shape[1]
    gaps = (near * count - positives_sum - negatives) / (total * count)
    loss = maximum - positive.mean(1, keepdim=True) + torch.log1p(negatives + (positives_sum - 1))
    return (maximum + total.log())[:, 0], gaps, loss[:, 0]


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


def _forward_alone(z: Tensor, views: int, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, log_sum and gaps, which are empty where there are none."""
    _, log_sum, gaps, loss = forward(z, views, temperature)
    return loss, log_sum, log_sum.new_empty(0) if gaps is None else gaps


def _backward_alone(
    grad_output: Tensor, z: Tensor, log_sum: Tensor, gaps: Tensor, views: int, temperature: float
) -> Tensor:
    return backward(grad_output, z, None, log_sum, gaps if gaps.numel() else None, 0, views, temperature)


def _forward_shapes(z: Tensor, views: int, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
    gaps = (len(z), views - 1) if has_own_maximum(len(z), views, temperature) else (0,)
    return z.new_empty((), dtype=dtype), z.new_empty(len(z), dtype=dtype), z.new_empty(gaps, dtype=dtype)


# The eager path calls the functions themselves; a compiler would unroll their strips.
register("nt_xent_chunked", _forward_alone, _backward_alone, _forward_shapes, ["CompositeExplicitAutograd"])
