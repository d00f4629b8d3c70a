"""Floating-point operations of training: convolutions and matrix products, forward and backward, and the optimizer's.

The axis on which runs of different machines can be compared. Batch norm, ReLU, the loss and the augmentation are not
counted: they take less than 1 %.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from .budget import cost_after, longest
from .errors import UsageError
from .model import SimCLR
from .optim import build_optimizer
from .plan import Plan
from .recipe import HeadSpec, ModelSpec, OptimizerSpec, Recipe

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


def pflop_of(plan: Plan) -> float | None:
    """Of all steps of `plan`, 10^15; None for a caller's own encoder, which is not known here."""
    return None if plan.recipe.model.arch == "own" else flops_of(plan) / 1e15


def flops_of(plan: Plan, steps: int | None = None) -> float:
    """Of the first `steps` steps of `plan`; of all by default."""
    per_step = _per_step(plan)
    rest = 0.0 if steps is None else cost_after(plan, steps, per_step)
    return cost_after(plan, 0, per_step) - rest


def within_compute(plan: Plan, pflop: float | None) -> Plan:
    """`plan`, shortened to at most so much compute; None sets no limit.

    Raises:
        UsageError: it is less than one step takes, or the encoder is the caller's own.
    """
    if pflop is None:
        return plan
    if plan.recipe.model.arch == "own":
        raise UsageError("the compute of an own encoder is not known", saw="max_pflop", fix="use max_minutes or epochs")
    totals = range(1, plan.total_steps + 1)
    fitting = bisect_right(totals, 1e15 * pflop, key=lambda total: flops_of(replace(plan, total_steps=total)))
    if not fitting:
        raise UsageError(
            "the compute is too little for one step",
            saw=f"--max-pflop {pflop:g}, {flops_of(replace(plan, total_steps=1)) / 1e15:.2g} PFLOP a step",
            fix="use a larger --max-pflop or a smaller batch",
        )
    return replace(plan, total_steps=fitting)


def longest_within_compute(plan: Plan, step: int, pflop: float | None, most: int) -> int:
    """The largest length up to `most` at which `plan`, relaid after `step`, takes at most so much compute in all; None
    sets no limit."""
    if pflop is None:
        return most
    return longest(plan, step, 1e15 * pflop - flops_of(plan, step), _per_step(plan), most)


def _per_step(plan: Plan) -> dict[int, float]:
    """View size → operations of a step."""
    return {size: flops_per_step(plan.recipe, size) for _, size in plan.phases()}
