"""The data sets known by name: drawn (glyphs), bundled with scikit-learn (digits), or downloaded."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .listing import held_out_rows

Arrays = Iterator[tuple[str, NDArray[np.uint8], NDArray[np.int64] | None, tuple[str, ...]]]

DESCRIPTIONS = {
    "cifar10": "60,000 photographs, 10 classes, 32 × 32; downloaded (163 MiB)",
    "cifar100": "60,000 photographs, 100 classes, 32 × 32; downloaded (161 MiB)",
    "digits": "1,797 scanned figures, 10 classes, 8 × 8 enlarged to 32 × 32; bundled with scikit-learn",
    "glyphs": "5,000 letters A–J over clutter, 10 classes, 24 × 24; drawn on the spot, no download",
    "stl10": "13,000 photographs, 10 classes, 96 × 96, and 100,000 unlabeled; downloaded (2.5 GiB)",
    "svhn": "99,289 house numbers, 10 classes, 32 × 32; downloaded (235 MiB)",
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
        if self.name == "digits":
            parts.append(inspect.getsource(load_digits))
        if self.name == "glyphs":
            drawing = Path(__file__).with_name("glyphs.py").read_text(encoding="utf-8")
            parts += [drawing, _version("matplotlib"), _version("pillow")]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def arrays(self) -> Arrays:
        """The splits, one after the other; see `pack_arrays`."""
        if self.name == "digits":
            return load_digits()
        if self.name == "glyphs":
            from .glyphs import make_glyphs

            return ((split, *make_glyphs(split)) for split in ("train", "test"))
        from .downloads import load_download

        return load_download(self.name)

    def native_size(self) -> int:
        """The size they are packed at unless told otherwise."""
        return NATIVE_SIZES[self.name]


def load_digits() -> Arrays:
    """The splits `train` and `test` (80 % and 20 % of every class, always the same rows).

    Yields:
        (split, uint8 `[N, 8, 8, 3]` gray as RGB, int64 labels `[N]`, class names). The 17 gray levels 0 to 16 are
        spread over 0 to 255. They are packed at 32 × 32 by default (`NATIVE_SIZES`): at 8 × 8 a residual network with
        four stages has nothing left to convolve.
    """
    from sklearn.datasets import load_digits as load_bundled

    bundled = load_bundled()
    gray = np.rint(bundled.images * (255 / 16)).astype(np.uint8)
    images = np.ascontiguousarray(np.broadcast_to(gray[..., None], (*gray.shape, 3)))
    labels = bundled.target.astype(np.int64)
    names = tuple(str(name) for name in bundled.target_names)
    in_test = held_out_rows(labels, 0.2)
    yield "train", images[~in_test], labels[~in_test], names
    yield "test", images[in_test], labels[in_test], names


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
