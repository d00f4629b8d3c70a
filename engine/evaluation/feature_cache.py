"""Features on disk, so that a second evaluation of the same encoder on the same images computes none."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from ..data.cache import cache_root
from ..data.store import ImageStore
from ..errors import PlatformError
from ..files import Folder


def cached_features(
    key: str, store: ImageStore, compute: Callable[[ImageStore], NDArray[np.float32]]
) -> NDArray[np.float32]:
    """The features of `store`, from the cache where they are, else computed and kept there.

    Args:
        key: identifies the encoder (hash of weights and buffers, or of the file) and its preprocessing.
        store: the images; their fingerprint completes the key.
        compute: gives float32 `[N, D]`, one row per image.

    A cache that cannot be read is computed anew; one that cannot be written costs time, never the evaluation.
    """
    name = hashlib.sha256(f"{key}\n{store.fingerprint}".encode()).hexdigest()
    path = cache_root() / "features" / f"{name}.npy"
    try:
        features = np.load(path, allow_pickle=False)
        if features.dtype == np.float32 and features.ndim == 2 and len(features) == len(store):
            return features
    except Exception:  # numpy's reader raises a dozen kinds for damaged files; all mean the same here
        pass
    features = compute(store)
    with suppress(PlatformError), Folder.open(path.parent, make=True).writing(path.name) as file:
        np.save(file, features, allow_pickle=False)
    return features
