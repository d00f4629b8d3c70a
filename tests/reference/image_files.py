"""Small image files, folders and archives whose contents a test knows exactly."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def encode(pixels: NDArray[np.generic], form: str = "PNG", mode: str | None = None, **options: object) -> bytes:
    """The bytes of an image file; `mode` converts first."""
    image = Image.fromarray(pixels)
    if mode is not None:
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(seed: int, height: int = 16, width: int = 16) -> NDArray[np.uint8]:
    """RGB noise `[H, W, 3]` that only this seed gives."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def class_tree(
    classes: tuple[str, ...] = ("bee", "ant"), each: int = 3, prefix: str = "", seed: int = 0
) -> dict[str, bytes]:
    """`CLASS/N.png` → file; the image of class c, number n is `noise(seed + 100 c + n)`, c in the given order."""
    return {
        f"{prefix}{name}/{n}.png": encode(noise(seed + 100 * c + n))
        for c, name in enumerate(classes)
        for n in range(each)
    }


def write_tree(root: Path, files: Mapping[str, bytes]) -> Path:
    """Writes relative paths below `root` and returns it."""
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def tar_bytes(files: Mapping[str, bytes | tarfile.TarInfo], mode: str = "w") -> bytes:
    """A tar file; a TarInfo in place of bytes is written as that bare header."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for path, data in files.items():
            if isinstance(data, tarfile.TarInfo):
                tar.addfile(data)
            else:
                member = tarfile.TarInfo(path)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def zip_bytes(files: Mapping[str, bytes]) -> bytes:
    """A zip file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return buffer.getvalue()
