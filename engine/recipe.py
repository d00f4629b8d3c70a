"""Recipe: every hyper-parameter of a run, typed, validated and frozen; read from TOML, overridden by `--set a.b=c`.

A recipe file is complete: no hyper-parameter has a default here, so its one home is the file. A user's own file may
say `base = "cifar10"` and list only what differs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from simclr_engine.kernels.augmentation.spec import AugmentSpec

from . import ranges
from .errors import UsageError, cut, nearest, shown
from .ranges import ARCHITECTURES
from .specs import (
    DataSpec,
    EvaluationSpec,
    HeadSpec,
    LabelledSpec,
    LossSpec,
    ModelSpec,
    MonitorSpec,
    OptimizerSpec,
    ScheduleSpec,
    ShortRun,
    TrainSpec,
)
from .toml_tree import leaves, parse, read_value, set_key, to_toml
from .typed_tree import build, known_keys, to_plain

__all__ = [
    "ARCHITECTURES",
    "AugmentSpec",
    "DataSpec",
    "EvaluationSpec",
    "HeadSpec",
    "LabelledSpec",
    "LossSpec",
    "ModelSpec",
    "MonitorSpec",
    "OptimizerSpec",
    "Recipe",
    "ScheduleSpec",
    "ShortRun",
    "TrainSpec",
    "recipe_names",
]

DEFAULT = "cifar10"
LARGEST_FILE = 1 << 20  # bytes; the recipes of the package have 4,000


@dataclass(frozen=True)
class Recipe:
    """All hyper-parameters of a pretraining run.

    `published` holds the figures of the system that the recipe covers: `{"source": …, "results": [{"method", "init",
    "accuracy", …}]}`; empty where nothing was published.
    """

    name: str
    origin: str
    notes: str
    published: dict[str, Any]
    data: DataSpec
    augment: AugmentSpec
    model: ModelSpec
    head: HeadSpec
    loss: LossSpec
    optimizer: OptimizerSpec
    schedule: ScheduleSpec
    train: TrainSpec
    monitor: MonitorSpec
    evaluation: EvaluationSpec
    short_runs: tuple[ShortRun, ...]

    def __post_init__(self) -> None:
        ranges.data(self.data)
        ranges.model(self.model)
        ranges.head(self.head)
        ranges.loss(self.loss)
        ranges.optimizer(self.optimizer)
        ranges.schedule(self.schedule)
        ranges.train(self.train)
        ranges.monitor(self.monitor)
        ranges.evaluation(self.evaluation)
        for short in self.short_runs:
            ranges.short_run(short)
            self.for_epochs(short.epochs)  # every setting is a key of the recipe, and its value in range

    @classmethod
    def load(cls, name_or_file: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
        """A named recipe or a TOML file, with `overrides` such as `{"train.epochs": 200}` laid over it.

        Raises:
            UsageError: unknown recipe, unknown or missing key (with the nearest name), wrong type, value out of range.
        """
        tree = _read(str(name_or_file))
        for key, value in (overrides or {}).items():
            _override(tree, key, value)
        return cls.from_tree(tree)

    @classmethod
    def from_toml(cls, text: str) -> Recipe:
        """The recipe that `to_toml` wrote."""
        tree = parse(text, "")
        if "evaluation" not in tree:  # a run written before recipes said how to train with labels
            tree["evaluation"] = _read(DEFAULT)["evaluation"]
        if isinstance(tree.get("train"), dict):  # a run written before there were micro-batches
            tree["train"].setdefault("micro_batch", 0)
        return cls.from_tree(tree)

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Recipe:
        """A recipe from nested plain values, every key checked."""
        return build(cls, tree, "")

    def replace(self, **overrides: Any) -> Recipe:
        """A copy with overrides, their dots written as double underscores: `replace(train__epochs=2)`."""
        return self.override({key.replace("__", "."): value for key, value in overrides.items()})

    def override(self, values: Mapping[str, Any]) -> Recipe:
        """A copy with `values` such as `{"train.epochs": 200}` laid over it; errors as of `load`."""
        tree = self.to_tree()
        for key, value in values.items():
            _override(tree, key, value)
        return Recipe.from_tree(tree)

    def to_tree(self) -> dict[str, Any]:
        """Nested plain values (str, int, float, bool, list, dict)."""
        return to_plain(self)

    def to_toml(self) -> str:
        """The resolved recipe as a complete TOML file."""
        return to_toml(self.to_tree())

    def hash(self) -> str:
        """sha256 of the resolved TOML text, 64 hex digits."""
        return hashlib.sha256(self.to_toml().encode()).hexdigest()

    def learning_rate(self) -> float:
        """Peak learning rate, scaled by batch / 256 where the recipe says so."""
        o = self.optimizer
        return o.lr * self.train.batch_size / 256 if o.lr_per_256 else o.lr

    def for_epochs(self, epochs: float) -> Recipe:
        """The recipe of a run of `epochs` epochs: `short_runs` applied, the widest first, and none of them left."""
        tree = self.to_tree()
        tree["short_runs"] = []
        for short in sorted(self.short_runs, key=lambda s: -s.epochs):
            if epochs <= short.epochs:
                for key, value in short.settings.items():
                    _override(tree, key, value)
        return Recipe.from_tree(tree)

    def variants(self) -> list[Recipe]:
        """What `for_epochs` can give, for any length of a run."""
        return [self.for_epochs(epochs) for epochs in (math.inf, *(s.epochs for s in self.short_runs))]

    def differences(self, other: Recipe) -> dict[str, Any]:
        """Key (`train.views`) → this recipe's value, where `other` has another; text about the recipe left aside."""
        theirs = _flat(other)
        return {key: value for key, value in _flat(self).items() if theirs.get(key) != value}


def recipe_names() -> list[str]:
    """The names of the recipes that come with the package."""
    files = resources.files("simclr_engine").joinpath("recipes").iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def _read(name: str) -> dict[str, Any]:
    """The tree of a named recipe or a file, merged over its `base`."""
    if name in recipe_names():
        text, where = resources.files("simclr_engine").joinpath("recipes", f"{name}.toml").read_text("utf-8"), name
    elif name.endswith(".toml") or Path(name).is_file():
        try:
            text, where = _read_text(Path(name)), name
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError("the recipe file cannot be read", saw=f"{name}: {error}", fix="check the path") from error
    else:
        raise UsageError("no recipe of this name", saw=name, fix=nearest(name, recipe_names()))
    tree = parse(text, f"{where}: ")
    base = tree.pop("base", None)
    if base is None:
        return tree
    if base not in recipe_names():
        fix = nearest(shown(base), recipe_names())
        raise UsageError("`base` must name a recipe of the package", saw=shown(base), fix=fix)
    merged = _read(base)
    merged["published"] = {}
    published = tree.pop("published", {})
    for key, value in leaves(tree):
        if value == {} and any(other.startswith(f"{key}.") for other, _ in leaves(merged)):
            continue  # a table that says nothing leaves the one of `base` as it is
        set_key(merged, key, value)
        _claim(merged, key)
    return merged | {"published": published}


def _read_text(path: Path) -> str:
    if path.stat().st_size > LARGEST_FILE:
        raise UsageError(
            "too large for a recipe", saw=f"{path}: {path.stat().st_size:,} bytes", fix="name a .toml file"
        )
    return path.read_text("utf-8")


def _override(tree: dict[str, Any], key: str, value: Any) -> None:
    """Sets `a.b` in the tree; the key must exist. Text is read as a TOML value where it is one."""
    known = known_keys(Recipe)
    if key not in known:
        raise UsageError("the recipe has no such key", saw=cut(key), fix=nearest(cut(key), known))
    set_key(tree, key, read_value(value) if isinstance(value, str) else value)
    _claim(tree, key)


def _claim(tree: dict[str, Any], key: str) -> None:
    """A value that a user sets holds for short runs too."""
    shorts = tree.get("short_runs")
    for short in shorts if isinstance(shorts, list) else ():
        if isinstance(short, dict) and isinstance(short.get("settings"), dict):
            short["settings"].pop(key, None)


def _flat(recipe: Recipe) -> dict[str, Any]:
    rooms = {room: t for room, t in recipe.to_tree().items() if isinstance(t, dict) and room != "published"}
    return dict(leaves(rooms))
