"""What the evaluator takes from a file is cached by file and data, and its classes are the data's or an error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fixtures.coloured import coloured
from fixtures.tiny_model import TINY, MakeTiny
from fixtures.tiny_probe import CLASSES, PROBE, tiny_probabilities, tiny_probe_model, write_tiny_probe
from simclr_engine import evaluate, evaluate_all
from simclr_engine.data.store import ImageStore
from simclr_engine.errors import DataError, UsageError
from simclr_engine.evaluation.splits import overlapping_images
from simclr_engine.export import onnx_features
from simclr_engine.export.features import check_class_names, difference_to_pytorch, probe_predictions


def _images(count: int, size: int = 4) -> NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


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


def test_cached_features_hide_no_altered_file_and_no_unfit_images(
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


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SIMCLR_ENGINE_CACHE", str(tmp_path / "cache"))


def _labelled(count: int, class_names: tuple[str, ...] = CLASSES) -> ImageStore:
    labels = np.arange(count, dtype=np.int64) % len(class_names)
    return ImageStore.from_arrays(_images(count), labels, class_names, name="photos", split="test")


def test_the_file_s_own_probe_scores_a_data_set(tmp_path: Path) -> None:
    store = _labelled(20)
    probabilities, labels = probe_predictions(write_tiny_probe(tmp_path / "probe.onnx"), store)
    expected = tiny_probabilities(store.images)
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert np.array_equal(labels, expected.argmax(1))
    assert (probabilities.dtype, labels.dtype, probabilities.shape) == (np.float32, np.int64, (20, 3))
    assert len(set(labels.tolist())) > 1


def test_predictions_are_cached_by_file_and_data(tmp_path: Path) -> None:
    path, calls = write_tiny_probe(tmp_path / "probe.onnx"), list[int]()
    first = probe_predictions(path, _labelled(20), advance=calls.append)
    second = probe_predictions(path, _labelled(20), advance=calls.append)
    assert calls == [20]
    assert all(map(np.array_equal, first, second)) and [a.dtype for a in second] == [np.float32, np.int64]
    probe_predictions(path, _labelled(21), advance=calls.append)
    probe_predictions(path, _labelled(20), cache=False, advance=calls.append)
    write_tiny_probe(path, recipe="another")
    probe_predictions(path, _labelled(20), advance=calls.append)
    assert calls == [20, 21, 20, 20]
    # The features of the same file and images are another thing.
    assert onnx_features(path, _labelled(20)).shape == (20, 2)


def test_cached_predictions_hide_no_other_classes_altered_file_or_images(
    tmp_path: Path,
) -> None:
    path, store = write_tiny_probe(tmp_path / "probe.onnx"), _labelled(6)
    probe_predictions(path, store)
    with pytest.raises(DataError, match="other classes"):
        probe_predictions(path, replace(store, class_names=("ant", "bee", "cow")))
    with pytest.raises(DataError, match="resize"):
        probe_predictions(path, ImageStore.from_arrays(_images(3, size=8)))
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(DataError):
        probe_predictions(path, store)


def test_images_without_labels_are_predicted_too(tmp_path: Path) -> None:
    store = ImageStore.from_arrays(_images(5))
    _, labels = probe_predictions(write_tiny_probe(tmp_path / "probe.onnx"), store)
    assert np.array_equal(labels, tiny_probabilities(store.images).argmax(1))


def test_a_file_without_a_probe_cannot_score(make_tiny: MakeTiny) -> None:
    for store in (_labelled(3), ImageStore.from_arrays(_images(3))):
        with pytest.raises(UsageError, match="--probe"):
            probe_predictions(make_tiny(), store)


MANY = tuple(f"class {i}" for i in range(12))


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        (CLASSES, ("ant", "bee", "cow"), r"only in the file: 'cat'; only in pets: 'cow'"),
        (CLASSES, ("ant", "bee"), r"only in the file: 'cat'; only in pets: none"),
        (CLASSES, (*CLASSES, "dog"), r"only in the file: none; only in pets: 'dog'"),
        (CLASSES, ("ant", "cat", "bee"), r"label 1 is 'bee' in the file, 'cat' in pets"),
        (CLASSES, MANY, r"'class 4' and 7 more"),
        (("a", "b", "b"), ("a", "b"), "a name occurs twice"),
        (CLASSES, (), r"only in the file: 'ant', 'bee', 'cat'; only in pets: none"),
        (CLASSES, ("ant", "bee", "cat "), r"only in pets: 'cat '"),
    ],
)
def test_classes_that_differ_are_named(ours: tuple[str, ...], theirs: tuple[str, ...], says: str) -> None:
    with pytest.raises(DataError) as caught:
        check_class_names(replace(TINY, class_names=ours), theirs, "pets")
    assert says in str(caught.value)


def test_the_same_classes_pass() -> None:
    check_class_names(replace(TINY, class_names=CLASSES), list(CLASSES), "pets")


def test_the_difference_to_pytorch_names_the_precision_and_its_bound() -> None:
    said = difference_to_pytorch(replace(TINY, probe=PROBE))
    assert "PyTorch" in said and "at most 1e-05" in said and "74 images" in said and "int8" not in said
    assert difference_to_pytorch(replace(TINY, precision="int8")).startswith("int8")


def test_the_label_that_is_scored_is_the_file_s_own_output(tmp_path: Path) -> None:
    model = tiny_probe_model()
    model.graph.node[-1].op_type = "ArgMin"  # a file whose label is not the most probable class
    path = write_tiny_probe(tmp_path / "probe.onnx", model)
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), dtype=np.uint8)
    expected = tiny_probabilities(images)
    assert (expected.argmin(1) != expected.argmax(1)).all()
    for _ in range(2):  # computed, then from the cache
        _, labels = probe_predictions(path, ImageStore.from_arrays(images))
        assert np.array_equal(labels, expected.argmin(1))


def test_what_a_smaller_file_lost_is_said_with_both_accuracies() -> None:
    parity = {**TINY.parity, "agreement": 0.987, "images_compared": 2000, "accuracy": 0.604, "accuracy_fp32": 0.6055}
    said = difference_to_pytorch(replace(TINY, precision="int8", parity=parity))
    assert said.startswith("int8 file: features differ from PyTorch's by at most 1e-05")
    assert "98.7 % of 2,000 images get the label that they get in fp32" in said
    assert said.endswith(", 60.4 % get the right one (60.6 % in fp32)")
    without = {**TINY.parity, "agreement": 0.987, "images_compared": 2000}
    assert "get the right one" not in difference_to_pytorch(replace(TINY, precision="fp16", parity=without))


LIMITS = (None, 6)


@pytest.fixture
def splits() -> tuple[ImageStore, ImageStore]:
    return coloured(60, 0, "train", side=4), coloured(30, 1, "test", side=4)


@pytest.mark.parametrize("limit", LIMITS)
def test_a_file_pretrained_on_the_test_split_is_refused_for_a_part_too(
    make_tiny: MakeTiny, splits: tuple[ImageStore, ImageStore], limit: int | None
) -> None:
    path = make_tiny(data_fingerprint=splits[1].fingerprint)
    with pytest.raises(DataError, match="pretrained on this very test split"):
        evaluate(path, splits, "knn", limit=limit)


@pytest.mark.parametrize("limit", LIMITS)
def test_copies_of_train_in_test_are_refused_where_the_part_has_none_too(
    make_tiny: MakeTiny, splits: tuple[ImageStore, ImageStore], limit: int | None
) -> None:
    train, test = splits
    images = np.array(test.images)
    images[-3:] = train.images[-3:]
    copied = ImageStore.from_arrays(images, test.labels, test.class_names, name=test.name, split=test.split)
    assert overlapping_images(train, copied) == 3 and overlapping_images(train.limit(6), copied.limit(6)) == 0
    with pytest.raises(DataError, match="3 of 30 test images are in train"):
        evaluate(make_tiny(), (train, copied), "knn", limit=limit)


def test_every_result_of_a_file_says_how_far_it_is_from_pytorch(
    make_tiny: MakeTiny, splits: tuple[ImageStore, ImageStore]
) -> None:
    results = evaluate_all(make_tiny(precision="int8"), splits, ["knn", "linear"])
    assert isinstance(results, list) and len(results) == 2
    for one in results:
        assert any(note.startswith("int8 file: features differ from PyTorch's by at most") for note in one.notes)


@pytest.mark.parametrize("asked", [["knn", "knn"], ("knn", "linear", "knn")])
def test_a_method_named_twice_is_run_once(
    make_tiny: MakeTiny, splits: tuple[ImageStore, ImageStore], asked: Sequence[str]
) -> None:
    results = evaluate_all(make_tiny(), splits, asked)
    assert isinstance(results, list)
    assert [one.method for one in results] == list(dict.fromkeys(asked))
