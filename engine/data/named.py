"""The data sets known by name: drawn, bundled with a dependency, or downloaded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module, metadata
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

_Arrays = Iterator[tuple[str, NDArray[np.uint8], NDArray[np.int64] | None, tuple[str, ...]]]

DESCRIPTIONS = {
    "cifar10": "60,000 photographs, 10 classes, 32 × 32; downloaded (170 MB)",
    "cifar100": "60,000 photographs, 100 classes, 32 × 32; downloaded (169 MB)",
    "digits": "1,797 scanned figures, 10 classes, 8 × 8 enlarged to 32 × 32; bundled with scikit-learn",
    "glyphs": "letters A–J in many typefaces over clutter, 10 classes; drawn on the spot, no download",
    "stl10": "13,000 photographs, 10 classes, 96 × 96, and 100,000 unlabeled; downloaded (2.6 GB)",
    "svhn": "99,289 house numbers, 10 classes, 32 × 32; downloaded (246 MB)",
}


@dataclass(frozen=True)
class NamedSource:
    """A data set known by name: drawn, bundled or downloaded."""

    name: str
    kind: ClassVar[str] = "named"

    def content(self) -> str:
        """What the images depend on: the code that makes them and the packages that draw; for downloads the name alone
        (their checksums are fixed), so that packed ones are found without torchvision."""
        parts = [self.name]
        if self.name in ("digits", "glyphs"):
            parts.append(Path(__file__).with_name(f"{self.name}.py").read_text(encoding="utf-8"))
        if self.name == "glyphs":
            parts += [metadata.version("matplotlib"), metadata.version("pillow")]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def arrays(self) -> _Arrays:
        """The splits, one after the other; see `pack_arrays`."""
        if self.name == "digits":
            return import_module(".digits", __package__).load_digits()
        if self.name == "glyphs":
            return iter(self._glyphs)
        return import_module(".downloads", __package__).load_download(self.name)

    def native_size(self) -> int:
        """The size they are packed at unless told otherwise."""
        if self.name == "digits":
            return import_module(".digits", __package__).SIZE
        if self.name == "glyphs":
            return int(self._glyphs[0][1].shape[1])
        return 96 if self.name == "stl10" else 32

    @cached_property
    def _glyphs(self) -> list[tuple[str, NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]]:
        make_glyphs: Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]]
        make_glyphs = import_module(".glyphs", __package__).make_glyphs
        return [(split, *make_glyphs(split)) for split in ("train", "test")]
