"""What can be evaluated: the encoder of a run, its random counterpart, or an exported file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.store import ImageStore
from ..errors import UsageError
from ..run import Run
from .feature_cache import cached_features

INITS = ("pretrained", "scratch")

Features = Callable[[ImageStore], NDArray[np.float32]]
Advance = Callable[[int], None] | None


@dataclass(frozen=True)
class Target:
    """An encoder to evaluate.

    Attributes:
        path: the run directory or the .onnx file.
        image_size: side in pixels of the images it takes.
        data: what it was pretrained on, if known: the default of `--data`.
        pretrained_on: fingerprint of those images, "" if unknown.
        run: the run; None for a file.
    """

    path: Path
    image_size: int
    data: str | None
    pretrained_on: str
    run: Run | None

    def encoder(self, init: str, progress: bool = False) -> tuple[str, Features]:
        """The encoder with this `init`: words for the protocol, and a function from images to features `[N, D]`.

        Raises:
            UsageError: a random counterpart of an exported file is asked for.
        """
        if self.run is not None:
            return _torch_encoder(self.run, init, progress)
        if init != "pretrained":
            raise UsageError(
                "an exported file has no random counterpart",
                saw=f"--init {init} for {self.path.name}",
                fix="evaluate the run it came from, or leave --init away",
            )
        return _onnx_encoder(self.path, progress)


def open_target(target: str | Path | Run) -> Target:
    """The run directory or .onnx file at `target`.

    Raises:
        UsageError: it is neither.
        DataError: it cannot be read, or the file is not one of ours.
    """
    if isinstance(target, Run) or Path(target).is_dir():
        run = target if isinstance(target, Run) else Run.open(target)
        about = run.environment.get("data", {})
        return Target(run.directory, run.image_size, about.get("name"), str(about.get("fingerprint", "")), run)
    path = Path(target)
    if path.suffix.lower() != ".onnx" or not path.is_file():
        raise UsageError(
            "this is neither a run nor an .onnx file" if path.exists() else "there is nothing to evaluate here",
            saw=path,
            fix="name a directory that `pretrain` wrote, or a file that `export` wrote",
        )
    from simclr_engine.export.runtime import OnnxEncoder

    encoder = OnnxEncoder(path)
    return Target(path, encoder.image_size, None, encoder.metadata.data_fingerprint, None)


def _torch_encoder(run: Run, init: str, progress: bool) -> tuple[str, Features]:
    from .features import SCRATCH_SEED, default_device, encoder_hash, extract_features, scratch_encoder

    recipe = run.recipe
    encoder = run.encoder() if init == "pretrained" else scratch_encoder(recipe.model.arch, recipe.model.stem)
    mean, std = recipe.augment.mean, recipe.augment.std
    key = f"torch {encoder_hash(encoder)}, mean {mean}, std {std}, fp32, eval"

    def compute(store: ImageStore) -> NDArray[np.float32]:
        with _bar(f"features ({init}, {store.split})", len(store), progress) as advance:
            return extract_features(encoder, store.images, mean, std, device=default_device(), advance=advance)

    words = "fp32, eval BN"
    if init == "scratch":
        words += f" at its initial statistics, random encoder of seed {SCRATCH_SEED}"
    return words, lambda store: cached_features(key, store, compute)


def _onnx_encoder(path: Path, progress: bool) -> tuple[str, Features]:
    from simclr_engine.export.evaluator import onnx_features

    def features(store: ImageStore) -> NDArray[np.float32]:
        with _bar(f"features ({path.name}, {store.split})", len(store), progress) as advance:
            return onnx_features(path, store, advance=advance)

    return "fp32, eval BN, features by onnxruntime", features


@contextmanager
def _bar(what: str, total: int, progress: bool) -> Iterator[Advance]:
    """A progress bar on a terminal's stderr, as a function that takes the number of images just done; else None."""
    if not progress or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda images: bar.advance(task, images)
