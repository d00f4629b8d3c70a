"""What a source lists: its files, its splits; the size that its images get, and the rows that are held out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..bounds import MIN_SIZE
from ..errors import DataError
from .decode import EXTENSIONS, FORMAT_NAMES

LAYOUTS = f"train/CLASS/*, CLASS/* or images side by side, as {FORMAT_NAMES}"
HOLDS_RUN = "holds a run of simclr-engine"  # why such a folder is left out
SMALLEST_CHOICE, LARGEST_CHOICE = 16, 224


@dataclass(frozen=True)
class Blob:
    """One file of a source: its relative POSIX path, and its bytes or place, or else why it was refused."""

    path: str
    content: bytes | Path | None
    refused: str = ""


@dataclass(frozen=True)
class SplitListing:
    """The images of one split, sorted by path; int64 labels `[N]`, or None without class folders."""

    paths: tuple[str, ...]
    labels: NDArray[np.int64] | None


@dataclass(frozen=True)
class Listing:
    """What a folder or an archive holds, before any image is decoded.

    Attributes:
        splits: by name, in a fixed order.
        class_names: in label order.
        skipped: `(path, reason)` of what is left out.
        tree: `(split, folder, class, images)` for every folder that is a class or a split, "" without a class.
    """

    splits: dict[str, SplitListing]
    class_names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    tree: tuple[tuple[str, str, str, int], ...]


def is_hidden(part: str) -> bool:
    """Whether a file or folder name is one that no listing shows (`.git`, resource forks, a server's thumbnails)."""
    return part.startswith(".") or part in ("__MACOSX", "@eaDir", "$RECYCLE.BIN")


def has_image_ending(name: str) -> bool:
    """Whether a file's name ends as that of an image does, in any case; any other is one if its bytes say so."""
    return name.lower().endswith(EXTENSIONS)


def is_label_file(name: str) -> bool:
    """Whether a file holds the class of the image of its name, as in WebDataset: `0001.cls` beside `0001.jpg`."""
    return name.lower().endswith(".cls")


def choose_size(dimensions: Counter[tuple[int, int]]) -> tuple[int, str]:
    """The side all images of a source get, and why: empty where they already are squares of that size.

    Images that are squares of one size up to 224 keep it. Otherwise it is the median of the shorter sides, kept within
    16 to 224.

    Args:
        dimensions: how often each (width, height) occurs.
    """
    if not dimensions:
        raise DataError("none of the images can be read", fix=f"give a source that holds {LAYOUTS}")
    if len(dimensions) == 1:
        width, height = next(iter(dimensions))
        if width == height:
            if width < MIN_SIZE:
                raise DataError(
                    f"images must be at least {MIN_SIZE} pixels wide and high",
                    saw=f"{width} × {height}",
                    fix="name a larger size, which enlarges them (`simclr-engine data pack SOURCE --size 32`)",
                )
            if width <= LARGEST_CHOICE:
                return width, ""
    shorter = np.array([min(shape) for shape in dimensions])
    order = np.argsort(shorter)
    counts = np.array(list(dimensions.values()))[order].cumsum()
    median = int(shorter[order][np.searchsorted(counts, (counts[-1] + 1) // 2)])
    size = min(max(median, SMALLEST_CHOICE), LARGEST_CHOICE)
    if len(dimensions) == 1:
        width, height = next(iter(dimensions))
        shapes = f"all images are {width} × {height}"
    else:
        shapes = f"images of {len(dimensions)} shapes, shorter sides {shorter.min()} to {shorter.max()}"
    rule = f"the median shorter side, kept within {SMALLEST_CHOICE} to {LARGEST_CHOICE}"
    return size, f"{shapes}: resized to {size} × {size} ({rule}), centre cropped"


def held_out_rows(
    labels: NDArray[np.int64], fraction: float, copy_of: NDArray[np.int64] | None = None
) -> NDArray[np.bool_]:
    """Which rows are held out: the same share of every class, chosen by a fixed seed, so always the same rows.

    Of a class of two or more images at least one is held out and one is kept; a single image is kept. Copies of an
    image are all held out or all kept, whatever their classes; a class of nothing but copies of one is kept.

    Args:
        labels: int64 `[N]`.
        fraction: the share to hold out, between 0 and 1.
        copy_of: int64 `[N]`, the same number for copies of one image; None if no image has a copy.

    Returns:
        bool `[N]`.
    """
    random = np.random.default_rng(0)
    chosen = np.zeros(len(labels), dtype=bool)
    if copy_of is None:
        copy_of = np.arange(len(labels))
    by_image, ends = np.argsort(copy_of, kind="stable"), np.cumsum(np.bincount(copy_of))
    total, held = np.bincount(labels), np.zeros(int(labels.max(initial=-1)) + 1, dtype=np.int64)
    decided = np.zeros(len(ends), dtype=bool)
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        count = max(round(fraction * len(rows)), 1)
        for row in rows.tolist():
            if held[label] >= count:
                break
            image = copy_of[row]
            if decided[image]:
                continue
            same = by_image[ends[image - 1] if image else 0 : ends[image]]
            classes, images = (label, 1) if len(same) == 1 else np.unique(labels[same], return_counts=True)
            decided[image] = True
            if np.all(held[classes] + images < total[classes]):
                chosen[same] = True
                held[classes] += images
        decided[copy_of[rows]] = True
    return chosen
