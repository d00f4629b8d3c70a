"""The pictures of results show the numbers they were given, for two classes and for a thousand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.sparse import csr_array

from fixtures.figure_parts import frames, heading, marks, pictures, pixels, texts, words
from fixtures.synthetic_run import history, random_confusion
from simclr_engine.report import result_figures
from simclr_engine.report.style import DARK, LIGHT, THEMES, Theme, to_png

NAMES = ("ant", "bee", "cat")


@pytest.mark.parametrize("theme", THEMES)
def test_the_gallery_tells_right_from_wrong_by_colour_and_by_mark(theme: Theme) -> None:
    images, predicted, truth = pictures(3), np.array([0, 1, 2]), np.array([0, 2, 2])
    figure = result_figures.gallery_figure(images, NAMES, predicted, np.array([0.93, 0.614, 1.0]), truth, theme=theme)
    assert words(figure) == ["ant\n93 %", "bee\n61 %\nis: cat", "cat\n100 %"]
    assert marks(figure) == ["✓", "✗", "✓"]
    assert frames(figure) == [theme.second, theme.chance, theme.second]
    dashes = [axes.spines["left"].get_linestyle() for axes in figure.axes]
    assert dashes[0] == dashes[2] == "solid" != dashes[1]
    for axes, image in zip(figure.axes, images, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), image)
    assert heading(figure) == "3 images, 2 right"


def test_a_gallery_without_truth_calls_nothing_right_or_wrong() -> None:
    figure = result_figures.gallery_figure(pictures(2), NAMES, np.array([0, 1]), np.array([0.5, 0.6]), title="kNN")
    assert marks(figure) == ["", ""]
    assert frames(figure) == [LIGHT.muted] * 2
    assert heading(figure) == "kNN: 2 images"


def test_a_gallery_of_a_thousand_classes_keeps_to_its_width() -> None:
    names = [f"n{i:08d} a terrier with a long name" for i in range(1000)]
    figure = result_figures.gallery_figure(pictures(7), names, np.arange(7), np.ones(7), np.arange(7) + 990)
    FigureCanvasAgg(figure).draw()
    for axes in figure.axes:
        if axes.images:
            label, picture = axes.xaxis.label.get_window_extent(), axes.get_window_extent()
            assert label.width < 1.15 * picture.width
            assert label.y0 > 0
    assert words(figure)[0] == "n00000000 a te…\n100 %\nis: n00000990…"


@pytest.mark.parametrize("wrong", [{"predicted": np.zeros(2, int)}, {"truth": np.zeros(4, int)}])
def test_a_gallery_of_arrays_that_do_not_belong_together_is_refused(wrong: dict[str, Any]) -> None:
    given = {"predicted": np.zeros(3, int), "confidence": np.ones(3), "truth": np.zeros(3, int)} | wrong
    with pytest.raises(ValueError, match="need images"):
        result_figures.gallery_figure(pictures(3), NAMES, **given)


def test_a_choice_of_images_is_the_same_for_the_same_seed_only() -> None:
    first = result_figures.pick(24, 0, 100)
    np.testing.assert_array_equal(first, result_figures.pick(24, 0, 100))
    assert sorted(first) != sorted(result_figures.pick(24, 1, 100))
    assert len(set(first.tolist())) == 24
    np.testing.assert_array_equal(result_figures.pick(8, 0, 100), first[:8])
    assert sorted(result_figures.pick(200, 3, 5)) == [0, 1, 2, 3, 4]
    assert len(result_figures.pick(0, 0, 100)) == 0


def lines(figure: Figure, panel: int) -> dict[str, Any]:
    return {str(line.get_label()): line for line in figure.axes[panel].lines}


def test_learning_curves_of_both_encoders_share_their_axes() -> None:
    trained, scratch = history(6, 0.8), history(6, 0.4)
    steps = [{"fold": 0.0, "step": float(i), "train_loss": 1 / i} for i in range(1, 9)]
    figure = result_figures.training_figure(trained, scratch, trained_steps=steps, reached=3, images=300, title="Head")
    for panel, column in enumerate(("test_accuracy", "test_loss", "train_loss", "lr")):
        for name, rows in (("pretrained encoder", trained), ("random encoder", scratch)):
            line = lines(figure, panel)[name]
            np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3, 4, 5, 6])
            np.testing.assert_allclose(line.get_ydata(), [row[column] for row in rows])
    accuracy = lines(figure, 0)
    np.testing.assert_allclose(accuracy["final accuracy, random encoder"].get_ydata(), [0.4, 0.4])
    assert accuracy["reached by the pretrained one: epoch 3"].get_xdata()[0] == 3
    (per_step,) = figure.axes[4].lines
    np.testing.assert_array_equal(per_step.get_xydata(), [[i, 1 / i] for i in range(1, 9)])
    assert figure.axes[0].get_title(loc="left") == "Test accuracy (300 images)"
    assert [axes.get_xlabel() for axes in figure.axes[:5]] == ["epoch"] * 4 + ["step"]


def test_folds_are_thin_lines_around_their_mean_in_a_band_of_one_deviation() -> None:
    rows = history(4, 0.8, folds=3)
    figure = result_figures.training_figure(rows, scored="held-out fold")
    axes = figure.axes[0]
    values = np.array([[row["test_accuracy"] for row in rows if row["fold"] == fold] for fold in (1, 2, 3)])
    *thin, mean = axes.lines
    np.testing.assert_allclose([line.get_ydata() for line in thin], values)
    np.testing.assert_allclose(mean.get_ydata(), values.mean(0))
    assert mean.get_label() == "pretrained encoder: mean of 3 folds ± sd"
    assert mean.get_linewidth() > 2 * thin[0].get_linewidth()
    (band,) = axes.collections
    edges = band.get_paths()[0].vertices
    at_two = edges[edges[:, 0] == 2, 1]
    np.testing.assert_allclose([at_two.min(), at_two.max()], values[:, 1].mean() + 0.01 * np.array([-1, 1]))
    assert axes.get_title(loc="left") == "Held-out fold accuracy"


def test_many_steps_are_drawn_faintly_under_their_running_mean() -> None:
    steps = [{"fold": 0.0, "step": float(i), "train_loss": float(i % 2)} for i in range(1, 401)]
    figure = result_figures.training_figure(history(2, 0.5), trained_steps=steps)
    raw, smooth = figure.axes[4].lines
    np.testing.assert_array_equal(raw.get_ydata(), [row["train_loss"] for row in steps])
    assert raw.get_alpha() < 0.5
    np.testing.assert_allclose(smooth.get_ydata()[20:], 0.5)  # of 20 steps, half are 1


def test_only_what_all_folds_have_is_averaged() -> None:
    rows = [
        {"fold": 1.0, "step": 1.0, "x": 2.0},
        {"fold": 1.0, "step": 2.0, "x": 3.0},
        {"fold": 2.0, "step": 2.0, "x": 5.0},
    ]
    at, values = result_figures.by_fold(rows, "step", "x")
    assert at.tolist() == [2.0]
    assert values.tolist() == [[3.0], [5.0]]


def test_one_encoder_alone_and_one_epoch_alone_have_their_curves() -> None:
    to_png(result_figures.training_figure((), history(1, 0.5), reached=None, theme=DARK))
    with pytest.raises(ValueError, match="no history"):
        result_figures.training_figure()


def test_bars_stand_for_accuracies_and_whiskers_for_their_uncertainty() -> None:
    figure = result_figures.accuracy_bars(
        ["linear probe", "supervised"],
        [0.6, None],
        [0.4, 0.9],
        trained_error=[0.02, None],
        scratch_error=[0.03, 0.01],
        chance=[0.1, 0.2],
    )
    axes = figure.axes[0]
    bars = {(round(bar.get_y() + bar.get_height() / 2, 3), bar.get_width()) for bar in axes.patches}
    assert bars == {(-0.2, 0.6), (0.2, 0.4), (1.2, 0.9)}
    ends = {(round(float(a[0]), 3), round(float(b[0]), 3)) for c in axes.collections for a, b in c.get_segments()}
    assert ends == {(0.58, 0.62), (0.37, 0.43), (0.89, 0.91)}
    chance = [line for line in axes.lines if to_hex(line.get_color()) == LIGHT.chance]
    assert [list(line.get_xdata()) for line in chance] == [[0.1, 0.1], [0.2, 0.2]]
    assert [t.get_text().strip() for t in axes.texts] == ["60.0 %", "40.0 %", "90.0 %"]
    assert axes.get_xlim()[1] > 0.91
    assert [t.get_text() for t in axes.get_yticklabels()] == ["linear probe", "supervised"]


def test_labels_are_counted_on_a_logarithmic_axis() -> None:
    figure = result_figures.label_efficiency_figure(
        [0.01, 0.1, 1.0],
        [0.4, None, 0.8],
        [0.1, 0.3, 0.7],
        trained_error=[0.05, None, 0.01],
        labelled=[5, 50, 500],
        chance=0.1,
    )
    axes = figure.axes[0]
    trained, scratch = (container.lines[0] for container in axes.containers)
    np.testing.assert_array_equal(trained.get_xydata(), [[0.01, 0.4], [1.0, 0.8]])
    np.testing.assert_array_equal(scratch.get_ydata(), [0.1, 0.3, 0.7])
    assert axes.get_xscale() == "log"
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1 %\n5", "10 %\n50", "100 %\n500"]


def test_reliability_bins_are_those_of_the_calibration_error() -> None:
    confidence = np.array([1 / 15, 1 / 15 + 1e-6, 0.95, 0.99, 1.0])
    right = np.array([True, False, True, True, False])
    figure = result_figures.reliability_figure(confidence, right, 0.25, title="kNN")
    upper, lower = figure.axes
    bars = [(round(bar.get_x() + bar.get_width() / 2, 4), bar.get_height()) for bar in upper.containers[0]]
    assert bars == [(round(0.5 / 15, 4), 1.0), (round(1.5 / 15, 4), 0.0), (round(14.5 / 15, 4), pytest.approx(2 / 3))]
    dots = np.asarray(upper.collections[0].get_offsets())
    np.testing.assert_allclose(dots[-1], [(0.95 + 0.99 + 1.0) / 3, 2 / 3])
    shares = [bar.get_height() for bar in lower.containers[0]]
    assert shares[0] == shares[1] == 0.2
    assert shares[14] == pytest.approx(0.6)
    assert figure.get_suptitle() == "kNN: calibration error 0.250"


def test_the_confusion_matrix_shows_shares_of_each_true_class() -> None:
    counts = np.array([[8, 2, 0], [0, 0, 0], [1, 1, 2]])
    figure = result_figures.confusion_figure(csr_array(counts), NAMES, title="linear probe")
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), [[0.8, 0.2, 0], [0, 0, 0], [0.25, 0.25, 0.5]])
    assert [t.get_text() for t in figure.axes[0].texts] == ["80", "20", "25", "25", "50"]
    assert "ant (10)" in texts(figure)
    assert "Linear probe:\n% of each true class (n = 14)" in texts(figure)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_numbers_stand_out_from_their_cells(theme: Theme, share: float) -> None:
    def luminance(colour: NDArray[np.float64]) -> float:
        linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    surface, accent = (
        np.array([int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)]) for c in (theme.surface, theme.trained)
    )
    cell = surface + share * (accent - surface)
    text = result_figures._readable(tuple(cell))
    both = sorted([luminance(cell), luminance(np.array([int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)]))])
    assert (both[1] + 0.05) / (both[0] + 0.05) >= 4.5  # WCAG AA


def test_a_thousand_classes_become_a_list_of_confusions() -> None:
    names = [f"class number {i}" for i in range(1000)]
    counts = random_confusion(1000, 20_000, 0.5)
    counts[7, 9] += 500
    figure = result_figures.confusion_figure(csr_array(counts), names)
    assert not figure.axes[0].images
    bars = figure.axes[0].patches
    assert len(bars) == result_figures.SHOWN
    assert bars[0].get_width() == counts[7, 9]
    assert figure.axes[0].get_yticklabels()[0].get_text() == "class number 7 → class number 9"
    assert pixels(figure).shape[0] < 1500


def test_scores_per_class_are_sorted_and_beside_the_random_encoders() -> None:
    figure = result_figures.per_class_figure(
        NAMES, [0.5, 0.9, 0.1], [0.4, 0.8, 0.2], [0.3, 0.7, 0.0], [10, 20, 30], scratch_accuracy=[0.2, 0.3, 0.05]
    )
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["bee (20)", "ant (10)", "cat (30)"]
    accuracy, f1, iou = ([bar.get_width() for bar in group] for group in axes.containers)
    assert (accuracy, f1, iou) == ([0.9, 0.5, 0.1], [0.8, 0.4, 0.2], [0.7, 0.3, 0.0])
    assert [float(x) for x, _ in axes.collections[0].get_offsets()] == [0.3, 0.2, 0.05]


def test_a_thousand_classes_show_their_best_and_worst() -> None:
    accuracy = np.linspace(0, 1, 1000).tolist()
    figure = result_figures.per_class_figure([f"c{i}" for i in range(1000)], accuracy, accuracy, accuracy, [5] * 1000)
    shown = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert shown == [f"c{i}" for i in (999, 998, 997, 996, 995, 994, 993, 6, 5, 4, 3, 2, 1, 0)]
