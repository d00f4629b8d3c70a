"""3×3 convolutions of small maps as matrix products, for training on a CPU.

The last stages of a ResNet see maps of 4 × 4 pixels and less, where much of every 3 × 3 neighbourhood lies outside of
the map. Here output pixels that see the same taps share one product, which leaves the zeros outside out: a map of
2 × 2 pixels needs 16 of 36 multiplications, one of 4 × 4 pixels 100 of 144. Every sum is taken in one product, in the
precision that products have: nothing is rounded on the way. Milliseconds of forward and of both gradients, 512 maps,
bf16, one core of an AMD EPYC with AVX512-BF16 and without AMX, torch 2.13 with oneDNN:

    512 → 512 channels, 2 × 2 pixels             46 and 127 as convolutions     25 and 47 as products
    256 → 512 channels, 4 × 4 to 2 × 2 pixels    31 and  97                     18 and 49
    256 → 256 channels, 4 × 4 pixels             32 and  79                     38 and 80
    128 → 128 channels, 8 × 8 pixels             38 and  83                     72 and 137
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

SMALL = 4  # pixels, side of the output; from 8 on, oneDNN is ahead


class Span(NamedTuple):
    """Neighbouring outputs along one side of a map, which see the same taps of the three inside the map."""

    outputs: slice
    taps: slice

    @property
    def length(self) -> int:
        """The number of outputs."""
        return int(self.outputs.stop - self.outputs.start)


def spans(size: int, stride: int) -> list[Span]:
    """The outputs of a side of `size` pixels with a border of one, in up to three spans."""

    def seen(output: int) -> tuple[int, int]:
        first = output * stride - 1
        return max(0, -first), min(3, size - first)

    runs = [(taps, list(run)) for taps, run in groupby(range(-(-size // stride)), seen)]
    return [Span(slice(run[0], run[-1] + 1), slice(*taps)) for taps, run in runs]


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
    """Keeps x, not its neighbourhoods, which are up to nine times as large and quickly gathered again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        taps_last = weight.permute(0, 2, 3, 1)
        return _products(x, stride, lambda i, j: taps_last[:, i, j].reshape(len(weight), -1).mT)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        grad_x: Tensor | None = None
        grad_weight: Tensor | None = None
        if ctx.needs_input_grad[0]:
            if ctx.stride == 1:  # itself a convolution of this kind, with the taps turned round
                turned = weight.flip(2, 3).permute(2, 3, 0, 1)
                grad_x = _products(grad, 1, lambda i, j: turned[i, j].reshape(-1, weight.shape[1]))
            else:
                grad_x = torch.ops.aten.convolution_backward(
                    grad, x, weight, None, [ctx.stride] * 2, [1, 1], [1, 1], False, [0, 0], 1, [True, False, False]
                )[0]
        if ctx.needs_input_grad[1]:
            grad_weight = _gradient_of_weight(x, grad, ctx.stride)
        return grad_x, grad_weight, None


def _products(x: Tensor, stride: int, matrix: Callable[[slice, slice], Tensor]) -> Tensor:
    """The convolution, where `matrix` gives the weights `[taps · C, K]` of some rows and columns of taps."""
    pixels = x.permute(0, 2, 3, 1)
    lines = []
    for rows in spans(x.shape[2], stride):
        line = []
        for columns in spans(x.shape[3], stride):
            products = _neighbourhoods(pixels, rows, columns, stride) @ matrix(rows.taps, columns.taps)
            line.append(products.view(len(x), rows.length, columns.length, -1))
        lines.append(torch.cat(line, dim=2))
    return torch.cat(lines, dim=1).permute(0, 3, 1, 2)


def _neighbourhoods(pixels: Tensor, rows: Span, columns: Span, stride: int) -> Tensor:
    """`[B, H, W, C]` → `[B · outputs, taps · C]`: what the outputs of two spans see, tap by tap."""

    def seen(span: Span) -> slice:
        start, stop = span.outputs.start * stride - 1, (span.outputs.stop - 1) * stride - 1
        return slice(start + span.taps.start, stop + span.taps.stop)

    windows = pixels[:, seen(rows), seen(columns)]
    for side, span in ((1, rows), (2, columns)):
        windows = windows.unfold(side, span.taps.stop - span.taps.start, stride)
    return windows.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(0, 2)


def _gradient_of_weight(x: Tensor, grad: Tensor, stride: int) -> Tensor:
    """`[K, C, 3, 3]`, a product for each tap: of the outputs where it lies inside the map with what it sees there."""

    def inside(tap: int, size: int, outputs: int) -> tuple[slice, slice]:
        first, last = int(tap == 0), min(outputs - 1, (size - tap) // stride)
        return slice(first, last + 1), slice(first * stride - 1 + tap, last * stride + tap, stride)

    pixels, gradients = x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)
    products = []
    for i in range(3):
        rows, seen_rows = inside(i, x.shape[2], grad.shape[2])
        for j in range(3):
            columns, seen_columns = inside(j, x.shape[3], grad.shape[3])
            outputs = gradients[:, rows, columns].flatten(0, 2)
            products.append(outputs.mT @ pixels[:, seen_rows, seen_columns].flatten(0, 2))
    return torch.stack(products, dim=1).unflatten(1, (3, 3)).permute(0, 3, 1, 2)
