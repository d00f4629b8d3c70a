"""Data larger than memory: images from files against images in memory, in reading, in a step, in peak memory.

The files are packed as any data set is, of noise, and read as the trainer reads them: at random, a step ahead.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch

from simclr_engine.data.cache import Meta, entry_path, images_paths, partial_entry, read_meta, read_split, write_meta
from simclr_engine.data.loader import Loader, Prefetched, Resident
from simclr_engine.data.pack import SplitWriter, check_space
from simclr_engine.data.store import ImageStore, ShardedImages
from simclr_engine.device import choose_platform, keep_freed_memory
from simclr_engine.timing import interleave
from simclr_engine.training import Trainer

from .rows import Floor, Row, missing_row, rate_row, single_row
from .trainer import bench_recipe, bench_trainer, noise

READING, STEP, PEAK = "images at random", "training step", "peak memory of a process that trains"
FILES, MEMORY = "ours, from files, a step ahead", "ours, few images in memory"
ABOVE, LIMIT_MIB = "mib_above_few", 2e9 / 2**20
FEW = 4096  # images, in memory
REAL_STEPS = 3

FLOORS = (Floor(STEP, FILES, least=0.9, of=MEMORY), Floor(PEAK, FILES, most=LIMIT_MIB, field=ABOVE))


def floors() -> tuple[Floor, ...]:
    """What must hold on a machine with room for the files."""
    return FLOORS


def rows(repeats: int = 7, gigabytes: float = 20.0, size: int = 32, batch: int = 64) -> list[Row]:
    """Images per second, contenders interleaved, and MiB of resident memory.

    Args:
        repeats: timed calls of each contender.
        gigabytes: of images, in files; the disk must have room for them.
        size: side of images and views, pixels.
        batch: images in a training step; two views of each.
    """
    with packed_noise(gigabytes, size) as folder:
        large = _open(folder)
        few = ImageStore.from_arrays(large.images[:FEW])
        about = {"gigabytes": gigabytes, "files": len(list(folder.glob("images-*.npy")))}
        return [
            *_reading_rows(repeats, few, large, about),
            *_step_rows(repeats, few, large, batch),
            *_peak_rows(folder, batch, about),
        ]


@contextmanager
def packed_noise(gigabytes: float, size: int) -> Iterator[Path]:
    """A temporary folder with that many bytes of packed images; a killed benchmark's goes with the next packing."""
    with partial_entry(entry_path("bench", size)) as folder:
        count = max(FEW, int(gigabytes * 1e9) // (size * size * 3))
        check_space(folder, count, size)
        images = noise(FEW + 1, size)  # odd: no two alike
        writer = SplitWriter(folder, "train", count, size)
        for row in range(count):
            writer.put(row, images[row % len(images)])
        write_meta(folder, Meta("noise", "bench", size, (), {"train": writer.finish(None)}))
        yield folder


def _open(folder: Path) -> ImageStore:
    """Opens the store as a run does, but leaves images in their files whatever their size."""
    meta = read_meta(folder)
    assert meta is not None
    store = read_split(folder, meta, "train", "noise")
    if isinstance(store.images, ShardedImages):
        return store
    maps = [np.load(path, mmap_mode="r") for path in images_paths(folder, "train", len(meta.splits["train"].bytes))]
    return ImageStore(ShardedImages(maps), None, (), store.fingerprint, store.name, store.split)


def _reading_rows(repeats: int, few: ImageStore, large: ImageStore, about: dict[str, float]) -> list[Row]:
    """512 images a batch, eight batches a call."""
    size, steps, cpu = 512, 8, torch.device("cpu")
    drawn = {store: np.random.default_rng(0) for store in (few, large)}
    far = 10**9  # steps, so that there is always a next one

    def ids_of(store: ImageStore) -> torch.Tensor:
        return torch.from_numpy(drawn[store].integers(0, len(store), size))

    loaders: dict[str, Loader] = {
        MEMORY: Resident(few, cpu, lambda _: ids_of(few), far),
        FILES: Prefetched(large, cpu, lambda _: ids_of(large), far),
    }
    at = dict.fromkeys(loaders, 0)

    def read(name: str) -> None:
        for _ in range(steps):
            loaders[name].batch(at[name])
            at[name] += 1

    times = interleave({name: partial(read, name) for name in loaders}, repeats=repeats, warmup=1)
    return [rate_row(READING, name, size * steps, times[name], "images/s", **about) for name in loaders]


def _trainer(store: ImageStore, batch: int) -> Trainer:
    keep_freed_memory()
    return bench_trainer(bench_recipe(batch), choose_platform("cpu", compile=False), store, nt_xent="torch")


def _step_rows(repeats: int, few: ImageStore, large: ImageStore, batch: int) -> list[Row]:
    trainers = {MEMORY: _trainer(few, batch), FILES: _trainer(large, batch)}

    def step(name: str) -> None:
        trainers[name].train_step(trainers[name].step)
        trainers[name].step += 1

    times = interleave({name: partial(step, name) for name in trainers}, repeats=repeats, warmup=1)
    return [rate_row(STEP, name, batch, times[name], "images/s") for name in trainers]


def _peak_rows(folder: Path, batch: int, about: dict[str, float]) -> list[Row]:
    """Two processes train in the same way: one on a few images, the other on all files, which it then reads once."""
    rows: list[Row] = []
    for what in (MEMORY, FILES):
        command = [sys.executable, "-m", __name__, what, str(folder), str(batch)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            rows.append(missing_row(PEAK, what, "MiB", (done.stderr.strip().splitlines() or ["failed"])[-1][:200]))
            continue
        figures = json.loads(done.stdout)
        rows.append(single_row(PEAK, what, figures.pop("peak_bytes") / 2**20, "MiB", **figures))
    if all(row["median"] for row in rows):
        rows[1] |= about | {ABOVE: rows[1]["median"] - rows[0]["median"]}
    return rows


def _peak(what: str, folder: Path, batch: int) -> dict[str, int]:
    """Peak resident bytes of a process that trains some steps and, of files, reads the images of a whole epoch."""
    store, read = _open(folder), 0
    trainer = _trainer(store if what == FILES else ImageStore.from_arrays(store.images[:FEW]), batch)
    for step in range(REAL_STEPS):
        trainer.train_step(step)
    if what == FILES:
        at_once = 512  # faster than the batches of a step, which are read the same way
        order, steps = torch.randperm(len(store)), len(store) // at_once

        def ids_of(step: int) -> torch.Tensor:
            return order[step * at_once : (step + 1) * at_once]

        loader = Prefetched(store, torch.device("cpu"), ids_of, steps)
        read = sum(len(loader.batch(step).images) for step in range(steps))
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "images_read": read}


if __name__ == "__main__":
    print(json.dumps(_peak(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
