"""The compiled CPU backend: `_native`'s C++ draws tables and makes views on all cores, without the GIL.

The same views as `eager`, to float32's own error. The module is optional; `why_not` says what it takes.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import shutil

import torch
from torch import Tensor

from . import eager
from .spec import AugmentSpec
from .table import COLUMNS

_why_not_loaded = ""
try:
    from .. import _native
except ImportError as error:
    _native = None  # type: ignore[assignment]  # a module, or nothing
    _why_not_loaded = str(error)

# "" for the best instruction set of this machine, or one of _native.instruction_sets(), for tests and benchmarks.
INSTRUCTIONS = ""
_REINSTALL = "`pip install --force-reinstall --no-deps` simclr-engine again"


def why_not(device: torch.device) -> str:
    """One line: what keeps the compiled module from serving `device`, and how to change it; "" where nothing does."""
    if device.type not in ("cpu", "mps"):
        return "the compiled module computes on the CPU"
    if _native is None:
        return _missing_module()
    if not hasattr(_native, "augment"):
        return f"the compiled module is older than this source; {_REINSTALL}"
    return ""


@functools.cache  # it searches folders, and `augment` asks before every batch
def _missing_module() -> str:
    if importlib.util.find_spec("simclr_engine.kernels._native") is not None:
        return f"the compiled module does not load ({_why_not_loaded}); {_REINSTALL}"
    compilers = [os.environ.get("CXX", "").split(" ")[0], "c++", "g++", "clang++", "cl"]
    if not any(name and shutil.which(name) for name in compilers):
        return f"the compiled module is not built; get a C++17 compiler (Debian: `apt install g++`), then {_REINSTALL}"
    # pip fetches the other two itself, unless it was told not to.
    needed = [name for name in ("nanobind", "cmake") if not importlib.util.find_spec(name) and not shutil.which(name)]
    get = f"`pip install {' '.join(needed)}`, then " if needed else ""
    return f"the compiled module is not built; {get}{_REINSTALL} (`-v` shows why it is not built, if it still is not)"


def augment(images: Tensor, params: Tensor, spec: AugmentSpec, size: int, dtype: torch.dtype) -> Tensor:
    """Apply drawn parameters. Arguments as `dispatch.augment`, which checks them.

    Uses `torch.get_num_threads()` threads; the result does not depend on how many. Views for MPS are made on the host,
    whose memory it shares, and copied. Computes in float32; bfloat16 is that, rounded on the way out. float16, which no
    CPU trains in, is rounded afterwards, and float64, for tests alone, is left to `eager`. Values of the table
    that make no sense are brought to the nearest that can (a crop outside the image is moved into it); NaN factors
    give NaN.
    """
    if dtype == torch.float64:
        return eager.augment(images, params, spec, size, dtype)
    device, images, params = images.device, images.cpu(), params.detach().cpu()
    computed = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    views = torch.empty((len(params), 3, size, size), dtype=computed, memory_format=torch.channels_last)
    # numpy has no bfloat16.
    memory = views.view(torch.int16) if computed == torch.bfloat16 else views
    red, green, blue = spec.std
    _native.augment(
        images.contiguous().numpy(),
        params.to(torch.float32).contiguous().numpy(),
        mean=spec.mean,
        inverse_std=(1 / red, 1 / green, 1 / blue),
        jitter=spec.jitter > 0,
        gray=spec.gray > 0,
        blur=spec.blur > 0,
        blur_kernel=spec.blur_kernel,
        threads=torch.get_num_threads(),
        instructions=INSTRUCTIONS,
        views=memory.permute(0, 2, 3, 1).numpy(),
    )
    return views.to(device, dtype)


def can_draw() -> bool:
    """Whether `draw` is there."""
    return hasattr(_native, "draw")


def draw(spec: AugmentSpec, seed: int, epoch: int, sample_ids: Tensor, views: int) -> Tensor:
    """The table of `params.draw_params`, bit for bit, on the CPU. Arguments as there, where they are checked."""
    table = torch.empty((views * len(sample_ids), len(COLUMNS)), dtype=torch.float32)
    low, high = spec.crop_ratio
    _native.draw(
        sample_ids.to("cpu", torch.int64).contiguous().numpy(),
        seed=seed & 0xFFFFFFFFFFFFFFFF,
        epoch=epoch,
        image_size=spec.image_size,
        crop_scale=spec.crop_scale,
        crop_ratio=spec.crop_ratio,
        half_log_ratio=(0.5 * math.log(low), 0.5 * math.log(high)),
        flip=spec.flip,
        jitter=spec.jitter,
        brightness=spec.brightness,
        contrast=spec.contrast,
        saturation=spec.saturation,
        hue=spec.hue,
        gray=spec.gray,
        blur=spec.blur,
        blur_sigma=spec.blur_sigma,
        table=table.numpy(),
    )
    return table
