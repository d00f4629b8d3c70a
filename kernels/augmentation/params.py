"""Drawing: what happens to each view, as one row of numbers per view. Applying it is the backends' part.

A row is a pure function of (seed, epoch, sample id, view): not of the batch that the sample happens to be in, of the
number of processes, of the device, or of what was drawn before. So a run resumes exactly, and any backend can replay
what another did.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..philox import philox, uniform
from . import fused, native
from .spec import AugmentSpec, factor_range
from .table import BLOCKS_PER_VIEW, COLUMNS, JITTER_ORDERS

_BLOCKS_USED = 8
_ATTEMPTS = 10  # torchvision's RandomResizedCrop.get_params gives up after ten

# Words of a view, by name: three blocks of single decisions, then five of crop attempts (area, ratio, area, ratio).
(_WORD_Y, _WORD_X, _WORD_FLIP, _WORD_JITTER,
 _WORD_BRIGHTNESS, _WORD_CONTRAST, _WORD_SATURATION, _WORD_HUE,
 _WORD_ORDER, _WORD_GRAY, _WORD_BLUR, _WORD_SIGMA, _WORD_ATTEMPTS) = range(13)  # fmt: skip


def draw_params(
    spec: AugmentSpec,
    seed: int | Tensor,
    epoch: int | Tensor,
    sample_ids: Tensor,
    views: int,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw the parameters of every view of some samples.

    Distributions are torchvision's: the crop as `RandomResizedCrop.get_params` (ten attempts, its rounding, its central
    fallback), jitter as `RandomApply([ColorJitter])`, each view with factors and an order of its own.

    Args:
        spec: the distributions.
        seed: of the run; 64 bits. Like epoch, a number or an int64 scalar on the device of the ids, which is not waited
            for: a step that was captured in a CUDA graph draws for the epoch that the tensor holds when it is replayed.
        epoch: 0 ≤ epoch < 2**32; of a tensor the lower 32 bits count.
        sample_ids: integers `[B]`: who the samples are in the data set, not where they stand in the batch.
        views: V ≥ 1, how many views of each sample.
        device: where the table is wanted; by default where the ids are.

    Returns:
        float32 `[V·B, P]`, columns as in `COLUMNS`; row v·B + i is view v of sample i.

    Raises:
        ValueError: ids that are not a vector of integers, views or epoch out of range.
    """
    if sample_ids.ndim != 1 or sample_ids.is_floating_point() or sample_ids.dtype == torch.bool:
        raise ValueError(f"sample_ids must be integers [B], not {sample_ids.dtype} {list(sample_ids.shape)}")
    if not 1 <= views < 2**32 // BLOCKS_PER_VIEW:
        raise ValueError(f"views must be at least 1, not {views}")
    if not isinstance(epoch, Tensor) and not 0 <= epoch < 2**32:
        raise ValueError(f"epoch must be in [0, 2**32), not {epoch}")
    target = sample_ids.device if device is None else torch.device(device)
    # Drawn in float64, with additions, multiplications, divisions and square roots only: IEEE 754 fixes their last
    # bit, so the same table comes out of every machine. MPS has no float64: its table is drawn on the CPU.
    source = torch.device("cpu") if target.type == "mps" else target
    ids = sample_ids.to(source, torch.int64)
    if source.type == "cpu" and native.can_draw():
        return native.draw(spec, int(seed), int(epoch) & 0xFFFFFFFF, ids, views).to(target)
    if source.type == "cuda" and not fused.why_not(source):
        from .fused_draw import draw_in_one_launch  # here, because it imports Triton

        return draw_in_one_launch(spec, seed, epoch, ids, views)
    return _drawn_by_torch(spec, seed, epoch, ids, views).to(target)


def _drawn_by_torch(
    spec: AugmentSpec, seed: int | Tensor, epoch: int | Tensor, sample_ids: Tensor, views: int
) -> Tensor:
    """The table, by torch operations in float64, on the device of the ids (int64)."""
    words = _words(seed, epoch, sample_ids, views)
    chance = uniform(words, torch.float64)

    height, width, found = _crop_sides(spec, chance[_WORD_ATTEMPTS:])
    columns = {
        "y": _position(words[_WORD_Y], spec.image_size - height, found),
        "x": _position(words[_WORD_X], spec.image_size - width, found),
        "h": height,
        "w": width,
        "flip": chance[_WORD_FLIP] < spec.flip,
        "jitter_on": chance[_WORD_JITTER] < spec.jitter,
        "brightness": _between(chance[_WORD_BRIGHTNESS], *factor_range(spec.brightness)),
        "contrast": _between(chance[_WORD_CONTRAST], *factor_range(spec.contrast)),
        "saturation": _between(chance[_WORD_SATURATION], *factor_range(spec.saturation)),
        "hue": _between(chance[_WORD_HUE], -spec.hue, spec.hue),
        "order": _whole_below(words[_WORD_ORDER], len(JITTER_ORDERS)),
        "gray": chance[_WORD_GRAY] < spec.gray,
        "sigma": _between(chance[_WORD_SIGMA], *spec.blur_sigma) * (chance[_WORD_BLUR] < spec.blur),
    }
    return torch.stack([columns[name].to(torch.float32) for name in COLUMNS], dim=1)


def _words(seed: int | Tensor, epoch: int | Tensor, sample_ids: Tensor, views: int) -> Tensor:
    """The words of every view, int64 `[32, V·B]`: counter = (id low, id high, epoch, view · 16 + block)."""
    batch = len(sample_ids)
    shape = (_BLOCKS_USED, views, batch)
    view = torch.arange(views, device=sample_ids.device)
    block = torch.arange(_BLOCKS_USED, device=sample_ids.device)
    last = (view[None, :] * BLOCKS_PER_VIEW + block[:, None])[:, :, None]
    low, high = sample_ids & 0xFFFFFFFF, (sample_ids >> 32) & 0xFFFFFFFF
    counter = sample_ids.new_empty((4, *shape))
    counter[0], counter[1], counter[2], counter[3] = low, high, epoch, last
    words = philox(counter.reshape(4, -1), seed).view(4, *shape)
    return words.transpose(0, 1).reshape(4 * _BLOCKS_USED, views * batch)


def _crop_sides(spec: AugmentSpec, chance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Height and width of each crop, and whether it was found: the first of ten attempts that fits, else the fallback.

    All attempts are made at once and the first good one is picked by index, so that no device waits for the host.
    """
    size = spec.image_size
    chance = chance[: 2 * _ATTEMPTS].view(_ATTEMPTS, 2, -1)
    side = torch.sqrt(_between(chance[:, 0], *spec.crop_scale) * float(size * size))
    half_log_ratio = _between(chance[:, 1], 0.5 * math.log(spec.crop_ratio[0]), 0.5 * math.log(spec.crop_ratio[1]))
    stretch = _exp(half_log_ratio)  # the square root of width / height
    width, height = torch.round(side * stretch), torch.round(side / stretch)
    fits = (width > 0) & (width <= size) & (height > 0) & (height <= size)
    first = fits.to(torch.int8).argmax(0, keepdim=True)
    found = fits.any(0)
    fallback_height, fallback_width = spec.fallback_sides()
    return (
        torch.where(found, height.gather(0, first)[0], float(fallback_height)),
        torch.where(found, width.gather(0, first)[0], float(fallback_width)),
        found,
    )


def _exp(x: Tensor) -> Tensor:
    """e**x for |x| ≤ 2.31 to 1e-7, from multiplications and additions in a fixed order.

    Library exponentials differ in the last bit between devices, and even between a vector's body and its tail: enough
    to round a crop's side to another pixel once in a while. That is the only reason for this function.
    """
    y = x * 0.125
    term = torch.ones_like(y)
    total = torch.ones_like(y)
    for n in range(1, 11):
        term = term * y * (1.0 / n)
        total = total + term
    for _ in range(3):
        total = total * total
    return total


def _between(chance: Tensor, low: float, high: float) -> Tensor:
    return chance * (high - low) + low


def _position(word: Tensor, room: Tensor, found: Tensor) -> Tensor:
    """In [0, room], by integers, so that no rounding reaches room + 1; the fallback crop sits in the middle."""
    room = room.to(torch.int64)
    return torch.where(found, ((word >> 8) * (room + 1)) >> 24, room // 2)


def _whole_below(word: Tensor, count: int) -> Tensor:
    return ((word >> 8) * count) >> 24
