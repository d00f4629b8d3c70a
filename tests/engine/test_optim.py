"""LARS against a plain float64 loop; schedules against their formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from reference.optimizers import lars_step
from simclr_engine.optim import LARS, build_optimizer, lr_factor, parameter_groups
from simclr_engine.recipe import OptimizerSpec, Recipe, ScheduleSpec


def _optimizer(recipe: str, **changes: Any) -> OptimizerSpec:
    return Recipe.load(recipe, {f"optimizer.{key}": value for key, value in changes.items()}).optimizer


def _module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5)).double()


@pytest.mark.parametrize("form", ["paper", "google"])
def test_lars_equals_the_plain_float64_loop_over_ten_steps(form: str) -> None:
    module = _module()
    spec = _optimizer("lars-800", form=form, weight_decay=1e-3, trust_coefficient=0.02)
    optimizer = build_optimizer(module, spec, lr=0.7)
    params = list(module.parameters())
    truth = [(p.detach().numpy().copy(), np.zeros(p.shape)) for p in params]
    generator = torch.Generator().manual_seed(1)
    for step in range(10):
        for i, p in enumerate(params):
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            if step == 3 and i == 0:
                p.grad.zero_()  # a zero gradient with decay: the ratio's denominator is the decay alone
            adapt = p.ndim > 1
            decay = 1e-3 if adapt else 0.0
            truth[i] = lars_step(
                *(truth[i][0], p.grad.numpy(), truth[i][1]),
                lr=0.7,
                momentum=0.9,
                decay=decay,
                eta=0.02,
                form=form,
                adapt=adapt,
            )
        optimizer.step()
    for p, (weight, _) in zip(params, truth, strict=True):
        assert np.abs(p.detach().numpy() - weight).max() <= 1e-12 * max(1.0, np.abs(weight).max())


@pytest.mark.parametrize("form", ["paper", "google"])
def test_lars_compiles_as_one_graph_and_follows_a_rate_kept_in_a_tensor(form: str) -> None:
    def run(compiled: bool) -> torch.Tensor:
        module = _module()
        rate = torch.tensor(0.0, dtype=torch.float64)
        optimizer = build_optimizer(module, _optimizer("lars-800", form=form), lr=1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        step = torch.compile(optimizer.step, backend="aot_eager", fullgraph=True) if compiled else optimizer.step
        for i in range(4):
            rate.fill_(0.5 / (i + 1))
            for p in module.parameters():
                p.grad = torch.full_like(p, 0.1 * (i + 1))
            step()
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    torch.compiler.reset()
    eager, compiled = run(False), run(True)
    assert (eager - compiled).abs().max() <= 1e-12


def test_lars_leaves_zero_weights_a_ratio_of_one() -> None:
    weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
    weight.grad = torch.ones_like(weight)
    LARS([weight], lr=0.5, momentum=0.0, trust_coefficient=0.001).step()
    assert torch.equal(weight.detach(), torch.full((2, 2), -0.5, dtype=torch.float64))


def test_lars_state_continues_after_saving() -> None:
    def run(stop: int | None) -> torch.Tensor:
        module = _module()
        spec = Recipe.load("lars-800").optimizer
        optimizer = build_optimizer(module, spec, lr=0.3)
        for step in range(6):
            if step == stop:
                state, weights = optimizer.state_dict(), module.state_dict()
                module = _module()
                module.load_state_dict(weights)
                optimizer = build_optimizer(module, spec, lr=0.3)
                optimizer.load_state_dict(state)
            for i, p in enumerate(module.parameters()):
                p.grad = torch.full_like(p, 0.1 * (i + step + 1))
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    assert torch.equal(run(None), run(3))


def test_batch_norm_and_bias_get_no_decay() -> None:
    module = _module()
    decayed, plain = parameter_groups(module, 0.1)
    assert {id(p) for p in decayed["params"]} == {id(p) for p in module.parameters() if p.ndim > 1}
    assert plain["weight_decay"] == 0.0
    assert len(plain["params"]) == 4


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match="paper"):
        LARS([nn.Parameter(torch.ones(2, 2))], lr=0.1, form="gogle")


def test_cosine_warms_up_linearly_and_ends_at_its_floor() -> None:
    spec = ScheduleSpec(warmup_epochs=2.0, lr_min=0.1)
    factors = [lr_factor(spec, s, total_steps=100, steps_per_epoch=5) for s in range(101)]
    assert factors[:10] == pytest.approx([(s + 1) / 10 for s in range(10)])
    for s in range(10, 101):
        assert factors[s] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * (s - 10) / 90)) / 2)


def test_the_warm_up_of_a_short_run_is_cut_to_a_tenth() -> None:
    spec = ScheduleSpec(warmup_epochs=10.0)
    assert lr_factor(spec, 0, total_steps=50, steps_per_epoch=25) == pytest.approx(1 / 5)
    assert lr_factor(spec, 4, total_steps=50, steps_per_epoch=25) == 1.0


def test_step_decay_falls_every_ten_epochs() -> None:
    spec = Recipe.load("few-labels-50").schedule
    at = [lr_factor(spec, epoch * 7, total_steps=350, steps_per_epoch=7) for epoch in (0, 9, 10, 25, 49)]
    assert at == pytest.approx([1, 1, 0.6, 0.36, 0.6**4])


def test_two_phase_exponential_changes_its_rate() -> None:
    spec = ScheduleSpec(name="exponential", warmup_epochs=0.0, gamma=0.9, phase_epochs=15.0, gamma_late=0.6)
    at = [lr_factor(spec, epoch * 3, total_steps=60, steps_per_epoch=3) for epoch in (0, 1, 15, 16, 19)]
    assert at == pytest.approx([1, 0.9, 0.9**15, 0.9**15 * 0.6, 0.9**15 * 0.6**4])


def test_constant_stays() -> None:
    assert lr_factor(ScheduleSpec(name="constant", warmup_epochs=0.0), 77, 100, 10) == 1.0


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_the_other_optimizers_are_torchs_own(name: str, kind: type[torch.optim.Optimizer]) -> None:
    optimizer = build_optimizer(_module(), _optimizer("cifar10", name=name), lr=0.1)
    assert type(optimizer) is kind
    assert [g["weight_decay"] for g in optimizer.param_groups] == [1e-6, 0.0]
