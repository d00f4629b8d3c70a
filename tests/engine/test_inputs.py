"""Only regular files of a bounded size are opened, whatever a path leads to; nothing waits for ever."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from simclr_engine.checkpoint import load_checkpoint, read_tensors
from simclr_engine.data import Selection, load_data
from simclr_engine.data.archive import ArchiveSource
from simclr_engine.data.folder import FolderSource
from simclr_engine.data.tables import read_labels, read_list
from simclr_engine.errors import DataError, EngineError, UsageError
from simclr_engine.evaluation.linear import LinearProbe
from simclr_engine.evaluation.records import load_embeddings, load_results
from simclr_engine.export.metadata import read_model
from simclr_engine.files import read_arrays
from simclr_engine.inputs import UnfitError, open_regular, read_bytes, read_text
from simclr_engine.recipe import Recipe
from simclr_engine.run import Run, read_rows
from simclr_engine.weights import load_foreign


def test_a_pipe_a_socket_and_a_device_are_told_and_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as here:
        here.bind(str(tmp_path / "socket"))
        for path, kind in (
            (tmp_path / "pipe", "a pipe"),
            (tmp_path / "socket", "a socket"),
            (Path("/dev/zero"), "a device"),
        ):
            with pytest.raises(UnfitError, match=f"{kind}, not a regular file"):
                open_regular(path)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)


def test_a_pipe_put_in_place_after_the_look_does_not_hold_the_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    plain = (tmp_path / "plain").stat()
    monkeypatch.setattr(Path, "stat", lambda self: plain)
    with pytest.raises(UnfitError, match="a pipe"):
        open_regular(tmp_path / "pipe")


def test_a_file_is_read_up_to_its_bound_and_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345678")
    assert read_bytes(path, 8) == b"12345678"
    with pytest.raises(UnfitError, match="8 bytes; at most 7 are read"):
        read_bytes(path, 7)
    said, grown = os.stat_result((*path.stat()[:6], 2, *path.stat()[7:])), os.fstat
    monkeypatch.setattr(os, "fstat", lambda descriptor: said)  # it says two bytes, as a file that is written to
    monkeypatch.setattr(Path, "stat", lambda self: said)
    assert read_bytes(path, 8) == b"12345678"
    with pytest.raises(UnfitError, match="at most 7"):
        read_bytes(path, 7)
    monkeypatch.setattr(os, "fstat", grown)


def test_the_mark_that_editors_put_before_text_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b'\xef\xbb\xbfbase = "cifar10"\n')
    assert read_text(tmp_path / "a.toml", 100) == 'base = "cifar10"\n'
    assert Recipe.load(tmp_path / "a.toml").train == Recipe.load("cifar10").train


READERS: dict[str, Callable[[Path], object]] = {
    "x.tar": lambda path: list(ArchiveSource(path, "x").blobs()),
    "hashed.tar": lambda path: ArchiveSource(path, "x").content(),
    "x.toml": Recipe.load,
    "x.csv": read_labels,
    "x.txt": read_list,
    "x.pt": load_foreign,
    "ours.pt": load_checkpoint,
    "x.safetensors": lambda path: read_tensors(path, "no tensors", "x"),
    "probe.safetensors": LinearProbe.load,
    "x.onnx": read_model,
    "recipe.toml": lambda path: Run.open(path.parent),
    "metrics.jsonl": lambda path: list(read_rows(path)),
    "result.json": lambda path: load_results(path.parent),
}


@pytest.mark.parametrize("name", READERS)
def test_every_reader_refuses_a_pipe_and_names_it(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(EngineError) as caught:
        READERS[name](tmp_path / name)
    assert isinstance(caught.value, DataError | UsageError)
    assert "a pipe" in str(caught.value) and str(tmp_path) in str(caught.value)


def test_readers_of_what_can_be_made_again_pass_a_pipe_over(tmp_path: Path) -> None:
    for name in ("a.npz", "e.npy", "e_labels.npz"):
        os.mkfifo(tmp_path / name)
    assert read_arrays(tmp_path / "a.npz", "a") is None
    assert load_embeddings(tmp_path, "e") is None


def test_a_pipe_among_the_images_is_left_out_and_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    os.mkfifo(tmp_path / "notes")
    blobs = FolderSource(tmp_path, "x")._scan
    assert blobs.refused == [("a.png", "not a regular file")] and blobs.images == blobs.others == []


def test_a_header_of_safetensors_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{")
    with pytest.raises(DataError) as caught:
        read_tensors(tmp_path / "a.safetensors", "no tensors", "x")
    assert "a header of 1,099,511,627,776 bytes" in str(caught.value.saw)


def test_a_list_in_the_other_unicode_form_finds_its_images(tmp_path: Path) -> None:
    from fixtures.image_files import encode, noise, write_tree

    composed, apart = "caf\u00e9", "cafe\u0301"
    write_tree(tmp_path / "set", {f"{apart}/{n}.png": encode(noise(n)) for n in (1, 2)})
    (tmp_path / "list.txt").write_text(f"{composed}/1.png\n")
    (tmp_path / "labels.csv").write_text(f"{composed}/1.png,a\n{composed}/2.png,b\n")
    store = load_data(Selection(tmp_path / "set", tmp_path / "labels.csv", tmp_path / "list.txt"))
    assert len(store) == 1 and store.class_names == ("a",)
