"""A peer in the race: SimCLR as one writes it with lightly, its own transform, loss and head."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from simclr_engine.data.store import ImageStore
from simclr_engine.device import choose_platform
from simclr_engine.torchvision_shim import import_torchvision

BATCH, LR, WEIGHT_DECAY, TEMPERATURE, DIMENSION = 128, 0.06, 5e-4, 0.5, 128
WEIGHTS = "encoder.pth"
TIMED, TIMED_SHARE = 4, 0.96  # steps timed before, after an untimed one; the share of the time that steps get


class _Views(torch.utils.data.Dataset[list[Tensor]]):
    """Two views of each image, by lightly's SimCLRTransform for 32 px: no blur, as its authors' CIFAR-10 benchmark."""

    def __init__(self, store: ImageStore) -> None:
        from lightly.transforms import SimCLRTransform

        self._images: NDArray[Any] = store.images[:]
        self._transform = SimCLRTransform(input_size=store.image_size, gaussian_blur=0.0)

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

    SGD 0.06 × batch/256 with momentum 0.9 and weight decay 5e-4, cosine to zero over the steps that the limit allows,
    fp32, the loader in this process (the cores are busy with the network).

    Raises:
        ImportError: lightly is not installed.
    """
    began = time.perf_counter()
    torchvision = import_torchvision()
    import lightly
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    torch.manual_seed(seed)
    platform = choose_platform()
    device = platform.device
    resnet = torchvision.models.resnet18()
    resnet.conv1, resnet.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    encoder = nn.Sequential(*list(resnet.children())[:-1], nn.Flatten())
    model = nn.Sequential(encoder, SimCLRProjectionHead(512, 512, DIMENSION)).to(device)
    criterion, peak = NTXentLoss(temperature=TEMPERATURE), LR * BATCH / 256
    optimizer = torch.optim.SGD(model.parameters(), peak, momentum=0.9, weight_decay=WEIGHT_DECAY)
    batches = _batches(train, seed)

    def step() -> None:
        first, second = (views.to(device) for views in next(batches))
        loss = criterion(model(first), model(second))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    per_step = _seconds(step, TIMED)
    if pflop is not None:
        total = max(1, round(pflop * 1e15 / _flops(train.image_size)))
    else:
        assert minutes is not None
        total = max(1, int((minutes * 60 * TIMED_SHARE - (time.perf_counter() - began)) / per_step))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    start = time.perf_counter()
    for _ in range(total):
        step()
        schedule.step()
    step_seconds, per_epoch = time.perf_counter() - start, len(train) // BATCH
    torch.save({k: v for k, v in resnet.state_dict().items() if not k.startswith("fc.")}, folder / WEIGHTS)
    return {
        "weights": WEIGHTS,
        "recipe": f"lightly {lightly.__version__}, SimCLRTransform, NTXentLoss, SGD",
        "images": len(train),
        "steps": total,
        "epochs": total / per_epoch,
        "views_per_image": 2 * BATCH * total / len(train),
        "pflop": total * _flops(train.image_size) / 1e15,
        "seconds": time.perf_counter() - began,
        "step_seconds": step_seconds,
        "device": str(platform.describe()["device_name"]),
        "precision": "fp32",
        "versions": {"torch": torch.__version__, "lightly": lightly.__version__},
    }


def _batches(train: ImageStore, seed: int) -> Iterator[list[Tensor]]:
    """Batches without end, shuffled anew in each epoch."""
    generator = torch.Generator().manual_seed(seed)
    loader = torch.utils.data.DataLoader(_Views(train), BATCH, shuffle=True, drop_last=True, generator=generator)
    while True:
        yield from loader


def _seconds(step: Any, count: int) -> float:
    """Mean seconds of a step, after an untimed one. These steps train too, as a user's would."""
    step()
    start = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - start) / count


def _flops(size: int) -> float:
    """Of a step; lightly's head is counted as ours of the same widths."""
    from simclr_engine.flops import flops_per_view
    from simclr_engine.recipe import HeadSpec, ModelSpec

    return 2 * BATCH * flops_per_view(ModelSpec(), HeadSpec(hidden=(512,), batch_norm="hidden"), size)
