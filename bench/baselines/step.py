"""A SimCLR step as one would write it first: eager, fp32, NCHW, the whole similarity matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simclr_engine.model import Convolution

from .loss import nt_xent_eager


def with_plain_convolutions(model: nn.Module) -> nn.Module:
    """The same model with torchvision's own convolutions throughout."""
    for module in model.modules():
        if isinstance(module, Convolution):
            module.__class__ = nn.Conv2d  # type: ignore[assignment]  # a parent for a child
    return model


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, views: Tensor, temperature: float) -> Tensor:
    """Forward, loss, backward, update, on views `[2B, 3, S, S]` in fp32 NCHW."""
    optimizer.zero_grad()
    loss = nt_xent_eager(model(views), temperature)
    loss.backward()
    optimizer.step()
    return loss.detach()
