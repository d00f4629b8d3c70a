"""evaluate(): an encoder, a method, its scores, and the sentence that says how they were made."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from ..data.arrays import is_pair, store_of
from ..data.sources import PRETRAINING, Data, Selection, load_data, load_splits
from ..data.store import ImageStore
from ..errors import DataError, UsageError
from ..files import Folder, named_path
from ..outputs import check_writable
from ..run import Run
from .encoders import INITS, Encoder, Target, open_target
from .methods import Prediction, Training, predict_knn, predict_linear, predict_probe
from .metrics import confusion_matrix, expected_calibration_error, feature_statistics, score
from .records import RESULTS, Outcome, save_features
from .result import FROZEN, EvaluationResult, FoldScores
from .splits import (
    OVERLAPS,
    SEED,
    Split,
    check_pretraining,
    check_splits,
    copies_in_folds,
    make_splits,
    require_finite,
)

Stores = tuple[ImageStore, ImageStore]
Method = Callable[[Encoder, Split, Training], Prediction]


def _trained(name: str) -> Method:
    """A method of `finetune.py`, which imports torch when it is first called."""

    def method(encoder: Encoder, split: Split, training: Training) -> Prediction:
        prediction: Prediction = getattr(import_module(".finetune", __package__), name)(encoder, split, training)
        return prediction

    return method


METHODS: dict[str, Method] = {
    "linear": predict_linear,
    "knn": predict_knn,
    "head": _trained("predict_head"),
    "finetune": _trained("predict_finetune"),
    "supervised": _trained("predict_supervised"),
    "probe": predict_probe,
}


class Options(TypedDict, total=False):
    """What `evaluate` and `evaluate_all` may be told beside the encoder, the images, the method and the init."""

    label_fraction: float
    folds: int
    limit: int | None
    allow_overlap: bool
    overrides: Mapping[str, Any] | None
    out: str | Path | None
    progress: bool
    device: str
    seed: int


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What every method of an evaluation works on; `notes` go into every result."""

    target: Target
    train: ImageStore
    test: ImageStore
    splits: Sequence[Split]
    training: Training
    label_fraction: float
    limit: int | None
    notes: tuple[str, ...]


def evaluate(
    target: str | Path | Run | Target,
    data: Data | Stores | None = None,
    method: str = "linear",
    init: str = "pretrained",
    **options: Unpack[Options],
) -> EvaluationResult:
    """Scores an encoder: the method learns on the train split and is scored on the test split.

    Args:
        target, data: as `evaluate_all` takes them.
        method: `linear`, `knn`, `head`, `finetune`, `supervised`, or `probe` (the one inside a file).
        init: `pretrained`, or `scratch` (the same network with random weights).
        options: `label_fraction`, `folds`, `limit`, `allow_overlap`, `overrides`, `out`, `progress`, `device` and
            `seed`, as of `evaluate_all`.

    Returns:
        The result; several at once, on images that are loaded once, are `evaluate_all`'s.

    Raises:
        UsageError, DataError, CheckFailed: as of `evaluate_all`; UsageError too for several methods or inits.
    """
    if not (isinstance(method, str) and isinstance(init, str)):
        raise UsageError("evaluate takes one method and one init", saw=(method, init), fix="evaluate_all takes several")
    return evaluate_all(target, data, [method], [init], **options)[0]


def evaluate_all(
    target: str | Path | Run | Target,
    data: Data | Stores | None = None,
    methods: Sequence[str] = ("linear",),
    inits: Sequence[str] = ("pretrained",),
    *,
    label_fraction: float = 1.0,
    folds: int = 0,
    limit: int | None = None,
    allow_overlap: bool = False,
    overrides: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    progress: bool = False,
    device: str = "auto",
    seed: int = SEED,
) -> list[EvaluationResult]:
    """`evaluate` for several methods and inits on the same images.

    Args:
        target: a run, its directory, an .onnx file that `export` wrote (then no torch is imported by `linear`, `knn`
            and `probe`), or a file of weights of a ResNet from elsewhere.
        data: what `load_splits` takes, or two of them as (train, test), each a store or arrays with labels; default:
            what the run was pretrained on.
        methods: as `evaluate` takes one.
        inits: as `evaluate` takes one. `supervised` starts from scratch whatever is asked, and is run once.
        label_fraction: learn from this share of the train labels alone, stratified.
        folds: K ≥ 2: cross-validate on the (share of the) train split; the scores are those of the held-out folds.
        limit: at most so many images of each split, class-balanced.
        allow_overlap: evaluate although more than 1 % of the test images are in train; every result says so.
        overrides: settings of the methods that train, `{"evaluation.finetune.epochs": 3}`, over the recipe's.
        out: where to write the results; default: `evaluation/` of the run (and the features in
            `embeddings/`), nowhere for a file.
        progress: show bars on a terminal.
        device: auto | cuda | mps | cpu, for what torch computes; an exported file runs on the CPU.
        seed: of the share of the labels, the folds, and the layers, order and crops of what is trained. The random
            encoder's stays 0.

    Returns:
        The results in the order init × method.

    Raises:
        UsageError: unknown method or init, no data named, nothing at `target`, a method that it does not allow.
        DataError: data without labels or with one class, splits that overlap, images of another size than the
            encoder's, an encoder pretrained on this very test split, a class with too few images.
        CheckFailed: a frozen encoder was changed by its evaluation, or training with labels diverged.
    """
    inits = _known("init", inits, INITS)
    methods = _known("method", methods, tuple(METHODS))
    where = named_path(out) if out is not None else None
    if where is not None:
        check_writable(where / "result")
    target = open_target(target)
    order = _order(inits, methods, target)
    settings = _evaluation_only(overrides or {})
    recipe = cache(lambda: target.recipe().override(settings))
    if settings:  # one that cannot be meant is refused before anything is done
        recipe()
    training = Training(recipe, target.seconds, progress, seed, device)
    _compute_on(target, device)
    (train, test), of_the_run = _load(target, data, progress)
    notes = test.notes + check_splits(train, test, allow_overlap)
    notes += check_pretraining(target.pretrained_on, target.run, test, of_the_run) + target.notes
    notes += (f"seed {seed} of splits, layers and crops",) if seed != SEED else ()
    train, test = train.limit(limit), test.limit(limit)
    splits = make_splits(train, test, label_fraction, folds, seed)
    notes += copies_in_folds(splits)
    evaluation = Evaluation(target, train, test, splits, training, label_fraction, limit, notes)
    run = Folder.open(target.path, RESULTS) if target.run is not None and out is None else None
    if run is not None:
        for name in {"evaluation", "embeddings"}.intersection(run.names()):
            run.folder(name).sweep()
    elsewhere = None
    results = []
    for init, names in order:
        start = time.perf_counter()
        encoder = target.encoders[init]
        for name in names:
            outcome = _run_method(name, encoder, evaluation, start)
            results.append(outcome.result)
            if where is not None:  # made for a first result, and not for an evaluation that fails
                elsewhere = elsewhere or Folder.open(where, RESULTS, make=True)
                outcome.save(elsewhere, test)
            elif run is not None:
                outcome.save(run.folder("evaluation"), test)
                outcome.save_scalars(run)
            start = time.perf_counter()
        if run is not None and any(name in FROZEN for name in names):
            of_train, of_test = (encoder.features(store, progress) for store in (train, test))
            save_features(run.folder("embeddings"), encoder.init, (train, of_train), (test, of_test))
    return results


def _compute_on(target: Target, device: str) -> None:
    """Sets the device of the encoders; UsageError for one that an exported file cannot use."""
    for encoder in target.encoders.values():
        if not encoder.trainable and device not in ("auto", "cpu"):
            fix = "leave out --device, or evaluate the run that it came from"
            raise UsageError("an exported file is evaluated on the CPU", saw=f"--device {device}", fix=fix)
        encoder.device = device


def _known(what: str, asked: Sequence[str], known: tuple[str, ...]) -> list[str]:
    """The asked names, each once and in their order."""
    for name in asked:
        if name not in known:
            raise UsageError(f"unknown {what}", saw=name, fix=f"one of: {', '.join(known)}")
    if not asked:
        raise UsageError(f"no {what} given", fix=f"one of: {', '.join(known)}")
    return list(dict.fromkeys(asked))


def _order(inits: Sequence[str], methods: Sequence[str], target: Target) -> list[tuple[str, list[str]]]:
    """Each init with its methods; `supervised` belongs to the random encoder, and runs whichever init was asked."""
    for init in inits:
        if init not in target.encoders:
            raise UsageError(
                "an exported file has no random counterpart",
                saw=f"--init {init} for {target.path.name}",
                fix="evaluate the run it came from, or leave --init away",
            )
    supervised = "supervised" in methods
    if supervised and "scratch" not in target.encoders:
        raise UsageError(
            "supervised training needs the network, and an exported file cannot be trained",
            saw="--method supervised",
            fix="evaluate the run it came from",
        )
    others = [name for name in methods if name != "supervised"]
    order = [(init, list(methods) if init == "scratch" else others) for init in inits]
    if supervised and "scratch" not in inits:
        order.append(("scratch", ["supervised"]))
    return [(init, names) for init, names in order if names]


def _evaluation_only(overrides: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in overrides:
        if not key.startswith("evaluation."):
            raise UsageError(
                "an evaluation can set its own values alone: the encoder is what it is",
                saw=key,
                fix="keys such as evaluation.head.epochs, evaluation.finetune.lr; see `simclr-engine recipes NAME`",
            )
    return overrides


def _load(target: Target, data: Data | Stores | None, progress: bool) -> tuple[Stores, ImageStore | None]:
    """The two splits, with images of the size that the encoder takes; and what pretraining would take of their source,
    which is not known of splits that are passed."""
    of_the_run: ImageStore | None = None
    if isinstance(data, ImageStore):
        raise UsageError(
            "a probe needs two splits, and this is one set of images",
            saw=f"{data.name}, split {data.split}",
            fix="pass (train, test), or a name or path that `load_splits` takes",
        )
    if isinstance(data, tuple) and not isinstance(data, Selection) and not is_pair(data):
        train, test = (_split(store, name, target) for store, name in zip(data, ("train", "test"), strict=True))
    else:
        run = target.run
        if data is None:
            if run is None:
                raise UsageError("which images to evaluate on?", fix="name them: --data NAME|PATH")
            source: Data = run.locate_data()
        else:
            source = data  # type: ignore[assignment]  # no pair of stores: is_pair and the line above cannot narrow it
        train, test = load_splits(source, target.image_size, progress, target.levels, verify=False)
        if run is not None:
            everything = load_data(source, PRETRAINING, target.image_size, progress, levels=target.levels, verify=False)
            of_the_run = everything.limit(run.data.get("limit"))
            if of_the_run.fingerprint == target.pretrained_on or data is None:  # wherever they are now
                name = str(run.data.get("name"))
                train, test, of_the_run = (replace(store, name=name) for store in (train, test, of_the_run))
    for store in (train, test):
        store.verify(wait=False)
        if target.image_size is not None and store.image_size != target.image_size:
            raise DataError(
                "the images have another size than the encoder was trained on",
                saw=f"{store.image_size} px in {store.name}, {target.image_size} px in the encoder",
                fix=f"load them with size={target.image_size}, or pretrain at {store.image_size} px",
            )
    return (train, test), of_the_run


def _split(images: object, name: str, target: Target) -> ImageStore:
    """One of two splits that were passed."""
    if isinstance(images, ImageStore):
        return images
    return replace(store_of(images, target.image_size), split=name)  # type: ignore[arg-type]  # it refuses what is none


def _run_method(name: str, encoder: Encoder, evaluation: Evaluation, start: float) -> Outcome:
    """One method on one encoder, over all splits."""
    train, test, splits, training = evaluation.train, evaluation.test, evaluation.splits, evaluation.training
    notes, statistics = evaluation.notes, {}
    if name in FROZEN and name != "probe":
        for store in (train, test):
            require_finite(encoder.features(store, training.progress))
        spread = feature_statistics(encoder.features(train))
        statistics, collapse = asdict(spread), spread.note()
        notes += (collapse,) if collapse else ()
    predictions = [METHODS[name](encoder, split, training) for split in splits]
    first, crossed = predictions[0], splits[0].fold > 0
    store = train if crossed else test
    rows = np.concatenate([split.held_out for split in splits]) if crossed else np.arange(len(test))
    classes = _scored(splits, [prediction.classes for prediction in predictions])
    probabilities = _scored(splits, [prediction.probabilities for prediction in predictions])
    assert store.labels is not None  # check_splits has refused anything else
    for part in (train, test):
        part.verify()
    truth = store.labels[rows]
    folds = tuple(map(_fold_scores, splits, predictions)) if crossed else ()
    confusion = confusion_matrix(truth, classes, len(test.class_names))
    words = encoder.words if name in FROZEN else f"from {encoder.start}"
    result = EvaluationResult.from_scores(
        score(confusion, test.class_names),
        notes=(*notes, *dict.fromkeys(note for prediction in predictions for note in prediction.notes)),
        method=name,
        init=encoder.init,
        protocol=f"{first.protocol}; {_counted(evaluation)}, {test.image_size} px, {words}" + _marked(notes),
        confusion=confusion,
        ece=expected_calibration_error(probabilities, truth),
        seconds=round(time.perf_counter() - start, 3),
        also=_further_accuracies(splits, predictions, truth, folds),
        target=str(evaluation.target.path),
        data=train.name,
        train_images=len(splits[0].rows),
        test_images=len(truth),
        image_size=test.image_size,
        limit=evaluation.limit,
        features=statistics,
        encoder=encoder.sha256,
        loss=None if first.votes else _cross_entropy(probabilities, truth),
        label_fraction=evaluation.label_fraction,
        folds=folds,
        history=tuple(row for prediction in predictions for row in prediction.history),
    )
    steps = tuple(row for prediction in predictions for row in prediction.steps)
    return Outcome(result, first.probe, steps, store, rows, classes, probabilities)


def _scored(splits: Sequence[Split], values: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Of each split's queries those that are scored, one after the other."""
    return np.concatenate([of_split[: split.scored] for split, of_split in zip(splits, values, strict=True)])


def _further_accuracies(
    splits: Sequence[Split],
    predictions: Sequence[Prediction],
    truth: NDArray[np.int64],
    folds: Sequence[FoldScores],
) -> dict[str, float]:
    """Of the variants that every split's prediction has, and of the folds' models on the test split."""
    accuracies = {
        variant: float((_scored(splits, [prediction.also[variant] for prediction in predictions]) == truth).mean())
        for variant in predictions[0].also
        if all(variant in prediction.also for prediction in predictions)
    }
    if folds:
        accuracies["test split, mean of the folds' models"] = float(np.mean([fold.test_accuracy for fold in folds]))
    return accuracies


def _counted(evaluation: Evaluation) -> str:
    """`50,000 train / 10,000 test images of cifar10`, or what of them."""
    train, test, split = evaluation.train, evaluation.test, evaluation.splits[0]
    where = f"images of {Path(train.name).name}"
    share = (
        f" ({100 * evaluation.label_fraction:g} % of the labels, stratified)" if evaluation.label_fraction < 1 else ""
    )
    if split.fold:
        of_all = len(split.rows) + len(split.held_out)
        return (
            f"{len(evaluation.splits)} stratified folds of {of_all:,} {train.split} {where}{share}, each scored by the "
            f"model that learnt from the others ({len(split.rows):,})"
        )
    return f"{len(split.rows):,} {train.split}{share} / {len(test):,} {test.split} {where}"


def _marked(notes: Sequence[str]) -> str:
    """What must stand beside the number everywhere."""
    return "; OVERLAPPING SPLITS" if any(OVERLAPS in note for note in notes) else ""


def _fold_scores(split: Split, prediction: Prediction) -> FoldScores:
    assert split.train.labels is not None and split.test.labels is not None
    truth, n = split.train.labels[split.held_out], split.scored
    return FoldScores(
        fold=split.fold,
        accuracy=float((prediction.classes[:n] == truth).mean()),
        loss=0.0 if prediction.votes else _cross_entropy(prediction.probabilities[:n], truth),
        test_accuracy=float((prediction.classes[n:] == split.test.labels).mean()),
        train_images=len(split.rows),
        held_out_images=n,
    )


def _cross_entropy(probabilities: NDArray[np.float32], truth: NDArray[np.int64]) -> float:
    """Mean −ln p of the true class, nats; a probability of 0 counts as the smallest of float32."""
    picked = np.take_along_axis(probabilities, truth[:, None], axis=1)[:, 0].astype(np.float64)
    return float(-np.log(np.maximum(picked, np.finfo(np.float32).tiny)).mean())
