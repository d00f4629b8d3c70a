"""LARS, Muon and the learning-rate schedules; SGD, Adam and AdamW are torch's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from .device import precisions
from .flat import flattened, unflattened
from .recipe import OptimizerSpec, ScheduleSpec


class _Foreach(torch.optim.Optimizer):
    """An optimizer whose `_update` moves all parameters of a group together, and never waits for the device.

    Under a `torch.amp.GradScaler` gradients are divided by the scale here; where one is not finite, parameters and
    momentum stay as they are. A learning rate may be a tensor on the device.
    """

    _step_supports_amp_scaling = True  # GradScaler then sets `grad_scale` and `found_inf`, and does not ask the device

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's.

        Raises:
            ValueError: a rate of the group is negative, infinite or NaN.
        """
        super().add_param_group(param_group)
        for name in ("lr", "momentum", "weight_decay", "trust_coefficient", "lr_scale"):
            value = self.param_groups[-1].get(name, 0.0)
            if not 0 <= float(value) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {float(value)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        keep = None if found_inf is None else found_inf == 0
        inverse = None if scale is None else scale.double().reciprocal().float()  # as GradScaler does it
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads = [p.grad for p in params]
            if keep is not None:
                grads = _unscaled(grads, inverse, keep)
            self._update(params, grads, _momentum_buffers(self.state, params), group, keep)
        return loss

    def _update(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        buffers: list[Tensor],
        group: dict[str, Any],
        keep: Tensor | None,
    ) -> None:
        """keep: under a GradScaler, bool scalar: false where nothing may change, and all gradients are zero."""
        raise NotImplementedError


def _unscaled(grads: list[Tensor], inverse: Tensor | None, keep: Tensor) -> list[Tensor]:
    """The gradients times the inverse of the scale, or zeros."""
    vector = flattened(grads)
    if inverse is not None:
        vector.mul_(inverse)
    return unflattened(torch.where(keep, vector, 0.0), grads)


def _accumulate(buffers: list[Tensor], update: list[Tensor], momentum: float, keep: Tensor | None) -> None:
    """v ← m·v + update; v itself where nothing is kept, and the update is zero."""
    if keep is None:
        torch._foreach_mul_(buffers, momentum)
    else:
        torch._foreach_mul_(buffers, torch.where(keep, momentum, 1.0).to(buffers[0].dtype))
    torch._foreach_add_(buffers, update)


def _multiplied(tensors: list[Tensor], factors: Tensor, overwrite: bool) -> list[Tensor]:
    """Each tensor times its factor `[K]`. On a device in few launches: torch has none for a factor per tensor.

    overwrite: whether `tensors` may become the products. On a CPU new memory takes as long as the multiplication.
    """
    if tensors[0].device.type == "cpu" or torch.compiler.is_compiling():
        each = list(factors.unbind())
        if not overwrite:
            return list(torch._foreach_mul(tensors, each))
        torch._foreach_mul_(tensors, each)
        return tensors
    spread = torch.cat([f.expand(t.numel()) for f, t in zip(factors.unbind(), tensors, strict=True)])
    return unflattened(spread.mul_(flattened(tensors)), tensors)


class LARS(_Foreach):
    """Layer-wise adaptive rate scaling, without a host synchronisation in the step.

    Two published forms; with momentum m, weight decay β and trust coefficient η, both keep lr inside the momentum
    buffer (v ← m·v + lr·λ·u, w ← w − v):

    - `paper`: λ = η‖w‖ / (‖g‖ + β‖w‖), u = g + βw (You, Gitman, Ginsburg 2017, algorithm 1).
    - `google`: λ = η‖w‖ / ‖g + βw‖, u = g + βw (google-research/simclr: the decay is inside the norm).

    λ is 1 where the weight is zero, or in `google` the norm below. In `paper` a weight whose gradient is zero gets no
    update, decay included (λ would be η/β: a layer without signal would shrink); as in lightly, solo-learn and bolts.
    Parameters of at most one dimension (batch norm, bias) have neither trust ratio nor weight decay:
    `parameter_groups` puts them into a group with `adapt=False`.

    Raises:
        ValueError: an unknown form, or a rate that is negative, infinite or NaN.
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

    def _update(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        buffers: list[Tensor],
        group: dict[str, Any],
        keep: Tensor | None,
    ) -> None:
        lr = group["lr"] if keep is None else torch.where(keep, group["lr"], 0.0)
        decay = group["weight_decay"]
        update = list(torch._foreach_add(grads, params, alpha=decay)) if decay else grads
        if group["adapt"]:
            factors = (self._trust(params, grads, update, group) * lr).to(update[0].dtype)
            update = _multiplied(update, factors, overwrite=update is not grads)
        else:
            update = list(torch._foreach_mul(update, lr))
        _accumulate(buffers, update, group["momentum"], keep)
        torch._foreach_sub_(params, buffers if keep is None else torch._foreach_mul(buffers, keep.to(buffers[0].dtype)))

    @staticmethod
    def _trust(params: list[Tensor], grads: list[Tensor], update: list[Tensor], group: dict[str, Any]) -> Tensor:
        """λ of each tensor `[K]`; 0 where there is to be no update."""
        eta, weight_norm = group["trust_coefficient"], torch.stack(torch._foreach_norm(params))
        if group["form"] == "google":
            gradient_norm = denominator = torch.stack(torch._foreach_norm(update))
        else:
            gradient_norm = torch.stack(torch._foreach_norm(grads))
            denominator = gradient_norm + group["weight_decay"] * weight_norm
        usable = (weight_norm > 0) & (denominator > 0)
        # The inner `where` avoids 0/0 in the branch that is not selected.
        ratio = torch.where(usable, eta * weight_norm / torch.where(usable, denominator, 1.0), 1.0)
        return torch.where(gradient_norm == 0, 0.0, ratio)


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
        gram = torch.bmm(x, x.mT)
        r = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        if in_pairs and steps >= 2:
            first = r.clone()
            first.diagonal(dim1=1, dim2=2).add_(a)
            gram = torch.bmm(torch.bmm(first, gram), first.mT)
            r = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            x = torch.bmm(torch.baddbmm(first, r, first, beta=a), x)
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
        ValueError: a parameter to be orthogonalised has fewer than two dimensions, or there is none at all; a rate
            that is negative, infinite or NaN.
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

    def _update(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        buffers: list[Tensor],
        group: dict[str, Any],
        keep: Tensor | None,
    ) -> None:
        _accumulate(buffers, grads, group["momentum"], keep)
        update = list(torch._foreach_add(grads, buffers, alpha=group["momentum"]))
        lr = group["lr"] * group["lr_scale"]
        if keep is not None:
            lr = torch.where(keep, lr, 0.0)
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        if group["orthogonal"]:
            update = _orthogonalised(update, group["steps"])
        torch._foreach_sub_(params, torch._foreach_mul(update, lr))


def _orthogonalised(updates: list[Tensor], steps: int) -> list[Tensor]:
    """Each with the factor √max(1, rows/columns); matrices of one shape share their products.

    A row of a matrix is taken as it lies in memory: the order of columns does not matter.
    """
    by_shape: dict[tuple[Any, ...], list[int]] = {}
    for i, u in enumerate(updates):
        by_shape.setdefault((len(u), u.numel() // len(u), u.dtype, u.device), []).append(i)
    results = list(updates)
    for (rows, columns, dtype, device), places in by_shape.items():
        same = [updates[i] for i in places]
        stack = flattened(same).view(len(same), rows, columns)
        found = orthogonalise(stack, steps, _products_in(dtype, device)).to(dtype)
        if rows > columns:
            found = found * math.sqrt(rows / columns)
        for i, result in zip(places, unflattened(found.reshape(-1), same), strict=True):
            results[i] = result
    return results


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


def warmup_steps(spec: ScheduleSpec, total_steps: int, steps_per_epoch: int) -> tuple[int, int]:
    """Steps of warm-up, and how many the recipe asks for."""
    asked = round(spec.warmup_epochs * steps_per_epoch)
    return min(asked, int(WARMUP_SHARE * total_steps)), asked


def lr_factor(spec: ScheduleSpec, step: int | Fraction, total_steps: int, steps_per_epoch: int) -> float:
    """The learning rate of `step` (0-based) as a fraction of the peak. In a plan whose length was changed on the way,
    `step` is a fraction.

    Warm-up is linear from peak/w to the peak over w steps. The schedule covers the remaining steps.
    """
    warmup, _ = warmup_steps(spec, total_steps, steps_per_epoch)
    if step < warmup:
        return float((step + 1) / warmup)
    epoch = float(step / steps_per_epoch)
    if spec.name in ("cosine", "linear"):
        progress = float((step - warmup) / max(1, total_steps - warmup))
        left = 1 - progress if spec.name == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return spec.lr_min + (1 - spec.lr_min) * left
    if spec.name == "step":
        # As the decimal that the recipe says: in binary, 0.3 epochs are less than three times 0.1.
        return float(spec.gamma ** (step // (steps_per_epoch * Fraction(str(spec.step_epochs)))))
    if spec.name == "exponential":
        whole = math.floor(epoch)
        late = max(0.0, whole - spec.phase_epochs)
        return float(spec.gamma ** min(whole, spec.phase_epochs) * spec.gamma_late**late)
    return 1.0
