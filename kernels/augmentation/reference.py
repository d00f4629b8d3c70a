"""The PyTorch backend: batched augmentation with every view's own parameters, on any device.

It is what the other backends are compared with. Order of operations: crop and resize, flip, jitter, gray, blur,
normalise. Values stay floats in [0, 1] throughout; torchvision on PIL images rounds to 8 bits after each operation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .colour import NO_JITTER, grayscale, jitter_grouped_, jitter_masked_
from .params import BRIGHTNESS, FLIP, GRAY, HUE, JITTER_ON, ORDER, SIGMA, H, W, X, Y
from .spec import AugmentSpec

# Pixels per block on the CPU: its three float planes and their temporaries stay in the caches of one or two cores, and
# are small enough that the allocator keeps them (fresh pages for a whole batch cost a third of the time).
BLOCK_PIXELS = 2**16


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
