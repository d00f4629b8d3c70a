"""Results on disk: RUN/evaluation/ID.{json,safetensors,npz,jsonl}, RUN/embeddings/*.npy. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..bounds import LARGEST_DOCUMENT
from ..data.store import ImageStore, Pixels
from ..documents import to_json
from ..errors import DataError
from ..event_log import write_scalars
from ..files import Folder, is_plain_name, read_arrays
from ..inputs import read_text
from ..run import read_log
from ..sealing import NewerError, has_seal, read_json, sealed_json
from ..terminal import say
from .knn import nearest
from .linear import LinearProbe
from .result import EvaluationResult

FORMAT = 2  # of a result; the first, without a number, held every cell of the confusion matrix
RESULTS = "the results"  # in an error: cannot write …
AGAIN = "write it again with `simclr-engine evaluate`"
SHEET_QUERIES, SHEET_NEIGHBOURS = 8, 8  # of the sheet of nearest neighbours

Features = NDArray[np.float32]


def result_id(result: EvaluationResult) -> str:
    """`data-method-init`, such as `cifar10-linear-pretrained`, or `cifar10-n500-finetune-scratch-30pct-5folds`: a limit
    on the images stands behind the data, a share of the labels and the number of folds at the end."""
    name = re.sub(r"\.(tar(\.\w+)?|tgz|zip)$", "", Path(result.data).name, flags=re.IGNORECASE)
    name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "data"
    return "-".join([name, *([f"n{result.limit}"] if result.limit else []), protocol_id(result)])


def protocol_id(result: EvaluationResult) -> str:
    """`linear-pretrained`, or `finetune-scratch-30pct-5folds`; DataError where that could not be a file's name."""
    part = [f"{100 * result.label_fraction:g}pct"] if result.label_fraction < 1 else []
    folds = [f"{len(result.folds)}folds"] if result.folds else []
    name = "-".join([result.method, result.init, *part, *folds])
    if not is_plain_name(name):  # a result from elsewhere
        raise DataError(
            "the method of a result is no word that can be part of a file's name",
            saw=repr(name),
            fix="take a result that `simclr-engine evaluate` wrote",
        )
    return name


def save_result(directory: Path | Folder, result: EvaluationResult, probe: LinearProbe | None = None) -> str:
    """Writes ID.json, and ID.safetensors with the probe; returns the ID.

    Raises:
        PlatformError: the directory cannot be written.
        DataError: the result is larger than what is read; nothing is replaced.
    """
    name, at = result_id(result), Folder.of(directory, RESULTS)
    number = 1 + max(numbers(at.path).values(), default=0)
    document = sealed_json({"format": FORMAT, **result.to_dict(), "number": number}, f"{name}.json")
    if probe is not None:
        at.write(f"{name}.safetensors", probe.to_bytes(f"{name}.safetensors"))
    at.write(f"{name}.json", document)
    return name


def numbers(directory: Path) -> dict[str, int]:
    """The IDs of the results of a directory, numbered in the order in which they were written, whatever the clock said;
    0 for those of older versions."""
    found = {}
    for path in directory.glob("*.json"):
        with suppress(OSError, ValueError, AttributeError, RecursionError):
            number = json.loads(read_text(path, LARGEST_DOCUMENT)).get("number")
            found[path.stem] = number if type(number) is int and 0 < number < 2**63 else 0
    return found


def load_result(path: Path) -> EvaluationResult:
    """The result that `save_result` wrote to a .json file.

    Raises:
        DataError: the file cannot be read, was altered or renamed, is of a newer version, or is no result.
    """
    try:
        return EvaluationResult.from_dict(read_json(path, AGAIN, path.name, ours=FORMAT))
    except NewerError:
        raise
    except (DataError, OSError, ValueError) as error:
        saw = error.saw if isinstance(error, DataError) else error
        saw = saw if str(path) in str(saw) else f"{path}: {saw}"
        raise DataError("this is not an evaluation result", saw=saw, fix=f"delete it, or {AGAIN}") from error


def load_results(directory: Path) -> dict[str, EvaluationResult]:
    """All results of a directory by ID, in alphabetical order.

    Raises:
        DataError: a .json file there is not a result.
    """
    return {path.stem: load_result(path) for path in sorted(directory.glob("*.json"))}


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Features float32 `[N, D]` of one split with their labels int64 `[N]`, and what they are of."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    data: str


def save_embeddings(directory: Path | Folder, name: str, store: ImageStore, features: NDArray[np.float32]) -> None:
    """Writes `NAME.npy`, float32 `[N, D]`, and `NAME_labels.npz` with labels, class names and the name of the data.

    Raises:
        PlatformError: the directory cannot be written.
    """
    assert store.labels is not None
    names, at = _packed_names(store.class_names), Folder.of(directory, RESULTS)
    with at.sealing(f"{name}.npy") as file:
        np.save(file, features, allow_pickle=False)
    with at.sealing(f"{name}_labels.npz") as file:
        np.savez(file, labels=store.labels, class_names=names, data=np.str_(store.name))


def load_embeddings(directory: Path, name: str) -> Embeddings | None:
    """What `save_embeddings` wrote under a name; None where it is not there or not whole."""
    of_features, of_labels = directory / f"{name}.npy", directory / f"{name}_labels.npz"
    needed = has_seal(of_features) or has_seal(of_labels)
    alone = read_arrays(of_features, AGAIN, needed=needed)
    found = read_arrays(of_labels, AGAIN, "labels", "class_names", "data", needed=needed)
    if alone is None or found is None or (class_names := _names_in(found[1])) is None:
        return None
    features, labels = alone[0], found[0]
    whole = features.ndim == 2 and features.shape[:1] == labels.shape and features.dtype.kind == "f"
    whole = whole and len(labels) > 0 and _are_rows(labels, len(class_names))
    return Embeddings(features, labels, class_names, str(found[2])) if whole else None


THUMBNAIL = 64  # pixels; what a picture of many images can show
SAMPLES = 100  # images kept beside the predictions, for galleries of up to so many


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a method said of each test image, and a random sample of those images.

    Attributes:
        truth, predicted: int64 `[N]`.
        confidence: float32 `[N]`, the probability (or share of votes) of the predicted class.
        rows: int64 `[n]`, which of the N the sample shows, in random order.
        images: uint8 `[n, S, S, 3]`, S at most 64.
    """

    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float32]
    rows: NDArray[np.int64]
    images: NDArray[np.uint8]

    @classmethod
    def sampled(
        cls,
        truth: NDArray[np.int64],
        predicted: NDArray[np.int64],
        confidence: NDArray[np.float32],
        images: Pixels,
    ) -> Predictions:
        """With a sample of `images` uint8 `[N, S, S, 3]`, the same for every method on the same images."""
        rows = np.random.default_rng(0).permutation(len(truth))[:SAMPLES]
        return cls(truth, predicted, confidence.astype(np.float32), rows, thumbnails(images[rows]))


def thumbnails(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 `[..., S, S, 3]` → the same with S at most 64."""
    side = images.shape[-2]
    if side <= THUMBNAIL:
        return np.ascontiguousarray(images)
    from PIL import Image

    flat = images.reshape(-1, side, side, 3)
    small = [np.asarray(Image.fromarray(one).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)) for one in flat]
    return np.stack(small).reshape(*images.shape[:-3], THUMBNAIL, THUMBNAIL, 3)


def save_predictions(directory: Path | Folder, name: str, predictions: Predictions) -> None:
    """Writes `NAME.npz` beside the result of that ID.

    Raises:
        PlatformError: the directory cannot be written.
    """
    _save_arrays(directory, name, predictions)


def load_predictions(directory: Path, name: str) -> Predictions | None:
    """What `save_predictions` wrote for a result; None where it is not there or not whole."""
    found = _load_arrays(directory / f"{name}.npz", Predictions, directory / f"{name}.json")
    if (
        found is None
        or found.truth.ndim != 1
        or not len(found.truth)
        or not found.truth.shape == found.predicted.shape == found.confidence.shape
    ):
        return None
    fits = found.images.ndim == 4 and found.images.dtype == np.uint8 and found.images.shape[:1] == found.rows.shape
    fits = fits and _are_rows(found.rows, len(found.truth)) and found.confidence.dtype.kind == "f"
    return found if fits and all(_are_rows(one, None) for one in (found.truth, found.predicted)) else None


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Test images with the train images nearest to them (cosine), best first.

    Attributes:
        queries: uint8 `[q, S, S, 3]`, S at most 64; `query_labels` int64 `[q]`.
        images: uint8 `[q, k, S, S, 3]`; `labels` int64 `[q, k]`; `cosines` float32 `[q, k]`.
        class_names: C names.
    """

    queries: NDArray[np.uint8]
    query_labels: NDArray[np.int64]
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    cosines: NDArray[np.float32]
    class_names: tuple[str, ...]


def save_neighbours(directory: Path | Folder, name: str, neighbours: Neighbours) -> None:
    """Writes `NAME.npz`: `neighbours` for the trained encoder, `neighbours_scratch` for the random one.

    Raises:
        PlatformError: the directory cannot be written.
    """
    _save_arrays(directory, name, neighbours)


def load_neighbours(directory: Path, name: str) -> Neighbours | None:
    """What `save_neighbours` wrote under a name; None where it is not there or not whole."""
    found = _load_arrays(directory / f"{name}.npz", Neighbours, directory / f"{name.replace('neighbours', 'test')}.npy")
    if found is None or found.images.ndim != 5 or found.queries.ndim != 4:
        return None
    if not (class_names := _names_in(found.class_names)):
        return None
    if not found.images.dtype == found.queries.dtype == np.uint8 or found.cosines.dtype.kind != "f":
        return None
    whole = found.labels.shape == found.cosines.shape == found.images.shape[:2]
    whole = whole and found.queries.shape[:1] == found.query_labels.shape == found.images.shape[:1]
    whole = whole and all(_are_rows(n, len(class_names)) for n in (found.labels, found.query_labels))
    return replace(found, class_names=class_names) if whole else None


def save_steps(directory: Path | Folder, name: str, rows: Sequence[Mapping[str, float]]) -> None:
    """Writes `NAME.jsonl`: `fold`, `step`, `epoch`, `train_loss` and `lr` of the steps of a method that trains."""
    text = "".join(to_json(dict(row)) + "\n" for row in rows)
    Folder.of(directory, RESULTS).write_text(f"{name}.jsonl", text)


def load_steps(directory: Path, name: str) -> list[dict[str, Any]]:
    """The rows that `save_steps` wrote; none where there are none."""
    return read_log(directory / f"{name}.jsonl")


@dataclass(frozen=True, eq=False)
class Outcome:
    """A result with what is stored beside it; arrays over the scored images, in the order of `rows` of `store`."""

    result: EvaluationResult
    probe: LinearProbe | None
    steps: tuple[Mapping[str, float], ...]
    store: ImageStore
    rows: NDArray[np.int64]
    classes: NDArray[np.int64]
    probabilities: NDArray[np.float32]

    def save(self, directory: Folder, test: ImageStore) -> None:
        """Writes the result and all that its pictures need.

        Raises:
            PlatformError: the directory cannot be written.
        """
        probe = None if self.result.folds else self.probe
        if probe is not None and find_spec("safetensors") is None:  # the light installation has none
            say("note: the probe itself is not written: pip install safetensors")
            probe = None
        assert self.store.labels is not None
        confidence = np.take_along_axis(self.probabilities, self.classes[:, None], axis=1)[:, 0]
        images = self.store.images if self.store is test else self.store.images[self.rows]
        truth = self.store.labels[self.rows]
        predictions = Predictions.sampled(truth, self.classes, confidence, images)
        with directory.alone():  # an evaluation at the same time may write results of the same name
            name = save_result(directory, self.result, probe)
            save_predictions(directory, name, predictions)
            if self.steps:
                save_steps(directory, name, self.steps)

    def save_scalars(self, run: Folder) -> None:
        """Writes the curves of a method that trains into `tensorboard/` of the run. PlatformError as of `save`."""
        if self.result.history:
            boards = run.folder("tensorboard")
            with boards.alone():
                write_scalars(boards, self.result.history, self.steps, protocol_id(self.result))


def save_features(
    directory: Folder, init: str, train: tuple[ImageStore, Features], test: tuple[ImageStore, Features]
) -> None:
    """Writes the features of both splits by the pretrained encoder; of the random one only those that the report draws.

    Those of more images, written by an earlier evaluation of the same data, stay.

    Raises:
        PlatformError: the directory cannot be written.
    """
    suffix, (store, features) = "" if init == "pretrained" else "_scratch", test
    neighbours = _neighbours(train, test)
    with directory.alone():
        earlier = load_embeddings(directory.path, f"test{suffix}")
        if earlier is not None and earlier.data == store.name and len(earlier.features) > len(store):
            return
        if init == "pretrained":
            save_embeddings(directory, "train", *train)
        save_embeddings(directory, f"test{suffix}", store, features)
        save_neighbours(directory, f"neighbours{suffix}", neighbours)


def _neighbours(train: tuple[ImageStore, Features], test: tuple[ImageStore, Features]) -> Neighbours:
    """A few test images, the same for every encoder, with the train images nearest to each."""
    (bank, of_bank), (shown, of_shown) = train, test
    assert bank.labels is not None and shown.labels is not None
    queries = np.sort(np.random.default_rng(0).permutation(len(shown))[:SHEET_QUERIES])
    cosines, rows = nearest(of_bank, of_shown[queries], min(SHEET_NEIGHBOURS, len(bank)))
    return Neighbours(
        queries=thumbnails(shown.images[queries]),
        query_labels=shown.labels[queries],
        images=thumbnails(bank.images[rows.ravel()].reshape(*rows.shape, *bank.images.shape[1:])),
        labels=bank.labels[rows],
        cosines=cosines,
        class_names=shown.class_names,
    )


Record = TypeVar("Record", Predictions, Neighbours)


def _save_arrays(directory: Path | Folder, name: str, record: Predictions | Neighbours) -> None:
    arrays = {field.name: getattr(record, field.name) for field in fields(record)}
    arrays |= {name: _packed_names(value) for name, value in arrays.items() if isinstance(value, tuple)}
    with Folder.of(directory, RESULTS).sealing(f"{name}.npz") as file:
        np.savez_compressed(file, **arrays)


def _load_arrays(path: Path, kind: type[Record], beside: Path) -> Record | None:
    """None where there are none; they have a seal where the file beside them has one."""
    arrays: list[Any] | None = read_arrays(
        path, AGAIN, *(field.name for field in fields(kind)), needed=has_seal(beside)
    )
    return None if arrays is None else kind(*arrays)


def _packed_names(names: Sequence[str]) -> NDArray[np.bytes_]:
    """One JSON text: in an array of strings, each would take as much as the longest."""
    return np.array(to_json(list(names)).encode())


def _names_in(array: Any) -> tuple[str, ...] | None:
    """What `_packed_names` was given, or the strings `[C]` of an earlier version; None where it is neither."""
    if array.ndim == 1 and array.dtype.kind == "U":
        return tuple(map(str, array))
    with suppress(ValueError, RecursionError):
        names = json.loads(array.item()) if array.ndim == 0 and array.dtype.kind == "S" else None
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None


def _are_rows(numbers: NDArray[Any], end: int | None) -> bool:
    """Whether these are integers from 0 to below `end`, or of any size with None."""
    if numbers.dtype.kind not in "iu":
        return False
    return not numbers.size or (int(numbers.min()) >= 0 and (end is None or int(numbers.max()) < end))
