"""Compute is counted as the formulas say, and a run can be limited to so much of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simclr_engine import pretrain
from simclr_engine.data.store import ImageStore
from simclr_engine.errors import UsageError
from simclr_engine.flops import (
    flops_of,
    flops_per_step,
    flops_per_update,
    flops_per_view,
    longest_within_compute,
    within_compute,
)
from simclr_engine.planning import RunOptions
from simclr_engine.recipe import HeadSpec, ModelSpec, OptimizerSpec, Recipe
from simclr_engine.training import Plan

STORE = ImageStore.from_arrays(np.zeros((512, 32, 32, 3), np.uint8), name="black")
MUON = {"optimizer.name": "muon", "optimizer.lr": 0.05, "optimizer.weight_decay": 0, "optimizer.lr_per_256": False}
SMALL = {"short_runs": [], "train.batch_size": 8, "train.resolution": [[0.5, 16], [1.0, 0]], "train.epochs": 1}


def test_a_view_of_cifar_resnet18_takes_3_33_gflop() -> None:
    # 3.329 GFLOP forward and backward is the figure for CIFAR's ResNet-18; the head's products come on top.
    recipe = Recipe.load("cifar10-sgd")
    assert flops_per_view(recipe.model, recipe.head, 32) == pytest.approx(3.329e9, rel=0.01)


def test_muon_counts_its_products_and_sgd_none() -> None:
    model, head = ModelSpec(), HeadSpec(hidden=(8,), dimension=4)
    muon = OptimizerSpec(name="muon", lr=0.1, muon_steps=1)
    # One step on m × n, m ≤ n: X Xᵀ, its square, and the product with X.
    rows = [(64, 576)] * 4 + [(128, 576)] + [(128, 1152)] * 3 + [(256, 1152)] + [(256, 2304)] * 3 + [(512, 2304)]
    rows += [(512, 4608)] * 3 + [(64, 128), (128, 256), (256, 512), (8, 512), (4, 8)]
    by_hand = sum(2 * (2 * m * m * n + m**3) for m, n in rows)
    assert flops_per_update(model, head, muon) == pytest.approx(by_hand, rel=1e-9)
    assert flops_per_update(model, head, OptimizerSpec(name="sgd", lr=0.1)) == 0


def test_a_plan_counts_each_phase_at_its_size() -> None:
    plan = Plan.of(Recipe.load("cifar10-sgd", SMALL), STORE)
    small, large = (flops_per_step(plan.recipe, size) for size in (16, 32))
    assert plan.total_steps == 64
    assert flops_of(plan) == pytest.approx(32 * small + 32 * large)
    assert flops_of(plan, 40) == pytest.approx(32 * small + 8 * large)
    assert flops_of(plan, 10) == pytest.approx(10 * small)


def test_a_limit_of_compute_shortens_the_plan_to_it() -> None:
    plan = Plan.of(Recipe.load("cifar10-sgd", SMALL | MUON), STORE)
    step = flops_per_step(plan.recipe, 32) / 2e15 + flops_per_step(plan.recipe, 16) / 2e15
    cut = within_compute(plan, 10.5 * step)
    assert cut.total_steps == 10 and flops_of(cut) <= 10.5 * step * 1e15
    assert within_compute(plan, 1e9) == plan and within_compute(plan, None) == plan
    with pytest.raises(UsageError, match="too little for one step"):
        within_compute(plan, 0.5 * step)


def test_a_relaid_plan_is_counted_by_the_sizes_of_its_own_views() -> None:
    plan = Plan.of(Recipe.load("cifar10-sgd", SMALL), STORE)
    limit = flops_of(plan) / 1e15
    shorter = plan.relay(20, 40)  # whose rest has large views for the most part
    longest = longest_within_compute(shorter, 30, limit, 200)
    assert flops_of(shorter.relay(30, longest)) <= 1e15 * limit < flops_of(shorter.relay(30, longest + 1))
    assert longest < 64 < longest_within_compute(shorter, 30, None, 200) == 200


@pytest.mark.parametrize("options", [{"max_pflop": 0.0}, {"max_pflop": -1.0}, {"max_pflop": 1.0, "resume": True}])
def test_compute_that_cannot_be_kept_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="max-pflop"):
        RunOptions(**options)  # type: ignore[arg-type]  # of both types


def test_a_run_records_the_compute_that_it_was_given(tmp_path: Path) -> None:
    limit = 2.2 * flops_per_step(Recipe.load("cifar10-sgd", SMALL | {"train.resolution": [[1.0, 8]]}), 8) / 1e15
    changes = SMALL | {"train.resolution": [[1.0, 8]], "monitor.knn_epochs": 0}
    run = pretrain("cifar10-sgd", STORE, tmp_path / "run", overrides=changes, max_pflop=limit, device="cpu", quiet=True)
    plan = run.environment["plan"]
    assert plan["total_steps"] == 2 and plan["pflop"] == pytest.approx(limit * 2 / 2.2)
