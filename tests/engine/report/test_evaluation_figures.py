"""The pictures of an evaluation show the numbers they were given, for two classes and for a thousand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fixtures.synthetic_run import history
from simclr_engine import report
from simclr_engine.report import calibration, collapse, embedding, gallery, learning, methods, neighbours
from simclr_engine.report.style import DARK, LIGHT, THEMES, Theme, to_png

NAMES = ("ant", "bee", "cat")
THOUSAND = tuple(f"class number {i}" for i in range(1000))


def pictures(count: int, side: int = 4) -> NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def words(figure: Figure) -> list[str]:
    """What stands under each picture."""
    return [axes.get_xlabel() for axes in figure.axes if axes.images]


def marks(figure: Figure) -> list[str]:
    return ["".join(t.get_text() for t in axes.texts) for axes in figure.axes if axes.images]


def frames(figure: Figure) -> list[str]:
    return [to_hex(axes.spines["left"].get_edgecolor()) for axes in figure.axes if axes.images]


def heading(figure: Figure) -> str:
    return figure.texts[0].get_text()


@pytest.mark.parametrize("theme", THEMES)
def test_the_gallery_tells_right_from_wrong_by_colour_and_by_mark(theme: Theme) -> None:
    images, predicted, truth = pictures(3), np.array([0, 1, 2]), np.array([0, 2, 2])
    figure = gallery.gallery_figure(images, NAMES, predicted, np.array([0.93, 0.614, 1.0]), truth, theme=theme)
    assert words(figure) == ["ant\n93 %", "bee\n61 %\nis: cat", "cat\n100 %"]
    assert marks(figure) == ["✓", "✗", "✓"]
    assert frames(figure) == [theme.second, theme.chance, theme.second]
    dashes = [axes.spines["left"].get_linestyle() for axes in figure.axes]
    assert dashes[0] == dashes[2] == "solid" != dashes[1]
    for axes, image in zip(figure.axes, images, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), image)
    assert heading(figure) == "3 images, 2 right"


def test_a_gallery_without_truth_calls_nothing_right_or_wrong() -> None:
    figure = gallery.gallery_figure(pictures(2), NAMES, np.array([0, 1]), np.array([0.5, 0.6]), title="kNN")
    assert marks(figure) == ["", ""]
    assert frames(figure) == [LIGHT.muted] * 2
    assert heading(figure) == "kNN: 2 images"


def test_a_gallery_of_a_thousand_classes_keeps_to_its_width() -> None:
    names = [f"n{i:08d} a terrier with a long name" for i in range(1000)]
    figure = gallery.gallery_figure(pictures(7), names, np.arange(7), np.ones(7), np.arange(7) + 990)
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
        gallery.gallery_figure(pictures(3), NAMES, **given)


def test_a_choice_of_images_is_the_same_for_the_same_seed_only() -> None:
    first = gallery.pick(24, 0, 100)
    np.testing.assert_array_equal(first, gallery.pick(24, 0, 100))
    assert sorted(first) != sorted(gallery.pick(24, 1, 100))
    assert len(set(first.tolist())) == 24
    np.testing.assert_array_equal(gallery.pick(8, 0, 100), first[:8])
    assert sorted(gallery.pick(200, 3, 5)) == [0, 1, 2, 3, 4]
    assert len(gallery.pick(0, 0, 100)) == 0


@pytest.mark.parametrize("names", [NAMES, THOUSAND])
def test_the_neighbour_sheet_marks_neighbours_of_the_querys_class(names: tuple[str, ...]) -> None:
    labels = np.array([[0, 1], [2, 1]])
    images = np.stack([pictures(2), pictures(3)[:2]])
    queries = pictures(2)
    figure = neighbours.neighbours_figure(
        queries, np.array([0, 1]), images, labels, np.array([[0.914, -0.0012], [0.5, -0.25]]), names, title="random"
    )
    cut = [name if len(name) <= 12 else f"{name[:11]}…" for name in names[:3]]
    shown = [f"{cut[0]}\nquery", f"{cut[0]}\n0.91", f"{cut[1]}\n0.00"]
    assert words(figure) == [*shown, f"{cut[1]}\nquery", f"{cut[2]}\n0.50", f"{cut[1]}\n−0.25"]
    assert marks(figure) == ["", "✓", "✗", "", "✗", "✓"]
    assert frames(figure) == [LIGHT.text, LIGHT.second, LIGHT.chance, LIGHT.text, LIGHT.chance, LIGHT.second]
    drawn = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    np.testing.assert_array_equal(drawn, [queries[0], *images[0], queries[1], *images[1]])
    assert heading(figure) == "Random: 2 of 4 neighbours are of the query's class"


def test_neighbours_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="need queries"):
        neighbours.neighbours_figure(
            pictures(2), np.zeros(2, int), pictures(2)[:, None], np.zeros((2, 2), int), np.zeros((2, 2)), NAMES
        )


def test_tsne_takes_rows_at_even_distances_and_keeps_groups_together() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(120) // 40
    features = (np.eye(3)[labels] * 20 + rng.normal(size=(120, 3))).astype(np.float32)
    coordinates, rows = embedding.tsne(features, limit=60)
    np.testing.assert_array_equal(np.bincount(labels[rows]), [20, 20, 20])  # also of a file sorted by class
    distance = np.linalg.norm(coordinates[:, None] - coordinates[None], axis=-1) + 1e9 * np.eye(60)
    np.testing.assert_array_equal(labels[rows][distance.argmin(1)], labels[rows])
    again, _ = embedding.tsne(features, limit=60)
    np.testing.assert_array_equal(again, coordinates)


@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.parametrize("dimensions", [1, 4])
def test_few_or_constant_features_still_have_a_tsne_map(images: int, dimensions: int) -> None:
    coordinates, rows = embedding.tsne(np.ones((images, dimensions), np.float32))
    assert coordinates.shape == (images, 2)
    assert np.isfinite(coordinates).all()
    np.testing.assert_array_equal(rows, np.arange(images))


def test_features_that_are_not_finite_have_no_tsne_map() -> None:
    with pytest.raises(ValueError, match="not finite"):
        embedding.tsne(np.array([[1.0, np.nan]], np.float32))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each t-SNE was computed of, from here on; instead of it, the first two columns."""
    calls: list[int] = []

    def computed(features: NDArray[np.float32], limit: int, seed: int) -> tuple[Any, Any]:
        calls.append(len(features))
        return np.ascontiguousarray(features[:limit, :2]), np.arange(min(limit, len(features)))

    monkeypatch.setattr(embedding, "tsne", computed)
    return calls


def test_a_map_is_computed_once_for_the_same_features(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls, features = counted(monkeypatch), np.arange(40, dtype=np.float32).reshape(10, 4)
    first = embedding.cached_tsne(features, tmp_path)
    again = embedding.cached_tsne(features.copy(), tmp_path)
    assert calls == [10]
    np.testing.assert_array_equal(again[0], first[0])
    np.testing.assert_array_equal(again[1], first[1])
    for other in (features + 1, features.reshape(20, 2), features):
        embedding.cached_tsne(other, tmp_path)
    embedding.cached_tsne(features, tmp_path, seed=1)
    embedding.cached_tsne(features, tmp_path, limit=4)
    assert calls == [10, 10, 20, 10, 10]


def damage(path: Path, how: str) -> None:
    coordinates = np.zeros((10, 2), np.float32)
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "not finite":
        np.savez(path, coordinates=coordinates * np.nan, rows=np.arange(10))
    elif how == "rows beyond the end":
        np.savez(path, coordinates=coordinates, rows=np.arange(10) + 1)
    else:
        np.savez(path, coordinates=coordinates[:5], rows=np.arange(5))


@pytest.mark.parametrize("how", ["cut", "empty", "not finite", "rows beyond the end", "too few"])
def test_a_broken_map_is_computed_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str) -> None:
    calls, features = counted(monkeypatch), np.arange(40, dtype=np.float32).reshape(10, 4)
    first = embedding.cached_tsne(features, tmp_path)
    (stored,) = tmp_path.iterdir()
    damage(stored, how)
    np.testing.assert_array_equal(embedding.cached_tsne(features, tmp_path)[0], first[0])
    assert calls == [10, 10]
    embedding.cached_tsne(features, tmp_path)
    assert calls == [10, 10]


def test_a_map_that_cannot_be_stored_is_still_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counted(monkeypatch)
    features = np.arange(40, dtype=np.float32).reshape(10, 4)
    np.testing.assert_array_equal(embedding.cached_tsne(features, tmp_path / "gone")[0], features[:, :2])


def lines(figure: Figure, panel: int) -> dict[str, Any]:
    return {str(line.get_label()): line for line in figure.axes[panel].lines}


def test_learning_curves_of_both_encoders_share_their_axes() -> None:
    trained, scratch = history(6, 0.8), history(6, 0.4)
    steps = [{"fold": 0.0, "step": float(i), "train_loss": 1 / i} for i in range(1, 9)]
    figure = learning.training_figure(trained, scratch, trained_steps=steps, reached=3, images=300, title="Head")
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
    assert figure.axes[0].get_ylabel() == "accuracy (300 images)"
    assert [axes.get_xlabel() for axes in figure.axes[:5]] == ["epoch"] * 4 + ["step"]


def test_folds_are_thin_lines_around_their_mean_in_a_band_of_one_deviation() -> None:
    rows = history(4, 0.8, folds=3)
    figure = learning.training_figure(rows, scored="held-out fold")
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
    figure = learning.training_figure(history(2, 0.5), trained_steps=steps)
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
    at, values = learning.by_fold(rows, "step", "x")
    assert at.tolist() == [2.0]
    assert values.tolist() == [[3.0], [5.0]]


def test_one_encoder_alone_and_one_epoch_alone_have_their_curves() -> None:
    to_png(learning.training_figure((), history(1, 0.5), reached=None, theme=DARK))
    with pytest.raises(ValueError, match="no history"):
        learning.training_figure()


def test_bars_stand_for_accuracies_and_whiskers_for_their_uncertainty() -> None:
    figure = methods.accuracy_bars(
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
    figure = methods.label_efficiency_figure(
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


def test_the_spectrum_is_that_of_an_svd() -> None:
    features = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32) + 3
    found = collapse.spectrum(features)
    singular = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(found.values, singular, rtol=1e-6)
    share = singular / singular.sum()
    assert found.effective_rank == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)


def test_collapse_is_one_direction_and_one_class() -> None:
    spread = collapse.spectrum(np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32))
    point = collapse.spectrum(np.ones((300, 8), np.float32))
    counts = {"trained_counts": np.array([30, 30, 40]), "scratch_counts": np.array([0, 100, 0])}
    figure = collapse.collapse_figure(spread, point, class_names=NAMES, support=np.array([50, 25, 25]), **counts)
    upper, lower = figure.axes
    assert point.effective_rank == pytest.approx(1.0, abs=1e-3)
    even, one = (np.asarray(line.get_ydata()) for line in upper.lines)
    assert even[-1] > 0.5
    assert one[0] == 1
    assert one[1:].max() < 1e-6
    assert "random: effective rank 1.0 of 8" in [t.get_text() for t in upper.get_legend().get_texts()]
    trained, scratch = ([bar.get_width() for bar in group] for group in lower.containers)
    assert trained == [0.3, 0.3, 0.4]
    assert scratch == [0.0, 1.0, 0.0]
    assert [line.get_xdata()[0] for line in lower.lines] == [0.5, 0.25, 0.25]
    to_png(figure)


def test_a_thousand_classes_become_a_curve_of_the_share_that_the_most_named_have() -> None:
    spread = collapse.spectrum(np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32))
    one = np.zeros(1000, np.int64)
    one[7] = 50
    figure = collapse.collapse_figure(
        spread, None, class_names=THOUSAND, trained_counts=np.ones(1000, np.int64), scratch_counts=one
    )
    even, all_in_one = (np.asarray(line.get_ydata()) for line in figure.axes[1].lines)
    np.testing.assert_allclose(even, np.arange(1, 1001) / 1000)
    np.testing.assert_array_equal(all_in_one, 1.0)
    assert figure.get_figheight() < 8


def test_one_encoder_without_classifiers_has_its_spectrum() -> None:
    figure = collapse.collapse_figure(None, collapse.spectrum(np.eye(3, dtype=np.float32)), images=3)
    assert len(figure.axes) == 1
    assert figure.axes[0].get_title(loc="left") == "Directions that the features use (n = 3)"


def test_reliability_bins_are_those_of_the_calibration_error() -> None:
    confidence = np.array([1 / 15, 1 / 15 + 1e-6, 0.95, 0.99, 1.0])
    right = np.array([True, False, True, True, False])
    figure = calibration.reliability_figure(confidence, right, 0.25, title="kNN")
    upper, lower = figure.axes
    bars = [(round(bar.get_x() + bar.get_width() / 2, 4), bar.get_height()) for bar in upper.containers[0]]
    assert bars == [(round(0.5 / 15, 4), 1.0), (round(1.5 / 15, 4), 0.0), (round(14.5 / 15, 4), pytest.approx(2 / 3))]
    dots = np.asarray(upper.collections[0].get_offsets())
    np.testing.assert_allclose(dots[-1], [(0.95 + 0.99 + 1.0) / 3, 2 / 3])
    shares = [bar.get_height() for bar in lower.containers[0]]
    assert shares[0] == shares[1] == 0.2
    assert shares[14] == pytest.approx(0.6)
    assert upper.get_title(loc="left") == "kNN: calibration error 0.250"


def test_every_picture_is_reached_from_the_package() -> None:
    for name in report.__all__:
        assert getattr(report, name) is not None
    figures = {"gallery_figure", "neighbours_figure", "training_figure", "accuracy_bars", "collapse_figure", "tsne"}
    assert figures | {"reliability_figure", "label_efficiency_figure", "augmentation_sheet"} <= set(report.__all__)
    with pytest.raises(AttributeError):
        _ = report.no_such_picture
