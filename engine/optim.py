"""LARS and the learning-rate schedules; SGD, Adam and AdamW are torch's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .recipe import OptimizerSpec, ScheduleSpec


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling, without a host synchronisation in the step.

    Two published forms; with momentum m, weight decay β and trust coefficient η, both keep lr inside the momentum
    buffer (v ← m·v + lr·λ·u, w ← w − v):

    - `paper`: λ = η‖w‖ / (‖g‖ + β‖w‖), u = g + βw (You, Gitman, Ginsburg 2017, algorithm 1).
    - `google`: λ = η‖w‖ / ‖g + βw‖, u = g + βw (google-research/simclr: the decay is inside the norm).

    λ is 1 where either norm is zero. Parameters of at most one dimension (batch norm, bias) have neither trust
    ratio nor weight decay: `parameter_groups` puts them into a group with `adapt=False`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        form: str = "paper",
        adapt: bool = True,
    ) -> None:
        if form not in ("paper", "google"):
            raise ValueError(f"form must be 'paper' or 'google', got {form!r}")
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "trust_coefficient": trust_coefficient,
                "form": form,
                "adapt": adapt,
            },
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(params, group)
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        decay, eta = group["weight_decay"], group["trust_coefficient"]
        update = list(torch._foreach_add(grads, params, alpha=decay)) if decay else [g.clone() for g in grads]
        if group["adapt"]:
            weight_norm = torch.stack(torch._foreach_norm(params))
            if group["form"] == "google":
                denominator = torch.stack(torch._foreach_norm(update))
            else:
                denominator = torch.stack(torch._foreach_norm(grads)) + decay * weight_norm
            usable = (weight_norm > 0) & (denominator > 0)
            # The inner `where` avoids 0/0 in the branch that is not selected.
            ratio = torch.where(usable, eta * weight_norm / torch.where(usable, denominator, 1.0), 1.0)
            torch._foreach_mul_(update, list((ratio * group["lr"]).to(update[0].dtype).unbind()))
        else:
            torch._foreach_mul_(update, group["lr"])
        buffers = []
        for p, u in zip(params, update, strict=True):
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(u)
            buffers.append(state["momentum_buffer"])
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, update)
        torch._foreach_sub_(params, buffers)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights of two or more dimensions with decay; batch norm and bias without (SimCLR paper, section 2.2)."""
    params = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]


def build_optimizer(module: nn.Module, spec: OptimizerSpec, lr: float) -> torch.optim.Optimizer:
    """The optimizer of the recipe for the parameters of `module`, with peak learning rate `lr`."""
    groups = parameter_groups(module, spec.weight_decay)
    if spec.name == "lars":
        groups[0]["adapt"], groups[1]["adapt"] = True, False
        return LARS(groups, lr, spec.momentum, 0.0, spec.trust_coefficient, spec.form)
    # On CUDA one fused kernel updates everything; elsewhere the foreach form is faster.
    fused = all(p.is_cuda for group in groups for p in group["params"])
    how: dict[str, Any] = {"fused": True} if fused else {"foreach": True}
    if spec.name == "sgd":
        return torch.optim.SGD(groups, lr, momentum=spec.momentum, nesterov=spec.nesterov, **how)
    if spec.name == "adam":
        return torch.optim.Adam(groups, lr, **how)
    if spec.name == "adamw":
        return torch.optim.AdamW(groups, lr, **how)
    raise ValueError(f"optimizer must be lars, sgd, adam or adamw, got {spec.name!r}")


# The warm-up takes at most this share of a run: 10 epochs of 800 must not become 10 of 10.
WARMUP_SHARE = 0.1


def lr_factor(spec: ScheduleSpec, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """The learning rate of `step` (0-based) as a fraction of the peak.

    Warm-up is linear from peak/w to the peak over w steps. The schedule covers the remaining steps.
    """
    warmup = min(round(spec.warmup_epochs * steps_per_epoch), int(WARMUP_SHARE * total_steps))
    if step < warmup:
        return (step + 1) / warmup
    epoch = step / steps_per_epoch
    if spec.name == "cosine":
        progress = (step - warmup) / max(1, total_steps - warmup)
        return spec.lr_min + (1 - spec.lr_min) * 0.5 * (1 + math.cos(math.pi * progress))
    if spec.name == "step":
        return spec.gamma ** math.floor(epoch / spec.step_epochs)
    if spec.name == "exponential":
        whole = math.floor(epoch)
        late = max(0.0, whole - spec.phase_epochs)
        return float(spec.gamma ** min(whole, spec.phase_epochs) * spec.gamma_late**late)
    return 1.0
