"""Files from elsewhere that are refused, with the reason: code, other networks, strange values, damage."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from fixtures.foreign_weights import (
    State,
    assert_filled,
    numbered,
    numbered_tensors,
    saved,
)
from simclr_engine.errors import DataError
from simclr_engine.torchvision_shim import import_torchvision
from simclr_engine.weights import load_foreign


@pytest.fixture(scope="module")
def state() -> State:
    return numbered_tensors()


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
def test_the_code_in_a_file_is_not_run_and_its_weights_are_read(tmp_path: Path, state: State, kind: str) -> None:
    path, evil = tmp_path / "weights.pt", {"evil": Evil(tmp_path / "owned")}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(evil, protocol=2))
        refused(path, "no ResNet in this file")
    else:
        torch.save(evil | {"state_dict": state}, path, _use_new_zipfile_serialization=kind == "zip")
        assert_filled(load_foreign(path).encoder, state)
    assert not (tmp_path / "owned").exists()


def test_torchscript_is_refused_with_what_to_save_instead(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    # Scripts pack their code, and with a network the code outgrows the weights: no reason to call the file a bomb.
    network = nn.Sequential(*(nn.Linear(1, 1) for _ in range(50)))
    torch.jit.trace(network, torch.zeros(1, 1)).save(tmp_path / "script.pt")
    recwarn.clear()
    assert "state_dict()" in str(refused(tmp_path / "script.pt", "TorchScript program").fix)
    assert not recwarn.list


@pytest.mark.parametrize("content", [b"", b"x", b"<html>404 Not Found</html>", b"PK\x05\x06" + bytes(18), b"PK\x03\x04",
                                     bytes(range(256)), b"\x80\x02}q\x00", b"12345678{}"])  # fmt: skip
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, "not a checkpoint|safetensors file cannot be read")


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
        ("layer1.0.se.fc1.weight", (4, 64), "not a plain resnet18", "layer1.0.se.fc1.weight"),
        ("conv1.bias", (64,), "not a plain resnet18", "conv1.bias"),
        ("conv1.0.weight", (32, 3, 3, 3), "not a plain resnet18", "conv1.0.weight"),
        ("bn2.weight", (64,), "not a plain resnet18", "bn2.weight"),
        ("layer5.0.conv1.weight", (64,), "not a plain resnet18", "layer5.0.conv1.weight"),
        ("layer2.0.shortcut.0.weight", (128, 64, 1, 1), "not a plain resnet18", "layer2.0.shortcut.0.weight"),
        ("layer1.2.conv1.weight", (64, 64, 3, 3), "is not a ResNet-18", "basic blocks 3 + 2 + 2 + 2"),
    ],
)
def test_another_network_under_the_same_names_is_refused(
    tmp_path: Path, state: State, name: str, shape: tuple[int, ...] | None, message: str, seen: str
) -> None:
    path = saved(tmp_path, planted(state, name, None if shape is None else torch.zeros(shape)))
    assert seen.format(path) in str(refused(path, message).saw)


@pytest.mark.parametrize(
    ("constructor", "message"),
    [("resnet101", "is not a ResNet-18"), ("resnext50_32x4d", "another shape"), ("wide_resnet50_2", "another shape")],
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
    refused(saved(tmp_path, content), "not a plain resnet|no ResNet in this file|are missing from")


def test_a_sequential_with_weights_between_stem_and_stages_is_another_network(tmp_path: Path, state: State) -> None:
    refused(saved(tmp_path, numbered(state, 4) | {"2.weight": torch.zeros(64)}), "not a plain resnet18")  # a PReLU


def test_lightlys_smallest_resnet_is_refused(tmp_path: Path, state: State) -> None:
    nine = {name: tensor for name, tensor in state.items() if not re.match(r"layer\d\.1\.", name)}
    assert "basic blocks 1 + 1 + 1 + 1" in str(refused(saved(tmp_path, nine), "is not a ResNet-18").saw)


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
    assert "no values" in str(refused(saved(tmp_path, empty), "floating-point|not a checkpoint").saw)
    counter = "bn1.num_batches_tracked"
    for odd in (torch.empty((), device="meta"), torch.ones(()).to_sparse(), torch.ones((), dtype=torch.complex64)):
        refused(saved(tmp_path, planted(state, counter, odd)), "floating-point|not a checkpoint")
    halves = planted(state, "bn1.running_mean", torch.zeros(64, dtype=torch.uint8).view(torch.float4_e2m1fn_x2))
    refused(saved(tmp_path, halves), "floating-point|not a checkpoint")
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
