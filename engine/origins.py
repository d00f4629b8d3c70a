"""Whose training wrote a checkpoint, told by the names and settings in it, and what that says of the encoder's stem.

Weights do not say how a convolution is padded or what follows it. Libraries do: each builds its stem in one way, or
writes its settings beside the weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .bounds import LARGEST_MARK
from .errors import DataError
from .inputs import read_text
from .stem import Stem
from .unpickling import StandIn

# Where training scripts keep their settings: Lightning, timm and torchvision's reference, SupContrast, Hydra.
_SETTINGS = ("hyper_parameters", "hparams", "args", "opt", "cfg", "config")
# timm's networks that smooth where they stride, without a tensor of their own.
_SMOOTHED = re.compile(r"resnet(?:blur|aa)\d+\w*", re.IGNORECASE)
# Layers of a plain ResNet, by the last part of their class.
_PLAIN_LAYERS = re.compile(
    r"Conv2d|Convolution|BatchNorm2d|SyncBatchNorm|ReLU|MaxPool2d|(Select)?Adaptive\w*Pool2d|Identity|Linear|Flatten|Dropout\w*"
)


@dataclass(frozen=True)
class Origin:
    """Whose checkpoint it is.

    Attributes:
        whose: in words.
        padding: of the stem's convolution, pixels; None if unknown.
        pool: whether the stem has max-pool; None if unknown.
        smoothing: how the network smooths before it strides, one of `smoothing.KINDS`; "" if it does not.
    """

    whose: str
    padding: int | None = None
    pool: bool | None = None
    smoothing: str = ""


@dataclass(frozen=True, eq=False)
class Place:
    """Where a ResNet is in a file, and what is around it.

    Attributes:
        state: contents of the whole file.
        names: all names in its group of tensors.
        used: those of the ResNet.
        prefix: of the names of the ResNet.
        first: number of its first stage if it is an nn.Sequential, else None.
        layers: the layers of a pickled module, by name; empty for a state dict.
    """

    state: object
    names: frozenset[str]
    used: frozenset[str]
    prefix: str
    first: int | None
    layers: Mapping[str, StandIn]


def recognise(path: Path, place: Place, small: bool) -> Origin:
    """The origin of a ResNet with a 3×3 (`small`) or 7×7 convolution in its stem.

    Raises:
        DataError: it is a network with other layers, which computes other features with the same names.
    """
    origin = _recognised(path, place, small)
    name = next((found[0] for said in _networks(path, place.state) if (found := _SMOOTHED.search(said))), None)
    if name is None:
        return origin
    if small:
        raise DataError(
            "this network smooths where it strides, which is known of the 7×7 stem only",
            saw=f"{name[:40]} in {path}, with a 3×3 stem",
            fix="name weights of the plain network; if only the file's name is wrong, rename the file",
        )
    kind = "blur" if "blur" in name.lower() else "average"
    return Origin(f"{origin.whose}, called {name[:40]}", 3, True, kind)


def _recognised(path: Path, place: Place, small: bool) -> Origin:
    usual, settings = Stem.usual(small), _settings(place.state)
    if place.layers:
        return _of_layers(path, place)
    bolts = [settings.get(name) for name in ("first_conv", "maxpool1")]
    if all(isinstance(value, bool) for value in bolts):
        return Origin("a checkpoint of lightning-bolts", usual.padding, bolts[1] is True)
    if "projection.model.0.weight" in place.names and f"{place.prefix}fc.weight" in place.names:
        return Origin("names of lightning-bolts", usual.padding)
    if _is_solo_learn(place):
        return Origin("names of solo-learn", 2 if small else 3, not small)
    if any("encoder.stages." in name for name in place.used):
        return Origin("names of Hugging Face's ResNet", usual.padding, True)
    if place.first is not None:
        # Two children before the first stage: lightly's ResNet, which has no module for its ReLU. Three: no max-pool.
        whose = "lightly's ResNet" if place.first == 2 else "a torchvision ResNet"
        known = (usual.padding, False) if place.first == 2 and small else (None, None if place.first == 4 else False)
        return Origin(f"{whose} as an nn.Sequential", *known)
    if any(".shortcut." in name for name in place.used):
        return Origin("names of lightly's ResNet", *((usual.padding, usual.pool) if small else ()))
    return Origin("names of torchvision and timm")


def _is_solo_learn(place: Place) -> bool:
    """Whether the names are those of solo-learn's methods: each has a classifier that is trained beside the encoder."""
    around = {name.split(".")[0] for name in place.names}
    parts = {"projector", "predictor", "prototypes", "head", "momentum_encoder", "momentum_backbone"}
    return place.prefix in ("encoder.", "backbone.") and "classifier.weight" in place.names and bool(around & parts)


def _networks(path: Path, state: object) -> Iterator[str]:
    """What the file, its name and the `config.json` beside it say of the network."""
    top, settings = _entries(state), _settings(state)
    named = (top.get("arch"), settings.get("arch"), settings.get("model"))
    yield from (text for text in named if isinstance(text, str))
    yield path.name
    config = path.with_name("config.json")  # of a model on Hugging Face's hub
    try:
        said = json.loads(read_text(config, LARGEST_MARK))
        if isinstance(said, dict) and isinstance(said.get("architecture"), str):
            yield said["architecture"]
    except (OSError, ValueError, RecursionError):
        return


def _of_layers(path: Path, place: Place) -> Origin:
    """The origin of a pickled module, whose layers say what they are."""
    layers = {
        name.removeprefix(place.prefix): layer for name, layer in place.layers.items() if name.startswith(place.prefix)
    }
    for name, layer in layers.items():
        kind = layer.name.rsplit(".", 1)[-1]
        if not layer.entries.get("_modules") and not _PLAIN_LAYERS.fullmatch(kind):
            raise DataError(
                "this network has a layer that a plain ResNet does not have",
                saw=f"{name[:80]}: {layer.name[:80]} in {path}",
                fix="name weights of the plain network",
            )
    stem, pool = layers.get("conv1") or layers.get("0"), layers.get("maxpool") or layers.get("3")
    padding = stem.entries.get("padding") if stem is not None else None
    known = padding[0] if isinstance(padding, tuple) and padding and padding[0] in range(10) else None
    return Origin("a pickled module", known, pool is not None and _halves(pool))


def _halves(layer: StandIn) -> bool:
    """Whether the layer is a max-pool that does something; bolts replaces it by one of 1×1."""
    return layer.name.endswith("MaxPool2d") and layer.entries.get("kernel_size") not in (1, (1, 1))


def _settings(state: object) -> dict[Any, Any]:
    """The settings of the training, from wherever it keeps them."""
    top = _entries(state)
    return {key: value for name in _SETTINGS for key, value in _entries(top.get(name)).items()}


def _entries(item: object) -> Mapping[Any, Any]:
    return item.entries if isinstance(item, StandIn) else item if isinstance(item, Mapping) else {}
