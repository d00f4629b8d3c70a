"""Arrays given as data: uint8 images, with labels or without."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .listing import choose_size
from .pack import resize_images
from .store import ImageStore

Arrays = NDArray[np.uint8] | tuple[NDArray[np.uint8], NDArray[np.integer[Any]]]


def is_pair(data: object) -> bool:
    """Whether the data is images and labels, and not two sets of images."""
    if type(data) is not tuple or len(data) != 2 or not hasattr(data[0], "__array__"):
        return False
    return np.ndim(data[1]) == 1


def store_of(data: Arrays, size: int | None = None) -> ImageStore:
    """The images of an array as a store, resized by `decode_image`'s rule where they are not squares of that size.

    Args:
        data: uint8 `[N, H, W, 3]`, `[N, H, W, 1]` or `[N, H, W]`; or a pair of it and whole-number labels `[N]`,
            whose classes are named by their numbers.
        size: as of `load_data`.

    Raises:
        DataError: another shape or kind of numbers, no image, or labels that do not fit.
    """
    images = np.asarray(data[0] if isinstance(data, tuple) else data)
    labels = np.asarray(data[1]) if is_pair(data) else None
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or not images.size:
        raise DataError(
            "images in an array must be uint8 [N, H, W, 3]",
            saw=f"{images.dtype} {list(images.shape)}",
            fix="channels last, 8 bits for each: x.transpose(0, 2, 3, 1), (255 * x).round().astype(np.uint8)",
        )
    images = np.ascontiguousarray(np.broadcast_to(images, (*images.shape[:3], 3)))
    height, width = images.shape[1:3]
    side = choose_size(Counter({(width, height): len(images)}))[0] if size is None else size
    images = resize_images(images, side)
    if labels is None:
        return ImageStore.from_arrays(images)
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise DataError(
            "labels in an array must be one whole number for each image",
            saw=f"{labels.dtype} {list(labels.shape)} for {len(images):,} images",
            fix="pass integers [N], such as labels.argmax(1) of one-hot ones",
        )
    classes, numbers = np.unique(labels, return_inverse=True)
    names = [str(value) for value in cast("list[int]", classes.tolist())]
    return ImageStore.from_arrays(images, numbers.astype(np.int64), names)
