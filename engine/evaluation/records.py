"""Results on disk: RUN/evaluation/ID.json and ID.safetensors, RUN/embeddings/*.npy. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.store import ImageStore
from ..errors import PlatformError
from ..run import write_text_atomic
from .linear import LinearProbe
from .result import EvaluationResult


def result_id(result: EvaluationResult, limit: int | None = None) -> str:
    """`data-method-init`, such as `cifar10-linear-pretrained`; with a limit its number stands behind the data."""
    name = re.sub(r"\.(tar(\.\w+)?|tgz|zip)$", "", Path(result.data).name, flags=re.IGNORECASE)
    name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "data"
    return "-".join([name, *([f"n{limit}"] if limit else []), result.method, result.init])


def save_result(
    directory: Path, result: EvaluationResult, probe: LinearProbe | None = None, limit: int | None = None
) -> str:
    """Writes ID.json, and ID.safetensors with the probe; returns the ID.

    Raises:
        PlatformError: the directory cannot be written.
    """
    name = result_id(result, limit)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if probe is not None:
            probe.save(directory / f"{name}.safetensors")
    except OSError as error:
        raise _unwritable(directory, error) from error
    write_text_atomic(directory / f"{name}.json", result.to_json() + "\n")
    return name


def load_results(directory: Path) -> dict[str, EvaluationResult]:
    """All results of a directory by ID, in alphabetical order; a file that is none of ours raises DataError."""
    return {path.stem: EvaluationResult.from_json(path.read_text("utf-8")) for path in sorted(directory.glob("*.json"))}


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Features float32 `[N, D]` of one split with their labels int64 `[N]`, and what they are of."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    data: str


def save_embeddings(directory: Path, splits: Mapping[str, tuple[ImageStore, NDArray[np.float32]]]) -> None:
    """Writes `SPLIT.npy` (float32 `[N, D]`), `SPLIT_labels.npy` (int64 `[N]`) and about.json with the class names."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, (store, features) in splits.items():
            np.save(directory / f"{name}.npy", features, allow_pickle=False)
            if store.labels is not None:
                np.save(directory / f"{name}_labels.npy", store.labels, allow_pickle=False)
    except OSError as error:
        raise _unwritable(directory, error) from error
    store = next(iter(splits.values()))[0]
    about = {"data": store.name, "class_names": list(store.class_names)}
    write_text_atomic(directory / "about.json", json.dumps(about, ensure_ascii=False) + "\n")


def load_embeddings(directory: Path, split: str) -> Embeddings | None:
    """What `save_embeddings` wrote for one split; None where it is not there or not whole."""
    try:
        features = np.load(directory / f"{split}.npy", allow_pickle=False, mmap_mode="r")
        labels = np.load(directory / f"{split}_labels.npy", allow_pickle=False)
        about = json.loads((directory / "about.json").read_text("utf-8"))
        names = tuple(str(name) for name in about["class_names"])
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None
    whole = features.ndim == 2 and features.shape[:1] == labels.shape and len(labels) and int(labels.max()) < len(names)
    return Embeddings(features, labels, names, str(about.get("data", ""))) if whole else None


def _unwritable(directory: Path, error: OSError) -> PlatformError:
    return PlatformError(
        "cannot write the results", saw=f"{directory}: {error.strerror}", fix="free space or choose another --out"
    )
