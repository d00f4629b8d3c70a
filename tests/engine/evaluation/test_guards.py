"""Splits that no honest probe can use are refused with what was seen, and so is a probe that trains its encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fixtures.synthetic_run import write_run
from simclr_engine import evaluate
from simclr_engine.checkpoint import encoder_metadata, save_weights
from simclr_engine.data.store import ImageStore
from simclr_engine.errors import CheckFailed, DataError
from simclr_engine.evaluation.guards import check_splits, overlapping_images
from simclr_engine.model import build_encoder
from simclr_engine.run import Run


def store(size: int = 300, seed: int = 0, side: int = 8, classes: tuple[str, ...] = ("ant", "bee")) -> ImageStore:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (size, side, side, 3), dtype=np.uint8)
    return ImageStore.from_arrays(images, np.arange(size) % len(classes), classes, name="photos", split=f"split {seed}")


def with_copies(train: ImageStore, test: ImageStore, count: int) -> ImageStore:
    """`test` with its first images replaced by the last ones of train."""
    images = test.images.copy()
    images[:count] = train.images[len(train) - count :]
    return replace(test, images=images)


def test_separate_splits_pass_without_a_note() -> None:
    assert check_splits(store(seed=0), store(seed=1)) == ()


@pytest.mark.parametrize("count", [0, 1, 17])
def test_copies_are_counted(count: int) -> None:
    train, test = store(seed=0), store(seed=1)
    assert overlapping_images(train, with_copies(train, test, count)) == count


def test_one_percent_of_copies_is_noted_and_more_is_refused() -> None:
    train, test = store(seed=0), store(seed=1)  # 300 test images: 3 are 1 %
    assert check_splits(train, with_copies(train, test, 3)) == (
        "3 of 300 test images are in train too, pixel for pixel",
    )
    with pytest.raises(DataError, match="memory test") as caught:
        check_splits(train, with_copies(train, test, 4))
    assert str(caught.value.saw).startswith("4 of 300")


def test_a_pixel_apart_is_no_copy() -> None:
    train = store(seed=0)
    images = train.images.copy()
    images[:, 0, 0, 0] ^= 1
    assert overlapping_images(train, replace(train, images=images)) == 0


def test_unlabelled_images_are_refused() -> None:
    with pytest.raises(DataError, match="needs labels"):
        check_splits(store(seed=0), ImageStore.from_arrays(store(seed=1).images))


def test_one_class_is_refused_also_where_a_second_has_only_a_name() -> None:
    with pytest.raises(DataError, match="at least two classes"):
        check_splits(store(seed=0, classes=("ant",)), store(seed=1, classes=("ant",)))
    lonely = replace(store(seed=0), labels=np.zeros(300, dtype=np.int64))
    with pytest.raises(DataError, match="at least two classes"):
        check_splits(lonely, store(seed=1))


def test_different_classes_and_different_sizes_are_refused() -> None:
    with pytest.raises(DataError, match="different classes") as caught:
        check_splits(store(seed=0), store(seed=1, classes=("ant", "cow")))
    assert caught.value.saw == "bee, cow"
    with pytest.raises(DataError, match="different sizes"):
        check_splits(store(seed=0), store(seed=1, side=9))


# ---- a frozen protocol must leave the encoder as it is

HEAD = {"evaluation.head.epochs": 1, "evaluation.head.batch_size": 16}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run whose encoder nobody has evaluated, with a cache of its own: features at hand would need no encoder."""
    folder = tmp_path_factory.mktemp("guards")
    run = write_run(folder / "run", class_names=("ant", "bee"), data="photos", image_size=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = build_encoder("resnet18", "small")
    save_weights(run.directory / "encoder.safetensors", encoder, encoder_metadata(run.recipe, 8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMCLR_ENGINE_CACHE", str(folder / "cache"))
        yield run


def take_a_gradient_step(encoder: nn.Module) -> None:
    """What a probe does whose optimizer was given the encoder's weights too."""
    with torch.inference_mode(False), torch.enable_grad():
        weight = encoder.get_parameter("layer4.1.conv2.weight")
        (gradient,) = torch.autograd.grad(weight.square().sum(), weight)
        with torch.no_grad():
            weight -= 1e-6 * gradient


def leave_it_in_train_mode(encoder: nn.Module) -> None:
    encoder.train()


def leave_one_batch_norm_in_train_mode(encoder: nn.Module) -> None:
    encoder.get_submodule("layer4.1.bn2").train()


def touch_one_running_mean(encoder: nn.Module) -> None:
    encoder.get_buffer("bn1.running_mean")[3] += 1e-6


PLANTS = [take_a_gradient_step, leave_it_in_train_mode, leave_one_batch_norm_in_train_mode, touch_one_running_mean]


def plant(patch: pytest.MonkeyPatch, what: Callable[[nn.Module], None]) -> list[int]:
    """Every encoder of a run does `what` to itself before each batch; returns the sizes of the batches it saw."""
    load, seen = Run.encoder, list[int]()

    def before(encoder: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(len(inputs[0]))
        what(encoder)

    def unfrozen(run: Run) -> nn.Module:
        encoder = load(run)
        encoder.register_forward_pre_hook(before)
        return encoder

    patch.setattr(Run, "encoder", unfrozen)
    return seen


@pytest.mark.parametrize(
    ("method", "what"), [*(("linear", what) for what in PLANTS), ("knn", PLANTS[0]), ("head", PLANTS[2])]
)
def test_a_probe_that_trains_its_encoder_while_it_computes_features_is_caught(
    trained: Run, monkeypatch: pytest.MonkeyPatch, method: str, what: Callable[[nn.Module], None], tmp_path: Path
) -> None:
    seen = plant(monkeypatch, what)
    with pytest.raises(CheckFailed, match="changed by its own evaluation") as caught:
        evaluate(trained, (store(48, 0), store(24, 1)), method, overrides=HEAD, out=tmp_path / "there")
    assert seen == [48]  # caught at the first split
    assert caught.value.exit_code == 1
    assert not (tmp_path / "there").exists()
    # Nor is anything kept that a second evaluation would take for the features of the encoder.
    with pytest.raises(CheckFailed):
        evaluate(trained, (store(48, 0), store(24, 1)), method, overrides=HEAD, out=tmp_path / "there")


@pytest.mark.parametrize("what", PLANTS)
def test_a_head_on_augmented_images_that_trains_its_encoder_is_caught(
    trained: Run, monkeypatch: pytest.MonkeyPatch, what: Callable[[nn.Module], None], tmp_path: Path
) -> None:
    splits = store(40, 2), store(20, 3)
    evaluate(
        trained, splits, "knn", out=tmp_path / "before"
    )  # the features are at hand: the head alone runs the encoder
    seen = plant(monkeypatch, what)
    with pytest.raises(CheckFailed, match="changed by its own evaluation"):
        evaluate(trained, splits, "head", overrides=HEAD | {"evaluation.head.flip": 0.5}, out=tmp_path / "there")
    assert seen == [16, 16]
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("overrides", [HEAD, HEAD | {"evaluation.head.flip": 0.5}])
def test_an_encoder_that_is_only_watched_passes(
    trained: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, overrides: dict[str, object]
) -> None:
    seen = plant(monkeypatch, lambda encoder: None)
    splits = store(32, 10 + len(overrides)), store(16, 20 + len(overrides))
    assert evaluate(trained, splits, "head", overrides=overrides, out=tmp_path).confusion.sum() == 16
    assert seen == [32, 16, *([16, 16] if len(overrides) > 2 else [])]


def test_fine_tuning_trains_a_copy_and_leaves_the_run_as_it_is(trained: Run, tmp_path: Path) -> None:
    before = (trained.directory / "encoder.safetensors").read_bytes()
    weights = {name: tensor.clone() for name, tensor in trained.encoder().state_dict().items()}
    short = {"evaluation.finetune.epochs": 1, "evaluation.finetune.batch_size": 16}
    evaluate(trained, (store(32, 4), store(16, 5)), "finetune", overrides=short, out=tmp_path)
    assert (trained.directory / "encoder.safetensors").read_bytes() == before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in trained.encoder().state_dict().items())
