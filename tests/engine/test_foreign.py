"""Encoders from elsewhere give the features that their own library's network gives, or are refused with the reason."""

from __future__ import annotations

import copy
import functools
import os
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from simclr_engine.checkpoint import encoder_metadata, save_checkpoint, save_weights
from simclr_engine.errors import DataError
from simclr_engine.evaluation.features import encoder_hash
from simclr_engine.foreign import CIFAR10, IMAGENET, load_foreign
from simclr_engine.model import SimCLR, build_encoder
from simclr_engine.recipe import Recipe
from simclr_engine.torchvision_shim import import_torchvision

State = dict[str, Tensor]
ARCHITECTURES = {"resnet18": "resnet-18", "resnet34": "resnet-34", "resnet50": "resnet-50"}  # torchvision's, lightly's


def settled(network: nn.Module, seed: int = 0) -> nn.Module:
    """In eval mode, with batch norm's statistics and scales away from where they start: a slip shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor, low, high in (
                    (module.running_mean, -0.3, 0.3),
                    (module.running_var, 0.5, 2.0),
                    (module.weight, 0.5, 1.5),
                    (module.bias, -0.3, 0.3),
                ):
                    assert tensor is not None
                    tensor.uniform_(low, high, generator=generator)
    return network.eval()


@functools.cache
def torchvision_network(arch: str, stem: str) -> nn.Module:
    """torchvision's own ResNet with its classifier; for small images with the stem that everybody writes by hand."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: nn.Module = getattr(import_torchvision().models, arch)()
        if stem == "small":
            network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
            network.maxpool = nn.Identity()
    return settled(network)


def features(network: nn.Module, side: int = 16) -> np.ndarray:
    """What the network says of two fixed images, `[2, D]`."""
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return network(images).flatten(1).numpy()


def without_classifier(network: nn.Module) -> nn.Module:
    network = copy.copy(network)
    network._modules = network._modules | {"fc": nn.Identity()}
    return network


@pytest.fixture(scope="module")
def state() -> State:
    """A ResNet-18 with the small stem in which every tensor is one number of its own, stored once: a file of 50 kB."""
    shapes = without_classifier(torchvision_network("resnet18", "small")).state_dict()
    return {
        name: torch.tensor(0.5 + i / 128).to(tensor.dtype).expand(tensor.shape)
        for i, (name, tensor) in enumerate(shapes.items())
    }


def assert_filled(encoder: nn.Module, state: State) -> None:
    """The encoder holds these values and no others, each tensor in memory of its own."""
    ours = encoder.state_dict()
    assert ours.keys() == state.keys()
    assert [name for name in ours if not torch.equal(ours[name], state[name])] == []
    assert len({tensor.data_ptr() for tensor in ours.values()}) == len(ours)
    assert all(tensor.is_contiguous() for tensor in ours.values())
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def saved(folder: Path, content: object, name: str = "weights.pt", **options: Any) -> Path:
    torch.save(content, folder / name, **options)
    return folder / name


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def lightly_names(state: State) -> State:
    """The names of lightly's own ResNet (and of the CIFAR ResNets that it follows)."""
    return {name.replace(".downsample.", ".shortcut."): tensor for name, tensor in state.items()}


def numbered(state: State, first: int) -> State:
    """The names of an nn.Sequential over the children of a ResNet, whose first stage is number `first`."""
    numbers = {"conv1": 0, "bn1": 1} | {f"layer{i + 1}": first + i for i in range(4)}
    return {f"{numbers[name.split('.')[0]]}.{name.partition('.')[2]}": tensor for name, tensor in state.items()}


def assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert np.abs(theirs).max() > 0.1  # there is something to compare
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


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
        ("imagenet", ["conv1", "bn1", "relu"], ("maxpool",)),
        ("small", ["conv1", "bn1"], ("relu",)),  # lightly's: its ReLU is a function, which nn.Sequential does not call
        ("imagenet", ["conv1", "bn1"], ("relu", "maxpool")),
    ],
)
def test_a_sequential_over_a_resnet_gives_the_features_of_that_sequential(
    tmp_path: Path, stem: str, children: list[str], left_out: tuple[str, ...]
) -> None:
    theirs = torchvision_network("resnet18", stem)
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


@pytest.mark.parametrize("change", [{"mean": "[0, 0]"}, {"std": "[1, 1, 0]"}, {"mean": "x"}, {"image_size": "0"}])
def test_a_normalisation_of_ours_that_makes_no_sense_is_refused(
    tmp_path: Path, state: State, change: dict[str, str]
) -> None:
    about = encoder_metadata(Recipe.load("lars-800"), 24) | change
    save_file({k: v.half().contiguous() for k, v in state.items()}, tmp_path / "encoder.safetensors", about)
    with pytest.raises(DataError, match="normalisation cannot be used"):
        load_foreign(tmp_path / "encoder.safetensors")


def test_an_assumed_normalisation_is_said_to_be_assumed(tmp_path: Path, state: State) -> None:
    sentence = load_foreign(saved(tmp_path, state, "mine.pth")).sentence()
    assert sentence.startswith("resnet18 with a 3×3 stem of stride 1 without max-pool from mine.pth (names of torch")
    assert sentence.endswith("normalised with the mean and std of CIFAR-10 (assumed: the file does not state them)")


# ---- what is refused


def refused(path: Path, message: str) -> DataError:
    with pytest.raises(DataError, match=message) as caught:
        load_foreign(path)
    assert caught.value.fix
    return caught.value


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("kind", ["zip", "old", "pickle"])
def test_a_file_with_code_is_refused_and_the_code_not_run(tmp_path: Path, kind: str) -> None:
    path, evil = tmp_path / "weights.pt", {"state_dict": Evil(tmp_path / "owned")}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(evil, protocol=2))
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=kind == "zip")
    error = refused(path, "would run code of its own")
    assert "system" in str(error.saw)
    assert "weights_only" not in str(error)  # torch's advice to switch the protection off is not passed on
    assert not (tmp_path / "owned").exists()


def test_a_whole_module_and_torchscript_are_refused_with_what_to_save_instead(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    error = refused(saved(tmp_path, nn.Linear(2, 2)), "more than weights")
    assert "torch.nn.modules.linear.Linear" in str(error.saw) and "state_dict()" in str(error.fix)
    # Scripts pack their code, and with a network the code outgrows the weights: no reason to call the file a bomb.
    network = nn.Sequential(*(nn.Linear(1, 1) for _ in range(50)))
    torch.jit.trace(network, torch.zeros(1, 1)).save(tmp_path / "script.pt")
    recwarn.clear()
    assert "TorchScript" in str(refused(tmp_path / "script.pt", "more than weights").saw)
    assert not recwarn.list


@pytest.mark.parametrize("content", [b"", b"x", b"<html>404 Not Found</html>", b"PK\x05\x06" + bytes(18), b"PK\x03\x04",
                                     bytes(range(256)), b"\x80\x02}q\x00.", b"12345678{}"])  # fmt: skip
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, "no checkpoint|no readable safetensors")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "No such file" in str(refused(tmp_path / "absent.pt", "cannot be read").saw)
    refused(tmp_path, "cannot be read")


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        ({"fc.weight": torch.zeros(2, 2), "blocks.0.attn.qkv.weight": torch.zeros(2)}, "fc.weight, blocks.0.attn"),
        ({"head": {f"n{i}": torch.zeros(1) for i in range(9)}}, "head.n0, head.n1, head.n2, head.n3, head.n4 and 4"),
        ({}, "no tensors under names"),
        ([torch.zeros(2)], "no tensors under names"),
        (torch.zeros(2), "no tensors under names"),
        ({0: {1: torch.zeros(2)}}, "no tensors under names"),
        ({"0.weight": torch.zeros(2), "2.0.conv1.weight": torch.zeros(2)}, "0.weight, 2.0.conv1.weight"),
        ({"player1.0.conv1.weight": torch.zeros(2)}, "player1"),
    ],
)  # fmt: skip
def test_other_networks_are_refused_by_the_names_that_were_seen(tmp_path: Path, content: object, seen: str) -> None:
    assert seen in str(refused(saved(tmp_path, content), "no ResNet in this file").saw)


def test_a_file_that_holds_itself_is_refused_like_any_other(tmp_path: Path) -> None:
    loop: dict[str, Any] = {}
    loop["again"] = loop
    bomb: dict[str, Any] = {"x": torch.zeros(1)}
    for _ in range(200):  # 2²⁰⁰ paths lead to the tensor
        bomb = {"a": bomb, "b": bomb}
    for content in (loop, bomb):
        refused(saved(tmp_path, content), "no ResNet in this file")


def test_names_from_the_file_cannot_flood_or_steer_the_terminal(tmp_path: Path) -> None:
    error = refused(saved(tmp_path, {"\x1b[31m" + "x" * 10_000: torch.zeros(1)}), "no ResNet")
    assert "\x1b" not in str(error) and len(str(error)) < 500


def planted(state: State, name: str, tensor: Tensor | None) -> State:
    changed = dict(state)
    if tensor is None:
        del changed[name]
    else:
        changed[name] = tensor
    return changed


@pytest.mark.parametrize(
    ("name", "shape", "message", "seen"),
    [
        ("layer1.0.conv1.weight", (128, 64, 3, 3), "another shape", "[128, 64, 3, 3] in {}, [64, 64, 3, 3] here"),
        ("layer1.0.conv1.weight", (64, 576, 1, 1), "another shape", "[64, 576, 1, 1] in {}, [64, 64, 3, 3] here"),
        ("conv1.weight", (64, 1, 3, 3), "another shape", "conv1.weight: [64, 1, 3, 3] in {}, [64, 3, 3, 3] here"),
        ("conv1.weight", (64, 3, 5, 5), "another shape", "[64, 3, 5, 5] in {}, [64, 3, 7, 7] here"),
        ("bn1.running_var", (128,), "another shape", "bn1.running_var: [128] in {}, [64] here"),
        ("conv1.weight", None, "missing", "1 missing: conv1.weight"),
        ("layer3.1.bn2.running_mean", None, "missing", "1 missing: layer3.1.bn2.running_mean"),
        ("layer2.0.downsample.0.weight", None, "missing", "1 missing: layer2.0.downsample.0.weight"),
        ("layer1.0.se.fc1.weight", (4, 64), "no plain resnet18", "layer1.0.se.fc1.weight"),
        ("conv1.bias", (64,), "no plain resnet18", "conv1.bias"),
        ("conv1.0.weight", (32, 3, 3, 3), "no plain resnet18", "conv1.0.weight"),
        ("bn2.weight", (64,), "no plain resnet18", "bn2.weight"),
        ("layer5.0.conv1.weight", (64,), "no plain resnet18", "layer5.0.conv1.weight"),
        ("layer2.0.shortcut.0.weight", (128, 64, 1, 1), "no plain resnet18", "layer2.0.shortcut.0.weight"),
        ("layer1.2.conv1.weight", (64, 64, 3, 3), "another ResNet", "basic blocks 3 + 2 + 2 + 2"),
    ],
)
def test_another_network_under_the_same_names_is_refused(
    tmp_path: Path, state: State, name: str, shape: tuple[int, ...] | None, message: str, seen: str
) -> None:
    path = saved(tmp_path, planted(state, name, None if shape is None else torch.zeros(shape)))
    assert seen.format(path) in str(refused(path, message).saw)


@pytest.mark.parametrize(
    ("constructor", "message"),
    [("resnet101", r"another ResNet"), ("resnext50_32x4d", "another shape"), ("wide_resnet50_2", "another shape")],
)
def test_torchvisions_other_resnets_are_refused(tmp_path: Path, constructor: str, message: str) -> None:
    with torch.device("meta"):
        theirs = getattr(import_torchvision().models, constructor)()
    content = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in theirs.state_dict().items()}
    refused(saved(tmp_path, content), message)


@pytest.mark.parametrize("variant", ["seresnet18", "resnet18d", "ecaresnet50d", "resnet50_gn", "resnetv2_50"])
def test_timms_variants_of_resnets_are_refused(tmp_path: Path, variant: str) -> None:
    import_torchvision()
    timm = pytest.importorskip("timm", reason="timm is not installed; such parts are planted by hand above")
    if variant not in timm.list_models():
        pytest.skip(f"this timm has no {variant}")
    with torch.device("meta"):
        theirs = timm.create_model(variant, pretrained=False)
    content = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in theirs.state_dict().items()}
    refused(saved(tmp_path, content), "no plain resnet|no ResNet in this file|are missing from")


def test_a_sequential_with_weights_between_stem_and_stages_is_another_network(tmp_path: Path, state: State) -> None:
    refused(saved(tmp_path, numbered(state, 4) | {"2.weight": torch.zeros(64)}), "no plain resnet18")  # a PReLU


def test_lightlys_smallest_resnet_is_refused(tmp_path: Path, state: State) -> None:
    nine = {name: tensor for name, tensor in state.items() if not re.match(r"layer\d\.1\.", name)}
    assert "basic blocks 1 + 1 + 1 + 1" in str(refused(saved(tmp_path, nine), "another ResNet").saw)


@pytest.mark.parametrize(
    ("name", "value"),
    [("layer1.1.conv2.weight", float("nan")), ("layer2.0.bn1.running_var", float("inf")), ("bn1.bias", 1e300)],
)
def test_weights_that_are_not_finite_in_float32_are_refused_by_name(
    tmp_path: Path, state: State, name: str, value: float
) -> None:
    tensor = state[name].double().contiguous()
    tensor.view(-1)[1] = value
    error = refused(saved(tmp_path, planted(state, name, tensor)), "not finite")
    assert f"{name}: 1 of {tensor.numel():,} are NaN or infinite" in str(error.saw)


def test_values_that_are_no_plain_numbers_are_refused(tmp_path: Path, state: State) -> None:
    quantised = state["bn1.weight"].to(torch.int8)
    assert "torch.int8" in str(refused(saved(tmp_path, planted(state, "bn1.weight", quantised)), "floating-point").saw)
    sparse = planted(state, "bn1.weight", state["bn1.weight"].to_sparse())
    assert "sparse" in str(refused(saved(tmp_path, sparse), "floating-point").saw)
    empty = planted(state, "bn1.weight", torch.empty(64, device="meta"))
    assert "no values" in str(refused(saved(tmp_path, empty), "floating-point|no checkpoint").saw)
    refused(saved(tmp_path, planted(state, "bn1.running_var", -state["bn1.running_var"])), "variance is negative")


@pytest.fixture(scope="module")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[bytes]]]:
    folder = tmp_path_factory.mktemp("files")
    content = {"state_dict": {"layer1.0.conv1.weight": torch.ones(3)}, "epoch": 3}
    files = [saved(folder, content), saved(folder, content, "old.pt", _use_new_zipfile_serialization=False)]
    save_file({"layer1.0.conv1.weight": torch.ones(3)}, folder / "a.safetensors")
    yield folder, [path.read_bytes() for path in (*files, folder / "a.safetensors")]


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    which=st.integers(0, 2),
    cut=st.floats(0, 1),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
)
def test_a_damaged_file_ends_in_an_error_of_ours(
    small_files: tuple[Path, list[bytes]], which: int, cut: float, changes: list[tuple[float, int]]
) -> None:
    folder, contents = small_files
    raw = bytearray(contents[which])
    for at, byte in changes:
        raw[int(at * len(raw))] = byte
    (folder / "damaged").write_bytes(raw[: int(cut * len(raw))])
    with pytest.raises(DataError):  # whole, it is no ResNet either
        load_foreign(folder / "damaged")
