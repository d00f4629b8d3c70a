"""Monitors pretraining by online kNN and the spread of the features, on images of the train split."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor

from simclr_engine.kernels import AugmentSpec

from .data.store import ImageStore
from .device import Platform
from .distributed import World
from .model import SimCLR
from .training import Plan, Trainer

NEIGHBOURS = 10
CHUNK = 250


class OnlineMonitor:
    """Encodes a fixed, class-balanced sample of the train split; a fifth are queries for the others to classify.

    The test split is never used, and the labels do not influence training. Without labels, only the spread of the
    features is computed. Each rank of a `World` encodes a share of the sample.
    """

    def __init__(
        self,
        store: ImageStore,
        spec: AugmentSpec,
        images: int,
        platform: Platform,
        world: World = World(),  # noqa: B008  # frozen
        epochs: int = 1,
    ) -> None:
        self._epochs = epochs
        if store.labels is not None and (store.labels < 0).any():  # images without a class tell nothing
            store = store.subset(np.flatnonzero(store.labels >= 0))
        sample = store.limit(images)
        order = np.random.default_rng(0).permutation(len(sample))
        self._count, self._platform, self._world = len(sample), platform, world
        self._share = -(-len(sample) // world.size)
        mine = order[world.rank * self._share : (world.rank + 1) * self._share]
        # On the device from the start: a measurement then waits for it once, at its end.
        self._images = torch.from_numpy(np.array(sample.images[mine])).to(platform.device)
        self._labels: Tensor | None = None
        if sample.labels is not None:
            self._labels = torch.from_numpy(np.array(sample.labels[order])).to(platform.device)
            self._classes = int(sample.labels.max()) + 1
        self._queries = max(1, len(sample) // 5)
        mean, std = (torch.tensor(list(v), device=platform.device).view(1, 3, 1, 1) for v in (spec.mean, spec.std))
        self._mean, self._std = mean, std

    @classmethod
    def of(cls, trainer: Trainer) -> OnlineMonitor | None:
        """The monitor of the trainer's recipe; None if the recipe has none."""
        wanted, spec = trainer.recipe.monitor, trainer.recipe.augment
        if not wanted.knn_epochs:
            return None
        return cls(trainer.store, spec, wanted.knn_images, trainer.platform, trainer.world, wanted.knn_epochs)

    def due(self, step: int, plan: Plan) -> bool:
        """Whether to measure after this many steps: at the end of the run and of every `epochs` epochs."""
        epoch, into = divmod(step, plan.steps_per_epoch)
        return step == plan.total_steps or (into == 0 and epoch % self._epochs == 0)

    def __call__(self, model: SimCLR) -> dict[str, float]:
        """`accuracy` (kNN, k = 10, cosine; only with labels), `feature_std`, `rankme`, `images`; {} off rank 0.

        Computed on the device; the host waits for it once, for the numbers of the row.
        """
        features = self._features(model)
        if not self._world.main:
            return {}
        names, numbers = ["feature_std"], [spread_of_unit_rows(features)]
        if self._labels is not None and len(features) > self._queries:
            names.append("accuracy")
            numbers.append(self._accuracy(features, self._labels))
        names.append("rankme")
        numbers.append(effective_rank(features))  # the last, for its solver waits for the device
        values = torch.stack([n.to(numbers[0].device, torch.float64) for n in numbers]).tolist()
        return {"images": float(len(features)), **dict(zip(names, values, strict=True))}

    def _accuracy(self, features: Tensor, labels: Tensor) -> Tensor:
        """Share of the queries whose class is the most frequent of their nearest; ties go to the nearest of the tied,
        as in `classify_knn`."""
        unit = torch.nn.functional.normalize(features)
        similarity = unit[: self._queries] @ unit[self._queries :].T
        nearest = similarity.sort(dim=1, descending=True, stable=True).indices[:, :NEIGHBOURS]
        votes = labels[self._queries :][nearest]
        counts = torch.zeros(len(votes), self._classes, device=votes.device)
        counts = counts.scatter_add_(1, votes, torch.ones_like(votes, dtype=counts.dtype))
        among_best = counts.gather(1, votes) == counts.amax(1, keepdim=True)
        first = (among_best * torch.arange(votes.shape[1], 0, -1, device=votes.device)).argmax(1, keepdim=True)
        return (votes.gather(1, first)[:, 0] == labels[: self._queries]).float().mean()

    @torch.no_grad()
    def _features(self, model: SimCLR) -> Tensor:
        """float32 `[N, D]` of the whole sample, on the device."""
        was_training, world, dtype = model.training, self._world, next(model.parameters()).dtype
        model.eval()
        # Local batch norm has running statistics that differ between ranks; those of rank 0 are saved.
        world.broadcast_(list(model.buffers()))
        # The last ranks' shares are padded: all send the same number of rows.
        everyone = torch.zeros(self._share, int(cast(int, model.encoder.feature_dim)), device=self._platform.device)
        for start in range(0, len(self._images), CHUNK):
            batch = self._images[start : start + CHUNK].permute(0, 3, 1, 2).float() / 255
            batch = ((batch - self._mean) / self._std).to(dtype)
            with self._platform.autocast():
                features = model.encoder(batch.contiguous(memory_format=self._platform.memory_format))
            everyone[start : start + len(batch)] = features
        model.train(was_training)
        return world.gather(everyone)[: self._count]


def spread_of_unit_rows(features: Tensor) -> Tensor:
    """Mean over dimensions of the standard deviation of features `[N, D]` of length 1, as `feature_statistics`."""
    return torch.nn.functional.normalize(_exact(features)).std(0, correction=0).mean()


def effective_rank(features: Tensor) -> Tensor:
    """RankMe of features `[N, D]` (Garrido et al. 2023): exp of the entropy of their singular values, which come from
    the D × D Gram matrix, as `feature_statistics`."""
    rows = _exact(features)
    singular = torch.linalg.eigvalsh(rows.T @ rows).clamp_min(0).sqrt()
    share = singular / singular.sum().clamp_min(1e-300) + 1e-12
    return (-(share * share.log()).sum()).exp()


def _exact(features: Tensor) -> Tensor:
    """In float64; MPS has none, so on the host there."""
    return (features.cpu() if features.device.type == "mps" else features).double()
