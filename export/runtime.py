"""OnnxEncoder: runs `encoder.onnx` with numpy and onnxruntime. Imports neither torch nor onnx."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from simclr_engine.data.store import ImageStore
from simclr_engine.errors import DataError, PlatformError, UsageError

from .metadata import FETCH_AGAIN, ModelFile, ModelMetadata, read_model, require

CPU = "CPUExecutionProvider"
INPUT, OUTPUT = "images", "features"


def available_threads() -> int:
    """Processors this process may use: its affinity mask where the system has one (containers, taskset, SLURM)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def open_session(
    model: bytes, providers: Sequence[str] = (CPU,), threads: int | None = None
) -> onnxruntime.InferenceSession:
    """An onnxruntime session over the bytes of a model.

    Threads that wait are put to sleep, not spun: the encoder shares its processors with whatever feeds it.

    Raises:
        PlatformError: a provider that was asked for is not there or did not become active.
    """
    known = onnxruntime.get_available_providers()
    for provider in providers:
        if provider not in known:
            raise PlatformError(
                "onnxruntime has no such execution provider here",
                saw=provider,
                fix=f"choose from {', '.join(known)}, or install the onnxruntime build that has it",
            )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_threads() if threads is None else threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors: what matters of the warnings is checked below
    session = onnxruntime.InferenceSession(model, options, providers=list(providers))
    inactive = [p for p in providers if p not in session.get_providers()]
    if inactive:
        raise PlatformError(
            "an execution provider did not become active",
            saw=f"{', '.join(inactive)}; active: {', '.join(session.get_providers())}",
            fix="check its driver and libraries, or ask for the CPU",
        )
    return session


class OnnxEncoder:
    """The encoder in an ONNX file: uint8 images in, features out.

    Args:
        path: a file that `export_onnx` wrote; every check of `read_model` is made first.
        providers: onnxruntime execution providers, in order of preference; each must become active.
        threads: intra-op threads; None takes the processors of the affinity mask.

    Raises:
        DataError: the file is not usable.
        PlatformError: a provider is not available.
        UsageError: no provider, or fewer than one thread.

    Example:
        >>> encoder = OnnxEncoder("encoder.onnx")                  # doctest: +SKIP
        >>> encoder.embed(images_u8).shape                         # doctest: +SKIP
        (1000, 512)
    """

    def __init__(self, path: str | Path, providers: Sequence[str] = (CPU,), threads: int | None = None) -> None:
        if not providers:
            raise UsageError("at least one execution provider is needed", saw="()", fix=f'("{CPU}",)')
        if threads is not None and threads < 1:
            raise UsageError("threads must be at least 1", saw=threads, fix="leave it out to use all processors")
        file = read_model(path)
        self.path, self.sha256, self.metadata = file.path, file.sha256, file.metadata
        try:
            self._session = open_session(file.data, providers, threads)
        except (PlatformError, UsageError):
            raise
        except Exception as error:  # onnxruntime raises a dozen kinds of its own, all below Exception
            raise DataError(
                "onnxruntime cannot load the file",
                saw=f"{path}: {str(error).splitlines()[0]}",
                fix="update onnxruntime, or export again with a lower --opset",
            ) from error
        _check_graph(file, self._session)

    @property
    def image_size(self) -> int:
        """Side S of the images it takes, pixels."""
        return self.metadata.image_size

    @property
    def feature_dim(self) -> int:
        """Width D of the features."""
        return self.metadata.feature_dim

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the data it was trained on, in label order."""
        return self.metadata.class_names

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
            batch_size: images per call of onnxruntime; 32 to 64 is fastest, more takes memory only.
            advance: called with the number of images done after each batch, for a progress bar.

        Returns:
            float32 `[N, D]`.

        Raises:
            DataError: no images, or not of the type and shape above (the error names it).
            UsageError: batch size below 1.
        """
        pixels = images.images if isinstance(images, ImageStore) else images
        self._check_images(pixels)
        if batch_size < 1:
            raise UsageError("batch_size must be at least 1", saw=batch_size, fix="32 to 64 is fastest")
        total = len(pixels)
        features = np.empty((total, self.feature_dim), dtype=np.float32)
        for start in range(0, total, batch_size):
            batch = np.ascontiguousarray(pixels[start : start + batch_size])
            features[start : start + len(batch)] = self._session.run([OUTPUT], {INPUT: batch})[0]
            if advance is not None:
                advance(len(batch))
        return features

    def _check_images(self, images: object) -> None:
        side = self.image_size
        expected = f"expected uint8 [N, {side}, {side}, 3] (RGB, channels last, 0 to 255)"
        if not isinstance(images, np.ndarray):
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


def _check_graph(file: ModelFile, session: onnxruntime.InferenceSession) -> None:
    """The graph's own inputs and outputs against the metadata."""
    inputs = {i.name: (i.type, i.shape) for i in session.get_inputs()}
    outputs = {o.name: (o.type, o.shape) for o in session.get_outputs()}
    if (
        list(inputs) != [INPUT]
        or inputs[INPUT][0] != "tensor(uint8)"
        or len(inputs[INPUT][1]) != 4
        or OUTPUT not in outputs
    ):
        raise DataError(
            f"the ONNX file must take uint8 `{INPUT}` [batch, S, S, 3] and give `{OUTPUT}`",
            saw=f"{file.path}: {inputs} -> {outputs}",
            fix=FETCH_AGAIN,
        )
    metadata: ModelMetadata = file.metadata
    _, height, width, _ = inputs[INPUT][1]
    require(file.path, metadata, {"image_size": height, "feature_dim": outputs[OUTPUT][1][-1]})
    require(file.path, metadata, {"image_size": width})
