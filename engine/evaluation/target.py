"""What can be evaluated: the encoder of a run, its random counterpart, an exported file, or weights from elsewhere."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..data.cache import cache_root
from ..data.store import ImageStore
from ..errors import PlatformError, UsageError
from ..recipe import DEFAULT, Recipe, recipe_names
from ..run import Run, write_text_atomic
from .feature_cache import cached_features
from .progress import show_progress

if TYPE_CHECKING:
    from torch import nn

INITS = ("pretrained", "scratch")
WEIGHTS = (".safetensors", ".pt", ".pth", ".tar", ".ckpt", ".bin")  # .pth.tar is MoCo's
SCRATCH_SEED = 0

Features = Callable[[ImageStore], NDArray[np.float32]]
Build = Callable[[], "nn.Module"]
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class FileProbe:
    """The probe inside an exported file: `predict` gives probabilities `[N, C]` and labels int64 `[N]` of a store."""

    words: str
    predict: Callable[[ImageStore], tuple[NDArray[np.float32], NDArray[np.int64]]]


@dataclass(frozen=True)
class Encoder:
    """One encoder as the methods see it.

    Attributes:
        init: `pretrained` or `scratch`.
        words: how its features are made, for the protocol.
        start: what a method that trains starts from, for the protocol.
        sha256: of its weights and buffers, or of the file.
        features: images to frozen features float32 `[N, D]`, kept on disk.
        mean, std: of its normalisation.
        build: a fresh copy of the network; None for a file.
        probe: the probe inside a file, if there is one.
    """

    init: str
    words: str
    start: str
    sha256: str
    features: Features
    mean: Colour
    std: Colour
    build: Build | None
    probe: FileProbe | None = None


@dataclass(frozen=True)
class Target:
    """Something to evaluate.

    Attributes:
        path: the run directory, the .onnx file or the file of weights.
        image_size: side in pixels of the images it takes; None for any.
        pretrained_on: fingerprint of those images, "" if unknown.
        seconds: what the pretraining took; 0 if unknown.
        recipe: whose settings the methods that train take.
        run: the run; None for a file.
        inits: which encoders it has.
        encoder: the encoder of an init; the flag shows progress bars.
        notes: what a reader must know of every result.
    """

    path: Path
    image_size: int | None
    pretrained_on: str
    seconds: float
    recipe: Recipe
    run: Run | None
    inits: tuple[str, ...]
    encoder: Callable[[str, bool], Encoder]
    notes: tuple[str, ...] = ()


def open_target(target: str | Path | Run | Target) -> Target:
    """The run directory, .onnx file or file of weights at `target`; one that is open already stays as it is.

    Raises:
        UsageError: it is none of them.
        DataError: it cannot be read, or is not what its name says.
    """
    if isinstance(target, Target):
        return target
    if isinstance(target, Run) or Path(target).is_dir():
        return _open_run(target if isinstance(target, Run) else Run.open(target))
    path = Path(target)
    if path.is_file() and path.suffix.lower() == ".onnx":
        return _open_file(path)
    if path.is_file() and path.suffix.lower() in WEIGHTS:
        return _open_weights(path)
    raise UsageError(
        "this is neither a run, an .onnx file nor a file of weights"
        if path.exists()
        else "there is nothing to evaluate here",
        saw=path,
        fix=f"name a directory that `pretrain` wrote, a file that `export` wrote, or weights ({', '.join(WEIGHTS)})",
    )


def _open_run(run: Run) -> Target:
    recipe = run.recipe

    def encoder(init: str, progress: bool) -> Encoder:
        colours = recipe.augment.mean, recipe.augment.std
        if init == "scratch":
            return _scratch(recipe.model.arch, recipe.model.stem, *colours, progress)
        return _torch_encoder(init, _hash_of_run(run), run.encoder, *colours, "the trained encoder", progress)

    return Target(
        path=run.directory,
        image_size=run.image_size,
        pretrained_on=str(run.data.get("fingerprint") or ""),
        seconds=float(run.environment.get("seconds") or 0.0),
        recipe=recipe,
        run=run,
        inits=INITS,
        encoder=encoder,
    )


def _open_file(path: Path) -> Target:
    from simclr_engine.export.evaluator import difference_to_pytorch, onnx_features, probe_predictions
    from simclr_engine.export.runtime import OnnxEncoder

    onnx = OnnxEncoder(path)
    about = onnx.metadata
    mean, std = (about.mean[0], about.mean[1], about.mean[2]), (about.std[0], about.std[1], about.std[2])

    def encoder(init: str, progress: bool) -> Encoder:
        def features(store: ImageStore) -> NDArray[np.float32]:
            with show_progress(f"features ({path.name}, {store.split})", len(store), progress) as advance:
                return onnx_features(path, store, advance=advance)

        def predict(store: ImageStore) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
            with show_progress(f"classes ({path.name}, {store.split})", len(store), progress) as advance:
                return probe_predictions(path, store, advance=advance)

        probe = None
        if onnx.has_probe:
            fitted = f"{about.probe.get('train_images', 0):,} images of {Path(str(about.probe.get('data'))).name}"
            probe = FileProbe(f"the probe inside the file (fitted at its export's run on {fitted})", predict)
        words = f"{about.precision}, eval BN, features by onnxruntime"
        return Encoder(init, words, "the exported encoder", onnx.sha256, features, mean, std, None, probe)

    return Target(
        path=path,
        image_size=onnx.image_size,
        pretrained_on=about.data_fingerprint,
        seconds=0.0,
        recipe=Recipe.load(about.recipe if about.recipe in recipe_names() else DEFAULT),
        run=None,
        inits=INITS[:1],
        encoder=encoder,
        notes=(difference_to_pytorch(about),),
    )


def _torch_encoder(
    init: str, sha256: str, build: Build, mean: Colour, std: Colour, start: str, progress: bool, words: str = ""
) -> Encoder:
    """An encoder that torch runs, when its features are not on disk."""
    held: dict[str, NDArray[np.float32]] = {}  # of this evaluation, by fingerprint

    def compute(store: ImageStore) -> NDArray[np.float32]:
        from .features import default_device, extract_features

        with show_progress(f"features ({init}, {store.split})", len(store), progress) as advance:
            return extract_features(build(), store.images, mean, std, device=default_device(), advance=advance)

    def features(store: ImageStore) -> NDArray[np.float32]:
        if store.fingerprint not in held:
            key = f"torch {sha256}, mean {mean}, std {std}, fp32, eval"
            held[store.fingerprint] = cached_features(key, store, compute)
        return held[store.fingerprint]

    return Encoder(init, f"fp32, eval BN{words}", start, sha256, features, mean, std, build)


def _scratch(arch: str, stem: str, mean: Colour, std: Colour, progress: bool) -> Encoder:
    """The random counterpart. Its hash is kept on disk: building it only to know it takes seconds of `import torch`."""

    def build() -> nn.Module:
        from .features import scratch_encoder

        return scratch_encoder(arch, stem, SCRATCH_SEED)

    drawn_by = f"{arch}-{stem}-{SCRATCH_SEED}-torch-{version('torch')}-{platform.machine()}"
    path = cache_root() / "features" / f"scratch-{drawn_by}.sha256"
    try:
        sha256 = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        sha256 = ""
    if len(sha256) != 64:
        from .features import encoder_hash

        sha256 = encoder_hash(build())
        _keep(path, sha256)
    return _random(build, sha256, mean, std, progress)


def _random(build: Build, sha256: str, mean: Colour, std: Colour, progress: bool) -> Encoder:
    words = f" at its initial statistics, random encoder of seed {SCRATCH_SEED}"
    start = f"the random encoder of seed {SCRATCH_SEED}"
    return _torch_encoder("scratch", sha256, build, mean, std, start, progress, words)


def _keep(path: Path, text: str) -> None:
    """A cache that cannot be written costs time, never the evaluation."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(path, text + "\n")
    except (OSError, PlatformError):
        pass


def _hash_of_run(run: Run) -> str:
    """`encoder_hash` of the run's encoder, from its file and without torch; of a run that was stopped, with it."""
    path = run.directory / "encoder.safetensors"
    if not path.exists():
        from .features import encoder_hash

        return encoder_hash(run.encoder())
    from safetensors import SafetensorError, safe_open

    digest = hashlib.sha256()
    try:
        with safe_open(path, framework="np") as file:
            for name in sorted(file.keys()):
                values = file.get_tensor(name)
                digest.update(f"{name} torch.{values.dtype} {list(values.shape)}".encode())
                digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    except (OSError, SafetensorError):
        from .features import encoder_hash

        return encoder_hash(run.encoder())  # says what is wrong with the file
    return digest.hexdigest()


def _open_weights(path: Path) -> Target:
    from ..foreign import load_foreign
    from .features import encoder_hash, scratch_encoder

    found = load_foreign(path)
    sha256 = encoder_hash(found.encoder)

    def encoder(init: str, progress: bool) -> Encoder:
        from copy import deepcopy

        if init == "scratch":
            # Its hash is not worth keeping: torch is here already.
            def build() -> nn.Module:
                return found.adapt(scratch_encoder(found.arch, found.stem, SCRATCH_SEED))

            return _random(build, encoder_hash(build()), found.mean, found.std, progress)
        words, start = f", {found.sentence()}", f"the encoder of {path.name}"
        return _torch_encoder(
            init, sha256, lambda: deepcopy(found.encoder), found.mean, found.std, start, progress, words
        )

    return Target(
        path=path,
        image_size=found.image_size,
        pretrained_on="",
        seconds=0.0,
        recipe=Recipe.load(DEFAULT),
        run=None,
        inits=INITS,
        encoder=encoder,
        notes=found.notes(),
    )
