"""export_onnx: writes verified ONNX files from a run, or none."""

from __future__ import annotations

import gc
import hashlib
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from torch import nn

from simclr_engine.boundary import raise_fault
from simclr_engine.checkpoint import load_encoder
from simclr_engine.data.sources import Selection
from simclr_engine.data.store import ImageStore
from simclr_engine.device import keep_freed_memory
from simclr_engine.documents import to_json
from simclr_engine.errors import CheckFailed, DataError, EngineError, PlatformError, UsageError
from simclr_engine.evaluation.features import encoder_hash, extract_features
from simclr_engine.files import write_text_atomic
from simclr_engine.run import Run

from . import parity as gate
from .description import description_path
from .graph import OPSET, VERSION, Traced, check_opset, serialised, trace_encoder, with_metadata
from .metadata import INTERPOLATION, PRECISIONS, SCHEMA, ModelFile, ModelMetadata, opset_of
from .parity import (
    BATCHES,
    FP16,
    FP32,
    Agreement,
    Labeller,
    Limits,
    Parity,
    SpeedUp,
    check_agreement,
    check_speed,
    compare_files,
    compared_images,
    fair_labeller,
    labeller,
    measure_speed,
)
from .precision import CALIBRATION_IMAGES, check_calibration, check_fused, halve, has_vnni, quantize
from .probe import ChosenProbe, attach_probe, choose_probe
from .publishing import check_target, disk_errors, remove, rename, reserved, write, write_beside
from .runtime import INPUT, LABEL, OUTPUT, PROBABILITIES, OnnxEncoder, open_session
from .samples import Images, Samples, images_of, parity_samples

RECORD = "export.json"
# What the tracing would import one after the other, a quarter of its time the first time.
TRACED_WITH = (
    *("networkx", "onnx.reference", "onnxscript.function_libs.torch_lib.ops"),
    *("torch.export._trace", "torch.onnx._internal.exporter._compat"),
)
INFINITE = float("inf")
NO_DIGITS = Limits(INFINITE, INFINITE, 2.0, INFINITE, 1e30)  # int8 is held to accuracy; here it must only be finite
LIMITS = {"fp32": FP32, "fp16": FP16, "int8": NO_DIGITS}


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        file: the ONNX file; beside it lie its checksum, `FILE.sha256`, and its description, `encoder.json` for
            `encoder.onnx`.
        sha256: of the whole file, 64 hex digits.
        bytes: its size.
        parity: the measured difference to PyTorch.
        metadata: what the file says of itself.
        opset: of the ONNX standard.
        run: directory of the run.
        seconds: how long it took, gates included.
        agreement: of an int8 or fp16 file: its labels against those of the fp32 file.
        speed: of an int8 file: its speed against that of the fp32 file.
        variants: the smaller files that were written beside this one.
    """

    file: Path
    sha256: str
    bytes: int
    parity: Parity
    metadata: ModelMetadata
    opset: int
    run: Path
    seconds: float
    agreement: Agreement | None = None
    speed: SpeedUp | None = None
    variants: tuple[ExportResult, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json` and for the run's `export.json`."""
        m = self.metadata
        limits = LIMITS[m.precision]
        probe = f", {PROBABILITIES} float32 [batch, {len(m.class_names)}], {LABEL} int64 [batch]" if m.probe else ""
        of_variant = {"agreement": asdict(self.agreement)} if self.agreement else {}
        of_variant |= {"speed": self.speed.to_json()} if self.speed else {}
        limit = {"limit": limits.absolute} if m.precision == "fp32" else {}
        limit = {"relative_limit": limits.relative} if m.precision == "fp16" else limit
        unfinished = {"unfinished": m.unfinished} if m.unfinished else {}
        return {
            "file": str(self.file),
            "description": str(description_path(self.file)),
            **unfinished,
            "sha256": self.sha256,
            "bytes": self.bytes,
            "precision": m.precision,
            "input": f"{INPUT} uint8 [batch, {m.image_size}, {m.image_size}, 3]",
            "output": f"{OUTPUT} float32 [batch, {m.feature_dim}]{probe}",
            "probe": dict(m.probe),
            "opset": self.opset,
            "run": str(self.run),
            "seconds": round(self.seconds, 2),
            "parity": asdict(self.parity) | limit,
            **of_variant,
            **({"variants": [v.to_json() for v in self.variants]} if self.variants else {}),
        }


def export_onnx(
    run: str | Path | Run,
    file: str | Path = "encoder.onnx",
    *,
    opset: int = OPSET,
    probe: bool | str | None = None,
    precision: str | Sequence[str] = "fp32",
    data: str | Path | Selection | None = None,
    overwrite: bool = False,
    encoder: nn.Module | None = None,
    recorded: bool = True,
) -> ExportResult:
    """Writes the run's encoder as one ONNX file: uint8 `images` `[batch, S, S, 3]` → float32 `features` `[batch, D]`.

    With a probe the file also gives float32 `probabilities` `[batch, C]` and int64 `label` `[batch]`. Another
    `precision` writes a smaller file beside the first: `encoder.int8.onnx`, `encoder.fp16.onnx`, or both.

    A file takes its name only after the ONNX checker, its gates and a reading back through `OnnxEncoder` have passed;
    an earlier one of that name stays until then. Gates: fp32 gives PyTorch's features, probabilities and labels
    (`parity.FP32`, batches of 1, 2, 7 and 64), fp16 likewise with `parity.FP16`; int8 has all of its convolutions in
    int8 and is 1.2 times as fast as fp32; both lose no more than a point of accuracy on the same images. Where a
    smaller file fails, the others stay and it, even an earlier one, does not. The same run gives the same bytes. Beside
    each file lie its checksum, `FILE.sha256`, and its description, `encoder.json` (see `description.describe`). The
    result is also recorded as `export.json` in the run.

    Args:
        run: a run or its directory.
        file: name of the file, ending in `.onnx`; an earlier export of this name is replaced.
        opset: 18 or newer; the int8 file has at least 19.
        probe: True for the run's newest linear probe on all images, or the ID of one; None or False for none.
        precision: `fp32`, `fp16` or `int8`, or several of them.
        data: images to check and calibrate on, as `load_data` takes them; None for those that the run was trained on,
            from the cache or from where they were; noise where they are gone.
        overwrite: replace files of these names that are no exports of ours; never a folder, nor through a link.
        encoder: the module of a run that trained its caller's own; see `load_encoder`.
        recorded: whether the run's `export.json` shall speak of this export.

    Raises:
        UsageError: the name, the opset or the precision is invalid, the name is taken by something else, or the
            run has no such probe.
        DataError: no such run, its weights do not load, or too few images to calibrate int8 on.
        CheckFailed: a gate did not hold; that file was not written.
        PlatformError: no permission or no space; nothing was written.

    Example:
        >>> export_onnx("runs/first", "encoder.onnx", probe=True).parity.max_abs        # doctest: +SKIP
        3.1e-06
    """
    begin = time.perf_counter()
    check_opset(opset)
    precisions = dict.fromkeys((precision,) if isinstance(precision, str) else precision)
    if unknown := [name for name in precisions if name not in PRECISIONS]:
        raise UsageError("unknown precision", saw=unknown[0], fix=" or ".join(PRECISIONS))
    target = check_target(Path(file), overwrite)
    smaller = {p: check_target(variant_path(target, p), overwrite) for p in precisions if p != "fp32"}
    run = run if isinstance(run, Run) else Run.open(run)
    if description_path(target).resolve() == (run.directory / RECORD).resolve():
        raise UsageError(
            "the description would have the name of the run's record of its exports",
            saw=description_path(target),
            fix="choose another name, such as encoder.onnx",
        )
    keep_freed_memory()  # 45 MB are held a dozen times in turn
    with reserved(target) as room, _no_collection():
        source = _Source.of(run, probe, "int8" in smaller, data, encoder)
        built = _build(source, opset)
        for path in smaller.values():
            remove(path)  # it is of the file that is replaced now
        result = _publish(room, target, built, source, begin)
        failed: CheckFailed | None = None
        for name, path in smaller.items():
            begin = time.perf_counter()
            try:
                made = _publish_variant(room, path, built, source, name, begin)
                result = replace(result, variants=(*result.variants, made))
            except CheckFailed as error:
                failed = failed or error
        if recorded:
            record(run, result.to_json())
        if failed is not None:
            kept = [f"{target.name}, in fp32,", *(f"{made.file.name}" for made in result.variants)]
            fix = f"{failed.fix}; {' and '.join(kept)} passed {'its' if len(kept) == 1 else 'their'} gates and stayed"
            raise CheckFailed(failed.cause, saw=failed.saw, fix=fix) from failed
    return result


@contextmanager
def _no_collection() -> Iterator[None]:
    """Switches the garbage collector off. Tracing makes a million small objects that live until it ends, and scanning
    them again and again took a sixth of the export."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def variant_path(file: Path, precision: str) -> Path:
    """Where the smaller file lies: `encoder.onnx` → `encoder.int8.onnx`."""
    return file.with_name(f"{file.stem}.{precision}.onnx")


def record(run: Run, document: dict[str, Any]) -> None:
    """Records the export as `export.json` in the run."""
    try:
        write_text_atomic(run.directory / RECORD, to_json(document, indent=2) + "\n")
    except PlatformError as error:  # a run on a read-only disk can be exported all the same
        warnings.warn(f"the export is complete, but was not recorded in the run: {error.saw}", stacklevel=3)


@dataclass(frozen=True)
class _Source:
    """What an export starts from: the encoder's features of some images, and the probe."""

    run: Run
    encoder: Any
    images: Images | None
    samples: Samples
    features: NDArray[np.float32]
    label: Labeller
    probe: ChosenProbe | None
    in_graph: bool

    @classmethod
    def of(
        cls,
        run: Run,
        wanted: bool | str | None,
        calibrated: bool,
        data: str | Path | Selection | None,
        own: nn.Module | None,
    ) -> _Source:
        """Loads everything, and refuses what can be refused before the slow work begins."""
        with ThreadPoolExecutor(1) as beside:  # verifying the images is hashing, which leaves the interpreter free
            reading = beside.submit(images_of, run, data)
            encoder, spec = load_encoder(run, own), run.recipe.augment
            images = reading.result()
            if calibrated:
                _check_calibration(run, images)
            samples = parity_samples(run, sum(BATCHES), images)
            width, state = int(encoder.feature_dim), encoder_hash(encoder)  # type: ignore[arg-type]  # a Tensor to torch
            if wanted:
                probe: ChosenProbe | None = choose_probe(run, None if wanted is True else wanted, width, state)
            else:
                probe = _probe_at_hand(run, width, state)
            # One batch: a convolution is prepared anew for every other size.
            compute = partial(extract_features, batch_size=len(samples.images))
            computing = beside.submit(compute, encoder, samples.images, spec.mean, spec.std)
            for name in TRACED_WITH:  # convolutions leave the interpreter free for these
                with suppress(ImportError):  # where another version keeps it elsewhere, the tracing finds it itself
                    import_module(name)
            features = computing.result()
        label = labeller(run.directory, width, samples.labels)
        return cls(run, encoder, images, samples, features, label, probe, bool(wanted))

    @property
    def probabilities(self) -> NDArray[np.float32] | None:
        """What the probe that goes into the file gives for the samples; None without one."""
        return self.probe.probabilities(self.features) if self.probe is not None and self.in_graph else None

    @property
    def outputs(self) -> list[str]:
        """Names of the file's outputs."""
        return [OUTPUT, PROBABILITIES, LABEL] if self.in_graph else [OUTPUT]


def _check_calibration(run: Run, images: Images | None) -> None:
    if images is None:
        raise DataError(
            "int8 is calibrated on images, and those of the run are neither in the cache nor where they were",
            saw=run.data.get("name"),
            fix="name images like those that it will see: --data NAME|PATH",
        )
    check_calibration(images.train.images)


def _probe_at_hand(run: Run, width: int, state: str) -> ChosenProbe | None:
    """A probe for measuring accuracy, although none goes into the file."""
    try:
        return choose_probe(run, None, width, state)
    except EngineError:
        return None


@dataclass(frozen=True)
class _Built:
    """A file that passed its gates: its bytes, and the outputs that it must give for `images` when it is read back."""

    traced: Traced
    data: bytes
    metadata: ModelMetadata
    parity: Parity
    images: NDArray[np.uint8]
    expected: Sequence[NDArray[Any]]
    session: onnxruntime.InferenceSession


def _build(source: _Source, opset: int) -> _Built:
    """Traces the encoder, adds the probe, compares both with PyTorch and seals the file."""
    spec, run = source.run.recipe.augment, source.run
    traced = trace_encoder(source.encoder, spec.mean, spec.std, run.image_size, opset)
    if source.in_graph and source.probe is not None:
        traced = _with_probe(traced, source.probe)
    plain = serialised(traced.model)
    session = _session(plain)
    parity = _measure(source, session, FP32)
    gate.check(parity, traced, source.samples.images)
    return _sealed(source, traced, plain, session, _metadata(source, parity), parity)


def _with_probe(traced: Traced, probe: ChosenProbe) -> Traced:
    model = onnx.ModelProto()
    model.CopyFrom(traced.model)
    attach_probe(model, probe)
    return replace(traced, model=model, probe=probe)


def _measure(source: _Source, session: onnxruntime.InferenceSession, limits: Limits) -> Parity:
    return gate.measure(
        source.features,
        lambda images: session.run(source.outputs, {INPUT: images}),
        source.label,
        source.samples,
        source.probabilities,
        limits,
    )


def _sealed(
    source: _Source,
    traced: Traced,
    plain: bytes,
    session: onnxruntime.InferenceSession,
    metadata: ModelMetadata,
    parity: Parity,
) -> _Built:
    images = source.samples.images[: BATCHES[2]]
    expected = session.run(source.outputs, {INPUT: images})
    return _Built(traced, with_metadata(plain, metadata), metadata, parity, images, expected, session)


def _publish(room: Path, target: Path, built: _Built, source: _Source, begin: float, **more: Any) -> ExportResult:
    """Writes the file under a temporary name, reads it back, and then renames it."""
    temporary, sha256 = room / target.name, hashlib.sha256(built.data).hexdigest()
    with disk_errors(target):
        write(temporary, built.data)
        write_beside(temporary, ModelFile(target, built.data, sha256, built.metadata))
    _check_read_back(temporary, built)
    with disk_errors(target):
        rename(temporary, target)
    seconds = time.perf_counter() - begin
    size, opset, directory = len(built.data), opset_of(built.data), source.run.directory
    return ExportResult(target, sha256, size, built.parity, built.metadata, opset, directory, seconds, **more)


def _publish_variant(
    room: Path, target: Path, fp32: _Built, source: _Source, precision: str, begin: float
) -> ExportResult:
    """Writes the smaller file beside the fp32 file, if it passes its gates."""
    model = _int8(source, fp32) if precision == "int8" else halve(fp32.traced.model)
    traced, plain = replace(fp32.traced, model=model), serialised(model)
    session = _session(plain)
    parity = _measure(source, session, LIMITS[precision])
    gate.check(parity, traced, source.samples.images, LIMITS[precision])
    store = _compared(source)
    agreement = compare_files(fp32.session, session, store, fair_labeller(store, source.probe))
    check_agreement(agreement, precision)
    speed = None
    if precision == "int8":
        speed = measure_speed(fp32.session, session, source.samples.images)
        check_speed(speed, has_vnni())
    # Which probe labelled depends on what lies in the run; a file without one says nothing of it.
    figures = agreement.bounds() if source.in_graph else {}
    metadata = replace(fp32.metadata, precision=precision, parity=parity.bounds() | figures)
    built = _sealed(source, traced, plain, session, metadata, parity)
    return _publish(room, target, built, source, begin, agreement=agreement, speed=speed)


def _int8(source: _Source, fp32: _Built) -> onnx.ModelProto:
    assert source.images is not None  # `_Source.of` saw to it
    images = np.asarray(source.images.evenly(CALIBRATION_IMAGES).images)
    model = quantize(fp32.traced.model, images, reduce_range=not has_vnni())
    check_fused(fp32.traced.model, model)
    return model


def _compared(source: _Source) -> ImageStore:
    """The images on which the two files are compared: held out and labelled where the run has such images."""
    if source.images is None:
        return replace(ImageStore.from_arrays(source.samples.images), split=source.samples.source)
    count = compared_images(source.run.image_size)
    held_out = source.images.held_out(count, CALIBRATION_IMAGES)
    return held_out if held_out is not None else source.images.evenly(CALIBRATION_IMAGES)


def _metadata(source: _Source, parity: Parity) -> ModelMetadata:
    run, data = source.run, source.run.data
    probe = source.probe if source.in_graph else None
    return ModelMetadata(
        schema=SCHEMA,
        project_version=VERSION,
        architecture=run.recipe.model.arch,
        stem=run.recipe.model.stem,
        feature_dim=source.features.shape[1],
        image_size=run.image_size,
        mean=tuple(run.recipe.augment.mean),
        std=tuple(run.recipe.augment.std),
        interpolation=INTERPOLATION,
        class_names=probe.class_names if probe else tuple(data.get("class_names") or ()),
        data_fingerprint=str(data.get("fingerprint") or ""),
        recipe=run.recipe.name,
        recipe_hash=run.recipe.hash(),
        parity=parity.bounds(),
        precision="fp32",
        probe=probe.about() if probe else {},
        unfinished=run.unfinished,
        levels=run.recipe.data.levels,
    )


def _session(plain: bytes) -> onnxruntime.InferenceSession:
    """Opens the ONNX graph before it is sealed."""
    try:
        return open_session(plain)
    except Exception as error:  # onnxruntime raises a dozen kinds of its own, all below Exception
        raise_fault(error)
        raise CheckFailed(
            "onnxruntime cannot load the exported graph",
            saw=str(error).splitlines()[0],
            fix=f"--opset {OPSET}, or update onnxruntime",
        ) from error


def _check_read_back(path: Path, built: _Built) -> None:
    """Opens the written file as a user would and compares its outputs for a few images."""
    fix = "check the disk, then export again"
    features, *of_probe = built.expected
    try:
        encoder = OnnxEncoder(path)
        found = encoder.embed(built.images)
        probe: tuple[NDArray[Any], ...] = encoder.predict(built.images) if of_probe else ()
    except DataError as error:
        raise CheckFailed("the written file does not read back", saw=f"{error.cause}: {error.saw}", fix=fix) from error
    difference = gate.Difference.between(features, found)
    same = all(np.allclose(a, b, rtol=0, atol=FP32.probability) for a, b in zip(of_probe, probe, strict=True))
    if not (difference.holds() and same):
        raise CheckFailed("the written file does not give the measured features", saw=difference, fix=fix)
