"""Embed any number of images into an index on disk: streamed, and resumable to the byte.

Windows of images start at fixed places in their list, so that every image meets the same batch whether or not
something was stopped in between. A run as the target imports torch; an exported file does not.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simclr_engine.errors import CheckFailed, DataError, PlatformError

from .embedder import Embedder
from .growing import GrowingIndex, remove_partial, unfinished_plan
from .index import IndexFiles, index_files, taken
from .pictures import WINDOW, Pictures, windows


@dataclass(frozen=True)
class EmbedResult:
    """What was written.

    Attributes:
        out: the vectors; the other files of the index lie beside it.
        csv: row, path and class of each.
        images: vectors in it.
        dim: their width.
        skipped: `(path, reason)` of what could not be read.
        seconds: this call took.
        embedded: images that this call embedded; fewer than `images` where it went on with an unfinished index.
    """

    out: Path
    csv: Path
    images: int
    dim: int
    skipped: tuple[tuple[str, str], ...]
    seconds: float
    embedded: int

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {
            "out": str(self.out),
            "csv": str(self.csv),
            "images": self.images,
            "dim": self.dim,
            "skipped": [{"path": path, "reason": reason} for path, reason in self.skipped],
            "seconds": round(self.seconds, 3),
            "embedded": self.embedded,
            "images_per_second": round(self.embedded / self.seconds, 1) if self.embedded else None,
        }


def embed_to_index(
    embedder: Embedder,
    parts: Sequence[Pictures],
    out: str | Path,
    *,
    pictures: bool = False,
    overwrite: bool = False,
    window: int = WINDOW,
    advance: Callable[[int], None] = lambda _: None,
) -> EmbedResult:
    """Embeds all images into the index at `out`, going on with what an earlier call with the same arguments left.

    Args:
        embedder: the encoder.
        parts: the images, from `gather`.
        out: NAME.npy.
        pictures: also keep the pixels, for galleries of neighbours.
        overwrite: replace an index of something else, finished or not, and any other file of the name `out`; the files
            beside it are replaced where they are an index's only.
        window: images between two lines of the log.
        advance: called with the number of images done, those of an earlier call first.

    Raises:
        DataError: no images, none readable.
        UsageError: `out`, or a file beside it that the index would replace, is something else, or another process is
            writing it.
        PlatformError: it cannot be written.
    """
    began = time.perf_counter()
    files = index_files(out)
    total = sum(len(part) for part in parts)
    if not total:
        raise DataError("there are no images to embed", saw="0 images", fix="name at least one image")
    plan = _plan(embedder, parts, pictures, window)
    state = _published_plan(files)
    unfinished = unfinished_plan(files)
    if not overwrite and unfinished is None and state == plan["digest"]:
        remove_partial(files)  # what a kill between publishing and tidying up left
        advance(total)
        return _result(files, began, 0)
    if not overwrite and unfinished is not None and unfinished != plan["digest"]:
        raise taken("an index of something else was begun here and not finished", files.partial)
    if not overwrite and unfinished is None and (state is not None or files.vectors.exists()):
        raise taken("there is an index of something else here already", files.vectors)
    try:
        shape = embedder.feature_dim, embedder.image_size, total
        with GrowingIndex.opened(files, plan, *shape, pictures, overwrite) as growing:
            advance(growing.next)
            before = growing.kept
            if not growing.publishing:
                _fill(growing, embedder, parts, window, advance)
            kept = growing.kept
            growing.publish(embedder, parts)
    except OSError as error:
        raise PlatformError(
            "cannot write the index",
            saw=f"{error.filename or files.vectors}: {error.strerror or error}",
            fix="free space or choose another --out; the same command goes on where this one stopped",
        ) from error
    return _result(files, began, kept - before)


def _fill(
    growing: GrowingIndex, embedder: Embedder, parts: Sequence[Pictures], window: int, advance: Callable[[int], None]
) -> None:
    for part in windows(parts, embedder.image_size, growing.next, window):
        vectors = embedder.embed(part.images) if len(part.images) else np.empty((0, embedder.feature_dim), np.float32)
        broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(broken):
            raise CheckFailed(
                "a feature is not finite", saw=part.paths[int(broken[0])], fix="train or export the encoder again"
            )
        growing.append(part, vectors)
        advance(part.stop - part.start)
    if not growing.kept:
        first = growing.first_skipped()
        remove_partial(growing.files)
        raise DataError(
            "none of the images can be read",
            saw=f"{first[0]}: {first[1]}" if first else None,
            fix="open one in an image viewer; if it shows, save it again as PNG or JPEG",
        )


def _plan(embedder: Embedder, parts: Sequence[Pictures], pictures: bool, window: int) -> dict[str, Any]:
    """What decides every byte of the result, and its digest."""
    facts = [embedder.identity, embedder.image_size, window, pictures, [part.identity for part in parts]]
    return {"digest": hashlib.sha256(json.dumps(facts).encode(errors="surrogateescape")).hexdigest()}


def _published_plan(files: IndexFiles) -> str | None:
    """The plan of the finished index here; "" for one that cannot say."""
    try:
        return str(json.loads(files.manifest.read_text("utf-8")).get("plan", ""))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, AttributeError):
        return ""


def _result(files: IndexFiles, began: float, embedded: int) -> EmbedResult:
    about = json.loads(files.manifest.read_text("utf-8"))
    skipped = tuple((str(path), str(why)) for path, why in about.get("skipped", ()))
    return EmbedResult(
        files.vectors, files.table, about["images"], about["dim"], skipped, time.perf_counter() - began, embedded
    )
