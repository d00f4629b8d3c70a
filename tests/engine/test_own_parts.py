"""An encoder module and a view function of the caller's: trained, replayed, found again, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from simclr_engine import Recipe, Run, load_encoder, pretrain
from simclr_engine.checkpoint import load_checkpoint
from simclr_engine.data import ImageStore
from simclr_engine.errors import UsageError
from simclr_engine.evaluation.encoders import open_target
from simclr_engine.model import build_encoder, own_encoder

SETTINGS = {"train.batch_size": 8, "train.epochs": 2, "train.precision": "fp32", "monitor.log_steps": 1}
IMAGES = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)


class Small(nn.Module):
    """Four features, the means of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x)).mean((2, 3))


def flipped(images: Tensor) -> Tensor:
    """Half of the images mirrored, by torch's global generator, as torchvision draws."""
    mirrored = torch.rand(len(images)) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def small(out: Path, own: nn.Module, view: Callable[[Tensor], Tensor] = flipped, **options: Any) -> Run:
    store = ImageStore.from_arrays(IMAGES, np.arange(16) % 2, name="noise")
    settings = SETTINGS | options.pop("settings", {})
    recipe = Recipe.load("quick-10", overrides=settings)
    return pretrain(recipe, store, out, encoder=own, view=view, fused=False, compile=False, quiet=True, **options)


def weights(run: Run, own: nn.Module) -> list[Tensor]:
    return list(load_encoder(run, own).state_dict().values())


def test_an_own_encoder_is_trained_as_a_copy_and_recorded(tmp_path: Path) -> None:
    own = Small()
    before = [t.clone() for t in own.state_dict().values()]
    run = small(tmp_path / "a", own)
    assert all(map(torch.equal, before, own.state_dict().values()))
    assert not any(map(torch.equal, before, weights(run, own)))
    assert run.recipe.model.arch == "own" and run.environment["own"] == {"encoder": "Small", "view": "flipped"}
    assert run.environment["backends"]["augment"] == "own" and run.environment["feature_dim"] == 4
    assert len([note for note in run.environment["notes"] if note.startswith("your own")]) == 2
    assert load_encoder(run, own)(torch.zeros(5, 3, 8, 8)).shape == (5, 4)


def test_a_run_with_own_parts_resumes_bitwise_where_it_draws_from_torch(tmp_path: Path) -> None:
    own, stopped = Small(), tmp_path / "b"
    whole = small(tmp_path / "a", own)

    def stop(path: Path) -> None:
        if load_checkpoint(path)["step"] == 2:
            raise KeyError

    with pytest.raises(KeyError):
        small(stopped, own, settings={"train.checkpoint_epochs": 1}, on_checkpoint=stop)
    torch.rand(7)  # the caller's own draws do not matter
    resumed = small(stopped, own, settings={"train.checkpoint_epochs": 1}, resume=True)
    assert all(map(torch.equal, weights(whole, own), weights(resumed, own)))


def test_micro_batches_see_the_same_own_views_in_both_passes(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def watched(images: Tensor) -> Tensor:
        seen.append(flipped(images))
        return seen[-1]

    small(tmp_path / "a", Small(), watched, settings={"train.micro_batch": 4, "train.epochs": 1})
    of_a_step = seen[-8:]  # two passes of two micro-batches of two views
    assert all(map(torch.equal, of_a_step[:4], of_a_step[4:]))
    assert not torch.equal(of_a_step[0], of_a_step[1])  # the views differ


def test_own_views_may_be_uint8_or_floating_and_of_another_size(tmp_path: Path) -> None:
    own = Small()
    plain = small(tmp_path / "a", own, flipped)
    scaled = small(tmp_path / "b", own, lambda images: flipped(images).float() / 255)
    assert all(map(torch.equal, weights(plain, own), weights(scaled, own)))
    small(tmp_path / "c", own, lambda images: images[:, :, 1:6, 1:6])


@pytest.mark.parametrize("view", [lambda x: x[:3], lambda x: x.int(), lambda x: x.permute(0, 2, 3, 1), lambda x: None])
def test_views_that_are_none_are_refused(tmp_path: Path, view: Any) -> None:
    with pytest.raises(UsageError, match="view"):
        small(tmp_path / "a", Small(), view)


@pytest.mark.parametrize("module", [nn.Conv2d(3, 4, 3), nn.Linear(5, 2), 3])
def test_an_encoder_that_gives_no_features_is_refused(module: Any) -> None:
    with pytest.raises(UsageError, match="encoder"):
        own_encoder(module, 8)


def test_own_parts_must_be_passed_again(tmp_path: Path) -> None:
    own = Small()
    run = small(tmp_path / "a", own)
    with pytest.raises(UsageError, match="own encoder"):
        load_encoder(run)
    with pytest.raises(UsageError, match="did not train an own"):
        load_encoder(_plain(tmp_path), own)
    with pytest.raises(UsageError, match="other parts"):
        pretrain(out=tmp_path / "a", data=ImageStore.from_arrays(IMAGES, name="noise"), resume=True, quiet=True)
    with pytest.raises(UsageError, match="caller's"):
        build_encoder("own", "small")
    target = open_target(run, own)
    assert torch.equal(target.encoders["scratch"].build().conv.weight, own.conv.weight)
    assert not torch.equal(target.encoders["pretrained"].build().conv.weight, own.conv.weight)


def _plain(tmp_path: Path) -> Path:
    """An encoder file of a network of ours."""
    from simclr_engine.checkpoint import encoder_metadata, save_weights

    path = tmp_path / "encoder.safetensors"
    save_weights(path, build_encoder("resnet18", "small"), encoder_metadata(Recipe.load("quick-10"), 8))
    return path
