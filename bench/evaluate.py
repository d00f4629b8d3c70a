"""What an evaluation costs once features are computed: probe and kNN beside scikit-learn, maps, the start."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simclr_engine.command_line import command_here
from simclr_engine.errors import UsageError
from simclr_engine.evaluation.knn import classify_knn
from simclr_engine.evaluation.linear import fit_linear
from simclr_engine.evaluation.records import load_embeddings
from simclr_engine.report import principal_components, tsne
from simclr_engine.timing import interleave

from .rows import Floor, Row, missing_row, time_row

PROBE, NEIGHBOURS, MAPS, START = "linear probe", "kNN", "maps of the test features", "start on cached features"
PLAIN = "scikit-learn, lbfgs at the same C"
CLASSES = 10
# Milliseconds on two cores; a machine with fewer or slower cores misses these first.
FLOORS = (
    Floor(PROBE, "ours, C chosen", most=60_000),
    Floor(PROBE, "ours, C chosen", most=0.1, field="lost_points"),
    Floor(NEIGHBOURS, "ours, k = 10 and k = 200", most=20_000),
    Floor(MAPS, "ours, PCA of all and t-SNE of 5,000", most=60_000),
    Floor(START, "ours, both encoders", most=3_000),
)


def floors() -> tuple[Floor, ...]:
    """What must hold on two cores."""
    return FLOORS


def rows(
    repeats: int = 7, train: int = 50_000, test: int = 10_000, dim: int = 512, run: str | None = None
) -> list[Row]:
    """Milliseconds, contenders interleaved; at most three rounds, since a probe takes half a minute.

    Args:
        repeats: timed calls per contender.
        train, test: features of each split; as many as CIFAR-10 has images by default.
        dim: D.
        run: an evaluated run, whose features are then taken instead of synthetic ones, and whose start is timed.
    """
    repeats = min(repeats, 3)
    features = _features_of(run) if run is not None else synthetic_features(train, test, dim)
    return [
        *_probe_rows(repeats, features),
        *_neighbour_rows(repeats, features),
        *_map_rows(repeats, features.queries),
        *_start_rows(repeats, run),
    ]


class Features(NamedTuple):
    """Features of the train split float32 `[train, D]` with labels, and of the test split `[test, D]` with labels."""

    x: NDArray[np.float32]
    labels: NDArray[np.int64]
    queries: NDArray[np.float32]
    truth: NDArray[np.int64]


def synthetic_features(train: int, test: int, dim: int) -> Features:
    """Features as an encoder gives them: not negative, correlated, of classes that overlap."""
    rng, latent = np.random.default_rng(0), 64
    labels = np.arange(train + test) % CLASSES
    centres = rng.normal(0, 0.6, (CLASSES, latent))
    mixing = rng.normal(0, latent**-0.5, (latent, dim))
    hidden = (centres[labels] + rng.normal(0, 1, (train + test, latent))) @ mixing
    features = np.maximum(hidden + rng.normal(0, 0.3, hidden.shape) + 0.3, 0).astype(np.float32)
    return Features(features[:train], labels[:train], features[train:], labels[train:])


def _features_of(run: str) -> Features:
    train, test = (load_embeddings(Path(run) / "embeddings", name) for name in ("train", "test"))
    if train is None or test is None:
        raise UsageError("the run has no features yet", saw=run, fix=command_here("evaluate", Path(run)))
    return Features(np.asarray(train.features), train.labels, np.asarray(test.features), test.labels)


def _probe_rows(repeats: int, features: Features) -> list[Row]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, labels, queries, truth = features
    ours = fit_linear(x, labels)
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=ours.C, max_iter=1000))
    calls: dict[str, Callable[[], object]] = {
        "ours, C chosen": lambda: fit_linear(x, labels),
        "ours, C given": lambda: fit_linear(x, labels, C=ours.C),
        PLAIN: lambda: plain.fit(x, labels),
    }
    timings = interleave(calls, repeats, warmup=0)
    right = 100 * float((ours.predict_proba(queries, CLASSES).argmax(1) == truth).mean())
    theirs = 100 * float((plain.predict(queries) == truth).mean())
    measured = [time_row(PROBE, name, timing, images=len(x)) for name, timing in timings.items()]
    measured[0] |= {"accuracy": right, "lost_points": theirs - right}
    return measured


def _neighbour_rows(repeats: int, features: Features) -> list[Row]:
    from sklearn.neighbors import KNeighborsClassifier

    x, labels, queries, _ = features
    plain = KNeighborsClassifier(min(10, len(x)), metric="cosine", algorithm="brute").fit(x, labels)
    calls: dict[str, Callable[[], object]] = {
        "ours, k = 10 and k = 200": lambda: classify_knn(x, labels, queries, CLASSES),
        "scikit-learn, brute force, k = 10": lambda: plain.predict(queries),
    }
    timings = interleave(calls, repeats, warmup=0)
    return [time_row(NEIGHBOURS, name, timing, images=len(x)) for name, timing in timings.items()]


def _map_rows(repeats: int, queries: NDArray[np.float32]) -> list[Row]:
    def both() -> None:
        principal_components(queries)
        tsne(queries)

    name = "ours, PCA of all and t-SNE of 5,000"
    return [time_row(MAPS, name, interleave({name: both}, min(repeats, 1), warmup=0)[name], images=len(queries))]


# What happens between the command and the first probe of both encoders: imports, images, checks, features.
_STARTED = """
import sys
from simclr_engine.data import load_splits
from simclr_engine.evaluation.metrics import feature_statistics
from simclr_engine.evaluation.splits import check_splits
from simclr_engine.evaluation.encoders import open_target
subject = open_target(sys.argv[1])
train, test = load_splits(subject.run.locate_data(), subject.image_size, levels=subject.levels)
check_splits(train, test)
for init in ("pretrained", "scratch"):
    encoder = subject.encoder(init, False)
    encoder.features(test)
    feature_statistics(encoder.features(train))
"""


def _start_rows(repeats: int, run: str | None) -> list[Row]:
    """The start in fresh processes; the first is not timed and leaves the features in the cache."""
    name = "ours, both encoders"
    if run is None:
        return [missing_row(START, name, "ms", "name an evaluated run with --run")]
    command = [sys.executable, "-c", _STARTED, run]
    calls: dict[str, Callable[[], object]] = {name: lambda: subprocess.run(command, check=True)}
    return [time_row(START, name, interleave(calls, repeats, warmup=1)[name])]
