"""Pictures keep to their theme, and names of classes in any script are drawn rightly or not at all."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image
from scipy.sparse import csr_array

from fixtures.figure_parts import pixels
from fixtures.synthetic_run import random_confusion
from simclr_engine.report import pretraining_figures, result_figures, style
from simclr_engine.report.style import DARK, LIGHT, THEMES, Theme, can_draw, label, to_png

ARABIC, HEBREW = "كلب", "שלום"

LRM = "\u200e"


@pytest.fixture
def fresh() -> Any:
    """What was found out about fonts is forgotten before and after."""
    for cached in (style._installed, style._fonts_for):
        cached.cache_clear()
    yield
    for cached in (style._installed, style._fonts_for):
        cached.cache_clear()


def entry(name: str, fname: str = "", **rest: Any) -> font_manager.FontEntry:
    return font_manager.FontEntry(name=name, fname=fname or font_manager.findfont("DejaVu Sans"), **rest)


class Face:
    """A font that has these letters."""

    def __init__(self, letters: str) -> None:
        self.letters = letters

    def get_char_index(self, point: int) -> int:
        return int(chr(point) in self.letters)


def with_fonts(monkeypatch: pytest.MonkeyPatch, fonts: dict[str, str]) -> None:
    """As if these families with these letters were all that is installed beside DejaVu."""
    entries = [entry(name, name, style="normal", variant="normal", weight=400) for name in fonts]
    style._dejavu()  # read while it can be found
    monkeypatch.setattr(font_manager.fontManager, "ttflist", entries)
    monkeypatch.setattr(style, "_face", lambda path: Face(fonts[path]))


@pytest.mark.usefixtures("fresh")
def test_letters_come_from_whichever_installed_font_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with_fonts(monkeypatch, {"Aardvark": "象", "Zebra": "象犬", "Noto Sans CJK JP": "犬", "Other": "𓂀"})
    assert style.can_draw("象 犬")
    assert not style.can_draw("猫")
    assert style._families(["cat", "犬", "猫"]) == ["DejaVu Sans", "Noto Sans CJK JP"]  # the preferred one first
    assert style._families(["象犬𓂀"]) == ["DejaVu Sans", "Noto Sans CJK JP", "Aardvark", "Other"]
    with style.LIGHT.applied(["象"]):
        assert style.matplotlib.rcParams["font.family"] == ["DejaVu Sans", "Aardvark"]


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("name", ["Last Resort High-Efficiency", ".LastResort", "Noto Color Emoji", "STIXGeneral"])
def test_fonts_that_draw_boxes_or_no_letters_are_not_used(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with_fonts(monkeypatch, {name: "象"})
    assert not style.can_draw("象")


@pytest.mark.usefixtures("fresh")
def test_a_font_file_that_is_gone_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone = entry("Gone", str(tmp_path / "gone.ttf"), style="normal", variant="normal", weight=400)
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [gone])
    assert not style.can_draw("象")
    assert style.can_draw("cat")


@pytest.mark.skipif(not style.LAYS_OUT, reason="needs matplotlib 3.11, which lays right-to-left text out")
@pytest.mark.parametrize("name", [ARABIC, HEBREW, "می\u200cخواهم"])
def test_names_that_run_right_to_left_stand_between_marks(name: str) -> None:
    assert style.label(name, 3) == f"{LRM}{name}{LRM}"


@pytest.mark.skipif(not style.LAYS_OUT, reason="needs matplotlib 3.11, which lays right-to-left text out")
def test_an_arrow_between_right_to_left_names_points_to_the_second() -> None:
    def ink(text: str) -> np.ndarray:
        figure = Figure(figsize=(3, 0.5))
        with style.LIGHT.applied():
            figure.text(0.01, 0.3, text, fontsize=20)
        image = np.asarray(Image.open(io.BytesIO(style.to_png(figure))).convert("L")) < 128
        return image[:, np.flatnonzero(image.any(0))[0] :]

    first, both = ink(style.label(ARABIC, 0)), ink(f"{style.label(ARABIC, 0)} → {style.label(HEBREW, 1)}")
    width = int(np.flatnonzero(first.any(0))[-1]) + 1
    assert (both[:, :width] == first[:, :width]).mean() > 0.99  # the first name stands on the left


def test_without_text_layout_names_that_need_it_become_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "LAYS_OUT", False)
    assert [style.label(name, 3) for name in (ARABIC, HEBREW, "कुत्ता", "a\u200db")] == ["class 3"] * 4
    assert style.label("Čáp", 3) == "Čáp"


@pytest.mark.usefixtures("fresh")
def test_long_names_are_cut_by_their_width_and_between_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    with_fonts(monkeypatch, {"Some": "中q\u0301"})
    assert style.label("中" * 9, 0) == "中" * 9
    assert style.label("中" * 10, 0) == "中" * 8 + "…"
    assert style.label("q\u0301" * 20, 0, 6) == "q\u0301" * 5 + "…"
    assert style.label("a long name", 0, 7) == "a long…"


def test_other_words_show_a_question_mark_for_what_cannot_be_drawn() -> None:
    assert style.printable("kNN · \U000f0000/a\u202eb\n") == "kNN · ?/a?b?"


def test_a_dollar_sign_is_a_dollar_sign() -> None:
    figure = result_figures.confusion_figure(csr_array(np.eye(2, dtype=np.int64)), ["$a_1$", "\\frac{"])
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["$a_1$", "\\frac{"]
    assert not any(t.get_parse_math() for t in figure.axes[0].get_xticklabels())
    style.to_png(figure)


@pytest.mark.parametrize("theme", THEMES)
def test_a_picture_has_its_themes_background_and_the_same_bytes_again(theme: Theme) -> None:
    def draw() -> Figure:
        return pretraining_figures.lr_curve([0.0, 1.0], [0.1, 0.2], theme=theme)

    corner = "#{:02x}{:02x}{:02x}".format(*pixels(draw())[0, 0])
    assert corner == theme.surface
    assert to_png(draw()) == to_png(draw())


def test_drawing_changes_no_setting_of_matplotlib() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    pretraining_figures.lr_curve([0.0, 1.0], [0.1, 0.2], theme=DARK)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cat", "cat"),
        ("Čáp", "Čáp"),
        ("$x^2$ & <b>", "$x^2$ & <b>"),
        ("a very long name of a class", "a very long name…"),
        ("\U0001f9ff\U00013080", "class 4"),  # no font has both
        ("中" * 4 + "\U0001f9ff", "class 4"),
        ("a\u202eb", "class 4"),  # turns the rest of the line around
        ("", "class 4"),
        ("a\nb", "class 4"),
    ],
)
def test_names_are_shown_shortened_or_replaced_by_their_number(name: str, shown: str) -> None:
    assert label(name, 4) == shown


def test_no_name_makes_matplotlib_complain_of_a_missing_glyph() -> None:
    names = ("cat", "象", "قط", "\U00013080", "$\\bogus{$", "ห", "<script>")
    counts = random_confusion(len(names), 200, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for theme in (LIGHT, DARK):
            to_png(result_figures.confusion_figure(csr_array(counts), names, theme=theme))
            to_png(result_figures.per_class_figure(names, [0.5] * 7, [0.5] * 7, [0.5] * 7, [9] * 7, theme=theme))
    assert can_draw("cat")


def test_a_title_that_names_a_file_can_always_be_drawn() -> None:
    figure, _ = style.new_grid(1, 1, 1.0, 0.2, "predictions of caf\udce9\x1b[31m.onnx")
    assert figure.texts[0].get_text() == "predictions of caf??[31m.onnx"
    assert to_png(figure)
