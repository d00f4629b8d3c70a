"""LARS and Muon against plain float64 loops; schedules against their formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fixtures.launches import Launches, NoWaiting
from reference.optimizers import lars_step, muon_step, newton_schulz, orthogonal_factor
from simclr_engine import optim
from simclr_engine.flat import flat, flattened, unflattened
from simclr_engine.model import SimCLR
from simclr_engine.optim import LARS, Muon, build_optimizer, lr_factor, orthogonalise, parameter_groups
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


COMPILED = {
    "LARS, paper": {"name": "lars", "form": "paper"},
    "LARS, google": {"name": "lars", "form": "google"},
    "Muon": {"name": "muon", "weight_decay": 0.1},
}


@pytest.mark.parametrize("which", COMPILED)
def test_a_step_compiles_as_one_graph_and_follows_a_rate_in_a_tensor(which: str) -> None:
    def run(compiled: bool) -> torch.Tensor:
        module = _module()
        rate = torch.tensor(0.0, dtype=torch.float64)
        optimizer = build_optimizer(module, _optimizer("lars-800", **COMPILED[which]), lr=1.0)
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


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lars_leaves_the_gradients_as_they_are(decay: float) -> None:
    weight = nn.Parameter(torch.ones(2, 3))
    weight.grad = torch.full((2, 3), 2.0)
    LARS([weight], lr=0.5, weight_decay=decay).step()
    assert not torch.equal(weight, torch.ones(2, 3)) and torch.equal(weight.grad, torch.full((2, 3), 2.0))


def test_lars_leaves_a_weight_without_a_gradient_alone_in_the_form_of_the_paper() -> None:
    def after(form: str) -> torch.Tensor:
        weights = [nn.Parameter(torch.ones(2, 2, dtype=torch.float64)) for _ in range(2)]
        weights[0].grad, weights[1].grad = torch.zeros_like(weights[0]), torch.ones_like(weights[1])
        LARS(weights, lr=0.5, weight_decay=0.1, form=form).step()
        assert weights[1].max() < 1  # its neighbour in the group learns
        return weights[0].detach()

    assert torch.equal(after("paper"), torch.ones(2, 2, dtype=torch.float64))
    assert after("google").max() < 1  # whose norm includes the decay


@pytest.mark.parametrize("kind", [LARS, Muon])
@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf])
@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay"])
def test_rates_that_are_negative_or_not_finite_are_refused(kind: Any, name: str, value: float) -> None:
    rates = {"lr": 0.1, name: value}
    with pytest.raises(ValueError, match=f"{name} must be at least 0 and finite, got {value}"):
        kind([nn.Parameter(torch.ones(2, 2))], **rates)
    with pytest.raises(ValueError, match=name):  # of one group alone
        kind([{"params": [nn.Parameter(torch.ones(2, 2))], name: value}], lr=0.1)
    with pytest.raises(ValueError, match="lr must be"):
        kind([nn.Parameter(torch.ones(2, 2))], lr=torch.tensor(-1.0))


def _scaled_run(name: str, form: str, scaled: bool, overflows: tuple[int, ...] = ()) -> list[torch.Tensor]:
    """Weights and momentum after four steps, with a GradScaler or without; steps that overflow are left out there."""
    module = _like_pixels_and_features().float().to(memory_format=torch.channels_last)
    optimizer = build_optimizer(module, _optimizer("lars-800", name=name, form=form, weight_decay=0.1), lr=0.3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
    for step in range(4):
        for i, p in enumerate(module.parameters()):
            p.grad = torch.full_like(p, 0.1 * (i + step + 1)) * scaler.get_scale()
        if step in overflows:
            if not scaled:
                continue
            p.grad.view(-1)[-1] = torch.nan if step == 1 else torch.inf
        scaler.scale(torch.zeros(()))  # which makes its tensors
        with NoWaiting():
            scaler.step(optimizer)
        scaler.update()
        if scaled and step in overflows:
            scaler.update(2.0**10)
    return [*module.parameters(), *(s["momentum_buffer"] for s in optimizer.state.values())]


OVERFLOWS = [(), (0,), (1, 2)]


@pytest.mark.parametrize("overflows", OVERFLOWS, ids=str)
@pytest.mark.parametrize(("name", "form"), [("lars", "paper"), ("lars", "google"), ("muon", "paper")])
def test_a_grad_scaler_is_followed_without_waiting_for_the_device(
    name: str, form: str, overflows: tuple[int, ...]
) -> None:
    plain, scaled = _scaled_run(name, form, False, overflows), _scaled_run(name, form, True, overflows)
    for ours, expected in zip(scaled, plain, strict=True):
        assert torch.equal(ours, expected)  # scales are powers of two


@pytest.mark.parametrize("scaled", [False, True], ids=["bf16", "fp16"])
@pytest.mark.parametrize(("name", "most"), [("lars", (30, 48)), ("muon", (452, 471))])
def test_an_update_of_resnet18_takes_few_launches_on_a_gpu_and_no_waiting(
    name: str, most: tuple[int, int], scaled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim, "precisions", lambda device: ["bf16"])
    recipe = Recipe.load("lars-800", {"optimizer.name": name})
    module = SimCLR(recipe.model, recipe.head).to(memory_format=torch.channels_last)
    with FakeTensorMode():  # what would be done with tensors of a device that is not here
        for part in module.modules():
            for key, p in part._parameters.items():
                if p is not None:
                    part._parameters[key] = nn.Parameter(torch.empty_strided(p.shape, p.stride(), device="cuda"))
        optimizer: Any = build_optimizer(module, recipe.optimizer, 0.1)
        for group in optimizer.param_groups:
            group["lr"] = torch.empty((), device="cuda")
        for _ in range(2):  # the first makes the momentum
            for p in module.parameters():
                p.grad = torch.empty_like(p)
            if scaled:
                optimizer.found_inf = optimizer.grad_scale = torch.empty((), device="cuda")
            with Launches() as launches:
                optimizer.step()
    assert len(optimizer.state) == 66
    assert 10 < launches.total <= most[scaled], launches.by_name


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_tensors_are_flattened_as_they_lie_and_back(layout: torch.memory_format) -> None:
    shapes = [(4, 3, 3, 3), (5, 4, 1, 1), (7,), (2, 6), ()]
    tensors = [torch.randn(s) for s in shapes]
    tensors = [t.contiguous(memory_format=layout) if t.ndim == 4 else t for t in tensors] + [torch.ones(1).expand(3)]
    vector = flattened(tensors)
    assert torch.equal(
        vector[:108],
        tensors[0].permute(0, 2, 3, 1).flatten() if layout == torch.channels_last else tensors[0].flatten(),
    )
    assert flat(tensors[0]).data_ptr() == tensors[0].data_ptr()
    for part, tensor in zip(unflattened(vector, tensors), tensors, strict=True):
        assert torch.equal(part, tensor)
        assert part.stride() == tensor.stride() or tensor.stride() == (0,)
    unflattened(vector, tensors)[0].zero_()
    assert not vector[:108].any() and vector[108:].any()


@pytest.mark.parametrize("name", ["lars", "muon"])
def test_the_state_continues_after_saving(name: str) -> None:
    def run(stop: int | None) -> torch.Tensor:
        module = _module()
        spec = _optimizer("lars-800", name=name)
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


def _matrices(*shape: int, spread: float = 0.0, seed: int = 0) -> torch.Tensor:
    """Gaussian matrices in float64, or with singular values that fall evenly (in logarithms) by `spread` decades."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(shape, generator=generator, dtype=torch.float64)
    if spread:
        u, s, vt = torch.linalg.svd(made, full_matrices=False)
        made = (u * torch.logspace(0, -spread, s.size(-1), dtype=torch.float64)) @ vt
    return made


def _error(ours: torch.Tensor, truth: torch.Tensor) -> float:
    return float((ours.double() - truth).norm() / truth.norm())


def _like_pixels_and_features() -> nn.Module:
    """A convolution of colours, wide, square and tall matrices, two of one shape, and what has one dimension."""
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 3)]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(6, 7), nn.Linear(7, 30)).double()


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("shape", [(6, 60), (6, 8), (6, 6), (60, 6), (1, 5)])
def test_newton_schulz_maps_the_singular_values_and_nothing_else(shape: tuple[int, int], steps: int) -> None:
    stack = _matrices(3, *shape)
    for matrix, ours in zip(stack, orthogonalise(stack, steps), strict=True):
        assert _error(ours, torch.from_numpy(orthogonal_factor(matrix.numpy(), steps))) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(40, 240), (40, 50)])  # steps in pairs, and one by one
@pytest.mark.parametrize(("steps", "low"), [(3, 0.09), (4, 0.33), (5, 0.68)])
def test_each_step_is_more_orthogonal_until_all_is_within_a_third(
    steps: int, low: float, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    matrix = _matrices(1, *shape, spread=2.3)
    singular = torch.linalg.svdvals(matrix / matrix.norm())[0].numpy()
    assert (singular.min(), singular.max()) == pytest.approx((0.0024, 0.48), rel=0.05)
    exact = newton_schulz(singular, steps)
    assert low <= exact.min() < low + 0.02 and exact.max() < 1.21
    found = torch.linalg.svdvals(orthogonalise(matrix.float(), steps, dtype)[0].double()).numpy()
    assert (found.min(), found.max()) == pytest.approx((exact.min(), exact.max()), abs=0.03)


@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_five_steps_point_where_the_orthogonal_factor_points(spread: float) -> None:
    matrix = _matrices(1, 64, 576, spread=spread)
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    ours = orthogonalise(matrix.float(), 5, torch.bfloat16).double()
    assert (ours * (u @ vt)).sum() / (ours.norm() * (u @ vt).norm()) > 0.98


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_equals_the_plain_float64_loop_over_ten_steps(layout: torch.memory_format) -> None:
    module = _like_pixels_and_features().to(memory_format=layout)
    spec = _optimizer("cifar10", name="muon", lr=0.05, rest_lr=0.02, weight_decay=0.1, muon_steps=4)
    optimizer = build_optimizer(module, spec, lr=0.05)
    params = list(module.parameters())
    truth = [(p.detach().numpy().copy(), np.zeros(p.shape)) for p in params]
    generator = torch.Generator().manual_seed(1)
    for step in range(10):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 / (step + 1)
        for i, p in enumerate(params):
            p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
            matrix = p.ndim > 1 and i > 0
            truth[i] = muon_step(
                *(truth[i][0], p.grad.numpy(), truth[i][1]),
                lr=(0.05 if matrix else 0.02) / (step + 1),
                momentum=0.9,
                decay=0.1 if p.ndim > 1 else 0.0,
                steps=4,
                orthogonal=matrix,
            )
        optimizer.step()
    for p, (weight, _) in zip(params, truth, strict=True):
        assert np.abs(p.detach().numpy() - weight).max() <= 1e-12


def test_muon_is_torchs_own_for_matrices_but_for_the_rounding_of_bf16() -> None:
    shapes = [(24, 240), (24, 240), (30, 20), (16, 16)]

    def run(kind: type[torch.optim.Optimizer], dtype: torch.dtype) -> list[torch.Tensor]:
        params = [nn.Parameter(_matrices(*shape, seed=i).to(dtype)) for i, shape in enumerate(shapes)]
        optimizer = kind(params, lr=0.5, momentum=0.9, weight_decay=0.1)  # type: ignore[call-arg]  # both kinds take these
        for step in range(3):
            for i, p in enumerate(params):
                p.grad = _matrices(*p.shape, spread=1.0, seed=10 * step + i).to(dtype)
            optimizer.step()
        return [p.detach().double() for p in params]

    exact, theirs, ours = run(Muon, torch.float64), run(torch.optim.Muon, torch.float32), run(Muon, torch.float32)
    for truth, torchs, mine in zip(exact, theirs, ours, strict=True):
        assert 0 < _error(torchs, truth) < 0.02
        assert _error(mine, truth) < 1.5 * _error(torchs, truth)


def test_matrices_of_one_shape_are_updated_as_each_alone() -> None:
    def run(together: bool) -> torch.Tensor:
        params = [nn.Parameter(torch.zeros(8, 2, 3, 3, dtype=torch.float64)) for _ in range(4)]
        for i, p in enumerate(params):
            p.grad = _matrices(8, 2, 3, 3, seed=i) * 10.0**i
        for some in [params] if together else [[p] for p in params]:
            Muon(some, lr=1.0).step()
        return torch.stack([p.detach() for p in params])

    assert (run(True) - run(False)).abs().max() <= 1e-13
    assert run(True).abs().max() > 0.1


def test_muon_leaves_a_zero_matrix_and_gives_nan_for_nan_to_it_alone() -> None:
    params = [nn.Parameter(torch.ones(4, 12)) for _ in range(4)]
    for i, p in enumerate(params):
        p.grad = _matrices(4, 12, seed=i).float()
    params[0].grad = torch.zeros(4, 12)
    params[1].grad[2, 5] = torch.nan
    params[2].grad[2, 5] = torch.inf
    Muon(params, lr=0.1).step()
    zero, nan, inf, good = (p.detach() for p in params)
    assert torch.equal(zero, torch.ones(4, 12))
    assert nan.isnan().all() and inf.isnan().all()
    assert good.isfinite().all() and not torch.equal(good, torch.ones(4, 12))


@pytest.mark.parametrize("power", [-110, -60, 60, 110])
def test_the_scale_of_a_gradient_does_not_matter_to_muon(power: int) -> None:
    matrix = _matrices(2, 6, 40).float()
    assert torch.equal(orthogonalise(matrix * 2.0**power), orthogonalise(matrix))


@pytest.mark.parametrize(("bf16", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_muon_multiplies_in_bf16_where_that_is_fast_and_keeps_float64(
    bf16: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def spied(matrices: torch.Tensor, steps: int, dtype: torch.dtype) -> torch.Tensor:
        taken.append(dtype)
        return orthogonalise(matrices, steps, dtype)

    monkeypatch.setattr(optim, "precisions", lambda device: ["bf16", "fp32"] if bf16 else ["fp32"])
    monkeypatch.setattr(optim, "orthogonalise", spied)
    for dtype in (torch.float32, torch.float64):
        weight = nn.Parameter(torch.zeros(4, 12, dtype=dtype))
        weight.grad = torch.ones_like(weight)
        Muon([weight], lr=0.1).step()
    assert taken == [expected, torch.float64]


def test_muon_without_a_matrix_or_with_a_vector_among_them_is_refused() -> None:
    with pytest.raises(ValueError, match="none; train this module with sgd"):
        build_optimizer(nn.BatchNorm2d(4), _optimizer("cifar10", name="muon"), lr=0.1)
    with pytest.raises(ValueError, match=r"got \(3,\); use a group with orthogonal=False"):
        Muon([nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3))], lr=0.1)


def test_cosine_warms_up_linearly_and_ends_at_its_floor() -> None:
    spec = ScheduleSpec(warmup_epochs=2.0, lr_min=0.1)
    factors = [lr_factor(spec, s, total_steps=100, steps_per_epoch=5) for s in range(101)]
    assert factors[:10] == pytest.approx([(s + 1) / 10 for s in range(10)])
    for s in range(10, 101):
        assert factors[s] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * (s - 10) / 90)) / 2)


def test_linear_falls_by_the_same_amount_every_step_and_ends_at_its_floor() -> None:
    spec = ScheduleSpec(name="linear", warmup_epochs=2.0, lr_min=0.1)
    factors = [lr_factor(spec, s, total_steps=100, steps_per_epoch=5) for s in range(101)]
    assert factors[:10] == pytest.approx([(s + 1) / 10 for s in range(10)])
    assert factors[10:] == pytest.approx([1 - 0.01 * s for s in range(91)])


def test_the_warm_up_of_a_short_run_is_cut_to_a_tenth() -> None:
    spec = ScheduleSpec(warmup_epochs=10.0)
    assert lr_factor(spec, 0, total_steps=50, steps_per_epoch=25) == pytest.approx(1 / 5)
    assert lr_factor(spec, 4, total_steps=50, steps_per_epoch=25) == 1.0


def test_step_decay_falls_every_ten_epochs() -> None:
    spec = Recipe.load("few-labels-50").schedule
    at = [lr_factor(spec, epoch * 7, total_steps=350, steps_per_epoch=7) for epoch in (0, 9, 10, 25, 49)]
    assert at == pytest.approx([1, 1, 0.6, 0.36, 0.6**4])


@pytest.mark.parametrize("length", [0.1, 0.3, 0.7, 1.1, 2.5])
def test_step_decay_of_fractional_epochs_falls_when_it_says(length: float) -> None:
    spec = ScheduleSpec(name="step", warmup_epochs=0.0, step_epochs=length, gamma=0.5)
    every = round(10 * length)  # steps, of ten to the epoch
    at = [lr_factor(spec, step, total_steps=200, steps_per_epoch=10) for step in range(200)]
    assert at == [0.5 ** (step // every) for step in range(200)]


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
