"""Colour operations on batches of views held as planes `[3, n, S, S]` in [0, 1], each view with its own factor `[n]`.

The formulas are torchvision's, for images of floats. Every function works in place and returns its argument.
"""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # torchvision's rgb_to_grayscale (ITU-R 601-2)


def grayscale(planes: Tensor) -> Tensor:
    """The gray plane `[n, S, S]`."""
    red, green, blue = planes
    return (red * GRAY_WEIGHTS[0]).add_(green, alpha=GRAY_WEIGHTS[1]).add_(blue, alpha=GRAY_WEIGHTS[2])


def brightness_(planes: Tensor, factor: Tensor) -> Tensor:
    """factor · x, clamped."""
    return planes.mul_(_each(factor)).clamp_(0, 1)


def contrast_(planes: Tensor, factor: Tensor) -> Tensor:
    """factor · x + (1 − factor) · (the view's mean gray), clamped."""
    # The mean of the gray is the gray of the means: three numbers per view instead of a plane.
    pivot = grayscale(planes.mean((2, 3)))
    return planes.mul_(_each(factor)).add_(_each((1 - factor) * pivot)).clamp_(0, 1)


def saturation_(planes: Tensor, factor: Tensor) -> Tensor:
    """factor · x + (1 − factor) · gray, clamped."""
    gray = grayscale(planes).mul_(_each(1 - factor))
    return planes.mul_(_each(factor)).add_(gray).clamp_(0, 1)


def hue_(planes: Tensor, turn: Tensor) -> Tensor:
    """Rotate the hue by `turn` (1 = once around), keeping HSV's saturation and value.

    A pixel's max and min stay, and every channel is min + (max − min) · t(H), t a trapezoid in the hue H, in sixths of
    the circle: |H − 3| − 1 for red, 2 − |H − 2| for green, 2 − |H − 4| for blue, clamped to [0, 1]. That is
    f(n) = v − v·s·max(0, min(k, 4 − k, 1)), k = (n + H) mod 6, written out for the three n; no branch per sector.

    H comes from sorting the channels by minima and maxima (Hocevar's form): sorted, the difference of the two smaller,
    over the chroma, is the place within a sector, and which swaps were needed says which sector. Comparisons are
    written as sign(), because torch.where is not vectorised on the CPU and would be most of the time.
    """
    red, green, blue = planes
    swap_low = torch.sub(blue, green).sign_().clamp_min_(0)  # 1 where green < blue
    upper, lower = torch.maximum(green, blue), torch.minimum(green, blue)
    swap_high = torch.sub(upper, red).sign_().clamp_min_(0)  # 1 where red < max(green, blue)
    high, middle = torch.maximum(red, upper), torch.minimum(red, upper)
    low = torch.minimum(middle, lower)
    chroma = high.sub_(low)
    # Sector: 0 or −6 without the second swap, −2 or 4 with it.
    sector = (swap_low * 12).sub_(2).mul_(swap_high).sub_(swap_low, alpha=6)
    # Without chroma the numerator is 0 as well, and so is H, which then has no effect.
    hue = middle.sub_(lower).div_(chroma.clamp_min(1e-30)).add_(sector).abs_().add_(_each(6 * turn))
    hue.sub_(torch.floor(hue * (1 / 6)), alpha=6)
    torch.sub(hue, 3, out=red).abs_().sub_(1)
    torch.sub(hue, 2, out=green).abs_().neg_().add_(2)
    torch.sub(hue, 4, out=blue).abs_().neg_().add_(2)
    planes.clamp_(0, 1).mul_(chroma).add_(low)
    return planes


OPERATIONS = (brightness_, contrast_, saturation_, hue_)
# The order column of the parameters: row k says which operation comes first, second, third and last.
JITTER_ORDERS = tuple(permutations(range(len(OPERATIONS))))
NO_JITTER = len(JITTER_ORDERS)  # in place of a row, for a view that is left alone


def jitter_grouped_(planes: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Every view's four operations in its own order; neighbours of one order together. For devices that share the host.

    Args:
        planes: `[3, n, S, S]`, changed in place.
        factors: `[n, 4]`: brightness, contrast, saturation, hue.
        order: int64 `[n]`, a row of `JITTER_ORDERS` or NO_JITTER. Sorted is fastest.
    """
    numbers, counts = torch.unique_consecutive(order, return_counts=True)
    first = 0
    for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
        rows = slice(first, first + count)
        first += count
        for operation in JITTER_ORDERS[number] if number != NO_JITTER else ():
            OPERATIONS[operation](planes[:, rows], factors[rows, operation])
    return planes


def jitter_masked_(planes: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """As `jitter_grouped_`, without asking the device for anything: all operations for all views, four times."""
    for step in range(len(OPERATIONS)):
        result = planes
        for number, operation in enumerate(OPERATIONS):
            # Bit k says whether order k has this operation at this step: a constant, where a table would be a copy.
            bits = sum(1 << k for k, operations in enumerate(JITTER_ORDERS) if operations[step] == number)
            chosen = ((bits >> order) & 1 == 1)[:, None, None]
            result = torch.where(chosen, operation(planes.clone(), factors[:, number]), result)
        planes.copy_(result)
    return planes


def _each(values: Tensor) -> Tensor:
    """One number per view, shaped to meet planes."""
    return values[..., None, None]
