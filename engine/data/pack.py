"""From encoded files or arrays to a cache entry: decoded straight into the file, never all at once in memory."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..boundary import raise_fault
from ..bounds import QUEUED_BYTES
from ..errors import DataError
from ..inputs import open_regular
from ..progress import progress_bar
from .arrangement import arrange
from .cache import SplitMeta, images_paths, labels_path, sizes_and_times
from .datasets import Arrays
from .decode import HEAD_BYTES, decode_image, image_dimensions, resize_images
from .levels import FULL_LEVELS, Levels
from .listing import Blob, Listing, is_label_file
from .tables import LabelTable
from .verification import running_hashes

Item = TypeVar("Item")
Result = TypeVar("Result")

KEEP_BYTES = 128 << 20
_BATCH_IMAGES, _BATCH_BYTES = 64, 4 << 20
_WRITE_BYTES = 4 << 20  # few large writes: each one waits for the interpreter lock that the decoding threads hold
SHARD_BYTES = 1 << 30
_MOST_SHARDS = 256  # they are open at once: a source may give its images in any order


@dataclass(frozen=True)
class Survey:
    """What one pass over a source found.

    Attributes:
        listing: splits and classes.
        dimensions: how often each (width, height) occurs; empty if that was not asked.
        blobs: the files themselves, so that a small source is read once; None if they are more than `KEEP_BYTES`.
    """

    listing: Listing
    dimensions: Counter[tuple[int, int]]
    blobs: list[Blob] | None


def survey(blobs: Iterable[Blob], measure: bool, labels: LabelTable | None = None) -> Survey:
    """One pass over a source.

    Args:
        blobs: its files.
        measure: whether the dimensions are wanted, for which each header is read.
        labels: the classes of the images, if a table gives them.
    """
    paths: list[str] = []
    refused: list[tuple[str, str]] = []
    beside: dict[str, str] = {}  # the class in the .cls file of a WebDataset, by the path that its files share
    dimensions: Counter[tuple[int, int]] = Counter()
    kept: list[Blob] | None = [] if measure else None
    nbytes = 0
    for blob in blobs:
        if blob.content is not None and is_label_file(blob.path):
            beside[_sample(blob.path)] = _first_word(blob.content)
            continue
        if kept is not None:
            kept.append(blob)
            nbytes += len(blob.content) if isinstance(blob.content, bytes) else 0
            if nbytes > KEEP_BYTES:
                kept = None
        if blob.content is None:
            refused.append((blob.path, blob.refused))
            continue
        paths.append(blob.path)
        if measure:
            try:
                dimensions[image_dimensions(blob.content)] += 1
            except DataError:
                continue  # packing reports it
    named = labels.of(paths) if labels is not None else None
    if beside and named is None:
        found = {path: name for path in paths if (name := beside.get(_sample(path)))}
        named = found if 2 * len(found) >= len(paths) else None
    return Survey(arrange(paths, refused, named), dimensions, kept)


def _sample(path: str) -> str:
    """What the files of one sample of a WebDataset share: the path up to the first dot of the name."""
    folder, slash, name = path.rpartition("/")
    return folder + slash + name.split(".")[0]


def _first_word(content: bytes | Path) -> str:
    try:
        if isinstance(content, Path):
            with open_regular(content) as file:
                content = file.read(HEAD_BYTES)
    except OSError as error:
        raise_fault(error)
        return ""
    words = content[:HEAD_BYTES].decode("utf-8-sig", "replace").split()
    return words[0] if words else ""


def pack_files(
    listing: Listing,
    blobs: Iterable[Blob],
    folder: Path,
    size: int,
    progress: bool = False,
    levels: Levels = FULL_LEVELS,
) -> tuple[dict[str, SplitMeta], tuple[tuple[str, str], ...], Levels | None]:
    """Decode every listed image into `folder`, in several threads, in whatever order the source gives them.

    Returns:
        The splits that have an image that can be read, sorted `(path, reason)` of everything that was skipped, and the
        lowest and highest value of the 16-bit gray images, None without any.
    """
    measured: list[Levels] = []
    check_space(folder, sum(len(split.paths) for split in listing.splits.values()), size)
    skipped = list(listing.skipped)
    writers = {name: SplitWriter(folder, name, len(split.paths), size) for name, split in listing.splits.items()}
    places = {path: (name, row) for name, split in listing.splits.items() for row, path in enumerate(split.paths)}
    try:
        with progress_bar("packing", len(places), "images", progress) as advance:
            refused: dict[str, str] = {}
            for path, decoded in _decoded(_batches(blobs, places, refused, size), size, levels, measured):
                split, row = places.pop(path)
                if isinstance(decoded, str):
                    skipped.append((path, decoded))
                else:
                    writers[split].put(row, decoded)
                advance(1)
        skipped += [(path, refused.get(path, "is no longer there")) for path in places]
        splits = {
            name: writer.finish(listing.splits[name].labels) for name, writer in writers.items() if writer.filled.any()
        }
    finally:
        for writer in writers.values():
            writer.close()
    found = (min(low for low, _ in measured), max(high for _, high in measured)) if measured else None
    return splits, tuple(sorted(skipped)), found


def pack_arrays(
    splits: Arrays, folder: Path, size: int, progress: bool = False
) -> tuple[dict[str, SplitMeta], tuple[str, ...]]:
    """Write decoded splits, one after the other, resized to `size` by the rule of `decode_image`.

    Args:
        splits: (name, uint8 `[N, H, W, 3]` of any strides, int64 `[N]` or None, class names).

    Returns:
        The splits that were written, and the class names.
    """
    written: dict[str, SplitMeta] = {}
    class_names: tuple[str, ...] = ()
    for name, images, labels, names in splits:
        check_space(folder, len(images), size)
        writer = SplitWriter(folder, name, len(images), size)
        try:
            step = max(1, _BATCH_BYTES // (size * size * 3))
            with progress_bar(f"packing {name}", len(images), "images", progress) as advance:
                for start in range(0, len(images), step):
                    for row, image in enumerate(resize_images(images[start : start + step], size), start):
                        writer.put(row, image)
                    advance(min(step, len(images) - start))
            written[name] = writer.finish(labels)
        finally:
            writer.close()
        class_names = class_names or names
    return written, class_names


class SplitWriter:
    """Writes the image files of one split, row by row in any order; rows never written are closed up at the end.

    Plain writes rather than a memory map: on a full disk a write fails with an error, a memory map kills the process.
    """

    def __init__(self, folder: Path, split: str, count: int, size: int) -> None:
        self.filled = np.zeros(count, dtype=bool)
        self._folder, self._split, self._size = folder, split, size
        self._row_bytes = size * size * 3
        self._per_shard = max(1, SHARD_BYTES // self._row_bytes, -(-count // _MOST_SHARDS))
        self._files: list[IO[bytes]] = []
        shards = max(1, -(-count // self._per_shard))
        for path in images_paths(folder, split, shards):
            self._files.append(path.open("w+b", buffering=max(64 << 10, _WRITE_BYTES // shards)))
        self._start = self._write_header(0, self._per_shard)
        self._next = -1

    def put(self, row: int, image: NDArray[np.uint8]) -> None:
        """Write one image, uint8 `[S, S, 3]`, as row `row`."""
        file = self._at(row, in_a_row=row == self._next)
        file.write(np.ascontiguousarray(image).data)
        self._next = row + 1
        self.filled[row] = True

    def finish(self, labels: NDArray[np.int64] | None) -> SplitMeta:
        """Close up missing rows, write the labels of the others, and describe the result."""
        kept = np.flatnonzero(self.filled)
        if len(kept) < len(self.filled):
            self._close_up(kept)
        shards = max(1, -(-len(kept) // self._per_shard))
        for number, file in enumerate(self._files[:shards]):
            rows = min(self._per_shard, len(kept) - number * self._per_shard)
            if self._write_header(number, rows) != self._start:
                raise AssertionError("numpy pads its headers so that a count may change")
            file.truncate(self._start + rows * self._row_bytes)
            file.flush()
            os.fsync(file.fileno())
        for file in self._files:
            file.close()
        paths = images_paths(self._folder, self._split, len(self._files))
        for path in paths[shards:]:
            path.unlink()
        if labels is not None:
            labels = labels[kept]
            with labels_path(self._folder, self._split).open("wb") as file:
                np.save(file, labels, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
        paths, shape = paths[:shards], (len(kept), self._size, self._size, 3)
        *hashes, fingerprint = running_hashes(shape, paths, self._start, labels)
        sizes, times = sizes_and_times(paths)
        return SplitMeta(
            images=len(kept),
            labelled=labels is not None,
            fingerprint=fingerprint,
            shard_images=self._per_shard,
            bytes=sizes,
            mtime_ns=times,
            hashes=tuple(hashes),
        )

    def close(self) -> None:
        """Close the files, whatever is in them; a second time does nothing."""
        for file in self._files:
            with suppress(OSError):  # it writes what is still buffered; on a full disk the first error is on its way
                file.close()

    def _at(self, row: int, *, in_a_row: bool = False) -> IO[bytes]:
        """The file that holds `row`, standing at it."""
        number, into = divmod(row, self._per_shard)
        if not in_a_row or into == 0:
            self._files[number].seek(self._start + into * self._row_bytes)
        return self._files[number]

    def _close_up(self, kept: NDArray[np.int64]) -> None:
        for row, source in enumerate(kept.tolist()):
            if row != source:
                image = self._at(source).read(self._row_bytes)
                self._at(row).write(image)

    def _write_header(self, number: int, rows: int) -> int:
        file = self._files[number]
        file.seek(0)
        header = {"descr": "|u1", "fortran_order": False, "shape": (rows, self._size, self._size, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        return file.tell()


def check_space(folder: Path, images: int, size: int) -> None:
    """Refuse before the work what the disk has no room for."""
    needed = images * size * size * 3
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed:,} bytes are needed, {free:,} are free", str(folder))


def _decoded(
    batches: Iterable[list[Blob]], size: int, levels: Levels, measured: list[Levels]
) -> Iterator[tuple[str, NDArray[np.uint8] | str]]:
    """(path, image or reason why there is none) for every blob, in their order; see `decode_image`."""

    def decode(batch: list[Blob]) -> list[tuple[str, NDArray[np.uint8] | str]]:
        results: list[tuple[str, NDArray[np.uint8] | str]] = []
        for blob in batch:
            assert blob.content is not None  # _batches passes no other
            try:
                results.append((blob.path, decode_image(blob.content, size, levels, measured)))
            except DataError as error:
                results.append((blob.path, error.cause))
        return results

    def held(batch: list[Blob]) -> int:
        return sum(len(blob.content) for blob in batch if isinstance(blob.content, bytes))

    for decoded in in_threads(decode, batches, held):
        yield from decoded


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], held: Callable[[Item], int] = lambda _: 0
) -> Iterator[Result]:
    """What `function` returns for each item, in their order; it runs ahead of the caller by a few items only.

    One thread works for each core that this process may use, at most eight. Items that wait hold `QUEUED_BYTES` and one
    item more, as `held` counts them.
    """
    threads = workers()
    waiting: deque[Future[Result]] = deque()
    sizes: deque[int] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="images") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                sizes.append(held(item))
                while len(waiting) > 2 * threads or sum(sizes) > QUEUED_BYTES:
                    sizes.popleft()
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _batches(
    blobs: Iterable[Blob], places: dict[str, tuple[str, int]], refused: dict[str, str], size: int
) -> Iterator[list[Blob]]:
    """Pieces of work: large enough that handing them over costs little, small enough in bytes to wait in memory.

    The reasons of refused blobs go into `refused`.
    """
    limit = max(1, min(_BATCH_IMAGES, _BATCH_BYTES // (size * size * 3)))
    batch: list[Blob] = []
    nbytes = 0
    seen: set[str] = set()
    for blob in blobs:
        if blob.content is None:
            refused[blob.path] = blob.refused
            continue
        if blob.path in seen or blob.path not in places:
            continue  # misplaced, or there a second time: the listing already says so
        seen.add(blob.path)
        batch.append(blob)
        nbytes += len(blob.content) if isinstance(blob.content, bytes) else 0
        if len(batch) == limit or nbytes >= _BATCH_BYTES:
            yield batch
            batch, nbytes = [], 0
    if batch:
        yield batch


def workers() -> int:
    """Threads that decode: the processors that this process may use, at most 8."""
    affinity = getattr(os, "sched_getaffinity", None)
    return min(8, len(affinity(0)) if affinity else os.cpu_count() or 1)
