"""Loads ResNet checkpoints of torchvision, timm, lightly or a SimCLR repository as encoders."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from .checkpoint import FOOTER, FOOTER_BYTES, load_checkpoint, read_tensors, refuse_bomb
from .errors import DataError
from .model import build_encoder

Triple = tuple[float, float, float]
# The normalisation of the pretrained ResNets of torchvision and timm, and of lightly's transforms.
IMAGENET: tuple[Triple, Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Mean and standard deviation over the train split of CIFAR-10, which most repositories with a 3×3 stem use.
CIFAR10: tuple[Triple, Triple] = ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))

# (bottlenecks?, blocks per stage): He et al. 2015 (arXiv 1512.03385), table 1
_ARCHITECTURES: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
}
# A slow copy of the trained encoder in the same file: MoCo's encoder_k, BYOL's target, DINO's teacher, timm's EMA.
_SHADOW = re.compile(r"(^|[._])(momentum|teacher|target|ema|swa|k|key)([._]|$)", re.IGNORECASE)
_NAMED = re.compile(r"^((?:.*\.)?)layer1\.0\.conv1\.weight$")
_NUMBERED = re.compile(r"^((?:.*\.)?)([234])\.0\.conv1\.weight$")
# Names of the network itself: if a plain ResNet lacks such a tensor, the file holds another network.
_NETWORK = re.compile(r"^(conv|bn|norm|layer)\d*\.")
_SHOWN = 5  # names in a message
_MOST_VALUES = 1 << 22  # in one tensor; the largest of a ResNet-50 has 2,359,296


@dataclass(frozen=True, eq=False)
class ForeignEncoder:
    """A checkpoint of another library as an encoder.

    Attributes:
        path: the file.
        encoder: in eval mode on the CPU, normalised `[B, 3, S, S]` → `[B, feature_dim]`, float32.
        arch, stem: as `build_encoder` takes them.
        feature_dim: 512, or 2048 for `resnet50`.
        image_size: side of the images in pixels if the file states it (only files of this project do), else None.
        mean, std: per channel, on the scale where white is 1.
        normalisation_known: whether the file states `mean` and `std`; otherwise they are the usual ones for the stem.
        matched: tensors of the encoder that were filled from the file.
        unmatched: tensors of the file that were not used: a classifier, a projection head, a momentum copy.
        missing: tensors of the encoder that the file lacks; only batch norm counters (`num_batches_tracked`) may be.
        origin: whose names the tensors have, and their place in the file, in words.
        left_out: modules of the ResNet that this network lacks (`relu`, `maxpool`): see `adapt`.
    """

    path: Path
    encoder: nn.Module
    arch: str
    stem: str
    feature_dim: int
    image_size: int | None
    mean: Triple
    std: Triple
    normalisation_known: bool
    matched: int
    unmatched: tuple[str, ...]
    missing: tuple[str, ...]
    origin: str
    left_out: tuple[str, ...]

    def adapt(self, encoder: nn.Module) -> nn.Module:
        """`encoder`, built by `build_encoder(arch, stem)`, made the same network, for example with random weights."""
        return _without(encoder, self.left_out)

    def sentence(self) -> str:
        """The description of the encoder for a protocol."""
        stem = "3×3 stem of stride 1 without max-pool" if self.stem == "small" else "7×7 stem"
        if self.left_out:
            stem += f", no {' and no '.join(self.left_out)} after the first batch norm"
        words = f"{self.arch} with a {stem} from {self.path.name} ({self.origin})"
        if self.normalisation_known:
            return f"{words}, normalised as in its training"
        usual = "CIFAR-10" if self.stem == "small" else "ImageNet"
        return f"{words}, normalised with the mean and std of {usual} (assumed: the file does not state them)"

    def notes(self) -> tuple[str, ...]:
        """Notes for the reader: the tensors of the file that were not used."""
        return (f"not used from {self.path.name}: {_list(self.unmatched)}",) if self.unmatched else ()


def load_foreign(path: str | Path) -> ForeignEncoder:
    """The ResNet-18, -34 or -50 in a checkpoint file.

    Args:
        path: `.pt`, `.pth`, `.ckpt`, `.bin` (read with `weights_only=True`: no code of the file is run) or
            `.safetensors`; the weights may be nested (`state_dict`, `model`, …) and have prefixes (`module.`,
            `backbone.`, …) of any depth.

    Raises:
        DataError: the file is unreadable, not a checkpoint, or would run code; it holds no such ResNet or several; or
            tensors are missing, have other shapes, or are not finite.
    """
    path = Path(path)
    state, metadata = _read(path)
    groups = list(_groups(state))
    found = _choose(path, [one for where, tensors in groups for one in _candidates(where, tensors)], groups)
    arch, stem = _architecture(path, found.tensors)
    encoder, missing = _filled(path, arch, stem, found.tensors)
    mean, std, image_size = _normalisation(path, metadata, stem)
    return ForeignEncoder(
        path=path,
        encoder=_without(encoder, found.left_out(stem)).eval(),
        arch=arch,
        stem=stem,
        feature_dim=int(cast(int, encoder.feature_dim)),
        image_size=image_size,
        mean=mean,
        std=std,
        normalisation_known=image_size is not None,
        matched=len(encoder.state_dict()) - len(missing),
        unmatched=tuple(_unused(groups, found, encoder.state_dict())),
        missing=missing,
        origin=found.words(own=image_size is not None),
        left_out=found.left_out(stem),
    )


def _read(path: Path) -> tuple[object, Mapping[str, str]]:
    """The contents of the file, and the text metadata of a safetensors file."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
            size = file.seek(0, 2)
            file.seek(max(0, size - FOOTER_BYTES))
            tail = file.read(len(FOOTER))
    except OSError as error:
        raise DataError("the weights cannot be read", saw=f"{path}: {error.strerror}", fix="check the path") from error
    if tail == FOOTER:
        return load_checkpoint(path), {}
    # The format starts with the length of its JSON header in 8 bytes; a pickle or zip file has no brace there.
    if path.suffix.lower() == ".safetensors" or head[8:] == b"{":
        return read_tensors(path, "the safetensors file cannot be read", "it is damaged: download it again")
    with path.open("rb") as file:
        refuse_bomb(path, file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about TorchScript: the errors below cover it
            return torch.load(path, map_location="cpu", weights_only=True), {}
    except Exception as error:  # a damaged pickle may raise anything: KeyError, struct.error, UnicodeDecodeError, …
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    """The reason why torch did not load the file, without its advice to load it unsafely."""
    text = str(error)
    code = re.search(r"GLOBAL ([\w.]+)", text)
    if code or "TorchScript" in text:
        what = code[1] if code else "a TorchScript archive"
        return DataError(
            "the file holds more than weights: loading it would run its code, so it is not loaded",
            saw=f"{what[:100]} in {path}",
            fix="if you trust the file, save only its weights: torch.save(model.state_dict(), 'weights.pt')",
        )
    return DataError(
        "the file is not a checkpoint, or it is damaged",
        saw=f"{path}: {(text.splitlines() or [''])[0][:120] or type(error).__name__}",
        fix="name a file of weights: .pt, .pth, .ckpt, .bin or .safetensors",
    )


def _groups(state: object) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every mapping of names to tensors in `state` with its dotted place: `("model.encoder", {…})`.

    Optimizer states are skipped: they are lists, or mappings with numbers as keys. Each mapping is visited once, so one
    that contains itself is harmless.
    """
    seen: set[int] = set()
    left: list[tuple[str, object]] = [("", state)]
    while left:
        where, item = left.pop(0)
        if not isinstance(item, Mapping) or id(item) in seen:
            continue
        seen.add(id(item))
        entries = {key: value for key, value in item.items() if isinstance(key, str)}
        tensors = {key: value.detach() for key, value in entries.items() if isinstance(value, Tensor)}
        if tensors:
            yield where, tensors
        left += [(f"{where}.{key}" if where else key, value) for key, value in entries.items()]


@dataclass(frozen=True, eq=False)
class _Found:
    """A ResNet in a group of tensors.

    Attributes:
        where: place of the group in the file.
        prefix: prefix of its names in the group.
        first: number of its first stage if it is an nn.Sequential, else None.
        tensors: the tensors by torchvision's names.
        sources: torchvision's name → the name in the group.
    """

    where: str
    prefix: str
    first: int | None
    tensors: dict[str, Tensor]
    sources: dict[str, str]

    def left_out(self, stem: str) -> tuple[str, ...]:
        """Modules that an nn.Sequential over a ResNet lacks, according to the number of its first stage.

        torchvision: 0 conv1, 1 bn1, 2 relu, 3 maxpool, 4 layer1; without max-pool 3 is layer1. lightly's own
        ResNet calls its ReLU as a function, so that `nn.Sequential(*resnet.children())` runs without it: 2 is layer1.
        """
        lost = {3: ("maxpool",), 2: ("relu", "maxpool")}.get(self.first or 0, ())
        return tuple(name for name in lost if not (name == "maxpool" and stem == "small"))

    def words(self, own: bool) -> str:
        """Whose names the tensors have, and their place in the file."""
        if own:
            whose = "an encoder of simclr-engine"
        elif self.first is not None:
            whose = "lightly's ResNet" if self.first == 2 else "a torchvision ResNet"
            whose += " as an nn.Sequential"
        elif any(".shortcut." in name for name in self.sources.values()):
            whose = "names of lightly's ResNet"
        else:
            whose = "names of torchvision and timm"
        place = ".".join(part for part in (self.where, self.prefix.rstrip(".")) if part)
        return f"{whose}, under {place[:80]}" if place else whose

    def is_copy_of(self, other: _Found) -> bool:
        """Whether both have equal tensors, saved twice."""
        return self.tensors.keys() == other.tensors.keys() and all(
            _is_same(tensor, other.tensors[name]) for name, tensor in self.tensors.items()
        )


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of the file are equal. False for kinds and sizes that no encoder has: one number in the file
    may be expanded to 10¹² values."""
    plain = all(t.layout == torch.strided and not t.is_meta and not t.is_quantized for t in (one, other))
    if not plain or one.shape != other.shape or one.dtype != other.dtype:
        return False
    return one.numel() <= _MOST_VALUES and torch.equal(one, other)


def _candidates(where: str, tensors: dict[str, Tensor]) -> Iterator[_Found]:
    """Every ResNet in one group, found by the first convolution of its first stage."""
    plain = {name.replace("_orig_mod.", ""): name for name in tensors}  # torch.compile adds it anywhere in a name
    for name in plain:
        if match := _NAMED.match(name):
            yield _renamed(where, match[1], None, tensors, plain)
        # Four consecutive stages and a convolution at 0, which no projection head has.
        elif match := _NUMBERED.match(name):
            prefix, first = match[1], int(match[2])
            stages = all(f"{prefix}{first + i}.0.conv1.weight" in plain for i in range(4))
            if stages and f"{prefix}0.weight" in plain and f"{prefix}{first - 1}.0.conv1.weight" not in plain:
                yield _renamed(where, prefix, first, tensors, plain)


def _renamed(where: str, prefix: str, first: int | None, tensors: dict[str, Tensor], plain: dict[str, str]) -> _Found:
    """The tensors under `prefix`, by torchvision's names."""
    numbers = {"0": "conv1", "1": "bn1", "2": "bn2", "3": "bn3"}  # 2 and 3 have weights only in another network
    numbers = {} if first is None else numbers | {str(first + i): f"layer{i + 1}" for i in range(4)}
    sources: dict[str, str] = {}
    for name, source in plain.items():
        if not name.startswith(prefix):
            continue
        module, dot, rest = name.removeprefix(prefix).partition(".")
        theirs = numbers.get(module, module) + dot + rest
        ours = re.sub(r"^(layer\d\.\d+)\.shortcut\.", r"\1.downsample.", theirs)
        sources[theirs if ours in sources else ours] = source
    return _Found(where, prefix, first, {ours: tensors[source] for ours, source in sources.items()}, sources)


def _choose(path: Path, found: list[_Found], groups: list[tuple[str, dict[str, Tensor]]]) -> _Found:
    """The ResNet to load: the trained one, if the file also holds a slow copy of it."""
    if not found:
        names = [f"{where}.{name}" if where else name for where, tensors in groups for name in tensors]
        raise DataError(
            "there is no ResNet in this file",
            saw=f"{path}: {_list(names)}" if names else f"{path}: no tensors under names",
            fix="name weights of a ResNet-18, -34 or -50 of torchvision, timm or lightly",
        )
    trained = [one for one in found if not _SHADOW.search(f"{one.where}.{one.prefix}")] or found
    others = [one for one in trained[1:] if not one.is_copy_of(trained[0])]
    if others:
        places = [f"{one.where}.{one.prefix}".strip(".") or "the top" for one in (trained[0], *others)]
        raise DataError(
            "there are several ResNets in this file",
            saw=f"under {_list(places)} in {path}",
            fix="save only the one you want: torch.save(model.backbone.state_dict(), 'weights.pt')",
        )
    return trained[0]


def _architecture(path: Path, tensors: dict[str, Tensor]) -> tuple[str, str]:
    """`arch` from the blocks of each stage, `stem` from the size of the first convolution."""
    blocks = tuple(len({n.split(".")[1] for n in tensors if n.startswith(f"layer{i}.")}) for i in range(1, 5))
    bottleneck = "layer1.0.conv3.weight" in tensors
    arch = _ARCHITECTURES.get((bottleneck, blocks))
    if arch is None:
        raise DataError(
            "this ResNet is not a ResNet-18, -34 or -50",
            saw=f"{'bottlenecks' if bottleneck else 'basic blocks'} {' + '.join(map(str, blocks))} in {path}",
            fix="name weights of a ResNet-18, -34 or -50",
        )
    first = tensors.get("conv1.weight")
    return arch, "small" if first is not None and first.shape[2:] == (3, 3) else "imagenet"


def _filled(path: Path, arch: str, stem: str, tensors: dict[str, Tensor]) -> tuple[nn.Module, tuple[str, ...]]:
    """The encoder with these weights, and the names of the counters that the file lacks (they are 0)."""
    with torch.device("meta"):  # allocate no weights and draw no random numbers
        encoder = build_encoder(arch, stem)
    ours = encoder.state_dict()
    _check_fit(path, arch, tensors, ours)
    # Copies: the file may hold one tensor under two names.
    blank = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in ours.items()}
    values = {name: value.copy_(tensors[name]) if name in tensors else value for name, value in blank.items()}
    encoder.load_state_dict(values, assign=True)
    return encoder, tuple(name for name in ours if name not in tensors)


def _check_fit(path: Path, arch: str, theirs: dict[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """Raises an error for unknown parts of the network, missing tensors, other shapes, and unusable values."""
    strange = [name for name in theirs if name not in ours and _NETWORK.match(name)]
    if strange:
        raise DataError(
            f"this is not a plain {arch}: the network has additional parts",
            saw=f"{_list(strange)} in {path}",
            fix="variants (se, d, ibn, …) compute other features; name weights of the plain network",
        )
    missing = [name for name in ours if name not in theirs and not name.endswith(".num_batches_tracked")]
    if missing:
        raise DataError(
            f"weights of the {arch} are missing from the file",
            saw=f"{len(missing)} missing: {_list(missing)} in {path}",
            fix="name the whole checkpoint; a network without the running statistics of batch norm cannot be loaded",
        )
    for name in (name for name in ours if name in theirs):
        if theirs[name].shape != ours[name].shape:
            raise DataError(
                f"a weight has another shape than in a {arch}",
                saw=f"{name}: {list(theirs[name].shape)} in {path}, {list(ours[name].shape)} here",
                fix="name weights of a plain ResNet of width 1 for RGB images, with a 3×3 or 7×7 stem",
            )
        _check_values(path, name, theirs[name])


def _check_values(path: Path, name: str, tensor: Tensor) -> None:
    if name.endswith(".num_batches_tracked"):
        return
    if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
        kind = "no values" if tensor.is_meta else f"{tensor.dtype}, {tensor.layout}"
        raise DataError(
            "a weight is not made of plain floating-point numbers",
            saw=f"{name}: {kind} in {path}",
            fix="name weights that are neither quantised nor sparse",
        )
    values = tensor.float()  # as in the encoder, where a float64 beyond the range of float32 is infinite
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise DataError(
            "a weight is not finite",
            saw=f"{name}: {bad:,} of {values.numel():,} are NaN or infinite in {path}",
            fix="its training has diverged: use an earlier checkpoint",
        )
    if name.endswith(".running_var") and bool((values < 0).any()):
        raise DataError("a variance is negative", saw=f"{name} in {path}", fix="the file is damaged: download it again")


def _normalisation(path: Path, metadata: Mapping[str, Any], stem: str) -> tuple[Triple, Triple, int | None]:
    """Mean, std and image size: those that a file of this project states, else the usual ones for the stem and None."""
    if not str(metadata.get("format", "")).startswith("simclr-engine"):
        return *(CIFAR10 if stem == "small" else IMAGENET), None
    try:
        mean, std = _triple(metadata["mean"]), _triple(metadata["std"])
        size = int(metadata["image_size"])
        if min(std) <= 0 or size <= 0:
            raise ValueError(f"mean {mean}, std {std}, image_size {size}")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            "the normalisation in the metadata of the file is not valid",
            saw=f"{path}: {error}",
            fix="name a file that `pretrain` wrote, unaltered",
        ) from error
    return mean, std, size


def _triple(text: str) -> Triple:
    """Parses three numbers in JSON; ValueError or TypeError for anything else."""
    red, green, blue = (float(value) for value in json.loads(text))
    return red, green, blue


class _LeftOut(nn.Identity):
    """Replaces a module that the network lacks.

    Its buffer, which is not in the state dict, changes `encoder_hash`: the network has the weights of one with the
    module but other features, and features are cached by that hash.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("left_out", torch.ones(1), persistent=False)


def _without(encoder: nn.Module, modules: tuple[str, ...]) -> nn.Module:
    """The encoder with these modules of its stem replaced by the identity."""
    for name in modules:
        setattr(encoder, name, _LeftOut())
    return encoder


def _unused(groups: list[tuple[str, dict[str, Tensor]]], found: _Found, ours: Mapping[str, Tensor]) -> Iterator[str]:
    """Names that were not used; outside the group of the encoder, with their place in the file."""
    taken = {source for name, source in found.sources.items() if name in ours}
    for where, tensors in groups:
        for name in tensors:
            if where != found.where:
                yield f"{where}.{name}" if where else name
            elif name not in taken:
                yield name


def _list(names: tuple[str, ...] | list[str]) -> str:
    """The first few names, each cut to a bounded length, because they come from a file."""
    shown = ", ".join(name[:80] for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")
