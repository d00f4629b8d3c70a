"""`encoder.json` says what a client needs of the file beside it, and replaces nothing that is not one."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from fixtures.tiny_model import MakeTiny
from fixtures.tiny_probe import CLASSES, write_tiny_probe
from simclr_engine.data.levels import FULL_LEVELS
from simclr_engine.errors import UsageError
from simclr_engine.export import OnnxEncoder, export_onnx
from simclr_engine.export.description import describe, description_path, description_text
from simclr_engine.export.graph import OPSET
from simclr_engine.export.metadata import read_model
from simclr_engine.export.precision import QDQ_OPSET
from simclr_engine.run import Run


def test_the_description_says_what_the_file_and_its_graph_say(
    little_digits: Run, fast_int8: None, tmp_path: Path
) -> None:
    result = export_onnx(little_digits, tmp_path / "encoder.onnx", probe=True, precision=["int8", "fp16"])
    for each in (result, *result.variants):
        said = json.loads(description_path(each.file).read_text("utf-8"))
        session, metadata = OnnxEncoder(each.file)._session, each.metadata
        assert (said["file"], said["bytes"]) == (each.file.name, each.file.stat().st_size)
        assert said["sha256"] == hashlib.sha256(each.file.read_bytes()).hexdigest()
        kinds = {"uint8": "tensor(uint8)", "float32": "tensor(float)", "int64": "tensor(int64)"}
        graph = [(o.name, o.shape, o.type) for o in (*session.get_inputs(), *session.get_outputs())]
        assert [(o["name"], o["shape"], kinds[o["dtype"]]) for o in (said["input"], *said["outputs"])] == graph
        opset = QDQ_OPSET if metadata.precision == "int8" else OPSET
        assert said["opset"] == each.opset == onnx.load(each.file).opset_import[0].version == opset
        assert said["class_names"] == [str(digit) for digit in range(10)]
        assert said["precision"] == metadata.precision
        assert said["parity"]["largest_difference"] == metadata.parity["max_abs"]
        assert said["parity"]["tolerance"] == (1e-4 if each is result else None)
        probe = metadata.probe
        expected = {"accuracy": probe["accuracy"], "split": "test", "images": probe["test_images"], "data": "digits"}
        assert said["probe"] == expected
        assert each.to_json()["description"] == str(description_path(each.file))
        assert str(tmp_path) not in json.dumps(said) and str(little_digits.directory) not in json.dumps(said)


def test_a_file_without_probe_or_classes_says_null(make_tiny: MakeTiny) -> None:
    said = describe(read_model(make_tiny(class_names=())))
    assert (said["probe"], said["class_names"], said["unfinished"]) == (None, None, None)
    assert [output["name"] for output in said["outputs"]] == ["features"]
    assert said["resize"]["short_side"] == said["resize"]["crop"] == said["image_size"] == 4
    assert said["resize"]["gray16"] == list(FULL_LEVELS)


def test_levels_and_an_unfinished_run_are_said(make_tiny: MakeTiny) -> None:
    said = describe(read_model(make_tiny(levels=(100, 4000), unfinished="46 of 380 steps")))
    assert said["resize"]["gray16"] == [100, 4000] and said["unfinished"] == "46 of 380 steps"


def test_class_names_of_any_letters_are_valid_json(make_tiny: MakeTiny) -> None:
    names = ("žluťoučký", 'a"b\n', "", "caf\udce9")
    text = description_text(read_model(make_tiny(class_names=names)))
    assert tuple(json.loads(text.decode("utf-8"))["class_names"]) == names and "žluťoučký".encode() in text


def test_class_names_stand_by_label_where_other_tools_look(make_tiny: MakeTiny) -> None:
    names = tuple(f"class {i}" for i in range(12))
    properties = {p.key: p.value for p in onnx.load(make_tiny(class_names=names)).metadata_props}
    assert list(json.loads(properties["names"]).items()) == [(str(i), name) for i, name in enumerate(names)]
    assert ast.literal_eval(properties["names"]) == json.loads(properties["names"])  # how some of them read it
    assert "names" not in {p.key for p in onnx.load(make_tiny(class_names=())).metadata_props}


def test_a_file_that_has_the_name_of_the_description_is_not_replaced(little_run: Run, tmp_path: Path) -> None:
    notes = tmp_path / "e.json"
    for text in ("what I know of it\n", '{"class": "cat"}', ""):
        notes.write_text(text)
        for overwrite in (False, True):
            with pytest.raises(UsageError, match="description would replace"):
                export_onnx(little_run, tmp_path / "e.onnx", overwrite=overwrite)
        assert notes.read_text() == text and [p.name for p in tmp_path.iterdir()] == ["e.json"]


def test_a_new_export_replaces_the_description_of_the_old_one(little_run: Run, little_file: Path) -> None:
    path = description_path(little_file)
    before = read_model(write_tiny_probe(little_file.with_name("tiny.onnx")))
    path.write_bytes(description_text(replace(before, path=little_file)))
    result = export_onnx(little_run, little_file)
    said = json.loads(path.read_text("utf-8"))
    assert said["sha256"] == result.sha256 and said["class_names"] != list(CLASSES)


def test_the_record_of_the_run_is_not_taken_for_a_description(
    write_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run")
    (tmp_path / "link").symlink_to(run.directory)
    before = sorted(run.directory.iterdir())
    with pytest.raises(UsageError, match="record of its exports"):
        export_onnx(run, tmp_path / "link" / "export.onnx")
    assert sorted(run.directory.iterdir()) == before
