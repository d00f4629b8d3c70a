"""From what a user names (a data set, a folder, an archive) to an ImageStore; images are packed at the first use."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..boundary import raise_fault
from ..bounds import MAX_SIZE, MIN_SIZE
from ..errors import DataError, PlatformError, UsageError, counted
from ..files import expanded
from ..sealing import AlteredError
from ..terminal import say, say_once
from . import cache
from .archive import SUFFIXES, ArchiveSource, is_archive_path
from .arrangement import RULES, look_alike
from .arrays import Arrays, store_of
from .cache import DamagedError, Meta
from .datasets import DESCRIPTIONS, NamedSource
from .folder import FolderSource
from .left_out import rows_left_out, words_left_out
from .levels import FULL_LEVELS, Levels, narrow_levels
from .listing import HOLDS_RUN, LARGEST_CHOICE, choose_size, held_out_rows
from .pack import Survey, pack_arrays, pack_files, survey
from .store import ImageStore, ShardedImages, copy_numbers, fingerprint, image_hashes
from .tables import read_labels, read_list

HELD_OUT_FRACTION = 0.2
PRETRAINING = "pretraining"
Source = NamedSource | FolderSource | ArchiveSource


class Selection(NamedTuple):
    """A folder or archive whose classes stand in a table, or of which a list names the images.

    Attributes:
        source: the folder or archive; None for the folder that the list, or else the table, lies in.
        labels: a CSV file with a column of files and one of classes, see `read_labels`.
        files: a text file with one path on each line, relative to the source.
    """

    source: str | Path | None = None
    labels: str | Path | None = None
    files: str | Path | None = None


Data = str | Path | Selection | Arrays


def source_names() -> dict[str, str]:
    """Every data set known by name, with a line about it."""
    return dict(DESCRIPTIONS)


def load_data(
    source: Data,
    split: str = "train",
    size: int | None = None,
    progress: bool = False,
    largest: int = LARGEST_CHOICE,
    levels: Levels = FULL_LEVELS,
    verify: bool = True,
) -> ImageStore:
    """The images of a source as an ImageStore; packed into the cache the first time, read from there afterwards.

    Args:
        source: a name of `source_names()`, a folder, or an archive (a name wins over a folder of that name; `./name`
            means the folder); a `Selection` of one; or an array uint8 `[N, H, W, 3]` (or `[N, H, W]`, gray), or a
            pair of it and labels int64 `[N]`.
        split: `train`, `test`, `val`, `unlabeled`, `all`, or `pretraining`: all that belongs to no test or validation
            split. A source without split folders is one split, `all`, which `train` also names.
        size: side of the images in pixels, 8 to 1024. None: squares of one size keep it, anything else becomes the
            median of the shorter sides, kept within 16 to `largest` (said on stderr). The resize rule is
            `decode_image`'s.
        progress: show a bar while packing, if stderr is a terminal.
        largest: the largest size that is chosen where `size` is None, at most 224.
        levels: the values of 16-bit gray images that become 0 and 255; a note of the store says so if theirs are few.
        verify: whether images that stay in their files are compared with their hashes before they are returned; else
            the caller calls `ImageStore.verify`, before it reports anything.

    Returns:
        ImageStore: uint8 `[N, S, S, 3]`, sorted by path; memory-mapped read-only above 512 MiB. Of `pretraining` the
        images without a class come last, with the label −1 where the others have one.

    Raises:
        UsageError: no source of that name, or an impossible size.
        DataError: nothing there, nothing readable, no such split; the source changed while it was packed.
        PlatformError: the download fails, the cache cannot be written, a package is missing.
    """
    if not isinstance(source, str | Path | Selection):
        return store_of(source, size)
    opened = _with_levels(open_source(source), levels)
    entry, meta = packed(opened, size, progress, largest)
    if split == PRETRAINING:
        store = _pool(opened, entry, meta, progress, verify)
    else:
        store = _read(opened, split, entry, meta, progress, verify)
    note = narrow_levels(meta.levels, opened.name) if meta.levels is not None and levels == FULL_LEVELS else ""
    return replace(store, notes=(*store.notes, note)) if note else store


def load_splits(
    source: Data, size: int | None = None, progress: bool = False, levels: Levels = FULL_LEVELS, verify: bool = True
) -> tuple[ImageStore, ImageStore]:
    """Labelled training and test images.

    The test images are the split `test`, else `val`, whichever has labels. Without either the same 20 % of every class
    are held out each time, copies of one image all on one side; `split` of the two stores then says `train (80 %)` and
    `held-out 20 %`. The `notes` of the second say what is not plain.

    Args:
        source, size, progress, levels, verify: as of `load_data`.

    Raises:
        DataError: the images have no labels, or there are too few to hold any out; and all that `load_data` raises.
    """
    if not isinstance(source, str | Path | Selection):
        return _hold_out(_labelled(store_of(source, size)), "")
    opened = _with_levels(open_source(source), levels)
    entry, meta = packed(opened, size, progress)
    name = "all" if "all" in meta.splits else "train"
    if name in meta.splits and not meta.splits[name].labelled:
        raise _unlabelled(opened.name, name, meta.splits[name].images)
    tests = [split for split in ("test", "val") if split in meta.splits]
    chosen = next((split for split in tests if meta.splits[split].labelled), None)
    train = _read(opened, name, entry, meta, progress, verify)
    unlabelled = f"the images of {tests[0]} have no labels; " if tests and chosen != tests[0] else ""
    if chosen is None:
        return _hold_out(train, unlabelled)
    test = _read(opened, chosen, entry, meta, progress, verify)
    return train, replace(test, notes=(f"{unlabelled}those of {chosen} serve instead",) if unlabelled else ())


def _hold_out(train: ImageStore, why: str) -> tuple[ImageStore, ImageStore]:
    """A labelled store in two; `why` introduces the note that says so."""
    assert train.labels is not None
    copies = copy_numbers(train.images)
    held_out = held_out_rows(train.labels, HELD_OUT_FRACTION, copies)
    if not held_out.any():
        raise DataError(
            f"{train.name} has too few images to hold any out for the test",
            saw=f"{counted(len(train), 'image')}, at most one per class that is no copy",
            fix="give two images per class or more, or a test/CLASS folder",
        )
    notes = [f"{why}a fifth of the training images is held out instead"] if why else []
    if copies is not None:
        count = len(train) - len(np.unique(copies))
        notes.append(f"{count:,} of {len(train):,} images are copies of others; copies are on one side of the split")
    kept, test = (train.subset(np.flatnonzero(rows)) for rows in (~held_out, held_out))
    return replace(kept, split="train (80 %)"), replace(test, split="held-out 20 %", notes=tuple(notes))


def _labelled(store: ImageStore) -> ImageStore:
    if store.labels is None:
        raise _unlabelled(store.name, store.split, len(store))
    return store


def _unlabelled(name: str, split: str, count: int) -> DataError:
    return DataError(
        f"the images of {name} have no labels, which this needs",
        saw=f"split {split}: {count:,} images without class folders",
        fix="put the images of each class into a folder of its own (train/CLASS/*, test/CLASS/* or CLASS/*), or name "
        "a table: --labels FILE.csv",
    )


def pretraining_splits(kind: str, splits: Container[str]) -> list[str]:
    """Those of the splits of a kind of source that pretraining takes: what belongs to no test or validation split. Of a
    named data set, `train`."""
    wanted = ("train",) if kind == NamedSource.kind else ("all", "train", "unlabeled")
    return [split for split in wanted if split in splits]


def _pool(source: Source, entry: Path, meta: Meta, progress: bool, verify: bool) -> ImageStore:
    """The images of `pretraining_splits`, one split after the other."""
    if not pretraining_splits(meta.kind, meta.splits):
        raise DataError(
            f"{source.name} has no images to pretrain on: all belong to a test or validation split",
            saw=f"splits {', '.join(meta.splits)}",
            fix="name the folder of images itself, or list them: --list FILE",
        )
    return pretraining_images(meta, lambda split: _read(source, split, entry, meta, progress, verify))


def pretraining_images(meta: Meta, read: Callable[[str], ImageStore]) -> ImageStore:
    """The images of `pretraining_splits`, without unlabeled ones that are copies of held-out images.

    Args:
        meta: of a packed source.
        read: gives the images of a split.
    """
    first, *rest = (read(split) for split in pretraining_splits(meta.kind, meta.splits))
    for other in rest:
        held_out = [split for split in ("val", "test") if split in meta.splits]
        copies = _copies(other, held_out, meta, read) if held_out else []
        if copies:
            say(f"{other.name}: copies of held-out images among the unlabeled ones, not trained on: {len(copies):,}")
            other = other.subset(np.setdiff1d(np.arange(len(other)), copies))
        if not len(other):
            continue
        about = {"of": [first.fingerprint, other.fingerprint]}
        both = followed_by(first, other)
        known = cache.recall("fingerprint", about)
        if not isinstance(known, str):
            both.verify()
            known = fingerprint(both.images, both.labels)
            cache.remember("fingerprint", about, known)
        first = replace(both, fingerprint=known)
    return first


def _copies(store: ImageStore, held_out: Sequence[str], meta: Meta, read: Callable[[str], ImageStore]) -> list[int]:
    """The rows of a store that are, pixel for pixel, in one of the splits that are held out."""
    about = {"in": store.fingerprint, "of": [meta.splits[split].fingerprint for split in held_out]}
    rows = cache.recall("copies", about)
    if isinstance(rows, list) and all(type(row) is int and 0 <= row < len(store) for row in rows):
        return rows
    held = [read(split) for split in held_out]
    for part in (store, *held):
        part.verify()  # what is remembered must be of the right images
    known = {one for part in held for one in image_hashes(part.images)}
    rows = [row for row, one in enumerate(image_hashes(store.images)) if one in known]
    cache.remember("copies", about, rows)
    return rows


def followed_by(first: ImageStore, other: ImageStore) -> ImageStore:
    """The images of two stores as one, with the fingerprint of the first; those of the other without labels."""
    images = (first.images, other.images)
    if any(isinstance(part, ShardedImages) for part in images):
        one, two = (part if isinstance(part, ShardedImages) else ShardedImages([part]) for part in images)
        joined: Any = one.followed_by(two)
    else:
        joined = np.concatenate(images)
    none = np.full(len(other), -1, dtype=np.int64)
    labels = None if first.labels is None else np.concatenate([first.labels, none])
    return replace(first, images=joined, labels=labels, split=f"{first.split} + {other.split}")


def pack_source(source: str | Path | Selection, size: int | None = None, progress: bool = False) -> None:
    """Pack a source if it is not packed yet, and verify every split; arguments and errors are those of `load_data`."""
    opened = open_source(source)
    entry, meta = packed(opened, size, progress)
    for split in meta.splits:
        _read(opened, split, entry, meta, progress, verify=True)


def overview(source: str | Path | Selection, size: int | None = None) -> dict[str, Any]:
    """A description of a source that JSON can hold. It decodes no image and uses no network.

    Args:
        source: as for `load_data`.
        size: which packed copy is meant; None for the one at the images' own (or chosen) size.

    Returns:
        source, kind (`named`, `folder`, `archive`), description (named ones), packed, image_size (None before packing),
        class_names, look_alikes (groups of them), splits {name: {images, labelled, fingerprint}} (None for a named
        source before packing; no fingerprint before packing), tree [[split, folder, class, images]], skipped [[path,
        reason]], left_out [{folder, ending, reason, files}], runs (folders), pretraining {splits, images}, evaluation
        (a sentence), cache (folder) and bytes of the packed copy, levels [low, high] (the values of its 16-bit gray
        images, if it has any).

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
            meta = _current(opened, entry)
        except DamagedError as error:  # the next use packs it again and says so
            raise_fault(error.__cause__ or error)
            meta = None
        if meta is not None:
            splits: dict[str, dict[str, Any]] = {
                name: {"images": split.images, "labelled": split.labelled, "fingerprint": split.fingerprint}
                for name, split in meta.splits.items()
            }
            nbytes = sum(file.stat().st_size for file in entry.iterdir())
            row |= {"packed": True, "image_size": meta.image_size, "class_names": list(meta.class_names)}
            row["look_alikes"] = _look_alikes(meta.class_names)
            row |= _decided(opened, splits, meta.tree, meta.skipped)
            row |= {"levels": list(meta.levels)} if meta.levels is not None else {}
            return row | {"cache": str(entry), "bytes": nbytes}
    if isinstance(opened, NamedSource):
        return row | {"class_names": [], "splits": None, "skipped": []}
    listing = survey(opened.blobs(contents=False), measure=False, labels=opened.labels).listing
    unpacked = {
        name: {"images": len(split.paths), "labelled": split.labels is not None}
        for name, split in listing.splits.items()
    }
    row["class_names"] = list(listing.class_names)
    return (
        row
        | {"look_alikes": _look_alikes(listing.class_names)}
        | _decided(opened, unpacked, listing.tree, listing.skipped)
    )


def _decided(
    source: Source,
    splits: dict[str, dict[str, Any]],
    tree: tuple[tuple[str, str, str, int], ...],
    skipped: tuple[tuple[str, str], ...],
) -> dict[str, Any]:
    """What `overview` says of the layout."""
    pool = pretraining_splits(source.kind, splits)
    runs = list(source.runs) if isinstance(source, FolderSource) else []
    runs += [path for path, reason in skipped if reason == HOLDS_RUN]
    return {
        "splits": splits,
        "tree": [list(part) for part in tree],
        "skipped": [list(pair) for pair in skipped],
        "left_out": rows_left_out(skipped),
        "runs": runs,
        "pretraining": {"splits": pool, "images": sum(splits[name]["images"] for name in pool)},
        "evaluation": _evaluation_words(splits),
    }


def _look_alikes(names: tuple[str, ...]) -> list[list[str]]:
    """Class names that people take for one."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(look_alike(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _evaluation_words(splits: dict[str, dict[str, Any]]) -> str:
    """Which images `load_splits` would take, in a sentence."""
    name = "all" if "all" in splits else "train"
    if name not in splits:
        return "needs images to learn from: a folder `train` beside the others"
    if not splits[name].get("labelled"):
        return "needs labels: folders of classes, or --labels FILE.csv"
    learns = f"learns from {name} ({splits[name]['images']:,})"
    test = next((split for split in ("test", "val") if splits.get(split, {}).get("labelled")), None)
    if test is not None:
        return f"{learns}, is scored on {test} ({splits[test]['images']:,})"
    return f"learns from 80 % of {name}, is scored on the other 20 %"


def open_source(source: str | Path | Selection) -> Source:
    """What a name or path means, without reading it; raises UsageError or DataError as `load_data` does."""
    if isinstance(source, Selection):
        return _open_selection(source)
    if isinstance(source, str) and source in DESCRIPTIONS:
        return NamedSource(source)
    text, path = str(source), expanded(source)
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


def _with_levels(source: Source, levels: Levels) -> Source:
    """The source, whose 16-bit images have these levels; a data set by name has none of them."""
    return source if isinstance(source, NamedSource) or levels == FULL_LEVELS else replace(source, levels=levels)


def _open_selection(selection: Selection) -> Source:
    table, names = (None if one is None else expanded(one) for one in (selection.labels, selection.files))
    beside = names or table
    if selection.source is not None:
        opened = open_source(selection.source)
    elif beside is not None:
        opened = FolderSource(beside.parent, str(beside))
    else:
        raise UsageError("which images?", fix="name a folder or archive, --labels FILE.csv or --list FILE")
    if beside is None:
        return opened
    if isinstance(opened, NamedSource):
        raise UsageError(
            "a data set by name has its own images and labels",
            saw=f"{opened.name} with {beside}",
            fix="name a folder or an archive",
        )
    return replace(
        opened,
        labels=None if table is None else read_labels(table),
        listed=None if names is None else read_list(names),
    )


def packed(
    source: Source, size: int | None, progress: bool = False, largest: int = LARGEST_CHOICE
) -> tuple[Path, Meta]:
    """The cache entry of a source and its description; packed now if it is missing or its description is damaged.

    What is left out is said on stderr, once in a process.
    """
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
        surveyed = survey(source.blobs(contents=True, progress=progress), measure=True, labels=source.labels)
        side = _own_size(source, surveyed, largest)
    own = side
    if size is None and side > largest:  # also a size that an earlier version noted
        side = largest
        larger = f"--set data.size={min(own, MAX_SIZE)} for larger ones"
        say(f"{source.name}: images are taken at {side} × {side}, which suits this device ({larger})")
    entry = cache.entry_path(content, side)
    try:
        meta = _current(source, entry)
    except DamagedError as error:
        _say_damaged(source, error)
        meta = None
    if meta is None:
        entry, meta = _pack(source, content, side, surveyed, progress)
    elif surveyed is not None:
        _check_unchanged(source, content)
    if own != known:
        cache.remember("size", {"content": content}, own)
    if meta.skipped:
        total = len(meta.skipped) + sum(split.images for split in meta.splits.values())
        skipped = f"{len(meta.skipped):,} of {counted(total, 'file')} skipped: {words_left_out(meta.skipped)}"
        say_once(f"{source.name}: {skipped}")
    return entry, meta


def _current(source: Source, entry: Path) -> Meta | None:
    """The description of an entry, None where there is none or where `arrange` has since decided otherwise.

    A copy that earlier rules arranged is compared with these once, by the names of the files.

    Raises:
        DamagedError: the entry cannot be read.
    """
    meta = cache.read_meta(entry)
    if meta is None or isinstance(source, NamedSource) or meta.arranged == RULES:
        return meta
    listing = survey(source.blobs(contents=False), measure=False, labels=source.labels).listing
    lost = {path for path, _ in meta.skipped}
    for split, listed in listing.splits.items():
        rows = [row for row, path in enumerate(listed.paths) if path not in lost]
        packed = meta.splits.get(split)
        if (len(rows), listed.labels is not None) != ((packed.images, packed.labelled) if packed else (0, False)):
            return None
        if listed.labels is not None:
            known = cache.read_labels(entry, split)
            if known is None or not np.array_equal(listed.labels[rows], known):
                return None
    if not set(meta.splits) <= set(listing.splits) or meta.class_names != listing.class_names:
        return None
    meta = replace(meta, arranged=RULES, tree=listing.tree)
    with suppress(PlatformError):  # a cache that cannot be written is compared again
        cache.write_meta(entry, meta)
    return meta


def _own_size(source: Source, surveyed: Survey, largest: int) -> int:
    """The size that all images have, or the one chosen for them; a choice up to `largest` is said on stderr."""
    try:
        size, why = choose_size(surveyed.dimensions)
    except DataError as error:
        splits = surveyed.listing.splits.values()
        first = next((f"{counted(len(split.paths), 'file')}, the first {split.paths[0]}" for split in splits), None)
        raise DataError(f"{error.cause} in {source.name}", saw=error.saw or first, fix=error.fix) from None
    if why and size <= largest:
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
    if (meta := cache.read_meta(entry)) is None:
        raise DamagedError("the packed images were removed from the cache while they were used")
    return entry, meta


def _pack_into(folder: Path, source: Source, size: int, surveyed: Survey | None, progress: bool) -> Meta:
    """The images of a source, written to a folder."""
    if isinstance(source, NamedSource):
        splits, class_names = pack_arrays(source.arrays(), folder, size, progress)
        return Meta(source.name, source.kind, size, class_names, splits)
    if surveyed is None:
        surveyed = survey(source.blobs(contents=False, progress=progress), measure=False, labels=source.labels)
    blobs = source.blobs() if surveyed.blobs is None else surveyed.blobs
    splits, skipped, levels = pack_files(surveyed.listing, blobs, folder, size, progress, source.levels)
    if not splits:
        raise DataError(
            f"none of the {counted(len(skipped), 'image')} of {source.name} can be read",
            saw=f"{skipped[0][0]}: {skipped[0][1]}" if skipped else None,
            fix="open one in an image viewer; if it shows, save the images again as PNG or JPEG",
        )
    listing = surveyed.listing
    about = (source.name, source.kind, size, listing.class_names)
    return Meta(*about, splits, skipped, listing.tree, RULES, levels=levels)


def _check_unchanged(source: Source, content: str) -> None:
    """Refuse what was written to after it was hashed: its images would be kept as those of other bytes."""
    if replace(source).content() != content:
        raise DataError(
            f"{source.name} was changed while it was read", fix="run again once nothing writes to it any more"
        )


def _read(source: Source, split: str, entry: Path, meta: Meta, progress: bool, verify: bool) -> ImageStore:
    """A split; packed again if it is damaged. `verify` is that of `load_data`."""
    name = "all" if split == "train" and "all" in meta.splits else split
    if name not in meta.splits:
        raise DataError(
            f"{source.name} has no split {split!r}",
            saw=f"splits {', '.join(meta.splits)}",
            fix="name one of them, or put the images into a folder of that name",
        )
    try:
        store = cache.read_split(entry, meta, name, source.name)
        if verify:
            store.verify()
        return store
    except (DamagedError, AlteredError) as error:
        _say_damaged(source, error)
    entry, meta = _pack(source, source.content(), meta.image_size, None, progress)
    return cache.read_split(entry, meta, name, source.name)


def _say_damaged(source: Source, error: DamagedError | AlteredError) -> None:
    why = error.saw if isinstance(error, AlteredError) else error.cause
    say(f"the packed copy of {source.name} is damaged ({why}); packing it again")
