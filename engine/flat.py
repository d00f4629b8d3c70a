"""Many tensors as one vector, each in the order in which it lies in memory: a convolution's channels_last weight is a
view of its part, where `reshape(-1)` would copy it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def flat(tensor: Tensor) -> Tensor:
    """The numbers of a tensor in the order of its memory, `[n]`; a view if it is contiguous or channels_last."""
    return (_last(tensor) if _is_channels_last(tensor) else tensor.contiguous()).view(-1)


def flattened(tensors: Sequence[Tensor]) -> Tensor:
    """All numbers of tensors of one dtype and device in a new vector."""
    return torch.cat([flat(t) for t in tensors])


def unflattened(vector: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Views of parts of the vector, of the shapes and strides of `tensors`: the reverse of `flattened`."""
    parts = vector.split([t.numel() for t in tensors])
    return [
        part.as_strided(t.shape, t.stride()) if _is_dense(t) else part.view(t.shape)
        for part, t in zip(parts, tensors, strict=True)
    ]


def _is_dense(tensor: Tensor) -> bool:
    return tensor.is_contiguous() or _is_channels_last(tensor)


def _last(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 2, 3, 1)


def _is_channels_last(tensor: Tensor) -> bool:
    """Whether only channels_last describes the memory; a 1 × 1 kernel is contiguous too, in the same order."""
    return tensor.ndim == 4 and not tensor.is_contiguous() and _last(tensor).is_contiguous()
