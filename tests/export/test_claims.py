"""What a file says of itself is checked as far as it can be, and what is no number is never said to be one."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from fixtures import ROOT
from fixtures.image_files import encode, write_tree
from fixtures.mean_colour import mean_colour_model
from fixtures.tiny_model import TINY
from fixtures.tiny_probe import tiny_probe_model, write_tiny_probe
from simclr_engine.cli import embed, evaluate, predict
from simclr_engine.data.stream import find_images
from simclr_engine.documents import to_json
from simclr_engine.errors import DataError, UsageError
from simclr_engine.evaluation.encoders import open_target
from simclr_engine.export import OnnxEncoder
from simclr_engine.export.embed import embed_to_index
from simclr_engine.export.embedder import open_embedder
from simclr_engine.export.graph import seal
from simclr_engine.export.metadata import read_metadata
from simclr_engine.export.predict import predict_pictures

SIZE = 8
HUGE = np.full((3, 2), 3e38, np.float32)  # a bright image's features overflow, a black one's are 0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_probe(tmp_path / "encoder.onnx", image_size=SIZE)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    def picture(value: int) -> bytes:
        return encode(np.full((SIZE, SIZE, 3), value, np.uint8))

    return write_tree(tmp_path / "photos", {"black.png": picture(0), "bright.png": picture(200)})


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_forged_file_is_found_by_a_sha256_that_came_another_way(model: Path) -> None:
    before, said = _sha256(model), read_metadata(model).difference()
    forged = tiny_probe_model(size=SIZE)
    (coefficients,) = [one for one in forged.graph.initializer if one.name == "coef"]
    coefficients.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(coefficients), "coef"))
    write_tiny_probe(model, forged, image_size=SIZE)
    assert OnnxEncoder(model).metadata.difference() == said  # its own digest was computed anew, and says nothing
    with pytest.raises(DataError) as caught:
        OnnxEncoder(model, sha256=before)
    assert before in str(caught.value) and _sha256(model) in str(caught.value)
    assert OnnxEncoder(model, sha256=_sha256(model).upper()).sha256 == _sha256(model)


def test_of_a_file_with_another_sha256_nothing_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no model at all")
    with pytest.raises(DataError, match="not the one that was asked for"):
        OnnxEncoder(tmp_path / "x.onnx", sha256="0" * 64)
    for wrong in ("", "0" * 63, "x" * 64, "0" * 64 + "\n"):
        with pytest.raises(UsageError, match="64 hexadecimal digits"):
            OnnxEncoder(tmp_path / "x.onnx", sha256=wrong)


@pytest.mark.parametrize(
    ("command", "rest"),
    [
        (predict.command, ["photos"]),
        (embed.command, ["photos", "--out", "v.npy"]),
        (evaluate.command, ["--data", "photos"]),
    ],
    ids=["predict", "embed", "evaluate"],
)
def test_every_command_that_opens_a_file_takes_its_sha256(
    model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, command: click.Command, rest: list[str]
) -> None:
    monkeypatch.chdir(photos.parent)
    error = CliRunner().invoke(command, [str(model), *rest, "--sha256", "0" * 64]).exception
    assert isinstance(error, DataError) and "0" * 64 in str(error) and _sha256(model) in str(error)


def test_the_sha256_of_something_else_than_a_file_is_refused(tmp_path: Path, model: Path) -> None:
    for opened in (open_embedder, open_target):
        with pytest.raises(UsageError, match=r"--sha256 is for an \.onnx file"):
            opened(tmp_path, sha256="0" * 64)
    target = open_target(model, sha256=_sha256(model))
    write_tiny_probe(model, image_size=SIZE, recipe="another")
    with pytest.raises(DataError, match="not the one that was asked for"):  # replaced between opening and computing
        target.encoders["pretrained"]._compute(None, None)  # type: ignore[arg-type]  # refused before they are read


def _broken_probe(path: Path) -> Path:
    made = tiny_probe_model(size=SIZE)
    (coefficients,) = [one for one in made.graph.initializer if one.name == "coef"]
    coefficients.CopyFrom(numpy_helper.from_array(np.array([[3e38] * 3, [-3e38] * 3], np.float32), "coef"))
    return write_tiny_probe(path, made, image_size=SIZE)


def _broken_features(path: Path) -> Path:
    path.write_bytes(seal(mean_colour_model(SIZE, HUGE), TINY.__class__(**{**vars(TINY), "image_size": SIZE})))
    return path


def _predicted(path: Path, photos: Path) -> Any:
    embedder = open_embedder(path)
    return predict_pictures(embedder, find_images(embedder, [str(photos)]))


def _embedded(path: Path, photos: Path) -> Any:
    embedder = open_embedder(path)
    return embed_to_index(embedder, find_images(embedder, [str(photos)]), path.with_name("v.npy"))


@pytest.mark.parametrize(("make", "use"), [(_broken_probe, _predicted), (_broken_features, _embedded)])
def test_what_is_not_finite_is_an_error_that_names_file_and_image(
    tmp_path: Path, photos: Path, make: Callable[[Path], Path], use: Callable[[Path, Path], Any]
) -> None:
    path = make(tmp_path / "broken.onnx")
    with pytest.raises(DataError, match="not finite") as caught:
        use(path, photos)
    assert str(path) in str(caught.value) and "bright.png" in str(caught.value)
    assert not (tmp_path / "v.npy").exists()


def test_the_encoder_names_the_row_of_what_is_not_finite(tmp_path: Path) -> None:
    images = np.zeros((9, SIZE, SIZE, 3), np.uint8)
    encoder = OnnxEncoder(_broken_features(tmp_path / "broken.onnx"))
    np.testing.assert_array_equal(encoder.embed(images), np.zeros((9, 2)))
    images[7] = 255
    with pytest.raises(DataError, match="image 7, counted from 0"):
        encoder.embed(images, batch_size=4)


def test_json_never_holds_what_is_not_finite() -> None:
    document = {"a": [1.5, float("nan"), {"b": (float("inf"), -float("inf"))}], "c": "NaN", "é": None}

    def refuse(word: str) -> None:
        raise AssertionError(word)

    expected = {"a": [1.5, None, {"b": [None, None]}], "c": "NaN", "é": None}
    assert json.loads(to_json(document), parse_constant=refuse) == expected
    assert to_json({"a": 1.5, "é": "\udce9"}, indent=2) == json.dumps({"a": 1.5, "é": "\udce9"}, indent=2)


# Messages between processes, keys of caches, headers and lists of names: none holds a number that is computed.
WITHOUT_FIGURES = {
    "bench/card.py", "bench/clients.py", "bench/export.py", "bench/gpu_parts.py", "bench/race.py", "bench/store.py",
    "engine/checkpoint.py", "engine/data/cache.py", "engine/files.py", "engine/layout.py", "export/embed.py",
    "export/graph.py", "export/index.py", "export/metadata.py", "export/workers.py",
}  # fmt: skip


def test_every_document_is_written_by_the_one_function() -> None:
    found = set()
    for folder in ("engine", "kernels", "export", "bench"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dumps", "json.dump"):
                    strict = any(k.arg == "allow_nan" and ast.unparse(k.value) == "False" for k in node.keywords)
                    found |= set() if strict else {path.relative_to(ROOT).as_posix()}
    assert found <= WITHOUT_FIGURES
