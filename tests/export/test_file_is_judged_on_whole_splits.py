"""evaluate() of a file: the guards look at the whole splits, whatever part is scored; every result says its limits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from fixtures.coloured import coloured
from fixtures.tiny_model import MakeTiny
from simclr_engine import evaluate
from simclr_engine.data.store import ImageStore
from simclr_engine.errors import DataError
from simclr_engine.evaluation import evaluate_all
from simclr_engine.evaluation.splits import overlapping_images

LIMITS = (None, 6)


@pytest.fixture
def splits() -> tuple[ImageStore, ImageStore]:
    return coloured(60, 0, "train", side=4), coloured(30, 1, "test", side=4)


@pytest.mark.parametrize("limit", LIMITS)
def test_a_file_pretrained_on_the_test_split_is_refused_also_for_a_part_of_it(
    make_tiny: MakeTiny, splits: tuple[ImageStore, ImageStore], limit: int | None
) -> None:
    path = make_tiny(data_fingerprint=splits[1].fingerprint)
    with pytest.raises(DataError, match="pretrained on this very test split"):
        evaluate(path, splits, "knn", limit=limit)


@pytest.mark.parametrize("limit", LIMITS)
def test_copies_of_train_in_test_are_refused_also_where_the_scored_part_has_none(
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
    assert len(results) == 2
    for one in results:
        assert any(note.startswith("int8 file: features differ from PyTorch's by at most") for note in one.notes)


@pytest.mark.parametrize("asked", [["knn", "knn"], ("knn", "linear", "knn")])
def test_a_method_named_twice_is_run_once(
    make_tiny: MakeTiny, splits: tuple[ImageStore, ImageStore], asked: Sequence[str]
) -> None:
    results = evaluate_all(make_tiny(), splits, asked)
    assert [one.method for one in results] == list(dict.fromkeys(asked))
