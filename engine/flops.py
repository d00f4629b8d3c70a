"""Floating-point operations of training: convolutions and matrix products, forward and backward, and the optimizer's.

The axis on which runs of different machines can be compared. Batch norm, ReLU, the loss and the augmentation are not
counted: they take less than 1 %.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from .budget import longest, mean_cost
from .errors import UsageError
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
    sizes = Counter(plan.view_size(step) for step in range(plan.total_steps if steps is None else steps))
    return sum(count * flops_per_step(plan.recipe, size) for size, count in sizes.items())


def within_compute(plan: Plan, pflop: float | None) -> Plan:
    """`plan`, shortened to at most so much compute; None sets no limit.

    Raises:
        UsageError: it is less than one step takes.
    """
    if pflop is None:
        return plan
    mean = mean_cost(plan, _per_step(plan)) / 1e15
    if pflop < mean:
        raise UsageError(
            "the compute is too little for one step",
            saw=f"--max-pflop {pflop:g}, {mean:.2g} PFLOP a step",
            fix="use a larger --max-pflop or a smaller batch",
        )
    return replace(plan, total_steps=min(plan.total_steps, int(pflop / mean)))


def longest_within_compute(plan: Plan, step: int, total_steps: int, pflop: float | None) -> int:
    """The largest length up to `total_steps` that `plan` may have from `step` on; at least the length that it has."""
    if pflop is None or total_steps <= plan.total_steps:
        return total_steps
    left = 1e15 * pflop - flops_of(plan, step)
    return max(plan.total_steps, longest(plan, step, left, _per_step(plan), total_steps))


def _per_step(plan: Plan) -> dict[int, float]:
    """View size → operations of a step."""
    return {size: flops_per_step(plan.recipe, size) for _, size in plan.phases()}
