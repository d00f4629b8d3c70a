"""Features come from an encoder in eval mode that is left as it was; anything else is caught."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from simclr_engine.data.cache import cache_root
from simclr_engine.data.store import ImageStore
from simclr_engine.errors import CheckFailed
from simclr_engine.evaluation.feature_cache import cached_features
from simclr_engine.evaluation.features import encoder_hash, extract_features, scratch_encoder

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
