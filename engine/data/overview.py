"""What is known of a source without packing or downloading it, for `simclr-engine data info`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import cache
from .named import DESCRIPTIONS, NamedSource
from .pack import survey
from .sources import open_source


def overview(source: str | Path, size: int | None = None) -> dict[str, Any]:
    """A description of a source that JSON can hold; it decodes no image and asks no network.

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
    found = open_source(source)
    row: dict[str, Any] = {"source": found.name, "kind": found.kind, "packed": False, "image_size": None}
    if isinstance(found, NamedSource):
        row["description"] = DESCRIPTIONS[found.name]
    content = found.content()
    if size is None:
        size = cache.recall("size", {"content": content})
    if isinstance(size, int):
        entry = cache.entry_path(content, size)
        try:
            meta = cache.read_meta(entry)
        except cache.DamagedError:  # the next use packs it again and says so
            meta = None
        if meta is not None:
            splits = {
                name: {"images": split.images, "labelled": split.labelled, "fingerprint": split.fingerprint}
                for name, split in meta.splits.items()
            }
            return row | {
                "packed": True,
                "image_size": meta.image_size,
                "class_names": list(meta.class_names),
                "splits": splits,
                "skipped": [list(pair) for pair in meta.skipped],
                "cache": str(entry),
                "bytes": sum(file.stat().st_size for file in entry.iterdir()),
            }
    if isinstance(found, NamedSource):
        return row | {"class_names": [], "splits": None, "skipped": []}
    listing = survey(found.blobs(contents=False), measure=False).listing
    return row | {
        "class_names": list(listing.class_names),
        "splits": {
            name: {"images": len(split.paths), "labelled": split.labels is not None}
            for name, split in listing.splits.items()
        },
        "skipped": [list(pair) for pair in listing.skipped],
    }
