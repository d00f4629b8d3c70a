"""LARS as it is usually written: parameter by parameter, with a question to the device for each."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class LoopLARS:
    """The update of our `LARS(form="paper")` as a plain loop; `if norm > 0` makes the host wait for every norm."""

    def __init__(
        self, groups: Iterable[dict[str, object]], lr: float, momentum: float, trust_coefficient: float
    ) -> None:
        self.groups, self.lr, self.momentum, self.eta = list(groups), lr, momentum, trust_coefficient
        self.buffers: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(self) -> None:
        """One update."""
        for group in self.groups:
            params, decay = group["params"], group["weight_decay"]
            assert isinstance(params, list) and isinstance(decay, float)
            for p in params:
                ratio = 1.0
                if p.ndim > 1:
                    weight, grad = p.norm(), p.grad.norm()
                    if weight > 0 and grad > 0:
                        ratio = self.eta * weight / (grad + decay * weight)
                buffer = self.buffers.setdefault(p, torch.zeros_like(p))
                buffer.mul_(self.momentum).add_((p.grad + decay * p) * ratio * self.lr)
                p.sub_(buffer)
