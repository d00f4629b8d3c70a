"""Batch norm whose statistics are those of all ranks, with one message per layer and direction.

Each rank adds up, for each channel, x − s and (x − s)², where s is the running mean: the same on all ranks, and near
the mean, so that nothing cancels in the variance. With the number of values that is one all-reduce. Backward sums ∂y
and ∂y·x̂ over the ranks. Nothing is selected by mask and the host waits for nothing; the sum is an operator that
torch.compile keeps whole. On one rank, and on any device, it is batch norm.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import CheckFailed

_LIBRARY = torch.library.Library("simclr_engine", "FRAGMENT")  # the operator lives as long as this object
_LIBRARY.define("sum_over_ranks(Tensor mine) -> Tensor")


def _sum_over_ranks(mine: Tensor) -> Tensor:
    total = mine.clone()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
    return total


_LIBRARY.impl("sum_over_ranks", _sum_over_ranks, "CompositeExplicitAutograd")
torch.library.register_fake("simclr_engine::sum_over_ranks", torch.empty_like, lib=_LIBRARY)


class _Normalise(torch.autograd.Function):
    """x `[B, C, …]` → y of the same shape and dtype, and mean and (biased) variance `[C]` over all ranks, and their
    number of values; the latter three are not differentiable. Keeps x alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims, channels = _all_but_channels(x), x.size(1)
        moved = _as_statistics(x) - _wide(shift, x)
        count = moved.new_full((1,), x.numel() / channels)
        sums = torch.cat((moved.sum(dims), moved.square().sum(dims), count))
        first, second, count = torch.ops.simclr_engine.sum_over_ranks(sums).split([channels, channels, 1])
        offset = first / count
        mean, variance = shift + offset, (second / count - offset.square()).clamp_min(0)
        scale = torch.rsqrt(variance + eps)
        y = (_as_statistics(x) - _wide(mean, x)) * _wide(scale * weight, x) + _wide(bias, x)
        ctx.save_for_backward(x, weight, mean, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return y.to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, mean, scale, count = ctx.saved_tensors
        dims, channels = _all_but_channels(x), x.size(1)
        slope = _as_statistics(grad)
        unit = (_as_statistics(x) - _wide(mean, x)) * _wide(scale, x)
        mine = torch.cat((slope.sum(dims), (slope * unit).sum(dims)))
        for_bias, for_weight = mine.split(channels)
        level, along = (torch.ops.simclr_engine.sum_over_ranks(mine) / count).split(channels)
        grad_x = (slope - _wide(level, x) - unit * _wide(along, x)) * _wide(scale * weight, x)
        return grad_x.to(x.dtype), for_weight, for_bias, None, None


class SynchronisedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """`nn.BatchNorm1d` or `2d` with statistics over all ranks of torch.distributed; every rank must take part.

    Parameters and buffers have the names and meaning of torch's. In eval mode it is torch's.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`[B, C, …]` → the same shape and dtype."""
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        if not self.training:
            mean, variance = self.running_mean, self.running_var
            return F.batch_norm(input, mean, variance, self.weight, self.bias, False, 0.0, self.eps)
        shift = self.running_mean.clone()
        y, mean, variance, count = _Normalise.apply(input, self.weight, self.bias, shift, self.eps)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        result: Tensor = y
        return result

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions from two on."""


def synchronise_batch_norm(model: nn.Module) -> nn.Module:
    """Makes every batch norm of the model compute its statistics over all ranks. Parameter names do not change.

    Raises:
        CheckFailed: there is no batch norm, or one has no weights, no running statistics or no momentum.
    """
    found = 0
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, _synchronised(child))
                found += 1
    if not found:
        raise CheckFailed("batch norm is not synchronised", saw="no batch norm", fix="report this")
    return model


def _synchronised(norm: nn.modules.batchnorm._BatchNorm) -> SynchronisedBatchNorm:
    if not norm.affine or not norm.track_running_stats or norm.momentum is None:
        raise CheckFailed("batch norm is not synchronised", saw=str(norm), fix="report this")
    ours = SynchronisedBatchNorm(norm.num_features, norm.eps, norm.momentum)
    ours.weight, ours.bias = norm.weight, norm.bias
    ours.running_mean, ours.running_var = norm.running_mean, norm.running_var
    ours.num_batches_tracked = norm.num_batches_tracked
    return ours.train(norm.training)


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]


def _wide(per_channel: Tensor, x: Tensor) -> Tensor:
    """`[C]` → `[1, C, 1, …]`."""
    return per_channel.view(1, -1, *(1 for _ in range(x.ndim - 2)))


def _as_statistics(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x if x.dtype == torch.float64 else x.float()
