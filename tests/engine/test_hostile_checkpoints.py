"""Checkpoints and weights made to exhaust, to hang or to mislead their reader."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fixtures.hostile import whole_and_short
from fuzz.seeds import quantised
from simclr_engine import checkpoint
from simclr_engine.checkpoint import FOOTER, load_checkpoint, load_encoder, save_checkpoint
from simclr_engine.errors import DataError
from simclr_engine.model import build_encoder
from simclr_engine.recipe import Recipe
from simclr_engine.weights import load_foreign


def footed(body: bytes) -> bytes:
    """A checkpoint of ours around any bytes: the footer is no secret."""
    import hashlib

    return body + FOOTER + hashlib.sha256(body).digest()


def torch_zip(state: object, method: int) -> bytes:
    """torch.save's archive with its members packed."""
    plain, packed = io.BytesIO(), io.BytesIO()
    torch.save(state, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", method) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return packed.getvalue()


def test_a_checkpoint_that_unpacks_to_more_than_it_is_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    raw = torch_zip({"a": torch.zeros(32 << 18)}, zipfile.ZIP_DEFLATED)  # 32 MB of zeros
    assert len(raw) < 1 << 20
    (tmp_path / "ours.pt").write_bytes(footed(raw))
    (tmp_path / "theirs.pt").write_bytes(raw)
    for read, name in ((load_checkpoint, "ours.pt"), (load_foreign, "theirs.pt"), (load_foreign, "ours.pt")):
        with pytest.raises(DataError, match="more than the file has"):
            read(tmp_path / name)
    (tmp_path / "plain.pt").write_bytes(footed(torch_zip({"a": torch.ones(3)}, zipfile.ZIP_STORED)))
    assert torch.equal(load_checkpoint(tmp_path / "plain.pt")["a"], torch.ones(3))


def test_a_checkpoint_whose_directory_is_damaged_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"PK\x03\x04" + bytes(500))
    with pytest.raises(DataError, match="damaged"):
        load_foreign(tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(footed(b"PK\x03\x04" + bytes(500)))
    with pytest.raises(DataError, match="damaged"):
        load_checkpoint(tmp_path / "b.pt")


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02}q\x00h\x05.",  # a memo that is not there: KeyError
        b"\x80\x02}(K\x01u.",  # half an entry: IndexError
        b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.",  # TypeError
        b"\x80\x02cbuiltins\nbytearray\n\x8a\x07\xff\xff\xff\xff\xff\xff\x7f\x85R.",  # MemoryError
        b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",  # UnicodeDecodeError
    ],
)
def test_a_pickle_that_fails_in_any_way_is_a_data_error(tmp_path: Path, pickled: bytes) -> None:
    buffer = io.BytesIO()
    torch.save({}, buffer)
    packed = io.BytesIO()
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(packed, "w") as target:
        for name in source.namelist():
            target.writestr(name, pickled if name.endswith("data.pkl") else source.read(name))
    (tmp_path / "ours.pt").write_bytes(footed(packed.getvalue()))
    (tmp_path / "theirs.pt").write_bytes(packed.getvalue())
    for read, name in ((load_checkpoint, "ours.pt"), (load_foreign, "theirs.pt")):
        with pytest.raises(DataError) as caught:
            read(tmp_path / name)
        whole_and_short(caught.value)


def two_encoders(one: torch.Tensor, other: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"a.layer1.0.conv1.weight": one, "b.layer1.0.conv1.weight": other}


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(1).expand(10**5, 10**5, 1000),  # 40 TB of one value: comparing two took hours
        torch.empty(3, device="meta"),
        torch.eye(3).to_sparse(),
        quantised(),
    ],
    ids=["expanded", "meta", "sparse", "quantised"],
)
@pytest.mark.filterwarnings("ignore")
def test_two_encoders_of_strange_tensors_are_compared_without_pain(tmp_path: Path, tensor: torch.Tensor) -> None:
    torch.save(two_encoders(tensor, tensor.clone() if tensor.numel() < 10 else tensor), tmp_path / "a.pt")
    with pytest.raises(DataError):
        load_foreign(tmp_path / "a.pt")


@pytest.mark.parametrize("model", [None, [1], {1: torch.ones(2)}, {"encoder.conv1.weight": 3}])
def test_a_run_whose_checkpoint_holds_no_model_is_refused(
    tmp_path: Path, model: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "build_encoder", lambda *_: torch.nn.Conv2d(3, 2, 1))
    (tmp_path / "checkpoints").mkdir()
    state = {"recipe": Recipe.load("demo").to_toml()} | ({} if model is None else {"model": model})
    save_checkpoint(tmp_path / "checkpoints" / "last.pt", state)
    with pytest.raises(DataError, match=r"no model|do not fit"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    "recipe", [None, 3, "", "a = [", "a=" + "[" * 100_000, 'name = "demo"'], ids=lambda t: str(t)[:9]
)
def test_a_checkpoint_without_a_whole_recipe_is_refused_in_a_line(tmp_path: Path, recipe: object) -> None:
    (tmp_path / "checkpoints").mkdir()
    state = {"model": {"encoder.conv1.weight": torch.ones(1)}} | ({} if recipe is None else {"recipe": recipe})
    save_checkpoint(tmp_path / "checkpoints" / "last.pt", state)
    with pytest.raises(DataError, match="the checkpoint holds no recipe") as caught:
        load_encoder(tmp_path)
    assert r"\n" not in str(caught.value)


@pytest.mark.parametrize(
    "strange", [lambda t: t.to("meta"), lambda t: t.to_sparse(), lambda t: t.new_ones(1), lambda t: None], ids=str
)
def test_weights_without_values_of_their_own_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strange: Callable[[torch.Tensor], object]
) -> None:
    recipe = Recipe.load("cifar10-sgd")
    weights = {f"encoder.{k}": v for k, v in build_encoder(recipe.model.arch, recipe.model.stem).state_dict().items()}
    (tmp_path / "checkpoints").mkdir()
    for name in ("encoder.conv1.weight", "encoder.bn1.running_mean"):
        state = {"model": weights | {name: strange(weights[name])}, "recipe": recipe.to_toml()}
        monkeypatch.setattr(checkpoint, "newest_checkpoint", lambda _, state=state: (state, tmp_path / "last.pt", []))
        with pytest.raises(DataError, match="do not fit the encoder"):
            load_encoder(tmp_path)


def test_an_encoder_file_without_its_stem_is_refused(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.ones(2)}, tmp_path / "encoder.safetensors", {"arch": "resnet18"})
    with pytest.raises(DataError, match="do not fit"):
        load_encoder(tmp_path / "encoder.safetensors")


def test_what_a_safetensors_file_says_of_its_damage_is_cut_short(tmp_path: Path) -> None:
    header = b'{"a": {"dtype": "' + b"x" * 60_000 + b'"}}'
    (tmp_path / "encoder.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    for read in (load_encoder, load_foreign):
        with pytest.raises(DataError) as caught:
            read(tmp_path / "encoder.safetensors")
        whole_and_short(caught.value)
