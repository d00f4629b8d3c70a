"""Which images a run takes, what it says of those it leaves out, and how it finds them again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fixtures.image_files import class_tree, encode, noise, tar_bytes, write_tree
from simclr_engine.data import Selection
from simclr_engine.data.left_out import check_left_out, rows_left_out
from simclr_engine.errors import DataError
from simclr_engine.files import MARKER
from simclr_engine.planning import RunOptions
from simclr_engine.pretraining import open_data
from simclr_engine.recipe import Recipe
from simclr_engine.run import Run

OPTIONS = RunOptions()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMCLR_ENGINE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return Recipe.load("cifar10", {"data.size": 16})


LAYOUTS = {
    "a class called train": {"bus/": 9, "car/": 9, "train/": 9},
    "pictures beside a sub-folder": {"": 30, "import/": 6},
    "a stray picture": {"": 1, "cat/": 9, "dog/": 9},
    "unlabeled beside train": {"train/cat/": 5, "train/dog/": 5, "unlabeled/": 20},
    "samples beside a data set": {"set/train/cat/": 9, "set/train/dog/": 9, "sample_images/": 5},
}


@pytest.mark.parametrize("kind", ["folder", "tar"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_image_that_is_held_out_nowhere_is_trained_on(
    tmp_path: Path, recipe: Recipe, layout: str, kind: str
) -> None:
    places = [f"{folder}{n}.png" for folder, count in LAYOUTS[layout].items() for n in range(count)]
    files = {path: encode(noise(n)) for n, path in enumerate(places)}
    held_out = (
        {f"set/test/cat/{n}.png": encode(noise(900 + n)) for n in range(4)} if "set/train/cat/0.png" in files else {}
    )
    path = write_tree(tmp_path / "photos", files | held_out)
    if kind == "tar":
        path = tmp_path / "photos.tar"
        path.write_bytes(tar_bytes({f"photos/{name}": data for name, data in (files | held_out).items()}))
    store, place = open_data(recipe, path, OPTIONS)
    assert {image.tobytes() for image in store.images} == {noise(n).tobytes() for n in range(len(files))}
    assert place == {"path": str(path)}


def test_many_files_that_cannot_be_used_stop_the_run_unless_allowed(tmp_path: Path, recipe: Recipe) -> None:
    files = class_tree(each=10) | {f"ant/bad {n}.jpg": b"<html>" for n in range(3)} | {"bee/raw.NEF": b"II*\0"}
    write_tree(tmp_path / "set", files)
    with pytest.raises(DataError, match=r"4 of 24 files of .* are left out") as caught:
        open_data(recipe, tmp_path / "set", OPTIONS)
    assert "3 ant/*.jpg" in str(caught.value.saw) and "1 bee/*.nef (a camera raw file" in str(caught.value.saw)
    assert "--allow-skipped" in str(caught.value.fix)
    store, _ = open_data(recipe, tmp_path / "set", replace(OPTIONS, allow_skipped=True))
    assert len(store) == 20


@pytest.mark.parametrize(("lost", "images", "stops"), [(3, 10, False), (4, 76, False), (4, 75, True), (50, 950, False)])
def test_a_few_files_stop_no_run(lost: int, images: int, stops: bool) -> None:
    skipped = [(f"{n}.png", "damaged") for n in range(lost)] + [("runs/x", "holds a run of simclr-engine")] * 99
    if stops:
        with pytest.raises(DataError, match="left out"):
            check_left_out("set", skipped, images)
    else:
        check_left_out("set", skipped, images)


def test_what_is_left_out_is_counted_by_folder_ending_and_reason() -> None:
    skipped = [("a/1.PNG", "x"), ("a/2.png", "x"), ("a/3.png", "y"), ("4", "x")]
    assert [tuple(row.values()) for row in rows_left_out(skipped)] == [
        ("a", ".png", "x", 2),
        ("", "", "x", 1),
        ("a", ".png", "y", 1),
    ]


def test_a_run_among_the_images_is_said(tmp_path: Path, recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path / "set", class_tree() | {f"runs/first/{MARKER}": b"{}", "runs/first/x.png": encode(noise(99))})
    store, _ = open_data(recipe, tmp_path / "set", OPTIONS)
    assert len(store) == 6 and "left out runs/first" in capsys.readouterr().err


def test_a_run_finds_its_images_table_and_list_again(tmp_path: Path, recipe: Recipe) -> None:
    write_tree(tmp_path / "set", class_tree(each=4))
    table, names = tmp_path / "t.csv", tmp_path / "list.txt"
    table.write_text("ant/0.png,x\nant/1.png,y\nbee/0.png,x\n")
    names.write_text("ant/0.png\nant/1.png\nbee/0.png\n")
    store, place = open_data(recipe, Selection(tmp_path / "set", table, names), OPTIONS)
    assert len(store) == 3 and store.class_names == ("x", "y")
    assert place == {"path": str(tmp_path / "set"), "labels": str(table), "files": str(names)}
    run = Run(tmp_path, recipe, {"data": {"name": "set", **place}})
    assert run.locate_data() == Selection(str(tmp_path / "set"), str(table), str(names))
    again, _ = open_data(recipe, run.locate_data(), OPTIONS)
    assert again.fingerprint == store.fingerprint
    table.unlink()
    with pytest.raises(DataError, match="no longer there") as caught:
        run.locate_data()
    assert caught.value.saw == str(table)


def test_arrays_are_trained_on_without_a_path(recipe: Recipe) -> None:
    images = np.stack([noise(n) for n in range(6)])
    store, place = open_data(recipe, (images, np.arange(6) % 2), OPTIONS)
    assert place == {} and store.class_names == ("0", "1")
    np.testing.assert_array_equal(store.images, images)
