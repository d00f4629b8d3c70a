"""The one way an encoded image becomes pixels: packing, predict and serve all call it, so they see the same image."""

from __future__ import annotations

import io
import stat
import threading
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# The four plugins are imported here by name: Image.open then finds them without loading all of Pillow's others.
from PIL import BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from ..errors import DataError

FORMATS = tuple(
    plugin.format
    for plugin in (
        PngImagePlugin.PngImageFile,
        JpegImagePlugin.JpegImageFile,
        WebPImagePlugin.WebPImageFile,
        BmpImagePlugin.BmpImageFile,
    )
)
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MIN_SIZE, MAX_SIZE = 8, 1024
# Pillow's own warning threshold, a quarter of a gigabyte of RGB: beyond it an image is refused, not decoded.
MAX_PIXELS = 89_478_485
MAX_FILE_BYTES = 256 << 20
# Of larger images one is decoded at a time, whatever the number of threads: one of MAX_PIXELS with transparency takes
# 1.3 GB on the way, and its file may have one megabyte.
LARGE_PIXELS = 1 << 24
# With this margin a reduced decode is hard to tell from a full one (Pillow says so of `reducing_gap=3.0`); with 2 it is
# not: a 256-pixel texture brought to 32 differs by 3.8 levels on average, with 3 by 0.8.
_DRAFT_MARGIN = 3

_one_at_a_time = threading.Lock()
_EXIF_ORIENTATION = 0x0112
_METADATA = frozenset(("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"))  # where Pillow looks for it
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(source: bytes | Path, size: int) -> NDArray[np.uint8]:
    """Decode one PNG, JPEG, WebP or BMP image into a square RGB array.

    The EXIF orientation is applied. Transparency is composited over white. 16-bit gray is scaled to 8 bits
    (`round(v · 255 / 65535)`). Of an animation the first frame counts. Colour profiles are not applied.
    Resize rule: the shorter side becomes `size` with antialiased bilinear filtering, then the centre is cropped (both
    in one step: only the centred square is computed); an image that is `size × size` keeps its pixels. JPEGs at least
    six times larger are decoded at a reduced scale that leaves no less than three times `size`.

    Args:
        source: the encoded bytes, or the file that holds them.
        size: side S of the result in pixels.

    Returns:
        uint8 `[S, S, 3]`, RGB, C-contiguous, writable.

    Raises:
        DataError: not one of the four formats, damaged, or larger than `MAX_PIXELS` pixels or `MAX_FILE_BYTES` bytes.
    """
    try:
        with Image.open(_readable(source), formats=FORMATS) as image:
            _check_pixels(image.size)
            image.draft("RGB", (_DRAFT_MARGIN * size, _DRAFT_MARGIN * size))
            with _one_at_a_time if image.width * image.height > LARGE_PIXELS else nullcontext():
                picture = _upright(image, _rgb(image))
                return np.array(_square(picture, size), dtype=np.uint8)
    except DataError:
        raise
    except Exception as error:  # Pillow's readers raise a dozen kinds for damaged files; all mean the same here
        raise _unreadable(error) from error


def image_dimensions(source: bytes | Path) -> tuple[int, int]:
    """Width and height in pixels as stored, from the header alone; raises DataError as `decode_image` does."""
    try:
        with Image.open(_readable(source), formats=FORMATS) as image:
            _check_pixels(image.size)
            return image.size
    except DataError:
        raise
    except Exception as error:
        raise _unreadable(error) from error


def resize_images(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """`decode_image`'s resize rule for decoded images: uint8 `[N, H, W, 3]` to `[N, S, S, 3]`."""
    if images.shape[1:3] == (size, size):
        return images
    result = np.empty((len(images), size, size, 3), dtype=np.uint8)
    for row, pixels in zip(result, images, strict=True):
        row[:] = np.asarray(_square(Image.fromarray(np.ascontiguousarray(pixels)), size))
    return result


def _readable(source: bytes | Path) -> io.BytesIO | Path:
    """What Pillow opens; a file is checked first, since opening a pipe would wait for ever."""
    if isinstance(source, Path):
        try:
            status = source.stat()
        except (OSError, ValueError):
            status = None
        if status is None or not stat.S_ISREG(status.st_mode):
            raise DataError("not a file that can be read", saw=source, fix="check the path and its permissions")
        nbytes = status.st_size
    else:
        nbytes = len(source)
    if nbytes > MAX_FILE_BYTES:
        raise DataError(
            f"the image file has {nbytes:,} bytes; at most {MAX_FILE_BYTES:,} are read",
            fix="shrink the image first",
        )
    return source if isinstance(source, Path) else io.BytesIO(source)


def _check_pixels(dimensions: tuple[int, int]) -> None:
    width, height = dimensions
    if width * height > MAX_PIXELS:
        raise DataError(
            f"the image has {width} × {height} pixels; at most {MAX_PIXELS:,} are decoded",
            fix="shrink the image first",
        )
    if width < 1 or height < 1:
        raise DataError(f"the image has {width} × {height} pixels", fix="replace the file")


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB; transparency over white; 16-bit gray scaled, where Pillow's own convert would clip at 255."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.uint32)
        gray = ((values * 255 + 32767) // 65535).clip(0, 255).astype(np.uint8)
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            gray[values == transparent] = 255
        return Image.fromarray(gray).convert("RGB")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    if image.mode == "RGB":
        image.load()
        return image
    return image.convert("RGB")


def _upright(image: Image.Image, picture: Image.Image) -> Image.Image:
    """`picture` turned as the EXIF data of `image` says; damaged EXIF data leaves it as it is."""
    if not _METADATA.intersection(image.info):
        return picture
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # a broken EXIF block does not make the pixels wrong
        return picture
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return picture if turn is None else picture.transpose(turn)


def _square(picture: Image.Image, size: int) -> Image.Image:
    width, height = picture.size
    if width == height == size:
        return picture
    # One resampling with a box, not resize-then-crop: a 1 × 60,000 image would otherwise grow to gigabytes on the way.
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    return picture.resize((size, size), Image.Resampling.BILINEAR, box=box)


def _unreadable(error: Exception) -> DataError:
    what = " ".join(str(error).split()) or type(error).__name__
    if "cannot identify image file" in what:
        what = "no such image data"
    return DataError(
        f"not a readable PNG, JPEG, WebP or BMP image ({what})",
        fix="open it in an image viewer and save it again, or leave it out",
    )
