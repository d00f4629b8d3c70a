"""Several runs in one picture: each is the one that the legend says, and no axis or figure exaggerates."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from simclr_engine.report import comparison_figures
from simclr_engine.report.comparison_figures import Trace


def lines(figure: Any) -> dict[str, tuple[list[float], list[float]]]:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[0].get_lines()}


def test_the_loss_of_each_run_is_drawn_with_its_own_chance_level() -> None:
    traces = [Trace("a", 0, [1.0, 2.0], [5.0, 4.0], [6.0, 6.0]), Trace("b", 1, [1.0, 3.0], [4.5, 3.5], [5.5, 5.5])]
    figure = comparison_figures.loss_overlay(traces, against="hours")
    drawn = lines(figure)
    assert drawn["a"] == ([1.0, 2.0], [5.0, 4.0]) and drawn["b"] == ([1.0, 3.0], [4.5, 3.5])
    chances = [list(line.get_ydata()) for line in figure.axes[0].get_lines() if line.get_linestyle() == ":"]
    assert chances == [[6.0, 6.0], [5.5, 5.5], []]
    assert figure.axes[0].get_xlabel() == "hours of training steps"
    assert figure.axes[0].get_ylabel() == "NT-Xent loss (nats)"
    colours = {line.get_label(): line.get_color() for line in figure.axes[0].get_lines()}
    assert colours["a"] != colours["b"]


def test_a_long_curve_is_a_running_mean_of_the_last_points() -> None:
    values = [float(i % 2) for i in range(400)]
    _, drawn = lines(comparison_figures.loss_overlay([Trace("a", 0, range(400), values)]))["a"]
    assert drawn[0] == 0.0 and drawn[1] == 0.5  # fewer points at the start, not zeros
    assert drawn[10:] == pytest.approx([0.5] * 390)


def test_knn_curves_share_one_chance_level() -> None:
    figure = comparison_figures.knn_overlay([Trace("a", 0, [1.0], [0.5]), Trace("b", 1, [2.0], [0.4])], classes=4)
    assert lines(figure)["chance"][1] == [0.25, 0.25]
    assert "chance" not in lines(comparison_figures.knn_overlay([Trace("a", 0, [1.0], [0.5])]))


def test_a_bar_for_each_run_that_has_the_method() -> None:
    figure = comparison_figures.accuracy_overlay(
        ["linear", "kNN"], ["a", "b"], [[0.5, 0.6], [None, 0.4]], [[0.2, None], [None, 0.1]]
    )
    bars = sorted(bar.get_width() for bar in figure.axes[0].patches)
    assert bars == [0.4, 0.5, 0.6]
    marks = np.concatenate([points.get_offsets() for points in figure.axes[0].collections])
    assert sorted(marks[:, 0]) == [0.1, 0.2]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "random encoder"]


def test_more_runs_than_colours_still_differ() -> None:
    traces = [Trace(f"run-{i}", i, [1.0, 2.0], [1.0, 2.0]) for i in range(20)]
    axes = comparison_figures.knn_overlay(traces).axes[0]
    looks = {(line.get_color(), str(line.get_linestyle()), str(line._dash_pattern)) for line in axes.get_lines()}
    assert len(looks) == 20


def test_a_run_that_no_font_can_spell_is_called_by_its_number() -> None:
    assert comparison_figures.run_label("\ue000", 2) == "run 3"  # of private use
    assert comparison_figures.run_label("_hidden", 0).strip() == "_hidden"
    assert len(comparison_figures.run_label("long" * 30, 0)) <= comparison_figures.LONGEST_RUN


def _bars(figure: Figure) -> list[Rectangle]:
    return [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]


def _words(figure: Figure) -> list[str]:
    return [text.get_text().strip() for text in figure.axes[0].texts]


def test_a_bar_has_its_runs_colour_and_stands_at_its_method() -> None:
    trained = [[0.31, 0.32, 0.33], [0.41, 0.42, 0.43]]
    figure = comparison_figures.accuracy_overlay(["linear", "kNN"], ["a", "b", "c"], trained, [[None] * 3] * 2)
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


def test_a_method_of_one_run_alone_takes_the_room_of_one_bar() -> None:
    figure = comparison_figures.accuracy_overlay(
        ["both", "one"], ["a", "b"], [[0.31, 0.32], [None, 0.42]], [[None] * 2] * 2
    )
    places = {round(bar.get_width(), 2): bar.get_y() + bar.get_height() / 2 for bar in _bars(figure)}
    middles = figure.axes[0].get_yticks()
    assert places[0.42] == pytest.approx(middles[1])
    assert (places[0.31] + places[0.32]) / 2 == pytest.approx(middles[0])
    assert places[0.42] - places[0.32] == pytest.approx((1 + comparison_figures.GAP) * (places[0.32] - places[0.31]))


def test_bars_have_percents_and_the_random_ones_only_without_a_bar() -> None:
    figure = comparison_figures.accuracy_overlay(["linear"], ["a", "b"], [[0.5, None]], [[0.2, 0.1]])
    assert sorted(_words(figure)) == ["10.0 random", "50.0"]


def test_accuracies_are_drawn_on_an_axis_from_nothing_on() -> None:
    bars = comparison_figures.accuracy_overlay(["linear"], ["a", "b"], [[0.50, 0.51]], [[None, None]])
    assert bars.axes[0].get_xlim() == (0.0, 1.0)
    curves = comparison_figures.knn_overlay([Trace("a", 0, [1.0, 2.0], [0.50, 0.51])])
    assert curves.axes[0].get_ylim()[0] == 0.0


def test_long_names_that_begin_or_end_alike_are_told_apart() -> None:
    for names in (
        [f"runs-of-the-second-week-of-the-experiment-{i}" for i in range(3)],
        [f"{i}-is-the-number-of-one-of-the-runs-of-the-second-week" for i in range(3)],
    ):
        shown = [comparison_figures.run_label(name, i) for i, name in enumerate(names)]
        assert len(set(shown)) == 3 and all(len(one) <= comparison_figures.LONGEST_RUN for one in shown)


def test_runs_that_no_font_can_spell_have_different_numbers() -> None:
    runs = ["\ue000", "\ue001"]  # of private use
    figure = comparison_figures.accuracy_overlay(["linear"], runs, [[0.5, 0.6]], [[None, None]])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["run 1", "run 2", "random encoder"]


def test_images_seen_are_counted_in_thousands() -> None:
    figure = comparison_figures.loss_overlay([Trace("a", 0, [0.0, 50_000.0], [5.0, 4.0])], against="images")
    formatter = figure.axes[0].xaxis.get_major_formatter()
    assert formatter(50_000.0, 0) == "50k"
    assert figure.axes[0].get_xlabel() == "images seen"
