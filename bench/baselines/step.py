"""A SimCLR step as one would write it first: eager, fp32, NCHW, the whole similarity matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .loss import nt_xent_eager


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, views: Tensor, temperature: float) -> Tensor:
    """Forward, loss, backward, update, on views `[2B, 3, S, S]` in fp32 NCHW."""
    optimizer.zero_grad()
    loss = nt_xent_eager(model(views), temperature)
    loss.backward()
    optimizer.step()
    return loss.detach()
