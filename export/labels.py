"""Labels from features, to say in how many images two encoders would be answered differently."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

PROBE_KEYS = ("coef", "intercept", "mean", "scale")


@dataclass(frozen=True)
class Labeller:
    """`label` takes features float32 `[N, D]` to int64 `[N]`; `source` says how, for people."""

    label: Callable[[NDArray[np.float32]], NDArray[np.int64]]
    source: str


def labeller(run_directory: Path, feature_dim: int, truth: NDArray[np.int64] | None) -> Labeller:
    """The run's newest linear probe of the pretrained encoder; without one, the nearest neighbour among the images.

    Args:
        run_directory: probes lie in `evaluation/*.safetensors`.
        feature_dim: D; a probe of another width is passed over.
        truth: labels of the images that will be labelled, int64 `[N]`; None makes each image its own class.
    """
    folder = run_directory / "evaluation"
    candidates = [p for p in folder.glob("*.safetensors") if "linear" in p.stem and "scratch" not in p.stem]
    for path in sorted(candidates, key=lambda p: (p.stat().st_mtime, p.name), reverse=True):
        probe = _probe(path, feature_dim)
        if probe is not None:
            return Labeller(probe, f"linear probe {path.stem}")

    def nearest(features: NDArray[np.float32]) -> NDArray[np.int64]:
        f = features.astype(np.float64)
        f /= np.maximum(np.linalg.norm(f, axis=1, keepdims=True), 1e-12)
        similarity = f @ f.T
        np.fill_diagonal(similarity, -np.inf)
        neighbour = similarity.argmax(1)
        return neighbour if truth is None else truth[neighbour]

    return Labeller(nearest, "nearest neighbour (cosine) among the images")


def _probe(path: Path, feature_dim: int) -> Callable[[NDArray[np.float32]], NDArray[np.int64]] | None:
    """The probe in `path` as a function, None if it is no probe for features of this width."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError):
        return None
    if not set(PROBE_KEYS) <= set(tensors) or tensors["coef"].shape[-1:] != (feature_dim,):
        return None
    coef, intercept, mean, scale = (tensors[k].astype(np.float64) for k in PROBE_KEYS)

    def label(features: NDArray[np.float32]) -> NDArray[np.int64]:
        scores = (features - mean) / scale @ coef.T + intercept
        return (scores[:, 0] > 0).astype(np.int64) if scores.shape[1] == 1 else scores.argmax(1)

    return label
