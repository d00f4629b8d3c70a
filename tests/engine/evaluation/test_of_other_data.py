"""evaluate() of a run on data that is named, and with its results elsewhere: that data, and nothing left in the run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fixtures.coloured import NAMES, coloured
from fixtures.synthetic_run import write_run
from simclr_engine import evaluate
from simclr_engine.checkpoint import encoder_metadata, save_weights
from simclr_engine.data import load_data
from simclr_engine.data.store import ImageStore
from simclr_engine.errors import DataError
from simclr_engine.model import build_encoder
from simclr_engine.run import Run


def _run(folder: Path, data: str, split: str = "train") -> Run:
    run = write_run(folder, class_names=NAMES, data=data, image_size=8, recipe="two-protocols", split=split)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        encoder = build_encoder("resnet18", "small")
    save_weights(run.directory / "encoder.safetensors", encoder, encoder_metadata(run.recipe, 8))
    return run


@pytest.fixture
def splits() -> tuple[ImageStore, ImageStore]:
    return coloured(24, 0, "train"), coloured(12, 1, "test")


def _write_images(folder: Path, side: int, seed: int) -> Path:
    """PNGs of this size, 6 train and 3 test images of each class."""
    for split, count in (("train", 18), ("test", 9)):
        store = coloured(count, seed + count, split, side=side)
        assert store.labels is not None
        for i, (image, label) in enumerate(zip(store.images, store.labels, strict=True)):
            (folder / split / NAMES[label]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(image)).save(folder / split / NAMES[label] / f"{i}.png")
    return folder


def test_the_data_that_is_named_is_evaluated_and_not_the_run_s_own(tmp_path: Path) -> None:
    own, other = _write_images(tmp_path / "own", 8, seed=0), _write_images(tmp_path / "other", 12, seed=50)
    result = evaluate(_run(tmp_path / "run", str(own)), str(other), "knn")
    assert (result.data, result.image_size) == (str(other), 8)  # images of 12 px come at the encoder's size
    assert (result.train_images, result.test_images) == (18, 9)


def test_curves_are_not_written_into_a_run_whose_results_go_elsewhere(
    tmp_path: Path, splits: tuple[ImageStore, ImageStore]
) -> None:
    run = _run(tmp_path / "run", "colours")
    before = sorted(p.name for p in run.directory.iterdir())
    short = {"evaluation.head.epochs": 1, "evaluation.head.batch_size": 12}
    assert evaluate(run, splits, "head", overrides=short, out=tmp_path / "there").history
    assert sorted(p.name for p in run.directory.iterdir()) == before
    evaluate(run, splits, "head", overrides=short)
    assert list((run.directory / "tensorboard").rglob("*tfevents*"))


def _class_folders(folder: Path, seed: int) -> Path:
    """PNGs of 8 px without splits, 8 of each class."""
    pictures = coloured(24, seed, "all")
    assert pictures.labels is not None
    for i, (image, label) in enumerate(zip(pictures.images, pictures.labels, strict=True)):
        (folder / NAMES[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(image)).save(folder / NAMES[label] / f"{i}.png")
    return folder


def _run_on(folder: Path, place: Path, limit: int | None = None) -> Run:
    """A run that was trained on all images of `place`, given as its last part."""
    store = load_data(place, size=8).limit(limit)
    run = _run(folder, place.name, split="all")
    file = folder / "environment.json"
    environment = json.loads(file.read_text())
    environment["data"] |= {"path": str(place), "fingerprint": store.fingerprint, "limit": limit}
    file.write_text(json.dumps(environment))
    return Run.open(run.directory)


SEEN = "pretraining saw all images of this source, without labels: the held-out ones are among them"
NOT_KNOWN = "whether the encoder was trained on these images is not known"


def test_a_run_is_evaluated_on_its_own_images_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = (_class_folders(tmp_path / place / "photos", seed) for place, seed in (("own", 0), ("other", 50)))
    run = _run_on(tmp_path / "run", own)
    monkeypatch.chdir(other.parent)  # which has a folder `photos` too
    result = evaluate(run, method="knn")
    assert result.data == "photos" and SEEN in result.notes
    direct = evaluate(run, own, "knn")
    assert direct.data == "photos" and direct.to_dict()["confusion"] == result.to_dict()["confusion"]
    assert str(tmp_path) not in (tmp_path / "run" / "evaluation" / "photos-knn-pretrained.json").read_text().replace(
        str(run.directory), ""
    )


def test_other_images_of_the_name_are_said_to_be_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = (_class_folders(tmp_path / place / "photos", seed) for place, seed in (("own", 0), ("other", 50)))
    run = _run_on(tmp_path / "run", own)
    monkeypatch.chdir(other.parent)
    notes = evaluate(run, "photos", "knn").notes
    was, now = run.data["fingerprint"][:12], load_data(other, size=8).fingerprint[:12]
    assert was != now and SEEN not in notes
    assert notes[0].startswith("these are not the images that the run was trained on: ")
    assert f"photos has fingerprint {now}…, photos had {was}…" in notes[0]


def test_images_that_were_changed_are_said_to_be_others(tmp_path: Path) -> None:
    own = _class_folders(tmp_path / "photos", 0)
    run = _run_on(tmp_path / "run", own)
    (own / NAMES[0] / "new.png").write_bytes((_class_folders(tmp_path / "more", 50) / NAMES[0] / "0.png").read_bytes())
    notes = evaluate(run, method="knn").notes
    assert "these are not the images that the run was trained on" in notes[0] and SEEN not in notes


def test_images_that_are_gone_are_named_by_their_place(tmp_path: Path) -> None:
    own = _class_folders(tmp_path / "photos", 0)
    run = _run_on(tmp_path / "run", own)
    own.rename(tmp_path / "pictures")
    with pytest.raises(DataError, match="no longer there") as caught:
        evaluate(run, method="knn")
    assert caught.value.saw == str(own)
    assert SEEN in evaluate(run, tmp_path / "pictures", "knn").notes


def test_a_limited_run_is_said_to_have_seen_so_many(tmp_path: Path) -> None:
    run = _run_on(tmp_path / "run", _class_folders(tmp_path / "photos", 0), limit=12)
    assert "pretraining saw 12 images of this source" in evaluate(run, method="knn").notes[0]


def test_a_run_without_a_path_is_looked_up_by_name_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = (_class_folders(tmp_path / place / "photos", seed) for place, seed in (("own", 0), ("other", 50)))
    run = _run_on(tmp_path / "run", own)
    del run.environment["data"]["path"]
    for place, said in ((own, SEEN), (other, "these are not the images that the run was trained on")):
        monkeypatch.chdir(place.parent)
        assert evaluate(run, method="knn").notes[0].startswith(said)
    run.environment["data"]["fingerprint"] = ""
    assert evaluate(run, method="knn").notes[0] == NOT_KNOWN


def test_nothing_is_claimed_of_splits_that_are_passed(tmp_path: Path, splits: tuple[ImageStore, ImageStore]) -> None:
    for name, noted in (("colours", True), ("others", False)):
        notes = evaluate(_run(tmp_path / name, name, split="all"), splits, "knn").notes
        assert (NOT_KNOWN in notes) is noted and SEEN not in notes


def test_images_that_only_python_had_must_be_passed_again(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", "arrays")
    run.environment["data"]["path"] = None
    with pytest.raises(DataError, match="the images of the run were passed from Python"):
        evaluate(run, method="knn")
