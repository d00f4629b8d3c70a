"""A SimCLR step as one would write it first: eager, fp32, NCHW, the whole similarity matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simclr_engine.model import Convolution

from .loss import nt_xent_eager


def with_plain_convolutions(model: nn.Module) -> nn.Module:
    """The same model, with its weights, with PyTorch's own convolutions throughout."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, Convolution):
                plain = nn.Conv2d(child.in_channels, child.out_channels, 3, child.stride[0], padding=1, bias=False)
                plain.weight = child.weight
                setattr(module, name, plain)
    return model


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, views: Tensor, temperature: float) -> Tensor:
    """Forward, loss, backward, update, on views `[2B, 3, S, S]` in fp32 NCHW."""
    optimizer.zero_grad()
    loss = nt_xent_eager(model(views), temperature)
    loss.backward()
    optimizer.step()
    return loss.detach()
