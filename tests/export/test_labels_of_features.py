"""Labels from features: in the numbers of the data where the probe saw some classes only, and beside dead features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simclr_engine.evaluation.linear import fit_linear
from simclr_engine.export.labels import labeller, nearest_neighbour


def _clusters(labels: list[int]) -> NDArray[np.float32]:
    """Features `[N, 4]` that point towards an axis for each label, every row a little apart."""
    random = np.random.default_rng(0)
    return (np.eye(4)[labels] + random.uniform(0, 0.1, (len(labels), 4))).astype(np.float32)


def test_a_probe_that_saw_some_classes_gives_their_numbers_and_not_their_places(tmp_path: Path) -> None:
    truth = np.array([1, 3] * 20)
    features = _clusters(truth.tolist())
    (tmp_path / "evaluation").mkdir()
    fit_linear(features, truth, C=1.0).save(tmp_path / "evaluation" / "toys-linear-pretrained.safetensors")
    found = labeller(tmp_path, 4, None)
    assert found.source == "linear probe toys-linear-pretrained"
    np.testing.assert_array_equal(found.label(features), truth)


def test_an_image_whose_features_are_all_zero_changes_no_other_image_s_neighbour() -> None:
    truth = np.array([0, 1, 2, 3] * 5)
    features = _clusters(truth.tolist())
    dead = np.concatenate([np.zeros((1, 4), np.float32), features])
    rows = nearest_neighbour(None).label(dead)
    np.testing.assert_array_equal(rows[1:], nearest_neighbour(None).label(features) + 1)
    np.testing.assert_array_equal(nearest_neighbour(np.concatenate([[9], truth])).label(dead)[1:], truth)
