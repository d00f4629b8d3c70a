"""Views per second of the augmentation beside other libraries, with the distributions of `lars-800`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from simclr_engine.device import choose_platform, keep_freed_memory
from simclr_engine.kernels import AugmentSpec, augment, draw_params, pick_augment
from simclr_engine.kernels.augmentation.dispatch import BACKENDS
from simclr_engine.recipe import Recipe
from simclr_engine.timing import interleave

from .baselines import BUILDERS
from .rows import Floor, Row, first_line, missing_row, rate_row

VIEWS = 2
NAME, UNIT = "augmentation {0}×{0}", "views/s"
FLOORS = (
    # The PyTorch backend must keep a CPU fed; on two cores batched kornia made 13,800, torchvision per image 4,400.
    Floor(NAME.format(32), "ours (torch) on cpu", least=10_000),
    Floor(NAME.format(32), "ours (native) on cpu", of="DALI on CPU", least=3),
    Floor(NAME.format(32), "ours (native) on cpu", of="lightly", least=25),
)
CUDA_FLOORS = (
    Floor(NAME.format(32), "ours (triton) on cuda", least=5e6),
    Floor(NAME.format(32), "ours (triton) on cuda", of="ours (dali) on cuda", least=10),
)


def floors() -> tuple[Floor, ...]:
    """What must hold on this machine's device; the CPU's floors hold on a CPU of two cores and more."""
    return CUDA_FLOORS if choose_platform().device.type == "cuda" else FLOORS


def rows(repeats: int = 7, views: int | None = None, size: int = 32, only: str | None = None) -> list[Row]:
    """Views per second of drawing and applying, contenders interleaved; images are resident.

    Peers run on the CPU, in this process, with torch's number of threads. A contender that cannot run gets a row that
    says why. Rows of ours hold `max_error` against the float64 reference with the same table (of DALI's, whose hue and
    jitter order are its own, the mean), and on CUDA `gigabytes_per_second` of images read and views written.

    Args:
        repeats: timed calls per contender.
        views: views per call, V·B with V = 2; by default what suits the device.
        size: side of images and views, pixels.
        only: a backend on the device, alone; "peers" for all that runs on the CPU.
    """
    device = choose_platform().device
    cuda = device.type == "cuda"
    spec = replace(Recipe.load("lars-800").augment, image_size=size)
    keep_freed_memory()
    name = NAME.format(size)
    measured: list[Row] = []
    for kind in dict.fromkeys((device.type, "cpu")):
        if only is not None and (kind == "cpu") != (only == "peers" or not cuda):
            continue
        batch = (views or (65536 if kind == "cuda" else 512)) // VIEWS
        images = _pictures(batch, size)
        contenders, missing = _ours(images, spec, torch.device(kind))
        if only not in (None, "peers"):
            label = f"ours ({only}) on {kind}"
            contenders = {k: v for k, v in contenders.items() if k == label}
            missing = {k: v for k, v in missing.items() if k == label}
        elif kind == "cpu":
            peers, absent = _peers(images, spec)
            contenders, missing = contenders | peers, missing | absent
        ours = [c for c in contenders if c.startswith("ours")]
        more = {c: _quality(c, images, spec, torch.device(kind)) for c in ours}
        synchronize = torch.cuda.synchronize if cuda else None
        timings = interleave(contenders, repeats, warmup=2, synchronize=synchronize)
        for contender, timing in timings.items():
            row = rate_row(name, contender, batch * VIEWS, timing, UNIT, views=batch * VIEWS, size=size)
            row |= more.get(contender, {})
            if kind == "cuda":
                bytes_per_view = 3 * size**2 * (1 / VIEWS + 2)
                row["gigabytes_per_second"] = row["median"] * bytes_per_view / 1e9
            else:
                row["threads"] = torch.get_num_threads()
            measured.append(row)
        measured += [missing_row(name, contender, UNIT, note) for contender, note in missing.items()]
    return measured


def _ours(
    images: NDArray[np.uint8], spec: AugmentSpec, device: torch.device
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """A call for each backend that serves the device, and the reason for each that does not."""
    stored, ids = torch.from_numpy(images).to(device), torch.arange(len(images), device=device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    running: dict[str, Callable[[], object]] = {}
    missing: dict[str, str] = {}
    for backend in BACKENDS:
        label = f"ours ({backend}) on {device.type}"
        try:
            pick_augment(backend, device)
        except ValueError as reason:
            missing[label] = str(reason)
            continue

        def call(backend: str = backend) -> Tensor:
            params = draw_params(spec, seed=0, epoch=0, sample_ids=ids, views=VIEWS)
            return augment(stored, params, spec, dtype=dtype, backend=backend)

        running[label] = call
    return running, missing


def _quality(label: str, images: NDArray[np.uint8], spec: AugmentSpec, device: torch.device) -> dict[str, float]:
    """The error of float32 views against the PyTorch backend in float64."""
    backend = label.removeprefix("ours (").split(")")[0]
    some = torch.from_numpy(images[:256])
    params = draw_params(spec, seed=1, epoch=0, sample_ids=torch.arange(len(some)), views=VIEWS)
    truth = augment(some, params, spec, dtype=torch.float64, backend="torch")
    views = augment(some.to(device), params.to(device), spec, backend=backend).cpu().double()
    error = (views - truth).abs()
    return {"mean_error": float(error.mean())} if backend == "dali" else {"max_error": float(error.max())}


def _peers(images: NDArray[np.uint8], spec: AugmentSpec) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    running: dict[str, Callable[[], object]] = {}
    missing: dict[str, str] = {}
    for contender, build in BUILDERS.items():
        try:
            running[contender] = build(images, spec, VIEWS)
        except ModuleNotFoundError:
            missing[contender] = "not installed"
        except Exception as reason:  # an installed peer may fail to import in many ways; it is named all the same
            missing[contender] = f"does not load: {first_line(reason)}"
    return running, missing


def _pictures(count: int, size: int) -> NDArray[np.uint8]:
    """uint8 `[count, size, size, 3]`: noise over gradients; operations take as long on them as on photographs."""
    generator = np.random.default_rng(0)
    ramp = np.linspace(0, 160, size)[:, None, None] * generator.random((count, 1, 1, 3))
    return (ramp + generator.integers(0, 96, (count, size, size, 3))).astype(np.uint8)


def sheet(image: NDArray[np.uint8], views: int) -> Figure:
    """Draws `views` views of one image, a row for each backend that serves here: columns must look the same.

    Args:
        image: uint8 `[S, S, 3]`.
        views: columns.
    """
    device = choose_platform().device
    size = image.shape[0]
    spec = replace(Recipe.load("quick-10").augment, image_size=size, blur=0.5, mean=(0.0,) * 3, std=(1.0,) * 3)
    table = draw_params(spec, seed=3, epoch=0, sample_ids=torch.zeros(1, dtype=torch.long), views=views)
    lines: dict[str, Tensor] = {}
    for kind in dict.fromkeys((device.type, "cpu")):
        for backend in BACKENDS:
            try:
                pick_augment(backend, kind)
            except ValueError:
                continue
            stored = torch.from_numpy(image[None]).to(kind)
            batch = augment(stored, table.to(kind), spec, backend=backend)
            lines[f"{backend}, {kind}"] = batch.float().cpu().clamp(0, 1).permute(0, 2, 3, 1)
    figure = Figure(figsize=(1.0 * views + 1.2, 1.05 * len(lines)), layout="constrained")
    axes = figure.subplots(len(lines), views, squeeze=False)
    for row, (label, pictures) in zip(axes, lines.items(), strict=True):
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(picture.numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(label, rotation=0, ha="right", va="center")
    return figure
