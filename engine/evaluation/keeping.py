"""What an evaluation leaves on disk for the report, the export and TensorBoard."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from ..data.store import ImageStore
from ..files import Folder
from .knn import nearest
from .records import (
    Neighbours,
    Predictions,
    load_embeddings,
    protocol_id,
    save_embeddings,
    save_neighbours,
    save_predictions,
    save_result,
    save_steps,
    thumbnails,
)
from .scoring import Outcome
from .target import Encoder

SHEET_QUERIES, SHEET_NEIGHBOURS = 8, 8  # of the sheet of nearest neighbours


def keep_outcome(directory: Folder, outcome: Outcome, test: ImageStore) -> None:
    """The result and all that its pictures need."""
    probe = None if outcome.result.folds else outcome.prediction.probe
    if probe is not None and find_spec("safetensors") is None:  # the light installation has none
        print("note: the probe itself is not written: pip install safetensors", file=sys.stderr)
        probe = None
    name = save_result(directory, outcome.result, probe)
    assert outcome.store.labels is not None
    confidence = np.take_along_axis(outcome.probabilities, outcome.classes[:, None], axis=1)[:, 0]
    images = outcome.store.images if outcome.store is test else outcome.store.images[outcome.rows]
    truth = outcome.store.labels[outcome.rows]
    save_predictions(directory, name, Predictions.sampled(truth, outcome.classes, confidence, images))
    if outcome.steps:
        save_steps(directory, name, outcome.steps)


def keep_scalars(run: Folder, outcome: Outcome) -> None:
    from .board import write_scalars

    if outcome.result.history:
        write_scalars(run.folder("tensorboard"), outcome.result.history, outcome.steps, protocol_id(outcome.result))


def keep_features(directory: Folder, encoder: Encoder, train: ImageStore, test: ImageStore) -> None:
    """The features of both splits by the pretrained encoder; of the random one only those that the report draws.

    Those of more images, kept by an earlier evaluation of the same data, stay.
    """
    earlier = load_embeddings(directory.path, "test" if encoder.init == "pretrained" else "test_scratch")
    if earlier is not None and earlier.data == test.name and len(earlier.features) > len(test):
        return
    of_train, of_test = encoder.features(train), encoder.features(test)
    if encoder.init == "pretrained":
        save_embeddings(directory, "train", train, of_train)
        save_embeddings(directory, "test", test, of_test)
    else:
        save_embeddings(directory, "test_scratch", test, of_test)
    suffix = "" if encoder.init == "pretrained" else "_scratch"
    save_neighbours(directory, f"neighbours{suffix}", _neighbours(train, test, of_train, of_test))


def _neighbours(
    train: ImageStore, test: ImageStore, of_train: NDArray[np.float32], of_test: NDArray[np.float32]
) -> Neighbours:
    """A few test images, the same for every encoder, with the train images nearest to each."""
    assert train.labels is not None and test.labels is not None
    queries = np.sort(np.random.default_rng(0).permutation(len(test))[:SHEET_QUERIES])
    cosines, rows = nearest(of_train, of_test[queries], min(SHEET_NEIGHBOURS, len(train)))
    return Neighbours(
        queries=thumbnails(test.images[queries]),
        query_labels=test.labels[queries],
        images=thumbnails(train.images[rows.ravel()].reshape(*rows.shape, *train.images.shape[1:])),
        labels=train.labels[rows],
        cosines=cosines,
        class_names=np.array(test.class_names, dtype=np.str_),
    )
