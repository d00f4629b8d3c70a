"""`augment`: check the arguments, pick a backend, run it."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from ..dispatch import pick
from . import dali, eager, fused, native
from .spec import AugmentSpec
from .table import COLUMNS

# Backend → module. Beside `why_not(device)`, each has `augment(images, params, spec, size, dtype)`. None imports what
# may be missing.
BACKENDS: dict[str, ModuleType] = {"triton": fused, "native": native, "dali": dali, "torch": eager}
# DALI is used only by name: its hue and the order of its jitter are its own.
PREFERENCE = {"cuda": ("triton", "torch"), "cpu": ("native", "torch"), "mps": ("native", "torch")}

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def pick_augment(backend: str = "auto", device: torch.device | str = "cpu") -> tuple[str, str]:
    """The backend that `augment` would use, and why.

    Returns:
        (name, reason).

    Raises:
        ValueError: there is no backend of this name, or it cannot serve this device; the message says why.
    """
    return pick("augmentation", BACKENDS, PREFERENCE, backend, device)


def augment(
    images: Tensor,
    params: Tensor,
    spec: AugmentSpec,
    size: int | None = None,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> Tensor:
    """Views of images, each with its own crop, flip, colour jitter, gray and blur, normalised.

    Args:
        images: uint8 `[B, H, W, 3]`, H = W = `spec.image_size`.
        params: float32 `[V·B, P]` on the same device, from `draw_params` with the same spec; row v·B + i is view v of
            image i.
        spec: for its normalisation and blur kernel; operations with probability 0 are skipped.
        size: side S of the views in pixels; by default the image's own.
        dtype: float32, float16 or bfloat16 (or float64, for tests).
        backend: "auto" or a name; see `pick_augment`.

    Returns:
        `[V·B, 3, S, S]` of `dtype`, channels_last.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit together; a backend that cannot serve this.

    Example:
        >>> spec = AugmentSpec(image_size=32)
        >>> params = draw_params(spec, seed=0, epoch=0, sample_ids=torch.arange(8), views=2)
        >>> augment(torch.zeros(8, 32, 32, 3, dtype=torch.uint8), params, spec).shape
        torch.Size([16, 3, 32, 32])
    """
    size = spec.image_size if size is None else size
    _check(images, params, spec, size, dtype)
    name, _ = pick_augment(backend, images.device)
    views: Tensor = BACKENDS[name].augment(images, params, spec, size, dtype)
    return views


def _check(images: Tensor, params: Tensor, spec: AugmentSpec, size: int, dtype: torch.dtype) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"images must be uint8 [B, H, W, 3], not {images.dtype} {list(images.shape)}")
    batch, height, width, _ = images.shape
    if (height, width) != (spec.image_size, spec.image_size):
        raise ValueError(f"images are {height}×{width} pixels, but spec.image_size is {spec.image_size}")
    if params.ndim != 2 or params.shape[1] != len(COLUMNS) or not params.is_floating_point():
        raise ValueError(f"params must be float32 [V·B, {len(COLUMNS)}], not {params.dtype} {list(params.shape)}")
    if batch == 0 or len(params) == 0 or len(params) % batch:
        raise ValueError(f"params must have a row for each view of each image, not {len(params)} for {batch} images")
    if params.device != images.device:
        raise ValueError(f"images are on {images.device}, params on {params.device}: they must be on the same device")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be a whole number of pixels, at least 1, not {size!r}")
    if spec.blur > 0 and spec.blur_kernel // 2 >= size:
        raise ValueError(f"views of {size} pixels are too small for a blur kernel of {spec.blur_kernel}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(str(d) for d in DTYPES)}, not {dtype}")
