"""Device, precision and compilation: chosen once, printed once, recorded in the run."""

from __future__ import annotations

import ctypes
import os
import platform as host
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .errors import PlatformError, counted

# Compiling takes about a minute and saves a fifth of a GPU step. Below this many steps it costs more than it saves.
COMPILE_FROM_STEPS = 2_000


@dataclass(frozen=True)
class Platform:
    """The device of a run and how it is used.

    Attributes:
        device: where tensors live.
        precision: `bf16`, `fp16` (with a gradient scaler) or `fp32`, of the convolutions and matrix products; losses,
            norms and batch statistics stay fp32. `fp64` keeps everything in float64; no recipe can select it, and it
            serves to tell a wrong formula from rounding.
        channels_last: memory format of the model and the views.
        compile: whether the model is compiled with torch.compile.
        notes: choices that differ from what was requested, one sentence each.
        deterministic: whether torch uses only deterministic algorithms.
    """

    device: torch.device
    precision: str
    channels_last: bool
    compile: bool
    notes: tuple[str, ...] = field(default=())
    deterministic: bool = False

    @property
    def memory_format(self) -> torch.memory_format:
        """channels_last or contiguous."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the views, which is what autocast would cast them to."""
        named = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
        return named.get(self.precision, torch.float32)

    def autocast(self) -> torch.autocast:
        """The autocast context of the forward pass."""
        low = self.precision in ("bf16", "fp16")
        return torch.autocast(self.device.type, dtype=self.dtype if low else torch.bfloat16, enabled=low)

    def synchronize(self) -> None:
        """Waits until the device has finished; on the CPU, returns immediately."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def describe(self) -> dict[str, str | bool]:
        """The entries of environment.json about the device."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else cpu_name()
        return {
            "device": str(self.device),
            "device_name": name,
            "precision": self.precision,
            "channels_last": self.channels_last,
            "compile": self.compile,
            "deterministic": self.deterministic,
        }


def choose_platform(
    device: str = "auto", precision: str = "auto", compile: bool | None = None, steps: int = 0
) -> Platform:
    """Chooses the device, the precision and whether to compile.

    Args:
        device: auto | cuda | mps | cpu; auto uses the first one that is available.
        precision: auto | bf16 | fp16 | fp32. If the device lacks it, the best one is used and noted.
        compile: True or False; None compiles if `steps` planned steps are enough to save time, if a C++ compiler
            exists, and not with deterministic algorithms: the compiler chooses kernels by their measured times.

    Raises:
        PlatformError: the requested device is not available.
    """
    picked, deterministic = pick_device(device), torch.are_deterministic_algorithms_enabled()
    notes: list[str] = []
    available = precisions(picked)
    if precision != "auto" and precision not in available:
        kind = "CPU" if picked.type == "cpu" else f"{picked.type} device"
        notes.append(f"{precision} is not supported on this {kind}; using {available[0]}")
    elif precision == "fp16" and available[0] == "bf16":
        notes.append("fp16 is used as asked; this device has bf16, which needs no loss scaling: --precision bf16")
    chosen = precision if precision in available else available[0]
    # channels_last backward of convolutions is 12 to 30 times slower on MPS (pytorch #192551, #193349).
    channels_last = picked.type != "mps"
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++") or shutil.which("clang++")
    if compile is None:
        # On a CPU the compiled ResNet was 2 to 19 % faster after 48 s of compilation, which only long runs make up for.
        repays = picked.type == "cuda" and steps >= COMPILE_FROM_STEPS
        compile = repays and compiler is not None and not deterministic
    elif compile and compiler is None:
        raise PlatformError(
            "torch.compile needs a C++ compiler", saw="no c++, g++ or clang++", fix="install one, or use --no-compile"
        )
    if picked.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = not deterministic  # it chooses convolutions by their measured times
    return Platform(picked, chosen, channels_last, compile, tuple(notes), deterministic)


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """A context in which torch uses deterministic algorithms, if `wanted`, or raises.

    It must be entered before anything is computed on CUDA: cuBLAS reads CUBLAS_WORKSPACE_CONFIG when it starts
    (docs.nvidia.com/cuda/cublas, "Results Reproducibility").

    Raises:
        PlatformError: an operation has no deterministic algorithm on this device.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if "does not have a deterministic implementation" not in str(error):
            raise
        raise PlatformError(
            "a training step has no deterministic algorithm on this device",
            saw=str(error).strip().splitlines()[0][:200],
            fix="leave out --deterministic, or use the small stem or the CPU",
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark


def keep_freed_memory() -> bool:
    """Asks glibc to keep freed blocks instead of returning them to the kernel; returns whether it agreed.

    By default every large activation is mapped and unmapped again in each step, and the page faults cost a quarter of a
    CPU training step (256 views of 32 px: 142 → 190 views/s on two cores). The process keeps its peak memory instead.
    """
    if not sys.platform.startswith("linux") or host.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    m_trim_threshold, m_mmap_threshold, unlimited = -1, -3, 2**31 - 1
    return bool(mallopt(m_mmap_threshold, unlimited)) and bool(mallopt(m_trim_threshold, unlimited))


def cpu_name() -> str:
    """The name of the processor, as the kernel gives it, and the number of threads."""
    name = host.processor() or host.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return f"{name}, {counted(torch.get_num_threads(), 'thread')}"


def precisions(device: torch.device) -> list[str]:
    """The precisions that the device supports well, best first."""
    if device.type == "cuda":
        # bf16 needs compute capability 8.0; a T4 (7.5) emulates it slowly and takes fp16 with a scaler.
        modern = torch.cuda.get_device_capability(device) >= (8, 0)
        return ["bf16", "fp16", "fp32"] if modern else ["fp16", "fp32"]
    if device.type == "cpu" and _cpu_has_bf16():
        return ["bf16", "fp32"]
    return ["fp32"]


def pick_device(device: str) -> torch.device:
    """The device of this name; for auto, the first of CUDA, MPS and CPU that is there. PlatformError if it is not."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, found in there.items() if found))
    kind = device.split(":")[0]
    if not there.get(kind, False):
        found = ", ".join(name for name, is_there in there.items() if is_there)
        raise PlatformError("the device is not available", saw=device, fix=f"use --device auto, or one of: {found}")
    return torch.device(device)


# Limits of oneDNN below which it computes bf16 without instructions for it.
_WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")


def _cpu_has_bf16() -> bool:
    """Whether the CPU has AVX512-BF16 or AMX-BF16, and oneDNN may use it.

    Without them bf16 convolutions are slower than fp32, up to ten times.
    """
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _WITHOUT_BF16:
        return False
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    if probe is not None:
        return bool(probe())
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "avx512_bf16" in cpuinfo.read_text()
