"""What is watched during pretraining: online kNN and the spread of the features, on images of the train split."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from simclr_engine.kernels import AugmentSpec

from .data.store import ImageStore
from .device import Platform
from .evaluation.collapse import feature_statistics
from .evaluation.knn import classify_knn
from .model import SimCLR

NEIGHBOURS = 10
CHUNK = 250


class OnlineMonitor:
    """Encodes a fixed, class-balanced sample of train: a fifth are queries, whose classes the rest vote on.

    The test split is never looked at, and the labels never reach the training: they only judge it. Without labels the
    accuracy is left out and the spread of the features remains.
    """

    def __init__(self, store: ImageStore, spec: AugmentSpec, images: int, platform: Platform) -> None:
        sample = store.limit(images)
        order = np.random.default_rng(0).permutation(len(sample))
        self._images, self._platform = sample.images[order], platform
        self._labels = None if sample.labels is None else sample.labels[order]
        self._queries = max(1, len(sample) // 5)
        self._mean, self._std = (torch.tensor(v).view(1, 3, 1, 1) for v in (spec.mean, spec.std))

    def __call__(self, model: SimCLR) -> dict[str, float]:
        """`accuracy` (kNN, k = 10, cosine; with labels only), `feature_std`, `rankme`, `images`."""
        features = self._features(model)
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
        was_training = model.training
        model.eval()
        chunks = []
        for start in range(0, len(self._images), CHUNK):
            images = torch.from_numpy(self._images[start : start + CHUNK]).permute(0, 3, 1, 2).float() / 255
            images = ((images - self._mean) / self._std).to(self._platform.device)
            with self._platform.autocast():
                features = model.encoder(images.contiguous(memory_format=self._platform.memory_format))
            chunks.append(cast(torch.Tensor, features).float().cpu().numpy())
        model.train(was_training)
        return np.concatenate(chunks)
