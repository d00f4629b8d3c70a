"""NT-Xent as it is usually written: the whole M × M matrix."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent_eager(z: Tensor, temperature: float) -> Tensor:
    """NT-Xent of two views over the full M × M matrix, `z` `[2B, D]`, row v·B + i = view v of sample i."""
    z = F.normalize(z, dim=1)
    logits = z @ z.T / temperature
    logits.fill_diagonal_(float("-inf"))
    rows = len(z)
    positives = (torch.arange(rows, device=z.device) + rows // 2) % rows
    return F.cross_entropy(logits, positives)


def nt_xent_boolean_mask(z: Tensor, temperature: float) -> Tensor:
    """The same by boolean masks: positives and negatives picked out of the matrix, as in many published scripts.

    The indexing waits for the device, and copies the matrix once more.
    """
    z = F.normalize(z, dim=1)
    rows = len(z)
    similarity = z @ z.T
    sample = torch.arange(rows // 2, device=z.device).repeat(2)
    same = sample[:, None] == sample[None, :]
    itself = torch.eye(rows, dtype=torch.bool, device=z.device)
    same, similarity = same[~itself].view(rows, -1), similarity[~itself].view(rows, -1)
    logits = torch.cat([similarity[same].view(rows, -1), similarity[~same].view(rows, -1)], dim=1)
    return F.cross_entropy(logits / temperature, torch.zeros(rows, dtype=torch.long, device=z.device))
