"""A backend's loss and gradient as two operators, which torch.compile sees as one node each.

`simclr_engine::NAME_forward(z, views, temperature)` returns the loss and two tensors that the gradient needs;
`NAME_backward(grad_output, z, first, second, views, temperature)` is the gradient. What a compiler traces is
differentiated once: a second derivative raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("simclr_engine", "FRAGMENT")  # operators live as long as this object

Forward = Callable[[Tensor, int, float], tuple[Tensor, Tensor, Tensor]]


def register(name: str, forward: Forward, backward: Callable[..., Tensor], shapes: Forward, keys: list[str]) -> None:
    """Defines both operators.

    Args:
        name: what their names begin with.
        forward, backward: what they compute, in the order of arguments above.
        shapes: `forward` for tensors without numbers.
        keys: dispatch keys that they are computed for.
    """
    _LIBRARY.define(f"{name}_forward(Tensor z, int views, float temperature) -> (Tensor, Tensor, Tensor)")
    _LIBRARY.define(
        f"{name}_backward(Tensor grad_output, Tensor z, Tensor first, Tensor second, int views, float temperature)"
        " -> Tensor"
    )
    gradient = getattr(torch.ops.simclr_engine, f"{name}_backward")

    def differentiated(ctx: Any, grad_output: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:
        return gradient(grad_output, *ctx.saved_tensors, *ctx.settings), None, None

    for key in keys:
        _LIBRARY.impl(f"{name}_forward", forward, key)
        _LIBRARY.impl(f"{name}_backward", backward, key)
    made, slope = f"simclr_engine::{name}_forward", f"simclr_engine::{name}_backward"
    torch.library.register_fake(made, shapes, lib=_LIBRARY)
    torch.library.register_fake(slope, lambda grad_output, z, *_: z.new_empty(z.shape), lib=_LIBRARY)
    torch.library.register_autograd(made, differentiated, setup_context=_keep, lib=_LIBRARY)
    torch.library.register_autograd(slope, _refuse, lib=_LIBRARY)
    torch.library.register_vmap(made, _rule(made), lib=_LIBRARY)
    torch.library.register_vmap(slope, _rule(slope), lib=_LIBRARY)


def one_by_one(
    function: Callable[..., Any], count: int, in_dims: tuple[int | None, ...], inputs: tuple[Any, ...]
) -> tuple[Any, Any]:
    """The rule for vmap: each element of the batch by itself, because one loss fills a device already."""
    results = [
        function(*(x if dim is None else x.select(dim, i) for x, dim in zip(inputs, in_dims, strict=True)))
        for i in range(count)
    ]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    stacked = tuple(None if parts[0] is None else torch.stack(parts) for parts in zip(*results, strict=True))
    return stacked, tuple(None if part is None else 0 for part in stacked)


def _rule(name: str) -> Callable[..., tuple[Any, Any]]:
    space, operator = name.split("::")
    function = getattr(getattr(torch.ops, space), operator)
    return lambda info, in_dims, *inputs: one_by_one(function, info.batch_size, in_dims, inputs)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    z, *ctx.settings = inputs
    ctx.save_for_backward(z, *output[1:])


def _refuse(ctx: Any, *_: Tensor) -> None:
    raise RuntimeError("a compiled NT-Xent has no second derivative; compute it outside of torch.compile")
