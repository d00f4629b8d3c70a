"""NT-Xent over ranks (gloo, 2 and 4 processes) against one process with the whole batch, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fixtures import ntxent_ranks
from reference import ntxent_truth as truth
from simclr_engine.kernels import nt_xent
from simclr_engine.kernels.ntxent import chunked


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def case(views: int, ranks: int, batch: int, temperature: float, dtype: torch.dtype, **more: Any) -> dict[str, Any]:
    x = numbers(views, ranks, batch, 8, dtype=dtype)
    return {"x": x, "weight": numbers(8, 8, seed=1, dtype=dtype), "views": views, "temperature": temperature} | more


def cases(ranks: int) -> dict[str, dict[str, Any]]:
    named = {
        "two views": case(2, ranks, 5, 0.5, torch.float64),
        "three views": case(3, ranks, 4, 0.1, torch.float64),
        "one sample each": case(2, ranks, 1, 0.2, torch.float64),
        "low temperature": case(2, ranks, 3, 0.01, torch.float64),
        "scaled": case(2, ranks, 5, 0.5, torch.float64, scale=-3.0),
        "fp32": case(2, ranks, 17, 0.1, torch.float32),
        "named backend": case(2, ranks, 3, 0.5, torch.float64, backend="torch"),
        "not a number": case(2, ranks, 5, 0.5, torch.float64),
    }
    named["not a number"]["x"][0, 0, 0, 0] = torch.nan  # on the first rank only
    if ranks == 4:
        named["two of four"] = case(2, 2, 5, 0.5, torch.float64, members=[1, 3])
    return named


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """By name of case: the case, and what each member found."""
    named = cases(request.param)
    results = ntxent_ranks.run(request.param, list(named.values()), tmp_path_factory.mktemp("ranks"))
    return {name: (one, [mine[i] for mine in results if mine[i]]) for i, (name, one) in enumerate(named.items())}


def one_process(one: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, gradient of z `[V, W, B, D]` and of the weights, of the whole batch in one process and in float64."""
    weight = one["weight"].double().requires_grad_()
    x = one["x"].double()
    z = x.flatten(0, 2) @ weight
    z.retain_grad()
    loss = truth.nt_xent(z, one["views"], one["temperature"])
    (loss * one.get("scale", 1.0)).backward()
    assert z.grad is not None and weight.grad is not None
    return loss.detach(), z.grad.view(x.shape), weight.grad


NAMES = ["two views", "three views", "one sample each", "low temperature", "scaled", "named backend"]


@pytest.mark.parametrize("name", [*NAMES, "two of four"])
def test_loss_and_gradient_are_those_of_one_process(name: str, ranks: Any) -> None:
    if name not in ranks:
        pytest.skip("a subgroup needs four ranks")
    one, found = ranks[name]
    loss, gradient, weight = one_process(one)
    count = one["x"].shape[1]
    assert len(found) == count
    for index, mine in enumerate(found):
        torch.testing.assert_close(mine["loss"], loss, rtol=1e-12, atol=1e-12)
        mine_expected = gradient[:, index].flatten(0, 1) * count  # what DistributedDataParallel will divide by
        torch.testing.assert_close(mine["z"], mine_expected, rtol=1e-12, atol=1e-12 * float(gradient.abs().max()))
    mean = torch.stack([mine["weight"] for mine in found]).mean(0)  # as DistributedDataParallel does
    torch.testing.assert_close(mean, weight, rtol=1e-12, atol=1e-12 * float(weight.abs().max()))


def test_float32_is_as_close_as_in_one_process(ranks: Any) -> None:
    one, found = ranks["fp32"]
    loss, _, weight = one_process(one)
    for mine in found:
        assert mine["loss"].dtype == mine["z"].dtype == torch.float32
        torch.testing.assert_close(mine["loss"].double(), loss, rtol=1e-6, atol=1e-6)
    mean = torch.stack([mine["weight"] for mine in found]).double().mean(0)
    assert float((mean - weight).norm() / weight.norm()) < 1e-5


def test_every_rank_has_the_same_loss_bit_for_bit(ranks: Any) -> None:
    for name, (_, found) in ranks.items():
        for mine in found:
            assert torch.equal(mine["loss"], found[0]["loss"]) or name == "not a number"


def test_what_is_not_finite_on_one_rank_is_nan_on_all(ranks: Any) -> None:
    _, found = ranks["not a number"]
    for mine in found:
        assert torch.isnan(mine["loss"]) and torch.isnan(mine["z"]).all()


def test_no_rank_warns_of_anything(ranks: Any) -> None:
    for _, found in ranks.values():
        assert [mine["warnings"] for mine in found] == [[]] * len(found)


def test_a_second_derivative_is_refused_and_not_silently_dropped(ranks: Any) -> None:
    for _, found in ranks.values():
        assert all("has no second derivative (create_graph=True)" in mine["error"] for mine in found)


def test_one_rank_is_one_process(tmp_path: Path) -> None:
    z = numbers(12, 8).requires_grad_()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        assert torch.equal(nt_xent(z, 3, 0.2, group=dist.group.WORLD), nt_xent(z, 3, 0.2))
        assert torch.autograd.gradgradcheck(lambda t: nt_xent(t, 3, 0.2, group=dist.group.WORLD), z)
    finally:
        dist.destroy_process_group()


def test_arguments_are_checked_before_anyone_waits() -> None:
    with pytest.raises(ValueError, match="multiple of views=2"):
        nt_xent(numbers(5, 4), 2, 0.5, group=object())


@pytest.mark.parametrize("strip", [1, 3, 1000])
@pytest.mark.parametrize("temperature", [0.3, 0.05])
def test_strips_of_any_height_give_the_same(strip: int, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = numbers(24, 5)
    unit, _ = chunked.normalise(whole)

    def of_one_rank() -> tuple[torch.Tensor, ...]:
        _, log_sum, gaps, loss = chunked.forward(whole[6:12], 2, temperature, 6, lambda _: unit)
        log_sums = torch.cat((numbers(6), log_sum, numbers(12))).abs()
        return log_sum, loss, chunked.backward(torch.ones(()), whole[6:12], unit, log_sums, gaps, 6, 2, temperature)

    expected = of_one_rank()
    monkeypatch.setitem(chunked.STRIP_BYTES, "cpu", strip * 24 * 8)
    for found, target in zip(of_one_rank(), expected, strict=True):
        torch.testing.assert_close(found, target, rtol=1e-13, atol=1e-15)
