"""EvaluationResult: the numbers of one method on one encoder, with the protocol that made them; the trained encoder's
beside the random one's."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError
from .metrics import ClassScores, Scores

if TYPE_CHECKING:
    from scipy.sparse import csr_array

METHOD_NAMES = {
    "linear": "linear probe",
    "knn": "kNN",
    "head": "linear head",
    "finetune": "fine-tuning",
    "supervised": "supervised",
    "probe": "probe of the file",
}
FROZEN = ("linear", "knn", "head", "probe")  # methods that leave the encoder as it is


@dataclass(frozen=True)
class FoldScores:
    """One fold of a cross-validation: it trained on the others and was scored on itself and on the test split.

    Attributes:
        fold: 1-based.
        accuracy: on the held-out fold, 0..1.
        loss: mean cross-entropy there, nats.
        test_accuracy: on the test split.
        train_images, held_out_images: sizes.
    """

    fold: int
    accuracy: float
    loss: float
    test_accuracy: float
    train_images: int
    held_out_images: int


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """What one evaluation found; all scores are fractions in 0..1.

    Attributes:
        method: `linear`, `knn`, `head`, `finetune`, `supervised`, or `probe` (the one inside an ONNX file).
        init: `pretrained`, or `scratch` for the randomly initialised encoder under the same protocol.
        protocol: one sentence that says how the numbers were made; it is printed beside them everywhere.
        per_class: one row per class, in label order.
        confusion: sparse int64 `[C, C]`, row = true class, column = predicted class.
        ece: expected calibration error over 15 bins.
        seconds: wall time of features (0 where they came from the cache) and method.
        notes: what a reader must know to trust the numbers (convergence, absent classes, overlap, collapse).
        also: further accuracies of the same method by name, such as the weighted vote of kNN.
        target: the run directory or file that was evaluated.
        data: what the user called the data.
        train_images, test_images: how many images the method learnt from and was scored on.
        image_size: side in pixels.
        limit: at most so many images of each split were taken; None for all.
        features: `dim`, `std` and `effective_rank` of the train features (see `feature_statistics`); empty where the
            encoder was trained on labels.
        encoder: sha256 of the weights and buffers that the method started from, or of the ONNX file; 64 hex digits.
        loss: mean cross-entropy of the scored images, nats; None where a method gives votes, not probabilities.
        label_fraction: share of the train labels that the method saw, stratified; 1.0 for all.
        folds: one entry per fold of a cross-validation, empty without one. Then the scores above are those of the
            held-out predictions of all folds together: every labelled image is scored once, by a model that had not
            seen it; `train_images` is what one fold trained on.
        history: one row per epoch of a method that trains: `fold` (0 without folds), `epoch` (1-based), `step`,
            `train_loss`, `test_loss`, `test_accuracy` (of the held-out fold with folds), `lr`.
    """

    method: str
    init: str
    protocol: str
    accuracy: float
    f1_micro: float
    f1_macro: float
    f1_weighted: float
    mean_iou: float
    per_class: tuple[ClassScores, ...]
    confusion: csr_array
    ece: float
    seconds: float
    notes: tuple[str, ...] = ()
    also: Mapping[str, float] = field(default_factory=dict)
    target: str = ""
    data: str = ""
    train_images: int = 0
    test_images: int = 0
    image_size: int = 0
    limit: int | None = None
    features: Mapping[str, float] = field(default_factory=dict)
    encoder: str = ""
    loss: float | None = None
    label_fraction: float = 1.0
    folds: tuple[FoldScores, ...] = ()
    history: tuple[Mapping[str, float], ...] = ()

    @classmethod
    def from_scores(cls, scores: Scores, *, notes: tuple[str, ...] = (), **rest: Any) -> EvaluationResult:
        """A result over `scores`; their notes come after the given ones."""
        return cls(
            accuracy=scores.accuracy,
            f1_micro=scores.f1_micro,
            f1_macro=scores.f1_macro,
            f1_weighted=scores.f1_weighted,
            mean_iou=scores.mean_iou,
            per_class=scores.per_class,
            notes=(*notes, *scores.notes),
            **rest,
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in label order."""
        return tuple(row.name for row in self.per_class)

    @property
    def majority(self) -> float:
        """Accuracy of always naming the largest class of the test images, 0..1."""
        support = [row.support for row in self.per_class]
        return max(support) / sum(support)

    @property
    def fold_spread(self) -> tuple[float, float] | None:
        """Mean and sample standard deviation (n − 1) of the folds' accuracies; None without a cross-validation."""
        if len(self.folds) < 2:
            return None
        of_folds = np.array([one.accuracy for one in self.folds])
        return float(of_folds.mean()), float(of_folds.std(ddof=1))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and text, ready for `json.dumps`."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return plain | {
            "per_class": [asdict(row) for row in self.per_class],
            "confusion": _cells(self.confusion),
            "notes": list(self.notes),
            "also": dict(self.also),
            "features": dict(self.features),
            "folds": [asdict(one) for one in self.folds],
            "history": [dict(row) for row in self.history],
            "majority": self.majority,
        }

    def to_json(self) -> str:
        """One JSON document; NaN cannot occur in it."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> EvaluationResult:
        """The result that `to_dict` wrote.

        Raises:
            DataError: a field is missing, of another kind, or does not belong to the others.
        """
        try:
            known = {name: plain[name] for name in cls.__dataclass_fields__ if name in plain}
            known["per_class"] = tuple(ClassScores(**row) for row in plain["per_class"])
            known["confusion"] = _confusion(plain["confusion"], len(known["per_class"]))
            known["notes"] = tuple(str(note) for note in plain.get("notes", ()))
            known["folds"] = tuple(FoldScores(**row) for row in plain.get("folds", ()))
            known["history"] = tuple(dict(row) for row in plain.get("history", ()))
            result = cls(**known)
            numbers = (result.accuracy, result.f1_macro, result.f1_weighted, result.mean_iou, result.ece)
            if not all(math.isfinite(n) for n in numbers):
                raise ValueError(f"scores {numbers}")
            result._check_kinds()
            return result
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(
                "this is not an evaluation result",
                saw=f"{type(error).__name__}: {str(error)[:200]}",
                fix="write it again with `simclr-engine evaluate`",
            ) from error

    def _check_kinds(self) -> None:
        """TypeError or ValueError for a field that is not of the kind that its users take for granted."""
        texts = (self.method, self.init, self.protocol, self.target, self.data, self.encoder, *self.class_names)
        counts = (self.train_images, self.test_images, self.image_size, self.limit or 0)
        numbers = [self.f1_micro, self.seconds, self.label_fraction, self.loss or 0.0]
        numbers += [*dict(self.also).values(), *dict(self.features).values()]
        for row in [asdict(one) for one in self.per_class] + [asdict(one) for one in self.folds]:
            numbers += [value for name, value in row.items() if name != "name"]
        if not all(isinstance(text, str) for text in texts) or not all(type(count) is int for count in counts):
            raise TypeError("text or a count is of another kind")
        if self.init not in ("pretrained", "scratch"):
            raise ValueError("an init that there is not")
        if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
            raise ValueError("a score is no finite number")
        for epoch in self.history:
            if not all(isinstance(value, int | float) and math.isfinite(value) for value in epoch.values()):
                raise ValueError("the history holds no finite numbers")

    @classmethod
    def from_json(cls, text: str) -> EvaluationResult:
        """The result that `to_json` wrote; DataError for anything else."""
        try:
            plain = json.loads(text)
        except (ValueError, RecursionError) as error:  # also a number of 5,000 digits, brackets without end
            raise DataError(
                "an evaluation result cannot be read: not JSON",
                saw=str(error)[:200],
                fix="write it again with `simclr-engine evaluate`",
            ) from error
        return cls.from_dict(plain if isinstance(plain, dict) else {})


@dataclass(frozen=True, eq=False)
class Comparison:
    """One method on one data set, either of whose inits may not have been run."""

    method: str
    trained: EvaluationResult | None
    scratch: EvaluationResult | None

    @property
    def name(self) -> str:
        """The method in words, with the share of the labels and the folds where they are not all and none."""
        shown, words = self.shown, METHOD_NAMES.get(self.method, self.method)
        part = [f"{100 * shown.label_fraction:g} % of labels"] if shown.label_fraction < 1 else []
        folds = [f"{len(shown.folds)} folds"] if shown.folds else []
        return ", ".join([words, *part, *folds])

    @property
    def shown(self) -> EvaluationResult:
        """The trained encoder's result, or the random one's where there is no other."""
        result = self.trained or self.scratch
        assert result is not None
        return result

    @property
    def both(self) -> tuple[EvaluationResult | None, EvaluationResult | None]:
        """(trained, random)."""
        return self.trained, self.scratch

    @property
    def difference(self) -> float | None:
        """Trained minus random accuracy, as a fraction; None unless both were run."""
        return self.trained.accuracy - self.scratch.accuracy if self.trained and self.scratch else None

    @property
    def epochs_to_baseline(self) -> int | None:
        """The first epoch after which training from the trained encoder is as accurate as training from the random one
        is at its end (means over the folds); None where it never is, or where nothing was trained."""
        if self.trained is None or self.scratch is None or not self.trained.history or not self.scratch.history:
            return None
        goal = epoch_means(self.scratch, "test_accuracy")[-1]
        reached = [i for i, value in enumerate(epoch_means(self.trained, "test_accuracy"), start=1) if value >= goal]
        return reached[0] if reached else None

    @property
    def chance(self) -> float:
        """Accuracy of always naming the largest class, 0..1."""
        return self.shown.majority


def compare(results: Iterable[EvaluationResult], own_data: str = "") -> list[Comparison]:
    """Pairs results of the two inits: `own_data` first, then all labels before a part of them, then the most test
    images; the linear probe before the other methods."""
    found: dict[tuple[str, int, int, str, float, int], dict[str, EvaluationResult]] = {}
    for result in results:
        size = (result.data, result.train_images, result.test_images)
        key = (*size, result.method, result.label_fraction, len(result.folds))
        found.setdefault(key, {})[result.init] = result
    methods = list(METHOD_NAMES)
    rank = {method: methods.index(method) for method in methods}

    def order(key: tuple[str, int, int, str, float, int]) -> tuple[object, ...]:
        data, train, test, method, fraction, folds = key
        return (data != own_data, folds > 0 or fraction < 1, -test, -train, data, rank.get(method, 99), method, folds)

    ranked = sorted(found, key=order)
    return [Comparison(key[3], found[key].get("pretrained"), found[key].get("scratch")) for key in ranked]


def epoch_means(result: EvaluationResult, column: str) -> list[float]:
    """A column of the history, one value per epoch: the mean over the folds where there are several."""
    values: dict[int, list[float]] = {}
    for row in result.history:
        values.setdefault(int(row["epoch"]), []).append(float(row[column]))
    return [sum(values[epoch]) / len(values[epoch]) for epoch in sorted(values)]


def percent(fraction: float, images: int) -> str:
    """`57.03 %`: one digit behind the point below 5,000 test images, where a second would be noise."""
    return f"{100 * fraction:.{1 if images < 5_000 else 2}f} %"


def points(fraction: float, images: int) -> str:
    """`+18.2 points`, with the sign always shown."""
    return f"{100 * fraction:+.{1 if images < 5_000 else 2}f} points".replace("-", "−")


def standard_error(result: EvaluationResult) -> float:
    """Of the accuracy, as a fraction, from the number of test images alone (binomial)."""
    return math.sqrt(result.accuracy * (1 - result.accuracy) / result.test_images)


def _cells(confusion: csr_array) -> dict[str, list[int]]:
    """The cells that are not zero, row by row: three lists of one length."""
    found = confusion.tocoo()
    return {"true": found.row.tolist(), "predicted": found.col.tolist(), "count": found.data.tolist()}


def _confusion(plain: Any, classes: int) -> csr_array:
    """From what `_cells` gave, or the rows of the whole matrix, as earlier versions wrote them.

    Raises:
        ValueError, KeyError, TypeError, OverflowError: it is neither, or not of so many classes.
    """
    from scipy.sparse import csr_array

    if isinstance(plain, list):
        found = csr_array(np.asarray(plain, dtype=np.int64))
    else:
        true, predicted, count = (np.asarray(plain[name], dtype=np.int64) for name in ("true", "predicted", "count"))
        found = csr_array((count, (true, predicted)), shape=(classes, classes))
    if found.shape != (classes, classes) or (found.data < 0).any():
        raise ValueError(f"{classes} classes, but a confusion of {found.shape}, or counts below zero")
    return found
