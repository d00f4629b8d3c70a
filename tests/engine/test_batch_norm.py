"""Our synchronised batch norm, in one process: torch's own, compiled too. Over ranks: test_distributed.py."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from simclr_engine.batch_norm import SynchronisedBatchNorm, synchronise_batch_norm
from simclr_engine.errors import CheckFailed
from simclr_engine.model import SimCLR
from simclr_engine.recipe import Recipe


class Messages(TorchDispatchMode):
    """Counts the sums over ranks."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.simclr_engine.sum_over_ranks.default
        return func(*args, **(kwargs or {}))


def pair(channels: int, flat: bool = False, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
    """torch's and ours, with the same weights."""
    theirs = (nn.BatchNorm1d if flat else nn.BatchNorm2d)(channels).to(dtype)
    nn.init.normal_(theirs.weight)
    nn.init.normal_(theirs.bias)
    ours = SynchronisedBatchNorm(channels).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def trained(norm: nn.Module, x: Tensor, slope: Tensor) -> dict[str, Tensor]:
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = norm(leaf)
    y.backward(slope)
    assert leaf.grad is not None and y.dtype == x.dtype
    gradients = {f"of {name}": p.grad for name, p in norm.named_parameters()}
    return {"y": y.detach(), "of x": leaf.grad, **gradients, **dict(norm.named_buffers())}


@pytest.mark.parametrize("shape", [(6, 5, 4, 4), (6, 5, 1, 1), (7, 5), (2, 5)])
def test_three_steps_in_float64_are_torchs(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    theirs, ours = pair(5, len(shape) == 2)
    for _ in range(3):
        x = 3 + 2 * torch.randn(shape, dtype=torch.float64)
        slope = torch.randn(shape, dtype=torch.float64)
        for norm in (theirs, ours):
            norm.zero_grad()
        expected, found = trained(theirs, x, slope), trained(ours, x, slope)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12, msg=name)
    theirs.eval(), ours.eval()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_mean_far_from_zero_does_not_cancel_in_the_variance(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (100 + torch.randn(64, 3, 8, 8)).to(dtype).contiguous(memory_format=torch.channels_last)
    theirs, ours = pair(3, dtype=torch.float32)
    truth = nn.BatchNorm2d(3).double()
    truth.load_state_dict(theirs.state_dict())
    for norm in (ours, truth):
        norm.running_mean.fill_(99.0)  # type: ignore[union-attr, operator]  # as after some steps
    y, expected = ours(x).detach(), truth(x.double()).detach()
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    assert float((y.double() - expected).abs().max()) < (0.05 if dtype == torch.bfloat16 else 2e-5)
    torch.testing.assert_close(ours.running_var.double(), truth.running_var, rtol=1e-5, atol=0)  # type: ignore[union-attr, operator, arg-type]  # None only without tracking


def test_a_layer_sends_one_message_forward_and_one_back() -> None:
    _, norm = pair(5)
    with Messages() as messages:
        y = norm(torch.randn(4, 5, 3, 3, dtype=torch.float64))
        assert messages.count == 1
        y.sum().backward()
        assert messages.count == 2


def test_it_compiles_to_one_graph_and_stays_the_same() -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    eager = synchronise_batch_norm(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    )
    eager.double()
    other = copy.deepcopy(eager)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    x, slope = torch.randn(5, 3, 8, 8, dtype=torch.float64), torch.randn(5, 4, 4, 4, dtype=torch.float64)
    for _ in range(2):
        expected, found = trained(eager, x, slope), trained(compiled, x, slope)
    for (name, value), (_, same) in zip(expected.items(), found.items(), strict=True):
        torch.testing.assert_close(same, value, rtol=1e-12, atol=1e-12, msg=name)


def test_batch_norm_is_synchronised_everywhere_or_an_error() -> None:
    recipe = Recipe.load("cifar10")
    model = SimCLR(recipe.model, recipe.head)
    keys, count = list(model.state_dict()), sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    assert count == 20 + 2
    converted = synchronise_batch_norm(model)
    assert sum(type(m) is SynchronisedBatchNorm for m in converted.modules()) == count
    assert list(converted.state_dict()) == keys
    with pytest.raises(CheckFailed, match="not synchronised"):
        synchronise_batch_norm(nn.Linear(2, 2))
    with pytest.raises(CheckFailed, match="not synchronised"):
        synchronise_batch_norm(nn.Sequential(nn.BatchNorm1d(3, affine=False)))
