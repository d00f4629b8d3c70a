"""Weights whose file does not say how the stem pads and pools: known by the library that wrote them, asked, or assumed.

Where the library is installed, its own code gives the features to compare with. Only the file that defines the network
is run: what it imports from Lightning and others is stubbed.
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import json
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch import nn

from fixtures.foreign_weights import (
    State,
    assert_filled,
    assert_same,
    features,
    lightly_names,
    numbered_tensors,
    prefixed,
    saved,
    settled,
    torchvision_network,
    without_classifier,
)
from simclr_engine.data.store import ImageStore
from simclr_engine.errors import DataError, UsageError
from simclr_engine.evaluation import encoders
from simclr_engine.evaluation.encoders import open_target
from simclr_engine.evaluation.features import encoder_hash
from simclr_engine.model import build_encoder
from simclr_engine.recipe import Recipe
from simclr_engine.starting import open_start
from simclr_engine.torchvision_shim import import_torchvision
from simclr_engine.weights import load_foreign

SOLO_LEARN = {"classifier.weight": torch.zeros(10, 512), "projector.0.weight": torch.zeros(8, 512)}
BOLTS = {"encoder.fc.weight": torch.zeros(10, 512), "projection.model.0.weight": torch.zeros(8, 512)}


@pytest.fixture(scope="module")
def state() -> State:
    return numbered_tensors()


def source(monkeypatch: pytest.MonkeyPatch, package: str, file: str, stubs: tuple[str, ...]) -> ModuleType:
    """The module in one file of an installed package, run with stubs for what it imports."""
    import_torchvision()
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"{package} is not installed; its names are tested by a fixture of their own")
    lightning = MagicMock(LightningModule=nn.Module)
    for name in stubs:
        monkeypatch.setitem(sys.modules, name, lightning if name == "pytorch_lightning" else MagicMock())
    if "pl_bolts.utils.stability" in stubs:
        sys.modules["pl_bolts.utils.stability"].under_review = lambda: lambda thing: thing
    spec = importlib.util.spec_from_file_location("peer", Path(found.origin).parent / file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- against the libraries' own code


@pytest.mark.parametrize("first_conv", [True, False])
@pytest.mark.parametrize("maxpool1", [True, False])
def test_bolts_weights_give_bolts_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_conv: bool, maxpool1: bool
) -> None:
    stubs = ("pl_bolts", "pl_bolts.utils", "pl_bolts.utils.stability")
    resnets = source(monkeypatch, "pl_bolts", "models/self_supervised/resnets.py", stubs)
    theirs = settled(resnets.resnet18(first_conv=first_conv, maxpool1=maxpool1))
    expected = features(lambda x: theirs(x)[0], 32)
    weights = prefixed(theirs.state_dict(), "encoder.") | {"projection.model.0.weight": torch.zeros(8, 512)}
    settings = {"hyper_parameters": {"first_conv": first_conv, "maxpool1": maxpool1}}
    found = load_foreign(saved(tmp_path, {"state_dict": weights} | settings, "epoch=3.ckpt"))
    assert_same(features(found.encoder, 32), expected)
    assert found.assumed == "" and found.origin.startswith("a checkpoint of lightning-bolts")
    alone = load_foreign(saved(tmp_path, {"state_dict": weights}), stem_pool="max" if maxpool1 else "none")
    assert_same(features(alone.encoder, 32), expected)
    assert alone.assumed == "" and alone.origin.startswith("names of lightning-bolts")


@pytest.mark.parametrize("cifar", [True, False])
def test_solo_learns_weights_give_solo_learns_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cifar: bool
) -> None:
    parts = ("lars", "metrics", "momentum", "knn", "backbones")
    stubs = ("pytorch_lightning", "pl_bolts.optimizers.lr_scheduler", *(f"solo.utils.{part}" for part in parts))
    base = source(
        monkeypatch, "solo", "methods/base.py", ("pl_bolts", "pl_bolts.optimizers", "solo", "solo.utils", *stubs)
    )
    numbers = dict.fromkeys(
        ["num_classes", "max_epochs", "batch_size", "lr", "weight_decay", "classifier_lr", "accumulate_grad_batches",
         "min_lr", "warmup_start_lr", "warmup_epochs", "num_large_crops", "num_small_crops"], 1,
    )  # fmt: skip
    others = dict.fromkeys(["optimizer", "lars", "exclude_bias_n_norm", "extra_optimizer_args", "scheduler"])
    theirs = settled(base.BaseMethod(encoder="resnet18", backbone_args={"cifar": cifar}, **numbers, **others))
    weights = theirs.state_dict() | {"projector.0.weight": torch.zeros(8, 512)}
    found = load_foreign(saved(tmp_path, {"state_dict": weights}, "last.ckpt"))
    assert_same(features(found.encoder, 32), features(theirs.encoder, 32))
    assert (found.stem, found.assumed) == ("small-padding-2" if cifar else "imagenet", "")


@pytest.mark.parametrize(("name", "kind"), [("resnetblur18", "blur"), ("resnetaa50", "average")])
def test_timms_networks_that_smooth_give_timms_features(tmp_path: Path, name: str, kind: str) -> None:
    import_torchvision()
    timm = pytest.importorskip("timm", reason="timm is not installed; what its files say is tested below")
    theirs = settled(timm.create_model(name, pretrained=False))
    weights = theirs.state_dict()
    theirs.reset_classifier(0)
    expected = features(theirs, 64)
    plain = saved(tmp_path, weights, "weights.pth")
    assumed = load_foreign(plain)  # nothing in the file forbids it, so it is said
    assert "no blur" in assumed.assumed and assumed.smoothing == ""
    assert np.abs(features(assumed.encoder, 64) - expected).max() > 0.1
    assert_same(features(load_foreign(plain, stem_pool=kind).encoder, 64), expected)
    saver = {"arch": name, "state_dict": weights, "args": argparse.Namespace(model=name), "version": 2}
    found = load_foreign(saved(tmp_path, saver, "checkpoint-3.pth.tar"))
    assert_same(features(found.encoder, 64), expected)
    assert (found.assumed, found.smoothing) == ("", kind) and name in found.origin
    assert encoder_hash(found.encoder) != encoder_hash(assumed.encoder)


def test_hugging_faces_weights_give_hugging_faces_features(tmp_path: Path) -> None:
    import_torchvision()
    try:
        from transformers import ResNetConfig, ResNetModel
    except Exception as error:  # a module that is missing, or one that does not fit its neighbours
        pytest.skip(f"transformers cannot be imported ({error}); its names are tested below")
    kinds = {"basic": ([2, 2, 2, 2], [64, 128, 256, 512]), "bottleneck": ([3, 4, 6, 3], [256, 512, 1024, 2048])}
    for kind, (depths, widths) in kinds.items():
        theirs = settled(ResNetModel(ResNetConfig(layer_type=kind, depths=depths, hidden_sizes=widths)))
        found = load_foreign(saved(tmp_path, prefixed(theirs.state_dict(), "resnet."), "pytorch_model.bin"))
        assert_same(features(found.encoder, 64), features(lambda x, net=theirs: net(x).pooler_output, 64))
        assert found.unmatched == ()


# ---- by their names and settings alone


def hugging_face_names(state: State) -> State:
    """Its names, written down by hand from transformers' ResNet."""

    def renamed(name: str) -> str:
        name = re.sub(r"^conv1\.", "embedder.embedder.convolution.", name)
        name = re.sub(r"^bn1\.", "embedder.embedder.normalization.", name)
        kinds = {"conv": "convolution", "bn": "normalization", "0": "convolution", "1": "normalization"}
        name = re.sub(
            r"^layer(\d)\.(\d+)\.(conv|bn)(\d)\.",
            lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.layer.{int(m[4]) - 1}.{kinds[m[3]]}.",
            name,
        )
        return re.sub(
            r"^layer(\d)\.(\d+)\.downsample\.(\d)\.",
            lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.shortcut.{kinds[m[3]]}.",
            name,
        )

    return {renamed(name): tensor for name, tensor in state.items()}


@pytest.mark.parametrize("prefix", ["", "resnet.", "model.backbone."])
def test_hugging_faces_names_are_known(tmp_path: Path, prefix: str) -> None:
    plain = without_classifier(torchvision_network("resnet50", "imagenet")).state_dict()
    path = saved(tmp_path, prefixed(hugging_face_names(plain), prefix) | {"classifier.1.bias": torch.zeros(3)})
    found = load_foreign(path)
    assert (found.arch, found.stem, found.assumed) == ("resnet50", "imagenet", "")
    assert found.origin.startswith("names of Hugging Face's ResNet")
    assert all(torch.equal(value, plain[name]) for name, value in found.encoder.state_dict().items())
    assert found.unmatched == ("classifier.1.bias",)


@pytest.mark.parametrize(
    ("wrap", "stem", "assumed"),
    [
        (lambda s: s, "small", "padding, no max-pool"),
        (lambda s: prefixed(s, "backbone.") | SOLO_LEARN, "small-padding-2", ""),
        (lambda s: prefixed(s, "encoder.") | SOLO_LEARN, "small-padding-2", ""),
        (lambda s: prefixed(s, "net.") | SOLO_LEARN, "small", "padding, no max-pool"),
        (lambda s: prefixed(s, "backbone.") | {"classifier.bias": torch.zeros(3)}, "small", "padding, no max-pool"),
        (lambda s: prefixed(s, "encoder.") | BOLTS, "small", "no max-pool"),
        (lambda s: {"state_dict": s, "hyper_parameters": {"first_conv": False, "maxpool1": True}}, "small-pool", ""),
        (lambda s: {"state_dict": s, "hparams": argparse.Namespace(first_conv=False, maxpool1=False)}, "small", ""),
        (lambda s: lightly_names(s), "small", ""),
    ],
)  # fmt: skip
def test_the_stem_is_that_of_the_library_whose_names_they_are(
    tmp_path: Path, state: State, wrap: Callable[[State], object], stem: str, assumed: str
) -> None:
    found = load_foreign(saved(tmp_path, wrap(state)))
    assert_filled(found.encoder, state)
    assert (found.stem, found.assumed) == (stem, assumed)
    assert ("assumed, as the file does not say" in found.sentence()) == bool(assumed)
    assert all(part in found.sentence() for part in assumed.split(", "))


@pytest.mark.parametrize(("padding", "pool"), [(0, None), (2, None), (None, True), (3, True)])
def test_what_is_asked_for_the_stem_is_what_is_built(tmp_path: Path, padding: int | None, pool: bool | None) -> None:
    theirs = without_classifier(torchvision_network("resnet18", "small"))
    path = saved(tmp_path, theirs.state_dict())
    found = load_foreign(path, stem_padding=padding, stem_pool="max" if pool else None)
    if padding is not None:
        theirs.conv1 = nn.Conv2d(3, 64, 3, 1, padding, bias=False)
        theirs.conv1.weight = torchvision_network("resnet18", "small").conv1.weight
    if pool:
        theirs.maxpool = nn.MaxPool2d(3, 2, 1)
    assert_same(features(found.encoder, 32), features(theirs.eval(), 32))
    plain = features(load_foreign(path).encoder, 32)
    assert np.abs(plain - features(theirs, 32)).max() > 0.01
    assert ("padding" in found.assumed, "max-pool" in found.assumed) == (padding is None, pool is None)


def test_a_training_step_with_another_padding_has_its_gradients() -> None:
    """On small maps a convolution of padding 1 takes another way, which knows no other padding."""
    encoder = build_encoder("resnet18", "small-padding-2-pool").double().train()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    encoder(x).square().sum().backward()
    stem = nn.functional.conv2d(x, encoder.conv1.weight, padding=2)
    assert encoder.conv1(x).shape == stem.shape
    torch.testing.assert_close(encoder.conv1(x), stem)


def test_features_of_one_file_with_two_stems_are_cached_apart(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, state)
    keys: list[str] = []
    monkeypatch.setattr(encoders, "cached_features", lambda how, *_: keys.append(how))
    for padding in (None, 2):
        for encoder in open_target(path, stem_padding=padding).encoders.values():
            assert isinstance(encoder, encoders.TorchEncoder)
            encoder._compute(ImageStore.from_arrays(np.zeros((1, 8, 8, 3), np.uint8)), None)
    assert len(set(keys)) == 4
    assert ["small-padding-2" in key for key in keys] == [False, False, True, True]


@pytest.mark.parametrize(
    ("say", "kind"),
    [
        (lambda folder, state: saved(folder, {"arch": "resnetblur50", "state_dict": state}), "blur"),
        (lambda folder, state: saved(folder, {"args": argparse.Namespace(model="resnetaa50"), "m": state}), "average"),
        (lambda folder, state: saved(folder, state, "resnetblur50-84f4748f.pth"), "blur"),
        (
            lambda folder, state: (
                saved(folder, state, "weights.pth")
                if (folder / "config.json").write_text(json.dumps({"architecture": "resnetaa50"}))
                else None
            ),
            "average",
        ),
    ],
)
def test_a_network_that_smooths_is_known_where_anything_says_so(
    tmp_path: Path, say: Callable[[Path, State], Path], kind: str
) -> None:
    path = say(tmp_path, without_classifier(torchvision_network("resnet18", "imagenet")).state_dict())
    found = load_foreign(path)
    assert (found.smoothing, found.stem, found.assumed) == (kind, "imagenet", "")
    assert "strid" in found.sentence()
    assert load_foreign(path, stem_pool="max").smoothing == ""  # as asked
    with pytest.raises(UsageError, match="cannot start from this network"):
        open_start(path, Recipe.load("cifar10"), {})
    with pytest.raises(DataError, match="7×7 stem only"):
        load_foreign(say(tmp_path, numbered_tensors()))


# ---- whole modules


def test_a_pickled_module_gives_its_own_features_and_says_its_stem(tmp_path: Path) -> None:
    for padding, pool in ((1, nn.Identity()), (2, nn.MaxPool2d(3, 2, 1)), (1, nn.MaxPool2d(1, 1))):
        theirs = torchvision_network("resnet18", "small")
        theirs.conv1.padding, theirs.maxpool = (padding, padding), pool
        found = load_foreign(saved(tmp_path, {"epoch": 3, "model": theirs}))
        assert_same(features(found.encoder, 32), features(without_classifier(theirs), 32))
        assert (found.assumed, found.unmatched) == ("", ("fc.weight", "fc.bias"))
    torchvision_network.cache_clear()


def test_a_pickled_module_with_other_layers_is_refused_by_them(tmp_path: Path) -> None:
    for layer in (nn.LeakyReLU(), nn.AvgPool2d(2)):
        theirs = torchvision_network("resnet18", "small")
        theirs.layer2[0].relu = layer
        with pytest.raises(DataError, match="a layer that a plain ResNet does not have") as caught:
            load_foreign(saved(tmp_path, theirs))
        assert type(layer).__name__ in str(caught.value.saw)
        torchvision_network.cache_clear()


# ---- training checkpoints


class Config(dict):  # type: ignore[type-arg]  # as mmcv's and OmegaConf's
    """A dictionary of a class that the reader does not have."""


@pytest.mark.parametrize("old", [False, True])
def test_ordinary_training_checkpoints_give_exact_weights(tmp_path: Path, state: State, old: bool) -> None:
    lists = collections.defaultdict(list)
    lists["loss"].append(np.float64(0.5))
    around: dict[str, Any] = {
        "args": argparse.Namespace(lr=0.1, out=Path("runs")),
        "best": np.float32(0.5),
        "history": lists,
        "table": np.zeros((2, 3)),
        "when": torch.device("cpu"),
        "kinds": {1, 2},
        "frozen": frozenset({"a"}),
        "config": Config(model={"arch": "resnet18"}),
        "dtype": torch.float16,
        "half": torch.ones(3, dtype=torch.bfloat16),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]},
    }
    for holder in (dict, Config, lambda **items: argparse.Namespace(**items)):
        path = saved(tmp_path, around | {"model": holder(**{"net": state})}, _use_new_zipfile_serialization=not old)
        assert_filled(load_foreign(path).encoder, state)


def test_weights_with_an_unknown_ending_are_known_by_their_bytes(tmp_path: Path, state: State) -> None:
    for name in ("vissl.torch", "weights.th", "checkpoint", "model.pkl"):
        assert open_target(saved(tmp_path, state, name)).encoders["pretrained"].trainable
    (tmp_path / "notes.txt").write_text("text")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("cat/1.png", b"")
    for name in ("notes.txt", "photos.zip"):
        with pytest.raises(UsageError, match="neither a run"):
            open_target(tmp_path / name)
