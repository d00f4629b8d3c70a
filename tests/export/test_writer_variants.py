"""int8 and fp16 files beside the fp32 one: what is written, what stays after a gate failed, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from fixtures.forgery import rewrite
from fixtures.run_graph import graph_features
from simclr_engine.cli.export import command
from simclr_engine.data import load_data
from simclr_engine.errors import CheckFailed, DataError, PlatformError, UsageError
from simclr_engine.evaluation.features import extract_features
from simclr_engine.export import OnnxEncoder, export_onnx, writer
from simclr_engine.export import precision as precision_room
from simclr_engine.export.graph import OPSET, trace_encoder
from simclr_engine.export.metadata import read_model, sidecar_path
from simclr_engine.export.parity import FP16, Difference, SpeedUp
from simclr_engine.export.precision import halve
from simclr_engine.export.samples import natural_images
from simclr_engine.export.writer import ExportResult
from simclr_engine.model import build_encoder
from simclr_engine.run import Run
from simclr_engine.timing import Timing


@pytest.fixture
def int8_export(little_digits: Run, fast_int8: None, tmp_path: Path) -> ExportResult:
    """The little encoder with its probe in fp32 and int8, in a folder of its own."""
    return export_onnx(little_digits, tmp_path / "encoder.onnx", probe=True, precision="int8")


def test_int8_is_written_beside_the_fp32_file(int8_export: ExportResult, little_digits: Run) -> None:
    folder = int8_export.file.parent
    names = [f"encoder{kind}{end}" for kind in (".int8", "") for end in (".json", ".onnx", ".onnx.sha256")]
    assert sorted(p.name for p in folder.iterdir()) == sorted(names)
    (variant,) = int8_export.variants
    store = load_data("digits")
    plain, small = OnnxEncoder(int8_export.file), OnnxEncoder(variant.file)
    assert (plain.metadata.precision, small.metadata.precision) == ("fp32", "int8")
    assert (small.sha256, small.metadata.probe) == (variant.sha256, plain.metadata.probe)
    (probabilities, labels), (others, other_labels) = (e.predict(store.images[:100]) for e in (plain, small))
    assert 0 < np.abs(probabilities - others).max() < 0.2 and (labels == other_labels).mean() > 0.8
    said = small.metadata.parity
    assert variant.agreement is not None and said["accuracy"] == round(variant.agreement.accuracy or 0, 3)
    assert {"accuracy_fp32", "agreement", "images_compared", "max_abs", "min_cosine"} <= said.keys()
    document = json.loads((little_digits.directory / "export.json").read_text())
    assert document["variants"][0]["file"] == str(variant.file) and document["variants"][0]["speed"]["ratio"] == 2
    assert "speed" not in document


def test_a_second_export_gives_the_same_bytes(int8_export: ExportResult, little_digits: Run, tmp_path: Path) -> None:
    again = export_onnx(little_digits, tmp_path / "again.onnx", probe=True, precision="int8")
    assert again.sha256 == int8_export.sha256
    assert again.variants[0].sha256 == int8_export.variants[0].sha256


def test_fp16_is_written_beside_the_fp32_file(little_digits: Run, tmp_path: Path) -> None:
    result = export_onnx(little_digits, tmp_path / "encoder.onnx", probe=True, precision="fp16")
    (variant,) = result.variants
    assert variant.file.name == "encoder.fp16.onnx" and variant.metadata.precision == "fp16"
    assert 1e-6 < variant.parity.max_relative <= FP16.relative and variant.speed is None
    assert OnnxEncoder(variant.file).predict(load_data("digits").images[:5])[0].shape == (5, 10)


def test_both_smaller_files_are_written_and_compared_on_the_same_images(
    little_digits: Run, fast_int8: None, tmp_path: Path
) -> None:
    result = export_onnx(little_digits, tmp_path / "encoder.onnx", probe=True, precision=["int8", "fp16"])
    assert [v.file.name for v in result.variants] == ["encoder.int8.onnx", "encoder.fp16.onnx"]
    int8, fp16 = (v.agreement for v in result.variants)
    assert int8 is not None and fp16 is not None and int8.accuracy_fp32 == fp16.accuracy_fp32
    assert (int8.images, int8.image_source) == (fp16.images, fp16.image_source)
    recorded = json.loads((little_digits.directory / "export.json").read_text())["variants"]
    assert [one["precision"] for one in recorded] == ["int8", "fp16"]


def test_one_smaller_file_that_fails_does_not_cost_the_other(
    little_digits: Run, fast_int8: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise CheckFailed("not fused", fix="try")

    monkeypatch.setattr(writer, "check_fused", refuse)
    with pytest.raises(CheckFailed, match="not fused") as caught:
        export_onnx(little_digits, tmp_path / "e.onnx", precision=["int8", "fp16"])
    assert caught.value.fix == "try; e.onnx, in fp32, and e.fp16.onnx passed their gates and stayed"
    assert sorted(p.name for p in tmp_path.glob("*.onnx")) == ["e.fp16.onnx", "e.onnx"]


def test_a_failed_int8_gate_leaves_fp32_and_no_int8_file(
    int8_export: ExportResult, little_digits: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "measure_speed", lambda *_: SpeedUp(64, *2 * [Timing(0.24, 0.2, 0.3, 5)]))
    with pytest.raises(CheckFailed, match="not faster") as caught:
        export_onnx(little_digits, int8_export.file, precision="int8")
    assert caught.value.exit_code == 1 and "encoder.onnx, in fp32," in str(caught.value.fix)
    folder = int8_export.file.parent
    assert sorted(p.name for p in folder.iterdir()) == ["encoder.json", "encoder.onnx", "encoder.onnx.sha256"]
    assert not OnnxEncoder(int8_export.file).has_probe  # the new one
    assert "variants" not in json.loads((little_digits.directory / "export.json").read_text())


@pytest.mark.parametrize("gate", ["check_fused", "check_agreement"])
def test_every_int8_gate_is_asked(
    little_digits: Run, fast_int8: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: str
) -> None:
    def refuse(*_: object) -> None:
        raise CheckFailed(gate)

    monkeypatch.setattr(writer, gate, refuse)
    with pytest.raises(CheckFailed, match=gate):
        export_onnx(little_digits, tmp_path / "e.onnx", precision="int8")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.json", "e.onnx", "e.onnx.sha256"]


def test_features_that_are_not_finite_fail_in_int8_too(
    little_digits: Run, fast_int8: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = precision_room.quantize

    def spoilt(*arguments: Any, **options: Any) -> onnx.ModelProto:
        model = real(*arguments, **options)
        scale = next(t for t in model.graph.initializer if t.name.endswith("weight_scale"))
        scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32("nan"), scale.name))
        return model

    monkeypatch.setattr(writer, "quantize", spoilt)
    with pytest.raises(CheckFailed):
        export_onnx(little_digits, tmp_path / "e.onnx", precision="int8")
    assert not (tmp_path / "e.int8.onnx").exists()


def test_a_failed_fp32_gate_leaves_both_old_files(
    int8_export: ExportResult, little_digits: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p.name: p.read_bytes() for p in int8_export.file.parent.iterdir()}

    def refuse(*_: object) -> None:
        raise CheckFailed("parity")

    monkeypatch.setattr(writer.gate, "check", refuse)
    with pytest.raises(CheckFailed, match="parity"):
        export_onnx(little_digits, int8_export.file, precision="int8")
    assert {p.name: p.read_bytes() for p in int8_export.file.parent.iterdir()} == before


def _folder(path: Path, count: int) -> Path:
    """`count` pictures without classes."""
    from PIL import Image

    path.mkdir()
    for i, image in enumerate(natural_images(count, 32, seed=9)):
        Image.fromarray(image).save(path / f"{i:02}.png")
    return path


def test_int8_with_too_few_or_no_images_is_refused_before_any_work(
    little_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "trace_encoder", lambda *_: pytest.fail("work was begun"))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DataError, match="neither in the cache") as caught:
        export_onnx(little_run, out / "e.onnx", precision="int8")
    assert "--data" in str(caught.value.fix) and caught.value.exit_code == 4
    with pytest.raises(DataError, match="at least 32 images") as caught:
        export_onnx(little_run, out / "e.onnx", precision="int8", data=_folder(tmp_path / "few", 31))
    assert caught.value.saw == "31 images" and list(out.iterdir()) == []


def test_other_images_without_labels_calibrate_too(little_run: Run, fast_int8: None, tmp_path: Path) -> None:
    result = export_onnx(little_run, tmp_path / "e.onnx", precision="int8", data=str(_folder(tmp_path / "photos", 40)))
    found = result.variants[0].agreement
    assert found is not None and found.accuracy is None and found.images == 40 and found.mean_cosine > 0.99
    assert result.parity.image_source == "images of photos" and "accuracy" not in result.variants[0].metadata.parity


def test_a_taken_name_and_an_unknown_precision_are_refused(little_run: Run, tmp_path: Path) -> None:
    (tmp_path / "e.int8.onnx").write_bytes(b"notes")
    with pytest.raises(UsageError, match="not an intact export"):
        export_onnx(little_run, tmp_path / "e.onnx", precision="int8")
    assert [p.name for p in tmp_path.iterdir()] == ["e.int8.onnx"]
    with pytest.raises(UsageError, match="precision"):
        export_onnx(little_run, tmp_path / "f.onnx", precision="int4")


def test_a_folder_that_may_not_be_written_is_told_before_any_work(
    little_digits: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "load_encoder", lambda *_: pytest.fail("work was begun"))

    def refuse(*_: Any, **__: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("simclr_engine.locks.tempfile.mkdtemp", refuse)  # root may write everywhere
    with pytest.raises(PlatformError, match="cannot be written") as caught:
        export_onnx(little_digits, tmp_path / "e.onnx", precision="int8")
    assert "e.onnx" in str(caught.value.saw) and list(tmp_path.iterdir()) == []


def _alter(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 1
    path.write_bytes(raw)
    sidecar_path(path).unlink()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _outside(path: Path) -> None:
    model = onnx.load(path)
    weight = next(t for t in model.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) == 4)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret.bin")
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_alter, "altered after its export|truncated or damaged"),
        (_cut, "truncated or damaged"),
        (_outside, "weights in other files"),
        (lambda path: rewrite(path, schema="3"), "newer simclr-engine"),
        (lambda path: rewrite(path, precision='"int4"'), "precision"),
        (lambda path: rewrite(path, probe='{"class_names": ["other"]}'), "probe"),
        (lambda path: sidecar_path(path).write_text("0" * 64), "checksum disagree"),
    ],
)
def test_a_spoilt_int8_file_is_refused(int8_export: ExportResult, spoil: Callable[[Path], None], message: str) -> None:
    path = int8_export.variants[0].file
    read_model(path)
    spoil(path)
    with pytest.raises(DataError, match=message):
        read_model(path)


def test_the_command_shows_both_files_and_their_gates(
    little_digits: Run, fast_int8: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--run", str(little_digits.directory), "--probe", "--int8", "--no-card", str(tmp_path / "e.onnx")]
    command.main(given, standalone_mode=False)
    shown = capsys.readouterr().out
    for words in ("e.int8.onnx", "2.00 × fp32", "1.2 ×", "accuracy (fp32:", "fp32 − 1 point", "probe digits-linear"):
        assert words in shown
    assert shown.count("sha256 ") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "stem", "size"),
    [  # every architecture, both stems, the smallest and the largest size, odd ones between
        ("resnet18", "small", 16),
        ("resnet18", "imagenet", 224),
        ("resnet34", "small", 33),
        ("resnet34", "imagenet", 64),
        ("resnet50", "small", 17),
        ("resnet50", "imagenet", 96),
    ],
)
def test_every_encoder_exports_in_every_precision(arch: str, stem: str, size: int) -> None:
    encoder = build_encoder(arch, stem).eval()
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    traced = trace_encoder(encoder, mean, std, size, OPSET)
    images = natural_images(32, size)
    reference = extract_features(encoder, images[:3], mean, std)
    assert Difference.between(reference, graph_features(traced.model, images[:3])).holds()
    assert Difference.between(reference, graph_features(halve(traced.model), images[:3])).holds(FP16)
    int8 = precision_room.quantize(traced.model, images, reduce_range=False)
    convolutions = {"resnet18": 20, "resnet34": 36, "resnet50": 53}[arch]
    assert precision_room.check_fused(traced.model, int8) == convolutions
    assert Difference.between(reference, graph_features(int8, images[:3])).min_cosine > 0.98
