"""predict: the file's own probabilities for any image file, the truth where it is known, the nearest of the index."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from fixtures.image_files import encode, noise, write_tree
from fixtures.odd_images import bomb, unusual_files
from fixtures.synthetic_run import random_confusion, result
from fixtures.tiny_probe import CLASSES, tiny_probabilities, write_tiny_probe
from simclr_engine.cli.predict import command
from simclr_engine.data.decode import decode_image
from simclr_engine.data.stream import find_images
from simclr_engine.errors import DataError, PlatformError, UsageError
from simclr_engine.evaluation.features import extract_features
from simclr_engine.evaluation.linear import LinearProbe
from simclr_engine.evaluation.records import save_result
from simclr_engine.export import predict
from simclr_engine.export.embed import embed_to_index
from simclr_engine.export.embedder import open_embedder
from simclr_engine.export.index import EmbeddingIndex, default_index
from simclr_engine.report import result_figures, style
from simclr_engine.run import Run

SIZE = 8
COLOURS = {"ant": (250, 20, 20), "bee": (20, 250, 20), "cat": (20, 20, 250)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_probe(tmp_path / "encoder.onnx", image_size=SIZE)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five test and two train images of each of the file's classes."""
    files, rng = {}, np.random.default_rng(0)
    for split, count in (("train", 2), ("test", 5)):
        for name in CLASSES:
            for i in range(count):
                pixels = np.clip(rng.normal(COLOURS[name], 20, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
                files[f"{split}/{name}/{i}.png"] = encode(pixels)
    return write_tree(tmp_path / "data", files)


def run(*args: object) -> Result:
    return CliRunner().invoke(command, [str(a) for a in args])


def document(*args: object) -> dict[str, object]:
    done = run(*args, "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def index_of(model: Path, source: Path, split: str = "train", pictures: bool = True) -> Path:
    embedder = open_embedder(model)
    parts = find_images(embedder, [str(source)], split)
    return embed_to_index(embedder, parts, default_index(model), pictures=pictures, overwrite=True).out


def test_classes_and_confidences_are_the_file_s_own_for_any_image_file(model: Path, tmp_path: Path) -> None:
    files = unusual_files()
    folder = write_tree(tmp_path / "odd", files)
    found = document(model, folder)
    readable = sorted(set(files) - {"bomb.png"})
    expected = tiny_probabilities(np.stack([decode_image(files[name], SIZE) for name in readable]))
    rows = found["images"]
    assert isinstance(rows, list) and [Path(r["path"]).name for r in rows] == readable
    for row, truth in zip(rows, expected, strict=True):
        order = np.argsort(-truth)
        assert [t["class"] for t in row["top"]] == [CLASSES[i] for i in order]
        np.testing.assert_allclose([t["confidence"] for t in row["top"]], truth[order], atol=1e-5)
        assert (row["class"], row["confidence"]) == (row["top"][0]["class"], row["top"][0]["confidence"])
        assert row["truth"] is None and row["right"] is None
    assert isinstance(found["skipped"], list) and Path(found["skipped"][0]["path"]).name == "bomb.png"
    assert found["accuracy"] is None


def test_test_images_are_drawn_by_the_seed_and_judged_by_their_class(model: Path, data: Path) -> None:
    first = document(model, "--data", data, "--n", 9, "--seed", 4)
    rows = first["images"]
    assert isinstance(rows, list)
    assert document(model, "--data", data, "--n", 9, "--seed", 4)["images"] == rows
    other = document(model, "--data", data, "--n", 9, "--seed", 5)["images"]
    assert isinstance(other, list) and [r["path"] for r in other] != [r["path"] for r in rows]
    assert len({r["path"] for r in rows}) == 9
    for row in rows:
        number = int(row["path"].removeprefix("test[").removesuffix("]"))
        assert row["truth"] == CLASSES[number // 5]
        pixels = decode_image(data / "test" / row["truth"] / f"{number % 5}.png", SIZE)[None]
        assert row["class"] == CLASSES[int(tiny_probabilities(pixels).argmax())]
        assert row["right"] == (row["class"] == row["truth"])
    assert first["accuracy"] == sum(r["right"] for r in rows) / 9
    everything = document(model, "--data", data, "--n", 99)["images"]
    assert isinstance(everything, list) and len(everything) == 15


def test_the_table_marks_right_and_wrong_and_counts(model: Path, data: Path) -> None:
    text = run(model, "--data", data, "--n", 15).stdout
    found = document(model, "--data", data, "--n", 15)["images"]
    assert isinstance(found, list)
    right = sum(r["right"] for r in found)
    assert (text.count("✓"), text.count("✗")) == (right, 15 - right) and 0 < right < 15
    assert f"{right} of 15 right" in text


def test_the_latency_is_that_of_single_images_and_says_what_it_rests_on(model: Path, data: Path) -> None:
    latency = document(model, data / "test" / "ant" / "0.png")["latency"]
    assert isinstance(latency, dict)
    assert 0 < latency["p50_ms"] <= latency["p95_ms"]
    assert (latency["calls"], latency["warm_up"], latency["batch"]) == (50, 5, 1)


def test_neighbours_are_the_nearest_of_the_index_beside_the_file(model: Path, data: Path) -> None:
    out = index_of(model, data)
    asked = data / "train" / "bee" / "1.png"
    rows = document(model, asked, "--neighbours", 3)["images"]
    assert isinstance(rows, list)
    near, paths = rows[0]["neighbours"], list(EmbeddingIndex.load(out).paths)
    vectors, own = np.load(out).astype(np.float64), paths.index(str(asked))
    cosines = vectors @ vectors[own] / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vectors[own])
    assert len(near) == 3 and own not in [n["row"] for n in near]  # not its own neighbour
    np.testing.assert_allclose([n["cosine"] for n in near], -np.sort(-np.delete(cosines, own))[:3], atol=1e-6)
    shown = f"{near[0]['class']} ({Path(near[0]['path']).name}) {near[0]['cosine']:.3f}"
    assert shown in " ".join(run(model, asked, "--neighbours", 3, "--index", out).stdout.split())


def test_a_copy_under_another_name_is_a_neighbour(model: Path, data: Path, tmp_path: Path) -> None:
    index_of(model, data)
    copy = tmp_path / "copy.png"
    copy.write_bytes((data / "train" / "bee" / "1.png").read_bytes())
    near = document(model, copy, "--neighbours", 1)["images"][0]["neighbours"]  # type: ignore[index]  # JSON
    assert near[0]["cosine"] == pytest.approx(1, abs=1e-6)


def test_the_picture_shows_each_image_with_its_neighbours(model: Path, data: Path, tmp_path: Path) -> None:
    plain = write_tiny_probe(tmp_path / "plain.onnx", image_size=SIZE, probe={})
    index_of(plain, data, pictures=False)
    refused = run(plain, data, "--neighbours", 2, "--save", tmp_path / "x.png").exception
    assert isinstance(refused, UsageError) and "embed with --images" in str(refused.fix)
    index_of(plain, data)
    one, three = tmp_path / "one.png", tmp_path / "three.png"
    asked = data / "train" / "bee"
    assert not run(plain, asked, "--neighbours", 1, "--save", one).exception
    assert not run(plain, asked, "--neighbours", 3, "--save", three).exception
    with Image.open(one) as narrow, Image.open(three) as wide:
        assert narrow.height == wide.height and narrow.width < wide.width


def test_without_an_index_the_error_has_the_command_that_makes_it(model: Path, data: Path, tmp_path: Path) -> None:
    error = run(model, data, "--neighbours", 2).exception
    assert isinstance(error, DataError)
    assert error.fix == f"simclr-engine embed {model} DATA --split train --images --out {tmp_path}/encoder.index.npy"
    index_of(model, data)
    write_tiny_probe(model, image_size=SIZE, recipe="another")
    assert "another encoder" in str(run(model, data, "--neighbours", 2).exception)


def test_a_file_without_a_probe_names_no_classes_but_finds_neighbours(model: Path, data: Path, tmp_path: Path) -> None:
    plain = write_tiny_probe(tmp_path / "plain.onnx", image_size=SIZE, probe={})
    error = run(plain, data).exception
    assert isinstance(error, UsageError) and "export" in (error.fix or "") and "--probe" in (error.fix or "")
    index_of(plain, data)
    found = document(plain, "--data", data, "--n", 4, "--neighbours", 2)
    rows = found["images"]
    assert isinstance(rows, list) and found["probe"] is None and found["accuracy"] is None
    assert all(r["class"] is None and r["top"] == [] and len(r["neighbours"]) == 2 for r in rows)
    assert all(r["truth"] in CLASSES for r in rows)


def test_data_of_other_classes_is_refused_and_both_are_named(model: Path, data: Path) -> None:
    for split in ("train", "test"):
        (data / split / "cat").rename(data / split / "dog")
    error = run(model, "--data", data).exception
    assert isinstance(error, DataError) and "'cat'" in str(error) and "'dog'" in str(error)


@pytest.mark.parametrize(
    ("args", "kind", "says"),
    [
        ([], UsageError, "either images or --data"),
        (["x.png", "--data", "y"], UsageError, "either images or --data"),
        (["gone.png"], DataError, "no such file"),
        (["./gone"], DataError, "no such folder"),
        (["gone"], UsageError, "no data set named"),
        (["bomb.png"], DataError, "pixels"),
        (["text.png"], DataError, "none of the images can be read"),
        (["./empty"], DataError, "no images"),
        (["floats.npy"], DataError, r"uint8 \[N, 8, 8, 3\]"),
        (["good.png", "--save", "x.jpg"], UsageError, "PNG"),
        (["good.png", "--csv", "p.csv", "--save", "x.out"], UsageError, "PNG"),
        (["good.png", "--csv", "x.png", "--save", "empty/../x.png"], UsageError, "one name"),
        (["good.png", "--save", "text.png/x.png"], PlatformError, "cannot write"),
        (["good.png", "--csv", "text.png/x.csv"], PlatformError, "cannot write"),
    ],
)
def test_bad_input_is_refused_in_words(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], kind: type, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(style, "DPI", 30)
    write_tree(tmp_path, {"bomb.png": bomb(), "text.png": b"text", "good.png": encode(noise(0))})
    (tmp_path / "empty").mkdir()
    np.save("floats.npy", np.zeros((1, 8, 8, 3)))
    error = run("encoder.onnx", *args).exception
    assert isinstance(error, kind), error
    assert re.search(says, str(error)), error
    assert not {*tmp_path.rglob("p.csv"), *tmp_path.rglob("x.*")}


def test_the_csv_has_a_line_for_every_image(model: Path, data: Path, tmp_path: Path) -> None:
    index_of(model, data)
    rows = document(model, "--data", data, "--n", 6, "--neighbours", 2, "--csv", tmp_path / "p.csv")["images"]
    assert isinstance(rows, list)
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [(r["path"], r["truth"], r["class"]) for r in table] == [(r["path"], r["truth"], r["class"]) for r in rows]
    for line, row in zip(table, rows, strict=True):
        assert float(line["confidence_3"]) == pytest.approx(row["top"][2]["confidence"], abs=1e-6)
        assert line["neighbour_2_class"] == row["neighbours"][1]["class"]


def test_the_gallery_is_a_picture(model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "DPI", 30)
    done = run(model, "--data", data, "--n", 5, "--save", tmp_path / "new/sheet.png")
    assert done.exit_code == 0, done.exception
    with Image.open(tmp_path / "new/sheet.png") as picture:
        assert picture.format == "PNG" and np.asarray(picture.convert("L")).std() > 5


def test_names_with_markup_and_control_characters_are_shown_as_they_are(data: Path, tmp_path: Path) -> None:
    names = ["[red]ant", "b\x1b[31mee", "$cat"]
    probe = {"id": "x", "data": "photos", "accuracy": 0.5, "train_images": 9, "test_images": 9, "class_names": names}
    model = write_tiny_probe(tmp_path / "odd.onnx", image_size=SIZE, class_names=tuple(names), probe=probe)
    text = run(model, data / "test").stdout
    assert "[red]ant" in text and "$cat" in text and "\x1b[31m" not in text


def test_a_run_predicts_with_its_probe(shared_run: Run, tmp_path: Path) -> None:
    run_ = Run.open(shutil.copytree(shared_run.directory, tmp_path / "run"))
    rng = np.random.default_rng(0)
    probe = LinearProbe(
        coef=rng.normal(size=(3, 512)).astype(np.float32),
        intercept=np.zeros(3, np.float32),
        mean=np.zeros(512, np.float32),
        scale=np.ones(512, np.float32),
        classes=np.arange(3),
        C=1.0,
        iterations=1,
        chosen=False,
    )
    save_result(run_.directory / "evaluation", result(random_confusion(3, 30, 0.5), CLASSES), probe)
    files = {f"{i}.png": encode(noise(i, 32, 32)) for i in range(3)}
    folder = write_tree(tmp_path / "photos", files)
    found = document(run_.directory, folder)
    pixels = np.stack([decode_image(data, 32) for data in files.values()])
    augment = run_.recipe.augment
    expected = probe.predict_proba(extract_features(run_.encoder(), pixels, augment.mean, augment.std), 3)
    rows = found["images"]
    assert isinstance(rows, list) and found["latency"] is None
    assert [r["class"] for r in rows] == [CLASSES[i] for i in expected.argmax(1)]
    np.testing.assert_allclose([r["confidence"] for r in rows], expected.max(1), atol=1e-4)
    error = run(shared_run.directory, folder).exception  # it has no probe
    assert isinstance(error, UsageError) and "evaluate" in (error.fix or "")


def test_its_own_files_are_replaced_and_those_of_others_are_not(model: Path, data: Path, tmp_path: Path) -> None:
    sheet, table = tmp_path / "sheet.png", tmp_path / "p.csv"
    call = [model, "--data", data, "--n", 2, "--save", sheet, "--csv", table]
    for _ in range(2):
        assert run(*call).exit_code == 0
    written = {path: path.read_bytes() for path in (sheet, table)}
    photo = {sheet: encode(noise(1)), table: b"path,truth,class,confidence,my notes\n1,2,3,4,5\n"}
    for mine, content in photo.items():
        mine.write_bytes(content)
        refused = run(*call)
        assert isinstance(refused.exception, UsageError) and "--overwrite" in str(refused.exception)
        assert mine.read_bytes() == content
        assert run(*call, "--overwrite").exit_code == 0
        assert mine.read_bytes() == written[mine]
        mine.rename(tmp_path / "mine")
        mine.symlink_to(tmp_path / "mine")
        linked = run(*call, "--overwrite")
        assert isinstance(linked.exception, UsageError) and "link" in str(linked.exception)
        assert (tmp_path / "mine").read_bytes() == written[mine]
        mine.unlink()


@pytest.fixture
def varied(tmp_path: Path) -> Path:
    """Train and test images of each class, as different as noise of one colour each."""
    random = np.random.default_rng(0)
    files = {
        f"{split}/{name}/{i}.png": encode(
            random.normal(random.integers(0, 256, 3), 20, (SIZE, SIZE, 3)).clip(0, 255).astype(np.uint8)
        )
        for split in ("train", "test")
        for name in CLASSES
        for i in range(4)
    }
    return write_tree(tmp_path / "data", files)


def _rows(*arguments: object) -> list[dict[str, Any]]:
    done = CliRunner().invoke(command, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    found: list[dict[str, Any]] = json.loads(done.stdout)["images"]
    return found


def test_the_latency_is_in_milliseconds_and_leaves_the_warm_up_out(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clock() -> Iterator[float]:
        now = 0.0
        for call in range(predict.WARM_UP + predict.TIMED):
            yield now
            now += 7.0 if call < predict.WARM_UP else 0.002 if call % 10 else 0.030  # seconds
            yield now

    monkeypatch.setattr(predict, "time", SimpleNamespace(perf_counter=clock().__next__))
    found = predict.latency(open_embedder(model), np.zeros((3, SIZE, SIZE, 3), np.uint8))
    assert found is not None
    assert (found["p50_ms"], found["p95_ms"]) == (2.0, 30.0)


def test_a_folder_s_classes_are_no_truth_unless_the_images_are_test_images(model: Path, varied: Path) -> None:
    assert {row["truth"] for row in _rows(model, varied / "test")} == {None}
    assert {row["truth"] for row in _rows(model, "--data", varied, "--n", 12)} == set(CLASSES)


def test_the_gallery_shows_each_image_with_its_class_confidence_and_truth(
    model: Path, varied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Figure] = result_figures.gallery_figure
    seen: list[tuple[Any, ...]] = []

    def drawn(images: NDArray[np.uint8], names: Any, labels: Any, confidence: Any, *, truth: Any, title: str) -> Figure:
        seen.append((images, labels, confidence, truth))
        return real(images, names, labels, confidence, truth=truth, title=title)

    monkeypatch.setattr(result_figures, "gallery_figure", drawn)
    monkeypatch.setattr(predict, "GALLERY", 5)
    monkeypatch.setattr(predict, "BATCH", 4)  # of three batches
    rows = _rows(model, "--data", varied, "--n", 9, "--save", tmp_path / "sheet.png")
    ((images, labels, confidence, truth),) = seen
    expected = tiny_probabilities(images)
    assert len(images) == len(labels) == len(confidence) == len(truth) == 5
    np.testing.assert_array_equal(labels, expected.argmax(1))
    np.testing.assert_allclose(confidence, expected.max(1), atol=1e-5)
    assert [CLASSES[i] for i in truth] == [row["truth"] for row in rows[:5]]
    assert len(set(truth.tolist())) > 1
