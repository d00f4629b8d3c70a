"""OnnxEncoder gives the graph's features for any number of images, without torch, and refuses what does not fit."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fixtures.image_files import class_tree, write_tree
from fixtures.tiny_model import TINY, WEIGHT, MakeTiny, tiny_features, tiny_model
from fixtures.tiny_probe import CLASSES, tiny_probabilities, tiny_probe_model, write_tiny_probe
from simclr_engine.data.store import ImageStore
from simclr_engine.errors import DataError, PlatformError, UsageError
from simclr_engine.export import OnnxEncoder, runtime
from simclr_engine.export.graph import seal
from simclr_engine.export.metadata import SCHEMA, sidecar_path
from simclr_engine.export.writer import ExportResult


def _images(count: int, size: int = 4) -> NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("count", "size", "lengths"), [(65, 32, [64, 1]), (128, 8, [64, 64]), (5, 112, [5]), (7, 224, [1] * 7)]
)
def test_batches_are_all_images_in_order_64_of_32_px(count: int, size: int, lengths: list[int]) -> None:
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((size, size, 3), np.uint8)
    parts = list(runtime.batches(images))
    assert [len(part) for part in parts] == lengths
    np.testing.assert_array_equal(np.concatenate(parts), images)


@pytest.mark.parametrize("count", [1, 2, 7, 64, 65, 200])
@pytest.mark.parametrize("batch_size", [1, 64])
def test_features_are_the_graph_s_for_any_count(make_tiny: MakeTiny, count: int, batch_size: int) -> None:
    done: list[int] = []
    images = _images(count)
    features = OnnxEncoder(make_tiny()).embed(images, batch_size=batch_size, advance=done.append)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, tiny_features(images), rtol=1e-6, atol=1e-4)
    assert sum(done) == count and max(done) <= batch_size


def test_a_store_a_memory_map_and_a_strided_view_give_the_same(make_tiny: MakeTiny, tmp_path: Path) -> None:
    images = _images(70)
    np.save(tmp_path / "images.npy", images)
    encoder = OnnxEncoder(make_tiny())
    expected = encoder.embed(images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert np.array_equal(encoder.embed(mapped), expected)
    assert np.array_equal(encoder.embed(ImageStore.from_arrays(images)), expected)
    assert np.array_equal(encoder.embed(np.repeat(images, 2, axis=0)[::2]), expected)


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (_images(2).astype(np.float32) / 255, "scaling and normalisation are inside"),
        (_images(2).astype(np.int64), "scaling and normalisation are inside"),
        (_images(2).transpose(0, 3, 1, 2), r"transpose\(0, 2, 3, 1\)"),
        (_images(2, size=5), "resize the images to 4×4"),
        (_images(2)[0], r"images\[None\]"),
        (_images(2)[..., :1], "8-bit RGB"),
        (_images(0), "at least one image"),
        ([[1]], "numpy array"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_expected_shape(
    make_tiny: MakeTiny, tmp_path: Path, images: Any, says: str
) -> None:
    with pytest.raises(DataError, match=says) as caught:
        OnnxEncoder(make_tiny()).embed(images)
    assert "uint8 [N, 4, 4, 3]" in str(caught.value)
    with pytest.raises(DataError, match=says):
        OnnxEncoder(write_tiny_probe(tmp_path / "probe.onnx")).predict(images)


def _tiny(path: Path, probe: bool, **changes: Any) -> Path:
    if probe:
        return write_tiny_probe(path, **changes)
    path.write_bytes(seal(tiny_model(), replace(TINY, **changes)))
    return path


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("probe", [False, True])
def test_a_file_that_cannot_be_trusted_is_refused_with_or_without_a_probe(
    tmp_path: Path, probe: bool, precision: str
) -> None:
    path = tmp_path / "encoder.onnx"
    whole = _tiny(path, probe, precision=precision).read_bytes()
    OnnxEncoder(path)

    def refused(data: bytes, says: str) -> None:
        path.write_bytes(data)
        with pytest.raises(DataError, match=says):
            OnnxEncoder(path)

    model = onnx.load_from_string(whole)
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.metadata_props[:]
    refused(bare.SerializeToString(), "not written by simclr-engine")
    refused(whole[: len(whole) // 2], "truncated")
    refused(whole[:-1], "truncated")
    weight = model.graph.initializer[1].raw_data
    refused(whole.replace(weight, bytes([weight[0] ^ 1]) + weight[1:]), "altered")
    outside = onnx.ModelProto()
    outside.CopyFrom(model)
    onnx.external_data_helper.set_external_data(outside.graph.initializer[1], "../../secrets.bin")
    refused(outside.SerializeToString(), "keeps weights in other files")
    refused(_tiny(path, probe, schema=SCHEMA + 1).read_bytes(), "newer simclr-engine")
    sidecar_path(path).write_text("0" * 64 + "  encoder.onnx\n")
    refused(whole, "checksum disagree")


def test_an_unknown_provider_is_an_error_not_a_silent_cpu_run(make_tiny: MakeTiny) -> None:
    with pytest.raises(PlatformError, match="no such execution provider") as caught:
        OnnxEncoder(make_tiny(), providers=("NoSuchExecutionProvider",))
    assert "CPUExecutionProvider" in str(caught.value)


def test_a_provider_that_does_not_become_active_is_an_error(
    make_tiny: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [*onnxruntime.get_available_providers(), "CUDAExecutionProvider"]
    if known.count("CUDAExecutionProvider") > 1:
        pytest.skip("needs an onnxruntime without CUDA: here its provider would become active")
    real = onnxruntime.InferenceSession

    asked: list[object] = []

    def without_cuda(model: bytes, options: object, providers: list[str], provider_options: list[object]) -> object:
        asked.extend(zip(providers, provider_options, strict=True))
        return real(model, options, providers=[p for p in providers if p != "CUDAExecutionProvider"] or None)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: known)
    monkeypatch.setattr(onnxruntime, "InferenceSession", without_cuda)
    with pytest.raises(PlatformError, match="did not become active"):
        OnnxEncoder(make_tiny(), providers=("cuda", "CPUExecutionProvider"))
    # In TF32 the features would miss the parity that the file states.
    assert asked == [("CUDAExecutionProvider", {"use_tf32": "0"}), ("CPUExecutionProvider", {})]


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("cpu", "CPUExecutionProvider"),
        ("CPU", "CPUExecutionProvider"),
        ("CPUExecutionProvider", "CPUExecutionProvider"),
        ("cuda", "CUDAExecutionProvider"),
        ("CoreML", "CoreMLExecutionProvider"),
        ("OpenVINO", "OpenVINOExecutionProvider"),
        ("openvinoexecutionprovider", "OpenVINOExecutionProvider"),
        ("DmlExecutionProvider", "DmlExecutionProvider"),
    ],
)
def test_providers_go_by_short_names_too(name: str, full: str) -> None:
    assert runtime.provider_name(name) == full


def test_one_provider_needs_no_tuple(make_tiny: MakeTiny) -> None:
    assert OnnxEncoder(make_tiny(), providers="cpu").providers == ("CPUExecutionProvider",)
    with pytest.raises(PlatformError, match="NoSuch"):
        OnnxEncoder(make_tiny(), providers="NoSuch")


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Binds tensors to the CPU as they are bound to a GPU; the list fills with what was allocated."""
    allocated: list[str] = []
    real = onnxruntime.OrtValue.ortvalue_from_shape_and_type

    def counted(shape: tuple[int, ...], *args: object) -> object:
        allocated.append(str(shape))
        return real(shape, *args)

    monkeypatch.setattr(runtime, "DEVICES", {"CPUExecutionProvider": "cpu"})
    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_shape_and_type", staticmethod(counted))
    return allocated


def test_bound_tensors_give_the_features_of_a_plain_run(make_tiny: MakeTiny, bound: list[str]) -> None:
    images, path = _images(53), make_tiny()
    kept = images.copy()
    encoder = OnnxEncoder(path)
    found = encoder.embed(images, batch_size=16)
    np.testing.assert_allclose(found, tiny_features(images), rtol=1e-6, atol=1e-4)
    assert bound == ["(16, 4, 4, 3)", "(5, 4, 4, 3)"]  # one buffer for all whole batches, one for the rest
    assert np.array_equal(images, kept)
    # What was given out before must not change when the same buffers are written again.
    first = found.copy()
    again = encoder.embed(images[::-1], batch_size=16)
    assert np.array_equal(found, first) and np.array_equal(again, first[::-1])


def test_bound_tensors_give_probabilities_and_labels_too(tmp_path: Path, bound: list[str]) -> None:
    encoder, images = OnnxEncoder(write_tiny_probe(tmp_path / "probe.onnx")), _images(37)
    probabilities, labels = encoder.predict(images, batch_size=8)
    np.testing.assert_allclose(probabilities, tiny_probabilities(images), atol=1e-5)
    assert np.array_equal(labels, tiny_probabilities(images).argmax(1))
    np.testing.assert_allclose(encoder.embed(images, batch_size=8), tiny_features(images), rtol=1e-6, atol=1e-4)
    assert len(bound) == 4


@pytest.mark.parametrize("count", [1, 2, 7, 64, 65])
def test_a_probe_in_the_file_gives_its_probabilities_and_labels(tmp_path: Path, count: int) -> None:
    encoder, images = OnnxEncoder(write_tiny_probe(tmp_path / "probe.onnx")), _images(count)
    done: list[int] = []
    probabilities, labels = encoder.predict(images, batch_size=16, advance=done.append)
    assert encoder.has_probe and encoder.class_names == CLASSES
    assert (probabilities.dtype, labels.dtype) == (np.float32, np.int64)
    np.testing.assert_allclose(probabilities, tiny_probabilities(images), atol=1e-5)
    assert np.array_equal(labels, tiny_probabilities(images).argmax(1)) and labels.shape == (count,)
    assert sum(done) == count
    np.testing.assert_allclose(encoder.embed(images), tiny_features(images), rtol=1e-6, atol=1e-4)
    store = ImageStore.from_arrays(images)
    assert all(map(np.array_equal, encoder.predict(store, batch_size=16), (probabilities, labels)))


def test_a_file_without_a_probe_names_no_classes(make_tiny: MakeTiny) -> None:
    encoder = OnnxEncoder(make_tiny())
    assert not encoder.has_probe
    with pytest.raises(UsageError, match="--probe"):
        encoder.predict(_images(1))


def _without(name: str) -> onnx.ModelProto:
    model = tiny_probe_model()
    del model.graph.output[[o.name for o in model.graph.output].index(name)]
    return model


def _labels_as_floats() -> onnx.ModelProto:
    model = tiny_probe_model(label="index")
    model.graph.node.append(helper.make_node("Cast", ["index"], ["label"], to=TensorProto.FLOAT))
    del model.graph.output[2]
    model.graph.output.append(helper.make_tensor_value_info("label", TensorProto.FLOAT, ["batch"]))
    return model


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        (tiny_model(), {}),
        (_without("probabilities"), {}),
        (_without("label"), {}),
        (_labels_as_floats(), {}),
        (None, {"class_names": ("ant", "bee")}),
    ],
    ids=["neither", "no probabilities", "no label", "label is float", "classes fewer than columns"],
)
def test_outputs_that_do_not_fit_the_stated_probe_are_refused(
    tmp_path: Path, model: onnx.ModelProto | None, changes: dict[str, Any]
) -> None:
    if changes:
        changes["probe"] = {"class_names": list(changes["class_names"])}
    path = write_tiny_probe(tmp_path / "probe.onnx", model, **changes)
    with pytest.raises(DataError, match="a file with a probe must give"):
        OnnxEncoder(path)


def test_batches_are_embedded_one_at_a_time_as_they_come(make_tiny: MakeTiny) -> None:
    encoder = OnnxEncoder(make_tiny())
    batches, taken = [_images(n) for n in (3, 1, 70)], 0

    def source() -> Iterator[NDArray[np.uint8]]:
        nonlocal taken
        for batch in batches:
            taken += 1
            yield batch

    for index, features in enumerate(encoder.embed_batches(source())):
        assert taken == index + 1
        np.testing.assert_allclose(features, tiny_features(batches[index]), rtol=1e-6, atol=1e-4)
    assert taken == 3
    assert list(encoder.embed_batches([])) == []
    stream = encoder.embed_batches([batches[0], batches[1].astype(np.float32)])
    next(stream)
    with pytest.raises(DataError, match="scaling and normalisation"):
        next(stream)


def test_threads_follow_the_affinity_mask(make_tiny: MakeTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    options = OnnxEncoder(make_tiny())._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert OnnxEncoder(make_tiny(), threads=2)._session.get_session_options().intra_op_num_threads == 2


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"providers": ()}])
def test_impossible_settings_are_usage_errors(make_tiny: MakeTiny, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        OnnxEncoder(make_tiny(), **wrong)
    with pytest.raises(UsageError, match="batch_size"):
        OnnxEncoder(make_tiny()).embed(_images(1), batch_size=0)


def test_an_encoder_is_pickled_as_its_path_and_opened_again(
    make_tiny: MakeTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, images = make_tiny(), np.zeros((3, 4, 4, 3), np.uint8)
    monkeypatch.chdir(path.parent)
    encoder = OnnxEncoder(path.name, threads=1)
    packed = pickle.dumps(encoder)
    assert len(packed) < 1000
    monkeypatch.chdir(tmp_path.parent)  # another process may have another working directory
    again = pickle.loads(packed)
    assert again.sha256 == encoder.sha256 and again._opened_with == encoder._opened_with
    np.testing.assert_array_equal(again.embed(images), encoder.embed(images))
    make_tiny(recipe="another")  # at the same path
    with pytest.raises(DataError, match="not the one that the encoder was opened from"):
        pickle.loads(packed)


def test_what_the_file_says_is_at_hand(make_tiny: MakeTiny) -> None:
    encoder = OnnxEncoder(make_tiny())
    assert (encoder.image_size, encoder.feature_dim, encoder.class_names) == (4, 2, ("ant", "bee"))
    assert encoder.metadata == TINY
    assert encoder.providers == ("CPUExecutionProvider",)
    assert "at most 1e-05" in encoder.metadata.difference()


TORCH_FREE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "onnx", "onnxscript", "triton", "pydantic"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import numpy as np
from simclr_engine import OnnxEncoder
from simclr_engine.data.store import ImageStore
from simclr_engine.export import onnx_features
images = np.load(sys.argv[2])
features = OnnxEncoder(sys.argv[1]).embed(images)
assert np.array_equal(features, onnx_features(sys.argv[1], ImageStore.from_arrays(images)))
np.save(sys.argv[3], features)
"""


def test_a_process_without_torch_and_onnx_gives_the_same_features(shared_export: ExportResult, tmp_path: Path) -> None:
    images = _images(5, size=32)
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-c", TORCH_FREE, str(shared_export.file), "images.npy", "features.npy"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = OnnxEncoder(shared_export.file).embed(images)
    np.testing.assert_allclose(np.load(tmp_path / "features.npy"), expected, atol=1e-5)


def _not_square() -> onnx.ModelProto:
    model = tiny_model()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 5
    return model


def _wider() -> onnx.ModelProto:
    model = tiny_model()
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "weight")
    weight.CopyFrom(numpy_helper.from_array(np.concatenate([WEIGHT, WEIGHT], axis=1), "weight"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4
    return model


def _another_input() -> onnx.ModelProto:
    model = tiny_model()
    model.graph.input.append(helper.make_tensor_value_info("offset", TensorProto.FLOAT, [2]))
    model.graph.node[-1].output[0] = "product"
    model.graph.node.append(helper.make_node("Add", ["product", "offset"], ["features"]))
    return model


def _takes_floats() -> onnx.ModelProto:
    model = tiny_model()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    return model


def _without_channels() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], ["features"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "flat",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 4, 2])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(np.array([1]), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_not_square, "image_size"),
        (_wider, "feature_dim"),
        (_another_input, "holds what no encoder needs"),
        (_takes_floats, "must take uint8 `images`"),
        (_without_channels, "holds what no encoder needs"),
    ],
)
def test_a_graph_with_other_inputs_or_outputs_than_stated_is_refused(
    tmp_path: Path, make: Callable[[], onnx.ModelProto], says: str
) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(seal(make(), TINY))
    with pytest.raises(DataError, match=says):
        OnnxEncoder(path)


def test_labels_in_a_column_are_refused(tmp_path: Path) -> None:
    model = tiny_probe_model()
    argmax = model.graph.node[-1]
    next(one for one in argmax.attribute if one.name == "keepdims").i = 1
    model.graph.output[-1].CopyFrom(helper.make_tensor_value_info("label", TensorProto.INT64, ["batch", 1]))
    with pytest.raises(DataError, match="a file with a probe must give"):
        OnnxEncoder(write_tiny_probe(tmp_path / "probe.onnx", model))


def test_a_graph_that_onnxruntime_cannot_load_is_an_error_of_the_data(tmp_path: Path) -> None:
    model = tiny_model()
    first = model.graph.node[0]  # onnxruntime has no Where of truth values on the CPU
    first.CopyFrom(helper.make_node("Cast", ["images"], ["b"], to=TensorProto.BOOL))
    model.graph.node.insert(1, helper.make_node("Where", ["b", "b", "b"], ["j"]))
    model.graph.node.insert(2, helper.make_node("Cast", ["j"], ["x"], to=TensorProto.FLOAT))
    path = tmp_path / "encoder.onnx"
    path.write_bytes(seal(model, replace(TINY)))
    with pytest.raises(DataError, match="onnxruntime cannot load the file") as caught:
        OnnxEncoder(path)
    assert str(path) in str(caught.value.saw) and "\n" not in str(caught.value.saw)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.bool_])
def test_whole_numbers_other_than_bytes_are_refused_with_the_shape(
    make_tiny: MakeTiny, dtype: type[np.generic]
) -> None:
    with pytest.raises(DataError, match=r"expected uint8 \[N, 4, 4, 3\]") as caught:
        OnnxEncoder(make_tiny()).embed(np.zeros((2, 4, 4, 3), dtype))
    assert np.dtype(dtype).name in str(caught.value.saw)


def test_waiting_threads_spin_only_where_that_is_asked_for(make_tiny: MakeTiny) -> None:
    path = make_tiny()
    for spin in (False, True):
        options = OnnxEncoder(path, spin=spin)._session.get_session_options()
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == str(int(spin))


@pytest.mark.parametrize(("providers", "loads"), [(("cuda", "cpu"), 1), (("cpu",), 0)])
def test_cuda_s_libraries_are_loaded_for_cuda_alone_and_print_nowhere(
    make_tiny: MakeTiny,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    providers: tuple[str, ...],
    loads: int,
) -> None:
    real, made = onnxruntime.InferenceSession, []

    class Session:
        """A session on the CPU that calls itself one on whatever was asked."""

        def __init__(self, model: bytes, options: object, providers: list[str], provider_options: object) -> None:
            self._session, self._asked = real(model, options, providers=["CPUExecutionProvider"]), providers
            made.append(providers)

        def get_providers(self) -> list[str]:
            return self._asked

        def __getattr__(self, name: str) -> object:
            return getattr(self._session, name)

    path = make_tiny()
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcublasLt"))
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    assert OnnxEncoder(path, providers).providers == tuple(made[0])
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("libcublasLt") == loads


USED = """
import sys
from simclr_engine import OnnxEncoder
from simclr_engine.cli.main import cli
OnnxEncoder("e.onnx")
cli(["predict", "e.onnx", "photos", "--json"], standalone_mode=False)
cli(["evaluate", "e.onnx", "--data", "photos", "--method", "probe", "--json"], standalone_mode=False)
print(sorted({"pydantic", "jinja2", "torch", "onnx"} & set(sys.modules)), file=sys.stderr)
"""


def test_an_exported_file_is_used_without_pydantic_and_jinja2(tmp_path: Path) -> None:
    write_tiny_probe(tmp_path / "e.onnx", image_size=8)
    write_tree(tmp_path / "photos", class_tree(CLASSES, 2, "train/") | class_tree(CLASSES, 2, "test/", seed=50))
    done = subprocess.run([sys.executable, "-c", USED], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"
