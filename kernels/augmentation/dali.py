"""The DALI backend: the same views from a graph of NVIDIA DALI operators, on the CPU and on CUDA by one definition.

It replays the drawn table, as every backend does. Crop, resize, flip, brightness, contrast, saturation, gray, blur and
normalisation are those of `eager` in float32, operation by operation (within 1e-5 on the scale where white is 1, before
the division by std). Two differences remain:

- Hue is DALI's: a rotation of the colour in YIQ (`fn.hue`, in degrees), where `eager` rotates HSV's hue. It keeps
  the luma instead of the value, turns some colours further than others (the spread of turns is a tenth larger), and
  its rounded coefficients change grays: by 0.1 % for a turn of 0.1, by 0.6 % for half a turn. No turn is the identity.
- Jitter has one order for all views: brightness, contrast, saturation, hue. The column `order` of the table is not
  read. With the hue left out, spreads of brightness, contrast and saturation differ from those of `eager` by 0.1 %.

The computation is in float32 even where float64 is asked for; DALI has no bfloat16, so those views are converted.

How it is fed. Each call is one iteration, given its data and waited for (prefetch_queue_depth=1): a function cannot
prefetch, because the next table is not known yet. That also settles how long `no_copy` buffers must live: they are
read by the iteration that was fed with them, and that has ended when `run` returns its outputs (on CUDA: ended for
whatever is enqueued afterwards on the current stream). A ring of prefetch depth + 1 buffers would be for a graph that
runs ahead. The dynamic executor gives every iteration fresh output memory, so what leaves through DLPack stays the
caller's, however many calls follow; the older executors overwrite it.

On CUDA, `no_copy` means that DALI does not wait for whoever wrote the images (its `ShareUserData` records no event, and
the consumer takes the buffer over without synchronising), and per-view arguments of its operators must be in host
memory. So the table is fetched and the current stream waited for, once per call, before DALI starts.
"""

from __future__ import annotations

import math
import sys
from functools import lru_cache
from threading import Lock
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from .eager import GRAY_WEIGHTS
from .spec import AugmentSpec
from .table import BRIGHTNESS, CONTRAST, FLIP, GRAY, HUE, JITTER_ON, SATURATION, SIGMA, H, W, X, Y

PACKAGE = "nvidia-dali-cuda130"
INSTALL = "pip install 'simclr-engine[dali]' (in a checkout: pip install '.[dali]')"
# Graphs kept ready, each with threads and memory of its own: training and evaluation, with a last, smaller batch each.
GRAPHS_KEPT = 4

_RUNNING = Lock()  # a graph is fed and run by one thread at a time


def why_not(device: torch.device) -> str:
    """Why DALI cannot serve this device here; "" if it can."""
    if device.type not in ("cpu", "cuda"):
        return f"DALI runs on CPU and CUDA, not on {device.type}"
    if not sys.platform.startswith("linux"):
        return f"NVIDIA publishes DALI for Linux, not for {sys.platform}"
    try:
        import nvidia.dali  # noqa: F401 (whether it loads is the question)
    except Exception as error:  # what a broken package raises is of any kind
        missing = isinstance(error, ModuleNotFoundError) and error.name in ("nvidia", "nvidia.dali")
        return f"{PACKAGE} {'is not installed' if missing else f'does not load ({error})'}: {INSTALL}"
    return ""


@torch.no_grad()
def augment(images: Tensor, params: Tensor, spec: AugmentSpec, size: int, dtype: torch.dtype) -> Tensor:
    """Apply drawn parameters. Arguments as `dispatch.augment`, which checks them.

    The first call for a kind of batch builds its graph (a tenth of a second); `GRAPHS_KEPT` of them are kept.
    """
    rows, device = len(params), images.device
    # DALI wants the batch as one buffer. Repeating bytes for the views is the only copy, and the smallest there is: the
    # other way, a branch of the graph per view, would end in copying the views, in floats.
    stored = (images if rows == len(images) else images.repeat(rows // len(images), 1, 1, 1)).contiguous()
    graph = _graph(
        capacity=1 << (rows - 1).bit_length(),  # batches of any size up to a power of two share a graph
        spec=spec,
        size=size,
        half=dtype == torch.float16,
        device_id=device.index if device.type == "cuda" else None,
        threads=torch.get_num_threads(),
    )
    numbers = arguments(params.to("cpu", torch.float32), spec, size)
    try:
        with _RUNNING:
            if device.type == "cuda":
                with torch.cuda.device(device):
                    stream = torch.cuda.current_stream()
                    stream.synchronize()  # the images are written; see above
                    graph.feed_input("images", stored, cuda_stream=stream)
                    views = torch.from_dlpack(graph.run(stream, **numbers)[0].as_tensor())
            else:
                views = torch.from_dlpack(graph.run(images=stored.numpy(), **numbers)[0].as_tensor())
    except RuntimeError:
        _graph.cache_clear()  # DALI's word on a pipeline that failed: "no longer valid"
        raise
    return views.permute(0, 3, 1, 2).to(dtype)


def arguments(table: Tensor, spec: AugmentSpec, size: int) -> dict[str, NDArray[Any]]:
    """What the graph's operators take, by the names of its inputs: arrays with one entry per view, on the host."""
    mirrored = table[:, FLIP] > 0
    border = _border(spec.image_size, size)
    left, right = torch.zeros_like(table[:, W]), table[:, W]
    start, end = torch.where(mirrored, right, left), torch.where(mirrored, left, right)
    wanted = {
        "crop_start": table[:, [Y, X]].to(torch.int32),
        "crop_end": (table[:, [Y, X]] + table[:, [H, W]]).to(torch.int32),
        # The region to be resized, from its end to its start where the view is mirrored.
        "region_start": torch.stack((left, start), 1) + border,
        "region_end": torch.stack((table[:, H], end), 1) + border,
    }
    if border:
        wanted["undo_y"] = _undo_border(table[:, H], size, border)[:, :, None, None]
        wanted["undo_x"] = _undo_border(table[:, W], size, border)[:, None, :, None]
    if spec.jitter > 0:
        gray, kept = table.new_tensor(GRAY_WEIGHTS), table[:, SATURATION, None, None]
        wanted["jittered"] = table[:, JITTER_ON] > 0
        wanted["brightness"] = table[:, BRIGHTNESS]
        wanted["contrast"] = table[:, CONTRAST]
        wanted["pivot"] = (1 - table[:, CONTRAST, None]) * gray
        wanted["saturation"] = kept * torch.eye(3).to(table) + (1 - kept) * gray.expand(3, 3)
        wanted["hue"] = table[:, HUE] * 360  # degrees
    if spec.gray > 0:
        wanted["gray"] = table[:, GRAY] > 0
    if spec.blur > 0:
        wanted["blurred"] = table[:, SIGMA] > 0
        wanted["sigma"] = table[:, SIGMA]
    return {name: value.contiguous().numpy() for name, value in wanted.items()}


def _border(image_size: int, size: int) -> int:
    """Pixels of zeros around a crop before it is resized; none where no crop can shrink.

    Shrinking, the resampling's triangle reaches over the crop's edge. DALI then repeats the edge; `eager` (as
    PIL and torch) leaves out what is not there. Over a border of zeros DALI leaves it out too, but for the weights'
    sum, which `_undo_border` restores.
    """
    return math.ceil(image_size / size) if image_size > size else 0


def _undo_border(length: Tensor, size: int, border: int) -> Tensor:
    """`[n, size]`: the sum of each output pixel's weights, over their sum inside the crop of `length` pixels.

    The same from either end, so that mirroring changes nothing.
    """
    scale = (length / size)[:, None, None]
    place = torch.arange(-border, int(length.max()) + border).to(length) + 0.5
    centre = (torch.arange(size).to(length)[:, None] + 0.5) * scale
    weight = (place - centre).abs_().div_(scale.clamp_min(1)).neg_().add_(1).clamp_min_(0)
    inside = (place > 0) & (place < length[:, None, None])
    return weight.sum(2) / (weight * inside).sum(2)


@lru_cache(maxsize=GRAPHS_KEPT)
def _graph(capacity: int, spec: AugmentSpec, size: int, half: bool, device_id: int | None, threads: int) -> Any:
    """A built pipeline for batches of up to `capacity` views."""
    from nvidia.dali import pipeline_def

    graph = pipeline_def(enable_conditionals=True)(_views)(
        spec,
        size,
        half,
        device="cpu" if device_id is None else "gpu",
        batch_size=capacity,
        num_threads=threads,
        device_id=device_id,
        prefetch_queue_depth=1,
        exec_dynamic=True,
    )
    graph.build()
    return graph


def _views(spec: AugmentSpec, size: int, half: bool, device: str) -> Any:
    """The graph's definition: from inputs named as in `arguments` to finished views, HWC, on the scale of bytes.

    Only the images are told where they live; each operator runs where its images are. An `if` of an input divides the
    batch: DALI runs its branch for the views that take it, and puts the batch together again. Limits are a minimum
    and a maximum because DALI's `clamp` takes twice as long as both together.
    """
    from nvidia.dali import fn, types
    from nvidia.dali.math import max as larger
    from nvidia.dali.math import min as smaller

    x: Any = fn.external_source(name="images", layout="HWC", dtype=types.UINT8, batch=True, no_copy=True, device=device)
    x = _resized_crops(x, spec, size, device)
    if spec.jitter > 0:
        brightness, contrast, pivot = _given("brightness"), _given("contrast"), _given("pivot", 1)
        saturation, hue, jittered = _given("saturation", 2), _given("hue"), _given("jittered", dtype=types.BOOL)
        if jittered:
            x = smaller(x * brightness, 255.0)
            gray = fn.reductions.sum(fn.reductions.mean(x, axes=(0, 1)) * pivot)
            x = larger(smaller(x * contrast + gray, 255.0), 0.0)
            x = larger(smaller(fn.coord_transform(x, M=saturation), 255.0), 0.0)
            x = larger(smaller(fn.hue(x, hue=hue), 255.0), 0.0)
    if spec.gray > 0:
        dropped = _given("gray", dtype=types.BOOL)
        if dropped:
            x = fn.coord_transform(x, M=GRAY_WEIGHTS * 3)
    if spec.blur > 0:
        blurred, sigma = _given("blurred", dtype=types.BOOL), _given("sigma")
        if blurred:
            x = fn.gaussian_blur(x, window_size=spec.blur_kernel, sigma=sigma)
    return fn.crop_mirror_normalize(
        x,
        mean=[255 * mean for mean in spec.mean],
        std=[255 * std for std in spec.std],
        dtype=types.FLOAT16 if half else types.FLOAT,
        output_layout="HWC",
    )


def _given(name: str, ndim: int = 0, dtype: Any = None) -> Any:
    """An input of the graph, float32 unless said."""
    from nvidia.dali import fn, types

    return fn.external_source(name=name, ndim=ndim, dtype=dtype or types.FLOAT, batch=True, no_copy=True)


def _resized_crops(x: Any, spec: AugmentSpec, size: int, device: str) -> Any:
    """The crop of each image, resized and possibly mirrored."""
    from nvidia.dali import fn, types

    start, end = _given("crop_start", 1, types.INT32), _given("crop_end", 1, types.INT32)
    x = fn.slice(x, start=start, end=end, axes=(0, 1))
    border = _border(spec.image_size, size)
    if border > 0:
        shape = end - start + 2 * border
        x = fn.slice(x, start=(-border, -border), shape=shape, axes=(0, 1), out_of_bounds_policy="pad")
    x = fn.resize(
        x,
        size=(size, size),
        roi_start=_given("region_start", 1),
        roi_end=_given("region_end", 1),
        interp_type=types.INTERP_LINEAR,
        antialias=True,
        dtype=types.FLOAT,
    )
    if border > 0:
        down, across = _given("undo_y", 3), _given("undo_x", 3)
        if device == "gpu":  # their product is as large as a plane: better made there than sent
            down, across = down.gpu(), across.gpu()
        x = x * (down * across)
    return x
