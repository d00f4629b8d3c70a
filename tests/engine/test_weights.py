"""Encoders from elsewhere give the features that their own library's network gives."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fixtures.foreign_weights import (
    State,
    assert_filled,
    assert_same,
    features,
    lightly_names,
    numbered,
    numbered_tensors,
    prefixed,
    saved,
    settled,
    torchvision_network,
    without_classifier,
)
from simclr_engine.checkpoint import encoder_metadata, save_checkpoint, save_weights
from simclr_engine.errors import DataError
from simclr_engine.evaluation.features import encoder_hash
from simclr_engine.model import SimCLR, build_encoder
from simclr_engine.recipe import Recipe
from simclr_engine.torchvision_shim import import_torchvision
from simclr_engine.weights import CIFAR10, IMAGENET, load_foreign

ARCHITECTURES = {"resnet18": "resnet-18", "resnet34": "resnet-34", "resnet50": "resnet-50"}  # torchvision's, lightly's


@pytest.fixture(scope="module")
def state() -> State:
    return numbered_tensors()


# ---- whose network it is


@pytest.mark.parametrize(
    ("arch", "stem", "dim"),
    [("resnet18", "imagenet", 512), ("resnet18", "small", 512), ("resnet34", "small", 512),
     ("resnet50", "imagenet", 2048)],
)  # fmt: skip
def test_torchvisions_checkpoints_give_torchvisions_features(tmp_path: Path, arch: str, stem: str, dim: int) -> None:
    theirs = torchvision_network(arch, stem)
    found = load_foreign(saved(tmp_path, theirs.state_dict(), "weights.pth"))
    assert_same(features(found.encoder), features(without_classifier(theirs)))
    assert (found.arch, found.stem, found.feature_dim, found.encoder.training) == (arch, stem, dim, False)
    assert (found.matched, found.unmatched, found.missing) == (
        len(theirs.state_dict()) - 2,
        ("fc.weight", "fc.bias"),
        (),
    )
    assert found.origin == "names of torchvision and timm"
    assert (found.mean, found.std) == (CIFAR10 if stem == "small" else IMAGENET)
    assert (found.normalisation_known, found.image_size) == (False, None)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_timms_checkpoints_give_timms_features(tmp_path: Path, arch: str) -> None:
    import_torchvision()
    timm = pytest.importorskip("timm", reason="timm is not installed; its names are torchvision's, tested above")
    theirs = settled(timm.create_model(arch, pretrained=False))
    found = load_foreign(saved(tmp_path, theirs.state_dict()))
    assert set(theirs.state_dict()) == set(torchvision_network(arch, "imagenet").state_dict())
    theirs.reset_classifier(0)
    assert_same(features(found.encoder, 64), features(theirs, 64))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_lightlys_own_resnets_give_lightlys_features(tmp_path: Path, arch: str) -> None:
    import_torchvision()
    lightly = pytest.importorskip(
        "lightly.models", reason="lightly is not installed; its names are tested by hand-written renamings"
    )
    theirs = settled(lightly.ResNetGenerator(ARCHITECTURES[arch]))
    by_hand = set(lightly_names(without_classifier(torchvision_network(arch, "small")).state_dict()))
    assert set(theirs.state_dict()) == by_hand | {"linear.weight", "linear.bias"}
    found = load_foreign(saved(tmp_path, theirs.state_dict()))
    theirs.linear = nn.Identity()
    assert_same(features(found.encoder, 32), features(theirs, 32))
    assert (found.arch, found.stem, found.unmatched) == (arch, "small", ("linear.weight", "linear.bias"))


def test_lightlys_backbone_gives_the_features_that_it_gives_in_lightly(tmp_path: Path) -> None:
    import_torchvision()
    lightly = pytest.importorskip(
        "lightly.models", reason="lightly is not installed; its names are tested by hand-written renamings"
    )

    class Model(nn.Module):  # as lightly's tutorial writes it
        def __init__(self) -> None:
            super().__init__()
            resnet = lightly.ResNetGenerator("resnet-18")
            self.backbone = nn.Sequential(*list(resnet.children())[:-1], nn.AdaptiveAvgPool2d(1))
            self.projection_head = nn.Linear(512, 128)

    theirs = settled(Model())
    plain = without_classifier(torchvision_network("resnet18", "small")).state_dict()
    names = {"backbone." + name for name in numbered(lightly_names(plain), 2)}
    assert set(theirs.state_dict()) == names | {"projection_head.weight", "projection_head.bias"}
    found = load_foreign(saved(tmp_path, {"state_dict": theirs.state_dict()}, "last.ckpt"))
    assert_same(features(found.encoder), features(theirs.backbone))
    assert found.unmatched == ("projection_head.weight", "projection_head.bias")


def test_shortcuts_by_lightlys_name_are_downsampling(tmp_path: Path, state: State) -> None:
    found = load_foreign(saved(tmp_path, {"model": prefixed(lightly_names(state), "encoder.module.")}))
    assert_filled(found.encoder, state)
    assert found.origin == "names of lightly's ResNet, under model.encoder.module"


@pytest.mark.parametrize(
    ("stem", "children", "left_out"),
    [
        ("imagenet", ["conv1", "bn1", "relu", "maxpool"], ()),
        ("small", ["conv1", "bn1", "relu", "maxpool"], ()),
        ("small", ["conv1", "bn1", "relu"], ()),  # max-pool skipped instead of replaced
        ("imagenet-no-pool", ["conv1", "bn1", "relu"], ()),
        ("small", ["conv1", "bn1"], ("relu",)),  # lightly's: its ReLU is a function, which nn.Sequential does not call
        ("imagenet-no-pool", ["conv1", "bn1"], ("relu",)),
    ],
)
def test_a_sequential_over_a_resnet_gives_the_features_of_that_sequential(
    tmp_path: Path, stem: str, children: list[str], left_out: tuple[str, ...]
) -> None:
    theirs = torchvision_network("resnet18", stem.removesuffix("-no-pool"))
    names = [*children, "layer1", "layer2", "layer3", "layer4"]
    sequential = nn.Sequential(*(getattr(theirs, name) for name in names), nn.AdaptiveAvgPool2d(1))
    plain = without_classifier(theirs).state_dict()
    assert set(sequential.state_dict()) == set(numbered(plain, len(children)))
    found = load_foreign(saved(tmp_path, prefixed(sequential.state_dict(), "backbone.")))
    assert_same(features(found.encoder, 32), features(sequential, 32))
    assert (found.stem, found.left_out, found.missing, found.unmatched) == (stem, left_out, (), ())
    for module in left_out:
        assert f"no {module}" in found.sentence()
    twin = build_encoder("resnet18", stem)
    twin.load_state_dict(plain)
    # Features are cached by this hash, and those of a network without its ReLU are others.
    assert (encoder_hash(found.encoder) == encoder_hash(twin)) == (not left_out)
    assert_same(features(found.adapt(twin.eval()), 32), features(sequential, 32))
    assert encoder_hash(twin) == encoder_hash(found.encoder)


@pytest.mark.parametrize(
    ("prefix", "sequential"),
    [(prefix, False) for prefix in ("module.", "backbone.", "encoder.", "model.", "resnet.", "_orig_mod.", "net.f.",
                                    "module.encoder_q.", "model._orig_mod.backbone.", "1.")]
    + [("", True), ("f.", True), ("module.backbone.0.", True)],
)  # fmt: skip
def test_any_prefix_is_stripped(tmp_path: Path, state: State, prefix: str, sequential: bool) -> None:
    names = prefixed(numbered(state, 4) if sequential else state, prefix)
    heads = {"projector.0.weight": torch.zeros(8, 512), "projector.0.bias": torch.zeros(8)}
    found = load_foreign(saved(tmp_path, names | heads))
    assert_filled(found.encoder, state)
    assert found.unmatched == tuple(heads)
    assert found.matched == len(state)


def test_torch_compiles_mark_is_stripped_inside_names_too(tmp_path: Path, state: State) -> None:
    compiled = {re.sub(r"^(layer\d)\.", r"\1._orig_mod.", name): tensor for name, tensor in state.items()}
    found = load_foreign(saved(tmp_path, compiled))
    assert_filled(found.encoder, state)
    assert found.unmatched == ()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3, "arch": "resnet18"},
        lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(9)}}, "param_groups": [{"lr": 0.1}]}},
        lambda s: {"model_state_dict": s, "loss": 0.5},
        lambda s: {"encoder": s},
        lambda s: {"classy_state_dict": {"base_model": {"model": {"trunk": prefixed(s, "_feature_blocks.")}}}},
        lambda s: {"state_dict": prefixed(s, "backbone."), "pytorch-lightning_version": "2", "callbacks": {},
                   "optimizer_states": [{"state": {0: {"momentum": torch.ones(3)}}}]},
        lambda s: {"net": s, "same": s},
        lambda s: [s][0],
    ],
)  # fmt: skip
def test_the_weights_are_found_inside_wrappers(tmp_path: Path, state: State, wrap: Callable[[State], object]) -> None:
    found = load_foreign(saved(tmp_path, wrap(state), "weights.ckpt"))
    assert_filled(found.encoder, state)
    assert found.unmatched == ()


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.ckpt", "w.bin", "w.pth.tar", "old.pt", "w.safetensors", "s.bin"])
def test_every_kind_of_file_is_read_by_what_it_is(tmp_path: Path, state: State, name: str) -> None:
    if name in ("w.safetensors", "s.bin"):
        save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / name, {"format": "pt"})
    else:
        saved(tmp_path, state, name, _use_new_zipfile_serialization=name != "old.pt")
    assert_filled(load_foreign(tmp_path / name).encoder, state)


def test_half_precision_is_taken_as_float32_of_the_same_values(tmp_path: Path, state: State) -> None:
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    encoder = load_foreign(saved(tmp_path, half)).encoder
    for name, tensor in encoder.state_dict().items():
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor, half[name].to(tensor.dtype))


def test_batch_norms_counters_may_be_missing(tmp_path: Path, state: State) -> None:
    without = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    found = load_foreign(saved(tmp_path, without))
    assert_filled(found.encoder, state | {name: torch.zeros_like(state[name]) for name in set(state) - set(without)})
    assert set(found.missing) == set(state) - set(without)
    assert found.matched == len(without)


def test_the_callers_random_numbers_are_left_alone(tmp_path: Path, state: State) -> None:
    path = saved(tmp_path, state)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_foreign(path)
    assert torch.equal(torch.rand(3), expected)


# ---- which network is meant


@pytest.mark.parametrize(
    ("trained", "slow", "swapped"),
    [
        ("module.encoder_q.", "module.encoder_k.", True),
        ("backbone.", "backbone_momentum.", False),
        ("backbone.", "momentum_backbone.", True),
        ("student.backbone.", "teacher.backbone.", True),
        ("online.net.", "target.net.", True),
        ("", "model_ema.", False),
    ],
)
def test_the_trained_encoder_is_taken_not_its_slow_copy(
    tmp_path: Path, state: State, trained: str, slow: str, swapped: bool
) -> None:
    copy = {name: tensor + 1 for name, tensor in state.items()}
    parts = [prefixed(state, trained), prefixed(copy, slow)]
    if swapped:
        parts.reverse()
    found = load_foreign(saved(tmp_path, parts[0] | parts[1]))
    assert_filled(found.encoder, state)
    assert set(found.unmatched) == set(prefixed(state, slow))
    (note,) = found.notes()
    assert slow + "conv1.weight" in note and f"and {len(state) - 5} more" in note


def test_timms_averaged_weights_are_named_as_not_used(tmp_path: Path, state: State) -> None:
    ema = {name: tensor + 1 for name, tensor in state.items()}
    found = load_foreign(saved(tmp_path, {"state_dict_ema": ema, "state_dict": state}))
    assert_filled(found.encoder, state)
    assert found.unmatched[0] == "state_dict_ema.conv1.weight"


def test_a_slow_copy_alone_is_taken(tmp_path: Path, state: State) -> None:
    assert_filled(load_foreign(saved(tmp_path, prefixed(state, "teacher."))).encoder, state)


def test_one_encoder_saved_twice_is_taken_once(tmp_path: Path, state: State) -> None:
    twins = {name: tensor.clone() for name, tensor in state.items()}
    found = load_foreign(saved(tmp_path, prefixed(state, "encoder.") | prefixed(twins, "online.")))
    assert_filled(found.encoder, state)
    assert set(found.unmatched) == set(prefixed(state, "online."))


def test_two_different_encoders_are_refused_by_their_places(tmp_path: Path, state: State) -> None:
    other = {name: tensor + 1 for name, tensor in state.items()}
    with pytest.raises(DataError, match="several ResNets") as caught:
        load_foreign(saved(tmp_path, prefixed(state, "left.") | prefixed(other, "right.")))
    assert "left, right" in str(caught.value.saw)


# ---- files of ours


def test_files_of_a_run_of_ours_say_their_normalisation_and_size(tmp_path: Path) -> None:
    recipe = Recipe.load("lars-800")  # neither CIFAR-10's statistics nor ImageNet's
    model = settled(SimCLR(recipe.model, recipe.head))
    for name, part in (("encoder", model.encoder), ("model", model)):
        path = tmp_path / f"{name}.safetensors"
        save_weights(path, part, encoder_metadata(recipe, 24))
        found = load_foreign(path)
        assert encoder_hash(found.encoder) == encoder_hash(model.encoder)
        assert (found.mean, found.std, found.image_size) == (recipe.augment.mean, recipe.augment.std, 24)
        assert found.normalisation_known and "normalised as in its training" in found.sentence()
        assert all(name.startswith("head.") for name in found.unmatched)
    save_checkpoint(tmp_path / "last.pt", {"step": 3, "model": model.state_dict()})
    found = load_foreign(tmp_path / "last.pt")
    assert encoder_hash(found.encoder) == encoder_hash(model.encoder)
    assert found.origin.endswith("under model.encoder")
    raw = bytearray((tmp_path / "last.pt").read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "last.pt").write_bytes(raw)
    with pytest.raises(DataError, match="truncated or was altered"):
        load_foreign(tmp_path / "last.pt")


ODD_NUMBERS = [
    {"std": "[1, 1, NaN]"},
    {"std": "[1, Infinity, 1]"},
    {"mean": f"[{10**400}, 0, 0]"},
    {"mean": "[" * 10**5},
]


@pytest.mark.parametrize(
    "change", [{"mean": "[0, 0]"}, {"std": "[1, 1, 0]"}, {"mean": "x"}, {"image_size": "0"}, *ODD_NUMBERS]
)
def test_a_normalisation_of_ours_that_makes_no_sense_is_refused(
    tmp_path: Path, state: State, change: dict[str, str]
) -> None:
    about = encoder_metadata(Recipe.load("lars-800"), 24) | change
    save_file({k: v.half().contiguous() for k, v in state.items()}, tmp_path / "encoder.safetensors", about)
    with pytest.raises(DataError, match="normalisation in the metadata of the file is not valid"):
        load_foreign(tmp_path / "encoder.safetensors")


def test_an_assumed_normalisation_is_said_to_be_assumed(tmp_path: Path, state: State) -> None:
    sentence = load_foreign(saved(tmp_path, state, "mine.pth")).sentence()
    assert sentence.startswith(
        "resnet18 with a 3×3 stem of stride 1 and padding 1, without max-pool (assumed, as the file does "
        "not say: padding, no max-pool; --stem-padding and --stem-pool set them) from mine.pth (names of torchvision "
        "and timm), "
    )
    assert sentence.endswith("normalised with the mean and std of CIFAR-10 (assumed: the file does not state them)")
