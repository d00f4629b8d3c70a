"""glyphs: the letters A to J in matplotlib's typefaces over cluttered colour gradients, drawn on the spot from a seed.

The set that needs no download and still shows what pretraining is worth. Everything that raw pixels give away is
drawn at random: which of letter and background is the lighter, every colour, place, size, rotation, slant and
typeface, over a background whose colours vary more than the letter stands out from it. What is left once colours
are jittered away is the letter's shape. The test split is drawn from another random stream, and in typefaces that
training never shows.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..errors import DataError, PlatformError

CLASS_NAMES = tuple("ABCDEFGHIJ")
IMAGE_SIZE = 24

# Listed by name, since the same seed must give the same images whatever else a matplotlib release ships. Left out:
# the last-resort, STIX size and non-Unicode, and Computer Modern symbol and extension fonts, which draw no letters.
TRAIN_TYPEFACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-BoldOblique",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "cmb10",
    "cmmi10",
    "cmr10",
    "cmss10",
    "cmti10",
)
TEST_TYPEFACES = ("DejaVuSansMono-Oblique", "DejaVuSerif-BoldItalic", "STIXGeneralBolIta", "cmtt10")

Split = Literal["train", "test"]
# split -> (number of images, typefaces, key of its random stream)
_SPLITS: dict[str, tuple[int, tuple[str, ...], int]] = {
    "train": (4000, TRAIN_TYPEFACES, 0),
    "test": (1000, TEST_TYPEFACES, 1),
}
_SEED = 20020  # with the key of the split it names one PCG64 stream, the same on every platform

_MASTER_CAP, _MASTER_SIDE = 64, 160  # height of a capital H and side of the square it is centred in, pixels
_OVERSAMPLING = 3  # letters are drawn this much larger and averaged down: smooth edges at any rotation

# Lengths are fractions of the image side, luminance and chroma fractions of full scale.
_CAP_HEIGHT = (0.6, 0.85)
_ROTATION = 15.0  # degrees to either side
_SLANT = 0.2  # horizontal shift per unit of height, to either side, on top of what italics have
_OFFSET = 0.08  # of the letter's centre, in x and y
_CONTRAST = (0.25, 0.5)  # luminance between letter and background, before gradients and clutter
_MIDDLE = (0.35, 0.65)  # luminance halfway between the two
_CHROMA = 0.3  # radius of the disc that base colours are drawn from, in the I and Q axes
# Clutter is strong in colour and weak in luminance. A luminance gradient survives every colour jitter, so views can
# be matched by it and the letter goes unlearned (measured at four times this strength: 48 % instead of 59 %).
_BACKGROUND_GRADIENT = (0.1, 0.6, 0.6)  # Y, I, Q between the middle and an edge of the image, at most
_LETTER_GRADIENT = (0.05, 0.4, 0.4)
_BLOBS = 3  # soft elongated spots per background
_BLOB_WIDTH = (0.1, 0.35)  # standard deviation along the longer axis
_BLOB_STRENGTH = (0.1, 0.4, 0.4)  # standard deviation of a spot's Y, I, Q
_NOISE = 0.02  # standard deviation of the grain, luminance only

# YIQ: luminance apart from two colour axes, so that contrast can be set and colour left to chance (NTSC, 1953)
_YIQ_TO_RGB = np.array([[1.0, 0.956, 0.619], [1.0, -0.272, -0.647], [1.0, -1.106, 1.703]])


def make_glyphs(split: Split = "train") -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    """Draw one split; the same arrays at every call, whatever the state of numpy's global generator.

    Args:
        split: `train` (4,000 images in 18 typefaces) or `test` (1,000 images in four others).

    Returns:
        images uint8 `[N, 24, 24, 3]` RGB, labels int64 `[N]` (equally many of each), and the ten class names.

    Raises:
        DataError: the split is neither of the two.
        PlatformError: a typeface is missing from the installed matplotlib, or Pillow was built without FreeType.
    """
    if split not in _SPLITS:
        raise DataError("glyphs has no such split", saw=split, fix="use train or test")
    count, typefaces, key = _SPLITS[split]
    random = np.random.Generator(np.random.PCG64([_SEED, key]))
    labels = random.permutation(np.arange(count, dtype=np.int64) % len(CLASS_NAMES))
    coverage = _letters(random, labels, typefaces)[..., None]
    background, letter = _colours(random, count)
    yiq = background + coverage * (letter - background)
    yiq[..., 0] += random.normal(0.0, _NOISE, yiq.shape[:-1])
    rgb = np.clip(yiq @ _YIQ_TO_RGB.T, 0.0, 1.0)
    return np.round(rgb * 255.0).astype(np.uint8), labels, CLASS_NAMES


def _letters(random: np.random.Generator, labels: NDArray[np.int64], typefaces: tuple[str, ...]) -> NDArray[np.float64]:
    """How much of each pixel the letter covers, `[N, S, S]` in [0, 1]: one letter an image, posed at random."""
    count, side = len(labels), IMAGE_SIZE * _OVERSAMPLING
    face = random.integers(0, len(typefaces), count)
    scale = random.uniform(*_CAP_HEIGHT, count) * side / _MASTER_CAP
    angle = np.deg2rad(random.uniform(-_ROTATION, _ROTATION, count))
    slant = random.uniform(-_SLANT, _SLANT, count)
    centre = side / 2 + random.uniform(-_OFFSET, _OFFSET, (count, 2)) * side
    coverage = np.empty((count, IMAGE_SIZE, IMAGE_SIZE))
    for i in range(count):
        cos, sin = np.cos(angle[i]), np.sin(angle[i])
        # Pillow asks where an output pixel comes from: the inverse of slanting, turning and scaling the master.
        inverse = np.array([[1.0, slant[i]], [0.0, 1.0]]) @ np.array([[cos, sin], [-sin, cos]]) / scale[i]
        shift = _MASTER_SIDE / 2 - inverse @ centre[i]
        posed = _master(typefaces[face[i]], CLASS_NAMES[labels[i]]).transform(
            (side, side),
            Image.Transform.AFFINE,
            (*inverse[0], shift[0], *inverse[1], shift[1]),
            Image.Resampling.BILINEAR,
        )
        coverage[i] = np.asarray(posed.reduce(_OVERSAMPLING)) / 255.0
    return coverage


def _colours(random: np.random.Generator, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Background and letter colour of every pixel in YIQ, each `[N, S, S, 3]`; either may be the lighter."""
    contrast = random.uniform(*_CONTRAST, count) * random.choice((-1.0, 1.0), count)
    middle = random.uniform(*_MIDDLE, count)
    background = _base_colour(random, middle - contrast / 2) + _gradient(random, count, _BACKGROUND_GRADIENT)
    letter = _base_colour(random, middle + contrast / 2) + _gradient(random, count, _LETTER_GRADIENT)
    for _ in range(_BLOBS):
        background += _blob(random, count)
    return background, letter


def _base_colour(random: np.random.Generator, luminance: NDArray[np.float64]) -> NDArray[np.float64]:
    """One colour an image, `[N, 1, 1, 3]` in YIQ: the given luminance, chroma uniform over a disc."""
    hue = random.uniform(0.0, 2 * np.pi, len(luminance))
    chroma = _CHROMA * np.sqrt(random.random(len(luminance)))
    return np.stack([luminance, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)[:, None, None]


def _pixel_grid() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x and y of the pixel centres, each `[S, S]`, from -0.5 to 0.5 across the image."""
    steps = (np.arange(IMAGE_SIZE) + 0.5) / IMAGE_SIZE - 0.5
    return tuple(np.meshgrid(steps, steps))  # type: ignore[return-value]  # two in, two out


def _gradient(random: np.random.Generator, count: int, strength: tuple[float, ...]) -> NDArray[np.float64]:
    """Linear gradients in YIQ, `[N, S, S, 3]`: 0 in the middle, at most `strength` at an edge.

    Each channel has a direction of its own.
    """
    x, y = (grid[None, :, :, None] for grid in _pixel_grid())
    angle = random.uniform(0.0, 2 * np.pi, (count, 1, 1, 3))
    return random.uniform(-2.0, 2.0, (count, 1, 1, 3)) * strength * (np.cos(angle) * x + np.sin(angle) * y)


def _blob(random: np.random.Generator, count: int) -> NDArray[np.float64]:
    """One soft elongated spot of colour an image, `[N, S, S, 3]` in YIQ."""
    x, y = _pixel_grid()
    centre = random.uniform(-0.6, 0.6, (2, count, 1, 1))
    angle = random.uniform(0.0, np.pi, (count, 1, 1))
    long = random.uniform(*_BLOB_WIDTH, (count, 1, 1))
    short = long * random.uniform(0.3, 1.0, (count, 1, 1))
    along = (x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)
    across = (y - centre[1]) * np.cos(angle) - (x - centre[0]) * np.sin(angle)
    weight = np.exp(-0.5 * ((along / long) ** 2 + (across / short) ** 2))
    return weight[..., None] * random.normal(0.0, 1.0, (count, 1, 1, 3)) * _BLOB_STRENGTH


@cache
def _font_folder() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@cache
def _master(typeface: str, letter: str) -> Image.Image:
    """The upright letter, white on black, centred by its outline; a capital H of the typeface is 64 pixels high."""
    path = _font_folder() / f"{typeface}.ttf"
    # The basic layout gives the same glyph with and without libraqm.
    layout = ImageFont.Layout.BASIC
    try:
        _, top, _, bottom = ImageFont.truetype(path, 100, layout_engine=layout).getbbox("H")
        font = ImageFont.truetype(path, round(100 * _MASTER_CAP / (bottom - top)), layout_engine=layout)
    except (OSError, ImportError) as error:
        raise PlatformError(
            "a typeface of the glyphs data set cannot be read",
            saw=f"{path} ({error})",
            fix="reinstall matplotlib (it ships the typefaces) and Pillow (it draws them)",
        ) from error
    drawn = Image.new("L", (2 * _MASTER_SIDE, 2 * _MASTER_SIDE))
    ImageDraw.Draw(drawn).text((_MASTER_SIDE / 2, _MASTER_SIDE / 2), letter, font=font, fill=255)
    outline = drawn.crop(drawn.getbbox())  # of the ink: FreeType's own box includes the side bearings
    image = Image.new("L", (_MASTER_SIDE, _MASTER_SIDE))
    image.paste(outline, ((_MASTER_SIDE - outline.width) // 2, (_MASTER_SIDE - outline.height) // 2))
    return image
