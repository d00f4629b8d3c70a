"""Every picture shows the numbers it was given, in both themes, for a few classes and for a thousand."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from fixtures.synthetic_run import random_confusion
from simclr_engine.report import augmentation, confusion, curves, embedding
from simclr_engine.report.style import DARK, LIGHT, THEMES, Theme, can_draw, label, to_png

NAMES = ("ant", "bee", "cat")


def texts(figure: Figure) -> str:
    """All words of a figure."""
    figure.canvas.draw()
    found = [t for axes in figure.axes for t in [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]]
    found += [t for axes in figure.axes for t in [*axes.get_xticklabels(), *axes.get_yticklabels()]]
    found += [t for axes in figure.axes if axes.title for t in [axes._left_title]]
    found += [t for legend in figure.legends for t in legend.get_texts()]
    return "\n".join(t.get_text() for t in found)


def pixels(figure: Figure) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(to_png(figure))).convert("RGB"))


def test_the_loss_curve_draws_the_loss_and_its_chance_level() -> None:
    figure = curves.loss_curve([1.0, 2.0, 3.0], [5.0, 4.0, 3.5], [5.5, 5.5, 5.5], images=512)
    loss, chance = figure.axes[0].lines
    np.testing.assert_array_equal(loss.get_xydata(), [[1, 5], [2, 4], [3, 3.5]])
    np.testing.assert_array_equal(chance.get_ydata(), [5.5] * 3)
    assert "NT-Xent loss (nats)" in texts(figure)
    assert "epoch (of 512 images)" in texts(figure)


def test_chance_of_finding_the_positive_is_one_in_the_number_of_candidates() -> None:
    figure = curves.contrast_curve([1.0, 2.0], [0.1, 0.2], [0.3, 0.4], [np.log(255)] * 2)
    top1, p_pos, chance = figure.axes[0].lines
    np.testing.assert_array_equal(top1.get_ydata(), [0.3, 0.4])
    np.testing.assert_array_equal(p_pos.get_ydata(), [0.1, 0.2])
    np.testing.assert_allclose(chance.get_ydata(), 1 / 255)


def test_the_monitors_draw_their_columns_and_their_reference_lines() -> None:
    knn = curves.knn_curve([1.0], [0.4], monitored=500, classes=10)
    assert knn.axes[0].lines[0].get_ydata() == [0.4]
    assert knn.axes[0].lines[1].get_ydata() == [0.1, 0.1]
    spread = curves.feature_curve([1.0, 2.0], [0.03, 0.02], [40.0, 30.0], dim=256)
    assert spread.axes[0].lines[1].get_ydata() == [1 / 16, 1 / 16]
    np.testing.assert_array_equal(spread.axes[1].lines[0].get_ydata(), [40, 30])
    assert len(curves.feature_curve([1.0], [0.03], None).axes) == 1
    rate = curves.lr_curve([0.0, 1.0], [0.1, 0.2])
    np.testing.assert_array_equal(rate.axes[0].lines[0].get_ydata(), [0.1, 0.2])


def test_the_confusion_matrix_shows_shares_of_each_true_class() -> None:
    counts = np.array([[8, 2, 0], [0, 0, 0], [1, 1, 2]])
    figure = confusion.confusion_figure(counts, NAMES, title="linear probe")
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), [[0.8, 0.2, 0], [0, 0, 0], [0.25, 0.25, 0.5]])
    assert [t.get_text() for t in figure.axes[0].texts] == ["80", "20", "25", "25", "50"]
    assert "ant (10)" in texts(figure)
    assert "Linear probe: % of each true class (n = 14)" in texts(figure)


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
    text = confusion._readable(tuple(cell), theme)
    both = sorted([luminance(cell), luminance(np.array([int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)]))])
    assert (both[1] + 0.05) / (both[0] + 0.05) >= 4.5  # WCAG AA


def test_a_thousand_classes_become_a_list_of_confusions() -> None:
    names = [f"class number {i}" for i in range(1000)]
    counts = random_confusion(1000, 20_000, 0.5)
    counts[7, 9] += 500
    figure = confusion.confusion_figure(counts, names)
    assert not figure.axes[0].images
    bars = figure.axes[0].patches
    assert len(bars) == confusion.SHOWN
    assert bars[0].get_width() == counts[7, 9]
    assert figure.axes[0].get_yticklabels()[0].get_text() == "class number 7 → class number 9"
    assert pixels(figure).shape[0] < 1500


def test_scores_per_class_are_sorted_and_beside_the_random_encoders() -> None:
    figure = confusion.per_class_figure(
        NAMES, [0.5, 0.9, 0.1], [0.4, 0.8, 0.2], [0.3, 0.7, 0.0], [10, 20, 30], scratch_accuracy=[0.2, 0.3, 0.05]
    )
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["bee (20)", "ant (10)", "cat (30)"]
    accuracy, f1, iou = ([bar.get_width() for bar in group] for group in axes.containers)
    assert (accuracy, f1, iou) == ([0.9, 0.5, 0.1], [0.8, 0.4, 0.2], [0.7, 0.3, 0.0])
    assert [float(x) for x, _ in axes.collections[0].get_offsets()] == [0.3, 0.2, 0.05]


def test_a_thousand_classes_show_their_best_and_worst() -> None:
    accuracy = np.linspace(0, 1, 1000).tolist()
    figure = confusion.per_class_figure([f"c{i}" for i in range(1000)], accuracy, accuracy, accuracy, [5] * 1000)
    shown = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert shown == [f"c{i}" for i in (999, 998, 997, 996, 995, 994, 993, 6, 5, 4, 3, 2, 1, 0)]


def test_principal_components_equal_an_svd() -> None:
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(200, 6)) * [9, 5, 2, 1, 0.5, 0.1] + 4).astype(np.float32)
    coordinates, share = embedding.principal_components(features)
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    expected = left[:, :2] * singular[:2]
    signs = np.sign((coordinates * expected).sum(0))
    np.testing.assert_allclose(coordinates * signs, expected, atol=1e-3)
    np.testing.assert_allclose(share, singular[:2] ** 2 / (singular**2).sum(), rtol=1e-5)


def test_constant_features_still_have_a_map() -> None:
    coordinates, share = embedding.principal_components(np.ones((10, 3), np.float32))
    assert np.abs(coordinates).max() < 1e-6
    assert np.isfinite(share).all()
    embedding.embedding_figure(coordinates, np.zeros(10, np.int64), ("one",))


def test_the_map_draws_every_point_of_a_class_under_its_name() -> None:
    coordinates = np.arange(20, dtype=np.float32).reshape(10, 2)
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    figure = embedding.embedding_figure(coordinates, labels, NAMES)
    for index, points in enumerate(figure.axes[0].collections):
        np.testing.assert_array_equal(points.get_offsets(), coordinates[labels == index])
    assert [t.get_text() for t in figure.legends[0].get_texts()] == list(NAMES)


def test_a_large_map_draws_every_point_and_names_the_largest_classes() -> None:
    coordinates = np.random.default_rng(0).normal(size=(6000, 2)).astype(np.float32)
    labels = np.append(np.arange(5990) % 30, [25] * 10)
    figure = embedding.embedding_figure(coordinates, labels, [f"c{i}" for i in range(30)], total=9000)
    drawn = np.concatenate([np.asarray(c.get_offsets()) for c in figure.axes[0].collections])
    np.testing.assert_array_equal(np.sort(drawn, axis=0), np.sort(coordinates.astype(np.float64), axis=0))
    assert "n = 6,000 of 9,000" in texts(figure)
    named = [t.get_text() for t in figure.legends[0].get_texts()]
    assert named == ["the other 10 classes", *(f"c{i}" for i in range(19)), "c25"]


def test_no_class_of_a_large_map_lies_on_top_of_all_others() -> None:
    labels = np.arange(2000) % 2
    figure = embedding.embedding_figure(np.zeros((2000, 2), np.float32), labels, ("a", "b"))
    colours = [tuple(c.get_facecolor()[0]) for c in figure.axes[0].collections]
    assert len(set(colours)) == 2
    assert colours[::2] == [colours[0]] * embedding.LAYERS


@pytest.mark.parametrize("views", [1, 4, 16])
def test_the_augmentation_sheet_shows_the_original_and_every_view(views: int) -> None:
    rng = np.random.default_rng(0)
    original, batch = rng.integers(0, 256, (9, 9, 3), np.uint8), rng.integers(0, 256, (views, 7, 7, 3), np.uint8)
    figure = augmentation.augmentation_sheet(original, batch)
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]
    assert len(shown) == 1 + views
    np.testing.assert_array_equal(shown[0], original)
    for got, expected in zip(shown[1:], batch, strict=True):
        np.testing.assert_array_equal(got, expected)
    several = augmentation.augmentation_sheet(np.stack([original] * 2), np.stack([batch] * 2))
    assert sum(bool(axes.images) for axes in several.axes) == 2 * (1 + views)


def test_views_that_do_not_belong_to_the_originals_are_refused() -> None:
    with pytest.raises(ValueError, match="need originals"):
        augmentation.augmentation_sheet(np.zeros((2, 8, 8, 3), np.uint8), np.zeros((3, 4, 8, 8, 3), np.uint8))


@pytest.mark.parametrize("theme", THEMES)
def test_a_picture_has_the_background_of_its_theme_and_the_same_bytes_again(theme: Theme) -> None:
    def draw() -> Figure:
        return curves.lr_curve([0.0, 1.0], [0.1, 0.2], theme=theme)

    corner = "#{:02x}{:02x}{:02x}".format(*pixels(draw())[0, 0])
    assert corner == theme.surface
    assert to_png(draw()) == to_png(draw())


def test_drawing_changes_no_setting_of_matplotlib() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    curves.lr_curve([0.0, 1.0], [0.1, 0.2], theme=DARK)
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
            to_png(confusion.confusion_figure(counts, names, theme=theme))
            to_png(confusion.per_class_figure(names, [0.5] * 7, [0.5] * 7, [0.5] * 7, [9] * 7, theme=theme))
    assert can_draw("cat")
