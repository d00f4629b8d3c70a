"""The Triton backend, host side: what it serves, how it is configured, how it is launched.

One launch draws the table of parameters (`fused_draw`), one applies it (`fused_apply`). Neither waits for the device
nor allocates anything but its result, so both can be captured in a CUDA graph. The kernels' modules are imported when
first used: Triton is not there on every machine, and importing it takes a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..dispatch import why_no_triton
from . import eager
from .spec import AugmentSpec

_WHOLE = 64  # views up to this side are computed at once
_WINDOW = 45  # others in windows of at most this side (45² is just below 2,048),
_LEAST_WINDOW = 26  # not much smaller ones (they would keep too few threads busy between two barriers),
_LEAST_KEPT = 16  # of which this much is kept beside what the blur needs
# (pixels per thread, sixteen warps?) → registers of a thread, at most: enough for everything, and for as many programs
# at a time as that leaves room for. None: ptxas's own choice, which is good there; elsewhere it would spill a few to
# make room for another program.
_REGISTERS = {(2, False): 64, (2, True): 64, (4, False): 80, (4, True): 128, (8, False): None, (8, True): 128}
_LARGEST = 2**14  # side of images and views up to which the kernel's 32-bit places within one of them suffice


def why_not(device: torch.device) -> str:
    """What keeps Triton from serving this device; "" if nothing does."""
    return why_no_triton(device, (7, 5))


@dataclass(frozen=True)
class Tiling:
    """How a view is cut and launched: arguments of `fused_apply.apply`, and of its compiler."""

    window: int
    inner: int
    block: int
    warps: int
    registers: int | None


@cache
def tiling(size: int, reach: int, shrinks: bool) -> Tiling | None:
    """The kernel's configuration for views of this size, blur reaching this far, and crops that may be larger than the
    view; None if it has none.

    A rule in place of trying configurations out on the device: the first step of a run is as fast as the others, and
    the same everywhere. What fixes the rule are registers, of which neighbours and loops over taps take the most.
    """
    at_once = size <= (_WINDOW if shrinks else _WHOLE)
    loops = 2 * shrinks + (reach > 0) + (not at_once)
    pixels = 8 >> min(loops, 2)  # of one thread, three values each
    if at_once:
        return _tiling(size, size, pixels)
    tilings = []
    for widest in range(_WINDOW, max(2 * reach + _LEAST_KEPT, _LEAST_WINDOW) - 1, -1):
        count = math.ceil(size / (widest - 2 * reach))
        inner = math.ceil(size / count)  # as many windows as that takes, and then as small as that allows
        tilings.append((count, _tiling(inner + 2 * reach, inner, pixels)))
    return min(tilings, key=lambda pair: pair[0] ** 2 * pair[1].block)[1] if tilings else None


def _tiling(window: int, inner: int, pixels: int) -> Tiling:
    """With so many pixels per thread, or more where that would take more than sixteen warps."""
    block = _power_of_two(window * window)
    warps = max(1, min(16, block // (32 * pixels)))
    return Tiling(window, inner, block, warps, _REGISTERS[max(pixels, block // (32 * warps)), warps == 16])


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def augment(images: Tensor, params: Tensor, spec: AugmentSpec, size: int, dtype: torch.dtype) -> Tensor:
    """Apply drawn parameters. Arguments as `dispatch.augment`, which checks them.

    Computes in float32, whatever the result's type. What the kernel does not serve goes to the PyTorch backend:
    float64, blur kernels above 29 pixels on views too large to be computed at once, sides above 16,384 pixels.
    """
    reach = spec.blur_kernel // 2 if spec.blur > 0 else 0
    cut = tiling(size, reach, spec.image_size > size)
    if dtype == torch.float64 or cut is None or max(spec.image_size, size) > _LARGEST:
        return eager.augment(images, params, spec, size, dtype)
    from .fused_apply import apply

    # Neither line does anything to what the engine passes: copies are made only of what is not contiguous float32.
    images, params = images.contiguous(), params.to(torch.float32).contiguous()
    views = torch.empty((len(params), 3, size, size), dtype=dtype, device=images.device,
                        memory_format=torch.channels_last)  # fmt: skip
    with torch.cuda.device_of(images):
        apply[(len(params),)](
            images, params, views, len(images), *spec.mean, *(1 / std for std in spec.std),
            IMAGE=spec.image_size, SIZE=size, WINDOW=cut.window, INNER=cut.inner, BLOCK=cut.block, REACH=reach,
            WITH_JITTER=spec.jitter > 0, WITH_GRAY=spec.gray > 0,
            num_warps=cut.warps, num_stages=1, maxnreg=cut.registers,
        )  # fmt: skip
    return views
