"""The data sets known by name: drawn, bundled with a dependency, or downloaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

_Arrays = Iterator[tuple[str, NDArray[np.uint8], NDArray[np.int64] | None, tuple[str, ...]]]

DESCRIPTIONS = {
    "cifar10": "60,000 photographs, 10 classes, 32 × 32; downloaded (170 MB)",
    "cifar100": "60,000 photographs, 100 classes, 32 × 32; downloaded (169 MB)",
    "digits": "1,797 scanned figures, 10 classes, 8 × 8 enlarged to 32 × 32; bundled with scikit-learn",
    "glyphs": "5,000 letters A–J over clutter, 10 classes, 24 × 24; drawn on the spot, no download",
    "stl10": "13,000 photographs, 10 classes, 96 × 96, and 100,000 unlabeled; downloaded (2.6 GB)",
    "svhn": "99,289 house numbers, 10 classes, 32 × 32; downloaded (246 MB)",
}
NATIVE_SIZES = {"cifar10": 32, "cifar100": 32, "digits": 32, "glyphs": 24, "stl10": 96, "svhn": 32}


@dataclass(frozen=True)
class NamedSource:
    """A data set known by name: drawn, bundled or downloaded."""

    name: str
    kind: ClassVar[str] = "named"

    def content(self, progress: bool = False) -> str:
        """What the images depend on: the code that makes them and the packages that draw; for downloads the name alone
        (their checksums are fixed), so that packed ones are found without torchvision."""
        parts = [self.name]
        if self.name in ("digits", "glyphs"):
            parts.append(Path(__file__).with_name(f"{self.name}.py").read_text(encoding="utf-8"))
        if self.name == "glyphs":
            parts += [_version("matplotlib"), _version("pillow")]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def arrays(self) -> _Arrays:
        """The splits, one after the other; see `pack_arrays`."""
        if self.name == "digits":
            from .digits import load_digits

            return load_digits()
        if self.name == "glyphs":
            from .glyphs import make_glyphs

            return ((split, *make_glyphs(split)) for split in ("train", "test"))
        from .downloads import load_download

        return load_download(self.name)

    def native_size(self) -> int:
        """The size they are packed at unless told otherwise."""
        return NATIVE_SIZES[self.name]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
