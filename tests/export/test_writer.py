"""One verified file from a run, or none: the graph's contract, the same bytes again, what stays after a failure."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from fixtures.run_graph import graph_features
from simclr_engine import __version__
from simclr_engine.cli.export import command
from simclr_engine.errors import CheckFailed, DataError, PlatformError, UsageError
from simclr_engine.export import OnnxEncoder, export_onnx, writer
from simclr_engine.export.graph import Traced, trace_encoder
from simclr_engine.export.metadata import sidecar_path
from simclr_engine.export.parity import first_divergence
from simclr_engine.export.samples import natural_images
from simclr_engine.export.writer import ExportResult
from simclr_engine.locks import lock
from simclr_engine.run import Run

WriteRun = Callable[..., Run]


def _copy(traced: Traced) -> Traced:
    model = onnx.ModelProto()
    model.CopyFrom(traced.model)
    return Traced(model, traced.program)


def _exact_features(run: Run, images: np.ndarray) -> np.ndarray:
    """Features in float64, by the formula of the preprocessing."""
    mean, std = (np.array(v) for v in (run.recipe.augment.mean, run.recipe.augment.std))
    normalised = torch.from_numpy(((images / 255.0 - mean) / std).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        return run.encoder().double()(normalised).numpy()


@pytest.fixture(scope="module")
def eight(shared_run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Eight images and their features in float64."""
    images = natural_images(8, 32, seed=8)
    return images, _exact_features(shared_run, images)


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_the_file_gives_float64_features_at_every_batch_size(
    shared_export: ExportResult, eight: tuple[np.ndarray, np.ndarray], batch: int
) -> None:
    images, exact = (np.tile(a, (8, *[1] * (a.ndim - 1)))[:batch] for a in eight)
    features = OnnxEncoder(shared_export.file).embed(images)
    assert features.shape == (batch, 512)
    np.testing.assert_allclose(features, exact, atol=2e-5)


def test_a_resnet50_with_the_imagenet_stem_exports_at_another_size(write_run: WriteRun, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "resnet50", "imagenet", 48)
    result = export_onnx(run, tmp_path / "e.onnx")
    images = natural_images(3, 48, seed=5)
    features = OnnxEncoder(result.file).embed(images)
    assert features.shape == (3, 2048)
    np.testing.assert_allclose(features, _exact_features(run, images), atol=5e-5)
    said = result.metadata
    assert (said.architecture, said.stem, said.image_size) == ("resnet50", "imagenet", 48)


def test_the_graph_holds_plain_operators_and_folded_batch_norm(shared_export: ExportResult) -> None:
    model = onnx.load(shared_export.file, load_external_data=False)
    kinds = [node.op_type for node in model.graph.node]
    assert set(kinds) <= {"Transpose", "Cast", "Mul", "Sub", "Conv", "Relu", "Add", "GlobalAveragePool", "Flatten"}
    assert kinds.count("Conv") == 20 and len(kinds) == 51
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)] and model.ir_version == 8
    dims = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["batch", 32, 32, 3]
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_param or d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == ["batch", 512]
    assert (model.producer_name, model.producer_version) == ("simclr-engine", __version__)
    onnx.checker.check_model(model, full_check=True)


def test_the_file_tells_nothing_of_where_it_was_made(shared_run: Run, shared_export: ExportResult) -> None:
    raw = shared_export.file.read_bytes()
    places = [Path(writer.__file__).parent, Path(torch.__file__).parent, Path.cwd(), Path.home(), shared_run.directory]
    for word in [*(str(p) for p in places if len(str(p)) > 4), ".py", "stack_trace", "pkg.torch", "site-packages"]:
        assert word.encode() not in raw, word
    model = onnx.load_model_from_string(raw)
    assert not any(n.doc_string or n.metadata_props for n in model.graph.node)
    assert not any(v.metadata_props for v in [*model.graph.input, *model.graph.output, *model.graph.value_info])


def test_result_metadata_and_record_say_what_was_written(shared_run: Run, shared_export: ExportResult) -> None:
    raw = shared_export.file.read_bytes()
    assert shared_export.sha256 == hashlib.sha256(raw).hexdigest() and shared_export.bytes == len(raw)
    assert sidecar_path(shared_export.file).read_text() == f"{shared_export.sha256}  encoder.onnx\n"
    said = OnnxEncoder(shared_export.file).metadata
    assert said == shared_export.metadata
    assert said.class_names == ("cat", "dog", "Čáp") and said.data_fingerprint == "ab" * 32
    assert (said.recipe, said.recipe_hash) == (shared_run.recipe.name, shared_run.recipe.hash())
    assert (said.mean, said.std) == (shared_run.recipe.augment.mean, shared_run.recipe.augment.std)
    parity = shared_export.parity
    assert 0 < parity.max_abs <= said.parity["max_abs"] <= 1e-4 and parity.label_agreement == 1
    assert parity.images == 74 and parity.image_source.startswith("synthetic")
    record = json.loads((shared_run.directory / "export.json").read_text())
    assert record["sha256"] and set(record) >= {"file", "bytes", "parity"}
    assert set(record["parity"]) >= {"max_abs", "label_agreement", "label_source", "limit"}


class _Mean(nn.Module):
    """The mean over the image, or over a part of its axes."""

    def __init__(self, *axes: int, keepdim: bool = False) -> None:
        super().__init__()
        self.axes, self.keepdim = axes, keepdim

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(x.mean(self.axes, self.keepdim), 1)


@pytest.mark.parametrize(
    ("pool", "kinds"),
    [
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), {"GlobalAveragePool", "Flatten"}),
        (_Mean(2, 3), {"GlobalAveragePool", "Flatten"}),
        (_Mean(-1, -2, keepdim=True), {"GlobalAveragePool", "Flatten"}),
        (_Mean(3), {"ReduceMean", "Reshape"}),
        (_Mean(1, 2), {"ReduceMean"}),
    ],
)
@pytest.mark.parametrize("opset", [18, 21])
def test_a_mean_over_the_image_is_a_global_average_pool(pool: nn.Module, kinds: set[str], opset: int) -> None:
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), pool).eval()
    traced = trace_encoder(encoder, (0.5,) * 3, (0.25,) * 3, 8, opset)
    assert {node.op_type for node in traced.model.graph.node} == {"Transpose", "Cast", "Mul", "Sub", "Conv"} | kinds
    assert [o.version for o in traced.model.opset_import] == [opset]
    images = natural_images(3, 8)
    normalised = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    with torch.no_grad():
        expected = encoder(normalised).numpy()
    np.testing.assert_allclose(graph_features(traced.model, images), expected, atol=1e-5)
    assert first_divergence(traced, images).startswith("no node diverges")
    onnx.checker.check_model(traced.model, full_check=True)


@pytest.mark.parametrize("opset", [9, 17, 99])
def test_an_opset_that_cannot_be_written_is_refused_before_any_work(
    shared_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opset: int
) -> None:
    monkeypatch.setattr(writer, "load_encoder", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(UsageError, match="opset"):
        export_onnx(shared_run, tmp_path / "e.onnx", opset=opset)
    assert list(tmp_path.iterdir()) == []


def _spoil_weight(traced: Traced) -> str:
    tensor = next(t for t in traced.model.graph.initializer if t.name == "encoder.last.0.weight")
    values = numpy_helper.to_array(tensor).copy()
    values[7] += 0.05
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return r"Conv with encoder.last.0.weight"


def _spoil_operator(traced: Traced) -> str:
    node = next(n for n in traced.model.graph.node if n.op_type == "Relu")
    node.op_type = "Softplus"
    return r"\(Softplus\)"


def _spoil_scale(traced: Traced) -> str:
    tensor = next(t for t in traced.model.graph.initializer if t.name == "scale")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
    return r"Mul with scale"


def _spoil_with_nan(traced: Traced) -> str:
    tensor = next(t for t in traced.model.graph.initializer if t.name == "encoder.stem.0.weight")
    values = numpy_helper.to_array(tensor).copy()
    values[0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return r"Conv with encoder.stem.0.weight"


def test_a_fault_in_the_middle_of_a_resnet_is_found_there(shared_trace: Traced) -> None:
    images = natural_images(74, 32)
    traced = _copy(shared_trace)
    assert first_divergence(traced, images[:7]).startswith("no node diverges")
    tensor = next(t for t in traced.model.graph.initializer if t.name == "encoder.layer3.0.conv2.weight")
    values = numpy_helper.to_array(tensor).copy()
    values[7] += 0.05
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    assert "(Conv with encoder.layer3.0.conv2.weight" in first_divergence(traced, images[:7])


@pytest.mark.parametrize("spoil", [_spoil_weight, _spoil_operator, _spoil_scale, _spoil_with_nan])
def test_a_planted_fault_is_named_and_leaves_no_file_and_the_old_one(
    little_run: Run,
    little_trace: Traced,
    little_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Traced], str],
) -> None:
    before = {p.name: p.read_bytes() for p in little_file.parent.iterdir()}
    traced = _copy(little_trace)
    where = spoil(traced)
    monkeypatch.setattr(writer, "trace_encoder", lambda *_: traced)
    with pytest.raises(CheckFailed, match=f"first divergent node: .*{where}") as caught:
        export_onnx(little_run, little_file)
    assert caught.value.exit_code == 1
    with pytest.raises(CheckFailed):
        export_onnx(little_run, little_file.with_name("new.onnx"))
    assert {p.name: p.read_bytes() for p in little_file.parent.iterdir()} == before


def test_a_file_that_does_not_read_back_is_not_left(
    little_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = writer.with_metadata
    monkeypatch.setattr(writer, "with_metadata", lambda *a: real(*a)[:-10])
    with pytest.raises(CheckFailed, match="does not read back"):
        export_onnx(little_run, tmp_path / "e.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file(little_run: Run, little_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p.name: p.read_bytes() for p in little_file.parent.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PlatformError, match="disk is full") as caught:
        export_onnx(little_run, little_file)
    assert caught.value.exit_code == 3
    assert {p.name: p.read_bytes() for p in little_file.parent.iterdir()} == before


@pytest.mark.parametrize("place", ["missing/encoder.onnx", "/proc/encoder.onnx"])
def test_a_folder_that_cannot_be_written_is_told_before_any_work(
    little_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(writer, "load_encoder", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(PlatformError, match="cannot be written"):
        export_onnx(little_run, tmp_path / place)


def test_what_is_not_our_file_is_never_overwritten(little_run: Run, little_file: Path) -> None:
    folder = little_file.parent
    for name, content in {"notes.onnx": b"my notes", "cut.onnx": little_file.read_bytes()[:-5]}.items():
        (folder / name).write_bytes(content)
        with pytest.raises(UsageError, match="not an intact export"):
            export_onnx(little_run, folder / name)
        assert (folder / name).read_bytes() == content
    (folder / "dir.onnx").mkdir()
    for name in ("encoder.pt", "dir.onnx", "."):
        with pytest.raises(UsageError, match=r"ending in \.onnx"):
            export_onnx(little_run, folder / name)


def test_overwrite_replaces_a_file_of_another_kind(little_run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.onnx").write_bytes(b"my notes")
    with pytest.raises(UsageError, match="--overwrite"):
        export_onnx(little_run, tmp_path / "notes.onnx")
    result = export_onnx(little_run, tmp_path / "notes.onnx", overwrite=True)
    assert OnnxEncoder(tmp_path / "notes.onnx").sha256 == result.sha256


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["e.onnx", "e.onnx.sha256", "e.json"])
def test_an_export_does_not_write_through_a_link(
    little_run: Run, little_file: Path, tmp_path: Path, name: str, overwrite: bool
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    mine = little_file.parent / name.replace("e.", "encoder.", 1)
    before = mine.read_bytes()
    for target in (mine, folder / "nothing"):
        (folder / name).symlink_to(target)
        with pytest.raises(UsageError, match="would replace a link"):
            export_onnx(little_run, folder / "e.onnx", overwrite=overwrite)
        assert [p.name for p in folder.iterdir()] == [name] and mine.read_bytes() == before
        (folder / name).unlink()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_that_has_the_name_of_the_checksum_is_not_replaced(
    little_run: Run, tmp_path: Path, overwrite: bool
) -> None:
    (tmp_path / "e.onnx.sha256").write_text("what I know of it\n")
    with pytest.raises(UsageError, match="checksum"):
        export_onnx(little_run, tmp_path / "e.onnx", overwrite=overwrite)
    assert (tmp_path / "e.onnx.sha256").read_text() == "what I know of it\n"
    assert [p.name for p in tmp_path.iterdir()] == ["e.onnx.sha256"]
    (tmp_path / "e.onnx.sha256").write_text(f"{'0' * 64}  e.onnx\n")  # of an export whose file was moved away
    assert export_onnx(little_run, tmp_path / "e.onnx").sha256 in (tmp_path / "e.onnx.sha256").read_text()


def test_what_a_killed_export_left_goes_and_what_a_running_one_writes_stays(little_run: Run, tmp_path: Path) -> None:
    left, held = (tmp_path / f".e.partial-{name}" for name in ("left", "held"))
    for folder in (left, held):
        folder.mkdir()
        for name in ("lock", "e.onnx", "e.onnx.sha256", "e.json"):
            (folder / name).touch()
    with (held / "lock").open("r+b") as file:
        assert lock(file, held / "lock")
        export_onnx(little_run, tmp_path / "e.onnx")
        assert len(list(held.iterdir())) == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == [held.name, "e.json", "e.onnx", "e.onnx.sha256"]


def test_an_absent_run_is_a_data_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no readable run"):
        export_onnx(tmp_path / "none", tmp_path / "e.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_cannot_be_written_does_not_undo_the_export(
    little_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def refuse(path: Path, text: str) -> None:
        raise PlatformError("cannot write", saw=f"{path}: Read-only file system")

    monkeypatch.setattr(writer, "write_text_atomic", refuse)
    with pytest.warns(UserWarning, match="not recorded in the run"):
        result = export_onnx(little_run, tmp_path / "e.onnx")
    assert OnnxEncoder(result.file).sha256 == result.sha256


def test_the_command_writes_the_same_bytes_from_another_process_and_folder(
    shared_run: Run, shared_export: ExportResult, tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "first").symlink_to(shared_run.directory)
    command = [sys.executable, "-m", "simclr_engine", "export", "encoder.onnx", "--json", "--no-card"]
    environment = os.environ | {"PYTHONHASHSEED": "77"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "encoder.onnx").read_bytes() == shared_export.file.read_bytes()
    card = json.loads(done.stdout)
    assert (card["file"], card["sha256"], card["bytes"]) == ("encoder.onnx", shared_export.sha256, shared_export.bytes)
    assert card["parity"]["label_agreement"] == 1 and card["parity"]["max_abs"] < 1e-4
    assert "runs/first (the newest finished one)" in done.stderr


def test_the_command_prints_checksum_size_and_parity(
    little_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command.main(["--run", str(little_run.directory), "--no-card", str(tmp_path / "e.onnx")], standalone_mode=False)
    shown = capsys.readouterr().out
    assert hashlib.sha256((tmp_path / "e.onnx").read_bytes()).hexdigest() in shown
    for words in (
        "uint8 [batch, 32, 32, 3]",
        "largest difference of a feature",
        "same label",
        "batches of 1, 2, 7, 64",
    ):
        assert words in shown
