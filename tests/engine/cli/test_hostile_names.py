"""Whatever a name, a recipe, a file's metadata or an error holds: no command sends a terminal what it would obey."""

from __future__ import annotations

import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fixtures.image_files import encode, noise, write_tree
from fixtures.tiny_probe import PROBE, write_tiny_probe
from simclr_engine.cli.main import main
from simclr_engine.errors import DataError
from simclr_engine.export import OnnxEncoder
from simclr_engine.export.runtime import open_session

HOSTILE = "\x1b]0;title\x07\x1b[31m\x9b2J\u202e"
OBEYED = {"\x1b", "\x07", "\x9b", "\u202e"}
SIZE = 8


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of hostile names, as the working directory: images, an exported file, recipes, an archive."""
    for home, name in ((warnings, "showwarning"), (sys, "excepthook"), (threading, "excepthook")):
        monkeypatch.setattr(home, name, getattr(home, name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIMCLR_ENGINE_CACHE", str(tmp_path / f"cache{HOSTILE}"))
    classes = (f"ant{HOSTILE}", "bee\nfaked", "cat")
    places = [f"{split}/{name}/{i}{HOSTILE}.png" for split in ("train", "test") for name in classes for i in range(3)]
    images = {place: noise(i, SIZE, SIZE) for i, place in enumerate(places)}
    folder = write_tree(tmp_path / f"photos{HOSTILE}", {name: encode(pixels) for name, pixels in images.items()})
    (folder / f"bad{HOSTILE}.png").write_bytes(b"no image")
    about = {"class_names": classes, "probe": {**PROBE, "class_names": list(classes), "id": HOSTILE, "data": HOSTILE}}
    write_tiny_probe(tmp_path / "e.onnx", image_size=SIZE, recipe=HOSTILE, unfinished=f"4{HOSTILE} of 6 steps", **about)
    (tmp_path / "mine.toml").write_text('base = "demo"\nname = "a\\u001b[31m"\norigin = "\\u001b]0;b\\u0007"\n')
    (tmp_path / "bad.toml").write_text(f'name = "{HOSTILE}"\n')
    (tmp_path / f"bad{HOSTILE}.tar").write_bytes(b"no archive")
    return folder


COMMANDS = [
    (0, "data info {photos}"),
    (0, "data info {photos} --json"),
    (0, "data pack {photos} --size 8"),
    (4, "data info bad{hostile}.tar"),
    (2, "data info absent{hostile}"),
    (0, "predict e.onnx {photos}"),
    (0, "predict e.onnx {photos} --json"),
    (0, "embed e.onnx {photos} --out v{hostile}.npy"),
    (0, "evaluate e.onnx --data {photos} --method knn"),
    (0, "recipes mine.toml"),
    (2, "recipes bad.toml"),
    (2, "recipes absent{hostile}"),
    (2, "absent{hostile}"),
    (2, "predict --absent{hostile}"),
    (2, "data pack {photos} --size x{hostile}"),
]


@pytest.mark.parametrize(("code", "words"), COMMANDS, ids=[words for _, words in COMMANDS])
def test_no_command_sends_a_terminal_what_it_would_obey(
    names: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], code: int, words: str
) -> None:
    argv = [word.format(photos=names.name, hostile=HOSTILE) for word in words.split()]
    monkeypatch.setattr(sys, "argv", ["simclr-engine", *argv])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = "".join(capfd.readouterr())
    assert ended.value.code == code, shown
    assert not OBEYED & set(shown)
    assert "faked" not in shown.replace("\\nfaked", "")
    assert code or "--json" in words or "1b]0;" in shown.lower()  # shown, not left out


def test_an_error_while_an_exported_file_runs_is_escaped(names: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = OnnxEncoder("e.onnx")

    def fail(*_: object) -> None:
        raise RuntimeError(f"node {HOSTILE}\nand more")

    monkeypatch.setattr(encoder, "_run", fail)
    with pytest.raises(DataError, match="cannot run the file") as caught:
        encoder.embed(np.zeros((1, SIZE, SIZE, 3), np.uint8))
    assert "e.onnx: node \\x1b]0" in str(caught.value) and not OBEYED & set(str(caught.value))


def test_onnxruntime_writes_no_names_from_the_file(capfd: pytest.CaptureFixture[str]) -> None:
    node = helper.make_node("Reshape", ["x", "shape"], ["y"], f"node{HOSTILE}")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in (("x", ["n"]), ("y", [7])))
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(np.array([7]), "shape")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    with pytest.raises(Exception, match="Reshape"):
        open_session(model.SerializeToString()).run(["y"], {"x": np.zeros(3, np.float32)})
    assert "".join(capfd.readouterr()) == ""
