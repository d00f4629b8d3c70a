"""Monitors pretraining by online kNN and the spread of the features, on images of the train split."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from simclr_engine.kernels import AugmentSpec

from .data.store import ImageStore
from .device import Platform
from .distributed import World
from .evaluation.features import normalised_batches
from .evaluation.knn import classify_knn
from .evaluation.metrics import feature_statistics
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
        self._images, self._platform, self._world = sample.images[order], platform, world
        self._labels = None if sample.labels is None else sample.labels[order]
        self._queries = max(1, len(sample) // 5)
        self._mean, self._std = spec.mean, spec.std

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
        """`accuracy` (kNN, k = 10, cosine; only with labels), `feature_std`, `rankme`, `images`; {} off rank 0."""
        features = self._features(model)
        if not self._world.main:
            return {}
        statistics = feature_statistics(features)
        row = {"feature_std": statistics.std, "rankme": statistics.effective_rank, "images": float(len(features))}
        if self._labels is not None and len(features) > self._queries:
            bank, labels = features[self._queries :], self._labels[self._queries :]
            classes = int(self._labels.max()) + 1
            vote = classify_knn(bank, labels, features[: self._queries], classes, k=NEIGHBOURS)
            row["accuracy"] = float((vote.majority == self._labels[: self._queries]).mean())
        return row

    @torch.no_grad()
    def _features(self, model: SimCLR) -> NDArray[np.float32]:
        was_training, world, dtype = model.training, self._world, next(model.parameters()).dtype
        model.eval()
        # Local batch norm has running statistics that differ between ranks; those of rank 0 are saved.
        world.broadcast_(list(model.buffers()))
        each = -(-len(self._images) // world.size)
        mine = self._images[world.rank * each : (world.rank + 1) * each]
        chunks = [torch.empty(0, int(cast(int, model.encoder.feature_dim)))]
        for batch in normalised_batches(mine, self._mean, self._std, CHUNK, self._platform.device):
            with self._platform.autocast():
                features = model.encoder(batch.to(dtype).contiguous(memory_format=self._platform.memory_format))
            chunks.append(cast(torch.Tensor, features).float().cpu())
        model.train(was_training)
        features = torch.cat(chunks)
        missing = each - len(features)  # padding of the last ranks, so that all send the same number of rows
        everyone = world.gather(torch.nn.functional.pad(features, (0, 0, 0, missing)))
        return np.ascontiguousarray(everyone[: len(self._images)].numpy())
