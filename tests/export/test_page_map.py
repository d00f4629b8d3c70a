"""The map on the page: every dot has its own image's class, whatever is sampled, empty or too many to colour."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from fixtures.tiny_probe import write_tiny_probe
from simclr_engine.export import serve
from simclr_engine.export.embedder import open_embedder
from simclr_engine.export.index import EmbeddingIndex
from simclr_engine.export.serve import EmbeddingMap, Service


def _index(counts: dict[str, int], unknown: int = 0) -> EmbeddingIndex:
    """So many vectors of each class, the classes in turns and far apart, and some without a class."""
    random = np.random.default_rng(0)
    classes = [name for i in range(max(counts.values())) for name, n in counts.items() if i < n] + [""] * unknown
    place = {name: 10.0 * (i + 1) for i, name in enumerate(counts)} | {"": -10.0}
    vectors = np.array([[place[name], 0] for name in classes]) + random.uniform(-1, 1, (len(classes), 2))
    paths = [f"{i}.png" for i in range(len(classes))]
    return EmbeddingIndex.build(vectors.astype(np.float32), paths, classes, tuple(counts))


def _drawn(index: EmbeddingIndex, tmp_path: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Dots by the class of their path, and class names of the legend by the same."""
    service = Service(open_embedder(write_tiny_probe(tmp_path / "e.onnx", image_size=8)), index)
    html = service.draw_map()
    dots = {css: steps.count("h0") for css, steps in re.findall(r'<path class="dots ([^"]+)" d="([^"]*)"', html)}
    return dots, dict(re.findall(r'<i class="([^"]+)"></i>([^<]*)</span>', html))


def test_a_sampled_map_keeps_each_point_with_its_own_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "MAP_POINTS", 20)
    index = _index({"ant": 40, "bee": 20, "cat": 10})
    chart = EmbeddingMap.of(index)
    assert len(chart.points) == len(chart.labels) == 20
    places = np.array([chart.place(vector) for vector in index.vectors])
    rows = np.linalg.norm(chart.points[:, None] - places[None], axis=2).argmin(1)
    np.testing.assert_allclose(places[rows], chart.points, atol=1e-6)
    np.testing.assert_array_equal(chart.labels, index.labels[rows])
    assert len(set(rows.tolist())) == 20 and rows.max() > 20  # of all the index, not its first images


def test_a_class_without_images_takes_no_colour_from_the_others(tmp_path: Path) -> None:
    dots, names = _drawn(_index({"ant": 0, "bee": 3, "cat": 5}, unknown=2), tmp_path)
    assert {names[css]: n for css, n in dots.items() if css != "rest"} == {"bee": 3, "cat": 5}
    assert dots["rest"] == 2 and "ant" not in names.values()


def test_of_more_classes_than_colours_the_largest_are_named_and_the_others_grey(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "MAP_CLASSES", 2)
    dots, names = _drawn(_index({"ant": 1, "bee": 4, "cat": 2, "dog": 3}), tmp_path)
    assert {names[css]: n for css, n in dots.items() if css != "rest"} == {"bee": 4, "dog": 3}
    assert dots["rest"] == 3
