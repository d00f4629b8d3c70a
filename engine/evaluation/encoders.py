"""What can be evaluated: the encoder of a run, its random counterpart, an exported file, or weights from elsewhere."""

from __future__ import annotations

import hashlib
import platform
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..data.cache import cache_root, cached_features
from ..data.levels import FULL_LEVELS, Levels
from ..data.store import ImageStore
from ..errors import PlatformError, UsageError
from ..files import Folder, check_regular
from ..progress import Advance, progress_bar
from ..run import Run, unfinished_notes
from ..stem import Stem
from .splits import SEED

if TYPE_CHECKING:
    from torch import nn

    from simclr_engine.export.runtime import OnnxEncoder

    from ..recipe import Recipe
    from ..weights import ForeignEncoder

INITS = ("pretrained", "scratch")
WEIGHTS = (".safetensors", ".pt", ".pth", ".tar", ".ckpt", ".bin", ".torch")  # .pth.tar is MoCo's, .torch VISSL's

Colour = tuple[float, float, float]


class Encoder(ABC):
    """One encoder as the methods see it: frozen features of images, and a copy to train.

    Attributes:
        init: `pretrained` or `scratch`.
        words: how its features are made, for the protocol.
        start: what a method that trains starts from, for the protocol.
        mean, std: of its normalisation.
        trainable: whether `build` gives a network.
        probe: how the probe inside the encoder came about, for the protocol; "" where there is none.
        device: that torch computes features on, as `choose_platform` takes it.
    """

    trainable = True
    device = "auto"
    probe = ""

    def __init__(self, init: str, words: str, start: str, mean: Colour, std: Colour) -> None:
        self.init, self.words, self.start, self.mean, self.std = init, words, start, mean, std
        self._features: dict[str, NDArray[np.float32]] = {}  # by fingerprint

    @property
    @abstractmethod
    def sha256(self) -> str:
        """Of its weights and buffers, or of the file; 64 hex digits."""

    @abstractmethod
    def build(self) -> nn.Module:
        """A copy of the network that the caller may train. Raises UsageError where there is none (an exported file)."""

    @abstractmethod
    def _compute(self, store: ImageStore, advance: Advance | None) -> NDArray[np.float32]:
        """What `features` gives where it is not held; `advance` takes the number of images just done."""

    def features(self, store: ImageStore, progress: bool = False) -> NDArray[np.float32]:
        """Frozen features float32 `[N, D]` of all images, kept on disk and in memory; `progress` shows a bar."""
        if store.fingerprint not in self._features:
            with progress_bar(
                f"features ({self.name}, {store.split})", len(store), show=progress, lines=True
            ) as advance:
                self._features[store.fingerprint] = self._compute(store, advance)
        return self._features[store.fingerprint]

    @property
    def name(self) -> str:
        """For a progress bar."""
        return self.init

    def predict(self, store: ImageStore, progress: bool = False) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Probabilities float32 `[N, C]` and labels int64 `[N]` by the probe inside the encoder.

        Raises:
            UsageError: there is none.
        """
        raise UsageError(
            "there is no probe inside this encoder",
            saw="--method probe",
            fix="name a file that was exported with --probe, or take --method linear",
        )


class TorchEncoder(Encoder):
    """An encoder that torch runs, where its features are not on disk.

    Attributes:
        stem: its stem, which its weights do not tell.
    """

    stem: str

    def _compute(self, store: ImageStore, advance: Advance | None) -> NDArray[np.float32]:
        def extract(images: ImageStore) -> NDArray[np.float32]:
            from ..device import choose_platform
            from .features import extract_features

            device = str(choose_platform(self.device, precision="fp32").device)
            return extract_features(self.build(), images.images, self.mean, self.std, device=device, advance=advance)

        variant = "" if Stem.of(self.stem).is_usual else f", stem {self.stem}"
        how = f"torch {self.sha256}, mean {self.mean}, std {self.std}, fp32, eval{variant}"
        return cached_features(how, store, extract)


class RunEncoder(TorchEncoder):
    """The trained encoder of a run."""

    def __init__(self, run: Run, own: nn.Module | None = None) -> None:
        spec = run.recipe.augment
        super().__init__("pretrained", "fp32, eval BN", "the trained encoder", spec.mean, spec.std)
        self._run, self._own, self.stem = run, own, run.recipe.model.stem

    @cached_property
    def sha256(self) -> str:
        """From the run's file, without torch. With it, where there is none yet, or to say what is wrong with it."""
        return _hash_of_file(self._run.directory / "encoder.safetensors") or _hash_of(self.build())

    def build(self) -> nn.Module:
        return self._run.encoder(self._own)


class ScratchEncoder(TorchEncoder):
    """The same network with random weights, drawn from a fixed seed."""

    def __init__(self, arch: str, stem: str, mean: Colour, std: Colour) -> None:
        words = f"fp32, eval BN at its initial statistics, random encoder of seed {SEED}"
        super().__init__("scratch", words, f"the random encoder of seed {SEED}", mean, std)
        self._arch, self.stem = arch, stem

    @cached_property
    def sha256(self) -> str:
        """Kept on disk: building the network only to know it takes seconds of `import torch`."""
        drawn_by = f"{self._arch}-{self.stem}-{SEED}-torch-{version('torch')}-{platform.machine()}"
        path = cache_root() / "features" / f"scratch-{drawn_by}.sha256"
        try:
            sha256 = path.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError):
            sha256 = ""
        if len(sha256) != 64:
            sha256 = _hash_of(self.build())
            _keep(path, sha256)
        return sha256

    def build(self) -> nn.Module:
        from .features import scratch_encoder

        return scratch_encoder(self._arch, self.stem, SEED)


class OwnScratchEncoder(TorchEncoder):
    """A caller's own encoder as it was before the pretraining."""

    def __init__(self, own: nn.Module, mean: Colour, std: Colour) -> None:
        words = "fp32, eval BN, the encoder as it was passed"
        super().__init__("scratch", words, "the encoder as it was passed", mean, std)
        self._own = own

    @cached_property
    def sha256(self) -> str:
        return _hash_of(self._own)

    def build(self) -> nn.Module:
        return deepcopy(self._own).to("cpu").eval()


class WeightsEncoder(TorchEncoder):
    """The encoder in a file of weights from elsewhere."""

    def __init__(self, found: ForeignEncoder, name: str) -> None:
        words = f"fp32, eval BN, {found.sentence()}"
        super().__init__("pretrained", words, f"the encoder of {name}", found.mean, found.std)
        self._found, self.stem = found, found.stem

    @cached_property
    def sha256(self) -> str:
        return _hash_of(self._found.encoder)

    def build(self) -> nn.Module:
        return deepcopy(self._found.encoder)


class WeightsScratchEncoder(ScratchEncoder):
    """The random counterpart of weights from elsewhere. Its hash is not kept on disk: torch is here already."""

    def __init__(self, found: ForeignEncoder) -> None:
        super().__init__(found.arch, found.stem, found.mean, found.std)
        self._found = found

    @cached_property
    def sha256(self) -> str:
        return _hash_of(self.build())

    def build(self) -> nn.Module:
        return self._found.adapt(super().build())


class FileEncoder(Encoder):
    """An exported file, run by onnxruntime; imports no torch."""

    trainable = False

    def __init__(self, onnx: OnnxEncoder, path: Path) -> None:
        about = onnx.metadata
        mean, std = (about.mean[0], about.mean[1], about.mean[2]), (about.std[0], about.std[1], about.std[2])
        words = f"{about.precision}, eval BN, features by onnxruntime"
        super().__init__("pretrained", words, "the exported encoder", mean, std)
        self._onnx, self._path = onnx, path
        if onnx.has_probe:
            fitted = f"{about.probe.get('train_images', 0):,} images of {Path(str(about.probe.get('data'))).name}"
            self.probe = f"the probe inside the file (fitted at its export's run on {fitted})"

    @property
    def sha256(self) -> str:
        return self._onnx.sha256

    @property
    def name(self) -> str:
        return self._path.name

    def build(self) -> nn.Module:
        raise UsageError(
            "this method trains the network, and an exported file cannot be trained",
            saw=self.name,
            fix="evaluate the run it came from, or take linear, knn or head",
        )

    def _compute(self, store: ImageStore, advance: Advance | None) -> NDArray[np.float32]:
        from simclr_engine.export.features import onnx_features

        return onnx_features(self._path, store, advance=advance)

    def predict(self, store: ImageStore, progress: bool = False) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        if not self.probe:
            return super().predict(store, progress)
        from simclr_engine.export.features import probe_predictions

        with progress_bar(f"classes ({self.name}, {store.split})", len(store), show=progress, lines=True) as advance:
            return probe_predictions(self._path, store, advance=advance)


@dataclass(frozen=True, eq=False)
class Target:
    """Something to evaluate: its encoders, and what is known of their pretraining.

    Attributes:
        path: the run directory, the .onnx file or the file of weights.
        image_size: side in pixels of the images it takes; None for any.
        levels: the values of 16-bit gray images that become 0 and 255.
        recipe: opens the one whose settings the methods that train take; a file is evaluated without it.
        encoders: by init.
        pretrained_on: fingerprint of those images, "" if unknown.
        seconds: what the pretraining took; 0 if unknown.
        run: the run; None for a file.
        notes: what a reader must know of every result.
    """

    path: Path
    image_size: int | None
    recipe: Callable[[], Recipe]
    encoders: Mapping[str, Encoder]
    pretrained_on: str = ""
    levels: Levels = FULL_LEVELS
    seconds: float = 0.0
    run: Run | None = None
    notes: tuple[str, ...] = ()


def open_target(
    target: str | Path | Run | Target,
    encoder: nn.Module | None = None,
    *,
    stem_padding: int | None = None,
    stem_pool: str | None = None,
) -> Target:
    """The run directory, .onnx file or file of weights at `target`; one that is open already stays as it is.

    `encoder` is the caller's own, with the weights that it was passed to `pretrain` with, of a run that trained it:
    `evaluate(open_target("runs/mine", encoder))`. `stem_padding` and `stem_pool` say of weights what their file does
    not (see `load_foreign`).

    Raises:
        UsageError: it is none of them, or the stem of something else than weights is given.
        DataError: it cannot be read, or is not what its name says.
    """
    if isinstance(target, Target):
        return target
    path = target.directory if isinstance(target, Run) else Path(target)
    onnx = path.is_file() and path.suffix.lower() == ".onnx"
    if (onnx or isinstance(target, Run) or path.is_dir()) and (stem_padding is not None or stem_pool is not None):
        raise UsageError(
            "--stem-padding and --stem-pool are for weights from elsewhere; a run and an exported file know their stem",
            saw=path,
            fix="leave them out",
        )
    if isinstance(target, Run) or path.is_dir():
        return _open_run(target if isinstance(target, Run) else Run.open(target), encoder)
    if onnx:
        return _open_file(path)
    if path.is_file() and (path.suffix.lower() in WEIGHTS or _holds_weights(path)):
        return _open_weights(path, stem_padding, stem_pool)
    raise UsageError(
        "this is neither a run, an .onnx file nor a file of weights"
        if path.exists()
        else "there is nothing to evaluate here",
        saw=path,
        fix=f"name a directory that `pretrain` wrote, a file that `export` wrote, or weights ({', '.join(WEIGHTS)})",
    )


def _recipe(name: str) -> Recipe:
    """The recipe that a file names, or the default for one that is not known."""
    from ..recipe import DEFAULT, Recipe, recipe_names

    return Recipe.load(name if name in recipe_names() else DEFAULT)


def _open_run(run: Run, own: nn.Module | None) -> Target:
    model, colours = run.recipe.model, run.recipe.augment
    return Target(
        path=run.directory,
        image_size=run.image_size,
        recipe=lambda: run.recipe,
        encoders={
            "pretrained": RunEncoder(run, own),
            "scratch": ScratchEncoder(model.arch, model.stem, colours.mean, colours.std)
            if own is None
            else OwnScratchEncoder(own, colours.mean, colours.std),
        },
        pretrained_on=str(run.data.get("fingerprint") or ""),
        levels=run.levels,
        seconds=float(run.environment.get("seconds") or 0.0),
        run=run,
        notes=unfinished_notes(run.unfinished),
    )


def _open_file(path: Path) -> Target:
    from simclr_engine.export.features import difference_to_pytorch
    from simclr_engine.export.runtime import OnnxEncoder

    onnx = OnnxEncoder(path)
    about = onnx.metadata
    return Target(
        path=path,
        image_size=onnx.image_size,
        recipe=lambda: _recipe(about.recipe),
        encoders={"pretrained": FileEncoder(onnx, path)},
        pretrained_on=about.data_fingerprint,
        levels=onnx.levels,
        notes=(difference_to_pytorch(about), *unfinished_notes(about.unfinished)),
    )


def _holds_weights(path: Path) -> bool:
    """Whether a file of an unknown ending begins as torch.save and safetensors begin theirs: many name none."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
            if head[:2] == b"PK":
                return any(name.endswith("/data.pkl") for name in zipfile.ZipFile(file).namelist())
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
    return head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") or head[8:] == b"{"


def _open_weights(path: Path, stem_padding: int | None, stem_pool: str | None) -> Target:
    from ..weights import load_foreign

    found = load_foreign(path, stem_padding, stem_pool)
    return Target(
        path=path,
        image_size=found.image_size,
        recipe=lambda: _recipe(""),
        encoders={"pretrained": WeightsEncoder(found, path.name), "scratch": WeightsScratchEncoder(found)},
        notes=found.notes(),
    )


def _keep(path: Path, text: str) -> None:
    """A cache that cannot be written costs time, never the evaluation."""
    with suppress(PlatformError):
        Folder.open(path.parent, make=True).write_text(path.name, text + "\n")


def _hash_of(encoder: nn.Module) -> str:
    from .features import encoder_hash

    return encoder_hash(encoder)


def _hash_of_file(path: Path) -> str:
    """`encoder_hash` of the weights in a .safetensors file, without torch; "" where they cannot be read."""
    from safetensors import SafetensorError, safe_open

    digest = hashlib.sha256()
    try:
        check_regular(path)
        with safe_open(path, framework="np") as file:
            for name in sorted(file.keys()):
                values = file.get_tensor(name)
                digest.update(f"{name} torch.{values.dtype} {list(values.shape)}".encode())
                digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    except (OSError, SafetensorError):
        return ""
    return digest.hexdigest()
