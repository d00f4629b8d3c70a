"""Images of unusual kinds that must be read, and one that must not: its header promises more than a computer has."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from reference.image_files import encode, noise


def bomb() -> bytes:
    """A PNG whose header says 20,000 × 20,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data, b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def unusual_files() -> dict[str, bytes]:
    """Of 16 bits, animated, in CMYK, grey, with transparency; and the bomb."""
    rgb = [Image.fromarray(noise(i, 12, 12)) for i in range(2)]
    moving = io.BytesIO()
    rgb[0].save(moving, "WEBP", save_all=True, append_images=rgb[1:], lossless=True)
    apng = io.BytesIO()
    rgb[0].save(apng, "PNG", save_all=True, append_images=rgb[1:])
    deep = np.random.default_rng(0).integers(0, 65_536, (12, 12), dtype=np.uint16)
    return {
        "16bit.png": encode(deep),
        "animated.png": apng.getvalue(),
        "animated.webp": moving.getvalue(),
        "bomb.png": bomb(),
        "cmyk.jpg": encode(noise(4), "JPEG", "CMYK"),
        "gray.png": encode(noise(5), "PNG", "L"),
        "rgba.png": encode(np.dstack([noise(6), noise(7)[..., :1]])),
    }
