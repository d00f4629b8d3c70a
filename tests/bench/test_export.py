"""`bench export` compares like with like, names who is missing and why, and holds the floors it states."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from simclr_engine.bench import export as subject
from simclr_engine.bench.card import Fresh
from simclr_engine.bench.rows import check, judge
from simclr_engine.cli.bench import command
from simclr_engine.errors import CheckFailed
from simclr_engine.evaluation.features import encoder_hash
from simclr_engine.export.runtime import open_session
from simclr_engine.run import Run

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def _images(count: int, size: int = 6) -> NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


class _Small(nn.Module):
    """A convolution, ReLU and the mean over the image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x)).mean((2, 3))


def _small_file(path: Path) -> Path:
    """The same as ONNX, preprocessing inside."""
    module = _Small()
    scale = (1 / (255 * np.array(STD))).astype(np.float32).reshape(3, 1, 1)
    offset = (np.array(MEAN) / np.array(STD)).astype(np.float32).reshape(3, 1, 1)
    tensors = {"scale": scale, "offset": offset, "weight": module.conv.weight, "bias": module.conv.bias}
    nodes = [
        helper.make_node("Transpose", ["images"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["t"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "scale"], ["m"]),
        helper.make_node("Sub", ["m", "offset"], ["x"]),
        helper.make_node("Conv", ["x", "weight", "bias"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("ReduceMean", ["r", "axes"], ["features"], keepdims=0),
    ]
    initializers = [numpy_helper.from_array(np.asarray(torch.as_tensor(v).detach()), k) for k, v in tensors.items()]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 6, 6, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 4])],
        [*initializers, numpy_helper.from_array(np.array([2, 3]), "axes")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_without_preprocessing_the_graph_gives_the_same_features(tmp_path: Path) -> None:
    file, images = _small_file(tmp_path / "small.onnx"), _images(5)
    bare = subject.without_preprocessing(onnx.load(file))
    assert [node.op_type for node in bare.graph.node] == ["Conv", "Relu", "ReduceMean"]
    assert bare.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    expected = open_session(file.read_bytes()).run(None, {"images": images})[0]
    embed = subject._bare(file, 1, MEAN, STD)
    np.testing.assert_allclose(np.asarray(embed(images)), expected, atol=1e-5)
    np.testing.assert_allclose(np.asarray(embed(images[:2])), expected[:2], atol=1e-5)


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_the_torch_contenders_start_from_the_same_pixels(tmp_path: Path, dtype: torch.dtype, off: float) -> None:
    images = _images(5)
    expected = open_session(_small_file(tmp_path / "small.onnx").read_bytes()).run(None, {"images": images})[0]
    found = np.asarray(subject.torch_embed(_Small().eval(), MEAN, STD, dtype)(images))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=off)
    if dtype == torch.bfloat16:
        assert np.abs(found - expected).max() > 1e-5  # it is not fp32 under another name


def test_openvino_gives_the_same_features(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    file, images = _small_file(tmp_path / "small.onnx"), _images(5)
    expected = open_session(file.read_bytes()).run(None, {"images": images})[0]
    np.testing.assert_allclose(np.asarray(subject._openvino(file, 1)(images)), expected, atol=1e-4)


def test_the_random_run_is_repeatable_and_leaves_random_numbers_alone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    runs = [subject.random_run(tmp_path / name, 8) for name in "ab"]
    drawn = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(2), drawn)
    one, other = (run.encoder() for run in runs)
    assert encoder_hash(one) == encoder_hash(other) and runs[0].image_size == 8
    variance = dict(one.named_buffers())["bn1.running_var"]
    assert float((variance - 1).abs().max()) > 1e-3  # its batch norm has seen images


@pytest.fixture
def exported(tmp_path: Path) -> subject._Exported:
    return subject._Exported(_small_file(tmp_path / "encoder.onnx"), 1.5, None, 0.0, "a gate failed: so and so")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return subject.random_run(tmp_path_factory.mktemp("runs") / "run", 8)


def test_who_is_missing_is_named_at_every_batch_with_the_reason(
    run: Run, exported: subject._Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def fails() -> Any:
        raise RuntimeError("broken\nin two lines")

    def absent() -> Any:
        raise subject.Unavailable("not installed")

    def works() -> Any:
        return lambda images: sizes.append(len(images))

    builders: dict[str, Callable[[], Any]] = {"a": works, "b": fails, "c": absent, "d": works}
    monkeypatch.setattr(subject, "_contenders", lambda *_: builders)
    rows = subject._speed_rows(run, exported, 2, (1, 3), compile=False, threads=1)
    found = {(row["name"], row["contender"]): row for row in rows}
    assert len(rows) == len(found) == 8
    for batch in ("encoder, batch 1", "encoder, batch 3"):
        assert found[batch, "a"]["median"] > 0 and found[batch, "d"]["median"] > 0
        assert found[batch, "b"]["note"] == "RuntimeError: broken" and found[batch, "b"]["median"] is None
        assert found[batch, "c"]["note"] == "not installed"
    # First one of each size; then, per size, a warm-up and two rounds of both, ten calls in a round of one image.
    assert sizes == [1, 3] * 2 + [1] * 60 + [3] * 6


def test_an_int8_file_that_failed_its_gate_is_missing_with_the_reason(
    run: Run, exported: subject._Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([0.3, 7.0, 0.1, 8.0, 0.2, 9.0])  # PyTorch and the file in turn
    monkeypatch.setattr(
        subject, "fresh_process", lambda script, target, threads: Fresh(next(seconds), 2**21, 2**22 + threads)
    )
    rows = subject._process_rows(run, exported, 3, 1) + subject._size_rows(run, exported)
    rows += subject._export_rows(exported) + subject._accuracy_rows(exported)
    int8 = [row for row in rows if row["contender"] == subject.INT8]
    assert {row["name"] for row in int8} == {"start-up", "memory", "file size", "export", "probe accuracy"}
    assert all(row["median"] is None and row["note"] == "a gate failed: so and so" for row in int8)
    found = {(row["name"], row["contender"]): row for row in rows}
    assert found["start-up", subject.EAGER]["median"] == 0.2 and found["start-up", subject.FP32]["median"] == 8.0
    assert found["memory", subject.FP32]["median"] == 2.0 and found["memory", subject.FP32]["peak_bytes"] == 2**22 + 1
    assert found["export", subject.FP32]["median"] == 1.5
    assert found["file size", subject.FP32]["median"] == exported.fp32.stat().st_size / 1e6


GOOD = {
    ("encoder, batch 64", subject.EAGER): 100.0,
    ("encoder, batch 64", subject.FP32): 105.5,
    ("encoder, batch 64", subject.BARE): 115.0,
    ("encoder, batch 64", subject.INT8): 317.0,
    ("encoder, batch 1", subject.EAGER): 100.0,
    ("encoder, batch 1", subject.FP32): 181.0,
    ("start-up", subject.FP32): 0.59,
    ("export", subject.FP32): 4.9,
    ("export", subject.INT8): 19.0,
}
MISSES = {
    ("encoder, batch 64", subject.FP32): 104.9,
    ("encoder, batch 64", subject.BARE): 117.0,
    ("encoder, batch 64", subject.INT8): 316.0,
    ("encoder, batch 1", subject.FP32): 179.0,
    ("start-up", subject.FP32): 0.61,
    ("export", subject.FP32): 5.1,
    ("export", subject.INT8): 21.0,
}


def _rows(values: dict[tuple[str, str], float]) -> list[dict[str, Any]]:
    return [{"name": name, "contender": who, "median": value} for (name, who), value in values.items()]


def test_the_floors_hold_where_the_issue_s_figures_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "has_vnni", lambda: True)
    floors = subject.floors()
    assert len(check(_rows(GOOD), floors)) == 7
    for key, value in MISSES.items():
        missed = [v for v in judge(_rows(GOOD | {key: value}), floors) if not v["holds"]]
        assert len(missed) == 1 and missed[0]["name"] == key[0], (key, missed)
        with pytest.raises(CheckFailed, match="MISSED"):
            check(_rows(GOOD | {key: value}), floors)


def test_without_vnni_int8_has_no_speed_to_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "has_vnni", lambda: False)
    assert len(check(_rows(GOOD | {("encoder, batch 64", subject.INT8): 90.0}), subject.floors())) == 6


def test_a_point_of_accuracy_is_the_floor_of_a_trained_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "has_vnni", lambda: False)
    floors = subject.floors("runs/first")
    row = {"name": "probe accuracy", "contender": subject.INT8, "median": 60.0}
    assert len(check([*_rows(GOOD), row | {"lost_points": 0.9}], floors)) == 7
    with pytest.raises(CheckFailed):
        check([*_rows(GOOD), row | {"lost_points": 1.1}], floors)
    with pytest.raises(CheckFailed, match="missed"):
        check(_rows(GOOD), floors)


@pytest.mark.parametrize("option", [["--run", "runs/x"], ["--no-compile"]])
def test_options_of_export_are_refused_elsewhere(option: list[str]) -> None:
    assert CliRunner().invoke(command, ["nt-xent", *option]).exit_code == 2


def test_the_document_names_the_processor_and_onnxruntime() -> None:
    about = subject.about()
    assert (
        about["device"].endswith("threads") and {"onnxruntime", "torch", "python", "numpy"} <= about["versions"].keys()
    )
