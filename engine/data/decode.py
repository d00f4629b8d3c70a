"""The one way an encoded image becomes pixels: packing, predict and serve all call it, so they see the same image."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..boundary import raise_fault
from ..bounds import BYTES_OF_PIXEL, JPEG_WORK, LARGE_PIXELS, MAX_FILE_BYTES, MAX_PIXELS, MEMORY, PIXELS_OF_FORMAT
from ..errors import DataError
from ..inputs import UnfitError, open_regular
from .levels import FULL_LEVELS, Levels

# Pillow's name of each format that is read → the module that reads it. Each is imported when a file of its format is
# met, and Image.open is told to try no other: some of Pillow's readers start programs (EPS) or draw by instructions
# (WMF), and are never wanted.
FORMATS = {
    "PNG": "PIL.PngImagePlugin",
    "JPEG": "PIL.JpegImagePlugin",
    "WEBP": "PIL.WebPImagePlugin",
    "BMP": "PIL.BmpImagePlugin",
    "TIFF": "PIL.TiffImagePlugin",
    "GIF": "PIL.GifImagePlugin",
    "AVIF": "PIL.AvifImagePlugin",
    "JPEG2000": "PIL.Jpeg2KImagePlugin",
    "HEIF": "pillow_heif",
}
FORMAT_NAMES = "PNG, JPEG, WebP, BMP, TIFF, GIF, AVIF or JPEG 2000"
EXTENSIONS = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".jfif", ".jpe", ".mpo", ".tif", ".tiff", ".gif", ".avif", ".jp2"),
    *(".j2k", ".jpx", ".heic", ".heif", ".hif"),
)
HEAD_BYTES = 64  # enough to tell the format
_HEIF = "simclr-engine[heic]"
# Endings of pictures that are not read: a file of one of them is reported, not passed over like a text file. Camera raw
# files begin as a TIFF does, whose only picture would be the thumbnail.
_RAW = (".nef", ".cr2", ".cr3", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw")
_OTHERS = (
    *(".svg", ".psd", ".xcf", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico", ".icns", ".exr", ".hdr", ".pcx", ".sgi"),
    *(".dcm", ".nii", ".fits", ".jxl", ".eps", ".wmf", ".emf", ".dds"),
)
# With this margin a reduced decode is hard to tell from a full one (Pillow says so of `reducing_gap=3.0`); with 2 it is
# not: a 256-pixel texture brought to 32 differs by 3.8 levels on average, with 3 by 0.8.
_DRAFT_MARGIN = 3

_BAND_PIXELS = 1 << 20  # a large image becomes RGB in bands of so many: all at once it takes four copies

_one_at_a_time = threading.Lock()
# What the files say that this package draws: reports and plots among the images are no images of the data.
SOFTWARE = "simclr-engine"
DRAWN = "a picture that simclr-engine drew"
_METADATA = frozenset(("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"))  # where Pillow looks for it


def decode_image(
    source: bytes | Path, size: int, levels: Levels = FULL_LEVELS, measured: list[Levels] | None = None
) -> NDArray[np.uint8]:
    """Decode one image into a square RGB array. Its format is told by its first bytes, and must be one of `FORMATS`.

    The EXIF orientation is applied. Transparency is composited over white. 16-bit gray is scaled to 8 bits:
    `round((v − low) · 255 / (high − low))`. Of an animation or a file of several pages the first one counts. Colour
    profiles are not applied.
    Resize rule: the shorter side becomes `size` with antialiased bilinear filtering, then the centre is cropped (both
    in one step: only the centred square is computed); an image that is `size × size` keeps its pixels. JPEGs at least
    six times larger are decoded at a reduced scale that leaves no less than three times `size`.

    Args:
        source: the encoded bytes, or the file that holds them.
        size: side S of the result in pixels.
        levels: the values of 16-bit gray images that become 0 and 255; what lies outside is clipped.
        measured: takes the lowest and highest value of a 16-bit gray image.

    Returns:
        uint8 `[S, S, 3]`, RGB, C-contiguous, writable.

    Raises:
        DataError: not one of the formats, damaged, drawn by this package, or beyond the bounds of images in `bounds`.
    """
    try:
        with _open(source) as image:
            image.draft("RGB", (_DRAFT_MARGIN * size, _DRAFT_MARGIN * size))
            with _one_at_a_time if image.width * image.height > LARGE_PIXELS else nullcontext():
                return np.array(_square(_rgb(_upright(image), levels, measured), size), dtype=np.uint8)
    except DataError:
        raise
    except Exception as error:  # Pillow's readers raise a dozen kinds for damaged files; all mean the same here
        raise _unreadable(error) from error


def image_dimensions(source: bytes | Path) -> tuple[int, int]:
    """Width and height in pixels as stored, from the header alone; raises DataError as `decode_image` does."""
    try:
        with _open(source) as image:
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


def image_format(head: bytes) -> str | None:
    """Pillow's name of the format of a file that begins with these `HEAD_BYTES` bytes; None if it is none of ours."""
    for start, name in _STARTS:
        if head.startswith(start):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in (12, 16, 40, 52, 56, 64, 108, 124):
        return "BMP"
    if head[4:8] == b"ftyp":  # ISO base media: the brand, and the brands that it is compatible with
        brands = {head[at : at + 4] for at in (8, *range(16, min(len(head), int.from_bytes(head[:4], "big")), 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
            return "HEIF"
    return None


_STARTS = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    *((start, "TIFF") for start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
)


def unread_picture(name: str) -> str:
    """Why a file of this name, a picture by its ending, is not read; empty for any other ending."""
    lower = name.lower()
    if lower.endswith(_RAW):
        return "a camera raw file, which is not read; convert it to JPEG or TIFF"
    return f"a picture that is not {FORMAT_NAMES}" if lower.endswith(_OTHERS) else ""


@contextmanager
def _open(source: bytes | Path) -> Iterator[Image.Image]:
    """The image, its pixels not decoded yet. DataError if it must not be decoded."""
    with _opened(source) as file:
        form = image_format(file.read(HEAD_BYTES))
        if form is None:
            raise _unreadable(ValueError("no such image data"))
        _import_reader(form)
        file.seek(0)
        with Image.open(file, formats=(form,)) as image:
            _check_pixels(image, form)
            if form == "JPEG":
                _check_scans(file, image.size)
            if str(image.info.get("Software", "")).startswith(SOFTWARE):
                raise DataError(DRAWN, fix="leave it out")
            yield image


@cache
def _import_reader(form: str) -> None:
    try:
        module = import_module(FORMATS[form])
    except ImportError:
        fix = f"pip install '{_HEIF}'" if form == "HEIF" else "pip install --upgrade pillow"
        raise DataError(f"a {form} image, which this installation cannot read ({fix})", fix=fix) from None
    if form == "HEIF":
        module.register_heif_opener()


def _opened(source: bytes | Path) -> IO[bytes]:
    if isinstance(source, Path):
        try:
            return open_regular(source, MAX_FILE_BYTES)
        except UnfitError as error:
            cause = f"not a file that can be read: {error.strerror}"
            raise DataError(cause, saw=source, fix="leave it out") from error
        except (OSError, ValueError) as error:
            raise_fault(error)
            fix = "check the path and its permissions"
            raise DataError("not a file that can be read", saw=source, fix=fix) from error
    if len(source) > MAX_FILE_BYTES:
        cause = f"the image has {len(source):,} bytes; at most {MAX_FILE_BYTES:,} are read"
        raise DataError(cause, fix="shrink the image first")
    return io.BytesIO(source)


def _check_pixels(image: Image.Image, form: str) -> None:
    width, height = image.size
    most = min(MAX_PIXELS, PIXELS_OF_FORMAT.get(form, MAX_PIXELS))
    if width * height > most:
        raise DataError(
            f"the image has {width} × {height} pixels; at most {most:,} are decoded", fix="shrink the image first"
        )
    if form == "TIFF" and (piece := _piece_bytes(image)) + BYTES_OF_PIXEL * width * height > MEMORY:
        raise DataError(
            f"the image of {width} × {height} pixels is stored in pieces of {piece:,} bytes",
            fix="save it in smaller strips or tiles",
        )
    if width < 1 or height < 1:
        raise DataError(f"the image has {width} × {height} pixels", fix="replace the file")


def _piece_bytes(image: Any) -> int:
    """Of a strip or tile of a TIFF, which is unpacked whole; a tile may be far larger than the image."""
    tags, (width, height) = image.tag_v2, image.size
    tile = int(tags.get(322, 0)) * int(tags.get(323, 0))
    return (tile or width * min(height, int(tags.get(278, height)))) * sum(tags.get(258, (1,))) // 8


# A marker of JPEG, not a 0xff of the compressed pixels or one between their restart intervals.
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_SCAN, _END, _ALONE = 0xDA, 0xD9, (0x01, 0xD8)
_SCAN_BYTES = 10  # at least: the marker and its header


def _check_scans(file: IO[bytes], dimensions: tuple[int, int]) -> None:
    """Each scan of a JPEG is a pass over all pixels: a thousand of them have ten bytes each."""
    most, at = JPEG_WORK // (dimensions[0] * dimensions[1]), file.tell()
    if file.seek(0, io.SEEK_END) > most * _SCAN_BYTES:
        file.seek(0)
        data = file.read()
        scans = data.count(bytes((0xFF, _SCAN)))
        if scans > most and (scans := _scans(data)) > most:  # fewer where some are of a thumbnail
            raise DataError(
                f"the JPEG has {scans:,} scans of {dimensions[0]} × {dimensions[1]} pixels; at most {most:,} are read",
                fix="open it in an image viewer and save it again, or leave it out",
            )
    file.seek(at)


def _scans(data: bytes) -> int:
    """How many scans the JPEG has up to its end; segments are passed over, with whatever is in them."""
    scans, at = 0, 0
    while (marker := _MARKER.search(data, at)) and (kind := marker[1][0]) != _END:
        scans += kind == _SCAN
        at = marker.end() + (0 if kind in _ALONE else int.from_bytes(data[marker.end() : marker.end() + 2], "big"))
    return scans


def _rgb(image: Image.Image, levels: Levels, measured: list[Levels] | None) -> Image.Image:
    """Any mode to RGB; transparency over white; 16-bit gray scaled, where Pillow's own convert would clip at 255."""
    width, height = image.size
    rows = max(1, _BAND_PIXELS // width)
    if width * height > LARGE_PIXELS and image.mode != "RGB" and rows < height:
        whole = Image.new("RGB", image.size)
        for top in range(0, height, rows):
            band = image.crop((0, top, width, min(top + rows, height)))
            whole.paste(_rgb(band, levels, measured), (0, top))
        return whole
    if image.mode == "F":  # of no known range: Pillow would clip it at 255
        raise DataError("an image of floating-point values, which is not read", fix="save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > FULL_LEVELS[1]:
            raise DataError(
                "an image of whole numbers outside 0 to 65,535, which is not read", fix="save it with 16 bits"
            )
        values, (low, high) = values.astype(np.uint32), levels
        if measured is not None:
            measured.append((int(values.min()), int(values.max())))
        gray = (((values.clip(low, high) - low) * 255 + (high - low) // 2) // (high - low)).astype(np.uint8)
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            gray[values == transparent] = 255
        return Image.fromarray(gray).convert("RGB")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF data says; damaged EXIF data leaves it as it is."""
    image.load()
    if not _METADATA.intersection(image.info):
        return image
    with suppress(Exception):  # a broken EXIF block does not make the pixels wrong
        ImageOps.exif_transpose(image, in_place=True)
    return image


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
    raise_fault(error)
    what = " ".join(str(error).split()) or type(error).__name__
    if "cannot identify image file" in what:
        what = "no such image data"
    return DataError(
        f"not a readable {FORMAT_NAMES} image ({what})",
        fix="open it in an image viewer and save it again, or leave it out",
    )
