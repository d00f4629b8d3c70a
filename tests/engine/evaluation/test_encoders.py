"""Cached features are of the very encoder: its weights, statistics and normalisation; the random one has its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from fixtures.coloured import NAMES, coloured
from fixtures.synthetic_run import write_run
from simclr_engine.checkpoint import encoder_metadata, save_weights
from simclr_engine.data.store import ImageStore
from simclr_engine.evaluation.encoders import WeightsScratchEncoder, open_target
from simclr_engine.evaluation.features import encoder_hash, scratch_encoder
from simclr_engine.model import build_encoder
from simclr_engine.recipe import Recipe
from simclr_engine.run import Run
from simclr_engine.weights import ForeignEncoder

RECIPE, STORE = "two-protocols", coloured(12, 1, "test")


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SIMCLR_ENGINE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = write_run(tmp_path / "run", class_names=NAMES, data="colours", image_size=8, recipe=RECIPE)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        encoder = build_encoder("resnet18", "small")
    save_weights(run.directory / "encoder.safetensors", encoder, encoder_metadata(run.recipe, 8))
    return run


def _features(run: Run, store: ImageStore, init: str = "pretrained") -> NDArray[np.float32]:
    """As an evaluation gets them: from the cache, where they are there."""
    return open_target(run).encoders[init].features(store)


def _of(encoder: nn.Module, run: Run) -> NDArray[np.float32]:
    """By hand, without any cache."""
    spec = run.recipe.augment
    x = (torch.from_numpy(np.array(STORE.images)) / 255 - torch.tensor(spec.mean)) / torch.tensor(spec.std)
    with torch.no_grad():
        found: torch.Tensor = encoder.eval()(x.permute(0, 3, 1, 2))
    return found.numpy()


def _train_on(run: Run) -> None:
    encoder = run.encoder()
    with torch.no_grad():
        next(encoder.parameters()).mul_(1.5)
    save_weights(run.directory / "encoder.safetensors", encoder, encoder_metadata(run.recipe, 8))


def _watch_on(run: Run) -> None:
    encoder = run.encoder()
    with torch.no_grad():
        next(b for name, b in encoder.named_buffers() if name.endswith("running_mean")).add_(0.5)
    save_weights(run.directory / "encoder.safetensors", encoder, encoder_metadata(run.recipe, 8))


def _normalise_otherwise(run: Run, **colours: list[float]) -> None:
    changes = {f"augment.{name}": value for name, value in colours.items()}
    (run.directory / "recipe.toml").write_text(Recipe.load(RECIPE, overrides=changes).to_toml(), "utf-8")


@pytest.mark.parametrize(
    "change",
    [
        _train_on,
        _watch_on,
        lambda run: _normalise_otherwise(run, mean=[0.1, 0.2, 0.3]),
        lambda run: _normalise_otherwise(run, std=[0.1, 0.2, 0.3]),
    ],
    ids=["weights", "statistics", "mean", "std"],
)
def test_after_a_change_of_the_encoder_no_earlier_features_are_taken(run: Run, change: Callable[[Run], None]) -> None:
    first = _features(run, STORE)
    np.testing.assert_allclose(first, _of(run.encoder(), run), atol=1e-4, rtol=1e-4)
    change(run)
    changed = Run.open(run.directory)
    second = _features(changed, STORE)
    np.testing.assert_allclose(second, _of(changed.encoder(), changed), atol=1e-4, rtol=1e-4)
    assert np.abs(second - first).max() > 1e-2


def test_the_random_encoder_has_features_of_its_own(run: Run) -> None:
    trained, random = _features(run, STORE), _features(run, STORE, "scratch")
    np.testing.assert_allclose(random, _of(scratch_encoder("resnet18", "small", 0), run), atol=1e-4, rtol=1e-4)
    assert np.abs(random - trained).max() > 1e-2


def test_features_are_computed_once_also_where_no_cache_can_be_written(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    built, load = list[Run](), Run.encoder
    monkeypatch.setattr(Run, "encoder", lambda self, _: built.append(self) or load(self))
    encoder = open_target(run).encoders["pretrained"]
    first = encoder.features(STORE)
    assert encoder.features(STORE) is first and len(built) == 1
    assert not np.array_equal(encoder.features(coloured(12, 2, "test")), first) and len(built) == 2


def test_the_random_counterpart_of_foreign_weights_lacks_what_they_lack() -> None:
    def adapt(encoder: nn.Module) -> nn.Module:
        return nn.Sequential(encoder, nn.Identity())

    grey = (0.5, 0.5, 0.5)
    found = SimpleNamespace(arch="resnet18", stem="small", mean=grey, std=grey, adapt=adapt)
    encoder = WeightsScratchEncoder(cast(ForeignEncoder, found))
    expected = adapt(scratch_encoder("resnet18", "small"))
    assert encoder.sha256 == encoder_hash(encoder.build()) == encoder_hash(expected)
    assert encoder.sha256 != encoder_hash(scratch_encoder("resnet18", "small"))
