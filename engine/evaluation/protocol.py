"""evaluate(): frozen features, a probe, its scores, and the sentence that says how they were made."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from ..data.store import ImageStore
from ..errors import DataError, UsageError
from ..run import Run
from .collapse import FeatureStatistics, feature_statistics
from .guards import check_splits, require_finite
from .linear import LinearProbe
from .methods import METHODS
from .metrics import confusion_matrix, expected_calibration_error, score
from .records import save_embeddings, save_result
from .result import EvaluationResult
from .target import INITS, Target, open_target

Splits = tuple[ImageStore, ImageStore]


@overload
def evaluate(
    target: str | Path | Run,
    data: str | Path | Splits | None = None,
    method: str = "linear",
    init: str = "pretrained",
    *,
    limit: int | None = None,
    out: str | Path | None = None,
    progress: bool = False,
) -> EvaluationResult: ...
@overload
def evaluate(
    target: str | Path | Run,
    data: str | Path | Splits | None = None,
    method: str | Sequence[str] = "linear",
    init: str | Sequence[str] = "pretrained",
    *,
    limit: int | None = None,
    out: str | Path | None = None,
    progress: bool = False,
) -> EvaluationResult | list[EvaluationResult]: ...
def evaluate(
    target: str | Path | Run,
    data: str | Path | Splits | None = None,
    method: str | Sequence[str] = "linear",
    init: str | Sequence[str] = "pretrained",
    *,
    limit: int | None = None,
    out: str | Path | None = None,
    progress: bool = False,
) -> EvaluationResult | list[EvaluationResult]:
    """Scores frozen features: the method learns on the train split and is scored on the test split.

    Args:
        target: a run, its directory, or an .onnx file that `export` wrote (then no torch is imported).
        data: a name or path as `load_splits` takes it, or (train, test) stores; default: what the run
            was pretrained on.
        method: `linear` or `knn`, or several.
        init: `pretrained`, `scratch` (the same network with random weights), or several.
        limit: at most so many images of each split, class-balanced.
        out: where to write the results; default: `evaluation/` of the run (and the features in
            `embeddings/`), nowhere for a file.
        progress: show a bar on a terminal.

    Returns:
        One result where `method` and `init` are one word each, else a list in the order init × method.

    Raises:
        UsageError: unknown method or init, no data named, nothing at `target`.
        DataError: data without labels or with one class, splits that overlap, images of another size than the
            encoder's, an encoder pretrained on this very test split.
        CheckFailed: the encoder was changed by its evaluation.
    """
    methods = _known("method", method, tuple(METHODS))
    inits = _known("init", init, INITS)
    subject = open_target(target)
    train, test = _splits(subject, data, progress)
    notes = check_splits(train, test)
    notes += _seen_in_pretraining(subject, test)
    train, test = train.limit(limit), test.limit(limit)
    directory = Path(out) if out is not None else subject.path / "evaluation" if subject.run is not None else None
    results = []
    for one in inits:
        encoded = _encode(subject, one, train, test, progress)
        for name in methods:
            result, probe = _score(name, encoded, train, test, subject.path, limit, notes)
            results.append(result)
            if directory is not None:
                save_result(directory, result, probe)
        if subject.run is not None and out is None:
            _keep_features(subject.path / "embeddings", encoded, train, test)
    return results[0] if isinstance(method, str) and isinstance(init, str) else results


def _keep_features(directory: Path, encoded: _Encoded, train: ImageStore, test: ImageStore) -> None:
    """The features of both splits by the pretrained encoder; of the random one only those that the report draws."""
    if encoded.init == "pretrained":
        save_embeddings(directory, "train", train, encoded.train)
        save_embeddings(directory, "test", test, encoded.test)
    else:
        save_embeddings(directory, "test_scratch", test, encoded.test)


def _known(what: str, asked: str | Sequence[str], known: tuple[str, ...]) -> list[str]:
    """The asked names, each once and in their order."""
    names = list(dict.fromkeys([asked] if isinstance(asked, str) else asked))
    for name in names:
        if name not in known:
            raise UsageError(f"unknown {what}", saw=name, fix=f"one of: {', '.join(known)}")
    if not names:
        raise UsageError(f"no {what} given", fix=f"one of: {', '.join(known)}")
    return names


def _splits(subject: Target, data: str | Path | Splits | None, progress: bool) -> Splits:
    """The two splits, with images of the size that the encoder takes."""
    if isinstance(data, ImageStore):
        raise UsageError(
            "a probe needs two splits, and this is one set of images",
            saw=f"{data.name}, split {data.split}",
            fix="pass (train, test), or a name or path that `load_splits` takes",
        )
    if isinstance(data, tuple):
        train, test = data
    else:
        source = data or subject.data
        if not source:
            raise UsageError("which images to evaluate on?", fix="name them: --data NAME|PATH")
        from ..data import load_splits

        train, test = load_splits(str(source), size=subject.image_size, progress=progress)
    for store in (train, test):
        if store.image_size != subject.image_size:
            raise DataError(
                "the images have another size than the encoder was trained on",
                saw=f"{store.image_size} px in {store.name}, {subject.image_size} px in the encoder",
                fix=f"load them with size={subject.image_size}, or pretrain at {store.image_size} px",
            )
    return train, test


def _seen_in_pretraining(subject: Target, test: ImageStore) -> tuple[str, ...]:
    """Refuses an encoder pretrained on this very split; notes one whose images held the split among others."""
    if subject.pretrained_on and subject.pretrained_on == test.fingerprint:
        raise DataError(
            "the encoder was pretrained on this very test split",
            saw=f"{test.name}, split {test.split}, fingerprint {test.fingerprint[:12]}…",
            fix="pretrain on the train split",
        )
    about = subject.run.environment.get("data", {}) if subject.run is not None else {}
    if about.get("split") == "all" and about.get("name") == test.name:
        return ("pretraining saw all images of this source, without labels: the held-out ones are among them",)
    return ()


@dataclass(frozen=True, eq=False)
class _Encoded:
    """Both splits through one encoder; `seconds` is what that took, `words` describe the encoder in the protocol."""

    init: str
    train: NDArray[np.float32]
    test: NDArray[np.float32]
    words: str
    seconds: float
    statistics: FeatureStatistics


def _encode(subject: Target, init: str, train: ImageStore, test: ImageStore, progress: bool) -> _Encoded:
    """The features of both splits, checked."""
    start = time.perf_counter()
    words, features = subject.encoder(init, progress)
    of_train, of_test = features(train), features(test)
    require_finite(of_train)
    require_finite(of_test)
    return _Encoded(init, of_train, of_test, words, time.perf_counter() - start, feature_statistics(of_train))


def _score(
    method: str,
    encoded: _Encoded,
    train: ImageStore,
    test: ImageStore,
    target: Path,
    limit: int | None,
    notes: tuple[str, ...],
) -> tuple[EvaluationResult, LinearProbe | None]:
    """One method on the features of one encoder."""
    assert train.labels is not None and test.labels is not None  # check_splits has refused anything else
    start = time.perf_counter()
    predicted = METHODS[method](encoded.train, train.labels, encoded.test, len(test.class_names))
    confusion = confusion_matrix(test.labels, predicted.classes, len(test.class_names))
    counted = f"{len(train):,} {train.split} / {len(test):,} {test.split} images of {Path(train.name).name}"
    collapse = encoded.statistics.note()
    result = EvaluationResult.from_scores(
        score(confusion, test.class_names),
        notes=(*notes, *([collapse] if collapse else []), *predicted.notes),
        method=method,
        init=encoded.init,
        protocol=f"{predicted.protocol}; {counted}, {test.image_size} px, {encoded.words}",
        confusion=confusion,
        ece=expected_calibration_error(predicted.probabilities, test.labels),
        seconds=round(encoded.seconds + time.perf_counter() - start, 3),
        also={name: float((guess == test.labels).mean()) for name, guess in predicted.also.items()},
        target=str(target),
        data=train.name,
        train_images=len(train),
        test_images=len(test),
        image_size=test.image_size,
        limit=limit,
        features=asdict(encoded.statistics),
    )
    return result, predicted.probe
