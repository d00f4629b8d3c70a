"""A source that is packed, killed and packed again until it is in the cache, held against one that was never killed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fixtures.image_files import class_tree, tar_bytes, write_tree
from simclr_engine.data import load_splits
from simclr_engine.data.cache import DamagedError, read_meta, read_split

from .kills import Report


@dataclass(frozen=True)
class Packing:
    """One source of the campaign.

    Attributes:
        source: `archive` or `folder`.
        damaged: there is a packed copy already, but cut short: it is replaced.
    """

    source: str
    damaged: bool

    def begin(self, folder: Path) -> None:
        """Writes the source."""
        folder.mkdir(parents=True)
        if self.source == "archive":
            (folder / "set.tar").write_bytes(tar_bytes(_files()))
        else:
            write_tree(folder / "set", _files())

    def work(self, folder: Path, report: Report) -> None:
        """Packs it, or reads it if it is packed."""
        os.environ["SIMCLR_ENGINE_CACHE"] = str(folder / "cache")
        stores = load_splits(folder / ("set.tar" if self.source == "archive" else "set"), size=8)
        report(f"read {' '.join(store.fingerprint for store in stores)}")

    def damage(self, folder: Path) -> None:
        """Cuts the packed copy short."""
        for entry in entries(folder):
            os.truncate(entry / "images-all.npy", 500)


@cache
def _files() -> dict[str, bytes]:
    return class_tree(("ant", "bee"), each=12)


def entries(folder: Path) -> list[Path]:
    """What stands in the cache under its own name."""
    return [path for path in (folder / "cache" / "data").glob("*") if not path.name.startswith(".")]


def examine(folder: Path) -> tuple[int, list[str]]:
    """How many entries there are, and which of them cannot be read."""
    wrong = []
    for entry in entries(folder):
        try:
            meta = read_meta(entry)
            assert meta is not None
            for split in meta.splits:
                read_split(entry, meta, split, "")
        except DamagedError as error:
            wrong.append(f"unreadable cache: {error}")
    return len(entries(folder)), wrong


def left(folder: Path) -> list[str]:
    """What killed processes left, which the next packing removes."""
    return [path.name for path in (folder / "cache" / "data").glob(".partial-*")]
