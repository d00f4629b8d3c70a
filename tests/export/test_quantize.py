"""int8 and fp16: what the graphs hold, that the same run gives the same bytes, and what the gates let through."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from test_metadata import rewrite

from simclr_engine.cli.export import command
from simclr_engine.data import ImageStore, load_data
from simclr_engine.errors import CheckFailed, DataError, PlatformError, UsageError
from simclr_engine.evaluation.features import extract_features
from simclr_engine.export import OnnxEncoder, agreement, export_onnx, quantize, writer
from simclr_engine.export.agreement import Agreement, SpeedUp, check_agreement, check_speed, compare, fair_labeller
from simclr_engine.export.graph import Traced, trace_encoder
from simclr_engine.export.half import halve
from simclr_engine.export.labels import Labeller
from simclr_engine.export.metadata import read_model, sidecar_path
from simclr_engine.export.parity import FP16, Difference
from simclr_engine.export.runtime import open_session
from simclr_engine.export.samples import natural_images
from simclr_engine.export.writer import ExportResult
from simclr_engine.model import build_encoder
from simclr_engine.run import Run
from simclr_engine.timing import Timing

IMAGES = natural_images(48, 32, seed=3)


def _tensors(model: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _features(model: onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return open_session(model.SerializeToString()).run(["features"], {"images": images})[0]


@pytest.fixture(scope="module")
def little_int8(little_trace: Traced) -> onnx.ModelProto:
    return quantize.quantize(little_trace.model, IMAGES, reduce_range=False)


def test_ranges_are_the_extremes_of_every_activation(little_trace: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "DIGITS", 7)
    found = quantize.activation_ranges(little_trace.model, IMAGES)
    exposed = onnx.ModelProto()
    exposed.CopyFrom(little_trace.model)
    exposed.graph.output.extend(onnx.ValueInfoProto(name=n) for n in found if n != "features")
    values = open_session(exposed.SerializeToString()).run(list(found), {"images": IMAGES})
    assert len(found) == 5  # normalised images, two convolutions, two ReLUs
    for name, value in zip(found, values, strict=True):
        assert found[name] == pytest.approx((min(0, value.min()), max(0, value.max())), rel=1e-5), name


def test_a_range_covers_images_of_every_batch(little_trace: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    dark, bright = np.zeros((70, 32, 32, 3), np.uint8), np.full((3, 32, 32, 3), 255, np.uint8)
    name = next(n.input[0] for n in little_trace.model.graph.node if n.op_type == "Conv")
    low, high = quantize.activation_ranges(little_trace.model, np.concatenate([dark, bright]))[name]
    only_dark = quantize.activation_ranges(little_trace.model, dark)[name]
    only_bright = quantize.activation_ranges(little_trace.model, bright)[name]
    assert (low, high) == (only_dark[0], only_bright[1]) and only_dark[1] == 0 == only_bright[0]


def test_convolutions_are_u8s8_per_channel_and_the_rest_is_float(little_int8: onnx.ModelProto) -> None:
    tensors = _tensors(little_int8)
    made = {name: node for node in little_int8.graph.node for name in node.output}
    convolutions = [node for node in little_int8.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 2
    for node in convolutions:
        activation, weight = (made[name] for name in node.input[:2])
        assert tensors[activation.input[2]].dtype == np.uint8 and tensors[activation.input[1]].shape == ()
        values, scales, zeros = (tensors[name] for name in weight.input)
        assert values.dtype == np.int8 and scales.shape == (8,) and not zeros.any()
        assert (np.abs(values.astype(int)).reshape(8, -1).max(1) == 127).all()
    first = little_int8.graph.node[: [n.op_type for n in little_int8.graph.node].index("QuantizeLinear")]
    assert [node.op_type for node in first] == ["Transpose", "Cast", "Mul", "Sub"]
    assert not any(node.op_type.endswith("QuantizeLinear") for node in little_int8.graph.node[-2:])
    assert [(o.domain, o.version) for o in little_int8.opset_import] == [("", 20)]
    onnx.checker.check_model(little_int8, full_check=True)


def test_without_vnni_the_weights_keep_seven_bits(little_trace: Traced) -> None:
    reduced = _tensors(quantize.quantize(little_trace.model, IMAGES, reduce_range=True))
    weights = [v for v in reduced.values() if v.dtype == np.int8 and v.ndim == 4]
    assert len(weights) == 2 and all(np.abs(w.astype(int)).max() == 64 for w in weights)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu avx2 avx512f", False), ("fpu avx512_vnni", True), ("avx_vnni", True), ("amx_int8", True), (None, False)],
)
def test_vnni_is_read_from_the_processor_s_flags(tmp_path: Path, flags: str | None, expected: bool) -> None:
    file = tmp_path / "cpuinfo"
    if flags is not None:
        file.write_text(f"processor\t: 0\nmodel name\t: avx_vnni in a name\nflags\t\t: {flags}\n")
    assert quantize.has_vnni(file) is expected


@pytest.fixture(scope="module")
def resnet_int8(shared_trace: Traced) -> onnx.ModelProto:
    return quantize.quantize(shared_trace.model, IMAGES, reduce_range=False)


def test_all_twenty_convolutions_of_a_resnet18_run_in_int8(shared_trace: Traced, resnet_int8: onnx.ModelProto) -> None:
    assert quantize.check_fused(shared_trace.model, resnet_int8) == 20
    reference, found = (_features(m, IMAGES[:8]) for m in (shared_trace.model, resnet_int8))
    assert 0.99 < Difference.between(reference, found).min_cosine < 0.999999


def test_the_same_images_give_the_same_int8_file_on_one_thread_and_under_another_hash_seed(
    shared_trace: Traced, resnet_int8: onnx.ModelProto, tmp_path: Path
) -> None:
    onnx.save(shared_trace.model, tmp_path / "float.onnx")
    np.save(tmp_path / "images.npy", IMAGES)
    code = (
        "import os, numpy, onnx; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]) if hasattr(os, "
        "'sched_setaffinity') else None\n"
        "from simclr_engine.export.quantize import quantize\n"
        "model = quantize(onnx.load('float.onnx'), numpy.load('images.npy'), False)\n"
        "open('int8.onnx', 'wb').write(model.SerializeToString(deterministic=True))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "123"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert (tmp_path / "int8.onnx").read_bytes() == resnet_int8.SerializeToString(deterministic=True)


def test_a_convolution_that_stays_in_float_is_named(little_trace: Traced, little_int8: onnx.ModelProto) -> None:
    assert quantize.check_fused(little_trace.model, little_int8) == 2
    spoilt = onnx.ModelProto()
    spoilt.CopyFrom(little_int8)
    made = {name: node for node in spoilt.graph.node for name in node.output}
    node = next(n for n in spoilt.graph.node if n.op_type == "Conv")
    node.input[0] = made[made[node.input[0]].input[0]].input[0]  # what is quantized, before it is
    with pytest.raises(CheckFailed, match="1 of 2 convolutions stay in float") as caught:
        quantize.check_fused(little_trace.model, spoilt)
    assert "with encoder.stem.0.weight" in str(caught.value.saw) and "encoder.last" not in str(caught.value.saw)


def test_fewer_than_32_images_do_not_calibrate(little_trace: Traced) -> None:
    with pytest.raises(DataError, match="at least 32 images"):
        quantize.quantize(little_trace.model, IMAGES[:31], reduce_range=False)
    quantize.check_calibration(IMAGES[:32])


def test_fp16_halves_the_convolutions_and_nothing_else(little_trace: Traced) -> None:
    halved = halve(little_trace.model)
    onnx.checker.check_model(halved, full_check=True)
    kinds = {tensor.name: tensor.data_type for tensor in halved.graph.initializer}
    assert {name for name, kind in kinds.items() if kind == TensorProto.FLOAT16} == {
        f"encoder.{layer}.{part}" for layer in ("stem.0", "last.0") for part in ("weight", "bias")
    }
    assert kinds["scale"] == kinds["offset"] == TensorProto.FLOAT
    assert halved.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert [node.op_type for node in halved.graph.node].count("Cast") == 3
    reference, found = (_features(m, IMAGES) for m in (little_trace.model, halved))
    assert np.abs(reference - found).max() > 0 and Difference.between(reference, found).holds(FP16)


def test_a_weight_too_large_for_fp16_is_named(little_trace: Traced) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(little_trace.model)
    tensor = next(t for t in model.graph.initializer if t.name == "encoder.last.0.weight")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1e6), tensor.name))
    with pytest.raises(CheckFailed, match="too large for fp16") as caught:
        halve(model)
    assert "encoder.last.0.weight" in str(caught.value.saw)


class _Known:
    """A session whose features are known by the first pixel of an image."""

    def __init__(self, features: NDArray[np.float32]) -> None:
        self.features = features

    def run(self, names: list[str], inputs: dict[str, NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        return [self.features[inputs["images"][:, 0, 0, 0]]]


def test_agreement_is_that_of_its_definition() -> None:
    random = np.random.default_rng(0)
    images = np.zeros((200, 8, 8, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(200)
    labels = random.integers(0, 3, 200)
    ours = random.standard_normal((200, 5)).astype(np.float32)
    theirs = ours + np.float32(0.3) * random.standard_normal((200, 5)).astype(np.float32)
    store = ImageStore.from_arrays(images, labels, split="test images")
    by = Labeller(lambda f: f[:, :3].argmax(1), "largest of three")
    found = compare(_Known(ours), _Known(theirs), store, by)  # type: ignore[arg-type]
    a, b = ours[:, :3].argmax(1), theirs[:, :3].argmax(1)
    assert found.accuracy == (b == labels).mean() and found.accuracy_fp32 == (a == labels).mean()
    assert found.agreement == (a == b).mean() < 1
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert (found.min_cosine, found.mean_cosine) == pytest.approx((cosines.min(), cosines.mean()), rel=1e-5)
    assert (found.images, found.image_source, found.label_source) == (200, "test images", "largest of three")
    plain = compare(_Known(ours), _Known(theirs), replace(store, labels=None), by)  # type: ignore[arg-type]
    assert plain.accuracy is None and plain.accuracy_fp32 is None and plain.agreement == found.agreement


FOUND = Agreement(0.6, 0.605, 0.97, 0.9998, 0.999, 2000, "linear probe", "test images")


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, True),
        ({"accuracy": 0.595}, True),
        ({"accuracy": 0.5945}, False),
        ({"accuracy": 0.7}, True),
        ({"accuracy": float("nan")}, False),
        ({"accuracy": 0.58, "images": 40}, True),  # one image of forty
        ({"accuracy": 0.555, "images": 40}, False),
        ({"accuracy": None, "accuracy_fp32": None}, True),
        ({"accuracy": None, "accuracy_fp32": None, "mean_cosine": 0.98}, False),
    ],
)
def test_a_file_may_lose_a_point_of_accuracy_and_no_more(changes: dict[str, float | None], passes: bool) -> None:
    found = replace(FOUND, **changes)
    if passes:
        check_agreement(found, "int8")
    else:
        with pytest.raises(CheckFailed, match="int8") as caught:
            check_agreement(found, "int8")
        assert "linear probe" in str(caught.value.saw)


def _speed(seconds: float) -> SpeedUp:
    return SpeedUp(64, Timing(0.24, 0.2, 0.3, 5), Timing(seconds, 0.1, 0.4, 5))


def test_int8_must_be_a_fifth_faster_and_the_error_says_what_is_missing() -> None:
    check_speed(_speed(0.1999), vnni=True)
    for vnni in (True, False):
        with pytest.raises(CheckFailed, match="not faster") as caught:
            check_speed(_speed(0.21), vnni)
        assert ("no VNNI" in str(caught.value.saw)) is not vnni and "1.14 ×" in str(caught.value.saw)


def test_the_probe_labels_only_what_it_knows() -> None:
    class Probe:
        id, class_names = "x-linear-pretrained", ("a", "b")

        def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
            return features

    images = np.zeros((4, 8, 8, 3), np.uint8)
    theirs = ImageStore.from_arrays(images, np.array([0, 1, 0, 1]), ("a", "b"))
    others = ImageStore.from_arrays(images, np.array([0, 1, 0, 1]), ("b", "a"))
    plain = ImageStore.from_arrays(images)
    for store, probe, source in (
        (theirs, Probe(), "linear probe"),
        (plain, Probe(), "linear probe"),
        (others, Probe(), "nearest neighbour"),
        (theirs, None, "nearest neighbour"),
    ):
        assert fair_labeller(store, probe).source.startswith(source)  # type: ignore[arg-type]


def test_large_images_are_compared_in_smaller_numbers() -> None:
    counts = [agreement.compared_images(size, "int8") for size in (16, 32, 64, 224)]
    assert counts == [2000, 2000, 500, 256] and agreement.compared_images(32, "fp16") == 256


@pytest.fixture
def int8_export(little_digits: Run, fast_int8: None, tmp_path: Path) -> ExportResult:
    """The little encoder with its probe in fp32 and int8, in a folder of its own."""
    return export_onnx(little_digits, tmp_path / "encoder.onnx", probe=True, precision="int8")


def test_int8_is_written_beside_the_fp32_file(int8_export: ExportResult, little_digits: Run) -> None:
    folder = int8_export.file.parent
    names = ["encoder.int8.onnx", "encoder.int8.onnx.sha256", "encoder.onnx", "encoder.onnx.sha256"]
    assert sorted(p.name for p in folder.iterdir()) == names
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


def test_a_failed_int8_gate_leaves_fp32_and_no_int8_file(
    int8_export: ExportResult, little_digits: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "measure_speed", lambda *_: _speed(0.24))
    with pytest.raises(CheckFailed, match="not faster") as caught:
        export_onnx(little_digits, int8_export.file, precision="int8")
    assert caught.value.exit_code == 1 and "encoder.onnx, in fp32," in str(caught.value.fix)
    folder = int8_export.file.parent
    assert sorted(p.name for p in folder.iterdir()) == ["encoder.onnx", "encoder.onnx.sha256"]
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
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.onnx", "e.onnx.sha256"]


def test_features_that_are_not_finite_fail_in_int8_too(
    little_digits: Run, fast_int8: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = quantize.quantize

    def spoilt(*arguments: object, **options: object) -> onnx.ModelProto:
        model = real(*arguments, **options)  # type: ignore[arg-type]
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
    with pytest.raises(DataError, match="not in the cache") as caught:
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


def test_a_name_taken_by_something_else_and_an_unknown_precision_are_refused(little_run: Run, tmp_path: Path) -> None:
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
    real = Path.write_bytes

    def refuse(self: Path, data: bytes) -> int:
        if ".int8." in self.name:
            raise PermissionError(13, "Permission denied")
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(PlatformError, match="cannot be written") as caught:
        export_onnx(little_digits, tmp_path / "e.onnx", precision="int8")
    assert "e.int8.onnx" in str(caught.value.saw) and list(tmp_path.iterdir()) == []


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
    traced = trace_encoder(encoder, mean, std, size, 20)
    images = natural_images(32, size)
    reference = extract_features(encoder, images[:3], mean, std)
    assert Difference.between(reference, _features(traced.model, images[:3])).holds()
    assert Difference.between(reference, _features(halve(traced.model), images[:3])).holds(FP16)
    int8 = quantize.quantize(traced.model, images, reduce_range=False)
    convolutions = {"resnet18": 20, "resnet34": 36, "resnet50": 53}[arch]
    assert quantize.check_fused(traced.model, int8) == convolutions
    assert Difference.between(reference, _features(int8, images[:3])).min_cosine > 0.98
