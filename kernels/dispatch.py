"""Which backend of a kernel runs: the one named by the caller, or the fastest that can serve the device."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from types import ModuleType

import torch


def pick(
    kernel: str,
    backends: Mapping[str, ModuleType],
    preference: Mapping[str, tuple[str, ...]],
    backend: str,
    device: torch.device | str,
    *needs: float,
) -> tuple[str, str]:
    """A backend and the reason for it.

    Args:
        kernel: what error messages call it.
        backends: name → module. A module's `why_not(device, *needs)` says what keeps it from serving; "" if nothing.
        preference: kind of device → the names that `auto` tries, in this order; only "torch" where there is no entry.
        backend: "auto" or a name.
        device: where the tensors are.
        needs: what else `why_not` has to know.

    Returns:
        (name, reason).

    Raises:
        ValueError: there is no backend of this name, or it cannot serve this; the message says why.
    """
    device = torch.device(device)
    if backend != "auto":
        if backend not in backends:
            raise ValueError(f"there is no {kernel} backend {backend!r}; there are auto, {', '.join(backends)}")
        if reason := backends[backend].why_not(device, *needs):
            raise ValueError(f"the {kernel} backend {backend!r} cannot serve {device.type} here: {reason}")
        return backend, "asked for by name"
    passed_over = ""
    for name in preference.get(device.type, ("torch",)):
        if not (reason := backends[name].why_not(device, *needs)):
            return name, f"the fastest for {device.type}{passed_over}"
        passed_over += f"; no {name}: {reason}"
    raise AssertionError("the PyTorch backend serves every device")


@torch.compiler.assume_constant_result  # a compiler need not trace it
def why_no_triton(device: torch.device, least_capability: tuple[int, int]) -> str:
    """What keeps Triton's kernels from running on this device, as a sentence for users; "" if nothing does."""
    return _why_no_triton(device, least_capability)


@cache
def _why_no_triton(device: torch.device, least_capability: tuple[int, int]) -> str:
    if find_spec("triton") is None:
        return "the package triton is not installed (it exists for Linux)"
    if interpreting():
        return "" if device.type == "cpu" else "it needs tensors on the CPU while TRITON_INTERPRET=1 is set"
    if device.type != "cuda" or not torch.cuda.is_available():
        return "it needs an NVIDIA GPU"
    if torch.version.hip:
        return "it needs an NVIDIA GPU, and this one is from AMD"
    capability = torch.cuda.get_device_capability(device)
    if capability < least_capability:
        have, need = (".".join(map(str, pair)) for pair in (capability, least_capability))
        return f"it needs compute capability {need}, and {torch.cuda.get_device_name(device)} has {have}"
    return ""


def interpreting() -> bool:
    """Whether Triton runs its kernels in Python, on the CPU. It decides when a kernel is first imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"
