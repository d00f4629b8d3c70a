"""An encoder of either kind, a run or an exported file, as `embed`, `predict` and `serve` use it.

A run as the target imports torch; an exported file does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from simclr_engine.data.levels import Levels
from simclr_engine.errors import UsageError

from .metadata import INTERPOLATION, ModelMetadata
from .runtime import CPU, NotFiniteError, OnnxEncoder, require_finite

if TYPE_CHECKING:
    from simclr_engine.run import Run

SHA256_OF_RUN = "--sha256 is for an .onnx file: a run has no checksum as a whole"
NEITHER = "name a directory that `pretrain` wrote, or a file that `export` wrote"

Vectors = NDArray[np.float32]
Images = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Embedder:
    """An encoder of either kind, as `embed`, `predict` and `serve` use it.

    Attributes:
        path: the run or the file.
        identity: sha256 that changes with the encoder: of the file, or of a run's weights and normalisation.
        image_size: side S of the images it takes.
        levels: the values of 16-bit gray images that become 0 and 255.
        feature_dim: D.
        class_names: those its probe tells apart, in label order; those of its data where it has no probe.
        probe: in words, what its classes come from; "" where it has no probe.
        embed: uint8 `[N, S, S, 3]` to features float32 `[N, D]`.
        predict: the same images to probabilities float32 `[N, C]`; None without a probe.
        check: raises DataError, which names the expected shape, for an array that is no such images.
        about: an exported file's own words; None for a run.
        unfinished: how far its run had come (`46 of 380 steps`), if that has not ended, else "".
    """

    path: Path
    identity: str
    image_size: int
    levels: Levels
    feature_dim: int
    class_names: tuple[str, ...]
    probe: str
    embed: Callable[[Images], Vectors]
    predict: Callable[[Images], Vectors] | None
    check: Callable[[object], None]
    about: ModelMetadata | None
    unfinished: str = ""


@contextmanager
def naming(images: Sequence[str]) -> Iterator[None]:
    """Errors about what an encoder gives for one of these images name it."""
    try:
        yield
    except NotFiniteError as error:
        raise NotFiniteError(error.file, error.row, images[error.row]) from error


def open_embedder(target: str | Path, sha256: str | None = None, threads: int | None = None) -> Embedder:
    """The encoder of a run directory (imports torch) or of an .onnx file.

    Args:
        target: the directory or file.
        sha256: that the file must have; None for any.
        threads: of onnxruntime; None takes the processors of the affinity mask, and keeps them while it waits.

    Raises:
        UsageError: it is neither, or `sha256` is given for a run.
        DataError: it cannot be used.
    """
    path = Path(target)
    if path.is_dir():
        if sha256 is not None:
            raise UsageError(SHA256_OF_RUN, saw=path, fix="leave it out, or export the run and name the file")
        from simclr_engine.run import Run

        return _run_embedder(Run.open(path))
    if path.suffix.lower() != ".onnx" or not path.is_file():
        cause = "this is neither a run nor an .onnx file" if path.exists() else "there is no such run or file"
        raise UsageError(cause, saw=path, fix=NEITHER)
    encoder = OnnxEncoder(path, (CPU,), threads, threads is None, sha256)
    probe = str(encoder.metadata.probe.get("id", "its own")) if encoder.has_probe else ""

    def predict(images: Images) -> Vectors:
        return encoder.predict(images)[0]

    return Embedder(
        path=path,
        identity=encoder.sha256,
        image_size=encoder.image_size,
        levels=encoder.levels,
        feature_dim=encoder.feature_dim,
        class_names=encoder.class_names,
        probe=probe,
        embed=encoder.embed,
        predict=predict if encoder.has_probe else None,
        check=encoder._check_images,
        about=encoder.metadata,
        unfinished=encoder.metadata.unfinished,
    )


def _run_embedder(run: Run) -> Embedder:
    from simclr_engine.evaluation.features import default_device, encoder_hash, extract_features

    from .probe import choose_probe, saved_probes

    encoder, augment = run.encoder(), run.recipe.augment
    weights = encoder_hash(encoder)
    width = int(encoder.feature_dim)  # type: ignore[arg-type]  # torch says: Tensor or Module
    saved = saved_probes(run.directory)
    chosen = choose_probe(run, saved[0][0], width, weights) if saved else None
    # What the check of an exported file looks at; a run takes the same images.
    shape = SimpleNamespace(image_size=run.image_size, metadata=SimpleNamespace(interpolation=INTERPOLATION))

    def embed(images: Images) -> Vectors:
        vectors = extract_features(encoder, images, augment.mean, augment.std, device=default_device())
        require_finite(vectors, run.directory)
        return vectors

    def predict(images: Images) -> Vectors:
        assert chosen is not None
        return chosen.probabilities(embed(images))

    return Embedder(
        path=run.directory,
        identity=hashlib.sha256(f"{weights} mean {augment.mean} std {augment.std}".encode()).hexdigest(),
        image_size=run.image_size,
        levels=run.levels,
        feature_dim=width,
        class_names=chosen.class_names if chosen else tuple(run.data.get("class_names") or ()),
        probe=chosen.id if chosen else "",
        embed=embed,
        predict=predict if chosen else None,
        check=lambda images: OnnxEncoder._check_images(cast(OnnxEncoder, shape), images),
        about=None,
        unfinished=run.unfinished,
    )
