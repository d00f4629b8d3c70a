"""Features and predictions of an ONNX file for a data set, cached. Imports neither torch nor onnx."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simclr_engine.data.cache import cached_features
from simclr_engine.data.store import ImageStore
from simclr_engine.errors import DataError

from .metadata import ModelMetadata
from .runtime import OnnxEncoder

SHOWN = 5  # class names in an error


def onnx_features(
    path: str | Path,
    store: ImageStore,
    cache: bool = True,
    advance: Callable[[int], None] | None = None,
    sha256: str | None = None,
) -> NDArray[np.float32]:
    """Features of every image of `store` through the file at `path`.

    Args:
        path: a file that `export_onnx` wrote; it is verified on every call, cached features or not.
        store: images of the size that the file takes.
        cache: keep the features under the cache folder, keyed by the file's sha256 and the store's fingerprint, and
            take them from there the next time.
        advance: called with the number of images done after each batch; not called where the features were cached.
        sha256: that the file must have; None for any.

    Returns:
        float32 `[N, D]`, in the order of the store.

    Raises:
        DataError: the file is not usable, or the images do not fit it.
    """
    encoder = OnnxEncoder(path, sha256=sha256)
    if not cache:
        return encoder.embed(store, advance=advance)
    return cached_features(f"onnx {encoder.sha256}", store, lambda images: encoder.embed(images, advance=advance))


def probe_predictions(
    path: str | Path,
    store: ImageStore,
    cache: bool = True,
    advance: Callable[[int], None] | None = None,
    sha256: str | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Classes of every image of `store` by the probe inside the file at `path`; nothing is trained.

    Args:
        path, cache, advance, sha256: as `onnx_features` takes them.
        store: images of the size that the file takes. Where they are labelled, their classes must be the file's.

    Returns:
        probabilities float32 `[N, C]`, labels int64 `[N]` (the file's own output), in the order of the store.

    Raises:
        UsageError: the file was exported without a probe.
        DataError: the file is not usable, the images do not fit it, or their classes are others.
    """
    encoder = OnnxEncoder(path, sha256=sha256)

    def compute(images: ImageStore) -> NDArray[np.float32]:
        probabilities, labels = encoder.predict(images, advance=advance)
        # One array for the cache: a float32 holds every label below 2^24 exactly.
        return np.concatenate([probabilities, labels[:, None].astype(np.float32)], axis=1)

    if encoder.has_probe and store.labels is not None:
        check_class_names(encoder.metadata, store.class_names, store.name)
    if cache and encoder.has_probe:
        both = cached_features(f"onnx probe {encoder.sha256}", store, compute)
    else:
        both = compute(store)
    return np.ascontiguousarray(both[:, :-1]), both[:, -1].astype(np.int64)


def check_class_names(metadata: ModelMetadata, class_names: Sequence[str], data: str) -> None:
    """Refuses labelled data whose classes are not those that the file's probe knows, in the same order: label 3 would
    mean two things.

    Args:
        metadata: of the file.
        class_names: of the data, in label order.
        data: what the user calls the data.

    Raises:
        DataError: names the classes that only one side has, or the first label that means two classes.
    """
    ours, theirs = tuple(metadata.class_names), tuple(class_names)
    if ours == theirs:
        return
    known, given = set(ours), set(theirs)
    only_file, only_data = [n for n in ours if n not in given], [n for n in theirs if n not in known]
    if only_file or only_data:
        saw = f"only in the file: {_listed(only_file)}; only in {data}: {_listed(only_data)}"
    elif len(ours) != len(theirs):
        saw = f"{len(ours)} classes in the file, {len(theirs)} in {data}: a name occurs twice"
    else:
        at = next(
            i for i, (known_name, given_name) in enumerate(zip(ours, theirs, strict=True)) if known_name != given_name
        )
        saw = f"the same names in another order: label {at} is {ours[at]!r} in the file, {theirs[at]!r} in {data}"
    raise DataError(
        "the file's probe knows other classes than the data has",
        saw=saw,
        fix="name the data that the probe was fitted on, or evaluate the features: --method linear",
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:SHOWN]) or "none"
    return shown + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")


def difference_to_pytorch(metadata: ModelMetadata) -> str:
    """How far the file's features lie from those of the PyTorch encoder it was made from: a note for a protocol."""
    if metadata.precision == "fp32":
        return metadata.difference()
    said, p = f"{metadata.precision} file: {metadata.difference()}", metadata.parity
    if "agreement" in p:
        said += f"; {100 * p['agreement']:.1f} % of {p['images_compared']:,} images get the label that they get in fp32"
    if "accuracy" in p:
        said += f", {100 * p['accuracy']:.1f} % get the right one ({100 * p['accuracy_fp32']:.1f} % in fp32)"
    return said
