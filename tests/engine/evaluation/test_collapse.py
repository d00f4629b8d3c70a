"""Feature statistics equal their definitions and call a collapse by its name."""

from __future__ import annotations

import numpy as np
import pytest

from simclr_engine.evaluation.collapse import feature_statistics


def test_effective_rank_equals_rankme_from_a_full_svd() -> None:
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(400, 32)) * np.geomspace(1, 1e-3, 32) + 0.3).astype(np.float32)
    share = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    share = share / share.sum() + 1e-12
    assert feature_statistics(features).effective_rank == pytest.approx(
        np.exp(-(share * np.log(share)).sum()), rel=1e-6
    )


@pytest.mark.parametrize("rank", [1, 3, 20])
def test_effective_rank_counts_equal_orthogonal_directions(rank: int) -> None:
    features = np.zeros((60, 20), np.float32)
    features[np.arange(60), np.arange(60) % rank] = 2.0
    assert feature_statistics(features).effective_rank == pytest.approx(rank, rel=1e-6)


def test_spread_of_isotropic_features_is_one_over_root_d() -> None:
    statistics = feature_statistics(np.random.default_rng(0).normal(size=(5000, 64)).astype(np.float32))
    assert statistics.std == pytest.approx(1 / 8, rel=0.02)
    assert not statistics.collapsed
    assert statistics.note() is None


def test_features_that_hardly_differ_are_called_collapsed() -> None:
    rng = np.random.default_rng(0)
    features = (rng.normal(size=64) + 1e-3 * rng.normal(size=(500, 64))).astype(np.float32)
    statistics = feature_statistics(features)
    assert statistics.collapsed
    assert "nearly constant" in str(statistics.note())
    assert statistics.std == pytest.approx(
        (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float64).std(0).mean(), rel=1e-3
    )


def test_all_zero_features_give_numbers() -> None:
    statistics = feature_statistics(np.zeros((10, 4), np.float32))
    assert np.isfinite([statistics.std, statistics.effective_rank]).all()
    assert statistics.collapsed
