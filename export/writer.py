"""export_onnx: one verified ONNX file from a run, or none."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from simclr_engine import __version__
from simclr_engine.checkpoint import load_encoder
from simclr_engine.errors import CheckFailed, DataError, PlatformError, UsageError
from simclr_engine.evaluation.features import extract_features
from simclr_engine.run import Run, write_text_atomic

from . import parity as gate
from .graph import OPSET, Traced, check_opset, trace_encoder
from .labels import labeller
from .metadata import DIGEST, INTERPOLATION, SCHEMA, ModelMetadata, read_model, sidecar_path
from .parity import BATCHES, LIMIT, Parity
from .runtime import INPUT, OUTPUT, OnnxEncoder, open_session
from .samples import parity_samples
from .wire import scan

RECORD = "export.json"


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        file: the ONNX file; its checksum lies beside it as `FILE.sha256`.
        sha256: of the whole file, 64 hex digits.
        bytes: its size.
        parity: the measured difference to PyTorch.
        metadata: what the file says of itself.
        opset: of the ONNX standard.
        run: directory of the run.
        seconds: how long it took, gates included.
    """

    file: Path
    sha256: str
    bytes: int
    parity: Parity
    metadata: ModelMetadata
    opset: int
    run: Path
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json` and for the run's `export.json`."""
        m = self.metadata
        return {
            "file": str(self.file),
            "sha256": self.sha256,
            "bytes": self.bytes,
            "input": f"images uint8 [batch, {m.image_size}, {m.image_size}, 3]",
            "output": f"features float32 [batch, {m.feature_dim}]",
            "opset": self.opset,
            "run": str(self.run),
            "seconds": round(self.seconds, 2),
            "parity": asdict(self.parity) | {"limit": LIMIT},
        }


def export_onnx(run: str | Path | Run, file: str | Path = "encoder.onnx", *, opset: int = OPSET) -> ExportResult:
    """Writes the run's encoder as one ONNX file: uint8 `images` `[batch, S, S, 3]` → float32 `features` `[batch, D]`.

    The file takes its name only after the ONNX checker, the parity gate (`LIMIT`, batches of 1, 2, 7 and 64) and a
    reading back through `OnnxEncoder` have passed; a file that stood there before stays until then. The same run
    gives the same bytes. The result is also recorded as `export.json` in the run.

    Args:
        run: a run or its directory.
        file: name of the file, ending in `.onnx`; an earlier export of this name is replaced, anything else is not.
        opset: 18 or newer.

    Raises:
        UsageError: the name or the opset cannot be meant, or the name is taken by something else.
        DataError: no such run, or its weights do not load.
        CheckFailed: a gate did not hold; nothing was written.
        PlatformError: no permission or no space; nothing was written.

    Example:
        >>> export_onnx("runs/first", "encoder.onnx").parity.max_abs        # doctest: +SKIP
        3.1e-06
    """
    begin = time.perf_counter()
    check_opset(opset)
    target = _check_target(Path(file))
    run = run if isinstance(run, Run) else Run.open(run)
    temporary = _reserve(target)
    try:
        built = _build(run, opset)
        sha256 = hashlib.sha256(built.data).hexdigest()
        with _disk(target):
            _write(temporary, built.data)
            _write(sidecar_path(temporary), f"{sha256}  {target.name}\n".encode())
        _check_read_back(temporary, built)
        with _disk(target):
            sidecar_path(target).unlink(missing_ok=True)  # at no moment a new file beside an old checksum
            temporary.replace(target)
            sidecar_path(temporary).replace(sidecar_path(target))
    finally:
        temporary.unlink(missing_ok=True)
        sidecar_path(temporary).unlink(missing_ok=True)
    seconds = time.perf_counter() - begin
    result = ExportResult(target, sha256, len(built.data), built.parity, built.metadata, opset, run.directory, seconds)
    try:
        write_text_atomic(run.directory / RECORD, json.dumps(result.to_json(), indent=2) + "\n")
    except PlatformError as error:  # a run on a read-only disk can be exported all the same
        warnings.warn(f"the export is complete, but was not recorded in the run: {error.saw}", stacklevel=2)
    return result


@dataclass(frozen=True)
class _Built:
    """The bytes of a file that passed the gates, and a few images with the features that it must give."""

    data: bytes
    metadata: ModelMetadata
    parity: Parity
    images: NDArray[np.uint8]
    features: NDArray[np.float32]


def _build(run: Run, opset: int) -> _Built:
    """Traces the encoder, compares it with PyTorch, seals it."""
    encoder, spec = load_encoder(run), run.recipe.augment
    traced = trace_encoder(encoder, spec.mean, spec.std, run.image_size, opset)
    samples = parity_samples(run, sum(BATCHES))
    images, reference = samples.images, extract_features(encoder, samples.images, spec.mean, spec.std)
    by = labeller(run.directory, reference.shape[1], samples.labels)
    parity = gate.measure(
        reference, _embedder(traced), by.label, images, label_source=by.source, image_source=samples.source
    )
    gate.check(parity, traced, images)
    metadata = _metadata(run, reference.shape[1], parity)
    few = BATCHES[2]
    return _Built(seal(traced.model, metadata), metadata, parity, images[:few], reference[:few])


def seal(model: onnx.ModelProto, metadata: ModelMetadata) -> bytes:
    """The bytes of `model` with the metadata, and with the digest of all of it as the last property.

    Raises:
        CheckFailed: it does not pass the ONNX checker.
    """
    sealed = onnx.ModelProto()
    sealed.CopyFrom(model)
    sealed.producer_name, sealed.producer_version = "simclr-engine", metadata.project_version
    onnx.helper.set_model_props(sealed, metadata.to_properties())
    digest = scan(sealed.SerializeToString(deterministic=True), without=DIGEST).digest
    sealed.metadata_props.add(key=DIGEST, value=json.dumps(digest))
    try:
        onnx.checker.check_model(sealed, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        fix = "update torch and onnxscript"
        raise CheckFailed("the exported graph is not valid ONNX", saw=str(error)[:300], fix=fix) from error
    return sealed.SerializeToString(deterministic=True)


def _metadata(run: Run, feature_dim: int, parity: Parity) -> ModelMetadata:
    data = run.environment["data"]
    return ModelMetadata(
        schema=SCHEMA,
        project_version=__version__,
        architecture=run.recipe.model.arch,
        stem=run.recipe.model.stem,
        feature_dim=feature_dim,
        image_size=run.image_size,
        mean=tuple(run.recipe.augment.mean),
        std=tuple(run.recipe.augment.std),
        interpolation=INTERPOLATION,
        class_names=tuple(data.get("class_names") or ()),
        data_fingerprint=str(data["fingerprint"]),
        recipe=run.recipe.name,
        recipe_hash=run.recipe.hash(),
        parity=parity.bounds(),
    )


def _embedder(traced: Traced) -> gate.Embed:
    """The ONNX graph before it is sealed, as a function."""
    try:
        session = open_session(traced.model.SerializeToString(deterministic=True))
    except Exception as error:  # onnxruntime raises a dozen kinds of its own, all below Exception
        raise CheckFailed(
            "onnxruntime cannot load the exported graph",
            saw=str(error).splitlines()[0],
            fix=f"--opset {OPSET}, or update onnxruntime",
        ) from error

    def embed(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        features: NDArray[np.float32] = session.run([OUTPUT], {INPUT: images})[0]
        return features

    return embed


def _check_read_back(path: Path, built: _Built) -> None:
    """The file as it lies on the disk, opened as any user would, on a few images."""
    fix = "check the disk, then export again"
    try:
        found = OnnxEncoder(path).embed(built.images)
    except DataError as error:
        raise CheckFailed("the written file does not read back", saw=f"{error.cause}: {error.saw}", fix=fix) from error
    difference = gate.Difference.between(built.features, found)
    if not difference.holds():
        raise CheckFailed("the written file does not give the measured features", saw=difference, fix=fix)


def _check_target(target: Path) -> Path:
    """Refuses names that are no ONNX file's, and files that we did not write."""
    if target.suffix != ".onnx" or target.is_dir():
        raise UsageError("the output must be a file name ending in .onnx", saw=target, fix="encoder.onnx")
    if target.exists():
        try:
            read_model(target)
        except DataError as error:
            raise UsageError(
                "the output exists and is not an intact export of simclr-engine",
                saw=f"{target}: {error.cause}",
                fix="remove it, or choose another name",
            ) from error
    return target


def _write(path: Path, data: bytes) -> None:
    """Writes and waits for the disk, so that a full one is told here."""
    with path.open("wb") as output:
        output.write(data)
        output.flush()
        os.fsync(output.fileno())


def _reserve(target: Path) -> Path:
    """An empty file beside `target`, made before any work is done, so that a folder that cannot be written is told
    at once."""
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.partial.onnx")
    with _disk(target):
        temporary.write_bytes(b"")
    return temporary


@contextmanager
def _disk(target: Path) -> Iterator[None]:
    """Failures of the file system as what they mean for an export."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise PlatformError(
            "the disk is full" if full else "the ONNX file cannot be written",
            saw=f"{target}: {error.strerror or error}",
            fix="free space, then export again" if full else "choose a folder that exists and that you may write to",
        ) from error
