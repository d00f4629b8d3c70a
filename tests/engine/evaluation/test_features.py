"""Features come from an encoder in eval mode that is left as it was; anything else is caught."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fixtures.synthetic_run import write_run
from simclr_engine import evaluate
from simclr_engine.checkpoint import encoder_metadata, save_weights
from simclr_engine.data.cache import cache_root, cached_features
from simclr_engine.data.store import ImageStore
from simclr_engine.errors import CheckFailed
from simclr_engine.evaluation.features import encoder_hash, extract_features, scratch_encoder
from simclr_engine.model import build_encoder
from simclr_engine.run import Run

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


class Little(nn.Module):
    """Convolution, batch norm, dropout: everything that behaves differently in training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(torch.relu(self.norm(self.conv(x)))).mean((2, 3))


@pytest.fixture
def encoder() -> Little:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Little()
        with torch.no_grad():
            module.norm.running_mean.normal_()
            module.norm.running_var.uniform_(0.5, 2.0)
    return module


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (150, 8, 8, 3), dtype=np.uint8)


def test_features_equal_a_plain_float64_pass_in_eval_mode(encoder: Little, images: np.ndarray) -> None:
    features = extract_features(encoder.train(), images, MEAN, STD, batch_size=64)
    x = (images.astype(np.float64) / 255 - MEAN) / STD
    truth = encoder.double().eval()(torch.from_numpy(x).permute(0, 3, 1, 2)).detach().numpy()
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, truth, atol=2e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 150, 1000])
def test_the_batch_size_does_not_change_the_features(encoder: Little, images: np.ndarray, batch_size: int) -> None:
    expected = extract_features(encoder, images, MEAN, STD)
    np.testing.assert_allclose(extract_features(encoder, images, MEAN, STD, batch_size=batch_size), expected, atol=1e-6)


def test_extraction_leaves_weights_buffers_and_gradients_alone(encoder: Little, images: np.ndarray) -> None:
    before = encoder_hash(encoder.train())
    extract_features(encoder, images, MEAN, STD)
    assert encoder_hash(encoder) == before
    assert all(p.grad is None for p in encoder.parameters())


def train_batch_norm(encoder: Little) -> None:
    encoder.norm.train()


def move_a_weight(encoder: Little) -> None:
    with torch.no_grad():
        encoder.conv.weight[0, 0, 0, 0] += 1e-6


def move_a_buffer(encoder: Little) -> None:
    encoder.norm.running_var[2] *= 1.001


@pytest.mark.parametrize("plant", [train_batch_norm, move_a_weight, move_a_buffer])
def test_an_encoder_that_changes_while_it_is_evaluated_is_caught(
    encoder: Little, images: np.ndarray, plant: Callable[[Little], None]
) -> None:
    encoder.register_forward_pre_hook(lambda module, _: plant(module))
    with pytest.raises(CheckFailed, match="changed by its own evaluation"):
        extract_features(encoder, images, MEAN, STD)


def test_the_hash_sees_every_parameter_and_buffer(encoder: Little) -> None:
    before = encoder_hash(encoder)
    for tensor in [*encoder.parameters(), *encoder.buffers()]:
        with torch.no_grad():
            tensor += 1
            assert encoder_hash(encoder) != before
            tensor -= 1
    encoder.register_buffer("late", torch.zeros(1), persistent=False)
    assert encoder_hash(encoder) != before


def test_progress_counts_every_image_once(encoder: Little, images: np.ndarray) -> None:
    done: list[int] = []
    extract_features(encoder, images, MEAN, STD, batch_size=64, advance=done.append)
    assert done == [64, 64, 22]


def test_the_random_encoder_is_always_the_same_and_leaves_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(5)
    first = scratch_encoder("resnet18", "small")
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))
    assert encoder_hash(first) == encoder_hash(scratch_encoder("resnet18", "small"))
    assert encoder_hash(first) != encoder_hash(scratch_encoder("resnet18", "small", seed=1))
    assert not first.training
    assert all(bool((m.running_mean == 0).all()) for m in first.modules() if isinstance(m, nn.BatchNorm2d))


def counted(calls: list[int]) -> Callable[[ImageStore], np.ndarray]:
    def compute(store: ImageStore) -> np.ndarray:
        calls.append(len(store))
        return store.images.reshape(len(store), -1)[:, :4].astype(np.float32)

    return compute


def test_cached_features_are_computed_once_per_encoder_and_images(images: np.ndarray) -> None:
    store, other = ImageStore.from_arrays(images), ImageStore.from_arrays(images[::-1].copy())
    calls: list[int] = []
    first = cached_features("one encoder", store, counted(calls))
    np.testing.assert_array_equal(cached_features("one encoder", store, counted(calls)), first)
    assert calls == [150]
    assert not np.array_equal(cached_features("one encoder", other, counted(calls)), first)
    cached_features("another encoder", store, counted(calls))
    assert calls == [150, 150, 150]


def test_a_damaged_cache_is_computed_again_and_an_unwritable_one_does_no_harm(
    images: np.ndarray, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("SIMCLR_ENGINE_CACHE", str(tmp_path_factory.mktemp("cache")))
    store, calls = ImageStore.from_arrays(images), list[int]()
    first = cached_features("key", store, counted(calls))
    (file,) = (cache_root() / "features").iterdir()
    file.write_bytes(file.read_bytes()[:200])
    np.testing.assert_array_equal(cached_features("key", store, counted(calls)), first)
    assert calls == [150, 150]
    file.unlink()
    file.parent.rmdir()
    file.parent.write_text("a file where the folder should be")
    np.testing.assert_array_equal(cached_features("key", store, counted(calls)), first)


# ---- a frozen protocol must leave the encoder as it is

HEAD = {"evaluation.head.epochs": 1, "evaluation.head.batch_size": 16}


def photos(size: int = 300, seed: int = 0, side: int = 8, classes: tuple[str, ...] = ("ant", "bee")) -> ImageStore:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (size, side, side, 3), dtype=np.uint8)
    return ImageStore.from_arrays(images, np.arange(size) % len(classes), classes, name="photos", split=f"split {seed}")


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

    def unfrozen(run: Run, own: None = None) -> nn.Module:
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
        evaluate(trained, (photos(48, 0), photos(24, 1)), method, overrides=HEAD, out=tmp_path / "there")
    assert seen == [48]  # caught at the first split
    assert caught.value.exit_code == 1
    assert not (tmp_path / "there").exists()
    # Nor is anything kept that a second evaluation would take for the features of the encoder.
    with pytest.raises(CheckFailed):
        evaluate(trained, (photos(48, 0), photos(24, 1)), method, overrides=HEAD, out=tmp_path / "there")


@pytest.mark.parametrize("what", PLANTS)
def test_a_head_on_augmented_images_that_trains_its_encoder_is_caught(
    trained: Run, monkeypatch: pytest.MonkeyPatch, what: Callable[[nn.Module], None], tmp_path: Path
) -> None:
    splits = photos(40, 2), photos(20, 3)
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
    splits = photos(32, 10 + len(overrides)), photos(16, 20 + len(overrides))
    assert evaluate(trained, splits, "head", overrides=overrides, out=tmp_path).confusion.sum() == 16
    assert seen == [32, 16, *([16, 16] if len(overrides) > 2 else [])]


def test_fine_tuning_trains_a_copy_and_leaves_the_run_as_it_is(trained: Run, tmp_path: Path) -> None:
    before = (trained.directory / "encoder.safetensors").read_bytes()
    weights = {name: tensor.clone() for name, tensor in trained.encoder().state_dict().items()}
    short = {"evaluation.finetune.epochs": 1, "evaluation.finetune.batch_size": 16}
    evaluate(trained, (photos(32, 4), photos(16, 5)), "finetune", overrides=short, out=tmp_path)
    assert (trained.directory / "encoder.safetensors").read_bytes() == before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in trained.encoder().state_dict().items())
