"""The images that a user names, in a fixed order: found in files, folders, archives and data sets, decoded in windows.

Imports no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..boundary import raise_fault
from ..errors import DataError, UsageError
from ..files import expanded
from ..inputs import open_regular
from .archive import ArchiveSource
from .decode import decode_image
from .folder import FolderSource
from .levels import FULL_LEVELS, Levels, levels_key
from .listing import has_image_ending
from .pack import survey, workers
from .sources import Selection, Source, load_data, open_source, packed, source_names

Images = NDArray[np.uint8]
WINDOW = 512  # images decoded at once; `embed` logs after each, and hashes a run's encoder once for each


@dataclass(frozen=True, eq=False)
class Pictures:
    """Images in a fixed order, decoded only when they are asked for.

    Attributes:
        paths: how each is named to people.
        classes: the class of each by name, "" for none.
        class_names: those of the source, in label order.
        pixels: uint8 `[S, S, 3]` of the image in a row; raises DataError where it cannot be read.
        refused: `(path, reason)` of what was not even listed.
        identity: changes when the images do.
    """

    paths: Sequence[str]
    classes: Sequence[str]
    class_names: tuple[str, ...]
    pixels: Callable[[int], Images]
    refused: tuple[tuple[str, str], ...]
    identity: str

    def __len__(self) -> int:
        return len(self.paths)


class Encoder(Protocol):
    """What `find_images` asks of an encoder: how its images were made, and DataError for an array that is none."""

    @property
    def image_size(self) -> int:
        """Side S of the images it takes."""

    @property
    def levels(self) -> Levels:
        """The values of 16-bit gray images that become 0 and 255."""

    @property
    def check(self) -> Callable[[object], None]:
        """Raises DataError for an array that is not uint8 `[N, S, S, 3]`."""


def find_images(
    encoder: Encoder, sources: Sequence[str | Selection], split: str = "all", progress: bool = False
) -> list[Pictures]:
    """The images of each source: an image file, a folder, an archive, a data set by name, or an .npy of images.

    Args:
        encoder: for what; images are brought to its size by `decode_image`'s rule, but those of an array must have it.
        sources: as the user named them, or a selection of a folder or archive.
        split: `all`, or one of a source that has splits; a source without any is `train`, as everywhere.
        progress: bars while archives are packed.

    Raises:
        DataError, UsageError: nothing there, no images, no such split; what `load_data` raises.
    """
    if not sources:
        raise UsageError("no images were named", fix="name image files, a folder, an archive or a data set")
    found: list[Pictures] = []
    size, levels = encoder.image_size, encoder.levels
    for text in sources:
        if isinstance(text, Selection):
            opened = open_source(text)
            if isinstance(opened, FolderSource):
                found.append(_folder(replace(opened, levels=levels), size, split))
            else:
                opened = replace(opened, levels=levels) if isinstance(opened, ArchiveSource) else opened
                found += _stores(text, opened, size, split, progress)
            continue
        path = expanded(text)
        if text in source_names():
            found += _stores(text, open_source(text), size, split, progress)
        elif text and path.is_dir():
            found.append(_folder(FolderSource(path, text, levels=levels), size, split))
        elif (has_image_ending(text) or path.suffix.lower() == ".npy") and not path.exists():
            raise DataError("there is no such file", saw=text, fix="check the path")
        elif path.is_file() and path.suffix.lower() == ".npy":
            found.append(_array(path, text, encoder.check))
        elif isinstance(source := _open(text, path), ArchiveSource):
            found += _stores(text, replace(source, levels=levels), size, split, progress)
        else:
            found.append(_single(path, text, size, levels))
    return found


def _open(text: str, path: Path) -> object:
    """The archive of that name, or None for another file; what is not there is refused by `open_source`."""
    try:
        return open_source(text)
    except DataError:
        if path.is_file():
            return None
        raise


def _single(path: Path, text: str, size: int, levels: Levels) -> Pictures:
    identity = f"file {text} {_content(path)}{levels_key(levels)}"
    return Pictures([text], [""], (), lambda _: decode_image(path, size, levels), (), identity)


def _content(path: Path) -> str:
    """sha256 of a file's bytes, since size and time may be those of another; "" if it cannot be read, which is reported
    when it is decoded."""
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise_fault(error)
        return ""


def _folder(source: FolderSource, size: int, split: str) -> Pictures:
    """A folder's images; with `all` those of every split, also those without a class."""
    folder, text = source.path, source.name
    content = source.content()
    listing = survey(source.blobs(contents=False), measure=False, labels=source.labels).listing
    known: dict[str, str] = {}
    for name, part in listing.splits.items():
        if split in ("all", name) or (split, name) == ("train", "all"):
            labels = part.labels.tolist() if part.labels is not None else None
            names = [""] * len(part.paths) if labels is None else [listing.class_names[i] for i in labels]
            known |= dict(zip(part.paths, names, strict=True))
    if not known:
        raise DataError(
            f"{text} has no split {split!r}", saw=f"splits {', '.join(listing.splits)}", fix="name one of them"
        )
    paths = sorted(known)
    return Pictures(
        [str(Path(text) / path) for path in paths],
        [known[path] for path in paths],
        listing.class_names,
        lambda row: decode_image(folder / paths[row], size, source.levels),
        tuple((str(Path(text) / path), why) for path, why in listing.skipped),
        f"folder {text} {content} {split}",
    )


def _array(path: Path, text: str, check: Callable[[object], None]) -> Pictures:
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            "not a readable .npy array", saw=f"{text}: {error}", fix="write it with numpy.save, without objects"
        ) from error
    check(images)
    identity = f"array {text} {_content(path)}"
    names = [f"{text}[{row}]" for row in range(len(images))]
    return Pictures(names, [""] * len(images), (), partial(_row, images), (), identity)


def _row(images: Any, row: int) -> Images:
    """One of the images of an array, a memory map or a store."""
    return np.asarray(images[row])


def _stores(data: str | Selection, source: Source, size: int, split: str, progress: bool) -> list[Pictures]:
    """The splits of an archive or a named data set, through the cache."""
    archive = source if isinstance(source, ArchiveSource) else None
    text, levels = source.name, FULL_LEVELS if archive is None else archive.levels
    _, meta = packed(source, size, progress)
    wanted = list(meta.splits) if split == "all" else [split]
    blobs = archive.blobs(contents=False, progress=progress) if archive else None
    listing = survey(blobs, measure=False, labels=archive.labels).listing if archive and blobs else None
    found: list[Pictures] = []
    for name in wanted:
        store = load_data(data, name, size, progress, levels=levels)
        actual = "all" if name == "train" and "all" in meta.splits else name
        lost = {path for path, _ in set(store.skipped) - set(listing.skipped if listing else ())}
        members = [p for p in listing.splits[actual].paths if p not in lost] if listing else []
        if len(members) != len(store):  # a data set by name has no paths
            members = [f"{actual}/{row}" for row in range(len(store))]
        labels = [""] * len(store) if store.labels is None else [store.class_names[i] for i in store.labels.tolist()]
        skipped = tuple((f"{text}/{path}", why) for path, why in store.skipped) if not found else ()
        found.append(
            Pictures(
                [f"{text}/{member}" for member in members],
                labels,
                store.class_names,
                partial(_row, store.images),
                skipped,
                f"store {text} {name} {store.fingerprint}",
            )
        )
    return found


@dataclass(frozen=True)
class Window:
    """Decoded images uint8 `[n, S, S, 3]` of one stretch of the list, with paths and classes, and what was left out."""

    start: int
    stop: int
    images: Images
    paths: list[str]
    classes: list[str]
    skipped: list[tuple[str, str]]


def windows(parts: Sequence[Pictures], image_size: int, start: int = 0, length: int = WINDOW) -> Iterator[Window]:
    """The images from `start` on, decoded in threads while the caller works on the window before: two in memory."""
    ends = np.cumsum([len(part) for part in parts])
    total = int(ends[-1]) if len(ends) else 0

    def decode(at: int) -> tuple[str, str, Images | str]:
        k = int(np.searchsorted(ends, at, side="right"))
        part, row = parts[k], at - int(ends[k] - len(parts[k]))
        try:
            return part.paths[row], part.classes[row], part.pixels(row)
        except DataError as error:
            return part.paths[row], part.classes[row], error.cause

    with ThreadPoolExecutor(workers(), thread_name_prefix="decode") as pool:

        def begin(at: int) -> list[Future[tuple[str, str, Images | str]]]:
            return [pool.submit(decode, i) for i in range(at, min(at + length, total))]

        waiting = begin(start)
        try:
            for at in range(start, total, length):
                done = [future.result() for future in waiting]
                waiting = begin(at + length)
                yield _window(at, at + len(done), done, image_size)
        finally:
            for future in waiting:
                future.cancel()


def _window(start: int, stop: int, done: list[tuple[str, str, Images | str]], size: int) -> Window:
    good = [(path, name, pixels) for path, name, pixels in done if not isinstance(pixels, str)]
    images = np.empty((len(good), size, size, 3), dtype=np.uint8)
    for row, (_, _, pixels) in zip(images, good, strict=True):
        row[:] = pixels
    skipped = [(path, pixels) for path, _, pixels in done if isinstance(pixels, str)]
    return Window(start, stop, images, [g[0] for g in good], [g[1] for g in good], skipped)
