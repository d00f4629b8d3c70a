"""The memory that a call allocates."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import torch


def peak_extra_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The peak of what `call` allocates through torch, in bytes, its result included.

    On CUDA from the caching allocator's own count; on the CPU, whose allocator keeps none, from the profiler's record
    of every allocation and release, added up in the order they happened.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    results = profile.profiler.kineto_results
    events = [e for e in results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(accumulate(sizes), default=0)
