"""The plain truth of NT-Xent: the whole M × M matrix, boolean masks, torch's own log_softmax, in the input's dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def same_sample(rows: int, views: int) -> Tensor:
    """Bool `[M, M]`: whether two rows are views of one sample, themselves included; row v·B + i is view v of i."""
    sample = torch.arange(rows // views).repeat(views)
    return sample[:, None] == sample[None, :]


def log_probabilities(z: Tensor, temperature: float) -> Tensor:
    """`[M, M]`: log of the softmax over all other rows; −inf on the diagonal."""
    unit = F.normalize(z, dim=1)
    logits = unit @ unit.T / temperature
    return torch.log_softmax(logits.masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf), dim=1)


def nt_xent(z: Tensor, views: int, temperature: float) -> Tensor:
    """Mean over rows and over their positives of −log p."""
    itself = torch.eye(len(z), dtype=torch.bool)
    positive = same_sample(len(z), views) & ~itself
    return -log_probabilities(z, temperature)[positive].mean()


def loss_and_gradient(z: Tensor, views: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Both in float64, whatever the dtype of z."""
    leaf = z.detach().double().requires_grad_()
    loss = nt_xent(leaf, views, temperature)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def p_pos(z: Tensor, views: int, temperature: float) -> float:
    """Mean over rows of the probability of all their positives, row by row."""
    p = log_probabilities(z.double(), temperature).exp()
    batch = len(z) // views
    masses = [sum(p[i, (i + k * batch) % len(z)].item() for k in range(1, views)) for i in range(len(z))]
    return sum(masses) / len(masses)


def top1(z: Tensor, views: int) -> float:
    """Share of rows whose most similar other row is a view of the same sample."""
    batch = len(z) // views
    similarity = F.normalize(z.double(), dim=1) @ F.normalize(z.double(), dim=1).T
    hits = 0
    for i in range(len(z)):
        best = max((j for j in range(len(z)) if j != i), key=lambda j: similarity[i, j].item())
        hits += best % batch == i % batch
    return hits / len(z)
