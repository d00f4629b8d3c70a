"""The plain truth of augmentation: one view at a time, torchvision's own functions, float64."""

from __future__ import annotations

import torch
import torchvision.transforms.functional as F
from torch import Tensor
from torchvision.transforms import _functional_tensor as hsv

from simclr_engine.kernels import AugmentSpec
from simclr_engine.kernels.augmentation.table import COLUMNS, JITTER_ORDERS


def adjust_hue(image: Tensor, turn: float) -> Tensor:
    """`F.adjust_hue` without its detour through float32: the same two functions of torchvision, in float64."""
    hue, saturation, value = hsv._rgb2hsv(image).unbind(-3)
    return hsv._hsv2rgb(torch.stack(((hue + turn) % 1.0, saturation, value), -3))


def operation(number: int, image: Tensor, factor: float) -> Tensor:
    """Brightness, contrast, saturation or hue, numbered as in torchvision's ColorJitter."""
    return (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, adjust_hue)[number](image, factor)


def view(image: Tensor, row: Tensor, spec: AugmentSpec, size: int) -> Tensor:
    """One finished view, float64 `[3, size, size]`, of a uint8 `[H, W, 3]` image and its row of parameters."""
    p = dict(zip(COLUMNS, row.double().tolist(), strict=True))
    x = image.permute(2, 0, 1).double() / 255
    box = [int(p[name]) for name in ("y", "x", "h", "w")]
    x = F.resized_crop(x, *box, [size, size], antialias=True)
    if p["flip"]:
        x = F.hflip(x)
    if p["jitter_on"]:
        factors = [p["brightness"], p["contrast"], p["saturation"], p["hue"]]
        for number in JITTER_ORDERS[int(p["order"])]:
            x = operation(number, x, factors[number])
    if p["gray"]:
        x = F.rgb_to_grayscale(x, 3)
    if p["sigma"]:
        x = F.gaussian_blur(x, [spec.blur_kernel] * 2, [p["sigma"]] * 2)
    return F.normalize(x, list(spec.mean), list(spec.std))


def augment(images: Tensor, params: Tensor, spec: AugmentSpec, size: int) -> Tensor:
    """All views, float64 `[V·B, 3, size, size]`."""
    return torch.stack([view(images[i % len(images)], row, spec, size) for i, row in enumerate(params)])
