"""OnnxEncoder: runs `encoder.onnx` with numpy and onnxruntime. Imports neither torch nor onnx."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from simclr_engine.boundary import raise_fault
from simclr_engine.data.levels import Levels, as_levels
from simclr_engine.data.store import ImageStore, Pixels, ShardedImages
from simclr_engine.errors import DataError, PlatformError, UsageError

from .metadata import FETCH_AGAIN, ModelFile, ModelMetadata, read_model, require, unneeded
from .shapes import RefusedError

CPU = "CPUExecutionProvider"
INPUT, OUTPUT = "images", "features"
PROBABILITIES, LABEL = "probabilities", "label"  # of a file that was exported with its probe

PROVIDERS = {
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
# Providers whose tensors live in a memory of their own, and what onnxruntime calls that memory.
DEVICES = {"CUDAExecutionProvider": "cuda"}
# TF32 keeps 10 bits of a product's mantissa: the features would miss the parity that the file states.
OPTIONS = {"CUDAExecutionProvider": {"use_tf32": "0"}}


def available_threads() -> int:
    """Processors this process may use: its affinity mask where the system has one (containers, taskset, SLURM)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def provider_name(name: str) -> str:
    """onnxruntime's name of an execution provider: `cuda`, `CUDA` and `CUDAExecutionProvider` are the same."""
    return PROVIDERS.get(name.lower().removesuffix("executionprovider"), name)


def open_session(
    model: bytes, providers: str | Sequence[str] = (CPU,), threads: int | None = None, spin: bool = False
) -> onnxruntime.InferenceSession:
    """An onnxruntime session over the bytes of a model.

    Args:
        model: the file.
        providers: one name or several in order of preference, as `provider_name` takes them.
        threads: intra-op threads; None takes the processors of the affinity mask.
        spin: threads that wait keep their processor instead of sleeping: a single image takes an eighth less time on
            two cores, but the processors are not free for whatever else the process does.

    Raises:
        PlatformError: a provider that was asked for is not there or did not become active.
    """
    wanted = [provider_name(p) for p in ([providers] if isinstance(providers, str) else providers)]
    known = onnxruntime.get_available_providers()
    for provider in wanted:
        if provider not in known:
            raise PlatformError(
                "onnxruntime has no such execution provider here",
                saw=provider,
                fix=f"choose from {', '.join(known)}, or install the onnxruntime build that has it",
            )
    if PROVIDERS["cuda"] in wanted:
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it cannot load
            onnxruntime.preload_dlls()  # CUDA's libraries as pip installs them lie where no loader looks
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_threads() if threads is None else threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    options.log_severity_level = 4  # its errors are raised too, and the log would write names from the file as they are
    session = onnxruntime.InferenceSession(
        model, options, providers=wanted, provider_options=[OPTIONS.get(p, {}) for p in wanted]
    )
    inactive = [p for p in wanted if p not in session.get_providers()]
    if inactive:
        raise PlatformError(
            "an execution provider did not become active",
            saw=f"{', '.join(inactive)}; active: {', '.join(session.get_providers())}",
            fix="check its driver and libraries, or ask for the CPU",
        )
    return session


def batches(images: Pixels) -> Iterator[NDArray[np.uint8]]:
    """The images in their order, 64 at a time where they have 32 px, fewer of larger ones."""
    length = max(1, min(64, 64 * 32**2 // images.shape[1] ** 2))
    for start in range(0, len(images), length):
        yield np.ascontiguousarray(images[start : start + length])


class NotFiniteError(DataError):
    """What an encoder gives for an image is NaN or infinite.

    Attributes:
        file: the encoder's.
        row: of the image, among those that were given.
    """

    def __init__(self, file: Path, row: int, image: str = "") -> None:
        self.file, self.row = file, row
        super().__init__(
            "what the encoder gives is not finite: NaN or infinity",
            saw=f"{file}, for {image or f'image {row:,}, counted from 0'}",
            fix="train or export the encoder again",
        )


def require_finite(values: NDArray[Any], file: Path, first: int = 0) -> None:
    """Refuses an output `[N, …]` of the encoder in `file` with NaN or infinity; `first` is the row of its first image.

    Raises:
        NotFiniteError: names the first image.
    """
    broken = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
    if len(broken):
        raise NotFiniteError(file, first + int(broken[0]))


Run = Callable[[Sequence[str], NDArray[np.uint8]], list[np.ndarray]]


def runner(session: onnxruntime.InferenceSession) -> Run:
    """A function from output names and a batch to those outputs, good until it is called again: bound to the device of
    the first active provider where that has a memory of its own, else plain."""
    device = DEVICES.get(session.get_providers()[0])
    return _plain(session) if device is None else _bound(session, device)


def _plain(session: onnxruntime.InferenceSession) -> Run:
    def run(names: Sequence[str], batch: NDArray[np.uint8]) -> list[np.ndarray]:
        return list(session.run(list(names), {INPUT: batch}))

    return run


def _bound(session: onnxruntime.InferenceSession, device: str) -> Run:
    """Input and outputs in the device's memory, the input allocated once per batch size; each is copied once a batch.

    https://onnxruntime.ai/docs/api/python/api_summary.html#data-on-device
    """
    ready: dict[tuple[str, ...], tuple[onnxruntime.IOBinding, onnxruntime.OrtValue]] = {}

    def run(names: Sequence[str], batch: NDArray[np.uint8]) -> list[np.ndarray]:
        key = tuple(names)
        if key not in ready or ready[key][1].shape() != list(batch.shape):
            binding = session.io_binding()
            images = onnxruntime.OrtValue.ortvalue_from_shape_and_type(batch.shape, np.uint8, device, 0)
            binding.bind_ortvalue_input(INPUT, images)
            for name in names:
                binding.bind_output(name, device, 0)
            ready[key] = binding, images
        binding, images = ready[key]
        images.update_inplace(batch)
        binding.synchronize_inputs()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return list(binding.copy_outputs_to_cpu())

    return run


class OnnxEncoder:
    """The encoder in an ONNX file: uint8 images in, features out.

    Args:
        path: a file that `export_onnx` wrote; every check of `read_model` is made first.
        providers: onnxruntime execution providers, in order of preference; each must become active. `"cpu"`,
            `"cuda"`, `"coreml"`, `"openvino"`, or onnxruntime's own names.
        threads: intra-op threads; None takes the processors of the affinity mask.
        spin: threads that wait keep their processor: for a process that does nothing else, as `predict`.
        sha256: that the file must have, 64 hexadecimal digits; None for any. The digest in the file itself finds
            accidents, not forgery.

    Raises:
        DataError: the file is not usable, or not of `sha256`.
        PlatformError: a provider is not available.
        UsageError: no provider, or fewer than one thread.

    Example:
        >>> encoder = OnnxEncoder("encoder.onnx")                  # doctest: +SKIP
        >>> encoder.embed(images_u8).shape                         # doctest: +SKIP
        (1000, 512)
    """

    def __init__(
        self,
        path: str | Path,
        providers: str | Sequence[str] = (CPU,),
        threads: int | None = None,
        spin: bool = False,
        sha256: str | None = None,
    ) -> None:
        if not providers:
            raise UsageError("at least one execution provider is needed", saw="()", fix=f'("{CPU}",)')
        if threads is not None and threads < 1:
            raise UsageError("threads must be at least 1", saw=threads, fix="leave it out to use all processors")
        file = read_model(path, sha256)
        self.path, self.sha256, self.metadata = file.path, file.sha256, file.metadata
        self._opened_with = providers, threads, spin
        self._graph = file.graph
        try:
            self._session = open_session(file.data, providers, threads, spin)
        except (PlatformError, UsageError):
            raise
        except Exception as error:  # onnxruntime raises a dozen kinds of its own, all below Exception
            raise_fault(error)
            raise DataError(
                "onnxruntime cannot load the file",
                saw=f"{path}: {str(error).splitlines()[0]}",
                fix="update onnxruntime, or export again with a lower --opset",
            ) from error
        _check_graph(file, self._session)
        self._run = runner(self._session)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its path and options: the process that unpickles it opens the file again."""
        return _reopened, (self.path.absolute(), self.sha256, *self._opened_with)

    @property
    def image_size(self) -> int:
        """Side S of the images it takes, pixels."""
        return self.metadata.image_size

    @property
    def levels(self) -> Levels:
        """The values of 16-bit gray images that become 0 and 255."""
        return as_levels(self.metadata.levels)

    @property
    def feature_dim(self) -> int:
        """Width D of the features."""
        return self.metadata.feature_dim

    @property
    def class_names(self) -> tuple[str, ...]:
        """In label order: of the probe where the file holds one, else of the data that the encoder was trained on."""
        return self.metadata.class_names

    @property
    def has_probe(self) -> bool:
        """Whether the file gives probabilities and labels too."""
        return bool(self.metadata.probe)

    @property
    def providers(self) -> tuple[str, ...]:
        """The active execution providers."""
        return tuple(self._session.get_providers())

    def embed(
        self,
        images: NDArray[np.uint8] | ImageStore,
        batch_size: int = 64,
        advance: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]:
        """Features of images, computed batch by batch, so that a memory-mapped store is never read whole.

        Args:
            images: uint8 `[N, S, S, 3]`, RGB, as decoded from a file; or an `ImageStore` of them.
            batch_size: images per call of onnxruntime, fewer where they would take too much memory; 32 to 64 is
                fastest.
            advance: called with the number of images done after each batch, for a progress bar.

        Returns:
            float32 `[N, D]`.

        Raises:
            DataError: no images, or not of the type and shape above (the error names it); NaN or infinity in the
                result (the error names file and image).
            UsageError: batch size below 1.
        """
        return self._all([OUTPUT], images, batch_size, advance)[0]

    def embed_batches(
        self, batches: Iterable[NDArray[np.uint8]], batch_size: int = 64
    ) -> Iterator[NDArray[np.float32]]:
        """Features of batch after batch, each computed when it is asked for: nothing is kept.

        Args:
            batches: uint8 `[n, S, S, 3]` each, of any n above 0; one that decodes files as it goes streams a folder.
            batch_size: images per call of onnxruntime.

        Yields:
            float32 `[n, D]` for each batch, in order.

        Raises:
            DataError, UsageError: as `embed`, when the batch is reached.
        """
        for batch in batches:
            yield self.embed(batch, batch_size)

    def predict(
        self,
        images: NDArray[np.uint8] | ImageStore,
        batch_size: int = 64,
        advance: Callable[[int], None] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Classes of images by the probe in the file.

        Args:
            images, batch_size, advance: as `embed` takes them.

        Returns:
            probabilities float32 `[N, C]` in the order of `class_names`, labels int64 `[N]` (the most probable class).

        Raises:
            UsageError: the file was exported without a probe, or batch size below 1.
            DataError: no images, or not of the type and shape.
        """
        if not self.has_probe:
            raise UsageError(
                "this file gives features only: it was exported without a probe",
                saw=self.path,
                fix="export it with one: simclr-engine export FILE.onnx --run RUN --probe",
            )
        probabilities, labels = self._all([PROBABILITIES, LABEL], images, batch_size, advance)
        return probabilities, labels

    def _all(
        self,
        names: Sequence[str],
        images: NDArray[np.uint8] | ImageStore,
        batch_size: int,
        advance: Callable[[int], None] | None,
    ) -> list[Any]:
        """The named outputs for all images, batch by batch."""
        pixels = images.images if isinstance(images, ImageStore) else images
        self._check_images(pixels)
        if batch_size < 1:
            raise UsageError("batch_size must be at least 1", saw=batch_size, fix="32 to 64 is fastest")
        wide = {OUTPUT: (self.feature_dim,), PROBABILITIES: (len(self.class_names),), LABEL: ()}
        total = len(pixels)
        found = [np.empty((total, *wide[n]), dtype=np.int64 if n == LABEL else np.float32) for n in names]
        start = 0
        while start < total:
            length = self._fitting(min(batch_size, total - start))
            batch = np.ascontiguousarray(pixels[start : start + length])
            for whole, part in zip(found, self._outputs(names, batch), strict=True):
                require_finite(part, self.path, start)
                whole[start : start + length] = part
            start += length
            if advance is not None:
                advance(length)
        return found

    def _fitting(self, images: int) -> int:
        """How many of so many images one run takes."""
        try:
            return self._graph.fitting(images)
        except RefusedError as error:
            raise unneeded(self.path, error) from error

    def _outputs(self, names: Sequence[str], batch: NDArray[np.uint8]) -> list[np.ndarray]:
        try:
            return self._run(names, batch)
        except Exception as error:  # onnxruntime raises a dozen kinds of its own, all below Exception
            raise_fault(error)
            saw = f"{self.path}: {str(error).splitlines()[0]}"
            raise DataError("onnxruntime cannot run the file", saw=saw, fix=FETCH_AGAIN) from error

    def _check_images(self, images: object) -> None:
        side = self.image_size
        expected = f"expected uint8 [N, {side}, {side}, 3] (RGB, channels last, 0 to 255)"
        if not isinstance(images, np.ndarray | ShardedImages):
            raise DataError(
                f"images must be a numpy array: {expected}", saw=type(images).__name__, fix="np.asarray(images)"
            )
        saw = f"{images.dtype} {list(images.shape)}"
        if images.dtype != np.uint8:
            fix = "pass the pixels as decoded; scaling and normalisation are inside the graph"
        elif images.ndim == 3 and images.shape[-1] == 3:
            fix = "a single image needs a batch axis: images[None]"
        elif images.ndim == 4 and images.shape[1] == 3 and images.shape[-1] != 3:
            fix = "channels come last: images.transpose(0, 2, 3, 1)"
        elif images.ndim != 4 or images.shape[-1] != 3:
            fix = "convert to 8-bit RGB, channels last"
        elif images.shape[1:3] != (side, side):
            fix = f"resize the images to {side}×{side} ({self.metadata.interpolation})"
        elif len(images) == 0:
            fix = "pass at least one image"
        else:
            return
        raise DataError(f"images do not fit this encoder: {expected}", saw=saw, fix=fix)


def _reopened(path: Path, sha256: str, *options: Any) -> OnnxEncoder:
    """The encoder that was pickled.

    Raises:
        DataError: the file at its path is another one now.
    """
    encoder = OnnxEncoder(path, *options)
    if encoder.sha256 != sha256:
        raise DataError(
            "the file is not the one that the encoder was opened from",
            saw=f"{path}: sha256 {encoder.sha256[:16]}…, it was {sha256[:16]}…",
            fix="open it again: OnnxEncoder(path)",
        )
    return encoder


def _check_graph(file: ModelFile, session: onnxruntime.InferenceSession) -> None:
    """The graph's own inputs and outputs against the metadata."""
    try:
        inputs = {i.name: (i.type, i.shape) for i in session.get_inputs()}
        outputs = {o.name: (o.type, o.shape) for o in session.get_outputs()}
    except UnicodeDecodeError as error:
        raise DataError("the ONNX file holds a name that is not UTF-8", saw=file.path, fix=FETCH_AGAIN) from error
    if (
        list(inputs) != [INPUT]
        or inputs[INPUT][0] != "tensor(uint8)"
        or len(inputs[INPUT][1]) != 4
        or len(outputs.get(OUTPUT, ("", ()))[1]) != 2
    ):
        raise DataError(
            f"the ONNX file must take uint8 `{INPUT}` [batch, S, S, 3] and give `{OUTPUT}` [batch, D]",
            saw=f"{file.path}: {inputs} -> {outputs}",
            fix=FETCH_AGAIN,
        )
    metadata: ModelMetadata = file.metadata
    _, height, width, _ = inputs[INPUT][1]
    require(file.path, metadata, {"image_size": height, "feature_dim": outputs[OUTPUT][1][-1]})
    require(file.path, metadata, {"image_size": width})
    if metadata.probe:
        _check_probe(file, outputs)


def _check_probe(file: ModelFile, outputs: dict[str, tuple[str, list[int | str]]]) -> None:
    """The outputs of the probe that the metadata speaks of."""
    kinds = {name: outputs.get(name, ("absent", [])) for name in (PROBABILITIES, LABEL)}
    classes = len(file.metadata.class_names)
    if (
        kinds[PROBABILITIES][0] != "tensor(float)"
        or kinds[PROBABILITIES][1][1:] != [classes]
        or kinds[LABEL][0] != "tensor(int64)"
        or len(kinds[LABEL][1]) != 1
    ):
        raise DataError(
            f"a file with a probe must give float `{PROBABILITIES}` [batch, {classes}] and int64 `{LABEL}` [batch]",
            saw=f"{file.path}: {kinds}",
            fix=FETCH_AGAIN,
        )
