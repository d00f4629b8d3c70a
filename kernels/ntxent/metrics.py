"""Two figures that show whether the contrast is being learnt where the loss alone looks flat."""

from __future__ import annotations

import torch
from torch import Tensor

from .chunked import normalise, positives, strips
from .loss import check_projections


@torch.no_grad()
@torch.compiler.disable
def contrastive_metrics(z: Tensor, views: int = 2, temperature: float = 0.5) -> tuple[Tensor, Tensor]:
    """How well each row finds the other views of its sample among all other rows.

    Args:
        z: projections `[V·B, D]`, row v·B + i is view v of sample i.
        views: V ≥ 2.
        temperature: τ > 0, of the loss.

    Returns:
        Two scalars on z's device, float32 (float64 for float64 input), not waited for:
        p_pos, the mean softmax mass on the positives (chance: (V − 1)/(V·B − 1)), and
        top1, the share of rows whose nearest row is a positive. Ties with a negative do not count, so that collapsed
        vectors score 0 and not 1. NaN entries make p_pos NaN.

    Raises:
        ValueError: as `nt_xent`.
    """
    check_projections(z, views, temperature)
    with torch.autocast(z.device.type, enabled=False):
        unit, _ = normalise(z)
        total = len(unit)
        mass, hits = unit.new_empty(total), unit.new_empty(total)
        for rows in strips(unit, total):
            logits = (unit[rows] @ unit.T).div_(temperature)
            logits.diagonal(rows.start).fill_(-torch.inf)
            others = positives(rows, total, views, z.device)
            mass[rows] = torch.softmax(logits, 1).gather(1, others).sum(1)
            best = logits.gather(1, others).amax(1)
            hits[rows] = (best > logits.scatter_(1, others, -torch.inf).amax(1)).to(unit.dtype)
        return mass.mean(), hits.mean()
