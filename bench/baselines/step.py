"""A SimCLR step as one would write it first: eager, fp32, NCHW, the whole similarity matrix."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def nt_xent_eager(z: Tensor, temperature: float) -> Tensor:
    """NT-Xent of two views over the full M × M matrix, `z` `[2B, D]`, row v·B + i = view v of sample i."""
    z = F.normalize(z, dim=1)
    logits = z @ z.T / temperature
    logits.fill_diagonal_(float("-inf"))
    rows = len(z)
    positives = (torch.arange(rows, device=z.device) + rows // 2) % rows
    return F.cross_entropy(logits, positives)


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, views: Tensor, temperature: float) -> Tensor:
    """Forward, loss, backward, update, on views `[2B, 3, S, S]` in fp32 NCHW."""
    optimizer.zero_grad()
    loss = nt_xent_eager(model(views), temperature)
    loss.backward()
    optimizer.step()
    return loss.detach()
