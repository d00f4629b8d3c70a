"""OnnxEncoder gives the graph's features for any number of images, without torch, and refuses what does not fit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from tiny_model import TINY, MakeTiny, tiny_features

from simclr_engine.data.store import ImageStore
from simclr_engine.errors import DataError, PlatformError, UsageError
from simclr_engine.export import OnnxEncoder, onnx_features
from simclr_engine.export.writer import ExportResult


def _images(count: int, size: int = 4) -> NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


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
def test_what_does_not_fit_is_refused_with_the_expected_shape(make_tiny: MakeTiny, images: object, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        OnnxEncoder(make_tiny()).embed(images)  # type: ignore[arg-type]
    assert "uint8 [N, 4, 4, 3]" in str(caught.value)


def test_an_unknown_provider_is_an_error_not_a_silent_cpu_run(make_tiny: MakeTiny) -> None:
    with pytest.raises(PlatformError, match="no such execution provider") as caught:
        OnnxEncoder(make_tiny(), providers=("NoSuchExecutionProvider",))
    assert "CPUExecutionProvider" in str(caught.value)


def test_a_provider_that_does_not_become_active_is_an_error(
    make_tiny: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [*onnxruntime.get_available_providers(), "CUDAExecutionProvider"]
    if known.count("CUDAExecutionProvider") > 1:
        pytest.skip("CUDA is active here")
    real = onnxruntime.InferenceSession

    def without_cuda(model: bytes, options: object, providers: list[str]) -> object:
        return real(model, options, providers=[p for p in providers if p != "CUDAExecutionProvider"] or None)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: known)
    monkeypatch.setattr(onnxruntime, "InferenceSession", without_cuda)
    with pytest.raises(PlatformError, match="did not become active"):
        OnnxEncoder(make_tiny(), providers=("CUDAExecutionProvider", "CPUExecutionProvider"))


def test_threads_follow_the_affinity_mask(make_tiny: MakeTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    options = OnnxEncoder(make_tiny())._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert OnnxEncoder(make_tiny(), threads=2)._session.get_session_options().intra_op_num_threads == 2


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"providers": ()}])
def test_impossible_settings_are_usage_errors(make_tiny: MakeTiny, wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        OnnxEncoder(make_tiny(), **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="batch_size"):
        OnnxEncoder(make_tiny()).embed(_images(1), batch_size=0)


def test_what_the_file_says_is_at_hand(make_tiny: MakeTiny) -> None:
    encoder = OnnxEncoder(make_tiny())
    assert (encoder.image_size, encoder.feature_dim, encoder.class_names) == (4, 2, ("ant", "bee"))
    assert encoder.metadata == TINY
    assert encoder.providers == ("CPUExecutionProvider",)
    assert "at most 1e-05" in encoder.metadata.difference()


def test_cached_features_are_reused_and_keyed_by_file_and_data(
    make_tiny: MakeTiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SIMCLR_ENGINE_CACHE", str(tmp_path / "cache"))
    path, store = make_tiny(), ImageStore.from_arrays(_images(20))
    first = onnx_features(path, store)
    calls: list[int] = []
    assert np.array_equal(onnx_features(path, store, advance=calls.append), first)
    assert calls == []
    other = ImageStore.from_arrays(_images(21))
    assert len(onnx_features(path, other, advance=calls.append)) == 21 and calls == [21]
    onnx_features(make_tiny(recipe="another"), store, advance=calls.append)
    assert calls == [21, 20]
    onnx_features(path, store, cache=False, advance=calls.append)
    assert calls == [21, 20, 20]


def test_cached_features_do_not_hide_an_altered_file_or_images_that_do_not_fit(
    make_tiny: MakeTiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SIMCLR_ENGINE_CACHE", str(tmp_path / "cache"))
    path, store = make_tiny(), ImageStore.from_arrays(_images(3))
    onnx_features(path, store)
    with pytest.raises(DataError, match="resize"):
        onnx_features(path, ImageStore.from_arrays(_images(3, size=8)))
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(DataError):
        onnx_features(path, store)


TORCH_FREE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "onnx", "onnxscript", "triton"):
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
