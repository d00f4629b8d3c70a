"""Features of a data set through an ONNX file, cached by what they depend on. Imports neither torch nor onnx."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simclr_engine.data.store import ImageStore
from simclr_engine.evaluation.feature_cache import cached_features

from .runtime import OnnxEncoder


def onnx_features(
    path: str | Path,
    store: ImageStore,
    cache: bool = True,
    advance: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Features of every image of `store` through the file at `path`.

    Args:
        path: a file that `export_onnx` wrote; it is verified on every call, cached features or not.
        store: images of the size that the file takes.
        cache: keep the features under the cache folder, keyed by the file's sha256 and the store's fingerprint, and
            take them from there the next time.
        advance: called with the number of images done after each batch; not called where the features were cached.

    Returns:
        float32 `[N, D]`, in the order of the store.

    Raises:
        DataError: the file is not usable, or the images do not fit it.
    """
    encoder = OnnxEncoder(path)
    if not cache:
        return encoder.embed(store, advance=advance)
    return cached_features(f"onnx {encoder.sha256}", store, lambda images: encoder.embed(images, advance=advance))
