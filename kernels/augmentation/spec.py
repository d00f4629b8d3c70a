"""AugmentSpec: the distributions that views are drawn from. Torch-free, so that recipes load without it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class AugmentSpec:
    """What may happen to an image that becomes a view, in the order crop, flip, jitter, gray, blur, normalise.

    Strengths and ranges mean what they mean in torchvision (`RandomResizedCrop`, `ColorJitter`, `RandomGrayscale`,
    `GaussianBlur`, `Normalize`). Sequences may be given as lists, as a TOML file has them; they are kept as tuples.

    Args:
        image_size: side in pixels of the (square) stored images; crops are drawn in it.
        crop_scale: smallest and largest share of the image's area that a crop covers, in (0, 1].
        crop_ratio: smallest and largest width / height of a crop, in [0.01, 100].
        flip: probability of mirroring left and right.
        jitter: probability of colour jitter.
        brightness: factor drawn from [max(0, 1 − b), 1 + b].
        contrast: likewise; the pivot is the view's own mean gray.
        saturation: likewise.
        hue: shift drawn from [−h, h], in turns of the colour circle, h ≤ 0.5.
        gray: probability of dropping the colour.
        blur: probability of a Gaussian blur.
        blur_kernel: odd side of the blur's kernel, in pixels of the view.
        blur_sigma: smallest and largest standard deviation of the blur, in pixels of the view.
        mean: subtracted per channel, on the scale where white is 1.
        std: divided by per channel.

    Raises:
        ValueError: a value outside its range; the message names the field, the value and the range.
    """

    image_size: int = 32
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    gray: float = 0.2
    blur: float = 0.0
    blur_kernel: int = 3
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        _whole("image_size", self.image_size, least=1)
        _whole("blur_kernel", self.blur_kernel, least=1)
        if self.blur_kernel % 2 == 0:
            raise ValueError(f"blur_kernel must be odd, not {self.blur_kernel}")
        for name in ("flip", "jitter", "gray", "blur"):
            self._keep(name, _number(name, getattr(self, name), 0.0, 1.0))
        for name in ("brightness", "contrast", "saturation"):
            self._keep(name, _number(name, getattr(self, name), 0.0, math.inf))
        self._keep("hue", _number("hue", self.hue, 0.0, 0.5))
        self._keep("crop_scale", _interval("crop_scale", self.crop_scale, 0.0, 1.0))
        self._keep("crop_ratio", _interval("crop_ratio", self.crop_ratio, 0.01, 100.0))
        self._keep("blur_sigma", _interval("blur_sigma", self.blur_sigma, 0.0, math.inf))
        self._keep("mean", _numbers("mean", self.mean, 3))
        self._keep("std", _numbers("std", self.std, 3))
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive in every channel, not {self.std}")
        if self.crop_scale[0] == 0 or self.blur_sigma[0] == 0:
            raise ValueError(
                f"crop_scale and blur_sigma must start above 0, not {self.crop_scale} and {self.blur_sigma}"
            )

    def fallback_sides(self) -> tuple[int, int]:
        """Height and width in pixels of the crop where no attempt fits: torchvision's for a square image, as large as
        the ratio's range allows."""
        narrowest, widest = self.crop_ratio
        width = max(1, round(self.image_size * widest)) if widest < 1 else self.image_size
        height = max(1, round(self.image_size / narrowest)) if narrowest > 1 else self.image_size
        return height, width

    def _keep(self, name: str, value: object) -> None:
        """The normalised form (floats, tuples), so that equal distributions compare and print equal."""
        object.__setattr__(self, name, value)


def factor_range(strength: float) -> tuple[float, float]:
    """Smallest and largest factor of brightness, contrast or saturation at a strength, as torchvision's ColorJitter."""
    return max(0.0, 1.0 - strength), 1.0 + strength


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")


def _number(name: str, value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} must be a number, not {value!r}")
    if not (low <= value <= high and math.isfinite(value)):
        wanted = f"at least {low:g} and finite" if math.isinf(high) else f"between {low:g} and {high:g}"
        raise ValueError(f"{name} must be {wanted}, not {value!r}")
    return float(value)


def _numbers(name: str, values: object, count: int) -> tuple[float, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != count:
        raise ValueError(f"{name} must be {count} numbers, not {values!r}")
    kept = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{name} must be {count} finite numbers, not {values!r}")
        kept.append(float(value))
    return tuple(kept)


def _interval(name: str, values: object, low: float, high: float) -> tuple[float, ...]:
    first, last = _numbers(name, values, 2)
    if first > last:
        raise ValueError(f"{name} must be given as smallest, largest, not {values!r}")
    return _number(name, first, low, high), _number(name, last, low, high)
