"""A run that starts from weights begins with exactly these, on every rank, and says so wherever it is described."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fixtures.foreign_weights import numbered, saved, settled, torchvision_network, without_classifier
from fixtures.synthetic_run import write_run
from simclr_engine.checkpoint import encoder_metadata, load_encoder, save_weights
from simclr_engine.data.store import ImageStore
from simclr_engine.errors import DataError, UsageError
from simclr_engine.model import build_encoder
from simclr_engine.pretraining import pretrain
from simclr_engine.recipe import Recipe
from simclr_engine.report.content import load_content, run_facts
from simclr_engine.run import Run
from simclr_engine.starting import open_start
from simclr_engine.training import Trainer
from simclr_engine.weights import CIFAR10

SETTINGS = {
    "train.batch_size": 4,
    "train.epochs": 1,
    "train.precision": "fp32",
    "head.hidden": [8],
    "short_runs": [],
    "monitor.knn_epochs": 0,
}


def store() -> ImageStore:
    pixels = torch.randint(0, 256, (8, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageStore.from_arrays(pixels.numpy())


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """The encoder's weights when the first step begins."""
    seen: dict[str, torch.Tensor] = {}
    real = Trainer.train_step

    def train_step(self: Trainer, step: int, size: int | None = None) -> object:
        if not seen:
            seen.update({name: tensor.clone() for name, tensor in self.model.encoder.state_dict().items()})
        return real(self, step, size)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    return seen


def trained(out: Path, weights: Path, resume: bool = False, **more: object) -> Run:
    recipe = None if resume else "cifar10-sgd"
    overrides = None if resume else SETTINGS | more
    return pretrain(
        recipe, store(), out, overrides=overrides, device="cpu", fused=False, quiet=True, weights=weights, resume=resume
    )


@pytest.mark.parametrize("stem", ["small", "imagenet"])
def test_training_begins_with_the_weights_of_a_file(tmp_path: Path, begun: dict[str, torch.Tensor], stem: str) -> None:
    theirs = without_classifier(torchvision_network("resnet18", stem)).state_dict()
    run = trained(tmp_path / "run", saved(tmp_path, {"model": theirs}, "start.pth"))
    assert begun.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(begun[name], theirs[name])] == []
    assert (run.recipe.model.arch, run.recipe.model.stem) == ("resnet18", stem)
    assert (run.recipe.augment.mean == CIFAR10[0]) == (stem == "small")
    about = run.environment["weights"]
    assert about["name"] == "start.pth" and about["words"].startswith(
        f"resnet18 with a {'3×3' if stem == 'small' else '7×7'}"
    )
    assert dict(run_facts(load_content(run)))["started from"] == about["words"]
    # The trained encoder is the network that it started as.
    after = load_encoder(run)
    assert after.conv1.padding == ((1, 1) if stem == "small" else (3, 3))
    assert not torch.equal(after.conv1.weight, theirs["conv1.weight"])


def test_a_stem_that_pads_by_two_stays_one_in_the_run(tmp_path: Path) -> None:
    theirs = without_classifier(torchvision_network("resnet18", "small")).state_dict()
    weights = {f"backbone.{name}": tensor for name, tensor in theirs.items()}
    weights |= {"classifier.weight": torch.zeros(2, 512), "projector.0.weight": torch.zeros(8, 512)}
    run = trained(tmp_path / "run", saved(tmp_path, weights, "solo.ckpt"))
    assert run.recipe.model.stem == "small-padding-2"
    assert load_encoder(run).conv1.padding == (2, 2)
    again = open_start(run.directory, Recipe.load("cifar10"), {})
    assert again.recipe.model.stem == "small-padding-2" and again.about["name"] == "run"


def test_a_run_gives_its_weights_and_its_normalisation(tmp_path: Path, begun: dict[str, torch.Tensor]) -> None:
    recipe = Recipe.load("lars-800")  # whose normalisation is its own
    encoder = settled(build_encoder(recipe.model.arch, recipe.model.stem))
    (tmp_path / "before").mkdir()
    save_weights(tmp_path / "before" / "encoder.safetensors", encoder, encoder_metadata(recipe, 24))
    run = trained(tmp_path / "run", tmp_path / "before")
    assert all(torch.equal(begun[name], tensor) for name, tensor in encoder.state_dict().items())
    assert run.recipe.augment.mean == recipe.augment.mean
    asked = open_start(tmp_path / "before", Recipe.load("cifar10"), {"augment.mean": [0, 0, 0]})
    assert asked.recipe.augment.mean == Recipe.load("cifar10").augment.mean  # the user's own


def test_a_run_that_has_not_ended_gives_its_newest_checkpoint(tmp_path: Path, begun: dict[str, torch.Tensor]) -> None:
    run = trained(tmp_path / "first", saved(tmp_path, torchvision_network("resnet18", "small").state_dict()))
    for name in ("encoder", "model"):
        (run.directory / f"{name}.safetensors").unlink()
    begun.clear()
    second = trained(tmp_path / "second", run.directory)
    expected = load_encoder(run.directory).state_dict()
    assert all(torch.equal(begun[name], expected[name]) for name in expected)
    assert second.recipe.augment.mean == run.recipe.augment.mean


def test_a_resumed_run_keeps_its_weights_and_refuses_others(tmp_path: Path) -> None:
    first = saved(tmp_path, torchvision_network("resnet18", "small").state_dict(), "first.pth")
    run = trained(tmp_path / "run", first)
    assert trained(tmp_path / "run", first, resume=True).environment["weights"] == run.environment["weights"]
    other = torchvision_network("resnet18", "small").state_dict() | {"bn1.bias": torch.ones(64)}
    with pytest.raises(UsageError, match="others were given"):
        trained(tmp_path / "run", saved(tmp_path, other, "other.pth"), resume=True)


def test_another_network_than_the_one_named_is_refused(tmp_path: Path) -> None:
    weights = saved(tmp_path, torchvision_network("resnet18", "small").state_dict())
    for named, value in (("model.arch", "resnet50"), ("model.stem", "imagenet")):
        with pytest.raises(UsageError, match="another network") as caught:
            trained(tmp_path / "run", weights, **{named: value})
        assert f"{named} = {value}" in str(caught.value.saw)
    without_relu = numbered(without_classifier(torchvision_network("resnet18", "small")).state_dict(), 2)
    with pytest.raises(UsageError, match="cannot start from this network"):
        trained(tmp_path / "run", saved(tmp_path, without_relu, "lightly.pt"))
    with pytest.raises(DataError, match="cannot be read"):
        trained(tmp_path / "run", tmp_path / "absent.pth")
    assert not (tmp_path / "run").exists()


def test_a_stem_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="of the network of --weights"):
        pretrain("cifar10-sgd", store(), tmp_path / "run", stem_padding=2, quiet=True)


def test_how_far_an_unfinished_run_came_is_said_by_the_run(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run").directory
    environment = json.loads((directory / "environment.json").read_text())
    assert Run.open(directory).unfinished == ""
    for change, said in (
        ({"step": 46}, f"46 of {environment['plan']['total_steps']:,} steps"),
        ({"step": 46, "plan": 3}, "46 steps"),
    ):
        changed = environment | {"finished": False} | change
        (directory / "environment.json").write_text(json.dumps(changed))
        assert Run.open(directory).unfinished == said
    del changed["step"]  # of an older version: by its log
    (directory / "environment.json").write_text(json.dumps(changed))
    rows = [{"event": "train", "step": step} for step in (30, 40)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert Run.open(directory).unfinished == "40 steps"
