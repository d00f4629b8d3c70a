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


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """What one evaluation found; all scores are fractions in 0..1.

    Attributes:
        method: `linear` or `knn`.
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
        features: `dim`, `std` and `effective_rank` of the train features (see `collapse.py`).
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

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and text, ready for `json.dumps`."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return plain | {
            "per_class": [asdict(row) for row in self.per_class],
            "confusion": self.confusion.tolist(),
            "notes": list(self.notes),
            "also": dict(self.also),
            "features": dict(self.features),
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
            result = cls(**known)
            numbers = (result.accuracy, result.f1_macro, result.f1_weighted, result.mean_iou, result.ece)
            classes = len(result.per_class)
            if not all(math.isfinite(n) for n in numbers) or result.confusion.shape != (classes, classes):
                raise ValueError(f"{classes} classes, confusion {list(result.confusion.shape)}, scores {numbers}")
            return result
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(
                "this is not an evaluation result",
                saw=f"{type(error).__name__}: {error}",
                fix="write it again with `simclr-engine evaluate`",
            ) from error

    @classmethod
    def from_json(cls, text: str) -> EvaluationResult:
        """The result that `to_json` wrote; DataError for anything else."""
        try:
            plain = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(
                "an evaluation result cannot be read: not JSON",
                saw=str(error),
                fix="write it again with `simclr-engine evaluate`",
            ) from error
        return cls.from_dict(plain if isinstance(plain, dict) else {})
