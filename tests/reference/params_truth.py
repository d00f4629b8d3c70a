"""The plain truth of drawing: one view at a time, Python integers and the math module."""

from __future__ import annotations

import math

from simclr_engine.kernels import AugmentSpec


def philox(counter: tuple[int, int, int, int], seed: int) -> list[int]:
    """Philox4x32-10 as in section 4.3 of Salmon et al. 2011, in integers that cannot overflow."""
    c, k = list(counter), [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [second >> 32 ^ c[1] ^ k[0], second & 0xFFFFFFFF, first >> 32 ^ c[3] ^ k[1], first & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def row(spec: AugmentSpec, seed: int, epoch: int, sample_id: int, view: int) -> list[float]:
    """One row of parameters, in the order of COLUMNS."""
    words: list[int] = []
    for block in range(8):
        words += philox((sample_id & 0xFFFFFFFF, sample_id >> 32, epoch, view * 16 + block), seed)
    whole = [word >> 8 for word in words]
    u = [w / 2**24 for w in whole]

    size, (narrow, wide) = spec.image_size, spec.crop_ratio
    h, w = size, size
    if wide < 1:
        w = max(1, round(size * wide))
    if narrow > 1:
        h = max(1, round(size / narrow))
    for attempt in range(10):
        area = size * size * (spec.crop_scale[0] + u[12 + 2 * attempt] * (spec.crop_scale[1] - spec.crop_scale[0]))
        log_ratio = math.log(narrow) + u[13 + 2 * attempt] * (math.log(wide) - math.log(narrow))
        ratio = math.exp(log_ratio)
        w_try, h_try = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w_try <= size and 0 < h_try <= size:
            h, w = h_try, w_try
            y, x = whole[0] * (size - h + 1) // 2**24, whole[1] * (size - w + 1) // 2**24
            break
    else:
        y, x = (size - h) // 2, (size - w) // 2

    def factor(chance: float, strength: float) -> float:
        low = max(0.0, 1 - strength)
        return low + chance * (1 + strength - low)

    low_sigma, high_sigma = spec.blur_sigma
    return [
        y,
        x,
        h,
        w,
        u[2] < spec.flip,
        u[3] < spec.jitter,
        factor(u[4], spec.brightness),
        factor(u[5], spec.contrast),
        factor(u[6], spec.saturation),
        (2 * u[7] - 1) * spec.hue,
        whole[8] * 24 // 2**24,
        u[9] < spec.gray,
        (low_sigma + u[11] * (high_sigma - low_sigma)) * (u[10] < spec.blur),
    ]
