"""How many views per second does the augmentation make, beside its peers? Recipe `lars-800`'s distributions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from simclr_engine.device import choose_platform, keep_freed_memory
from simclr_engine.kernels import AugmentSpec, augment, draw_params, pick_augment
from simclr_engine.timing import interleave

from .baselines.augmentation import BUILDERS
from .rows import Floor, Row, missing_row, rate_row

VIEWS = 2
# The reference must not starve a CPU; batched kornia made 13,800 and torchvision per image 4,400 on two cores.
FLOORS = (Floor("augmentation 32×32", "ours on cpu", 10_000),)


def rows(views: int = 512, size: int = 32, repeats: int = 7) -> list[Row]:
    """Views per second of drawing and applying, contenders interleaved; images are resident.

    Peers run on the CPU, in this process, with torch's number of threads; ours also on a CUDA device where there is
    one. Contenders that cannot be imported get a row that says so.

    Args:
        views: views per call, V·B with V = 2.
        size: side of images and views, pixels.
        repeats: timed calls per contender.
    """
    spec = AugmentSpec(image_size=size)
    images = _pictures(views // VIEWS, size)
    device = choose_platform().device
    keep_freed_memory()
    name, unit = f"augmentation {size}×{size}", "views/s"

    contenders: dict[str, Callable[[], object]] = {}
    for kind in dict.fromkeys(("cpu", device.type)):
        contenders[f"ours on {kind}"] = _ours(images, spec, torch.device(kind))
    missing: list[Row] = []
    for contender, build in BUILDERS.items():
        try:
            contenders[contender] = build(images, spec, VIEWS)
        except Exception as reason:  # an installed peer may fail to import in many ways; it is named all the same
            row = missing_row(name, contender, unit)
            if not isinstance(reason, ModuleNotFoundError):
                row["note"] = f"does not load: {str(reason).splitlines()[0] if str(reason) else type(reason).__name__}"
            missing.append(row)
    synchronize = torch.cuda.synchronize if device.type == "cuda" else None
    timings = interleave(contenders, repeats, warmup=2, synchronize=synchronize)
    more = {"views": len(images) * VIEWS, "size": size, "threads": torch.get_num_threads()}
    measured = [
        rate_row(name, contender, len(images) * VIEWS, timing, unit, **more) for contender, timing in timings.items()
    ]
    measured[0]["backend"] = pick_augment("auto", "cpu")[0]
    return measured + missing


def _ours(images: np.ndarray, spec: AugmentSpec, device: torch.device) -> Callable[[], object]:
    stored, ids = torch.from_numpy(images).to(device), torch.arange(len(images), device=device)

    def call() -> object:
        return augment(stored, draw_params(spec, seed=0, epoch=0, sample_ids=ids, views=VIEWS), spec)

    return call


def _pictures(count: int, size: int) -> np.ndarray:
    """uint8 `[count, size, size, 3]`: noise over gradients; no operation is cheaper or dearer on it than on photos."""
    generator = np.random.default_rng(0)
    ramp = np.linspace(0, 160, size)[:, None, None] * generator.random((count, 1, 1, 3))
    return (ramp + generator.integers(0, 96, (count, size, size, 3))).astype(np.uint8)
