"""Results on disk: RUN/evaluation/ID.json and ID.safetensors, RUN/embeddings/*.npy. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ..data.store import ImageStore
from ..errors import DataError, PlatformError
from ..run import write_text_atomic
from .linear import LinearProbe
from .result import EvaluationResult


def result_id(result: EvaluationResult) -> str:
    """`data-method-init`, such as `cifar10-linear-pretrained`; with a limit its number stands behind the data."""
    name = re.sub(r"\.(tar(\.\w+)?|tgz|zip)$", "", Path(result.data).name, flags=re.IGNORECASE)
    name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "data"
    return "-".join([name, *([f"n{result.limit}"] if result.limit else []), result.method, result.init])


def save_result(directory: Path, result: EvaluationResult, probe: LinearProbe | None = None) -> str:
    """Writes ID.json, and ID.safetensors with the probe; returns the ID.

    Raises:
        PlatformError: the directory cannot be written.
    """
    name = result_id(result)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if probe is not None:
            probe.save(directory / f"{name}.safetensors")
    except OSError as error:
        raise _unwritable(directory, error) from error
    write_text_atomic(directory / f"{name}.json", result.to_json() + "\n")
    return name


def load_results(directory: Path) -> dict[str, EvaluationResult]:
    """All results of a directory by ID, in alphabetical order.

    Raises:
        DataError: a .json file there is not a result.
    """
    results = {}
    for path in sorted(directory.glob("*.json")):
        try:
            results[path.stem] = EvaluationResult.from_json(path.read_text("utf-8"))
        except (DataError, OSError, UnicodeDecodeError) as error:
            saw = error.saw if isinstance(error, DataError) else error
            raise DataError(
                "this is not an evaluation result",
                saw=f"{path}: {saw}",
                fix="delete it, or write it again with `simclr-engine evaluate`",
            ) from error
    return results


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Features float32 `[N, D]` of one split with their labels int64 `[N]`, and what they are of."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    data: str


def save_embeddings(directory: Path, name: str, store: ImageStore, features: NDArray[np.float32]) -> None:
    """Writes `NAME.npy`, float32 `[N, D]`, and `NAME_labels.npz` with labels, class names and the name of the data.

    Raises:
        PlatformError: the directory cannot be written.
    """
    assert store.labels is not None
    names = np.array(store.class_names, dtype=np.str_)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        np.save(directory / f"{name}.npy", features, allow_pickle=False)
        np.savez(directory / f"{name}_labels.npz", labels=store.labels, class_names=names, data=np.str_(store.name))
    except OSError as error:
        raise _unwritable(directory, error) from error


def load_embeddings(directory: Path, name: str) -> Embeddings | None:
    """What `save_embeddings` wrote under a name; None where it is not there or not whole."""
    try:
        features = np.load(directory / f"{name}.npy", allow_pickle=False, mmap_mode="r")
        with np.load(directory / f"{name}_labels.npz", allow_pickle=False) as file:
            labels, data = file["labels"], str(file["data"])
            class_names = tuple(str(one) for one in file["class_names"])
    except (OSError, ValueError, EOFError, KeyError, BadZipFile):
        return None
    whole = features.ndim == 2 and features.shape[:1] == labels.shape and len(labels)
    return Embeddings(features, labels, class_names, data) if whole and labels.max() < len(class_names) else None


def _unwritable(directory: Path, error: OSError) -> PlatformError:
    return PlatformError(
        "cannot write the results", saw=f"{directory}: {error.strerror}", fix="free space or choose another --out"
    )
