"""evaluate(): an encoder, a method, its scores, and the sentence that says how they were made."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

from ..data.store import ImageStore
from ..errors import DataError, UsageError
from ..run import Run
from .comparison import FROZEN
from .guards import check_pretraining, check_splits
from .keeping import keep_features, keep_outcome, keep_scalars
from .methods import METHODS, Training
from .result import EvaluationResult
from .scoring import Assignment, run_method
from .target import INITS, Target, open_target
from .task import tasks

Splits = tuple[ImageStore, ImageStore]


@overload
def evaluate(
    target: str | Path | Run | Target,
    data: str | Path | Splits | None = None,
    method: str = "linear",
    init: str = "pretrained",
    *,
    label_fraction: float = 1.0,
    folds: int = 0,
    limit: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    progress: bool = False,
) -> EvaluationResult: ...
@overload
def evaluate(
    target: str | Path | Run | Target,
    data: str | Path | Splits | None = None,
    method: str | Sequence[str] = "linear",
    init: str | Sequence[str] = "pretrained",
    *,
    label_fraction: float = 1.0,
    folds: int = 0,
    limit: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    progress: bool = False,
) -> EvaluationResult | list[EvaluationResult]: ...
def evaluate(
    target: str | Path | Run | Target,
    data: str | Path | Splits | None = None,
    method: str | Sequence[str] = "linear",
    init: str | Sequence[str] = "pretrained",
    *,
    label_fraction: float = 1.0,
    folds: int = 0,
    limit: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    progress: bool = False,
) -> EvaluationResult | list[EvaluationResult]:
    """Scores an encoder: the method learns on the train split and is scored on the test split.

    Args:
        target: a run, its directory, an .onnx file that `export` wrote (then no torch is imported by `linear`, `knn`
            and `probe`), or a file of weights of a ResNet from elsewhere.
        data: a name or path as `load_splits` takes it, or (train, test) stores; default: what the run
            was pretrained on.
        method: `linear`, `knn`, `head`, `finetune`, `supervised`, `probe` (the one inside a file), or several.
        init: `pretrained`, `scratch` (the same network with random weights), or several. `supervised` starts from
            scratch whatever is asked, and is run once.
        label_fraction: learn from this share of the train labels alone, stratified.
        folds: K ≥ 2: cross-validate on the (share of the) train split; the scores are those of the held-out folds.
        limit: at most so many images of each split, class-balanced.
        overrides: settings of the methods that train, `{"evaluation.finetune.epochs": 3}`, over the recipe's.
        out: where to write the results; default: `evaluation/` of the run (and the features in
            `embeddings/`), nowhere for a file.
        progress: show bars on a terminal.

    Returns:
        One result where `method` and `init` are one word each, else a list in the order init × method.

    Raises:
        UsageError: unknown method or init, no data named, nothing at `target`, a method that it does not allow.
        DataError: data without labels or with one class, splits that overlap, images of another size than the
            encoder's, an encoder pretrained on this very test split, a class with too few images.
        CheckFailed: a frozen encoder was changed by its evaluation, or training with labels diverged.
    """
    methods = _known("method", method, tuple(METHODS))
    inits = _known("init", init, INITS)
    subject = open_target(target)
    for one in inits:
        if one not in subject.inits:
            raise UsageError(
                "an exported file has no random counterpart",
                saw=f"--init {one} for {subject.path.name}",
                fix="evaluate the run it came from, or leave --init away",
            )
    recipe = subject.recipe.override(_evaluation_only(overrides or {}))
    training = Training(recipe.evaluation, recipe.train.precision, subject.seconds, progress)
    (train, test), of_the_run = _splits(subject, data, progress)
    notes = (*check_splits(train, test), *check_pretraining(subject, test, of_the_run), *subject.notes)
    train, test = train.limit(limit), test.limit(limit)
    asked = Assignment(train, test, tasks(train, test, label_fraction, folds), training, label_fraction, limit, notes)
    directory = Path(out) if out is not None else subject.path / "evaluation" if subject.run is not None else None
    results = []
    for one, names in _order(inits, methods, subject.inits):
        start = time.perf_counter()
        encoder = subject.encoder(one, progress)
        for name in names:
            outcome = run_method(name, encoder, asked, subject.path, start)
            results.append(outcome.result)
            if directory is not None:
                keep_outcome(directory, outcome, test)
                if subject.run is not None and out is None:
                    keep_scalars(subject.path / "tensorboard", outcome)
            start = time.perf_counter()
        if subject.run is not None and out is None and any(name in FROZEN for name in names):
            keep_features(subject.path / "embeddings", encoder, train, test)
    return results[0] if isinstance(method, str) and isinstance(init, str) else results


def _order(inits: Sequence[str], methods: Sequence[str], possible: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Each init with its methods; `supervised` belongs to the random encoder, and runs whichever init was asked."""
    supervised = "supervised" in methods
    if supervised and "scratch" not in possible:
        raise UsageError(
            "supervised training needs the network, and an exported file is none that can be trained",
            saw="--method supervised",
            fix="evaluate the run it came from",
        )
    others = [name for name in methods if name != "supervised"]
    order = [(one, methods if one == "scratch" else others) for one in inits]
    if supervised and "scratch" not in inits:
        order.append(("scratch", ["supervised"]))
    return [(one, list(names)) for one, names in order if names]


def _evaluation_only(overrides: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in overrides:
        if not key.startswith("evaluation."):
            raise UsageError(
                "an evaluation can set its own values alone: the encoder is what it is",
                saw=key,
                fix="keys such as evaluation.head.epochs, evaluation.finetune.lr; see `simclr-engine recipes NAME`",
            )
    return overrides


def _known(what: str, asked: str | Sequence[str], known: tuple[str, ...]) -> list[str]:
    """The asked names, each once and in their order."""
    names = list(dict.fromkeys([asked] if isinstance(asked, str) else asked))
    for name in names:
        if name not in known:
            raise UsageError(f"unknown {what}", saw=name, fix=f"one of: {', '.join(known)}")
    if not names:
        raise UsageError(f"no {what} given", fix=f"one of: {', '.join(known)}")
    return names


def _splits(subject: Target, data: str | Path | Splits | None, progress: bool) -> tuple[Splits, ImageStore | None]:
    """The two splits, with images of the size that the encoder takes; and what pretraining would take of their source,
    which is not known of splits that are passed."""
    of_the_run: ImageStore | None = None
    if isinstance(data, ImageStore):
        raise UsageError(
            "a probe needs two splits, and this is one set of images",
            saw=f"{data.name}, split {data.split}",
            fix="pass (train, test), or a name or path that `load_splits` takes",
        )
    if isinstance(data, tuple):
        train, test = data
    else:
        run = subject.run
        if not data and run is None:
            raise UsageError("which images to evaluate on?", fix="name them: --data NAME|PATH")
        from ..data import load_data, load_splits

        source = str(data) if data or run is None else run.locate_data()
        train, test = load_splits(source, size=subject.image_size, progress=progress)
        if run is not None:
            of_the_run = load_data(source, size=subject.image_size, progress=progress).limit(run.data.get("limit"))
            if of_the_run.fingerprint == subject.pretrained_on or not data:  # wherever they are now
                name = str(run.data.get("name"))
                train, test, of_the_run = (replace(store, name=name) for store in (train, test, of_the_run))
    for store in (train, test):
        if subject.image_size is not None and store.image_size != subject.image_size:
            raise DataError(
                "the images have another size than the encoder was trained on",
                saw=f"{store.image_size} px in {store.name}, {subject.image_size} px in the encoder",
                fix=f"load them with size={subject.image_size}, or pretrain at {store.image_size} px",
            )
    return (train, test), of_the_run
