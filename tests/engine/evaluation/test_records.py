"""Results of an evaluation, damaged or made to mislead: refused, or left out of the report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fixtures.hostile import DEEP, LONG, Calls, little_memory, whole_and_short
from fixtures.synthetic_run import neighbours, random_confusion, result
from simclr_engine.data.store import ImageStore
from simclr_engine.errors import DataError
from simclr_engine.evaluation.linear import LinearProbe
from simclr_engine.evaluation.metrics import confusion_matrix, score
from simclr_engine.evaluation.records import (
    load_embeddings,
    load_neighbours,
    load_predictions,
    load_results,
    save_embeddings,
    save_neighbours,
    save_result,
)
from simclr_engine.evaluation.result import EvaluationResult
from simclr_engine.files import Folder


def changed(**fields: object) -> str:
    return json.dumps(result(random_confusion(2, 20, 0.5), ("a", "b")).to_dict() | fields)


@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        LONG,
        changed(f1_micro=float("nan")),
        changed(also={"x": float("inf")}),
        changed(also={"x": "y"}),
        changed(also=3),
        changed(method=["linear"]),
        changed(data=3),
        changed(limit="5"),
        changed(train_images=1.5),
        changed(history=[{"epoch": "x"}]),
        changed(per_class=[{"name": 1, "support": 1, "accuracy": 1, "precision": 1, "f1": 1, "iou": 1}] * 2),
        changed(confusion=[["x" * 50_000]]),
        changed(confusion=[[10**30, 1], [1, 1]]),
        changed(confusion=[[1]]),
        changed(confusion={"true": [0, 2], "predicted": [0, 1], "count": [1, 1]}),
        changed(confusion={"true": [0, 1], "predicted": [0, -1], "count": [1, 1]}),
        changed(confusion={"true": [0, 1], "predicted": [0, 1], "count": [1, -1]}),
        changed(confusion={"true": [0, 1], "predicted": [0, 1], "count": [1]}),
        changed(confusion={"true": [[0]], "predicted": [[0]], "count": [[1]]}),
        changed(confusion={"true": [0, 1]}),
        changed(folds=[{"fold": 1}]),
    ],
)
def test_an_evaluation_that_cannot_be_one_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError) as caught:
        EvaluationResult.from_json(text)
    whole_and_short(caught.value)
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError) as caught:
        load_results(tmp_path)
    whole_and_short(caught.value)


ONES = np.ones((2, 3), np.float32)
PROBE = LinearProbe(ONES, ONES[0], ONES[0, :2], ONES[0, :2], np.arange(3), 1.0, 5, False)


def of_many_classes(classes: int) -> EvaluationResult:
    """A result over two test images of each class."""
    guess = np.random.default_rng(0).integers(0, classes, 2 * classes)
    confusion = confusion_matrix(np.arange(2 * classes) % classes, guess, classes)
    scores = score(confusion, [f"class {i}" for i in range(classes)])
    about = {"method": "linear", "init": "pretrained", "protocol": "", "ece": 0.0, "seconds": 0.0}
    return EvaluationResult.from_scores(scores, confusion=confusion, **about)


def test_a_result_of_twenty_thousand_classes_is_small_and_read_again(tmp_path: Path) -> None:
    one = of_many_classes(20_000)
    name = save_result(tmp_path, one)
    assert (tmp_path / f"{name}.json").stat().st_size < 20_000 * 350
    assert load_results(tmp_path)[name].to_dict() == one.to_dict()


def test_a_result_with_every_cell_of_the_matrix_is_read_as_before(tmp_path: Path) -> None:
    counts = random_confusion(3, 50, 0.5)
    (tmp_path / "x.json").write_text(json.dumps(result(counts).to_dict() | {"confusion": counts.tolist()}))
    assert load_results(tmp_path)["x"].to_dict() == result(counts).to_dict()


def test_what_would_not_be_read_again_is_not_written_and_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = save_result(tmp_path, result(random_confusion(3, 50, 0.5)), PROBE)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("simclr_engine.sealing.LARGEST_DOCUMENT", 1000)
    with pytest.raises(DataError, match="larger than what is read again"):
        save_result(tmp_path, result(random_confusion(3, 50, 0.9)), replace(PROBE, C=2.0))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before and f"{name}.json" in before


LOADERS: dict[str, Callable[[Path, str], object]] = {
    "predictions": load_predictions,
    "neighbours": load_neighbours,
    "embeddings": load_embeddings,
}


def stored(folder: Path, kind: str, **replaced: Any) -> object:
    """What the loader of a kind makes of a good file, some of its arrays replaced."""
    rows, images = np.arange(2), np.zeros((2, 8, 8, 3), np.uint8)
    arrays: dict[str, Any] = {
        "predictions": {"truth": rows, "predicted": rows, "confidence": np.ones(2, np.float32), "rows": rows},
        "neighbours": {
            "queries": images,
            "query_labels": rows,
            "labels": rows[:, None],
            "class_names": np.array(["a", "b"]),
        },
        "embeddings": {"labels": rows, "class_names": np.array(["a", "b"]), "data": np.str_("x")},
    }[kind]
    arrays |= {"predictions": {"images": images}, "neighbours": {"images": images[:, None]}}.get(kind, {})
    arrays |= {"cosines": np.ones((2, 1), np.float32)} if kind == "neighbours" else {}
    np.save(folder / "x.npy", replaced.pop("features", np.ones((2, 3), np.float32)), allow_pickle=True)
    np.savez_compressed(folder / ("x_labels.npz" if kind == "embeddings" else "x.npz"), **arrays | replaced)
    return LOADERS[kind](folder, "x")


def test_one_long_name_of_a_class_does_not_make_the_others_long(tmp_path: Path) -> None:
    names = ("n" * 4000, *(f"Ä{i}\udce9" for i in range(2000)))
    at, rows = Folder.open(tmp_path), np.arange(8)
    images = np.zeros((8, 8, 8, 3), np.uint8)
    given = ImageStore(images, rows, names, "", "photos", "test", ())
    save_embeddings(at, "test", given, np.ones((8, 3), np.float32))
    save_neighbours(at, "neighbours", neighbours(names))
    assert all(path.stat().st_size < 50_000 for path in tmp_path.iterdir())
    found = load_embeddings(tmp_path, "test"), load_neighbours(tmp_path, "neighbours")
    assert [one.class_names if one else None for one in found] == [names, names]


@pytest.mark.parametrize("kind", LOADERS)
def test_no_array_of_an_evaluation_is_unpickled(tmp_path: Path, kind: str) -> None:
    assert stored(tmp_path, kind) is not None
    evil = np.empty(2, dtype=object)
    evil[:] = [Calls(os.mkdir, str(tmp_path / "owned")), 1]
    for name in ("labels", "class_names", "truth", "rows", "queries", "features"):
        stored(tmp_path, kind, **{name: evil})
    assert not (tmp_path / "owned").exists()
    name = {"predictions": "truth", "neighbours": "labels", "embeddings": "labels"}[kind]
    assert stored(tmp_path, kind, **{name: evil}) is None
    assert kind != "embeddings" or stored(tmp_path, kind, features=evil) is None


@pytest.mark.parametrize(
    ("kind", "replaced"),
    [
        ("predictions", {"rows": np.array([0, -1])}),
        ("predictions", {"rows": np.array([0, 2])}),
        ("predictions", {"truth": np.array(["a", "b"])}),
        ("predictions", {"truth": np.array(1)}),
        ("predictions", {"predicted": np.array([0, -1])}),
        ("predictions", {"confidence": np.array([1 + 1j, 1])}),
        ("neighbours", {"labels": np.array([[0], [2]])}),
        ("neighbours", {"labels": np.array([[0], [-1]])}),
        ("neighbours", {"labels": np.ones((2, 1))}),
        ("neighbours", {"class_names": np.array("a")}),
        ("neighbours", {"class_names": np.array([1, 2])}),
        ("neighbours", {"cosines": np.array([["a"], ["b"]])}),
        ("embeddings", {"labels": np.array([0, 2])}),
        ("embeddings", {"labels": np.array([0, -1])}),
        ("embeddings", {"labels": np.array(["0", "1"])}),
        ("embeddings", {"class_names": np.array("a")}),
        ("embeddings", {"class_names": np.array(b"a")}),
        ("embeddings", {"class_names": np.array(b"[1, 2]")}),
        ("embeddings", {"class_names": np.array(b"[" * 100_000)}),
        ("neighbours", {"class_names": np.array(b"[]")}),
        ("embeddings", {"features": np.array([["a"], ["b"]])}),
    ],
)
def test_arrays_that_do_not_belong_together_are_not_taken(tmp_path: Path, kind: str, replaced: dict[str, Any]) -> None:
    assert stored(tmp_path, kind) is not None
    assert stored(tmp_path, kind, **replaced) is None


@pytest.mark.parametrize("kind", LOADERS)
def test_arrays_that_unpack_to_more_than_is_ever_kept_are_not_unpacked(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simclr_engine.files.LARGEST_NPZ", 16 << 20)
    big = np.zeros((6, 1 << 20, 3, 1), np.uint8)
    with little_memory(40 << 20):
        assert stored(tmp_path, kind, images=big, more=np.zeros(1)) is None if kind != "embeddings" else True
    assert stored(tmp_path, kind, extra=np.zeros(24 << 20, np.uint8)) is None
