"""The linear probe equals scikit-learn, chooses C from train alone and says when the solver did not converge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from simclr_engine.errors import DataError
from simclr_engine.evaluation import linear
from simclr_engine.evaluation.linear import C_GRID, LinearProbe, fit_linear

Features, Labels = NDArray[np.float32], NDArray[np.int64]


def blobs(classes: int, size: int, dim: int = 12, noise: float = 2.0, seed: int = 0) -> tuple[Features, Labels]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, size)
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    rows = 5.0 + 3.0 * centres[labels] + noise * rng.normal(size=(size, dim))
    return rows.astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_probabilities_equal_scikit_learns_pipeline(classes: int) -> None:
    features, labels = blobs(classes, 400)
    test, _ = blobs(classes, 200, seed=1)
    probe = fit_linear(features, labels, C=0.1)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(features, labels)
    np.testing.assert_allclose(probe.predict_proba(test), pipeline.predict_proba(test), atol=2e-3)
    assert probe.coef.shape == (classes, 12)
    assert probe.coef.dtype == np.float32


def test_the_probe_is_as_accurate_as_plain_scikit_learn() -> None:
    features, labels = blobs(10, 3000, dim=64, noise=9.0)
    test, truth = blobs(10, 3000, dim=64, noise=9.0, seed=1)
    probe = fit_linear(features, labels)
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=probe.C, max_iter=1000)).fit(features, labels)
    ours = (probe.predict_proba(test).argmax(1) == truth).mean()
    assert 0.5 < ours < 0.95  # not trivial
    assert abs(ours - plain.score(test, truth)) <= 0.001


def test_c_is_the_best_of_the_grid_on_a_held_out_part_of_train() -> None:
    # Labels that are mostly noise in many dimensions: strong regularisation generalises, C = 1 memorises.
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 120)).astype(np.float32)
    labels = (features[:, 0] + 2.0 * rng.normal(size=300) > 0).astype(np.int64)
    probe = fit_linear(features, labels)
    assert probe.chosen
    assert max(C_GRID) > probe.C


@pytest.mark.parametrize(("spread", "expected"), [(0.0, 0.1), (0.15, 0.1), (0.25, 0.01), (10.0, 0.001)])
def test_c_is_the_strongest_within_one_standard_error_of_the_best(
    spread: float, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 30 held-out images: the standard error is spread / sqrt(29), 0.028 and 0.046 where it must fall short or do.
    deviations = spread * np.resize([-1.0, 1.0], 30)
    losses = {0.001: 2.0, 0.01: 1.04, 0.1: 1.0, 1.0: 1.01}
    monkeypatch.setattr(linear, "_log_losses", lambda model, *_: losses[model.C] + deviations)
    found = fit_linear(*blobs(3, 300)).C
    assert found == expected


@pytest.mark.parametrize("rounding", [-1e-5, 1e-5])
def test_c_is_the_same_whichever_of_two_equal_losses_is_the_lower(
    rounding: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    spread, mean = {0.001: 0.4, 0.01: 0.5, 0.1: 0.8, 1.0: 1.4}, {0.001: 0.766, 0.01: 0.625, 0.1: 0.625, 1.0: 0.824}
    mean[0.1] += rounding
    monkeypatch.setattr(
        linear, "_log_losses", lambda model, *_: mean[model.C] + spread[model.C] * np.resize([-1.0, 1.0], 30)
    )
    assert fit_linear(*blobs(3, 300)).C == 0.01


def test_the_log_loss_of_a_class_that_was_not_seen_is_that_of_the_smallest_probability() -> None:
    features, labels = blobs(3, 90)
    model = LogisticRegression().fit(features[labels != 1], labels[labels != 1])
    found = linear._log_losses(model, features, labels)
    truth = model.predict_proba(features)[np.arange(90), np.where(labels == 2, 1, 0)]
    np.testing.assert_allclose(found[labels != 1], -np.log(truth[labels != 1]), rtol=1e-6)
    np.testing.assert_allclose(found[labels == 1], 126 * np.log(2), rtol=1e-6)


def test_features_that_differ_by_rounding_give_one_c() -> None:
    # At this mixture, found by bisection, two values of C are right on as many held-out images but for one on the
    # boundary: the choice by accuracy changes with the rounding.
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 10
    features = (
        rng.normal(0, 0.4, (10, 64))[labels] + rng.normal(size=(400, 64)) + 0.4898161 * rng.normal(size=(400, 64))
    )
    relative = np.random.default_rng(1)
    found = {
        fit_linear((features * (1 + 1e-6 * relative.normal(size=features.shape))).astype(np.float32), labels).C
        for _ in range(100)
    }
    assert found == {0.1}


def test_c_stays_at_one_and_says_so_where_a_class_is_too_small_to_choose() -> None:
    features, labels = blobs(3, 12)
    probe = fit_linear(features, labels)
    assert probe.C == 1.0
    assert not probe.chosen
    assert "C stays at 1" in probe.notes[0]


def test_a_solver_that_stops_early_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = blobs(10, 500)
    assert fit_linear(features, labels, C=1.0).notes == ()
    monkeypatch.setattr(linear, "MAX_ITERATIONS", 2)
    (note,) = fit_linear(features, labels, C=1.0).notes
    assert "had not converged after 2 iterations" in note


def test_a_class_missing_from_train_gets_probability_zero_in_its_own_column() -> None:
    features, labels = blobs(3, 300)
    labels = np.where(labels == 1, 3, labels)  # classes 0, 2, 3
    probabilities = fit_linear(features, labels, C=1.0).predict_proba(features, class_count=5)
    assert probabilities.shape == (300, 5)
    np.testing.assert_array_equal(probabilities[:, [1, 4]], 0.0)
    np.testing.assert_allclose(probabilities.sum(1), 1.0, atol=1e-5)
    assert (probabilities.argmax(1) == labels).mean() > 0.8


def test_constant_and_huge_features_do_not_divide_by_zero() -> None:
    features, labels = blobs(3, 300)
    features[:, 0], features[:, 1] = 7.0, 0.0
    features[:, 2] *= 1e6
    probe = fit_linear(features, labels, C=1.0)
    assert probe.scale[0] == probe.scale[1] == 1.0
    assert np.isfinite(probe.predict_proba(features)).all()


def test_a_saved_probe_predicts_the_same(tmp_path: Path) -> None:
    features, labels = blobs(4, 200)
    probe = fit_linear(features, labels)
    probe.save(tmp_path / "probe.safetensors")
    loaded = LinearProbe.load(tmp_path / "probe.safetensors")
    np.testing.assert_array_equal(loaded.predict_proba(features), probe.predict_proba(features))
    assert (loaded.C, loaded.iterations, loaded.chosen) == (probe.C, probe.iterations, probe.chosen)


def test_a_file_that_is_no_probe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "probe.safetensors").write_bytes(b"not a probe")
    with pytest.raises(DataError, match="not a saved linear probe"):
        LinearProbe.load(tmp_path / "probe.safetensors")


def test_one_class_and_features_that_are_not_finite_are_refused() -> None:
    features, labels = blobs(3, 60)
    with pytest.raises(DataError, match="at least two classes"):
        fit_linear(features, np.zeros(60, dtype=np.int64))
    features[3, 2] = np.nan
    with pytest.raises(DataError, match="not finite") as caught:
        fit_linear(features, labels)
    assert caught.value.saw == "1 of 60 rows with NaN or infinity"
