"""The images that an export is checked and calibrated on: the run's own where they can be had, else noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simclr_engine.data import Selection, load_data, load_splits
from simclr_engine.data.cache import Meta, cache_root, read_meta, read_split
from simclr_engine.data.sources import PRETRAINING, pretraining_images, pretraining_splits
from simclr_engine.data.store import ImageStore
from simclr_engine.errors import DataError, EngineError, PlatformError
from simclr_engine.run import Run
from simclr_engine.sealing import NewerError

SEED = 0
SYNTHETIC = f"synthetic (1/f noise, seed {SEED})"  # in place of the source of real images
DRAWN = ("digits", "glyphs")  # data sets that need no download


@dataclass(frozen=True)
class Samples:
    """Images uint8 `[N, S, S, 3]`, their labels (int64 `[N]`) where known, and a phrase that says what they are."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    source: str


@dataclass(frozen=True)
class Images:
    """Real images at the run's size.

    Attributes:
        train: what the run was trained on, or the training images of `--data`.
        test: images held out of it, with labels; None where there are none.
        source: a phrase that says what `train` is.
    """

    train: ImageStore
    test: ImageStore | None
    source: str

    def evenly(self, count: int) -> ImageStore:
        """`count` of the training images, evenly spread over all classes; all of them where there are fewer."""
        return replace(
            self.train.subset(even_rows(len(self.train), min(count, len(self.train)))), split="training images"
        )

    def held_out(self, count: int, calibrated: int) -> ImageStore | None:
        """`count` test images, evenly spread; without a test split, those training images that `evenly(calibrated)`
        does not take. None where there are no labels, or no image is left.
        """
        store, rows = self.test, None
        if store is None:
            store, total = self.train, len(self.train)
            rows = np.setdiff1d(np.arange(total), even_rows(total, min(calibrated, total)))
        rows = np.arange(len(store)) if rows is None else rows
        if store.labels is None or not len(rows):
            return None
        split = "test images" if store is self.test else "training images that it was not calibrated on"
        return replace(store.subset(rows[even_rows(len(rows), min(count, len(rows)))]), split=split)


def even_rows(total: int, count: int) -> NDArray[np.int64]:
    """`count` rows of `total`, evenly spread, first and last among them; repeated where there are fewer."""
    return np.linspace(0, total - 1, count).round().astype(np.int64)


def images_of(run: Run, data: str | Path | Selection | None = None) -> Images | None:
    """The images of `data`, or the very ones that the run was trained on: from the cache, or packed again from where
    they were. Without `data` nothing is downloaded: None where they are neither here nor there, or were changed.

    Raises:
        DataError, UsageError, PlatformError: `data` cannot be read; see `load_data`.
    """
    if data is None:
        return _cached(run) or _packed_again(run)
    try:
        train, test = load_splits(data, run.image_size, levels=run.levels)
        return Images(train, test, f"training images of {Path(train.name).name}")
    except DataError:  # without labels, or too few to hold any out: enough to calibrate on
        train = load_data(data, PRETRAINING, run.image_size, levels=run.levels)
        return Images(replace(train, labels=None), None, f"images of {Path(train.name).name}")


def parity_samples(run: Run, count: int, images: Images | None) -> Samples:
    """`count` images at the run's size: real ones, evenly spread and repeated where there are fewer, or else
    `natural_images`."""
    if images is None:
        return Samples(natural_images(count, run.image_size), None, SYNTHETIC)
    store = images.train
    at = even_rows(len(store), count)
    labels = None if store.labels is None else store.labels[at]
    return Samples(np.ascontiguousarray(store.images[at]), labels, images.source)


def _cached(run: Run) -> Images | None:
    """The training images in the cache, found by their fingerprint, and the test images beside them."""
    stated = run.data
    for entry in sorted((cache_root() / "data").glob("[0-9a-f]*")):
        try:
            meta = read_meta(entry)
            if meta is None:
                continue
            for splits in ([split] for split in meta.splits):
                store = _matching(entry, meta, splits, run)
                if store is not None:
                    return Images(
                        store, _test_split(entry, meta, str(stated.get("name"))), "images that it was trained on"
                    )
            if (
                len(pool := pretraining_splits(meta.kind, meta.splits)) > 1
                and (store := _matching(entry, meta, pool, run)) is not None
            ):
                test = _test_split(entry, meta, str(stated.get("name")))
                return Images(replace(store, labels=None), test, "images that it was trained on")
        except (PlatformError, NewerError):  # damaged, or no permission
            continue
    return None


def _packed_again(run: Run) -> Images | None:
    """The images from the folder or archive that they came from; None where it is gone or holds others now."""
    if not isinstance(run.data.get("path"), str) and run.data.get("name") not in DRAWN:
        return None
    try:
        load_data(run.locate_data(), PRETRAINING, run.image_size, levels=run.levels)
    except EngineError:
        return None
    return _cached(run)


def _matching(entry: Path, meta: Meta, splits: list[str], run: Run) -> ImageStore | None:
    """The images of some splits if they are those that the run was trained on."""
    stated = run.data
    wanted, limit = stated.get("fingerprint"), stated.get("limit")
    about = [meta.splits[split] for split in splits]
    a_subset = limit is not None and sum(one.images for one in about) > limit
    if meta.image_size != run.image_size or not (a_subset or len(about) > 1 or about[0].fingerprint == wanted):
        return None
    read = partial(read_split, entry, meta, name=str(stated.get("name")))
    store = (pretraining_images(meta, read) if len(splits) > 1 else read(splits[0])).limit(limit)
    store.verify()
    return store if store.fingerprint == wanted else None


def _test_split(entry: Path, meta: Meta, name: str) -> ImageStore | None:
    split = next((s for s in ("test", "val") if s in meta.splits and meta.splits[s].labelled), None)
    if split is None:
        return None
    store = read_split(entry, meta, split, name)
    store.verify()
    return store


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
