"""LARS, Muon and the learning-rate schedules; SGD, Adam and AdamW are torch's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from .device import precisions
from .recipe import OptimizerSpec, ScheduleSpec


class _Foreach(torch.optim.Optimizer):
    """An optimizer whose `_update` moves all parameters of a group together."""

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
        raise NotImplementedError


class LARS(_Foreach):
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
        buffers = _momentum_buffers(self.state, params)
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, update)
        torch._foreach_sub_(params, buffers)


# One Newton–Schulz step maps each singular value σ to aσ + bσ³ + cσ⁵ (K. Jordan et al., "Muon: An optimizer for hidden
# layers in neural networks", 2024). The slope at zero is steep instead of the limit being exact: five steps bring every
# σ from 0.0015 to 1 into [0.68, 1.21].
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, steps: int = 5, dtype: torch.dtype | None = None) -> Tensor:
    """The nearly orthogonal factor of each matrix: U·p(S)·Vᵀ of U·S·Vᵀ, where p(S) is close to 1.

    S is scaled to a Frobenius norm of 1, then p is `steps` times the polynomial of `NEWTON_SCHULZ`. Any scale gives the
    same result. A matrix of zeros stays zero; one with NaN or infinity becomes NaN, and leaves the others as they are.

    Args:
        matrices: `[K, m, n]`, K matrices of one shape.
        steps: number of Newton–Schulz steps.
        dtype: that the products are computed in; None for that of `matrices`.

    Returns:
        `[K, m, n]` in `dtype`.
    """
    a, b, c = NEWTON_SCHULZ
    wide = matrices.size(1) <= matrices.size(2)
    x = matrices if wide else matrices.mT
    # By the largest entry first: the squares of tiny or huge entries have no place in fp32.
    dims = (1, 2)
    largest = torch.maximum(x.amax(dims, keepdim=True), -x.amin(dims, keepdim=True))
    x = x / torch.where(largest > 0, largest, 1)
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True)
    x = x.div_(torch.where(norm > 0, norm, 1)).to(dtype or x.dtype)
    # A step is X ← (aI + R)X, R = bG + cG², G = XXᵀ. The G of the next step is (aI + R)G(aI + R): where X is wide, it
    # costs less there than by XXᵀ anew, and X is multiplied once for two steps. Not for three: the rounding of G grows
    # by a² with each step, and what it adds to a singular value beyond 1.2 the next steps magnify.
    m, n = x.shape[1:]
    in_pairs = 2 * n > 3 * m
    while steps > 0:
        gram = x @ x.mT
        r = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        if in_pairs and steps >= 2:
            first = r.clone()
            first.diagonal(dim1=1, dim2=2).add_(a)
            gram = first @ gram @ first.mT
            r = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            x = torch.baddbmm(first, r, first, beta=a) @ x
            steps -= 2
        else:
            x = torch.baddbmm(x, r, x, beta=a)
            steps -= 1
    return x if wide else x.mT


@torch.compiler.assume_constant_result
def _products_in(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """bf16 where the device is fast in it; float64 stays, for it tells a wrong formula from rounding."""
    return torch.bfloat16 if dtype != torch.float64 and "bf16" in precisions(device) else dtype


class Muon(_Foreach):
    """Momentum whose matrices are orthogonalised, without a host synchronisation in the step.

    With gradient g, momentum m, learning rate lr and weight decay β: v ← m·v + g, u = g + m·v (Nesterov's form),
    w ← (1 − lr·β)·w − lr·√max(1, rows/columns)·O(u), where O is `orthogonalise` of the weight as `[out, in·kh·kw]`.
    In groups with `orthogonal=False` u itself is taken, which is SGD. A group's rate is `lr · lr_scale`: a schedule
    sets one `lr` in all groups, and their rates keep their ratio.

    Args:
        params: parameters of two or more dimensions, or groups; others belong into a group with `orthogonal=False`.
        lr: learning rate.
        momentum: m.
        weight_decay: β, decoupled.
        steps: Newton–Schulz steps.
        orthogonal: whether the group's updates are orthogonalised.
        lr_scale: what the group multiplies `lr` by.

    Raises:
        ValueError: a parameter to be orthogonalised has fewer than two dimensions, or there is none at all.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        steps: int = 5,
        orthogonal: bool = True,
        lr_scale: float = 1.0,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "steps": steps,
                "orthogonal": orthogonal,
                "lr_scale": lr_scale,
            },
        )
        matrices = [p for group in self.param_groups if group["orthogonal"] for p in group["params"]]
        if not matrices:
            raise ValueError("Muon needs weights of two or more dimensions, got none; train this module with sgd")
        if flat := [tuple(p.shape) for p in matrices if p.ndim < 2]:
            raise ValueError(f"Muon needs two or more dimensions, got {flat[0]}; use a group with orthogonal=False")

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        buffers = _momentum_buffers(self.state, params)
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, grads)
        update = list(torch._foreach_add(grads, buffers, alpha=group["momentum"]))
        lr = group["lr"] * group["lr_scale"]
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        if group["orthogonal"]:
            _orthogonalise_each(update, group["steps"])
        torch._foreach_mul_(update, lr)
        torch._foreach_sub_(params, update)


def _orthogonalise_each(updates: list[Tensor], steps: int) -> None:
    """In place, with the factor √max(1, rows/columns); matrices of one shape share their products."""
    by_shape: dict[tuple[Any, ...], list[Tensor]] = {}
    for u in updates:
        by_shape.setdefault((u.size(0), u[0].numel(), u.dtype, u.device), []).append(u)
    for (rows, columns, dtype, device), same in by_shape.items():
        stack = torch.stack([u.flatten(1) for u in same])
        result = orthogonalise(stack, steps, _products_in(dtype, device))
        for u, o in zip(same, result.unbind(), strict=True):
            u.copy_(o.reshape(u.shape))
        if rows > columns:
            torch._foreach_mul_(same, math.sqrt(rows / columns))


def _momentum_buffers(state: dict[Tensor, Any], params: list[Tensor]) -> list[Tensor]:
    """The momentum of each parameter, zeros where an optimizer's `state` has none yet."""
    for p in params:
        if "momentum_buffer" not in state[p]:
            state[p]["momentum_buffer"] = torch.zeros_like(p)
    return [state[p]["momentum_buffer"] for p in params]


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights of two or more dimensions with decay; batch norm and bias without (SimCLR paper, section 2.2)."""
    params = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _muon_groups(module: nn.Module, spec: OptimizerSpec) -> list[dict[str, Any]]:
    """Hidden weights to be orthogonalised; the convolution of the images' three channels, batch norm and bias by SGD.

    The first convolution's rows are colours beside each other, not features: there is no reason to treat its
    directions alike.
    """
    weights, rest = parameter_groups(module, spec.weight_decay)
    first = [p for p in weights["params"] if p.ndim == 4 and p.size(1) == 3]
    hidden = [p for p in weights["params"] if not any(p is q for q in first)]
    by_sgd = {"orthogonal": False, "lr_scale": spec.rest_lr / spec.lr}
    return [{**weights, "params": hidden}, {**weights, "params": first, **by_sgd}, {**rest, **by_sgd}]


def build_optimizer(module: nn.Module, spec: OptimizerSpec, lr: float) -> torch.optim.Optimizer:
    """The optimizer of the recipe for the parameters of `module`, with peak learning rate `lr`.

    Raises:
        ValueError: Muon, and the module has no matrix.
    """
    if spec.name == "muon":
        return Muon(_muon_groups(module, spec), lr, spec.momentum, steps=spec.muon_steps)
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
    raise ValueError(f"optimizer must be lars, sgd, adam, adamw or muon, got {spec.name!r}")


# The warm-up takes at most this share of a run: 10 epochs of 800 must not become 10 of 10.
WARMUP_SHARE = 0.1


def lr_factor(spec: ScheduleSpec, step: int | Fraction, total_steps: int, steps_per_epoch: int) -> float:
    """The learning rate of `step` (0-based) as a fraction of the peak. In a plan whose length was changed on the way,
    `step` is a fraction.

    Warm-up is linear from peak/w to the peak over w steps. The schedule covers the remaining steps.
    """
    warmup = min(round(spec.warmup_epochs * steps_per_epoch), int(WARMUP_SHARE * total_steps))
    if step < warmup:
        return float((step + 1) / warmup)
    epoch = float(step / steps_per_epoch)
    if spec.name == "cosine":
        progress = float((step - warmup) / max(1, total_steps - warmup))
        return spec.lr_min + (1 - spec.lr_min) * 0.5 * (1 + math.cos(math.pi * progress))
    if spec.name == "step":
        return spec.gamma ** math.floor(epoch / spec.step_epochs)
    if spec.name == "exponential":
        whole = math.floor(epoch)
        late = max(0.0, whole - spec.phase_epochs)
        return float(spec.gamma ** min(whole, spec.phase_epochs) * spec.gamma_late**late)
    return 1.0
