"""3×3 convolutions of small maps as matrix products: what training on a CPU spends most of its time on.

The last stages of a ResNet see maps of 4 × 4 pixels and less, for which oneDNN's convolutions are far from what the
same processor reaches in a matrix product. 512 → 512 channels, 128 images, bf16, one core with AMX, milliseconds of
forward, gradient of the input and gradient of the weight:

    2 × 2 pixels     25, 28, 60 as convolutions     2, 4, 3 as products, and 1 to gather the neighbourhoods
    4 × 4 pixels     31, 34, 88                     10, 14, 24, and 4

Every sum is taken in one product, in the precision that products have: nothing is rounded on the way.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SMALL = 4  # pixels, side of the output; from 8 on, oneDNN is ahead


def convolve(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """The convolution of 3 × 3 taps with a border of one zero, differentiable any number of times.

    Args:
        x: `[B, C, H, W]` of any float dtype; channels_last is fastest.
        weight: `[K, C, 3, 3]` of the same dtype.
        stride: 1 or more.

    Returns:
        `[B, K, ⌈H / stride⌉, ⌈W / stride⌉]`, channels_last.
    """
    result: Tensor = _Convolution.apply(x, weight, stride)
    return result


class _Convolution(torch.autograd.Function):
    """Keeps x, not its neighbourhoods, which are nine times as large and quickly gathered again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return _as_maps(neighbourhoods(x, stride) @ _as_matrix(weight).mT, x, stride)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        grad_x: Tensor | None = None
        grad_weight: Tensor | None = None
        if ctx.needs_input_grad[0]:
            if ctx.stride == 1:  # itself a convolution of this kind, with the taps turned round
                turned = weight.flip(2, 3).transpose(0, 1)
                grad_x = _as_maps(neighbourhoods(grad, 1) @ _as_matrix(turned).mT, grad, 1)
            else:
                grad_x = torch.ops.aten.convolution_backward(
                    grad, x, weight, None, [ctx.stride] * 2, [1, 1], [1, 1], False, [0, 0], 1, [True, False, False]
                )[0]
        if ctx.needs_input_grad[1]:
            outputs = grad.permute(0, 2, 3, 1).reshape(-1, len(weight))
            product = outputs.mT @ neighbourhoods(x, ctx.stride)
            grad_weight = product.view(len(weight), 3, 3, -1).permute(0, 3, 1, 2)
        return grad_x, grad_weight, None


def neighbourhoods(x: Tensor, stride: int) -> Tensor:
    """`[B·H'·W', 9·C]`: the 3 × 3 pixels around each output pixel, zeros outside, tap by tap."""
    height, width = x.shape[2:]
    bordered = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    taps = [bordered[:, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)]
    return torch.cat(taps, dim=3).view(-1, 9 * x.shape[1])


def _as_matrix(weight: Tensor) -> Tensor:
    """`[K, 9·C]`, tap by tap; of channels_last weights a view."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def _as_maps(rows: Tensor, x: Tensor, stride: int) -> Tensor:
    """`[B·H'·W', K]` → `[B, K, H', W']`."""
    batch, _, height, width = x.shape
    return rows.view(batch, -(-height // stride), -(-width // stride), -1).permute(0, 3, 1, 2)
