"""EvaluationResult: the numbers of one method on one encoder, with the protocol that made them; JSON there and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .metrics import ClassScores, Scores


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
        confusion: int64 `[C, C]`, row = true class, column = predicted class.
        ece: expected calibration error over 15 bins.
        seconds: wall time of features (0 where they came from the cache) and method.
        notes: what a reader must know to trust the numbers (convergence, absent classes, overlap, collapse).
        also: further accuracies of the same method by name, such as the weighted vote of kNN.
        target: the run directory or file that was evaluated.
        data: what the user called the data.
        train_images, test_images: how many images the method learnt from and was scored on.
        image_size: side in pixels.
        limit: at most so many images of each split were taken; None for all.
        features: `dim`, `std` and `effective_rank` of the train features (see `collapse.py`); empty where the encoder
            was trained on labels.
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
    confusion: NDArray[np.int64]
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
            "confusion": self.confusion.tolist(),
            "notes": list(self.notes),
            "also": dict(self.also),
            "features": dict(self.features),
            "folds": [asdict(one) for one in self.folds],
            "history": [dict(row) for row in self.history],
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
            known["confusion"] = np.asarray(plain["confusion"], dtype=np.int64)
            known["notes"] = tuple(str(note) for note in plain.get("notes", ()))
            known["folds"] = tuple(FoldScores(**row) for row in plain.get("folds", ()))
            known["history"] = tuple(dict(row) for row in plain.get("history", ()))
            result = cls(**known)
            numbers = (result.accuracy, result.f1_macro, result.f1_weighted, result.mean_iou, result.ece)
            classes = len(result.per_class)
            if not all(math.isfinite(n) for n in numbers) or result.confusion.shape != (classes, classes):
                raise ValueError(f"{classes} classes, confusion {list(result.confusion.shape)}, scores {numbers}")
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
