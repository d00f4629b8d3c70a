"""Checkpoints survive what happens to files: cut short, altered, a full disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from simclr_engine import checkpoint
from simclr_engine.checkpoint import (
    load_checkpoint,
    newest_checkpoint,
    pack_weights,
    read_tensors,
    save_checkpoint,
    save_last,
)
from simclr_engine.errors import DataError, PlatformError


def _state(step: int) -> dict[str, object]:
    return {"step": step, "model": {"w": torch.full((3,), float(step))}}


def test_a_checkpoint_comes_back_equal(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", _state(5))
    state = load_checkpoint(tmp_path / "a.pt")
    assert state["step"] == 5
    assert torch.equal(state["model"]["w"], torch.full((3,), 5.0))


def test_the_same_weights_and_metadata_are_the_same_bytes(tmp_path: Path) -> None:
    about = {name: name.upper() for name in "zyxwvutsrqponmlkjihgfedcba"} | {"ü": "é"}
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    orders = (about, dict(reversed(about.items())))
    packed = {pack_weights(module, order) for order in orders for _ in range(8)}
    assert len(packed) == 1  # safetensors itself writes metadata in an order of chance
    (tmp_path / "a.safetensors").write_bytes(packed.pop())
    tensors, metadata = read_tensors(tmp_path / "a.safetensors", "", "")
    assert metadata == about and tensors.keys() == module.state_dict().keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "foreign"])
def test_a_damaged_checkpoint_is_detected_and_the_previous_one_taken(tmp_path: Path, damage: str) -> None:
    save_last(tmp_path, _state(1))
    save_last(tmp_path, _state(2))
    last = tmp_path / "last.pt"
    raw = bytearray(last.read_bytes())
    if damage == "cut":
        raw = raw[: len(raw) // 2]
    elif damage == "flip":
        raw[len(raw) // 2] ^= 1
    elif damage == "empty":
        raw = bytearray()
    else:
        raw = bytearray(b"PK not ours" * 10)
    last.write_bytes(raw)
    with pytest.raises(DataError, match="truncated or was altered"):
        load_checkpoint(last)
    state, path, complaints = newest_checkpoint(tmp_path)
    assert (state["step"], path.name) == (1, "previous.pt")
    assert complaints and "last.pt" in complaints[0]


def test_a_crash_between_the_two_renames_leaves_the_newest_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_last(tmp_path, _state(1))
    real = os.replace

    def crash(source: str, target: str, **handles: int) -> None:
        if target == "last.pt":
            raise KeyboardInterrupt
        real(source, target, **handles)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        save_last(tmp_path, _state(2))
    monkeypatch.undo()
    state, path, _ = newest_checkpoint(tmp_path)
    assert (state["step"], path.name) == (2, "next.pt")


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_last(tmp_path, _state(1))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(PlatformError, match="No space left") as caught:
        save_last(tmp_path, _state(2))
    assert caught.value.exit_code == 3
    assert newest_checkpoint(tmp_path)[0]["step"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pt"]


def test_a_parent_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PlatformError, match="Not a directory"):
        save_checkpoint(tmp_path / "file" / "a.pt", _state(1))


def test_no_good_checkpoint_is_an_error_that_lists_them(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match=r"last\.pt"):
        newest_checkpoint(tmp_path)


def test_a_pickle_that_would_run_code_is_not_loaded(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.system, (f"touch {tmp_path}/owned",))

    save_checkpoint(tmp_path / "a.pt", {"step": Evil()})
    with pytest.raises(DataError, match="does not load"):
        load_checkpoint(tmp_path / "a.pt")
    assert not (tmp_path / "owned").exists()
