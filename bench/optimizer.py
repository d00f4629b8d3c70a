"""The time of an update of ResNet-18 with its head: our LARS, a plain loop and torch's SGD; our Muon and torch's.

Beside it the time of Muon's products alone, and what a number of steps makes of the singular values.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from simclr_engine.device import choose_platform, precisions
from simclr_engine.model import SimCLR
from simclr_engine.optim import build_optimizer, orthogonalise, parameter_groups
from simclr_engine.recipe import Recipe
from simclr_engine.timing import interleave

from .baselines import LoopLARS, newton_schulz_each, torch_muon
from .rows import Floor, Row, time_row

NAME = "update of ResNet-18"
PRODUCTS, OURS, ONE_BY_ONE = "orthogonal factor", "ours, 5 steps", "one by one, 5 steps"
# On the CPU the loop has no synchronisations to save: the gain is in memory traffic alone.
FLOORS = (
    Floor(NAME, "ours (LARS)", of="plain loop, asking the device", most=1.0),
    Floor(NAME, "ours (Muon)", of="torch Muon", most=1.0),
    Floor(PRODUCTS, OURS, of=ONE_BY_ONE, most=0.8),
)
LARGEST = (3, 512, 4608)  # the last convolutions of ResNet-18: three quarters of Muon's products


def floors() -> tuple[Floor, ...]:
    """What must hold on this machine's device."""
    return FLOORS


def rows(repeats: int = 7, shape: tuple[int, int, int] = LARGEST, narrow: bool = False) -> list[Row]:
    """Milliseconds per update, contenders interleaved; gradients are computed before.

    Args:
        repeats: timed updates per contender.
        shape: K, m, n of the matrices that are orthogonalised by themselves.
        narrow: update a few small layers instead of ResNet-18, to test that the benchmark runs.
    """
    return _updates(repeats, narrow) + _orthogonal_factors(repeats, shape)


def _updates(repeats: int, narrow: bool) -> list[Row]:
    platform = choose_platform()
    recipe = Recipe.load("lars-800")
    contenders: dict[str, Callable[[], object]] = {}

    def module() -> nn.Module:
        torch.manual_seed(0)
        small = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4))
        model = (small if narrow else SimCLR(recipe.model, recipe.head)).to(platform.device)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        return model

    spec = recipe.optimizer
    contenders["ours (LARS)"] = build_optimizer(module(), spec, 1e-3).step
    if platform.device.type == "cuda":
        compiled = build_optimizer(module(), spec, 1e-3)
        for group in compiled.param_groups:
            group["lr"] = torch.tensor(1e-3, device=platform.device)
        contenders["ours (LARS), torch.compile"] = torch.compile(compiled.step)
    groups = parameter_groups(module(), spec.weight_decay)
    contenders["plain loop, asking the device"] = LoopLARS(groups, 1e-3, spec.momentum, spec.trust_coefficient).step
    sgd = Recipe.load("cifar10-sgd").optimizer
    contenders["torch SGD"] = build_optimizer(module(), sgd, 1e-3).step
    muon = recipe.override({"optimizer.name": "muon"}).optimizer
    contenders["ours (Muon)"] = build_optimizer(module(), muon, 1e-3).step
    contenders["torch Muon"] = torch_muon(module(), 1e-3).step
    timings = interleave(contenders, repeats, warmup=3, synchronize=platform.synchronize)
    return [time_row(NAME, name, timing) for name, timing in timings.items()]


def _orthogonal_factors(repeats: int, shape: tuple[int, int, int]) -> list[Row]:
    """Rows with `lowest` and `highest` singular value of the result and its `cosine` with the exact factor U·Vᵀ."""
    platform = choose_platform()
    matrices, exact = (m.to(platform.device) for m in _matrices_and_factors(shape))
    dtype = torch.bfloat16 if "bf16" in precisions(platform.device) else torch.float32
    contenders: dict[str, Callable[[], Tensor]] = {
        ONE_BY_ONE: lambda: newton_schulz_each(matrices, 5, dtype),
        OURS: lambda: orthogonalise(matrices, 5, dtype),
        "ours, 4 steps": lambda: orthogonalise(matrices, 4, dtype),
        "ours, 3 steps": lambda: orthogonalise(matrices, 3, dtype),
    }
    timings = interleave(contenders, repeats, warmup=2, synchronize=platform.synchronize)
    measured = []
    for contender, timing in timings.items():
        found = contenders[contender]().float()
        singular = torch.linalg.svdvals(found)
        cosine = (found * exact).sum() / (found.norm() * exact.norm())
        figures = {"lowest": float(singular.min()), "highest": float(singular.max()), "cosine": float(cosine)}
        measured.append(time_row(PRODUCTS, contender, timing, shape=list(shape), **figures))
    return measured


def _matrices_and_factors(shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Matrices U·S·Vᵀ whose singular values fall like 1/i, and U·Vᵀ; m is at most n."""
    generator = torch.Generator().manual_seed(0)
    count, m, n = shape
    u, _ = torch.linalg.qr(torch.randn(count, m, m, generator=generator))
    v, _ = torch.linalg.qr(torch.randn(count, n, m, generator=generator))
    return (u / torch.arange(1, m + 1)) @ v.mT, u @ v.mT
