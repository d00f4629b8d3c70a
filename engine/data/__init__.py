"""Images in, `ImageStore` out: public names, loaded when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .decode import decode_image
    from .sources import load_data, load_splits, source_names
    from .store import ImageStore

__all__ = ["ImageStore", "decode_image", "load_data", "load_splits", "source_names"]

_HOMES = {
    "ImageStore": "store",
    "decode_image": "decode",
    "load_data": "sources",
    "load_splits": "sources",
    "source_names": "sources",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
