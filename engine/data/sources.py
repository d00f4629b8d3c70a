"""From what a user names (a data set, a folder, an archive) to an ImageStore; images are packed at the first use."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, UsageError
from ..progress import say
from . import cache
from .archive import SUFFIXES, ArchiveSource, is_archive_path
from .cache import DamagedError, Meta
from .datasets import DESCRIPTIONS, NamedSource
from .decode import MAX_SIZE, MIN_SIZE
from .folder import FolderSource
from .listing import LARGEST_CHOICE, choose_size, held_out_rows
from .pack import Survey, pack_arrays, pack_files, survey
from .store import ImageStore

HELD_OUT_FRACTION = 0.2
Source = NamedSource | FolderSource | ArchiveSource


def source_names() -> dict[str, str]:
    """Every data set known by name, with a line about it."""
    return dict(DESCRIPTIONS)


def load_data(
    source: str | Path,
    split: str = "train",
    size: int | None = None,
    progress: bool = False,
    largest: int = LARGEST_CHOICE,
) -> ImageStore:
    """The images of a source as an ImageStore; packed into the cache the first time, read from there afterwards.

    Args:
        source: a name of `source_names()`, a folder, or an archive (a name wins over a folder of that name; `./name`
            means the folder). `split` names a split folder; a source without split folders is one split, `all`, which
            `train` also names.
        split: `train`, `test`, `val`, `unlabeled` or `all`.
        size: side of the images in pixels, 8 to 1024. None: squares of one size keep it, anything else becomes the
            median of the shorter sides, kept within 16 to `largest` (said on stderr). The resize rule is
            `decode_image`'s.
        progress: show a bar while packing, if stderr is a terminal.
        largest: the largest size that is chosen where `size` is None, at most 224.

    Returns:
        ImageStore: uint8 `[N, S, S, 3]`, sorted by path; memory-mapped read-only above 512 MB.

    Raises:
        UsageError: no source of that name, or an impossible size.
        DataError: nothing there, nothing readable, no such split; the source changed while it was packed.
        PlatformError: the download fails, the cache cannot be written, a package is missing.
    """
    opened = open_source(source)
    return _read(opened, split, *packed(opened, size, progress, largest), progress=progress)


def load_splits(source: str | Path, size: int | None = None, progress: bool = False) -> tuple[ImageStore, ImageStore]:
    """Labelled training and test images.

    The test images are the split `test`, else `val`. A source that has neither gives the same 20 % of every class each
    time; `split` of the two stores then says `train (80 %)` and `held-out 20 %`.

    Raises:
        DataError: the images have no labels, or there are too few to hold any out; and all that `load_data` raises.
    """
    opened = open_source(source)
    entry, meta = packed(opened, size, progress)
    name = "all" if "all" in meta.splits else "train"
    test_name = next((split for split in ("test", "val") if split in meta.splits), None)
    for needed in (name, test_name):
        if needed in meta.splits and not meta.splits[needed].labelled:
            raise DataError(
                f"the images of {opened.name} have no labels, which this needs",
                saw=f"split {needed}: {meta.splits[needed].images:,} images without class folders",
                fix="put the images of each class into a folder of its own: train/CLASS/*, test/CLASS/* or CLASS/*",
            )
    train = _read(opened, name, entry, meta, progress=progress)
    if test_name is not None:
        return train, _read(opened, test_name, entry, meta, progress=progress)
    assert train.labels is not None
    held_out = held_out_rows(train.labels, HELD_OUT_FRACTION)
    if not held_out.any():
        raise DataError(
            f"{opened.name} has too few images to hold any out for the test",
            saw=f"{len(train)} images, at most one per class",
            fix="give two images per class or more, or a test/CLASS folder",
        )
    kept, test = (train.subset(np.flatnonzero(rows)) for rows in (~held_out, held_out))
    return replace(kept, split="train (80 %)"), replace(test, split="held-out 20 %")


def pack_source(source: str | Path, size: int | None = None, progress: bool = False) -> None:
    """Pack a source if it is not packed yet, and verify every split; arguments and errors are those of `load_data`."""
    opened = open_source(source)
    entry, meta = packed(opened, size, progress)
    for split in meta.splits:
        _read(opened, split, entry, meta, progress=progress)


def overview(source: str | Path, size: int | None = None) -> dict[str, Any]:
    """A description of a source that JSON can hold. It decodes no image and uses no network.

    Args:
        source: as for `load_data`.
        size: which packed copy is meant; None for the one at the images' own (or chosen) size.

    Returns:
        source, kind (`named`, `folder`, `archive`), description (named ones), packed, image_size (None before packing),
        class_names, splits {name: {images, labelled, fingerprint}} (None for a named source before packing; no
        fingerprint before packing), skipped [[path, reason]], cache (folder) and bytes of the packed copy.

    Raises:
        UsageError, DataError: as `load_data`.
    """
    opened = open_source(source)
    row: dict[str, Any] = {"source": opened.name, "kind": opened.kind, "packed": False, "image_size": None}
    if isinstance(opened, NamedSource):
        row["description"] = DESCRIPTIONS[opened.name]
    content = opened.content()
    if size is None:
        size = cache.recall("size", {"content": content})
    if isinstance(size, int):
        entry = cache.entry_path(content, size)
        try:
            meta = cache.read_meta(entry)
        except DamagedError:  # the next use packs it again and says so
            meta = None
        if meta is not None:
            splits = {
                name: {"images": split.images, "labelled": split.labelled, "fingerprint": split.fingerprint}
                for name, split in meta.splits.items()
            }
            nbytes = sum(file.stat().st_size for file in entry.iterdir())
            row |= {"packed": True, "image_size": meta.image_size, "class_names": list(meta.class_names)}
            row |= {"splits": splits, "skipped": [list(pair) for pair in meta.skipped]}
            return row | {"cache": str(entry), "bytes": nbytes}
    if isinstance(opened, NamedSource):
        return row | {"class_names": [], "splits": None, "skipped": []}
    listing = survey(opened.blobs(contents=False), measure=False).listing
    unpacked = {
        name: {"images": len(split.paths), "labelled": split.labels is not None}
        for name, split in listing.splits.items()
    }
    skipped = [list(pair) for pair in listing.skipped]
    return row | {"class_names": list(listing.class_names), "splits": unpacked, "skipped": skipped}


def open_source(source: str | Path) -> Source:
    """What a name or path means, without reading it; raises UsageError or DataError as `load_data` does."""
    if isinstance(source, str) and source in DESCRIPTIONS:
        return NamedSource(source)
    text, path = str(source), Path(source).expanduser()
    if text and path.is_dir():
        return FolderSource(path, text)
    if path.is_file() and is_archive_path(path):
        return ArchiveSource(path, text)
    if text and path.exists():
        raise DataError(
            f"{text} is neither a folder nor an archive",
            fix=f"give a folder of images, or one packed as {', '.join(SUFFIXES)}",
        )
    if isinstance(source, Path) or "/" in text or "\\" in text or text.startswith((".", "~")) or is_archive_path(path):
        raise DataError("there is no such folder or archive", saw=text, fix="check the path")
    nearest = difflib.get_close_matches(text.lower(), DESCRIPTIONS, n=1, cutoff=0.5)
    raise UsageError(
        f"there is no data set named {text!r}" + (f"; did you mean {nearest[0]}?" if nearest else ""),
        fix=f"one of {', '.join(DESCRIPTIONS)}, or the path of a folder or archive",
    )


def packed(
    source: Source, size: int | None, progress: bool = False, largest: int = LARGEST_CHOICE
) -> tuple[Path, Meta]:
    """The cache entry of a source and its description; packed now if it is missing or its description is damaged."""
    if size is not None and not MIN_SIZE <= size <= MAX_SIZE:
        raise UsageError("the image size is out of range", saw=size, fix=f"{MIN_SIZE} to {MAX_SIZE} pixels")
    content = source.content(progress)
    known: object = cache.recall("size", {"content": content}) if size is None else size
    surveyed: Survey | None = None
    if isinstance(known, int) and MIN_SIZE <= known <= 1 << 16:
        side = known
    elif isinstance(source, NamedSource):
        side = source.native_size()
    else:
        surveyed = survey(source.blobs(contents=True, progress=progress), measure=True)
        side = _own_size(source, surveyed)
    own = side
    if size is None and side > largest:  # also a size that an earlier version noted
        side = largest
        other = f"--set data.size={min(own, MAX_SIZE)} for another"
        say(f"{source.name}: images of {own} px are taken at {side} × {side} on this device ({other})")
    entry = cache.entry_path(content, side)
    try:
        meta = cache.read_meta(entry)
    except DamagedError as error:
        _say_damaged(source, error)
        meta = None
    if meta is None:
        entry, meta = _pack(source, content, side, surveyed, progress)
    elif surveyed is not None:
        _check_unchanged(source, content)
    if own != known:
        cache.remember("size", {"content": content}, own)
    return entry, meta


def _own_size(source: Source, surveyed: Survey) -> int:
    """The size that all images have, or the one chosen for them; a choice is said on stderr."""
    try:
        size, why = choose_size(surveyed.dimensions)
    except DataError as error:
        splits = surveyed.listing.splits.values()
        first = next((f"{len(split.paths):,} files, the first {split.paths[0]}" for split in splits), None)
        raise DataError(f"{error.cause} in {source.name}", saw=error.saw or first, fix=error.fix) from None
    if why:
        say(f"{source.name}: {why}")
    return size


def _pack(source: Source, content: str, size: int, surveyed: Survey | None, progress: bool) -> tuple[Path, Meta]:
    """Pack a source into the entry of its content, whatever is there; `surveyed` is its survey if there is one."""
    entry = cache.entry_path(content, size)
    if not isinstance(source, NamedSource) and (old := cache.entry_path(source.old_content(), size)).exists():
        say(
            f"the packed copy of {source.name} was made by an earlier version, which told images apart by name, size "
            f"and time; packing it again. Nothing uses the old copy in {old} any more; it can be deleted."
        )

    def build(folder: Path) -> None:
        meta = _pack_into(folder, source, size, surveyed, progress)
        _check_unchanged(source, content)
        cache.write_meta(folder, meta)

    cache.publish(entry, build)
    meta = cache.read_meta(entry)
    assert meta is not None
    return entry, meta


def _pack_into(folder: Path, source: Source, size: int, surveyed: Survey | None, progress: bool) -> Meta:
    """The images of a source, written to a folder; what was skipped is said on stderr."""
    if isinstance(source, NamedSource):
        splits, class_names = pack_arrays(source.arrays(), folder, size, progress)
        return Meta(source.name, source.kind, size, class_names, splits)
    if surveyed is None:
        surveyed = survey(source.blobs(contents=False, progress=progress), measure=False)
    blobs = source.blobs() if surveyed.blobs is None else surveyed.blobs
    splits, skipped = pack_files(surveyed.listing, blobs, folder, size, progress)
    if not splits:
        raise DataError(
            f"none of the {len(skipped):,} images of {source.name} can be read",
            saw=f"{skipped[0][0]}: {skipped[0][1]}" if skipped else None,
            fix="open one in an image viewer; if it shows, save the images again as PNG or JPEG",
        )
    if skipped:
        path, reason = skipped[0]
        total = len(skipped) + sum(split.images for split in splits.values())
        say(f"{source.name}: {len(skipped):,} of {total:,} files skipped, such as {path}: {reason}")
    return Meta(source.name, source.kind, size, surveyed.listing.class_names, splits, skipped)


def _check_unchanged(source: Source, content: str) -> None:
    """Refuse what was written to after it was hashed: its images would be kept as those of other bytes."""
    if replace(source).content() != content:
        raise DataError(
            f"{source.name} was changed while it was read", fix="run again once nothing writes to it any more"
        )


def _read(source: Source, split: str, entry: Path, meta: Meta, *, progress: bool) -> ImageStore:
    """A verified split; packed again if it is damaged."""
    name = "all" if split == "train" and "all" in meta.splits else split
    if name not in meta.splits:
        raise DataError(
            f"{source.name} has no split {split!r}",
            saw=f"splits {', '.join(meta.splits)}",
            fix="name one of them, or put the images into a folder of that name",
        )
    try:
        return cache.read_split(entry, meta, name, source.name)
    except DamagedError as error:
        _say_damaged(source, error)
    entry, meta = _pack(source, source.content(), meta.image_size, None, progress)
    return cache.read_split(entry, meta, name, source.name)


def _say_damaged(source: Source, error: DamagedError) -> None:
    say(f"the packed copy of {source.name} is damaged ({error}); packing it again")
