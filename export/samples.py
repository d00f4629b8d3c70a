"""The images that an export is checked on: the run's own where they are at hand, else made up from a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simclr_engine.data.cache import DamagedError, cache_root, read_meta, read_split
from simclr_engine.data.store import ImageStore
from simclr_engine.run import Run

SEED = 0


@dataclass(frozen=True)
class Samples:
    """Images uint8 `[N, S, S, 3]`, their labels (int64 `[N]`) where known, and a phrase that says what they are."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    source: str


def parity_samples(run: Run, count: int) -> Samples:
    """`count` images at the run's size.

    Those that it was trained on, evenly spread and repeated where there are fewer, if they lie in the cache: an export
    neither downloads nor unpacks anything. Otherwise `natural_images`.
    """
    store = cached_training_images(run)
    if store is None:
        return Samples(natural_images(count, run.image_size), None, f"synthetic (1/f noise, seed {SEED})")
    at = np.linspace(0, len(store) - 1, count).round().astype(np.int64)
    labels = None if store.labels is None else store.labels[at]
    return Samples(np.ascontiguousarray(store.images[at]), labels, "images that it was trained on")


def cached_training_images(run: Run) -> ImageStore | None:
    """The very images that the run was trained on, found in the cache by their fingerprint; None if not there."""
    stated = run.environment["data"]
    wanted, limit = stated["fingerprint"], stated.get("limit")
    for entry in sorted((cache_root() / "data").glob("[0-9a-f]*")):
        try:
            meta = read_meta(entry)
            if meta is None:
                continue
            for split, about in meta.splits.items():
                a_subset = limit is not None and about.images > limit and meta.image_size == run.image_size
                if about.fingerprint != wanted and not a_subset:
                    continue
                store = read_split(entry, meta, split, stated["name"]).limit(limit)
                if store.fingerprint == wanted and store.image_size == run.image_size:
                    return store
        except DamagedError:
            continue
    return None


def natural_images(count: int, size: int, seed: int = SEED) -> NDArray[np.uint8]:
    """Noise with the 1/f amplitude spectrum of photographs (Field 1987, doi:10.1364/JOSAA.4.002379).

    Args:
        count: number of images N.
        size: side S in pixels.
        seed: same seed, same images.

    Returns:
        uint8 `[N, S, S, 3]`, each image over the whole range of brightness.
    """
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    amplitude = 1 / np.maximum(frequency, 1 / size)
    noise = random.standard_normal((count, 3, size, size))
    noise += 2 * noise[:, :1]  # photographs vary in brightness more than in colour
    field = np.fft.irfft2(np.fft.rfft2(noise) * amplitude, s=(size, size))
    low, high = field.min((1, 2, 3), keepdims=True), field.max((1, 2, 3), keepdims=True)
    scaled = (field - low) / np.maximum(high - low, 1e-12)
    return np.ascontiguousarray((scaled * 255).round().astype(np.uint8).transpose(0, 2, 3, 1))
