"""The table of parameters in one launch: `params.draw_params`, bit for bit.

Drawn in float64, as there: IEEE 754 fixes the last bit of its additions, multiplications, divisions and square roots,
and Triton compiles them as such (in float32 its division and square root are approximations), so the table is the same
on every machine. A row costs about a thousand operations: nothing beside the view itself, even where a device does
64-bit arithmetic at 1/32 of the speed.

Two things would break equality, and neither is left to the compiler: a multiplication and an addition contracted to
one instruction (the launch turns that off), and a library's exponential (`params._exp` is a polynomial; so is this).
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# (Triton gives the arguments of a kernel their types.)
from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import table
from .spec import AugmentSpec, factor_range

# Kernels read constants of their own kind only; `fused_apply` takes these too.
ROW = tl.constexpr(len(table.COLUMNS))
(
    Y, X, H, W, FLIP, JITTER_ON, BRIGHTNESS, CONTRAST, SATURATION, HUE, ORDER, GRAY, SIGMA,
) = map(tl.constexpr, range(len(table.COLUMNS)))  # fmt: skip
BLOCKS_PER_VIEW = tl.constexpr(table.BLOCKS_PER_VIEW)
WHOLE = tl.constexpr(1.5 * 2**52)  # a float64 of this size has no place left for a fraction

ROWS_PER_PROGRAM = 64  # a batch of 1,024 views spreads over 16 multiprocessors
WARPS = 2
OPTIONS = {"enable_fp_fusion": False}


@triton.jit
def _chance(word):
    """In [0, 1), a multiple of 2**-24."""
    return (word >> 8).to(tl.float64) * (1 / 16777216)


@triton.jit
def _below(word, count):
    """A whole number in [0, count), by integers: no rounding reaches count."""
    return ((word >> 8).to(tl.int64) * count) >> 24


@triton.jit
def _rounded(x):
    """To the nearest whole number, halves to even, as torch.round."""
    return (x + WHOLE) - WHOLE


@triton.jit
def _exp(x):
    """`params._exp`, operation by operation."""
    y = x * 0.125
    term = tl.full(x.shape, 1.0, tl.float64)
    total = term
    for n in tl.static_range(1, 11):
        term = term * y * (1.0 / n)
        total = total + term
    for _ in tl.static_range(3):
        total = total * total
    return total


@triton.jit
def _attempted(word_area, word_ratio, height, width, size, area, area_low, area_span, ratio_low, ratio_span):
    """The crop found so far (width 0: none), or this attempt if there is none and it fits."""
    side = tl.sqrt((_chance(word_area) * area_span + area_low) * area)
    stretch = _exp(_chance(word_ratio) * ratio_span + ratio_low)
    new_width, new_height = _rounded(side * stretch), _rounded(side / stretch)
    fits = (new_width > 0) & (new_width <= size) & (new_height > 0) & (new_height <= size) & (width == 0)
    return tl.where(fits, new_height, height), tl.where(fits, new_width, width)


@triton.jit(
    # Every epoch, and a last, smaller batch, are served by the same compiled kernel.
    do_not_specialize=["seed", "epoch", "rows", "batch", "size", "fallback_height", "fallback_width"],
    do_not_specialize_on_alignment=["ids", "drawn", "key"],
)
def draw(
    ids, drawn, key, seed: tl.int64, epoch: tl.int64, rows, batch, size, fallback_height, fallback_width,
    area: tl.float64, area_low: tl.float64, area_span: tl.float64, ratio_low: tl.float64, ratio_span: tl.float64,
    flip: tl.float64, jitter: tl.float64, gray: tl.float64, blur: tl.float64,
    brightness_low: tl.float64, brightness_span: tl.float64, contrast_low: tl.float64, contrast_span: tl.float64,
    saturation_low: tl.float64, saturation_span: tl.float64, hue_low: tl.float64, hue_span: tl.float64,
    sigma_low: tl.float64, sigma_span: tl.float64, BLOCK: tl.constexpr, FROM_DEVICE: tl.constexpr,
):  # fmt: skip
    """Rows `[program_id(0) · BLOCK, …)` of the table.

    Args:
        ids: int64 `[batch]`.
        drawn: float32 `[rows, ROW]`, contiguous, written.
        key: with FROM_DEVICE, int64 `[2]`: seed and epoch, in place of the numbers.
        area: of the image in pixels; ratio_low and ratio_span are of half the logarithm of width / height.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = row < rows
    sample = tl.load(ids + row % batch, mask=there, other=0)
    low, high = sample.to(tl.uint32), (sample >> 32).to(tl.uint32)
    if FROM_DEVICE:
        seed, epoch = tl.load(key), tl.load(key + 1)
    epochs = tl.zeros_like(low) + epoch.to(tl.uint32)
    last = ((row // batch) * BLOCKS_PER_VIEW).to(tl.uint32)
    keys = seed.to(tl.int64)

    # Words 0 to 11 are single decisions, in the order of params._WORD_…; crops are attempted with the rest.
    word_y, word_x, word_flip, word_jitter = tl.philox(keys, low, high, epochs, last)
    word_brightness, word_contrast, word_saturation, word_hue = tl.philox(keys, low, high, epochs, last + 1)
    word_order, word_gray, word_blur, word_sigma = tl.philox(keys, low, high, epochs, last + 2)
    height, width = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    for block in range(3, 8):
        a, b, c, d = tl.philox(keys, low, high, epochs, last + block)
        height, width = _attempted(a, b, height, width, size, area, area_low, area_span, ratio_low, ratio_span)
        height, width = _attempted(c, d, height, width, size, area, area_low, area_span, ratio_low, ratio_span)

    found = width > 0
    h = tl.where(found, height.to(tl.int64), fallback_height)
    w = tl.where(found, width.to(tl.int64), fallback_width)
    y = tl.where(found, _below(word_y, size - h + 1), (size - h) // 2)
    x = tl.where(found, _below(word_x, size - w + 1), (size - w) // 2)
    sigma = tl.where(_chance(word_blur) < blur, _chance(word_sigma) * sigma_span + sigma_low, 0.0)

    at = drawn + row * ROW
    tl.store(at + Y, y.to(tl.float32), mask=there)
    tl.store(at + X, x.to(tl.float32), mask=there)
    tl.store(at + H, h.to(tl.float32), mask=there)
    tl.store(at + W, w.to(tl.float32), mask=there)
    tl.store(at + FLIP, (_chance(word_flip) < flip).to(tl.float32), mask=there)
    tl.store(at + JITTER_ON, (_chance(word_jitter) < jitter).to(tl.float32), mask=there)
    brightness = _chance(word_brightness) * brightness_span + brightness_low
    tl.store(at + BRIGHTNESS, brightness.to(tl.float32), mask=there)
    contrast = _chance(word_contrast) * contrast_span + contrast_low
    tl.store(at + CONTRAST, contrast.to(tl.float32), mask=there)
    saturation = _chance(word_saturation) * saturation_span + saturation_low
    tl.store(at + SATURATION, saturation.to(tl.float32), mask=there)
    hue = _chance(word_hue) * hue_span + hue_low
    tl.store(at + HUE, hue.to(tl.float32), mask=there)
    tl.store(at + ORDER, _below(word_order, 24).to(tl.float32), mask=there)
    tl.store(at + GRAY, (_chance(word_gray) < gray).to(tl.float32), mask=there)
    tl.store(at + SIGMA, sigma.to(tl.float32), mask=there)


def draw_in_one_launch(
    spec: AugmentSpec, seed: int | Tensor, epoch: int | Tensor, sample_ids: Tensor, views: int
) -> Tensor:
    """`params.draw_params`, which checks the arguments, for int64 ids on a device that `fused.why_not` allows.

    A seed or epoch that is a tensor is read when the kernel runs: a captured launch then follows it.
    """
    rows = views * len(sample_ids)
    drawn = torch.empty((rows, len(table.COLUMNS)), dtype=torch.float32, device=sample_ids.device)
    if rows == 0:
        return drawn
    ranges = (
        spec.crop_scale, tuple(0.5 * math.log(ratio) for ratio in spec.crop_ratio),
        factor_range(spec.brightness), factor_range(spec.contrast), factor_range(spec.saturation),
        (-spec.hue, spec.hue), spec.blur_sigma,
    )  # fmt: skip
    crop_scale, half_log_ratio, *others = ((low, high - low) for low, high in ranges)
    size = spec.image_size
    key, from_device = sample_ids, False  # not read
    if isinstance(seed, Tensor) or isinstance(epoch, Tensor):
        key, from_device = torch.stack([_on_device(n, sample_ids) for n in (seed, epoch)]), True
        seed = epoch = 0
    with torch.cuda.device_of(sample_ids):
        draw[(triton.cdiv(rows, ROWS_PER_PROGRAM),)](
            sample_ids.contiguous(), drawn, key, _signed(seed), epoch, rows, len(sample_ids), size,
            *spec.fallback_sides(), float(size * size), *crop_scale, *half_log_ratio,
            spec.flip, spec.jitter, spec.gray, spec.blur, *(number for pair in others for number in pair),
            BLOCK=ROWS_PER_PROGRAM, FROM_DEVICE=from_device, num_warps=WARPS, **OPTIONS,
        )  # fmt: skip
    return drawn


def _signed(seed: int) -> int:
    """The 64-bit integer with the same bits: a launch takes no unsigned one."""
    return (seed + 2**63) % 2**64 - 2**63


def _on_device(number: int | Tensor, like: Tensor) -> Tensor:
    return number if isinstance(number, Tensor) else like.new_full((), _signed(number))
