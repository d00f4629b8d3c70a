"""ImageStore: a set of equally sized images, in memory or in files, with labels if there are any."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .shards import ShardedImages

Pixels = NDArray[np.uint8] | ShardedImages

# Larger sets of images stay in their files.
MAPPED_BYTES = 512 << 20


def fingerprint(images: Pixels, labels: NDArray[np.int64] | None) -> str:
    """sha256 over shape, pixels and labels, as 64 hex digits; read in slices so that what lies in files stays there."""
    digest = hashlib.sha256(repr(images.shape).encode())
    step = max(1, (4 << 20) // max(1, int(np.prod(images.shape[1:]))))
    for start in range(0, len(images), step):
        digest.update(np.ascontiguousarray(images[start : start + step]).data)
    if labels is not None:
        digest.update(np.ascontiguousarray(labels, dtype=np.int64).data)
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class ImageStore:
    """Square RGB images of one size.

    Attributes:
        images: uint8 `[N, S, S, 3]`, C-contiguous, RGB; those of large data lie in files and are copied out by index.
        labels: int64 `[N]`, indices into `class_names`; None where the data has no labels.
        class_names: one name per class, in label order; empty without labels.
        fingerprint: sha256 of shape, pixels and labels (64 hex digits): the identity of the data everywhere.
        name: what the user called it (`cifar10`, a path).
        split: `train`, `test`, `unlabeled` or `all`.
        skipped: `(path, reason)` of every file that could not be read.
    """

    images: Pixels
    labels: NDArray[np.int64] | None
    class_names: tuple[str, ...]
    fingerprint: str
    name: str
    split: str
    skipped: tuple[tuple[str, str], ...] = field(default=())

    def __post_init__(self) -> None:
        shape = self.images.shape
        if self.images.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2]:
            raise DataError(
                "images must be uint8 [N, S, S, 3]",
                saw=f"{self.images.dtype} {list(shape)}",
                fix="convert to 8-bit RGB, channels last, square",
            )
        if self.labels is not None and (self.labels.dtype != np.int64 or self.labels.shape != shape[:1]):
            raise DataError(
                "labels must be int64 [N], one per image",
                saw=f"{self.labels.dtype} {list(self.labels.shape)} for {shape[0]} images",
                fix="pass one integer label per image, or None",
            )

    @classmethod
    def from_arrays(
        cls,
        images: Pixels,
        labels: NDArray[np.int64] | None = None,
        class_names: Sequence[str] = (),
        *,
        name: str = "arrays",
        split: str = "all",
        skipped: tuple[tuple[str, str], ...] = (),
    ) -> ImageStore:
        """A store over arrays at hand; class names default to the label numbers."""
        if labels is not None and not class_names:
            class_names = [str(i) for i in range(int(labels.max()) + 1 if len(labels) else 0)]
        return cls(images, labels, tuple(class_names), fingerprint(images, labels), name, split, skipped)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_size(self) -> int:
        """Side length S in pixels."""
        return int(self.images.shape[1])

    def subset(self, indices: NDArray[np.int64]) -> ImageStore:
        """The images at `indices` (int64 `[n]`), in that order; it has a fingerprint of its own.

        They are copied, unless they lie in files and are more than memory should hold.
        """
        images: Pixels
        if isinstance(self.images, ShardedImages):
            images = self.images.select(indices)
            images = images if images.nbytes > MAPPED_BYTES else images[:]
        else:
            images = np.ascontiguousarray(self.images[indices])
        return ImageStore.from_arrays(
            images,
            None if self.labels is None else self.labels[indices],
            self.class_names,
            name=self.name,
            split=self.split,
            skipped=self.skipped,
        )

    def limit(self, n: int | None) -> ImageStore:
        """The first `n` images in a class-balanced order (a fixed pseudo-random order without labels); all for None."""
        if n is None or n >= len(self):
            return self
        if n < 1:
            raise DataError("the limit must leave at least one image", saw=n, fix="--limit 1 or more")
        order = np.random.default_rng(0).permutation(len(self))
        if self.labels is not None:
            shuffled = self.labels[order]
            rank = np.empty(len(self), dtype=np.int64)
            for label in np.unique(shuffled):
                at = np.flatnonzero(shuffled == label)
                rank[at] = np.arange(len(at))
            order = order[np.argsort(rank, kind="stable")]
        return self.subset(np.sort(order[:n]))
