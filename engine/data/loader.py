"""The images of each step on the device: all of them there from the start, or read ahead of the steps from files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .store import ImageStore, ShardedImages

# Images stay on the device if they take no more than this share of what is free there: a step needs the rest.
RESIDENT_SHARE = 0.25
# A page that has to come from the disk stops the thread that asks for it, so several ask.
READERS = 4
_COPIED_BYTES = 64 << 20


@dataclass(frozen=True)
class Batch:
    """Some images on the device: `ids` int64 `[B]`, their numbers in the data, and `images` uint8 `[B, S, S, 3]`."""

    ids: Tensor
    images: Tensor

    def split(self, size: int) -> list[Batch]:
        """Parts of `size` images each."""
        return [Batch(ids, images) for ids, images in zip(self.ids.split(size), self.images.split(size), strict=True)]


class Loader(Protocol):
    """Where a trainer has its images from; `steps` is the number of steps, which may change."""

    steps: int

    def batch(self, step: int) -> Batch:
        """The images that this process trains on in `step`; valid until the next call."""

    def images(self, ids: Tensor) -> Tensor:
        """Any images, by their numbers (int64 `[n]`) → uint8 `[n, S, S, 3]` on the device."""


class Resident:
    """All images on the device, where a batch is an index away.

    Args:
        store: images in memory, or in files that fit on the device.
        device: where they are wanted.
        ids_of: step → int64 `[B]` on `device`.
        steps: how many there are.
    """

    def __init__(self, store: ImageStore, device: torch.device, ids_of: Callable[[int], Tensor], steps: int) -> None:
        self._ids_of, self.steps = ids_of, steps
        if device.type == "cpu" and isinstance(store.images, np.ndarray):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that they may be read-only: nothing writes to them
                self._images = torch.from_numpy(store.images)
            return
        self._images = torch.empty(store.images.shape, dtype=torch.uint8, device=device)
        rows = max(1, _COPIED_BYTES // store.images[:1].nbytes)
        for start in range(0, len(store), rows):  # a copy of them all on the host is one too many
            part = np.array(store.images[start : start + rows])
            self._images[start : start + rows].copy_(torch.from_numpy(part))

    def batch(self, step: int) -> Batch:
        """See `Loader`."""
        ids = self._ids_of(step)
        return Batch(ids, self._images[ids])

    def images(self, ids: Tensor) -> Tensor:
        """See `Loader`."""
        return self._images[ids]


class Prefetched:
    """Images that stay in their files; while a step runs, threads read those of the next into the other of two buffers.

    On CUDA the buffers are pinned and copied on a stream of their own, so that reading, copying and computing overlap.

    Args:
        store: images in files.
        device: where they are wanted.
        ids_of: step → int64 `[B]` on the CPU.
        steps: how many there are; nothing is read beyond the last.
    """

    def __init__(self, store: ImageStore, device: torch.device, ids_of: Callable[[int], Tensor], steps: int) -> None:
        assert isinstance(store.images, ShardedImages)
        self._files, self._device, self._ids_of, self.steps = store.images, device, ids_of, steps
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._readers = ThreadPoolExecutor(min(READERS, os.cpu_count() or 1), thread_name_prefix="read")
        self._buffers: list[Tensor | None] = [None, None]
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._coming: tuple[int, Future[Batch]] | None = None

    def batch(self, step: int) -> Batch:
        """See `Loader`. A step that does not follow the one before is read at once."""
        if self._coming is None or self._coming[0] != step:
            self._start(step)
        assert self._coming is not None
        (_, coming), self._coming = self._coming, None
        batch = coming.result()
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            for tensor in (batch.ids, batch.images):  # their memory is the other stream's
                tensor.record_stream(current)
        if step + 1 < self.steps:
            self._start(step + 1)
        return batch

    def images(self, ids: Tensor) -> Tensor:
        """See `Loader`."""
        return torch.from_numpy(self._files[ids.cpu().numpy()]).to(self._device)

    def _start(self, step: int) -> None:
        """Begins to read the images of `step`."""
        if self._coming is not None:
            self._coming[1].exception()  # of a step that nobody wants any more; its buffer is free then
        self._coming = step, self._ahead.submit(self._read, step % 2, self._ids_of(step))

    def _read(self, slot: int, ids: Tensor) -> Batch:
        buffer, copied = self._buffers[slot], self._copied[slot]
        if buffer is None or len(buffer) != len(ids):
            pinned = self._device.type == "cuda"
            shape = (len(ids), *self._files.shape[1:])
            buffer = self._buffers[slot] = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        elif copied is not None:
            copied.synchronize()  # the copy of two steps ago has left the buffer
        rows, images = ids.numpy(), buffer.numpy()
        shares = np.array_split(np.argsort(rows), READERS)  # neighbours in a file to one reader
        reading = [self._readers.submit(self._files.take, rows[at], images, at) for at in shares]
        for part in wait(reading).done:  # all, before one may fail: the buffer is free again then
            part.result()
        if self._stream is None:
            return Batch(ids.to(self._device), buffer.to(self._device))
        with torch.cuda.stream(self._stream):
            batch = Batch(
                ids.pin_memory().to(self._device, non_blocking=True), buffer.to(self._device, non_blocking=True)
            )
            self._copied[slot] = self._stream.record_event()
        return batch


def stays_in_files(store: ImageStore, device: torch.device) -> bool:
    """Whether the images of `store` are read as they are needed, because the device has no room for all of them."""
    if not isinstance(store.images, ShardedImages):
        return False
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return store.images.nbytes > RESIDENT_SHARE * free
