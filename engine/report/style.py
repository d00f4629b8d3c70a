"""How every picture looks: two themes, colour-blind safe colours, names drawn only where a font has their letters.

Imports no torch.
"""

from __future__ import annotations

import io
import logging
import re
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager, ft2font
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from numpy.typing import NDArray
from PIL import Image

from ..data.decode import SOFTWARE
from .content import first_capital

DPI = 180  # twice the size on the page, sharp on dense screens
WIDTH = 3.4  # inches of every chart: a column of the page and a phone's screen show its 8 points as 10 to 11 px
SMALL = 8.0  # points; the smallest letters of a chart
LONGEST_NAME = 18  # columns of a terminal: a Chinese letter counts as two
# Searched first, and in this order, for letters that DejaVu (which comes with matplotlib) does not have; then whatever
# else is installed.
FALLBACK_FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans", "Noto Sans Devanagari", "Noto Sans Thai",
    "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback", "Hiragino Sans", "PingFang SC",
    "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Nirmala UI", "Leelawadee UI", "Arial Unicode MS",
)  # fmt: skip
# These draw a box for every letter, only symbols, or nothing that matplotlib can show (coloured bitmaps).
NO_LETTERS = ("last resort", "lastresort", "color", "stix", "emoji", "symbol", "math", "dingbats", "wingdings", "icon")
# matplotlib 3.11 lays text out with libraqm: right-to-left order, joined letters, Indic clusters. Before, letters were
# put down one by one in the order of memory, which is wrong for these scripts.
LAYS_OUT = getattr(ft2font, "__libraqm_version__", None) is not None
CLUSTERED = ((0x0900, 0x0DFF), (0x0F00, 0x109F), (0x1780, 0x17FF), (0xA8E0, 0xA8FF), (0xAA60, 0xAA7F))
JOINERS = "\u200c\u200d"  # invisible, and part of how Persian and Indic words are spelt
LEFT_TO_RIGHT = "\u200e"
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
FEW_POINTS = 40  # up to here every point of a curve is marked
DASHED, DOTTED = (0, (4, 3)), (0, (1, 1.5))
SCRATCH_DASHES = (0, (5, 1.5))  # of the random encoder beside the pretrained one, which is solid
TITLE = 38  # characters of a title that fit on a line
ACCURACY, PREDICTIONS, LEARNING = "Methods", "Predictions", "Learning from labels"
FEATURES, PRETRAINING = "Features", "Pretraining"


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
    def applied(self, names: Iterable[str] = ()) -> Iterator[None]:
        """matplotlib's settings for the pictures made inside, with the fonts that these names of classes need."""
        settings: dict[Any, Any] = {
            "font.family": _families(names),
            "font.size": 8.5,
            "text.color": self.text,
            "text.parse_math": False,  # a `$` in a class name is a dollar sign
            "axes.facecolor": self.surface,
            "axes.edgecolor": self.grid,
            "axes.labelcolor": self.muted,
            "axes.titlecolor": self.text,
            "axes.titlesize": 8.5,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": self.grid,
            "grid.linewidth": 0.7,
            "xtick.color": self.muted,
            "xtick.labelsize": SMALL,
            "xtick.major.size": 0.0,
            "xtick.major.pad": 5.0,
            "ytick.color": self.muted,
            "ytick.labelsize": SMALL,
            "ytick.major.size": 0.0,
            "lines.linewidth": 1.6,
            "lines.solid_capstyle": "round",
            "legend.frameon": False,
            "legend.labelcolor": self.text,
            "figure.facecolor": self.surface,
            "savefig.facecolor": self.surface,
        }
        with matplotlib.rc_context(settings):
            yield


# Categories after Okabe & Ito 2008 ("Color Universal Design"), the last two of light after Tol 2021 ("muted"); yellow,
# which vanishes on white, only on dark.
LIGHT = Theme(
    name="light", surface="#ffffff", text="#1b2430", muted="#5a6675", grid="#e4e8ee",
    trained="#0072b2", scratch="#7f8a99", chance="#d55e00", second="#009e73",
    categories=(
        "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c6bb1", "#7f7f7f", "#332288", "#882255",
    ),
)  # fmt: skip
DARK = Theme(
    name="dark", surface="#161b22", text="#e6edf3", muted="#9aa7b6", grid="#2b333e",
    trained="#58b2ea", scratch="#76818f", chance="#f0a030", second="#34c79a",
    categories=(
        "#58b2ea", "#f0a030", "#34c79a", "#f0743e", "#e08fc0", "#f4e86b", "#b79ce8", "#b0b0b0", "#f5f5f5", "#8f6b3a",
    ),
)  # fmt: skip
THEMES = (LIGHT, DARK)


@dataclass(frozen=True, eq=False)
class Tile:
    """A small image of a sheet, uint8 `[S, S, 3]`, with what stands below it.

    `kind` is `right` or `wrong` for a prediction, `query` for what neighbours are searched for, `origin` for what views
    are made of. `words` say in a sentence what is seen.
    """

    image: NDArray[np.uint8]
    words: str
    kind: str = ""
    name: str = ""
    value: str = ""
    truth: str = ""


@dataclass(frozen=True)
class Sheet:
    """Small images that the page lays out itself, so that their words stay readable on a phone.

    `columns` are in a row on a desk, `narrow` on a phone; one that is `wide` takes half of the page, not a third.
    """

    title: str
    tiles: Sequence[Tile]
    columns: int
    narrow: int
    wide: bool = True


@dataclass(frozen=True)
class Picture:
    """One picture of a report: `name` is its file in figures/, `draw(theme=THEME)` makes it.

    `note` is what pictures of this kind have in common, which the section says once. The page shows `sheet`, where
    there is one, instead of what was drawn.
    """

    name: str
    section: str
    caption: str
    draw: Callable[..., Figure]
    note: str = ""
    sheet: Sheet | None = None


def new_figure(title: str = "", height: float = 2.3) -> tuple[Figure, Axes]:
    """A figure of so many inches, laid out by itself, with one axes; free of pyplot, so nothing global remains."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    set_title(figure, title)
    return figure, figure.add_subplot()


def set_title(figure: Figure, title: str) -> None:
    """A title at the left edge."""
    if title:
        figure.suptitle(broken(title), x=0.02, ha="left", fontsize=9, weight="bold")


def broken(title: str) -> str:
    """A title that is too long for a line is broken behind its colon, then between words, but not in brackets."""
    if len(title) <= TITLE:
        return title
    whole = re.sub(r"\(.*?\)", lambda part: part[0].replace(" ", "\u00a0"), title.replace(": ", ":\n", 1))
    return "\n".join(textwrap.fill(line, TITLE) for line in whole.splitlines()).replace("\u00a0", " ")


def wrapped(name: str, width: int = 14) -> str:
    """The name of a method beside its bars, in lines that end between words; a number keeps its per cent sign."""
    return textwrap.fill(name.replace(" %", "\u00a0%"), width).replace("\u00a0", " ")


def to_png(figure: Figure, software: str = SOFTWARE) -> bytes:
    """The figure as PNG; the same figure gives the same bytes. `software` is what the file says that it was made by."""
    buffer, told = io.BytesIO(), logging.getLogger("matplotlib.font_manager")
    before = told.level
    told.setLevel(logging.ERROR)  # a fallback font that has no bold face is no news for the reader
    try:
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": software})
    finally:
        told.setLevel(before)
    return buffer.getvalue()


def image_png(image: NDArray[np.uint8]) -> bytes:
    """A small picture, uint8 `[S, S, 3]`, as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def unnamed(class_names: Iterable[str]) -> str:
    """What a caption adds when the picture cannot spell every class name."""
    if all(can_draw(name) for name in class_names):
        return ""
    return " “class 3” is the class of that number: no font of the picture has the letters of its name."


def legend_below(figure: Figure, columns: int = 3, **settings: Any) -> Legend:
    """A legend below the axes, where no curve can run into it, in at most so many columns.

    With more than two lines of it the figure grows.
    """
    handles = settings.pop("handles", None) or [h for axes in figure.axes for h in axes.get_legend_handles_labels()[0]]
    settings = {"fontsize": SMALL, "handlelength": 1.6, "columnspacing": 1.2, "borderaxespad": 0.2} | settings
    fitting = _columns([str(handle.get_label()) for handle in handles], columns, 72 * figure.get_figwidth())
    more = -(-len(handles) // fitting) - 2
    figure.set_figheight(figure.get_figheight() + 0.17 * max(0, more))
    return figure.legend(handles=handles, loc="outside lower center", ncols=fitting, **settings)


def _columns(names: Sequence[str], most: int, room: float) -> int:
    """How many columns of these names have room, in points: a letter takes 0.6 of its size, a handle three letters."""
    for count in range(min(most, len(names)), 1, -1):
        widest = [max(sum(_widths(name)) for name in part) for part in np.array_split(names, count) if len(part)]
        if 0.6 * SMALL * sum(widest) + 3.4 * SMALL * count <= room:
            return count
    return 1


def running_mean(values: Sequence[float] | NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """The mean of the last `width` values at each of `[n]` positions; of fewer at the start."""
    total = np.cumsum(np.concatenate([[0.0], values]))
    end = np.arange(1, len(total))
    start = np.maximum(end - width, 0)
    smooth: NDArray[np.float64] = (total[end] - total[start]) / (end - start)
    return smooth


def titled(title: str, rest: str) -> str:
    """`Linear probe: scores per class`, or the rest alone."""
    return first_capital(f"{title}: {rest}" if title else rest)


def show_image(axes: Axes, image: NDArray[np.uint8], colour: str | None = None, *, dashed: bool = False) -> None:
    """A small picture, uint8 `[S, S, 3]`, without ticks; with a frame where a colour is given."""
    axes.imshow(image, interpolation="nearest" if image.shape[0] <= 96 else "antialiased")
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(colour is not None)
    if colour is not None:
        axes.spines[:].set(
            color=colour, linewidth=2.0, linestyle=(0, (1.5, 1.0)) if dashed else "solid", capstyle="butt"
        )


def mark_image(axes: Axes, right: bool, theme: Theme) -> None:
    """A tick or a cross in the corner of a picture: colour alone must not say what is right."""
    box = {"facecolor": theme.second if right else theme.chance, "edgecolor": "none", "boxstyle": "square,pad=0.18"}
    place: dict[str, Any] = {"transform": axes.transAxes, "ha": "left", "va": "top", "bbox": box}
    axes.text(0.0, 1.0, "✓" if right else "✗", fontsize=7.5, weight="bold", color=theme.surface, **place)


def _families(names: Iterable[str]) -> list[str]:
    """DejaVu Sans, and an installed font for the letters of `names` that it lacks."""
    needed = (_fonts_for(_spelt(name)) or () for name in names)
    return list(dict.fromkeys(["DejaVu Sans", *(family for families in needed for family in families)]))


@lru_cache(maxsize=1)
def _dejavu() -> frozenset[int]:
    """Code points that DejaVu Sans has a glyph for."""
    return frozenset(_face(font_manager.findfont("DejaVu Sans")).get_charmap())


@lru_cache(maxsize=1)
def _installed() -> dict[str, Any]:
    """One file per family, by name: the preferred ones first."""
    plain: dict[str, Any] = {}
    entries = [font for font in font_manager.fontManager.ttflist if font.style == font.variant == "normal"]
    for entry in sorted(entries, key=lambda font: (font.name, _boldness(font.weight), str(font.fname))):
        if not entry.name.startswith(".") and not any(word in entry.name.lower() for word in NO_LETTERS):
            plain.setdefault(entry.name, entry.fname)
    first = [name for name in FALLBACK_FONTS if name in plain]
    return {name: plain[name] for name in dict.fromkeys([*first, *plain])}


def _boldness(weight: object) -> int:
    return abs(weight - 400) if isinstance(weight, int) else 0


def _face(path: Any) -> Any:
    return font_manager.get_font(path)


@lru_cache(maxsize=4096)
def _fonts_for(text: str) -> tuple[str, ...] | None:
    """Families that have between them all letters that DejaVu lacks, each the first with one that is still missing."""
    missing, families = {letter for letter in text if ord(letter) not in _dejavu()}, []
    for family, path in _installed().items() if missing else ():
        try:
            face = _face(path)
            has = {letter for letter in missing if face.get_char_index(ord(letter))}
        except (OSError, RuntimeError, ValueError):  # a font file that is listed and gone, or broken
            continue
        if has:
            missing -= has
            families.append(family)
        if not missing:
            break
    return None if missing else tuple(families)


def _spelt(name: str) -> str:
    """The name in composed letters, without its invisible joiners, which need no glyph."""
    return "".join(c for c in unicodedata.normalize("NFC", name) if c not in JOINERS)


def can_draw(name: str) -> bool:
    """Whether a picture can show this text: every letter has a glyph in some font, and matplotlib can lay it out."""
    letters = _spelt(name)
    if not letters.strip() or not all(c.isprintable() for c in letters):
        return False
    if not LAYS_OUT and (JOINERS[0] in name or JOINERS[1] in name or any(_needs_layout(c) for c in letters)):
        return False
    return _fonts_for(letters) is not None


def _needs_layout(letter: str) -> bool:
    return _right_to_left(letter) or any(first <= ord(letter) <= last for first, last in CLUSTERED)


def _right_to_left(text: str) -> bool:
    return any(unicodedata.bidirectional(c) in ("R", "AL", "AN") for c in text)


def label(name: str, index: int, longest: int = LONGEST_NAME) -> str:
    """The name of class `index` as a picture shows it: shortened, or `class 7` where no font has its letters.

    A name that is written right to left comes between two left-to-right marks: what stands beside it, such as an arrow
    to another name or a number, then stays on its side.
    """
    if not can_draw(name):
        return f"class {index}"
    name = shortened(unicodedata.normalize("NFC", name), longest)
    return f"{LEFT_TO_RIGHT}{name}{LEFT_TO_RIGHT}" if _right_to_left(name) else name


def shortened(name: str, longest: int) -> str:
    """At most `longest` columns, cut between letters with their marks, `…` for what was cut off."""
    widths = _widths(name)
    if sum(widths) <= longest:
        return name
    end, total = 0, 0
    while total + widths[end] <= longest - 1:
        total += widths[end]
        end += 1
    return name[:end].rstrip() + "…"


def _widths(name: str) -> list[int]:
    """How many columns each letter takes."""
    wide = [2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in name]
    return [0 if unicodedata.combining(c) or c in JOINERS else width for c, width in zip(name, wide, strict=True)]


def printable(text: str) -> str:
    """Words that name no class, such as those of a file: `?` stands for what cannot be drawn."""
    words = "".join(c if can_draw(c) or c == " " else "?" for c in unicodedata.normalize("NFC", text))
    return f"{LEFT_TO_RIGHT}{words}{LEFT_TO_RIGHT}" if _right_to_left(words) else words


def labels(names: Iterable[str], longest: int = LONGEST_NAME) -> list[str]:
    """`label` of all class names."""
    return [label(name, i, longest) for i, name in enumerate(names)]


def new_grid(rows: int, columns: int, side: float, below: float, title: str) -> tuple[Figure, NDArray[Any]]:
    """A figure of `rows` × `columns` square axes for small pictures, the title above them.

    Args:
        rows, columns: how many.
        side: of a picture, in inches.
        below: room for the words under each, in inches.
        title: may be wider than a narrow grid; the figure grows with it.

    Places are computed: matplotlib's own layout takes a second for a hundred axes.
    """
    title, gap, top = printable(title), 0.13, 0.40  # it may name a file
    needed = 0.088 * len(title) + 0.2  # inches of bold letters at 10.5 points
    width = max(columns * (side + gap) + gap, needed)
    height = top + rows * (side + below)
    figure = Figure(figsize=(width, height))
    figure.text(gap / width, 1 - 0.10 / height, title, ha="left", va="top", fontsize=10.5, weight="bold")
    grid = np.empty((rows, columns), dtype=object)
    for row, column in np.ndindex(rows, columns):
        left, bottom = gap + column * (side + gap), height - top - row * (side + below) - side
        grid[row, column] = figure.add_axes((left / width, bottom / height, side / width, side / height))
    return figure, grid
