"""Maps, neighbours and spectra show the features they were given, for two classes and for a thousand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fixtures.figure_parts import frames, heading, marks, pictures, texts, words
from simclr_engine.report import feature_figures
from simclr_engine.report.style import LIGHT, to_png

NAMES = ("ant", "bee", "cat")

THOUSAND = tuple(f"class number {i}" for i in range(1000))


@pytest.mark.parametrize("names", [NAMES, THOUSAND])
def test_the_neighbour_sheet_marks_neighbours_of_the_querys_class(names: tuple[str, ...]) -> None:
    labels = np.array([[0, 1], [2, 1]])
    images = np.stack([pictures(2), pictures(3)[:2]])
    queries = pictures(2)
    figure = feature_figures.neighbours_figure(
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
        feature_figures.neighbours_figure(
            pictures(2), np.zeros(2, int), pictures(2)[:, None], np.zeros((2, 2), int), np.zeros((2, 2)), NAMES
        )


def test_tsne_takes_rows_at_even_distances_and_keeps_groups_together() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(120) // 40
    features = (np.eye(3)[labels] * 20 + rng.normal(size=(120, 3))).astype(np.float32)
    coordinates, rows = feature_figures.tsne(features, limit=60)
    np.testing.assert_array_equal(np.bincount(labels[rows]), [20, 20, 20])  # also of a file sorted by class
    distance = np.linalg.norm(coordinates[:, None] - coordinates[None], axis=-1) + 1e9 * np.eye(60)
    np.testing.assert_array_equal(labels[rows][distance.argmin(1)], labels[rows])
    again, _ = feature_figures.tsne(features, limit=60)
    np.testing.assert_array_equal(again, coordinates)


@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.parametrize("dimensions", [1, 4])
def test_few_or_constant_features_still_have_a_tsne_map(images: int, dimensions: int) -> None:
    coordinates, rows = feature_figures.tsne(np.ones((images, dimensions), np.float32))
    assert coordinates.shape == (images, 2)
    assert np.isfinite(coordinates).all()
    np.testing.assert_array_equal(rows, np.arange(images))


def test_features_that_are_not_finite_have_no_tsne_map() -> None:
    with pytest.raises(ValueError, match="not finite"):
        feature_figures.tsne(np.array([[1.0, np.nan]], np.float32))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each t-SNE was computed of, from here on; instead of it, the first two columns."""
    calls: list[int] = []

    def computed(features: NDArray[np.float32], limit: int, seed: int) -> tuple[Any, Any]:
        calls.append(len(features))
        return np.ascontiguousarray(features[:limit, :2]), np.arange(min(limit, len(features)))

    monkeypatch.setattr(feature_figures, "tsne", computed)
    return calls


def test_a_map_is_computed_once_for_the_same_features(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls, features = counted(monkeypatch), np.arange(40, dtype=np.float32).reshape(10, 4)
    first = feature_figures.cached_tsne(features, tmp_path)
    again = feature_figures.cached_tsne(features.copy(), tmp_path)
    assert calls == [10]
    np.testing.assert_array_equal(again[0], first[0])
    np.testing.assert_array_equal(again[1], first[1])
    for other in (features + 1, features.reshape(20, 2), features):
        feature_figures.cached_tsne(other, tmp_path)
    feature_figures.cached_tsne(features, tmp_path, seed=1)
    feature_figures.cached_tsne(features, tmp_path, limit=4)
    feature_figures.cached_tsne(features, tmp_path)
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
    first = feature_figures.cached_tsne(features, tmp_path)
    (stored,) = tmp_path.iterdir()
    damage(stored, how)
    np.testing.assert_array_equal(feature_figures.cached_tsne(features, tmp_path)[0], first[0])
    assert calls == [10, 10]
    feature_figures.cached_tsne(features, tmp_path)
    assert calls == [10, 10]


def test_a_map_that_cannot_be_stored_is_still_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counted(monkeypatch)
    features = np.arange(40, dtype=np.float32).reshape(10, 4)
    np.testing.assert_array_equal(feature_figures.cached_tsne(features, tmp_path / "gone")[0], features[:, :2])


def test_the_spectrum_is_that_of_an_svd() -> None:
    features = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32) + 3
    found = feature_figures.spectrum(features)
    singular = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(found.values, singular, rtol=1e-6)
    share = singular / singular.sum()
    assert found.effective_rank == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)


def test_collapse_is_one_direction_and_one_class() -> None:
    spread = feature_figures.spectrum(np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32))
    point = feature_figures.spectrum(np.ones((300, 8), np.float32))
    counts = {"trained_counts": np.array([30, 30, 40]), "scratch_counts": np.array([0, 100, 0])}
    figure = feature_figures.collapse_figure(spread, point, class_names=NAMES, support=np.array([50, 25, 25]), **counts)
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


def test_a_thousand_classes_become_a_curve_of_summed_shares() -> None:
    spread = feature_figures.spectrum(np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32))
    one = np.zeros(1000, np.int64)
    one[7] = 50
    figure = feature_figures.collapse_figure(
        spread, None, class_names=THOUSAND, trained_counts=np.ones(1000, np.int64), scratch_counts=one
    )
    even, all_in_one = (np.asarray(line.get_ydata()) for line in figure.axes[1].lines)
    np.testing.assert_allclose(even, np.arange(1, 1001) / 1000)
    np.testing.assert_array_equal(all_in_one, 1.0)
    assert figure.get_figheight() < 8


def test_one_encoder_without_classifiers_has_its_spectrum() -> None:
    figure = feature_figures.collapse_figure(None, feature_figures.spectrum(np.eye(3, dtype=np.float32)), images=3)
    assert len(figure.axes) == 1
    assert figure.get_suptitle() == "Directions that the features use\n(n = 3)"


def test_what_each_class_is_named_for_can_stand_alone() -> None:
    figure = feature_figures.collapse_figure(
        None, None, class_names=NAMES, trained_counts=np.array([1, 0, 3]), title="kNN"
    )
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [0.25, 0.0, 0.75]
    assert figure.get_suptitle() == "kNN: predicted classes (n = 4)"


def test_principal_components_equal_an_svd() -> None:
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(200, 6)) * [9, 5, 2, 1, 0.5, 0.1] + 4).astype(np.float32)
    coordinates, share = feature_figures.principal_components(features)
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    expected = left[:, :2] * singular[:2]
    signs = np.sign((coordinates * expected).sum(0))
    np.testing.assert_allclose(coordinates * signs, expected, atol=1e-3)
    np.testing.assert_allclose(share, singular[:2] ** 2 / (singular**2).sum(), rtol=1e-5)


def test_constant_features_still_have_a_map() -> None:
    coordinates, share = feature_figures.principal_components(np.ones((10, 3), np.float32))
    assert np.abs(coordinates).max() < 1e-6
    assert np.isfinite(share).all()
    feature_figures.embedding_figure(coordinates, np.zeros(10, np.int64), ("one",))


def test_the_map_draws_every_point_of_a_class_under_its_name() -> None:
    coordinates = np.arange(20, dtype=np.float32).reshape(10, 2)
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    figure = feature_figures.embedding_figure(coordinates, labels, NAMES)
    for index, points in enumerate(figure.axes[0].collections):
        np.testing.assert_array_equal(points.get_offsets(), coordinates[labels == index])
    assert [t.get_text() for t in figure.legends[0].get_texts()] == list(NAMES)


def test_a_large_map_draws_every_point_and_names_the_largest_classes() -> None:
    coordinates = np.random.default_rng(0).normal(size=(6000, 2)).astype(np.float32)
    labels = np.append(np.arange(5990) % 30, [25] * 10)
    figure = feature_figures.embedding_figure(coordinates, labels, [f"c{i}" for i in range(30)], total=9000)
    drawn = np.concatenate([np.asarray(c.get_offsets()) for c in figure.axes[0].collections])
    np.testing.assert_array_equal(np.sort(drawn, axis=0), np.sort(coordinates.astype(np.float64), axis=0))
    assert "n = 6,000 of 9,000" in texts(figure)
    named = [t.get_text() for t in figure.legends[0].get_texts()]
    assert named == ["the other 10 classes", *(f"c{i}" for i in range(19)), "c25"]


def test_no_class_of_a_large_map_lies_on_top_of_all_others() -> None:
    labels = np.arange(2000) % 2
    figure = feature_figures.embedding_figure(np.zeros((2000, 2), np.float32), labels, ("a", "b"))
    colours = [tuple(c.get_facecolor()[0]) for c in figure.axes[0].collections]
    assert len(set(colours)) == 2
    assert colours[::2] == [colours[0]] * feature_figures.LAYERS
