"""Several runs in one picture: each is the one that the legend says, and no axis or figure exaggerates."""

from __future__ import annotations

import itertools

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from simclr_engine.report import overlay
from simclr_engine.report.overlay import Trace


def _bars(figure: Figure) -> list[Rectangle]:
    return [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]


def _words(figure: Figure) -> list[str]:
    return [text.get_text().strip() for text in figure.axes[0].texts]


def test_a_bar_has_the_colour_of_its_run_in_the_legend_and_stands_at_its_method() -> None:
    trained = [[0.31, 0.32, 0.33], [0.41, 0.42, 0.43]]
    figure = overlay.accuracy_overlay(["linear", "kNN"], ["a", "b", "c"], trained, [[None] * 3] * 2)
    handles = {h.get_label(): h.get_facecolor() for h in figure.legends[0].legend_handles if isinstance(h, Patch)}
    found = {round(bar.get_width(), 2): bar for bar in _bars(figure)}
    assert len({to_hex(colour) for colour in handles.values()}) == 3
    for m, r in itertools.product(range(2), range(3)):
        bar = found[trained[m][r]]
        assert to_hex(bar.get_facecolor()) == to_hex(handles["abc"[r]])
        assert bar.get_y() > m - 0.5 and bar.get_y() + bar.get_height() < m + 0.5
    for m in range(2):  # the name stands beside the middle of its group, the first run on top
        centres = [found[value].get_y() + found[value].get_height() / 2 for value in trained[m]]
        assert sum(centres) / 3 == pytest.approx(m) and centres == sorted(centres)


def test_figures_beside_bars_are_percents_and_the_random_one_is_written_only_where_there_is_no_bar() -> None:
    figure = overlay.accuracy_overlay(["linear"], ["a", "b"], [[0.5, None]], [[0.2, 0.1]])
    assert sorted(_words(figure)) == ["10.0 random", "50.0"]


def test_accuracies_are_drawn_on_an_axis_from_nothing_on() -> None:
    bars = overlay.accuracy_overlay(["linear"], ["a", "b"], [[0.50, 0.51]], [[None, None]])
    assert bars.axes[0].get_xlim() == (0.0, 1.0)
    curves = overlay.knn_overlay([Trace("a", 0, [1.0, 2.0], [0.50, 0.51])])
    assert curves.axes[0].get_ylim()[0] == 0.0


def test_long_names_that_begin_or_end_alike_are_told_apart() -> None:
    for names in (
        [f"runs-of-the-second-week-of-the-experiment-{i}" for i in range(3)],
        [f"{i}-is-the-number-of-one-of-the-runs-of-the-second-week" for i in range(3)],
    ):
        shown = [overlay.run_label(name, i) for i, name in enumerate(names)]
        assert len(set(shown)) == 3 and all(len(one) <= overlay.LONGEST_RUN for one in shown)


def test_runs_that_no_font_can_spell_have_different_numbers_beside_the_bars() -> None:
    runs = ["\ue000", "\ue001"]  # of private use
    figure = overlay.accuracy_overlay(["linear"], runs, [[0.5, 0.6]], [[None, None]])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["run 1", "run 2", "random encoder"]


def test_images_seen_are_counted_in_thousands() -> None:
    figure = overlay.loss_overlay([Trace("a", 0, [0.0, 50_000.0], [5.0, 4.0])], against="images")
    formatter = figure.axes[0].xaxis.get_major_formatter()
    assert formatter(50_000.0, 0) == "50k"
    assert figure.axes[0].get_xlabel() == "images seen"
