"""One reader of safetensors: what was written comes back, and what cannot be read is refused in the caller's words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from simclr_engine.checkpoint import load_encoder, read_tensors, save_weights
from simclr_engine.errors import DataError
from simclr_engine.weights import load_foreign


def test_tensors_and_metadata_come_back_as_they_were_written(tmp_path: Path) -> None:
    module = nn.Linear(3, 2)
    save_weights(tmp_path / "w.safetensors", module, {"arch": "none", "ключ": "значение"})
    tensors, metadata = read_tensors(tmp_path / "w.safetensors", "", "")
    assert metadata == {"arch": "none", "ключ": "значение"}
    assert tensors.keys() == {"weight", "bias"}
    assert all(torch.equal(tensors[name], value) for name, value in module.state_dict().items())
    save_weights(tmp_path / "plain.safetensors", module, {})
    assert read_tensors(tmp_path / "plain.safetensors", "", "")[1] == {}


@pytest.mark.parametrize(
    ("reader", "cause", "fix"),
    [
        (load_encoder, "the weights cannot be read", "a run directory or its encoder.safetensors"),
        (load_foreign, "the safetensors file cannot be read", "it is damaged: download it again"),
    ],
)
@pytest.mark.parametrize("damage", ["cut", "no header", "long header"])
def test_a_damaged_file_is_refused_in_the_words_of_its_reader(
    tmp_path: Path, reader: object, cause: str, fix: str, damage: str
) -> None:
    assert callable(reader)
    path = tmp_path / "w.safetensors"
    save_weights(path, nn.Linear(3, 2), {"arch": "resnet18"})
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-9], "no header": b"1234567", "long header": b"\xff" * 8 + b"{}"}[damage])
    with pytest.raises(DataError) as caught:
        reader(path)
    assert caught.value.cause == cause and fix in str(caught.value.fix)
    assert str(path) in str(caught.value.saw)
