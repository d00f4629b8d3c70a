"""How every picture looks: two themes, colour-blind safe colours, names drawn only where a font has their letters."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

DPI = 180  # twice the size on the page, sharp on dense screens
LONGEST_NAME = 18
# Searched in order for letters that DejaVu (which comes with matplotlib) does not have.
FALLBACK_FONTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "WenQuanYi Micro Hei",
    "Hiragino Sans",
    "PingFang SC",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Arial Unicode MS",
)
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")


@dataclass(frozen=True)
class Theme:
    """Colours of one theme (CSS hex): `trained`, `scratch` and `chance` mean the same thing in every picture."""

    name: str
    surface: str
    text: str
    muted: str
    grid: str
    trained: str
    scratch: str
    chance: str
    second: str
    categories: tuple[str, ...]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """matplotlib's settings for the pictures made inside."""
        settings: dict[Any, Any] = {
            "font.family": _families(),
            "font.size": 9.0,
            "text.parse_math": False,  # a `$` in a class name is a dollar sign
            "text.color": self.text,
            "axes.facecolor": self.surface,
            "axes.edgecolor": self.grid,
            "axes.labelcolor": self.muted,
            "axes.titlecolor": self.text,
            "axes.titlesize": 10.5,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.titlepad": 10.0,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": self.grid,
            "grid.linewidth": 0.7,
            "xtick.color": self.muted,
            "ytick.color": self.muted,
            "xtick.major.size": 0.0,
            "ytick.major.size": 0.0,
            "lines.linewidth": 1.8,
            "lines.solid_capstyle": "round",
            "legend.frameon": False,
            "legend.labelcolor": self.text,
            "figure.facecolor": self.surface,
            "savefig.facecolor": self.surface,
        }
        with matplotlib.rc_context(settings):
            yield


# Categories after Okabe & Ito 2008 ("Color Universal Design"); yellow, which vanishes on white, only on dark.
LIGHT = Theme(
    name="light",
    surface="#ffffff",
    text="#1b2430",
    muted="#5a6675",
    grid="#e4e8ee",
    trained="#0072b2",
    scratch="#98a2b0",
    chance="#d55e00",
    second="#009e73",
    categories=("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c6bb1", "#7f7f7f"),
)
DARK = Theme(
    name="dark",
    surface="#161b22",
    text="#e6edf3",
    muted="#9aa7b6",
    grid="#2b333e",
    trained="#58b2ea",
    scratch="#76818f",
    chance="#f0a030",
    second="#34c79a",
    categories=("#58b2ea", "#f0a030", "#34c79a", "#f0743e", "#e08fc0", "#f4e86b", "#b79ce8", "#b0b0b0"),
)
THEMES = (LIGHT, DARK)


def new_figure(width: float = 5.4, height: float = 3.3) -> tuple[Figure, Axes]:
    """A figure of inches, laid out by itself, with one axes; free of pyplot, so nothing global remains."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def to_png(figure: Figure) -> bytes:
    """The figure as PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


@lru_cache(maxsize=1)
def _families() -> list[str]:
    """DejaVu Sans and whichever fallback fonts are installed."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed)]


@lru_cache(maxsize=1)
def _drawable() -> frozenset[int]:
    """Code points that one of the fonts in use has a glyph for."""
    points: set[int] = set()
    for family in _families():
        path = font_manager.findfont(font_manager.FontProperties(family=[family]), fallback_to_default=True)
        points.update(FT2Font(str(Path(path))).get_charmap())
    return frozenset(points)


def can_draw(name: str) -> bool:
    """Whether a picture can show this text: every letter has a glyph, and none is written right to left
    (older matplotlib neither orders nor joins such letters)."""
    letters = unicodedata.normalize("NFC", name)
    if not letters.strip() or any(unicodedata.bidirectional(c) in ("R", "AL") for c in letters):
        return False
    return all(c.isprintable() and ord(c) in _drawable() for c in letters)


def label(name: str, index: int) -> str:
    """The name of class `index` as a picture shows it: shortened, or `class 7` where no font has its letters."""
    if not can_draw(name):
        return f"class {index}"
    name = unicodedata.normalize("NFC", name)
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def labels(names: Iterable[str]) -> list[str]:
    """`label` of all class names."""
    return [label(name, i) for i, name in enumerate(names)]
