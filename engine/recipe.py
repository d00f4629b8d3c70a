"""Recipe: every hyper-parameter of a run, typed, validated and frozen; read from TOML, overridden by `--set a.b=c`.

A recipe file is complete: no hyper-parameter has a default here, so its one home is the file. A user's own file may
say `base = "cifar10"` and list only what differs.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from simclr_engine.kernels.augmentation.spec import AugmentSpec

from .errors import UsageError

DEFAULT = "cifar10"
ARCHITECTURES = ("resnet18", "resnet34", "resnet50")
LARGEST_FILE = 1 << 20  # bytes; the recipes of the package have 4,000
MOST = 10**9  # of steps, images or epochs, where nothing else sets a bound
_SHOWN = 200  # characters of a foreign value in a message


@dataclass(frozen=True)
class DataSpec:
    """What is trained on: `source` is a name or a path; `size` in pixels, 0 keeps the images as they are."""

    source: str
    size: int


@dataclass(frozen=True)
class ModelSpec:
    """The encoder: torchvision's ResNet with a `small` (3×3, no max-pool) or `imagenet` (7×7, max-pool) stem."""

    arch: str
    stem: str


@dataclass(frozen=True)
class HeadSpec:
    """The projection head: hidden widths, output width D, where batch norm stands, dropout before each linear layer but
    the first."""

    hidden: tuple[int, ...]
    dimension: int
    batch_norm: str
    dropout: float


@dataclass(frozen=True)
class LossSpec:
    """NT-Xent."""

    temperature: float


@dataclass(frozen=True)
class OptimizerSpec:
    """`lr` is per 256 images where `lr_per_256` holds."""

    name: str
    lr: float
    lr_per_256: bool
    momentum: float
    nesterov: bool
    weight_decay: float
    form: str
    trust_coefficient: float


@dataclass(frozen=True)
class ScheduleSpec:
    """cosine | step | exponential | constant, after a linear warm-up; lengths in epochs.

    `gamma` is the factor of `step` (every `step_epochs`) and of the first phase of `exponential` (each epoch until
    `phase_epochs`); `gamma_late` that of its second phase. `lr_min` is where cosine ends, as a fraction of the peak.
    """

    name: str
    warmup_epochs: float
    lr_min: float
    step_epochs: float
    gamma: float
    phase_epochs: float
    gamma_late: float


@dataclass(frozen=True)
class TrainSpec:
    """The loop.

    `views` V ≥ 2 per image; `resolution` lists (fraction of the run, crop output size in pixels, 0 for the images' own
    size), empty for their own size throughout; `checkpoint_epochs` keeps a numbered checkpoint, 0 the last one alone.
    `batch_size` counts the images of all processes in a step; `micro_batch` those that are in memory at once on each
    (0: all of its share), with the gradient of the whole batch.
    """

    epochs: int
    batch_size: int
    micro_batch: int
    views: int
    resolution: tuple[tuple[float, int], ...]
    precision: str
    seed: int
    checkpoint_epochs: int


@dataclass(frozen=True)
class MonitorSpec:
    """What is watched: a log row every `log_steps`; online kNN over `knn_images` every `knn_epochs` (0 = never)."""

    log_steps: int
    knn_epochs: int
    knn_images: int


@dataclass(frozen=True)
class LabelledSpec:
    """Training with labels, for an evaluation.

    `crop_scale` is the share of an image's area that a random crop covers, [1, 1] for whole images; `flip` the
    probability of mirroring. The other names mean what they mean for pretraining; lengths in epochs.
    """

    epochs: int
    batch_size: int
    crop_scale: tuple[float, float]
    flip: float
    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    schedule: str
    gamma: float
    phase_epochs: float
    gamma_late: float

    def optimizer_spec(self) -> OptimizerSpec:
        """As pretraining knows it; LARS has no place here."""
        return OptimizerSpec(self.optimizer, self.lr, False, self.momentum, False, self.weight_decay, "paper", 0.001)

    def schedule_spec(self) -> ScheduleSpec:
        """As pretraining knows it, without warm-up."""
        return ScheduleSpec(self.schedule, 0.0, 0.0, 1.0, self.gamma, self.phase_epochs, self.gamma_late)


@dataclass(frozen=True)
class EvaluationSpec:
    """The evaluation methods that train.

    `head`: a linear layer on the frozen encoder; `finetune`: encoder and layer end to end; `supervised`: the same
    network from scratch, for as long as the pretraining took where its `epochs` are 0.
    """

    head: LabelledSpec
    finetune: LabelledSpec
    supervised: LabelledSpec


@dataclass(frozen=True)
class ShortRun:
    """What a run of at most `epochs` epochs does otherwise: `settings` as for `--set`, `{"train.views": 4}`."""

    epochs: int
    settings: dict[str, Any]


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
        _validate(self)

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
        tree = _parse(text, "")
        if "evaluation" not in tree:  # a run written before recipes said how to train with labels
            tree["evaluation"] = _read(DEFAULT)["evaluation"]
        if isinstance(tree.get("train"), dict):  # a run written before there were micro-batches
            tree["train"].setdefault("micro_batch", 0)
        return cls.from_tree(tree)

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Recipe:
        """A recipe from nested plain values, every key checked."""
        return _build(cls, tree, "")

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
        tree = _plain(self)
        del tree["augment"]["image_size"]  # a property of the data, not of the recipe
        return tree

    def to_toml(self) -> str:
        """The resolved recipe as a complete TOML file."""
        return _toml(self.to_tree())

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
        raise UsageError("no recipe of this name", saw=name, fix=_nearest(name, recipe_names()))
    tree = _parse(text, f"{where}: ")
    base = tree.pop("base", None)
    if base is None:
        return tree
    if base not in recipe_names():
        nearest = _nearest(_shown(base), recipe_names())
        raise UsageError("`base` must name a recipe of the package", saw=_shown(base), fix=nearest)
    merged = _read(base)
    merged["published"] = {}
    published = tree.pop("published", {})
    for key, value in _leaves(tree):
        _set(merged, key, value)
        _claim(merged, key)
    return merged | {"published": published}


def _read_text(path: Path) -> str:
    if path.stat().st_size > LARGEST_FILE:
        raise UsageError(
            "too large for a recipe", saw=f"{path}: {path.stat().st_size:,} bytes", fix="name a .toml file"
        )
    return path.read_text("utf-8")


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also brackets within brackets without end, a number of 5,000 digits
        raise UsageError("the recipe is not valid TOML", saw=_cut(f"{where}{error}"), fix="mend that line") from error


def _shown(value: object) -> str:
    """A foreign value in a message."""
    try:
        return _cut(repr(value))
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} too long to show"


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """(`a.b`, value) of everything in nested tables."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield path + key, value


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean `{close[0]}`?" if close else "one of: " + ", ".join(known)


def _override(tree: dict[str, Any], key: str, value: Any) -> None:
    """Sets `a.b` in the tree; the key must exist. Text is read as a TOML value where it is one."""
    known = _known_keys(Recipe)
    if key not in known:
        raise UsageError("the recipe has no such key", saw=_cut(key), fix=_nearest(_cut(key), known))
    _set(tree, key, _read_value(value) if isinstance(value, str) else value)
    _claim(tree, key)


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    """`tree["a"]["b"] = value` for the key `a.b`."""
    *rooms, field = key.split(".")
    for name in rooms:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):  # `train = 3` beside `"train.epochs" = 4`
            raise UsageError("a recipe table was expected", saw=f"{_cut(key)} in {_shown(tree)}", fix="write [table]")
    tree[field] = value


def _claim(tree: dict[str, Any], key: str) -> None:
    """A value that a user sets holds for short runs too."""
    shorts = tree.get("short_runs")
    for short in shorts if isinstance(shorts, list) else ():
        if isinstance(short, dict) and isinstance(short.get("settings"), dict):
            short["settings"].pop(key, None)


def _read_value(text: str) -> Any:
    """A TOML value (`[0.2, 1.0]`, `true`, `3`), a number as one types it (`.9`, `1e-6`), or plain text (`adamw`)."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except (ValueError, RecursionError):
        try:
            return float(text)
        except ValueError:
            return text


def _known_keys(cls: type[Any], path: str = "") -> list[str]:
    """Every key that `--set` takes: `train.epochs`, `evaluation.head.lr`."""
    keys: list[str] = []
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            keys += _known_keys(hints[field.name], f"{path}{field.name}.")
        elif field.name != "image_size":
            keys.append(path + field.name)
    return keys


def _build(cls: type[Any], tree: Mapping[str, Any], path: str) -> Any:
    """An instance of dataclass `cls` from plain values: unknown and missing keys refused, types checked."""
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls) if f.name != "image_size"]
    for key in tree:
        if key not in names:
            raise UsageError("the recipe has no such key", saw=_cut(f"{path}{key}"), fix=_nearest(_cut(key), names))
    missing = [n for n in names if n not in tree]
    if missing:
        raise UsageError(
            "the recipe is incomplete",
            saw="no " + ", ".join(path + n for n in missing),
            fix='add them, or start from a whole recipe with: base = "cifar10"',
        )
    values = {name: _convert(hints[name], tree[name], path + name) for name in names}
    try:
        return cls(**values)
    except ValueError as error:  # AugmentSpec lives among the kernels and checks itself
        raise UsageError(
            "a recipe value is out of range", saw=error, fix=f"correct it under [{path.rstrip('.')}]"
        ) from error


def _convert(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UsageError(
                "a recipe table was expected", saw=f"{path} = {_shown(value)}", fix=f"write it as [{path}]"
            )
        return _build(typing.cast("type[Any]", hint), value, f"{path}.")
    origin = typing.get_origin(hint)
    if origin is tuple and isinstance(value, list | tuple):
        inner = typing.get_args(hint)
        if len(inner) == 2 and inner[1] is Ellipsis:
            return tuple(_convert(inner[0], v, path) for v in value)
        if len(inner) == len(value):
            return tuple(_convert(h, v, path) for h, v in zip(inner, value, strict=True))
    elif origin is dict and isinstance(value, Mapping):
        return _plain_table(value, path)
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, int) and abs(value) >= 2**1023:  # too long for a float
            return math.inf if value > 0 else -math.inf
        return float(value)
    elif isinstance(hint, type) and not isinstance(hint, types.GenericAlias) and type(value) is hint:
        return value
    name = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise UsageError(
        "a recipe value has the wrong type", saw=f"{path} = {_shown(value)}", fix=f"{path} must be of type {name}"
    )


def _plain_table(value: Mapping[str, Any], path: str) -> dict[str, Any]:
    """A table of free content; what could not be written down again as it was is refused."""

    def check(part: object) -> None:
        if isinstance(part, Mapping | list | tuple):
            for inner in part.values() if isinstance(part, Mapping) else part:
                check(inner)
        elif not isinstance(part, str | bool | float) and not (isinstance(part, int) and abs(part) < 2**63):
            raise UsageError(
                "a recipe value has the wrong type",
                saw=f"{path}: {_shown(part)}",
                fix="text, numbers, true or false, lists and tables of them",
            )

    check(value)
    return dict(value)


def _require(holds: bool, key: str, value: object, allowed: str) -> None:
    if not holds:
        raise UsageError(
            "a recipe value is out of range", saw=f"{key} = {_said(value)}", fix=f"{key} must be {allowed}"
        )


def _said(value: object) -> str:
    return _cut(value) if isinstance(value, str) else _shown(value)


def _finite(value: float, low: float = 0.0) -> bool:
    return math.isfinite(value) and value >= low


def _validate(r: Recipe) -> None:
    """Every range in one place."""
    d, m, h, o, s, t, w = r.data, r.model, r.head, r.optimizer, r.schedule, r.train, r.monitor
    _require(d.size == 0 or 8 <= d.size <= 1024, "data.size", d.size, "0 (as it is) or 8 to 1024 pixels")
    _require(m.arch in ARCHITECTURES, "model.arch", m.arch, "one of " + ", ".join(ARCHITECTURES))
    _require(m.stem in ("small", "imagenet"), "model.stem", m.stem, "small or imagenet")
    _require(1 <= len(h.hidden) <= 2, "head.hidden", list(h.hidden), "one or two widths (a head of 2 or 3 layers)")
    _require(all(1 <= n <= 65536 for n in h.hidden), "head.hidden", list(h.hidden), "widths of 1 to 65,536")
    _require(1 <= h.dimension <= 65536, "head.dimension", h.dimension, "1 to 65,536")
    _require(h.batch_norm in ("none", "hidden", "all"), "head.batch_norm", h.batch_norm, "none, hidden or all")
    _require(0 <= h.dropout < 1, "head.dropout", h.dropout, "at least 0 and below 1")
    _require(0 < r.loss.temperature <= 100, "loss.temperature", r.loss.temperature, "above 0 and at most 100")
    _require(o.name in ("lars", "sgd", "adam", "adamw"), "optimizer.name", o.name, "lars, sgd, adam or adamw")
    _require(math.isfinite(o.lr) and o.lr > 0, "optimizer.lr", o.lr, "a positive number")
    _require(0 <= o.momentum < 1, "optimizer.momentum", o.momentum, "at least 0 and below 1")
    _require(_finite(o.weight_decay), "optimizer.weight_decay", o.weight_decay, "0 or more")
    _require(o.form in ("paper", "google"), "optimizer.form", o.form, "paper or google")
    _require(_finite(o.trust_coefficient), "optimizer.trust_coefficient", o.trust_coefficient, "0 or more")
    names = ("cosine", "step", "exponential", "constant")
    _require(s.name in names, "schedule.name", s.name, ", ".join(names))
    _require(_finite(s.warmup_epochs), "schedule.warmup_epochs", s.warmup_epochs, "0 or more epochs")
    _require(0 <= s.lr_min <= 1, "schedule.lr_min", s.lr_min, "a fraction of the peak, 0 to 1")
    _require(s.name != "step" or _finite(s.step_epochs, 1e-9), "schedule.step_epochs", s.step_epochs, "above 0")
    for key in ("gamma", "gamma_late"):
        _require(0 < getattr(s, key) <= 1, f"schedule.{key}", getattr(s, key), "above 0 and at most 1")
    _require(_finite(s.phase_epochs), "schedule.phase_epochs", s.phase_epochs, "0 or more epochs")
    _require(1 <= t.epochs <= 100_000, "train.epochs", t.epochs, "1 to 100,000")
    _require(2 <= t.batch_size <= 1_000_000, "train.batch_size", t.batch_size, "at least 2 (contrast needs two images)")
    divides = t.micro_batch >= 0 and (t.micro_batch == 0 or t.batch_size % t.micro_batch == 0)
    allowed = f"0 (the whole batch at once) or a divisor of train.batch_size = {t.batch_size}"
    _require(divides, "train.micro_batch", t.micro_batch, allowed)
    _require(2 <= t.views <= 64, "train.views", t.views, "2 to 64")
    _require(
        t.precision in ("auto", "bf16", "fp16", "fp32"), "train.precision", t.precision, "auto, bf16, fp16 or fp32"
    )
    _require(0 <= t.seed < 2**63, "train.seed", t.seed, "0 to 2^63 − 1")
    _require(0 <= t.checkpoint_epochs <= MOST, "train.checkpoint_epochs", t.checkpoint_epochs, "0 or more")
    ends = [end for end, _ in t.resolution]
    good = ends == sorted(set(ends)) and all(0 < e <= 1 for e in ends) and (not ends or ends[-1] == 1)
    good = good and all(size == 0 or 8 <= size <= 1024 for _, size in t.resolution)
    allowed = "rising fractions ending at 1, sizes 0 (the images' own) or 8 to 1024"
    _require(good, "train.resolution", [list(p) for p in t.resolution], allowed)
    _require(1 <= w.log_steps <= MOST, "monitor.log_steps", w.log_steps, "1 or more")
    _require(0 <= w.knn_epochs <= MOST, "monitor.knn_epochs", w.knn_epochs, "0 (never) or more")
    _require(20 <= w.knn_images <= MOST, "monitor.knn_images", w.knn_images, "20 or more")
    for method in ("head", "finetune", "supervised"):
        _validate_labelled(getattr(r.evaluation, method), f"evaluation.{method}", least=int(method != "supervised"))
    for short in r.short_runs:
        _require(1 <= short.epochs <= MOST, "short_runs.epochs", short.epochs, "1 or more")
        for key in short.settings:
            _require("." in key, "short_runs.settings", key, 'keys within a table, such as "train.views"')
        r.for_epochs(short.epochs)  # every setting is a key of the recipe, and its value in range


def _validate_labelled(s: LabelledSpec, at: str, least: int) -> None:
    _require(least <= s.epochs <= 100_000, f"{at}.epochs", s.epochs, f"{least} to 100,000")
    _require(1 <= s.batch_size <= 1_000_000, f"{at}.batch_size", s.batch_size, "1 or more")
    low, high = s.crop_scale
    _require(0 < low <= high <= 1, f"{at}.crop_scale", list(s.crop_scale), "two shares, 0 < low ≤ high ≤ 1")
    _require(0 <= s.flip <= 1, f"{at}.flip", s.flip, "a probability")
    _require(s.optimizer in ("sgd", "adam", "adamw"), f"{at}.optimizer", s.optimizer, "sgd, adam or adamw")
    _require(math.isfinite(s.lr) and s.lr > 0, f"{at}.lr", s.lr, "a positive number")
    _require(0 <= s.momentum < 1, f"{at}.momentum", s.momentum, "at least 0 and below 1")
    _require(_finite(s.weight_decay), f"{at}.weight_decay", s.weight_decay, "0 or more")
    names = ("cosine", "step", "exponential", "constant")
    _require(s.schedule in names, f"{at}.schedule", s.schedule, ", ".join(names))
    for key in ("gamma", "gamma_late"):
        _require(0 < getattr(s, key) <= 1, f"{at}.{key}", getattr(s, key), "above 0 and at most 1")
    _require(_finite(s.phase_epochs), f"{at}.phase_epochs", s.phase_epochs, "0 or more epochs")


def _flat(recipe: Recipe) -> dict[str, Any]:
    rooms = {room: t for room, t in recipe.to_tree().items() if isinstance(t, dict) and room != "published"}
    return dict(_leaves(rooms))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = "".join(
            {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t"}.get(c, c if c.isprintable() else f"\\U{ord(c):08X}")
            for c in value
        )
        return f'"{escaped}"'
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_value(k)} = {_toml_value(v)}" for k, v in value.items()) + "}"
    return repr(value)


def _toml(tree: Mapping[str, Any], path: str = "") -> str:
    """A TOML file of nested tables (the standard library reads TOML but does not write it)."""
    lines = [f"{_toml_key(k)} = {_toml_value(v)}" for k, v in tree.items() if not isinstance(v, dict)]
    for name, table in tree.items():
        if isinstance(table, dict):
            only_tables = bool(table) and all(isinstance(v, dict) for v in table.values())
            head = [] if only_tables else ["", f"[{path}{_toml_key(name)}]"]
            lines += [*head, _toml(table, f"{path}{_toml_key(name)}.").rstrip("\n")]
    return "\n".join(lines) + "\n"


def _toml_key(key: str) -> str:
    return key if re.fullmatch("[A-Za-z0-9_-]+", key) else _toml_value(key)
