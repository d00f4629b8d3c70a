"""When a step does not fit into memory: tells that error from others, and names the micro-batch that would fit."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .data.store import ImageStore
from .errors import PlatformError
from .training import Trainer

# What a step may take of the device: the allocator's blocks never fill it without gaps.
USABLE = 0.9
_SAID = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


@contextmanager
def memory_errors(trainer: Trainer) -> Iterator[None]:
    """Around steps of `trainer`: running out of memory becomes a PlatformError that says what would fit."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        # The frames hold the activations of the step that failed, and with them the memory to measure in.
        traceback.clear_frames(error.__traceback__)
        raise out_of_memory(trainer, error) from error


@contextmanager
def loading_errors(store: ImageStore, device: torch.device) -> Iterator[None]:
    """Around the making of a trainer, which puts the model and, on CUDA, all images into memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise PlatformError(
            "there is not enough memory for the model and the images",
            saw=f"{len(store):,} images of {store.image_size} px, {store.images.nbytes / 2**30:.2f} GiB, on {device}",
            fix="--limit N takes fewer images, --set data.size=PIXELS smaller ones, --device cpu leaves them on disk",
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; on the CPU, and in cuBLAS, that is a RuntimeError like others."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error).lower() for said in _SAID)


def out_of_memory(trainer: Trainer, error: BaseException) -> PlatformError:
    """The error of a step that did not fit; measures small steps first, where the device can say what they take."""
    train, share = trainer.recipe.train, trainer.recipe.train.batch_size // trainer.world.size
    now = min(trainer.micro_batch, share)
    fits, why = _measured_fit(trainer, now)
    micro = largest_divisor(share, min(fits, now - 1))
    size = max(size for _, size in trainer.plan.phases())
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    held = f"{now} at a time of a batch of {train.batch_size}" if now < train.batch_size else f"batch {now}"
    saw = f"{held}, {train.views} views of {size} px: {first[:160]}"
    if micro < 1:
        fix = "a smaller model or smaller images: not even one image would fit (an estimate)"
    else:
        batch = micro * trainer.world.size
        fix = f"--set train.micro_batch={micro}, the same batch in parts, or --batch-size {batch} (an estimate: {why})"
    return PlatformError("there is not enough memory for a training step", saw=saw, fix=fix)


def images_that_fit(small: tuple[int, int], large: tuple[int, int], capacity: int) -> int:
    """How many images a step may have, from the peak bytes of two smaller ones, each given as (images, bytes).

    Memory is taken to grow linearly: weights, gradients and what else is always there, and the same for each image.
    """
    (n, bytes_n), (m, bytes_m) = small, large
    each = (bytes_m - bytes_n) / (m - n)
    if each <= 0:  # too small to tell
        return m
    return max(0, int((capacity - (bytes_n - each * n)) / each))


def largest_divisor(whole: int, limit: int) -> int:
    """The largest divisor of `whole` that is no more than `limit`; 0 if there is none."""
    return next((d for d in range(min(whole, limit), 0, -1) if whole % d == 0), 0)


def _measured_fit(trainer: Trainer, now: int) -> tuple[int, str]:
    """How many images would fit, and what that rests on."""
    small = max(2, now // 32)
    # With other ranks, batch norm would wait for them; elsewhere there is no peak that could be read off and reset.
    if trainer.platform.device.type != "cuda" or trainer.world.size > 1 or 2 * small >= now:
        return now // 2, "half of what did not fit"
    device = trainer.platform.device
    try:
        peaks = [(images, _peak_bytes(trainer, images)) for images in (small, 2 * small)]
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return small // 2, f"not even {2 * small} images fit"
    free, _ = torch.cuda.mem_get_info(device)
    capacity = int(USABLE * (free + torch.cuda.memory_reserved(device)))
    fits = images_that_fit(peaks[0], peaks[1], capacity)
    return fits, f"about {fits} fit, from the peak memory of steps of {small} and {2 * small}"


def _peak_bytes(trainer: Trainer, images: int) -> int:
    """The device's peak over one forward and backward pass of so many images, at the largest size of views."""
    device = trainer.platform.device
    trainer.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    ids = trainer.sample_ids(trainer.step)[:images]
    views = trainer.views(ids, 0, max(size for _, size in trainer.plan.phases()))
    with trainer.platform.autocast():
        z = trainer.forward(views)
    z.float().square().sum().backward()
    trainer.optimizer.zero_grad(set_to_none=True)
    return torch.cuda.max_memory_allocated(device)
