"""Floating-point operations of training: convolutions and matrix products, forward and backward, and the optimizer's.

The axis on which runs of different machines can be compared. Batch norm, ReLU, the loss and the augmentation are not
counted: they take less than 1 %.
"""

from __future__ import annotations

from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from .model import SimCLR
from .optim import build_optimizer
from .recipe import HeadSpec, ModelSpec, OptimizerSpec, Recipe
from .training import Plan

COUNTED_VIEWS = 4  # the count is linear in the views


@cache
def flops_per_view(model: ModelSpec, head: HeadSpec, size: int) -> float:
    """Of the network for one view of `size` × `size` pixels, forward and backward."""
    with torch.device("meta"):
        network = SimCLR(model, head)
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(COUNTED_VIEWS, 3, size, size, device="meta")).sum().backward()
    return counter.get_total_flops() / COUNTED_VIEWS


@cache
def flops_per_update(model: ModelSpec, head: HeadSpec, optimizer: OptimizerSpec) -> float:
    """Of one step of the optimizer: the matrix products of Muon; 0 for the others."""
    if optimizer.name != "muon":
        return 0.0
    with torch.device("meta"):
        network = SimCLR(model, head)
    for parameter in network.parameters():
        parameter.grad = torch.empty_like(parameter)
    update = build_optimizer(network, optimizer, optimizer.lr)
    with FlopCounterMode(display=False) as counter:
        update.step()
    return float(counter.get_total_flops())


def flops_per_step(recipe: Recipe, size: int) -> float:
    """Of one training step of `recipe` with views of `size` × `size` pixels, over all processes."""
    views = recipe.train.batch_size * recipe.train.views
    update = flops_per_update(recipe.model, recipe.head, recipe.optimizer)
    return views * flops_per_view(recipe.model, recipe.head, size) + update


def flops_of(plan: Plan, steps: int | None = None) -> float:
    """Of the first `steps` steps of `plan`; of all by default."""
    last, total, begin = plan.total_steps if steps is None else steps, 0.0, 0
    for end, size in plan.phases():
        until = min(round(end * plan.total_steps), last)
        total += max(0, until - begin) * flops_per_step(plan.recipe, size)
        begin = max(begin, until)
    return total
