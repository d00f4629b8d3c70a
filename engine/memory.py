"""How much memory a training step takes and how much is free; what to do where a step did not fit."""

from __future__ import annotations

import gc
import resource
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from .boundary import is_out_of_memory
from .command_line import launcher_number
from .data.store import ImageStore
from .device import Platform
from .errors import PlatformError, counted
from .model import SimCLR
from .recipe import HeadSpec, ModelSpec
from .training import Trainer

# Peak of a step over what its graph keeps for the backward pass, which needs gradients and workspaces besides: 1.5 to
# 1.9 on the CPU (ResNet-18, 32 px small stem and 128 px ImageNet stem, fp32 and bf16, 64 to 128 views).
PEAK = 1.9
COPIES = 4  # of the weights: themselves, their gradient and up to two moments of the optimizer
# Share of the device's memory that a step may use; the allocator cannot fill all of it.
USABLE = 0.9
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a training step takes: a constant part, and a part for each view in the network at once.

    Attributes:
        constant: weights, gradients and the state of the optimizer.
        kept: what the graph keeps of each view until the backward pass: the least that a step takes.
    """

    constant: int
    kept: int

    def least(self, views: int) -> int:
        """The least that a step of `views` views can take."""
        return self.constant + self.kept * views

    def likely(self, views: int) -> int:
        """What it is estimated to take."""
        return self.constant + int(PEAK * self.kept) * views

    def views_within(self, nbytes: int) -> int:
        """How many views are estimated to fit."""
        return max(0, nbytes - self.constant) // max(1, int(PEAK * self.kept))


@cache
def step_memory(model: ModelSpec, head: HeadSpec, size: int, precision: str) -> StepMemory:
    """The memory of a step at views of `size` pixels, from the shapes in a graph that computes nothing.

    The tensors are those of fp32; bf16 and fp16 keep half of their bytes.
    """
    with torch.device("meta"):
        network = SimCLR(model, head).train()
    few, more = (_kept_bytes(network, views, size) for views in (2, 4))
    each = (more - few) // 2
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    return StepMemory(COPIES * weights, each if precision == "fp32" else each // 2)


def _kept_bytes(network: nn.Module, views: int, size: int) -> int:
    """Bytes of the storages that the graph of `views` views keeps."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.empty(views, 3, size, size, device="meta"))
    return sum(storage.nbytes() for storage in kept.values())


def free_memory(platform: Platform) -> int | None:
    """Bytes that this process may still take on the device; None if that is not known.

    On a CPU the processes that a launcher started on this machine share them.
    """
    if platform.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(platform.device)
        return free
    if platform.device.type != "cpu":
        return None
    known = [nbytes for nbytes in (_available(), _left_in_group(_CGROUP)) if nbytes is not None]
    return min(known) // max(1, launcher_number("LOCAL_WORLD_SIZE", 1)) if known else None


def _available() -> int | None:
    """MemAvailable of the system: what can be used without swapping."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return None


def _left_in_group(group: Path) -> int | None:
    """What the control group of a container leaves: its limit less what is used and cannot be dropped."""
    version_1 = "memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"
    for limit, used in (("memory.max", "memory.current"), version_1):
        with suppress(OSError, ValueError):
            most, now = (int((group / name).read_text()) for name in (limit, used))
            if most >= 1 << 60:  # version 1 writes no limit as a huge one
                return None
            statistics = ((group / limit).parent / "memory.stat").read_text().split()
            cached = dict(zip(statistics[::2], statistics[1::2], strict=True)).get("inactive_file", "0")
            return max(0, most - now + int(cached))
    return None


def peak_memory(platform: Platform) -> int:
    """Peak memory in bytes: of the device on CUDA, else resident memory of the process."""
    if platform.device.type == "cuda":
        return torch.cuda.max_memory_allocated(platform.device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def memory_errors(trainer: Trainer) -> Iterator[None]:
    """A context for steps of `trainer`. Running out of memory becomes a PlatformError that says what would fit."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        # The frames keep the activations of the failed step alive; their memory is needed for measuring.
        traceback.clear_frames(error.__traceback__)
        raise out_of_memory(trainer, error) from error


@contextmanager
def loading_errors(store: ImageStore, device: torch.device) -> Iterator[None]:
    """The same for making a trainer, which puts the model and, on CUDA, all images into memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise PlatformError(
            "there is not enough memory for the model and the images",
            saw=f"{counted(len(store), 'image')} of {store.image_size} px, {store.images.nbytes / 2**30:.2f} GiB, "
            f"on {device}",
            fix="use --limit N, --set data.size=PIXELS, or --device cpu, which leaves the images on disk",
        ) from error


def out_of_memory(trainer: Trainer, error: BaseException) -> PlatformError:
    """The error of a step that did not fit. If the device reports memory, small steps are measured first."""
    train, share = trainer.recipe.train, trainer.recipe.train.batch_size // trainer.world.size
    now = min(trainer.micro_batch, share)
    fits, why = _measured_fit(trainer, now)
    micro = largest_divisor(share, min(fits, now - 1))
    size = max(size for _, size in trainer.plan.phases())
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    held = f"{now} at a time of a batch of {train.batch_size}" if now < train.batch_size else f"batch {now}"
    saw = f"{held}, {train.views} views of {size} px: {first[:160]}"
    if micro < 1:
        fix = "use a smaller model or smaller images: not even one image would fit (an estimate)"
    else:
        batch = micro * trainer.world.size
        fix = f"use --set train.micro_batch={micro} (same batch in parts) or --batch-size {batch} (estimate: {why})"
    return PlatformError("there is not enough memory for a training step", saw=saw, fix=fix)


def images_that_fit(small: tuple[int, int], large: tuple[int, int], capacity: int) -> int:
    """How many images a step may have, from the peak memory of two smaller steps, each given as (images, bytes).

    Memory is assumed to grow linearly: a constant part (weights, gradients) and the same amount for each image.
    """
    (n, bytes_n), (m, bytes_m) = small, large
    each = (bytes_m - bytes_n) / (m - n)
    if each <= 0:  # too small a difference to extrapolate
        return m
    return max(0, int((capacity - (bytes_n - each * n)) / each))


def largest_divisor(whole: int, limit: int) -> int:
    """The largest divisor of `whole` that is at most `limit`; 0 if there is none."""
    return next((d for d in range(min(whole, limit), 0, -1) if whole % d == 0), 0)


def _measured_fit(trainer: Trainer, now: int) -> tuple[int, str]:
    """How many images would fit, and what the estimate is based on."""
    small = max(2, now // 32)
    # With other ranks, batch norm would wait for them; devices other than CUDA report no peak that can be reset.
    if trainer.platform.device.type != "cuda" or trainer.world.size > 1 or 2 * small >= now:
        return now // 2, "half of what did not fit"
    device = trainer.platform.device
    try:
        peaks = [(images, _peak_bytes(trainer, images)) for images in (small, 2 * small)]
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return small // 2, f"not even {counted(2 * small, 'image')} fit"
    free, _ = torch.cuda.mem_get_info(device)
    capacity = int(USABLE * (free + torch.cuda.memory_reserved(device)))
    fits = images_that_fit(peaks[0], peaks[1], capacity)
    return fits, f"about {fits} fit, from the peak memory of steps of {small} and {2 * small}"


def _peak_bytes(trainer: Trainer, images: int) -> int:
    """The peak memory of the device in one forward and backward pass of this many images, at the largest view size."""
    device = trainer.platform.device
    trainer.optimizer.zero_grad(set_to_none=True)  # of the step that failed
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    trainer.run_part(images, max(size for _, size in trainer.plan.phases()))
    return torch.cuda.max_memory_allocated(device)
