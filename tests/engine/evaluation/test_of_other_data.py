"""evaluate() of a run on data that is named, and with its results elsewhere: that data, and nothing left in the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fixtures.coloured import NAMES, coloured
from fixtures.synthetic_run import write_run
from simclr_engine import evaluate
from simclr_engine.checkpoint import encoder_metadata, save_weights
from simclr_engine.data.store import ImageStore
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


def test_pretraining_on_all_images_is_noted_for_data_of_the_same_name_alone(
    tmp_path: Path, splits: tuple[ImageStore, ImageStore]
) -> None:
    for name, noted in (("colours", True), ("others", False)):
        notes = evaluate(_run(tmp_path / name, name, split="all"), splits, "knn").notes
        assert any("the held-out ones are among them" in note for note in notes) is noted, name
