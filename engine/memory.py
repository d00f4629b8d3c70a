"""How much memory a training step takes, estimated before the first one, and how much is free."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from .device import Platform
from .model import SimCLR
from .recipe import HeadSpec, ModelSpec

# Peak of a step over what its graph keeps for the backward pass, which needs gradients and workspaces besides: 1.5 to
# 1.9 on the CPU (ResNet-18, 32 px small stem and 128 px ImageNet stem, fp32 and bf16, 64 to 128 views).
PEAK = 1.9
COPIES = 4  # of the weights: themselves, their gradient and up to two moments of the optimizer
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
    return min(known) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if known else None


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
