"""The time of an update of ResNet-18 with its head: our LARS, a plain loop and torch's SGD; our Muon and torch's."""

from __future__ import annotations

from collections.abc import Callable

import torch

from simclr_engine.device import choose_platform
from simclr_engine.model import SimCLR
from simclr_engine.optim import build_optimizer, parameter_groups
from simclr_engine.recipe import Recipe
from simclr_engine.timing import interleave

from .baselines import LoopLARS, torch_muon
from .rows import Floor, Row, time_row

NAME = "update of ResNet-18"
# On the CPU the loop has no synchronisations to save: the gain is in memory traffic alone.
FLOORS = (
    Floor(NAME, "ours (LARS)", of="plain loop, asking the device", most=1.0),
    Floor(NAME, "ours (Muon)", of="torch Muon", most=1.0),
)


def floors() -> tuple[Floor, ...]:
    """What must hold on this machine's device."""
    return FLOORS


def rows(repeats: int = 7) -> list[Row]:
    """Milliseconds per update, contenders interleaved; gradients are computed before.

    Args:
        repeats: timed updates per contender.
    """
    platform = choose_platform()
    recipe = Recipe.load("lars-800")
    contenders: dict[str, Callable[[], object]] = {}

    def module() -> SimCLR:
        torch.manual_seed(0)
        model = SimCLR(recipe.model, recipe.head).to(platform.device)
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
