"""decode_image against pixel arithmetic done here, and against files that are damaged, hostile or strange."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fixtures.image_files import encode, noise
from simclr_engine.data import decode, decode_image
from simclr_engine.data.decode import FORMATS, image_dimensions, resize_images
from simclr_engine.errors import DataError

PHOTO = noise(1, 24, 24)


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    a = alpha[..., None].astype(np.float64) / 255
    return rgb * a + 255 * (1 - a)


def antialiased(pixels: np.ndarray, size: int) -> np.ndarray:
    """Float64 truth of the resize rule: resized with a triangle filter as wide as the reduction, then cropped."""
    side = min(pixels.shape[:2])
    scale = side / size

    def weights(length: int) -> np.ndarray:
        centre = (length - side) // 2 + (np.arange(size)[:, None] + 0.5) * scale
        triangle = np.clip(1 - np.abs(np.arange(length)[None] + 0.5 - centre) / max(scale, 1.0), 0, None)
        return triangle / triangle.sum(1, keepdims=True)

    rows = np.einsum("yi,ijc->yjc", weights(pixels.shape[0]), pixels.astype(np.float64))
    return np.einsum("xj,yjc->yxc", weights(pixels.shape[1]), rows)


@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP"])
def test_lossless_rgb_of_the_wanted_size_keeps_every_pixel(form: str) -> None:
    decoded = decode_image(encode(PHOTO, form, lossless=True), 24)
    np.testing.assert_array_equal(decoded, PHOTO)
    assert decoded.dtype == np.uint8 and decoded.flags.c_contiguous and decoded.flags.writeable


def test_a_file_and_its_bytes_decode_alike(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(encode(PHOTO))
    np.testing.assert_array_equal(decode_image(tmp_path / "x.png", 24), PHOTO)
    assert image_dimensions(tmp_path / "x.png") == (24, 24)


def test_gray_and_bilevel_become_equal_channels() -> None:
    gray = PHOTO[..., 0]
    np.testing.assert_array_equal(decode_image(encode(gray), 24), np.repeat(gray[..., None], 3, 2))
    bits = (gray > 127).astype(np.uint8) * 255
    np.testing.assert_array_equal(decode_image(encode(bits, mode="1"), 24), np.repeat(bits[..., None], 3, 2))


def test_a_palette_is_looked_up() -> None:
    palette = noise(2, 1, 256)[0]
    index = PHOTO[..., 0]
    image = Image.fromarray(index, "P")
    image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    np.testing.assert_array_equal(decode_image(buffer.getvalue(), 24), palette[index])


def test_a_transparent_palette_colour_becomes_white() -> None:
    index = (PHOTO[..., 0] % 4).astype(np.uint8)
    palette = np.array([[10, 20, 30], [200, 0, 0], [0, 200, 0], [0, 0, 200]], dtype=np.uint8)
    image = Image.fromarray(index, "P")
    image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=2)
    expected = palette[index]
    expected[index == 2] = 255
    np.testing.assert_array_equal(decode_image(buffer.getvalue(), 24), expected)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_transparency_is_composited_over_white(form: str) -> None:
    alpha = noise(3, 24, 24)[..., 0]
    data = encode(np.dstack([PHOTO, alpha]), form, lossless=True, exact=True)
    difference = np.abs(decode_image(data, 24) - over_white(PHOTO, alpha))
    assert difference.max() <= 1


def test_gray_with_transparency_is_composited_over_white() -> None:
    gray, alpha = PHOTO[..., 0], PHOTO[..., 1]
    image = Image.merge("LA", (Image.fromarray(gray), Image.fromarray(alpha)))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    expected = over_white(np.repeat(gray[..., None], 3, 2), alpha)
    assert np.abs(decode_image(buffer.getvalue(), 24) - expected).max() <= 1


def test_sixteen_bit_gray_is_scaled_not_clipped() -> None:
    values = np.random.default_rng(4).integers(0, 65536, (24, 24)).astype(np.uint16)
    values[0, :3] = 0, 255, 65535
    expected = np.rint(values * (255 / 65535)).astype(np.uint8)
    np.testing.assert_array_equal(decode_image(encode(values), 24), np.repeat(expected[..., None], 3, 2))


@pytest.mark.parametrize(("kind", "low", "high"), [(np.int16, -1000, 500), (np.int32, 0, 70_000)])
def test_whole_numbers_that_are_no_sixteen_bits_are_refused(kind: type, low: int, high: int) -> None:
    """As they are in CT scans: which values are black and white, no one says."""
    values = np.linspace(low, high, 24 * 24).astype(kind).reshape(24, 24)
    bits = values.itemsize * 8
    tags = {256: 24, 257: 24, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: 24, 279: values.nbytes, 339: 2}
    data = _tiff(tags, values.tobytes())
    with Image.open(io.BytesIO(data)) as image:
        assert image.getextrema() == (low, high)
    with pytest.raises(DataError, match="outside 0 to 65,535"):
        decode_image(data, 24)


def test_a_transparent_sixteen_bit_gray_becomes_white() -> None:
    values = np.full((24, 24), 1000, dtype=np.uint16)
    values[3:9] = 40000
    data = encode(values)
    chunk = b"tRNS" + struct.pack(">H", 1000)
    end_of_header = 8 + 25
    chunk = struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk))
    decoded = decode_image(data[:end_of_header] + chunk + data[end_of_header:], 24)
    assert (decoded[:3] == 255).all() and (decoded[3:9] == round(40000 / 257)).all()


def test_a_cmyk_jpeg_becomes_rgb() -> None:
    flat = np.broadcast_to(np.array([30, 120, 200, 40], dtype=np.uint8), (24, 24, 4))
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(flat), "CMYK").save(buffer, "JPEG", quality=95)
    cyan, magenta, yellow, black = (int(v) for v in flat[0, 0])
    expected = np.array([(255 - c) * (255 - black) / 255 for c in (cyan, magenta, yellow)])
    assert np.abs(decode_image(buffer.getvalue(), 24) - expected).max() <= 4


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (48, 48, 16),  # a whole reduction
        (37, 90, 16),  # wide, odd margins
        (71, 40, 24),  # tall
        (10, 10, 32),  # enlarged
        (33, 32, 32),  # only cropped
        (1, 500, 8),  # one pixel high
    ],
)
def test_other_sizes_follow_the_stated_resize_rule(height: int, width: int, size: int) -> None:
    pixels = noise(5, height, width)
    decoded = decode_image(encode(pixels), size)
    assert decoded.shape == (size, size, 3)
    # Pillow rounds to 8 bits after each of the two passes
    assert np.abs(decoded - antialiased(pixels, size)).max() <= 1.01
    np.testing.assert_array_equal(resize_images(pixels[None], size)[0], decoded)


UPRIGHT_TO_STORED = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, 1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p, -1),
}


@pytest.mark.parametrize("orientation", UPRIGHT_TO_STORED)
@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_every_exif_orientation_is_undone(orientation: int, form: str) -> None:
    upright = noise(6, 20, 31)  # odd margin: a crop before the turn would be off by one
    stored = np.ascontiguousarray(UPRIGHT_TO_STORED[orientation](upright))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(stored, form, exif=exif, lossless=True)
    np.testing.assert_array_equal(decode_image(data, 20), decode_image(encode(upright), 20))


def test_a_jpeg_is_turned_upright_too() -> None:
    upright = np.zeros((32, 32, 3), dtype=np.uint8)
    upright[:16] = 250
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode_image(encode(np.ascontiguousarray(np.rot90(upright)), "JPEG", exif=exif), 32)
    assert decoded[:12].min() > 230 and decoded[20:].max() < 20


def test_exif_data_behind_the_pixels_of_a_png_counts_too() -> None:
    upright, exif = noise(6, 20, 31), Image.Exif()
    exif[0x0112] = 3
    data = encode(np.ascontiguousarray(upright[::-1, ::-1]), exif=exif)
    at = data.index(b"eXIf") - 4
    end = at + 12 + int.from_bytes(data[at : at + 4], "big")
    moved = data[:at] + data[end:-12] + data[at:end] + data[-12:]
    np.testing.assert_array_equal(decode_image(moved, 20), decode_image(encode(upright), 20))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_broken_exif_data_does_not_lose_the_image(exif: bytes, form: str) -> None:
    plain = decode_image(encode(PHOTO, form), 24)
    np.testing.assert_array_equal(decode_image(encode(PHOTO, form, exif=exif), 24), plain)


def test_a_jpeg_decoded_at_reduced_scale_stays_close_to_the_full_decode() -> None:
    texture = np.asarray(Image.fromarray(noise(7, 32, 32)).resize((256, 256), Image.Resampling.BICUBIC))
    data = encode(texture, "JPEG", quality=95, subsampling=0)
    full = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    difference = np.abs(decode_image(data, 32) - antialiased(full, 32))
    assert difference.mean() < 1 and difference.max() < 3  # decoded at 128 × 128 on the way; at 64 × 64: 3.8 and 11


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_the_first_frame_of_an_animation_counts(form: str) -> None:
    buffer = io.BytesIO()
    later = [Image.fromarray(noise(8, 24, 24))]
    Image.fromarray(PHOTO).save(buffer, form, save_all=True, append_images=later, lossless=True)
    np.testing.assert_array_equal(decode_image(buffer.getvalue(), 24), PHOTO)


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data, b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_from_its_header(width: int, height: int) -> None:
    for read in (lambda b: decode_image(b, 32), image_dimensions):
        with pytest.raises(DataError, match="pixels"):
            read(png_header(width, height))


def test_a_sliver_needs_no_memory_of_its_resized_length() -> None:
    import tracemalloc

    data = encode(np.full((1, 60_000, 3), 77, dtype=np.uint8))
    tracemalloc.start()
    decoded = decode_image(data, 512)  # resized before cropping it would have 512 × 30,720,000 pixels
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (decoded == 77).all() and peak < 50 << 20


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "WEBP"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.95])
def test_a_truncated_file_is_an_error_not_a_half_gray_image(form: str, share: float) -> None:
    data = encode(noise(9, 64, 64), form)
    with pytest.raises(DataError, match=r"not a readable PNG, JPEG, .* image"):
        decode_image(data[: int(share * len(data))], 32)


@pytest.mark.parametrize("form", ["PPM", "EPS", "ICO", "TGA", "PDF"])
def test_formats_outside_the_list_are_not_even_tried(form: str) -> None:
    with pytest.raises(DataError, match="no such image data"):
        decode_image(encode(noise(1, 32, 32), form), 32)
    assert not {"EPS", "WMF", "PDF", "PSD"} & set(FORMATS)


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path, tmp_path / "missing.png"):
        with pytest.raises(DataError, match="not a file"):
            decode_image(path, 32)


def test_a_file_of_absurd_length_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(300 << 20)
    with pytest.raises(DataError, match="314,572,800 bytes"):
        decode_image(tmp_path / "huge.png", 32)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(form=st.sampled_from(["PNG", "JPEG", "BMP", "WEBP"]), seed=st.integers(0, 2**32), hits=st.integers(1, 40))
@pytest.mark.filterwarnings("ignore")
def test_bytes_changed_at_random_give_an_image_or_a_data_error(form: str, seed: int, hits: int) -> None:
    random = np.random.default_rng(seed)
    data = np.frombuffer(encode(PHOTO, form), dtype=np.uint8).copy()
    data[random.integers(0, len(data), hits)] = random.integers(0, 256, hits)
    try:
        assert decode_image(data.tobytes(), 16).shape == (16, 16, 3)
    except DataError as error:
        assert error.exit_code == 4


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=200))
def test_arbitrary_bytes_are_a_data_error(data: bytes) -> None:
    with pytest.raises(DataError):
        decode_image(data, 16)


def test_a_jpeg_of_a_thousand_scans_is_refused_before_they_are_decoded() -> None:
    raw = encode(np.zeros((2000, 2000, 3), np.uint8), "JPEG", progressive=True)
    last = raw[raw.rindex(b"\xff\xda") : -2]
    few, many = raw[:-2] + last * 20 + raw[-2:], raw[:-2] + last * 1000 + raw[-2:]
    assert len(many) < 40_000 and decode_image(few, 16).shape == (16, 16, 3)
    begin = time.process_time()
    with pytest.raises(DataError, match=r"1,010 scans of 2000 × 2000 pixels"):
        decode_image(many, 16)
    assert time.process_time() - begin < 1


def test_scans_in_a_thumbnail_or_behind_the_end_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = encode(noise(1, 64, 64), "JPEG")
    monkeypatch.setattr(decode, "JPEG_WORK", 64 * 64)
    inside = b"\xff\xda\xff\xd9" * 50
    hidden = raw[:2] + b"\xff\xfe" + (2 + len(inside)).to_bytes(2, "big") + inside + raw[2:] + inside
    np.testing.assert_array_equal(decode_image(hidden, 64), decode_image(raw, 64))
    with pytest.raises(DataError, match="2 scans"):  # none is hidden behind an end that is no end
        decode_image(hidden[: -len(inside) - 2] + raw[raw.index(b"\xff\xda") :], 64)


def _large_tile(side: int) -> bytes:
    """A TIFF of 16 × 16 gray pixels in one tile of this side, packed by deflate."""
    data = zlib.compress(bytes(256))
    return _tiff({256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 8, 325: len(data)}, data)


def _tiff(tags: dict[int, int], data: bytes) -> bytes:
    """The data stand at byte 8."""
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_a_tiff_in_huge_pieces_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decode_image(_large_tile(16), 16).shape == (16, 16, 3)
    with pytest.raises(DataError, match="pieces of 1,600,000,000 bytes"):
        decode_image(_large_tile(40_000), 16)
    strips = encode(noise(1, 64, 64), "TIFF")
    assert decode_image(strips, 16).shape == (16, 16, 3)
    monkeypatch.setattr(decode, "MEMORY", 64 * 64 * 8)
    with pytest.raises(DataError, match="pieces of"):
        decode_image(strips, 16)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "I;16", "1"])
def test_a_large_image_becomes_rgb_in_bands_as_it_would_at_once(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    pixels = noise(5, 48, 48)
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200) if mode == "I;16" else Image.fromarray(pixels)
    image = image if mode == "I;16" else image.convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(pixels[..., 1]))
    options = {"transparency": 3} if mode == "P" else {}
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = io.BytesIO()
    image.save(raw, "TIFF" if mode == "CMYK" else "PNG", exif=exif, **options)
    at_once, levels = decode_image(raw.getvalue(), 20), list[tuple[int, int]]()
    monkeypatch.setattr(decode, "LARGE_PIXELS", 100)
    monkeypatch.setattr(decode, "_BAND_PIXELS", 5 * 48)
    np.testing.assert_array_equal(decode_image(raw.getvalue(), 20, measured=levels), at_once)
    values = pixels[..., 0].astype(int) * 200
    expected = (values.min(), values.max()) if mode == "I;16" else None
    assert not levels if expected is None else (min(a for a, _ in levels), max(b for _, b in levels)) == expected


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc/self/status to say the peak")
def test_the_largest_image_takes_less_than_a_gigabyte() -> None:
    """With transparency and turned: what takes the most. In a process of its own, for its peak is looked at."""
    side, exif, buffer = 4500, Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.new("RGBA", (side, side)).save(buffer, "PNG", compress_level=1, exif=exif)
    script = """
import sys
from simclr_engine.data import decode_image
def peak():
    return next(int(row.split()[1]) for row in open("/proc/self/status") if row.startswith("VmHWM"))
raw = sys.stdin.buffer.read()
before = peak()
decode_image(raw, 32)
print(before, peak())
"""
    done = subprocess.run([sys.executable, "-c", script], input=buffer.getvalue(), capture_output=True, check=True)
    before, after = map(int, done.stdout.split())
    assert (after - before) << 10 < side * side * 9  # bytes for a pixel; at once it was 13
