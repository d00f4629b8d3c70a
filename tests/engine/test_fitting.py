"""What a recipe leaves open is fitted to images and memory; what the user set stays."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from fixtures.disturbed_runs import narrow
from fixtures.photo_album import write_album
from simclr_engine import memory, planning
from simclr_engine.data.store import ImageStore
from simclr_engine.device import Platform
from simclr_engine.distributed import World
from simclr_engine.errors import DataError, PlatformError, UsageError
from simclr_engine.fitting import fit_to_images, shrink_batch
from simclr_engine.memory import free_memory, step_memory
from simclr_engine.planning import RunOptions, describe, fit_to_memory, prepare
from simclr_engine.pretraining import open_data
from simclr_engine.recipe import HeadSpec, ModelSpec, Recipe
from simclr_engine.resuming import Stopped, trained_on
from simclr_engine.run import Run

CPU = Platform(torch.device("cpu"), "fp32", channels_last=True, compile=False)


def noise(count: int, size: int) -> ImageStore:
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return ImageStore.from_arrays(images, name="noise")


def test_a_recipe_knows_what_the_user_set(tmp_path: Path) -> None:
    package = Recipe.load("cifar10-sgd")
    assert not package.names("train.batch_size") and not package.names("optimizer.lr")
    given = Recipe.load("cifar10-sgd", {"train.batch_size": 512})
    assert given == package and given.names("train.batch_size") and not given.names("optimizer.lr")
    file = tmp_path / "mine.toml"
    file.write_text('base = "cifar10-sgd"\n[optimizer]\nlr = 0.03\n')
    assert Recipe.load(file).names("optimizer.lr") and not Recipe.load(file).names("train.batch_size")
    assert Recipe.from_toml(package.to_toml()).names("train.batch_size")  # a run's own recipe is taken as it is
    for same in (
        package.for_epochs(3),
        trained_on(package, "photos", 32),
        package.replace(train__epochs=3),
        pickle.loads(pickle.dumps(package)),
    ):
        assert not same.names("train.batch_size")
    assert package.replace(train__batch_size=256).names("train.batch_size")


@pytest.mark.parametrize(("size", "stem"), [(32, "small"), (64, "small"), (65, "imagenet"), (224, "imagenet")])
def test_the_stem_follows_from_the_size_of_the_images(size: int, stem: str) -> None:
    recipe, notes = fit_to_images(Recipe.load("cifar10"), 60_000, size)
    assert recipe.model.stem == stem and len(notes) == (stem == "imagenet")
    own, notes = fit_to_images(Recipe.load("cifar10", {"model.stem": "small"}), 60_000, size)
    assert own.model.stem == "small" and notes == []


def test_small_views_grow_with_the_images_also_those_of_short_runs() -> None:
    recipe, _ = fit_to_images(Recipe.load("cifar10-sgd"), 60_000, 128)
    assert recipe.for_epochs(5).train.resolution == ((0.8, 64), (1.0, 0))
    asked = Recipe.load("cifar10-sgd", {"train.resolution": [[0.5, 16], [1.0, 0]]})
    assert fit_to_images(asked, 60_000, 128)[0].train.resolution == ((0.5, 16), (1.0, 0))


def test_a_batch_larger_than_the_data_shrinks_and_the_rate_with_it() -> None:
    per_256, notes = fit_to_images(Recipe.load("cifar10-sgd"), 306, 32)
    assert (per_256.train.batch_size, per_256.optimizer.lr) == (256, 0.03)
    assert per_256.learning_rate() == pytest.approx(0.03) and "512 → 256, because there are 306 images" in notes[0]
    lars, _ = fit_to_images(Recipe.load("cifar10"), 306, 32)
    assert (lars.train.batch_size, lars.learning_rate()) == (256, 2.0)
    rate, notes = fit_to_images(Recipe.load("cifar10", {"optimizer.lr": 4.0}), 306, 32)
    assert rate.learning_rate() == 4.0 and "stays 4, as you set it" in notes[0]
    batch = Recipe.load("cifar10", {"train.batch_size": 512})
    assert fit_to_images(batch, 306, 32) == (batch, [])


def test_the_rates_of_short_runs_and_of_muon_shrink_too() -> None:
    shorts = [{"epochs": 9, "settings": {"optimizer.lr": 8.0, "train.views": 3}}]
    recipe = Recipe.load("cifar10").fitted({"short_runs": shorts})
    assert shrink_batch(recipe, 300, "it is a test")[0].for_epochs(5).learning_rate() == 4.0
    muon = Recipe.load("cifar10", {"optimizer.name": "muon"})
    assert shrink_batch(muon, 128, "it is a test")[0].optimizer.rest_lr == pytest.approx(muon.optimizer.rest_lr / 4)


@pytest.mark.parametrize(
    ("most", "ranks", "micro", "batch"),
    [(306, 1, 0, 256), (3, 1, 0, 2), (1, 1, 0, 512), (306, 3, 0, 192), (306, 1, 128, 256), (306, 2, 256, 512)],
)
def test_a_smaller_batch_fits_ranks_and_micro_batch(most: int, ranks: int, micro: int, batch: int) -> None:
    recipe = Recipe.load("cifar10", {"train.micro_batch": micro} if micro else {})
    assert shrink_batch(recipe, most, "it is a test", ranks)[0].train.batch_size == batch


def test_the_readme_s_line_trains_on_few_pictures() -> None:
    recipe = Recipe.load("cifar10-sgd")
    with narrow():
        trainer, _ = prepare(recipe, noise(306, 16), RunOptions(device="cpu", quiet=True))
        assert trainer.recipe.train.batch_size == 256 and trainer.plan.steps_per_epoch == 1
        assert any("512 → 256" in note for note in trainer.platform.notes)
        with pytest.raises(DataError, match="larger than the data"):
            prepare(recipe.replace(train__batch_size=512), noise(306, 16), RunOptions(device="cpu", quiet=True))


def test_an_album_of_mixed_sizes_and_endings_loses_no_photo(tmp_path: Path) -> None:
    album = write_album(tmp_path / "photos", count=24, shrink=8)
    options = RunOptions(device="cpu", quiet=True)
    recipe = Recipe.load("cifar10-sgd", {"data.source": str(album)})
    store, _ = open_data(recipe, None, options)
    assert len(store) == 24 and store.skipped == () and store.class_names == ("beach", "city", "forest")
    with narrow():
        trainer, _ = prepare(trained_on(recipe, "photos", store.image_size), store, options)
    assert store.image_size == 75 and trainer.recipe.model.stem == "imagenet"
    assert (trainer.recipe.train.batch_size, trainer.plan.peak_lr) == (16, 0.03 * 16 / 256)
    said = "\n".join(describe(trainer, None))
    for words in ("24 images of 75 px", "imagenet stem", "512 → 16", "GiB for a step (an estimate)"):
        assert words in said, words


def test_the_command_of_a_fitted_run_goes_on_with_it(tmp_path: Path) -> None:
    began = Recipe.load("cifar10", {"train.epochs": 3})
    run, _ = fit_to_images(trained_on(began, "photos", 128), 306, 128)
    stopped = Stopped(Run(tmp_path, run, {}), run.for_epochs(3), {})
    stopped.check_settings(began, {}, None)
    for key, value in (("train.batch_size", 512), ("optimizer.lr", 4.0), ("model.stem", "small")):
        with pytest.raises(UsageError, match=f"{key} = {value}, the run has"):
            stopped.check_settings(Recipe.load("cifar10", {"train.epochs": 3, key: value}), {}, None)


def test_the_memory_of_a_step_grows_with_views_pixels_and_precision() -> None:
    head = HeadSpec(hidden=(16,))
    small, large = (step_memory(ModelSpec(), head, size, "fp32") for size in (16, 32))
    assert 3.5 < large.kept / small.kept < 4.5
    assert step_memory(ModelSpec(), head, 32, "bf16").kept == pytest.approx(large.kept / 2, rel=1e-3)
    imagenet = step_memory(ModelSpec(stem="imagenet"), head, 32, "fp32")
    assert large.kept / imagenet.kept > 8
    assert large.likely(large.views_within(10**10)) <= 10**10 < large.likely(large.views_within(10**10) + 1)
    assert large.least(64) < large.likely(64)


def test_a_view_keeps_about_two_outputs_of_each_convolution() -> None:
    # Of each of the 20 convolutions of ResNet-18 at 32 px the output is kept, and that of its batch norm or ReLU.
    kept = step_memory(ModelSpec(), HeadSpec(hidden=(2048,)), 32, "fp32").kept
    outputs = 4 * (5 * 64 * 32**2 + 5 * 128 * 16**2 + 5 * 256 * 8**2 + 5 * 512 * 4**2)
    assert 1.5 * outputs < kept < 2.2 * outputs


def test_a_batch_beyond_the_memory_shrinks_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "free_memory", lambda platform: 4_000_000_000)
    recipe = Recipe.load("cifar10", {"short_runs": []})
    smaller, notes = fit_to_memory(recipe, noise(600, 32), CPU, World())
    memory = step_memory(recipe.model, recipe.head, 32, "fp32")
    batch = smaller.train.batch_size
    assert memory.likely(2 * batch) <= 0.9 * 4e9 < memory.likely(4 * batch) and batch < 512
    assert smaller.learning_rate() == pytest.approx(4.0 * batch / 512)
    assert "GiB of memory (an estimate) and 3.7 GiB are free" in notes[0]
    monkeypatch.setattr(planning, "free_memory", lambda platform: None)
    assert fit_to_memory(recipe, noise(600, 32), CPU, World()) == (recipe, [])


def test_the_user_s_batch_stays_or_is_refused_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.load("cifar10", {"train.batch_size": 512})
    needed = step_memory(recipe.model, recipe.head, 32, "fp32")
    monkeypatch.setattr(planning, "free_memory", lambda platform: needed.least(2 * 512) - 1)
    with pytest.raises(PlatformError, match=r"train\.micro_batch=128"):
        fit_to_memory(recipe, noise(600, 32), CPU, World())
    monkeypatch.setattr(planning, "free_memory", lambda platform: needed.least(2 * 512) + 1)
    assert fit_to_memory(recipe, noise(600, 32), CPU, World()) == (recipe, [])  # an estimate alone refuses nothing
    parts = recipe.replace(train__micro_batch=64)
    monkeypatch.setattr(planning, "free_memory", lambda platform: needed.likely(2 * 80))
    assert fit_to_memory(parts, noise(600, 32), CPU, World()) == (parts, [])


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    for name, text in (("max", "1000000"), ("current", "400000"), ("stat", "anon 5\ninactive_file 100000\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert free_memory(CPU) == 700_000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert free_memory(CPU) == 350_000
    (tmp_path / "memory.max").write_text("max")
    monkeypatch.setattr(memory, "_available", lambda: 10)
    assert free_memory(CPU) == 5
