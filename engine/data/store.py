"""ImageStore: a set of equally sized images, in memory or in files, with labels if there are any."""

from __future__ import annotations

import hashlib
import mmap
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from ..bounds import MAX_SIZE
from ..errors import DataError, UsageError

Indices = NDArray[np.integer[Any]] | NDArray[np.bool_] | Sequence[int]

# Images that are read before their pages are given back: reading one byte of a file that is in the system's cache maps
# the pages around it too, up to two megabytes of them where the system keeps it in large pieces.
AT_ONCE = 256
# Larger sets of images stay in their files.
MAPPED_BYTES = 512 << 20


class ShardedImages:
    """uint8 images `[N, S, S, 3]` in one or more memory-mapped files; reads as a numpy array does, but always copies.

    A page that was once read is counted as memory of the process for as long as it stays mapped, so that a pass over
    20 GB would seem to take 20 GB. Here none stays mapped; the system may keep the files in its own cache all the same.
    Threads may read at the same time.

    Args:
        shards: uint8 arrays `[n, S, S, 3]`: memory maps as `numpy.load` makes them.
        rows: int64 `[N]`, which images of the files these are, and in what order; None for all.
        checks: called by `verify`; they compare the files with their hashes.
    """

    ndim = 4
    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        shards: Sequence[NDArray[np.uint8]],
        rows: NDArray[np.int64] | None = None,
        checks: tuple[Callable[[bool], None], ...] = (),
    ) -> None:
        self._shards, self._rows, self._checks = tuple(shards), rows, checks
        self._pixels = [shard.view(np.ndarray) for shard in self._shards]  # which numpy indexes faster than its maps
        self._ends = np.cumsum([len(shard) for shard in self._shards])
        self._held = int(self._ends[-1])

    def __len__(self) -> int:
        return self._held if self._rows is None else len(self._rows)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(N, S, S, 3)`."""
        _, height, width, channels = self._shards[0].shape
        return len(self), height, width, channels

    @property
    def nbytes(self) -> int:
        """Of all images, on disk."""
        return len(self) * int(self._shards[0][:1].nbytes)

    def __getitem__(self, key: SupportsIndex | slice | Indices) -> NDArray[np.uint8]:
        """A copy: `[S, S, 3]` for a number, `[n, S, S, 3]` for a slice, indices (negative ones too) or a mask `[N]`."""
        if isinstance(key, slice):
            return self.take(np.arange(*key.indices(len(self)), dtype=np.int64))
        if isinstance(key, SupportsIndex) and not isinstance(key, np.ndarray):
            return self.take(np.array([key], dtype=np.int64))[0]
        wanted = np.asarray(key)
        if wanted.dtype == bool:
            if wanted.shape != (len(self),):
                raise IndexError(f"a mask of {list(wanted.shape)} for {len(self)} images")
            wanted = np.flatnonzero(wanted)
        return self.take(wanted.astype(np.int64, copy=False))

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        step = max(1, (4 << 20) // max(1, self._shards[0][:1].nbytes))
        for start in range(0, len(self), step):
            yield from self[start : start + step]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("images that stay in files are read by copying them")
        return self[:].astype(dtype or self.dtype, copy=False)

    def take(
        self, indices: NDArray[np.int64], out: NDArray[np.uint8] | None = None, at: NDArray[np.int64] | None = None
    ) -> NDArray[np.uint8]:
        """The images at `indices` (int64 `[n]`) in that order, or, where `out` and `at` are given, as `out[at]`.

        Args:
            indices: which images, negative ones from the end.
            out: uint8 `[m, S, S, 3]`, written to and returned; None for a new array.
            at: int64 `[n]`, rows of `out`; None for 0 … n − 1.

        Raises:
            IndexError: an index is outside −N … N − 1.
        """
        count = len(self)
        if indices.ndim != 1 or (len(indices) and not (-count <= indices.min() and indices.max() < count)):
            raise IndexError(f"indices must be one-dimensional and within ±{count}")
        rows = np.where(indices < 0, indices + count, indices)
        rows = rows if self._rows is None else self._rows[rows]
        if out is None:
            out = np.empty((len(rows), *self.shape[1:]), dtype=np.uint8)
        order = np.argsort(rows, kind="stable")  # file by file, each from its beginning to its end
        rows, at = rows[order], order if at is None else at[order]
        for start in range(0, len(rows), AT_ONCE):
            self._copy(rows[start : start + AT_ONCE], out, at[start : start + AT_ONCE])
        return out

    def followed_by(self, other: ShardedImages) -> ShardedImages:
        """These images and then the others, left where they are."""
        rows = [np.arange(part._held) if part._rows is None else part._rows for part in (self, other)]
        both = np.concatenate([rows[0], rows[1] + self._held])
        whole = self._rows is None and other._rows is None
        return ShardedImages((*self._shards, *other._shards), None if whole else both, self._checks + other._checks)

    def select(self, indices: NDArray[np.int64]) -> ShardedImages:
        """The images at `indices` (int64 `[n]`, none negative), left where they are."""
        return ShardedImages(self._shards, indices if self._rows is None else self._rows[indices], self._checks)

    def verify(self, wait: bool = True) -> None:
        """See `ImageStore.verify`."""
        for check in self._checks:
            check(wait)

    def _copy(self, rows: NDArray[np.int64], out: NDArray[np.uint8], at: NDArray[np.int64]) -> None:
        """`rows` ascend."""
        first, last = np.searchsorted(self._ends, rows[[0, -1]], side="right")
        files = np.arange(first, last + 1)
        ends = np.searchsorted(rows, self._ends[files])
        begin = 0
        for number, end in zip(files.tolist(), ends.tolist(), strict=True):
            if begin == end:
                continue
            here, into = rows[begin:end] - (self._ends[number] - len(self._shards[number])), at[begin:end]
            if _in_a_row(here) and _in_a_row(into):  # read ahead by the system, and copied once
                out[into[0] : into[-1] + 1] = self._pixels[number][here[0] : here[-1] + 1]
            else:
                out[into] = self._pixels[number][here]
            _give_back(self._shards[number])
            begin = end


def _in_a_row(rows: NDArray[np.int64]) -> bool:
    """Whether they are n, n + 1, n + 2, …"""
    return bool(rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all())


def _give_back(shard: NDArray[np.uint8]) -> None:
    """Unmaps its pages; a thread that reads one meanwhile maps it again."""
    # Windows has no such call, and trims what a process holds by itself.
    if isinstance(shard.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        shard.base.madvise(mmap.MADV_DONTNEED)


Pixels = NDArray[np.uint8] | ShardedImages


def fingerprint(images: Pixels, labels: NDArray[np.int64] | None) -> str:
    """sha256 over shape, pixels and labels, as 64 hex digits; read in slices so that what lies in files stays there."""
    digest = hashlib.sha256(repr(images.shape).encode())
    step = max(1, (4 << 20) // max(1, int(np.prod(images.shape[1:]))))
    for start in range(0, len(images), step):
        digest.update(np.ascontiguousarray(images[start : start + step]).data)
    if labels is not None:
        digest.update(np.ascontiguousarray(labels, dtype=np.int64).data)
    return digest.hexdigest()


def image_hashes(images: Pixels) -> list[bytes]:
    """A 16-byte hash of each image's pixels."""
    return [hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest() for image in images]


def copy_numbers(images: Pixels) -> NDArray[np.int64] | None:
    """int64 `[N]`, the same number for images that are equal pixel for pixel; None if no two are."""
    sums = [zlib.crc32(np.ascontiguousarray(image).data) for image in images]  # fast, and tells nearly all apart
    times = Counter(sums)
    if len(times) == len(sums):
        return None
    unclear = [row for row, one in enumerate(sums) if times[one] > 1]
    exact = dict(zip(unclear, image_hashes(images[unclear]), strict=True))
    numbers: dict[bytes | int, int] = {}
    found = np.array(
        [numbers.setdefault(exact.get(row, one), len(numbers)) for row, one in enumerate(sums)], dtype=np.int64
    )
    return found if len(numbers) < len(found) else None


@dataclass(frozen=True, eq=False)
class ImageStore:
    """Square RGB images of one size.

    Attributes:
        images: uint8 `[N, S, S, 3]`, C-contiguous, RGB; those of large data lie in files and are copied out by index.
        labels: int64 `[N]`, indices into `class_names`; None where the data has no labels. −1 where one image among
            labelled ones has none, in the images of pretraining alone.
        class_names: one name per class, in label order; empty without labels.
        fingerprint: sha256 of shape, pixels and labels (64 hex digits): the identity of the data everywhere.
        name: what the user called it (`cifar10`, a path).
        split: `train`, `test`, `unlabeled` or `all`.
        skipped: `(path, reason)` of every file that could not be read.
        notes: what a reader of results on these images must know of how they were chosen.
    """

    images: Pixels
    labels: NDArray[np.int64] | None
    class_names: tuple[str, ...]
    fingerprint: str
    name: str
    split: str
    skipped: tuple[tuple[str, str], ...] = field(default=())
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = self.images.shape
        if self.images.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2]:
            raise DataError(
                "images must be uint8 [N, S, S, 3]",
                saw=f"{self.images.dtype} {list(shape)}",
                fix="convert to 8-bit RGB, channels last, square",
            )
        if shape[1] > MAX_SIZE:  # what a run or an exported file says of its images is bounded so too
            raise DataError(
                f"images may have at most {MAX_SIZE:,} pixels on a side",
                saw=f"{shape[1]:,} × {shape[2]:,}",
                fix="shrink them first",
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

    def verify(self, wait: bool = True) -> None:
        """Compares images that stay in their files with the hashes of these, once; others were compared when they were
        read. With `wait` it ends when all are compared, else at once: a thread goes on while the images are used.

        Raises:
            AlteredError: a file was found to be damaged.
        """
        if isinstance(self.images, ShardedImages):
            self.images.verify(wait)

    def subset(self, indices: NDArray[np.int64]) -> ImageStore:
        """The images at `indices` (int64 `[n]`), in that order; it has a fingerprint of its own.

        They are copied, unless they lie in files and are more than memory should hold.
        """
        images: Pixels
        self.verify()  # it gets a fingerprint, by which it is known everywhere
        if isinstance(self.images, ShardedImages):
            images = self.images.select(indices)
            images = images if images.nbytes > MAPPED_BYTES else images[:]
        else:
            images = np.ascontiguousarray(self.images[indices])
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, images=images, labels=labels, fingerprint=fingerprint(images, labels))

    def limit(self, n: int | None) -> ImageStore:
        """The first `n` images in a class-balanced order (a fixed pseudo-random order without labels); all for None.

        Raises:
            UsageError: `n` is below 1.
        """
        if n is None or n >= len(self):
            return self
        if n < 1:
            raise UsageError("the limit must leave at least one image", saw=n, fix="--limit 1 or more")
        order = np.random.default_rng(0).permutation(len(self))
        if self.labels is not None:
            shuffled = self.labels[order]
            rank = np.empty(len(self), dtype=np.int64)
            for label in np.unique(shuffled):
                at = np.flatnonzero(shuffled == label)
                rank[at] = np.arange(len(at))
            order = order[np.argsort(rank, kind="stable")]
        return self.subset(np.sort(order[:n]))
