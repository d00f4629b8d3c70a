"""The PyTorch backend: batched augmentation with every view's own parameters, on any device.

It is what the other backends are compared with. Order of operations: crop and resize, flip, jitter, gray, blur,
normalise. Values stay floats in [0, 1] throughout; torchvision on PIL images rounds to 8 bits after each operation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .spec import AugmentSpec
from .table import BRIGHTNESS, FLIP, GRAY, HUE, JITTER_ON, JITTER_ORDERS, NO_JITTER, ORDER, SIGMA, H, W, X, Y

# Pixels per block on the CPU: its three float planes and their temporaries stay in the caches of one or two cores, and
# are small enough that the allocator keeps them (fresh pages for a whole batch cost a third of the time).
BLOCK_PIXELS = 2**16
GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # torchvision's rgb_to_grayscale (ITU-R 601-2)


def why_not(device: torch.device) -> str:
    """Nothing keeps it from serving any device."""
    return ""


@torch.no_grad()
def augment(images: Tensor, params: Tensor, spec: AugmentSpec, size: int, dtype: torch.dtype) -> Tensor:
    """Apply drawn parameters. Arguments as `dispatch.augment`, which checks them.

    Computes in float32 (float64 when that is asked for). On the CPU views are worked on in blocks, sorted by the order
    of their jitter, and colour, gray and blur touch only the views that have them. On other devices, where looking at
    the table would mean waiting for them, everything is computed for all views at once and then selected.
    """
    table = params.to(torch.float64 if dtype == torch.float64 else torch.float32)
    image = torch.arange(len(table), device=images.device) % len(images)
    views = torch.empty((len(table), 3, size, size), dtype=dtype, device=images.device,
                        memory_format=torch.channels_last)  # fmt: skip
    # Under autocast the products would silently drop to 16 bits.
    with torch.autocast(images.device.type, enabled=False):
        if images.device.type != "cpu":
            planes = view_planes(images[image], table, spec, size, on_host=False)
            return views.copy_(planes.transpose(0, 1))
        for rows in torch.argsort(_order(table), stable=True).split(max(1, BLOCK_PIXELS // size**2)):
            planes = view_planes(images[image[rows]], table[rows], spec, size, on_host=True)
            views.permute(0, 2, 3, 1)[rows] = planes.to(dtype).permute(1, 2, 3, 0).contiguous()
    return views


def _order(table: Tensor) -> Tensor:
    """int64 `[n]`: each view's row of JITTER_ORDERS, NO_JITTER without."""
    return torch.where(table[:, JITTER_ON] > 0, table[:, ORDER], NO_JITTER).to(torch.int64)


def view_planes(images: Tensor, table: Tensor, spec: AugmentSpec, size: int, on_host: bool) -> Tensor:
    """Finished views as planes `[3, n, S, S]`; row i of the table is for image i."""
    planes = resized_crops(images, table, size)
    if spec.jitter > 0:
        jitter = jitter_grouped_ if on_host else jitter_masked_
        jitter(planes, table[:, BRIGHTNESS : HUE + 1], _order(table))
    if spec.gray > 0:
        drop_colour_(planes, table[:, GRAY] > 0, on_host)
    if spec.blur > 0:
        blur_(planes, table[:, SIGMA], spec.blur_kernel, on_host)
    for plane, mean, std in zip(planes, spec.mean, spec.std, strict=True):
        plane.sub_(mean).mul_(1 / std)
    return planes


def resized_crops(images: Tensor, table: Tensor, size: int) -> Tensor:
    """The crop of each image, resized and possibly mirrored: uint8 `[n, H, W, 3]` to planes `[3, n, size, size]`.

    Resizing is separable, so a crop, its resize and its flip are two products: W_y · image · W_xᵀ. Result in [0, 1].
    """
    n, height, width, _ = images.shape
    down = resize_matrix(table[:, Y], table[:, H], height, size).mul_(1 / 255)
    across = resize_matrix(table[:, X], table[:, W], width, size, mirrored=table[:, FLIP] > 0)
    stored = images.permute(0, 3, 1, 2).to(table.dtype, memory_format=torch.contiguous_format)
    # One product narrows all channels; neither it nor the next three copy their operands.
    narrowed = torch.bmm(stored.view(n, 3 * height, width), across.mT).view(n, 3, height, size)
    planes = table.new_empty((3, n, size, size))
    for channel in range(3):
        torch.bmm(down, narrowed[:, channel], out=planes[channel])
    return planes


def resize_matrix(start: Tensor, length: Tensor, total: int, size: int, mirrored: Tensor | None = None) -> Tensor:
    """Bilinear, antialiased resampling of [start, start + length) out of `total` pixels to `size`: `[n, size, total]`.

    Weights as `torch.nn.functional.interpolate(..., antialias=True)`: a triangle of half-width max(1, scale) around
    each output pixel's centre, cut at the crop's edges and normalised. Mirroring reverses the output pixels.
    """
    pixel = torch.arange(size, dtype=start.dtype, device=start.device).expand(len(start), size)
    if mirrored is not None:
        pixel = torch.where(mirrored[:, None], size - 1 - pixel, pixel)
    scale = (length / size)[:, None]
    inside = torch.arange(total, dtype=start.dtype, device=start.device) + 0.5 - start[:, None]
    weight = inside[:, None, :] - ((pixel + 0.5) * scale)[:, :, None]
    weight.abs_().div_(scale.clamp_min(1)[:, :, None]).neg_().add_(1).clamp_min_(0)
    weight.mul_(((inside > 0) & (inside < length[:, None]))[:, None, :])
    return weight.div_(weight.sum(2, keepdim=True))


def drop_colour_(planes: Tensor, chosen: Tensor, on_host: bool) -> Tensor:
    """Gray in place of colour for the chosen views, bool `[n]`."""
    if on_host:
        rows = torch.nonzero(chosen).flatten()
        planes[:, rows] = grayscale(planes[:, rows])
        return planes
    return planes.copy_(torch.where(chosen[:, None, None], grayscale(planes), planes))


def blur_(planes: Tensor, sigma: Tensor, kernel: int, on_host: bool) -> Tensor:
    """Gaussian blur, each view with its own sigma `[n]` in pixels (0: left alone), `kernel` wide, edges reflected.

    Two products with a banded matrix per view: torchvision's `gaussian_blur`, whose 2-D kernel is an outer product.
    """
    if on_host:
        rows = torch.nonzero(sigma > 0).flatten()
        some = planes[:, rows]
        band = blur_matrix(sigma[rows], kernel, planes.shape[-1])
        planes[:, rows] = torch.stack([band @ plane @ band.mT for plane in some])
        return planes
    band = blur_matrix(sigma, kernel, planes.shape[-1])
    for plane in planes:
        plane.copy_(band @ plane @ band.mT)
    return planes


def blur_matrix(sigma: Tensor, kernel: int, size: int) -> Tensor:
    """`[n, size, size]`: row i holds the weights that output pixel i gives to the input; sigma 0 gives the identity."""
    reach = kernel // 2
    offset = torch.arange(-reach, reach + 1, dtype=sigma.dtype, device=sigma.device)
    # A sigma this small leaves weight on the centre alone, without dividing zero by zero.
    weight = torch.exp(-0.5 * (offset / sigma[:, None].clamp_min(1e-3)) ** 2)
    weight = weight / weight.sum(1, keepdim=True)
    source = (torch.arange(size, device=sigma.device)[:, None] + offset.to(torch.int64)).abs()
    source = (size - 1) - ((size - 1) - source).abs()  # reflected: −1 is 1, size is size − 2
    band = sigma.new_zeros((len(sigma), size, size))
    index = source.expand(len(sigma), size, kernel)
    return band.scatter_add_(2, index, weight[:, None, :].expand(index.shape).contiguous())


# Colour operations take planes `[3, n, S, S]` in [0, 1] and a factor `[n]` for each view. The formulas are those of
# torchvision for images of floats. Each works in place and returns its argument.


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
