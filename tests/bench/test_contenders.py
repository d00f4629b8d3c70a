"""What the benchmarks compare with computes the same thing, and what they count is counted right."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reference import ntxent_truth
from simclr_engine.bench.baselines import LoopLARS, newton_schulz_each, nt_xent_boolean_mask, nt_xent_eager, torch_muon
from simclr_engine.bench.nt_xent import compiled
from simclr_engine.bench.rows import peak_extra_bytes
from simclr_engine.optim import LARS, Muon, orthogonalise, parameter_groups

CPU = torch.device("cpu")


@pytest.mark.parametrize("loss", [nt_xent_eager, nt_xent_boolean_mask])
def test_the_usual_losses_are_nt_xent(loss: object) -> None:
    z = torch.randn(12, 5, dtype=torch.float64, requires_grad=True)
    assert callable(loss)
    value = loss(z, 0.3)
    truth, gradient = ntxent_truth.loss_and_gradient(z, 2, 0.3)
    assert float(value.detach()) == pytest.approx(float(truth), rel=1e-12)
    assert torch.allclose(torch.autograd.grad(value, z)[0], gradient, rtol=1e-10, atol=1e-14)


def test_the_plain_loop_is_our_lars() -> None:
    def module() -> nn.Module:
        torch.manual_seed(0)
        made = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)).double()
        for i, p in enumerate(made.parameters()):
            p.grad = torch.full_like(p, 0.1 * (i + 1))
        return made

    ours, loop = module(), module()
    groups = parameter_groups(ours, 0.01)
    groups[1]["adapt"] = False
    first = LARS(groups, 0.3, 0.9, 0.0, 0.02)
    second = LoopLARS(parameter_groups(loop, 0.01), 0.3, 0.9, 0.02)
    for _ in range(3):
        first.step()
        second.step()
    for p, q in zip(ours.parameters(), loop.parameters(), strict=True):
        assert (p - q).abs().max() <= 1e-12


def test_the_usual_muon_is_ours() -> None:
    def module() -> nn.Module:
        torch.manual_seed(0)
        made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 32, 3), nn.Linear(32, 40))
        for p in made.parameters():
            p.grad = torch.randn_like(p)
        return made

    ours, usual = module(), module()
    before = [p.detach().clone() for p in usual.parameters()]
    Muon([p for p in ours.parameters() if p.ndim > 1 and p.size(1) != 3], lr=1.0).step()
    torch_muon(usual, 1.0).step()
    for p, q, old in zip(usual.parameters(), ours.parameters(), before, strict=True):
        assert ((p - q).norm() < 0.02 * (old - q).norm()) if p.ndim > 1 and p.size(1) != 3 else torch.equal(p, old)
    matrices = torch.randn(3, 5, 20, dtype=torch.float64)
    found = newton_schulz_each(matrices, 5, torch.float64)
    assert (found - orthogonalise(matrices, 5)).abs().max() <= 1e-12


def test_peak_memory_counts_what_is_alive_together() -> None:
    mebibyte = 2**18  # floats

    def call() -> torch.Tensor:
        first = torch.empty(8 * mebibyte)
        second = torch.empty(4 * mebibyte)
        del first
        third = torch.empty(2 * mebibyte)
        return second[:1] + third[:1]

    call()
    assert peak_extra_bytes(call, CPU) / 2**20 == pytest.approx(12, abs=0.1)


def test_a_compiled_contender_is_compiled_at_every_size() -> None:
    ran: list[int] = []

    def backend(graph: torch.fx.GraphModule, example: object) -> object:
        def call(*arguments: torch.Tensor) -> object:
            ran.append(len(arguments[0]))
            return graph(*arguments)

        return call

    sizes = [2 * n for n in range(2, 14)]  # more than the eight versions that torch keeps of a function
    for total in sizes:
        loss = compiled(lambda x: nt_xent_eager(x, 0.5), backend)
        for z in (torch.ones(total, 4), torch.ones(total, 4, requires_grad=True)):
            loss(z)
    assert ran == [total for total in sizes for _ in range(2)]

    def broken(x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return x

    with pytest.raises(torch._dynamo.exc.Unsupported):  # said, and not measured eagerly
        compiled(broken, backend)(torch.ones(2))
