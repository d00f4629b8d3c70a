"""Labels from features, to say for how many images two encoders would be answered differently."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simclr_engine.errors import DataError
from simclr_engine.evaluation.linear import LinearProbe

from .probe import saved_probes


@dataclass(frozen=True)
class Labeller:
    """`label` takes features float32 `[N, D]` to int64 `[N]`; `source` says how, for people."""

    label: Callable[[NDArray[np.float32]], NDArray[np.int64]]
    source: str


def labeller(run_directory: Path, feature_dim: int, truth: NDArray[np.int64] | None) -> Labeller:
    """The run's newest linear probe of the pretrained encoder, one fitted on all images before one fitted on some;
    without any, the nearest neighbour among the images.

    Args:
        run_directory: probes lie in `evaluation/*-linear-pretrained.safetensors`.
        feature_dim: D; a probe for another width is passed over.
        truth: labels of the images that will be labelled, int64 `[N]`; None makes each image a class of its own.
    """
    for name, path in saved_probes(run_directory):
        try:
            probe = LinearProbe.load(path)
        except DataError:
            continue
        if probe.coef.shape[1] == feature_dim:
            return Labeller(partial(_by_probe, probe), f"linear probe {name}")
    return nearest_neighbour(truth)


def nearest_neighbour(truth: NDArray[np.int64] | None) -> Labeller:
    """The label of the nearest other image; without labels each image is a class of its own."""
    return Labeller(partial(_nearest, truth), "nearest neighbour (cosine) among these images")


def _by_probe(probe: LinearProbe, features: NDArray[np.float32]) -> NDArray[np.int64]:
    return probe.predict_proba(features).argmax(1)


def _nearest(truth: NDArray[np.int64] | None, features: NDArray[np.float32]) -> NDArray[np.int64]:
    """The label, or else the index, of the other row with the largest cosine."""
    f = features.astype(np.float64)
    f /= np.maximum(np.linalg.norm(f, axis=1, keepdims=True), 1e-12)
    similarity = f @ f.T
    np.fill_diagonal(similarity, -np.inf)
    neighbour: NDArray[np.int64] = similarity.argmax(1)
    return neighbour if truth is None else truth[neighbour]
