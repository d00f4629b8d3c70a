"""Images in, `ImageStore` out: public names, loaded when they are first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..package import lazy_names

if TYPE_CHECKING:
    from .decode import decode_image
    from .sources import Selection, load_data, load_splits, source_names
    from .store import ImageStore

__all__ = ["ImageStore", "Selection", "decode_image", "load_data", "load_splits", "source_names"]

_HOMES = {
    "ImageStore": "store",
    "decode_image": "decode",
    "Selection": "sources",
    "load_data": "sources",
    "load_splits": "sources",
    "source_names": "sources",
}


__getattr__, __dir__ = lazy_names(__name__, {name: f".{module}" for name, module in _HOMES.items()})
