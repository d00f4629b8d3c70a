"""Which image belongs to which split and class, told from relative paths alone: the same for folders and archives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .decode import EXTENSIONS, MIN_SIZE

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "unlabeled": "unlabeled",
    "unlabelled": "unlabeled",
}
_SPLIT_ORDER = ("all", "train", "val", "test", "unlabeled")
LAYOUTS = "train/CLASS/*, CLASS/* or images side by side, as PNG, JPEG, WebP or BMP"
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
    """What a folder or an archive holds, before any image is decoded."""

    splits: dict[str, SplitListing]
    class_names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]


def is_hidden(part: str) -> bool:
    """Whether a file or folder name is one that no listing shows (`.git`, macOS's resource forks)."""
    return part.startswith(".") or part == "__MACOSX"


def is_image_path(path: str) -> bool:
    """Whether a relative path names an image: a known extension in any case, nothing hidden on the way."""
    return path.lower().endswith(EXTENSIONS) and not any(is_hidden(part) for part in path.split("/"))


def arrange(paths: Iterable[str], refused: Iterable[tuple[str, str]] = ()) -> Listing:
    """Sort image paths into splits and classes.

    Folders that merely wrap everything else are looked through. Then: with a `train` folder (or nothing but split
    folders) each split folder is a split; otherwise everything is the one split `all`. Inside a split, folders are
    classes (files deeper down belong to the class of the outermost folder); without folders there are no labels.
    Files that fit in nowhere, or appear twice, are listed in `skipped`.

    Args:
        paths: relative POSIX paths of image files, in any order.
        refused: `(path, reason)` of files that are not to be read; they are passed on.
    """
    skipped = list(refused)
    parts: dict[str, list[str]] = {}
    for path in paths:
        if path in parts:
            skipped.append((path, "appears twice; the first one counts"))
        else:
            parts[path] = path.split("/")
    depth = _wrapping_folders(list(parts.values()))
    heads = {p[depth] for p in parts.values() if len(p) > depth + 1}
    known = {head for head in heads if head.lower() in SPLIT_FOLDERS}
    has_splits = bool(known) and (known == heads or any(SPLIT_FOLDERS[head.lower()] == "train" for head in known))
    classes: dict[str, dict[str, str]] = {}  # {split: {path: class, empty without one}}
    for path in sorted(parts):
        split, folders = "all", parts[path][depth:-1]
        if has_splits:
            if not folders or folders[0] not in known:
                skipped.append((path, "lies outside the split folders"))
                continue
            split, folders = SPLIT_FOLDERS[folders[0].lower()], folders[1:]
        classes.setdefault(split, {})[path] = folders[0] if folders else ""
    names = tuple(sorted({name for of_split in classes.values() for name in of_split.values() if name}))
    number = {name: label for label, name in enumerate(names)}
    splits: dict[str, SplitListing] = {}
    for split, of_split in classes.items():
        labelled = {path: number[name] for path, name in of_split.items() if name}
        if labelled:
            skipped += [(path, "lies beside the class folders") for path in of_split if path not in labelled]
        labels = np.array(list(labelled.values()), dtype=np.int64) if labelled else None
        splits[split] = SplitListing(tuple(labelled or of_split), labels)
    in_order = {split: splits[split] for split in _SPLIT_ORDER if split in splits}
    return Listing(in_order, names, tuple(skipped))


def _wrapping_folders(parts: list[list[str]]) -> int:
    """How many outer folders hold everything and say nothing: not a split, and inside only folders or only files."""
    depth = 0
    while parts:
        heads = {p[depth] for p in parts}
        if len(heads) > 1 or next(iter(heads)).lower() in SPLIT_FOLDERS or any(len(p) == depth + 1 for p in parts):
            break
        if len({len(p) == depth + 2 for p in parts}) == 2:  # images beside folders: this is a class with subfolders
            break
        depth += 1
    return depth


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


def held_out_rows(labels: NDArray[np.int64], fraction: float) -> NDArray[np.bool_]:
    """Which rows are held out: the same share of every class, chosen by a fixed seed, so always the same rows.

    Of a class of two or more images at least one is held out and one is kept; a single image is kept.

    Args:
        labels: int64 `[N]`.
        fraction: the share to hold out, between 0 and 1.

    Returns:
        bool `[N]`.
    """
    random = np.random.default_rng(0)
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        count = max(round(fraction * len(rows)), 1)
        chosen[rows[: min(count, len(rows) - 1)]] = True
    return chosen
