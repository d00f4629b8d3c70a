"""Loads ResNet checkpoints of torchvision, timm, lightly or a SimCLR repository as encoders."""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from .bounds import MAX_SIZE
from .checkpoint import FOOTER, FOOTER_BYTES, encoder_metadata, load_checkpoint, read_tensors, refuse_bomb
from .errors import DataError, UsageError
from .inputs import open_regular
from .model import ResNet, build_encoder
from .origins import Origin, Place, recognise
from .recipe import Recipe
from .smoothing import KINDS, smooth
from .stem import Stem
from .unpickling import StandIn, read_checkpoint

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
# Hugging Face's names of a ResNet, in torchvision's.
_STAGE = r"encoder\.stages\.(\d)\.layers\.(\d+)\."
_HUGGING_FACE = re.compile(rf"{_STAGE}(?:layer\.(\d)|shortcut)\.(convolution|normalization)\.")
_SHOWN = 5  # names in a message
_DEEPEST = 64  # levels of mappings or modules in a file
_MOST_VALUES = 1 << 22  # in one tensor; the largest of a ResNet-50 has 2,359,296


@dataclass(frozen=True, eq=False)
class ForeignEncoder:
    """A checkpoint of another library as an encoder.

    Attributes:
        path: the file.
        encoder: in eval mode on the CPU, normalised `[B, 3, S, S]` → `[B, feature_dim]`, float32.
        arch, stem: as `build_encoder` takes them.
        assumed: what of the stem the file does not say, in words; "" if it says everything or the user did.
        feature_dim: 512, or 2048 for `resnet50`.
        image_size: side of the images in pixels if the file states it (only files of this project do), else None.
        mean, std: per channel, on the scale where white is 1.
        normalisation_known: whether the file states `mean` and `std`; otherwise they are the usual ones for the stem.
        matched: tensors of the encoder that were filled from the file.
        unmatched: tensors of the file that were not used: a classifier, a projection head, a momentum copy.
        missing: tensors of the encoder that the file lacks; only batch norm counters (`num_batches_tracked`) may be.
        origin: whose names the tensors have, and their place in the file, in words.
        left_out: modules of the ResNet that this network lacks (`relu`): see `adapt`.
        smoothing: how it smooths before it strides, one of `smoothing.KINDS`; "" if it does not.
    """

    path: Path
    encoder: nn.Module
    arch: str
    stem: str
    assumed: str
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
    smoothing: str = ""

    def adapt(self, encoder: nn.Module) -> nn.Module:
        """`encoder`, built by `build_encoder(arch, stem)`, made the same network, for example with random weights."""
        return _adapted(encoder, self.left_out, self.smoothing)

    def sentence(self) -> str:
        """The description of the encoder for a protocol."""
        stem = Stem.of(self.stem).sentence()
        if self.left_out:
            stem += f", no {' and no '.join(self.left_out)} after the first batch norm"
        if self.smoothing:
            stem += f", which {KINDS[self.smoothing]}"
        if self.assumed:
            stem += f" (assumed, as the file does not say: {self.assumed}; --stem-padding and --stem-pool set them)"
        words = f"{self.arch} with a {stem} from {self.path.name} ({self.origin})"
        if self.normalisation_known:
            return f"{words}, normalised as in its training"
        usual = "CIFAR-10" if Stem.of(self.stem).small else "ImageNet"
        return f"{words}, normalised with the mean and std of {usual} (assumed: the file does not state them)"

    def notes(self) -> tuple[str, ...]:
        """Notes for the reader: the tensors of the file that were not used."""
        return (f"not used from {self.path.name}: {_list(self.unmatched)}",) if self.unmatched else ()


def load_foreign(path: str | Path, stem_padding: int | None = None, stem_pool: str | None = None) -> ForeignEncoder:
    """The ResNet-18, -34 or -50 in a checkpoint file.

    Args:
        path: `.pt`, `.pth`, `.ckpt`, `.bin` (read by `unpickling`: nothing in the file is run) or `.safetensors`; the
            weights may be nested (`state_dict`, `model`, …) and have prefixes (`module.`, `backbone.`, …) of any
            depth, or be those of a pickled module.
        stem_padding: of the first convolution, pixels; None for what the file says, or else the usual one.
        stem_pool: what follows it: `max`, `none`, or one of `smoothing.KINDS`, which smooth at all strides; None
            likewise.

    Raises:
        DataError: the file is unreadable or not a checkpoint; it holds no such ResNet or several; or tensors are
            missing, have other shapes, or are not finite.
        UsageError: the padding is not 0 to 9, or the pooling is unknown.
    """
    if stem_pool not in (None, "max", "none", *KINDS):
        raise UsageError("the pooling of the stem is unknown", saw=stem_pool, fix="max, none, blur or average")
    if stem_padding is not None and not 0 <= stem_padding <= 9:
        raise UsageError("the padding of the stem must be 0 to 9 pixels", saw=stem_padding, fix="leave it out")
    path = Path(path)
    state, metadata = _read(path)
    groups = list(_groups(state))
    found = _choose(path, [one for group in groups for one in _candidates(group)], groups)
    arch, small = _architecture(path, found.tensors)
    origin = _origin(path, state, metadata, found, small)
    stem, assumed = _stem(origin, small, stem_padding, stem_pool)
    smoothing = origin.smoothing if stem_pool is None else stem_pool if stem_pool in KINDS else ""
    encoder, missing = _filled(path, arch, stem.name, found.tensors)
    mean, std, image_size = _normalisation(path, metadata, small)
    return ForeignEncoder(
        path=path,
        encoder=_adapted(encoder, found.left_out, smoothing).eval(),
        arch=arch,
        stem=stem.name,
        assumed=assumed,
        feature_dim=int(cast(int, encoder.feature_dim)),
        image_size=image_size,
        mean=mean,
        std=std,
        normalisation_known=image_size is not None,
        matched=len(encoder.state_dict()) - len(missing),
        unmatched=tuple(_unused(groups, found, encoder.state_dict())),
        missing=missing,
        origin=found.placed(origin.whose),
        left_out=found.left_out,
        smoothing=smoothing,
    )


def _origin(path: Path, state: object, metadata: Mapping[str, str], found: _Found, small: bool) -> Origin:
    """Whose checkpoint it is, and what that says of the stem."""
    if _is_own(metadata):
        try:
            stem = Stem.of(metadata["stem"])
        except (KeyError, ValueError):
            stem = Stem.usual(small)
        return Origin("an encoder of simclr-engine", stem.padding, stem.pool)
    used = frozenset(found.sources.values())
    names = frozenset(found.group.tensors)
    return recognise(path, Place(state, names, used, found.prefix, found.first, found.group.layers), small)


def _stem(origin: Origin, small: bool, padding: int | None, asked: str | None) -> tuple[Stem, str]:
    """The stem as asked, else as known, else as usual; and what of it is only assumed."""
    padding = origin.padding if padding is None else padding
    pool = origin.pool if asked is None else asked != "none"
    usual = Stem.usual(small)
    assumed = ["padding"] if padding is None else []
    if pool is None:
        # timm's networks that blur have the plain names too, and the large stem.
        assumed += ["no max-pool"] if small else ["max-pool", "no blur"]
    stem = Stem(small, usual.padding if padding is None else padding, usual.pool if pool is None else pool)
    return stem, ", ".join(assumed)


def _read(path: Path) -> tuple[object, Mapping[str, str]]:
    """The contents of the file, and the text metadata of a safetensors file."""
    try:
        with open_regular(path) as file:
            head = file.read(9)
            size = file.seek(0, 2)
            file.seek(max(0, size - FOOTER_BYTES))
            tail = file.read(len(FOOTER))
    except OSError as error:
        raise DataError("the weights cannot be read", saw=f"{path}: {error.strerror}", fix="check the path") from error
    if tail == FOOTER:
        state = load_checkpoint(path)
        return state, _metadata_of_run(state)
    # The format starts with the length of its JSON header in 8 bytes; a pickle or zip file has no brace there.
    if path.suffix.lower() == ".safetensors" or head[8:] == b"{":
        return read_tensors(path, "the safetensors file cannot be read", "it is damaged: download it again")
    with open_regular(path) as file:
        refuse_bomb(path, file)
    try:
        return read_checkpoint(path), {}
    except Exception as error:  # a damaged pickle may raise anything: KeyError, struct.error, UnicodeDecodeError, …
        raise _unreadable(path, error) from error


def _metadata_of_run(state: Mapping[str, object]) -> Mapping[str, str]:
    """What `encoder.safetensors` would say of the encoder in a checkpoint of a run, as far as the checkpoint knows."""
    try:
        recipe = Recipe.from_toml(str(state.get("recipe", "")))
    except UsageError:
        return {}
    return encoder_metadata(recipe, recipe.data.size) if recipe.data.size else {}


def _unreadable(path: Path, error: Exception) -> DataError:
    """The reason why the file was not read."""
    text = str(error)
    if "TorchScript" in text:
        return DataError(
            "the file is a TorchScript program, not a checkpoint",
            saw=path,
            fix="save its weights: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt')",
        )
    return DataError(
        "the file is not a checkpoint, or it is damaged",
        saw=f"{path}: {(text.splitlines() or [''])[0][:120] or type(error).__name__}",
        fix="name a file of weights: .pt, .pth, .ckpt, .bin or .safetensors",
    )


@dataclass(frozen=True, eq=False)
class _Group:
    """Tensors by name in one mapping of the file, or of one pickled module.

    Attributes:
        where: dotted place in the file, such as `model.encoder`.
        layers: the module's own modules by name; empty for a mapping.
    """

    where: str
    tensors: dict[str, Tensor]
    layers: dict[str, StandIn] = field(default_factory=dict)


def _groups(state: object) -> Iterator[_Group]:
    """Every mapping of names to tensors in `state`, and every pickled module.

    Optimizer states are skipped: they are lists, or mappings with numbers as keys. Each mapping is visited once, so one
    that contains itself is harmless.
    """
    seen: set[int] = set()
    left: deque[tuple[str, int, object]] = deque([("", 0, state)])
    while left:
        where, depth, item = left.popleft()
        if not isinstance(item, Mapping | StandIn) or id(item) in seen or depth > _DEEPEST:
            continue
        seen.add(id(item))
        if isinstance(item, StandIn) and isinstance(item.entries.get("_modules"), Mapping):
            yield _module(where, item, seen)
            continue
        entries = item.entries if isinstance(item, StandIn) else item
        entries = {key: value for key, value in entries.items() if isinstance(key, str)}
        tensors = {key: value.detach() for key, value in entries.items() if isinstance(value, Tensor)}
        if tensors:
            yield _Group(where, tensors)
        left += [(f"{where}.{key}" if where else key, depth + 1, value) for key, value in entries.items()]


def _module(where: str, module: StandIn, seen: set[int]) -> _Group:
    """The tensors of a pickled module by the names of its state dict, each of its modules visited once."""
    group = _Group(where, {})
    left: deque[tuple[str, int, StandIn]] = deque([("", 0, module)])
    while left:
        prefix, depth, item = left.popleft()
        for kind in ("_parameters", "_buffers"):
            tensors = item.entries.get(kind)
            for name, tensor in tensors.items() if isinstance(tensors, Mapping) else ():
                if isinstance(name, str) and isinstance(tensor, Tensor):
                    group.tensors[prefix + name] = tensor.detach()
        modules = item.entries.get("_modules")
        for name, inner in modules.items() if isinstance(modules, Mapping) else ():
            if isinstance(name, str) and isinstance(inner, StandIn) and id(inner) not in seen and depth < _DEEPEST:
                seen.add(id(inner))
                group.layers[prefix + name] = inner
                left.append((f"{prefix}{name}.", depth + 1, inner))
    return group


@dataclass(frozen=True, eq=False)
class _Found:
    """A ResNet in a group of tensors.

    Attributes:
        group: the group.
        prefix: prefix of its names in the group.
        first: number of its first stage if it is an nn.Sequential, else None.
        tensors: the tensors by torchvision's names.
        sources: torchvision's name → the name in the group.
    """

    group: _Group
    prefix: str
    first: int | None
    tensors: dict[str, Tensor]
    sources: dict[str, str]

    @property
    def left_out(self) -> tuple[str, ...]:
        """Modules that an nn.Sequential over a ResNet lacks besides max-pool, by the number of its first stage.

        torchvision: 0 conv1, 1 bn1, 2 relu, 3 maxpool, 4 layer1; without max-pool 3 is layer1. lightly's own
        ResNet calls its ReLU as a function, so that `nn.Sequential(*resnet.children())` runs without it: 2 is layer1.
        """
        return ("relu",) if self.first == 2 else ()

    def placed(self, whose: str) -> str:
        """`whose` with the place of the tensors in the file."""
        place = ".".join(part for part in (self.group.where, self.prefix.rstrip(".")) if part)
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


def _candidates(group: _Group) -> Iterator[_Found]:
    """Every ResNet in one group, found by the first convolution of its first stage."""
    plain = {_plain(name): name for name in group.tensors}
    for name in plain:
        if match := _NAMED.match(name):
            yield _renamed(group, match[1], None, plain)
        # Four consecutive stages and a convolution at 0, which no projection head has.
        elif match := _NUMBERED.match(name):
            prefix, first = match[1], int(match[2])
            stages = all(f"{prefix}{first + i}.0.conv1.weight" in plain for i in range(4))
            if stages and f"{prefix}0.weight" in plain and f"{prefix}{first - 1}.0.conv1.weight" not in plain:
                yield _renamed(group, prefix, first, plain)


def _plain(name: str) -> str:
    """The name without torch.compile's mark, which may be anywhere in it; Hugging Face's in torchvision's words."""
    name = name.replace("_orig_mod.", "")
    if "embedder.embedder." in name:
        name = name.replace("embedder.embedder.convolution.", "conv1.")
        return name.replace("embedder.embedder.normalization.", "bn1.")
    return _HUGGING_FACE.sub(_in_torchvisions_words, name)


def _in_torchvisions_words(match: re.Match[str]) -> str:
    stage, block, layer, kind = match.groups()
    place = f"layer{int(stage) + 1}.{block}"
    if layer is None:
        return f"{place}.downsample.{int(kind == 'normalization')}."
    return f"{place}.{'conv' if kind == 'convolution' else 'bn'}{int(layer) + 1}."


def _renamed(group: _Group, prefix: str, first: int | None, plain: dict[str, str]) -> _Found:
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
    tensors = {ours: group.tensors[source] for ours, source in sources.items()}
    return _Found(group, prefix, first, tensors, sources)


def _choose(path: Path, found: list[_Found], groups: list[_Group]) -> _Found:
    """The ResNet to load: the trained one, if the file also holds a slow copy of it."""
    if not found:
        names = [f"{group.where}.{name}" if group.where else name for group in groups for name in group.tensors]
        raise DataError(
            "there is no ResNet in this file",
            saw=f"{path}: {_list(names)}" if names else f"{path}: no tensors under names",
            fix="name weights of a ResNet-18, -34 or -50 of torchvision, timm or lightly",
        )
    trained = [one for one in found if not _SHADOW.search(f"{one.group.where}.{one.prefix}")] or found
    others = [one for one in trained[1:] if not one.is_copy_of(trained[0])]
    if others:
        places = [f"{one.group.where}.{one.prefix}".strip(".") or "the top" for one in (trained[0], *others)]
        raise DataError(
            "there are several ResNets in this file",
            saw=f"under {_list(places)} in {path}",
            fix="save only the one you want: torch.save(model.backbone.state_dict(), 'weights.pt')",
        )
    return trained[0]


def _architecture(path: Path, tensors: dict[str, Tensor]) -> tuple[str, bool]:
    """`arch` from the blocks of each stage, and whether the stem is a small one, from the first convolution."""
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
    return arch, first is not None and first.shape[2:] == (3, 3)


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
    values, counts = None, name.endswith(".num_batches_tracked")
    if (tensor.is_floating_point() or (counts and not tensor.is_complex())) and tensor.layout == torch.strided:
        with suppress(RuntimeError):  # no values, or of a kind that is not converted, such as two in a byte
            values = tensor.float()  # as in the encoder, where a float64 beyond the range of float32 is infinite
    if values is None or values.is_meta:
        kind = "no values" if tensor.is_meta else f"{tensor.dtype}, {tensor.layout}"
        raise DataError(
            "a weight is not made of plain floating-point numbers",
            saw=f"{name}: {kind} in {path}",
            fix="name weights that are neither quantised nor sparse",
        )
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise DataError(
            "a weight is not finite",
            saw=f"{name}: {bad:,} of {values.numel():,} are NaN or infinite in {path}",
            fix="its training has diverged: use an earlier checkpoint",
        )
    if name.endswith(".running_var") and bool((values < 0).any()):
        raise DataError("a variance is negative", saw=f"{name} in {path}", fix="the file is damaged: download it again")


def _is_own(metadata: Mapping[str, str]) -> bool:
    """Whether the file is one of this project."""
    return metadata.get("format", "").startswith("simclr-engine")


def _normalisation(path: Path, metadata: Mapping[str, str], small: bool) -> tuple[Triple, Triple, int | None]:
    """Mean, std and image size: those that a file of this project states, else the usual ones for the stem and None."""
    if not _is_own(metadata):
        return *(CIFAR10 if small else IMAGENET), None
    try:
        mean, std = _triple(metadata["mean"]), _triple(metadata["std"])
        size = int(metadata["image_size"])
        if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0 or not 0 < size <= MAX_SIZE:
            raise ValueError(f"mean {mean}, std {std}, image_size {size}")
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
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


def _adapted(encoder: nn.Module, left_out: tuple[str, ...], smoothing: str) -> nn.Module:
    """The encoder with modules of its stem replaced by the identity, and made to smooth."""
    for name in left_out:
        setattr(encoder, name, _LeftOut())
    return smooth(cast(ResNet, encoder), smoothing) if smoothing else encoder


def _unused(groups: list[_Group], found: _Found, ours: Mapping[str, Tensor]) -> Iterator[str]:
    """Names that were not used; outside the group of the encoder, with their place in the file."""
    taken = {source for name, source in found.sources.items() if name in ours}
    for group in groups:
        for name in group.tensors:
            if group is not found.group:
                yield f"{group.where}.{name}" if group.where else name
            elif name not in taken:
                yield name


def _list(names: tuple[str, ...] | list[str]) -> str:
    """The first few names, each cut to a bounded length, because they come from a file."""
    shown = ", ".join(name[:80] for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")
