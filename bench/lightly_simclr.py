"""A peer in the race: SimCLR as one writes it with lightly, its own transform, loss and head."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from simclr_engine.data.store import ImageStore
from simclr_engine.device import choose_platform
from simclr_engine.recording import commit_of_checkout
from simclr_engine.torchvision_shim import import_torchvision

# The rate, its batch, the decay and the temperature are those of lightly's own CIFAR-10 benchmark.
BATCH, LR, WEIGHT_DECAY, TEMPERATURE, DIMENSION = 128, 0.06, 5e-4, 0.5, 128
WEIGHTS = "encoder.pth"


class _Views(torch.utils.data.Dataset[list[Tensor]]):
    """Two views of each image by SimCLRTransform for 32 px: no blur, as in lightly's CIFAR-10 benchmark, and jitter of
    half the strength, as its documentation recommends for CIFAR-10."""

    def __init__(self, store: ImageStore) -> None:
        from lightly.transforms import SimCLRTransform

        self._images: NDArray[Any] = store.images[:]
        self._transform: Any = SimCLRTransform(input_size=store.image_size, cj_strength=0.5, gaussian_blur=0.0)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> list[Tensor]:
        from PIL import Image

        views: list[Tensor] = self._transform(Image.fromarray(self._images[index]))
        return views


def train_lightly(
    train: ImageStore, folder: Path, minutes: float | None, pflop: float | None, seed: int
) -> dict[str, Any]:
    """Trains ResNet-18 with the small stem and writes its encoder; returns what it took, as a row of the race.

    SGD with momentum 0.9, its rate along a cosine that reaches zero where the time or the compute is used up, fp32, the
    loader in this process (the cores are busy with the network).

    Raises:
        ImportError: lightly is not installed.
    """
    began = time.perf_counter()
    torchvision = import_torchvision()
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    torch.manual_seed(seed)
    platform = choose_platform()
    device = platform.device
    resnet = torchvision.models.resnet18()
    resnet.conv1, resnet.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    encoder = nn.Sequential(*list(resnet.children())[:-1], nn.Flatten())
    model = nn.Sequential(encoder, SimCLRProjectionHead(512, 512, DIMENSION)).to(device)
    criterion = NTXentLoss(temperature=TEMPERATURE)
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9, weight_decay=WEIGHT_DECAY)
    batches = _batches(train, seed)

    steps, start, per_step = 0, time.perf_counter(), _flops(train.image_size)

    def used() -> float:
        """The share of the time, setting up included, or of the compute."""
        if minutes is not None:
            return (time.perf_counter() - began) / (60 * minutes)
        assert pflop is not None
        return steps * per_step / (1e15 * pflop)

    while steps == 0 or used() < 1:
        optimizer.param_groups[0]["lr"] = LR * (1 + math.cos(math.pi * min(1.0, used()))) / 2
        first, second = (views.to(device) for views in next(batches))
        loss = criterion(model(first), model(second))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        steps += 1
    platform.synchronize()
    step_seconds, per_epoch = time.perf_counter() - start, len(train) // BATCH
    torch.save({k: v for k, v in resnet.state_dict().items() if not k.startswith("fc.")}, folder / WEIGHTS)
    return {
        "weights": WEIGHTS,
        "recipe": f"lightly {version('lightly')}, SimCLRTransform, NTXentLoss, SGD",
        "images": len(train),
        "steps": steps,
        "epochs": steps / per_epoch,
        "views_per_image": 2 * BATCH * steps / len(train),
        "pflop": steps * per_step / 1e15,
        "seconds": time.perf_counter() - began,
        "step_seconds": step_seconds,
        "device": str(platform.describe()["device_name"]),
        "precision": "fp32",
        "versions": {"torch": torch.__version__, "lightly": version("lightly")},
        "commit": commit_of_checkout(),
    }


def _batches(train: ImageStore, seed: int) -> Iterator[list[Tensor]]:
    """Batches without end, shuffled anew in each epoch."""
    generator = torch.Generator().manual_seed(seed)
    loader = torch.utils.data.DataLoader(_Views(train), BATCH, shuffle=True, drop_last=True, generator=generator)
    while True:
        yield from loader


def _flops(size: int) -> float:
    """Of a step; lightly's head is counted as ours of the same widths."""
    from simclr_engine.flops import flops_per_view
    from simclr_engine.recipe import HeadSpec, ModelSpec

    return 2 * BATCH * flops_per_view(ModelSpec(), HeadSpec(hidden=(512,), batch_norm="hidden"), size)
