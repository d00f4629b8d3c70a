"""The linear probe: standardise, then multinomial logistic regression (scikit-learn, lbfgs) on frozen features."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..files import check_regular, in_fixed_order, write_atomic
from .metrics import one_thread
from .splits import require_finite

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

C_GRID = (0.001, 0.01, 0.1, 1.0)
MAX_ITERATIONS = 1000
TOLERANCE = 1e-4  # scikit-learn's own
# Choosing C needs not all images: it is the variance of a prior on the weights, so its best value hardly depends on
# their number.
IMAGES_FOR_CHOICE = 15_000  # of the rest of train, to fit on; the held-out tenth is always whole
HELD_OUT = 0.1  # of train, for the choice of C
PER_CLASS_FOR_CHOICE = 10  # with fewer images of a class, a tenth of them says nothing about C


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A fitted probe: `softmax(((x − mean) / scale) · coefᵀ + intercept)`.

    Attributes:
        coef: float32 `[K, D]`, one row per class seen in training.
        intercept: float32 `[K]`.
        mean, scale: float32 `[D]`, the standardiser.
        classes: int64 `[K]`, the label of each row.
        C: inverse regularisation strength that was used.
        iterations: of lbfgs.
        notes: convergence warnings and how C came about.
    """

    coef: NDArray[np.float32]
    intercept: NDArray[np.float32]
    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    classes: NDArray[np.int64]
    C: float
    iterations: int
    chosen: bool
    notes: tuple[str, ...] = ()

    def predict_proba(self, features: NDArray[np.float32], class_count: int | None = None) -> NDArray[np.float32]:
        """Probabilities float32 `[N, C]` in label order, C = `class_count` (default: the highest label + 1);
        classes that training had not seen get 0."""
        logits = ((features - self.mean) / self.scale) @ self.coef.T + self.intercept
        logits -= logits.max(1, keepdims=True)
        np.exp(logits, out=logits)
        logits /= logits.sum(1, keepdims=True)
        wide = np.zeros((len(features), class_count or int(self.classes[-1]) + 1), dtype=np.float32)
        wide[:, self.classes] = logits
        return wide

    def save(self, path: Path) -> None:
        """Writes coef, intercept, mean, scale and classes as .safetensors."""
        write_atomic(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """What `save` writes."""
        from safetensors.numpy import save

        names = ("coef", "intercept", "mean", "scale", "classes")
        metadata = {"C": repr(self.C), "iterations": str(self.iterations), "chosen": str(self.chosen)}
        return in_fixed_order(save({name: np.ascontiguousarray(getattr(self, name)) for name in names}, metadata))

    @classmethod
    def load(cls, path: Path) -> LinearProbe:
        """The probe that `save` wrote; DataError for anything else."""
        from safetensors import SafetensorError, safe_open

        try:
            check_regular(path)
            with safe_open(path, framework="np") as file:
                tensors = {name: file.get_tensor(name) for name in ("coef", "intercept", "mean", "scale", "classes")}
                metadata = file.metadata() or {}
            _check_parts(**tensors)
            return cls(
                **tensors,
                C=float(metadata["C"]),
                iterations=int(metadata["iterations"]),
                chosen=metadata["chosen"] == "True",
            )
        # A type that numpy has not: TypeError of bfloat16, AttributeError of float8.
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise DataError(
                "this is not a saved linear probe",
                saw=f"{path}: {str(error)[:200]}",  # safetensors quotes the whole header of a damaged file
                fix="write it again with `simclr-engine evaluate RUN --method linear`",
            ) from error


def _check_parts(
    coef: NDArray[Any], intercept: NDArray[Any], mean: NDArray[Any], scale: NDArray[Any], classes: NDArray[Any]
) -> None:
    """ValueError where these cannot be the parts of one probe."""
    parts, shapes = (coef, intercept, mean, scale), [part.shape for part in (intercept, classes, mean, scale)]
    if coef.ndim != 2 or not coef.size or shapes != [coef.shape[:1]] * 2 + [coef.shape[1:]] * 2:
        raise ValueError(f"coef {coef.shape}, intercept, classes, mean and scale {shapes} do not belong together")
    if any(part.dtype.kind != "f" for part in parts):
        raise ValueError(f"weights of type {', '.join(str(part.dtype) for part in parts)}")
    if classes.dtype.kind not in "iu" or classes[0] < 0 or (np.diff(classes) <= 0).any():
        raise ValueError("the classes are not labels in rising order")


def fit_linear(
    features: NDArray[np.float32], labels: NDArray[np.int64], *, C: float | None = None, seed: int = 0
) -> LinearProbe:
    """Fits the probe on train features.

    Without `C`, it is chosen from `C_GRID` by the log-loss on a stratified tenth of train (never on test): the
    strongest regularisation whose log-loss is at most the lowest sum of log-loss and standard error (after Breiman et
    al., Classification and Regression Trees, 1984, section 3.4.3). Both are smooth, so features that differ by
    rounding, as those of an exported file do, give the same C; accuracies of two values of C are often tied but for one
    image. The probe is then fitted on all of train. Where a class has fewer than ten images, C stays at scikit-learn's
    1.0.

    Args:
        features: float32 `[N, D]`.
        labels: int64 `[N]`.
        C: inverse regularisation strength; None to choose it.
        seed: of the split that chooses C.

    Raises:
        DataError: fewer than two classes, or features that are not finite.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise DataError(
            "a probe needs at least two classes", saw=f"{len(classes)} in the train split", fix="use data with classes"
        )
    require_finite(features)
    mean = features.mean(0, dtype=np.float64).astype(np.float32)
    scale = features.std(0, dtype=np.float64).astype(np.float32)
    # A constant feature would divide by zero; scikit-learn's StandardScaler leaves it unscaled too.
    scale[scale <= 10 * np.finfo(np.float32).eps * np.maximum(np.abs(mean), 1e-30)] = 1.0
    standard = (features - mean) / scale
    notes: list[str] = []
    chosen = C is None and int(counts.min()) >= PER_CLASS_FOR_CHOICE
    if C is None and not chosen:
        notes.append(f"C stays at 1: the smallest class has {int(counts.min())} train images, too few to choose it")
    with one_thread():
        strength = _choose_strength(standard, labels, seed) if chosen else (1.0 if C is None else C)
        model, warned = _fit(standard, labels, strength)
    if warned:
        notes.append(f"lbfgs had not converged after {int(model.n_iter_.max())} iterations (C={strength:g}): {warned}")
    coef, intercept = model.coef_.astype(np.float32), model.intercept_.astype(np.float32)
    if len(coef) == 1:  # two classes: one sigmoid row; half on either side makes the softmax equal to it
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    return LinearProbe(
        coef=coef,
        intercept=intercept,
        mean=mean,
        scale=scale,
        classes=classes.astype(np.int64),
        C=float(strength),
        iterations=int(model.n_iter_.max()),
        chosen=chosen,
        notes=tuple(notes),
    )


def _fit(features: NDArray[np.float32], labels: NDArray[np.int64], C: float) -> tuple[LogisticRegression, str]:
    """The fitted model and the solver's convergence warning ("" when it converged)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=C, max_iter=MAX_ITERATIONS, tol=TOLERANCE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(features, labels)
    said = [str(w.message).split("\n")[0] for w in caught if issubclass(w.category, ConvergenceWarning)]
    return model, said[0] if said else ""


def _choose_strength(features: NDArray[np.float32], labels: NDArray[np.int64], seed: int) -> float:
    """The smallest C of `C_GRID` whose log-loss on a stratified tenth of train is at most the lowest sum of log-loss
    and standard error."""
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        at = rng.permutation(np.flatnonzero(labels == label))
        held_out[at[: max(1, round(HELD_OUT * len(at)))]] = True
    rest = rng.permutation(np.flatnonzero(~held_out))[:IMAGES_FOR_CHOICE]
    losses = [
        _log_losses(_fit(features[rest], labels[rest], C)[0], features[held_out], labels[held_out]) for C in C_GRID
    ]
    means = [float(loss.mean()) for loss in losses]
    # Not the error of the best one alone, which jumps where rounding decides between two.
    limit = min(mean + float(loss.std(ddof=1)) / len(loss) ** 0.5 for mean, loss in zip(means, losses, strict=True))
    return next(C for C, mean in zip(C_GRID, means, strict=True) if mean <= limit)


def _log_losses(
    model: LogisticRegression, features: NDArray[np.float32], labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """−log of the probability that `model` gives to each label, nats `[N]`; at most 87, also of a class that it has
    not seen."""
    columns = np.searchsorted(model.classes_, labels).clip(max=len(model.classes_) - 1)
    probabilities = model.predict_proba(features)[np.arange(len(labels)), columns]
    probabilities = np.where(model.classes_[columns] == labels, probabilities, 0.0)
    result: NDArray[np.float64] = -np.log(probabilities.clip(min=np.finfo(np.float32).tiny), dtype=np.float64)
    return result
