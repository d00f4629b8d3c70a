"""Files of earlier versions (ReduceMean, opset 20, schemas 1 and 2) are read, checked and give what they gave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from fixtures import ROOT
from fixtures.forgery import rewrite
from simclr_engine.errors import DataError
from simclr_engine.export import OnnxEncoder, export_onnx
from simclr_engine.export.description import describe
from simclr_engine.export.metadata import read_model
from simclr_engine.run import Run

# Written by 0.1.0 of November 2026: two convolutions and a probe for `digits`; `expected.json` is what each gave then.
BEFORE = ROOT / "tests" / "fixtures" / "before"
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "off"), [("encoder.onnx", 1e-5), ("encoder.int8.onnx", 2e-2), ("encoder.fp16.onnx", 1e-3)]
)
def test_a_file_of_opset_20_gives_the_features_that_it_gave(name: str, off: float) -> None:
    model = onnx.load(BEFORE / name)
    assert model.opset_import[0].version == 20 and "ReduceMean" in {node.op_type for node in model.graph.node}
    expected, encoder = json.loads((BEFORE / "expected.json").read_text())[name], OnnxEncoder(BEFORE / name)
    np.testing.assert_allclose(encoder.embed(IMAGES), expected["features"], atol=off)
    assert encoder.predict(IMAGES)[1].tolist() == expected["label"]
    assert (encoder.metadata.schema, describe(read_model(BEFORE / name))["opset"]) == (2, 20)


def test_a_file_of_the_first_schema_gives_the_features_that_it_gave(tmp_path: Path) -> None:
    path = Path(shutil.copy(BEFORE / "encoder.onnx", tmp_path))
    rewrite(path, schema="1", precision=None, probe=None)
    encoder = OnnxEncoder(path)
    expected = json.loads((BEFORE / "expected.json").read_text())["encoder.onnx"]["features"]
    assert encoder.metadata.schema == 1 and not encoder.has_probe
    np.testing.assert_allclose(encoder.embed(IMAGES), expected, atol=1e-5)


def test_a_file_of_opset_20_that_was_altered_is_refused(tmp_path: Path) -> None:
    path = Path(shutil.copy(BEFORE / "encoder.onnx", tmp_path))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"altered after its export|truncated or damaged"):
        OnnxEncoder(path)


def test_a_new_export_replaces_a_file_of_opset_20(little_run: Run, tmp_path: Path) -> None:
    path = Path(shutil.copy(BEFORE / "encoder.onnx", tmp_path))
    assert export_onnx(little_run, path).sha256 == OnnxEncoder(path).sha256
    assert onnx.load(path).opset_import[0].version == 18
