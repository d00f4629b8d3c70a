"""The online monitor against the numpy protocol of `evaluate`, and silent towards the host until its end."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fixtures.launches import NoWaiting
from fixtures.training_ranks import SmallNetwork, blobs, recipe_of
from simclr_engine.device import Platform
from simclr_engine.evaluation.features import extract_features
from simclr_engine.evaluation.knn import classify_knn
from simclr_engine.evaluation.metrics import feature_statistics
from simclr_engine.monitor import OnlineMonitor, effective_rank, spread_of_unit_rows

FP32 = Platform(torch.device("cpu"), "fp32", channels_last=True, compile=False)


def test_the_row_is_what_the_protocol_of_evaluate_gives() -> None:
    store, spec = blobs(300), recipe_of().augment
    torch.manual_seed(0)
    network = SmallNetwork(None, recipe_of().head)
    with NoWaiting():
        row = OnlineMonitor(store, spec, 300, FP32)(network)  # type: ignore[arg-type]  # has what it needs of SimCLR
    order = np.random.default_rng(0).permutation(300)
    features = extract_features(network.encoder, store.images[order], spec.mean, spec.std)
    assert store.labels is not None
    labels = store.labels[order]
    vote = classify_knn(features[60:], labels[60:], features[:60], 2, k=10)
    statistics = feature_statistics(features)
    assert 0.3 < row["accuracy"] < 0.95 and row["images"] == 300
    assert row["accuracy"] == pytest.approx((vote.majority == labels[:60]).mean(), abs=1e-6)
    assert row["feature_std"] == pytest.approx(statistics.std, rel=1e-5)
    assert row["rankme"] == pytest.approx(statistics.effective_rank, rel=1e-4)
    assert network.training


def test_ties_go_to_the_nearest_among_the_tied() -> None:
    monitor = OnlineMonitor(blobs(40), recipe_of().augment, 40, FP32)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 3, generator=generator)
    labels = torch.randint(0, 5, (200,), generator=generator)
    monitor._queries, monitor._classes = 80, 5
    vote = classify_knn(features[80:].numpy(), labels[80:].numpy(), features[:80].numpy(), 5, k=10)
    assert 0.05 < float(monitor._accuracy(features, labels)) < 0.6
    assert float(monitor._accuracy(features, labels)) == pytest.approx((vote.majority == labels[:80].numpy()).mean())


@pytest.mark.parametrize("shape", [(50, 8), (8, 50), (3, 1)])
def test_spread_and_rank_are_those_of_the_statistics_of_evaluate(shape: tuple[int, int]) -> None:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -3, shape[1])
    features[0] = 0
    expected = feature_statistics(features.numpy())
    assert float(effective_rank(features)) == pytest.approx(expected.effective_rank, rel=1e-6)
    assert float(spread_of_unit_rows(features)) == pytest.approx(expected.std, rel=1e-6)
