"""Recipe: every hyper-parameter of a run, typed, validated and frozen; read from TOML, overridden by `--set KEY=VALUE`.

Names, defaults, units and ranges are defined here; a recipe file lists only the values that differ. A user's file may
start from a named recipe with `base = "cifar10"`. Imports pydantic but no torch: import this module where a recipe is
opened.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from simclr_engine.kernels.augmentation.spec import AugmentSpec

from .bounds import DEEPEST_VALUE, LARGEST_RECIPE, MOST_KEY_PARTS
from .data.levels import are_levels
from .errors import UsageError, cut, nearest, shown
from .inputs import UnfitError, read_text
from .stem import ALLOWED, is_stem

DEFAULT = "cifar10"
MOST = 10**9  # steps, images or epochs, where nothing else sets a bound


class Table(BaseModel):
    """A table of a recipe: frozen, with exactly these keys and types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _only(holds: Callable[[Any], bool], allowed: str) -> AfterValidator:
    """A validator for ranges that two bounds cannot express; the error names what is `allowed`."""

    def check(value: Any) -> Any:
        if not holds(value):
            raise ValueError(allowed)
        return value

    return AfterValidator(check)


def _rising(stages: Sequence[tuple[float, int]]) -> bool:
    ends = [end for end, _ in stages]
    return ends == sorted(set(ends)) and all(0 < end <= 1 for end in ends) and ends[-1:] in ([], [1])


def _can_be_written(part: Any) -> bool:
    if isinstance(part, dict | list | tuple):
        return all(_can_be_written(inner) for inner in (part.values() if isinstance(part, dict) else part))
    if isinstance(part, str):  # Python represents a path that is not UTF-8 with surrogates
        return not any("\ud800" <= character <= "\udfff" for character in part)
    return isinstance(part, float) or (isinstance(part, int) and abs(part) < 2**63)


LIST = Field(strict=False)  # TOML has lists instead of tuples; their items stay strict
Text = Annotated[str, _only(_can_be_written, "text that UTF-8 can encode")]
Count = Annotated[int, Field(ge=0, le=MOST)]
Epochs = Annotated[int, Field(ge=1, le=100_000)]
Side = Annotated[int, _only(lambda side: side == 0 or 8 <= side <= 1024, "0 (as it is) or 8 to 1024 pixels")]
Widths = Annotated[
    tuple[int, ...],
    LIST,
    _only(
        lambda widths: 1 <= len(widths) <= 2 and all(1 <= width <= 65_536 for width in widths),
        "one or two widths of 1 to 65,536 (a head of 2 or 3 layers)",
    ),
]
Stages = Annotated[
    tuple[Annotated[tuple[float, Side], LIST], ...],
    LIST,
    _only(_rising, "pairs (fraction, side), fractions rising to 1"),
]
Shares = Annotated[tuple[float, float], LIST, _only(lambda s: 0 < s[0] <= s[1] <= 1, "two shares, 0 < low ≤ high ≤ 1")]
Range16 = Annotated[
    tuple[int, ...],
    LIST,
    _only(lambda levels: not levels or are_levels(levels), "[low, high], 0 ≤ low < high ≤ 65535, or [] for all values"),
]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Factor = Annotated[float, Field(gt=0, le=1)]
Schedule = Literal["cosine", "linear", "step", "exponential", "constant"]
LabelledOptimizer = Literal["sgd", "adam", "adamw"]
FreeTable = Annotated[
    dict[str, Any], _only(_can_be_written, "of text, numbers, true or false, lists and tables of them")
]

AUGMENT_KEYS = [f"augment.{field.name}" for field in dataclasses.fields(AugmentSpec) if field.name != "image_size"]


def _augment(value: object) -> object:
    """Makes an AugmentSpec, which the kernels define with defaults and ranges; the data set `image_size`."""
    if not isinstance(value, dict):
        return value
    for key in value:
        if f"augment.{key}" not in AUGMENT_KEYS:
            raise _no_such_key(f"augment.{key}", AUGMENT_KEYS)
    try:
        return AugmentSpec(**value)
    except (ValueError, OverflowError) as error:
        raise UsageError("a recipe value is out of range", saw=error, fix="correct it under [augment]") from error


class DataSpec(Table):
    """The images to train on."""

    source: Text = Field(description="the name of a dataset, a folder or an archive")
    size: Side = Field(default=0, description="side in pixels; 0: the images as they are, large ones smaller")
    levels: Range16 = Field(default=(), description="values of 16-bit gray images that become 0 and 255")

    @model_serializer(mode="wrap")
    def _without_full_levels(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """They came later: the text of other recipes, which their hash is of, does not have them."""
        written: dict[str, Any] = write(self)
        return {key: value for key, value in written.items() if key != "levels" or value}


class ModelSpec(Table):
    """The encoder: a ResNet with a `small` (3×3, no max-pool) or `imagenet` (7×7, max-pool) stem or a variant; or, of
    runs from Python, the caller's `own` module, of which the stem says nothing."""

    arch: Literal["resnet18", "resnet34", "resnet50", "own"] = "resnet18"
    stem: Annotated[str, _only(is_stem, ALLOWED)] = "small"


class HeadSpec(Table):
    """The projection head."""

    hidden: Widths = Field(default=(1024,), description="widths of the hidden layers")
    dimension: int = Field(default=128, ge=1, le=65_536, description="width D of the projection")
    batch_norm: Literal["none", "hidden", "all"] = Field(default="none", description="the layers that it follows")
    dropout: Momentum = Field(default=0.0, description="probability, before each linear layer but the first")


class LossSpec(Table):
    """NT-Xent."""

    temperature: float = Field(gt=0, le=100)


OF_MUON = ("muon_steps", "rest_lr")  # of OptimizerSpec, where its name is muon


class OptimizerSpec(Table):
    """The optimizer and its peak learning rate."""

    name: Literal["lars", "sgd", "adam", "adamw", "muon"]
    lr: Positive = Field(description="peak learning rate")
    lr_per_256: bool = Field(default=False, description="whether `lr` is per 256 images of the batch")
    momentum: Momentum = 0.9
    nesterov: bool = Field(default=False, description="of SGD; Muon always takes this form")
    weight_decay: NotNegative = 1e-6
    form: Literal["paper", "google"] = Field(default="paper", description="of LARS: where the decay enters")
    trust_coefficient: NotNegative = Field(default=0.001, description="of LARS")
    muon_steps: int = Field(default=5, ge=1, le=20, description="of Muon: Newton–Schulz steps")
    rest_lr: Positive = Field(
        default=0.03, description="of Muon: peak learning rate of batch norm, biases and the first convolution"
    )

    @model_validator(mode="after")
    def _settings_belong_to_it(self) -> OptimizerSpec:
        for key in OF_MUON:
            if key in self.model_fields_set and self.name != "muon":
                raise UsageError(
                    "a recipe sets Muon's settings for another optimizer",
                    saw=f'optimizer.{key} = {getattr(self, key)} with optimizer.name = "{self.name}"',
                    fix='leave it out, or set optimizer.name = "muon"',
                )
        return self

    @model_serializer(mode="wrap")
    def _without_the_settings_of_others(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Muon's settings came later: the text of other recipes, which their hash is of, does not have them."""
        written: dict[str, Any] = write(self)
        return {key: value for key, value in written.items() if self.name == "muon" or key not in OF_MUON}


class ScheduleSpec(Table):
    """The learning rate over the run, after a linear warm-up; lengths in epochs."""

    name: Schedule = "cosine"
    warmup_epochs: NotNegative = 0.0
    lr_min: float = Field(default=0.0, ge=0, le=1, description="where cosine and linear end, as a fraction of the peak")
    step_epochs: float = Field(default=1.0, description="of `step`: epochs between two steps")
    gamma: Factor = Field(default=1.0, description="factor of `step`; of `exponential`, each epoch of its first phase")
    phase_epochs: NotNegative = Field(default=0.0, description="of `exponential`: length of its first phase")
    gamma_late: Factor = Field(default=1.0, description="of `exponential`: the factor of its second phase")

    @field_validator("step_epochs")
    @classmethod
    def _steps_take_time(cls, value: float, info: ValidationInfo) -> float:
        if info.data.get("name") == "step" and value < 1e-9:
            raise ValueError("above 0")
        return value


class TrainSpec(Table):
    """The training loop."""

    epochs: Epochs
    batch_size: int = Field(ge=2, le=1_000_000, description="images in a step, of all processes; it takes two images")
    micro_batch: int = Field(default=0, description="images in memory at once on each process; 0: all of its share")
    views: int = Field(default=2, ge=2, le=64, description="V, of each image")
    resolution: Stages = Field(
        default=(), description="(fraction of the run, side of the views in pixels, 0 for the images' own size)"
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    checkpoint_epochs: Count = Field(default=100, description="epochs between kept checkpoints; 0: the last alone")

    @field_validator("micro_batch")
    @classmethod
    def _divides(cls, value: int, info: ValidationInfo) -> int:
        batch = info.data.get("batch_size", 0)
        if value < 0 or (value > 0 and batch % value):
            raise ValueError(f"0 (the whole batch at once) or a divisor of train.batch_size = {batch}")
        return value


class MonitorSpec(Table):
    """Logging and online evaluation."""

    log_steps: int = Field(default=10, ge=1, le=MOST, description="steps per row of the log")
    knn_epochs: Count = Field(default=10, description="epochs between two kNN accuracies; 0: never")
    knn_images: int = Field(default=2000, ge=20, le=MOST, description="images that it looks at")


class LabelledSpec(Table):
    """Training with labels, for an evaluation. Names mean the same as for pretraining; lengths in epochs."""

    epochs: Epochs
    batch_size: int = Field(default=128, ge=1, le=1_000_000, description="images in a step")
    crop_scale: Shares = Field(default=(0.5, 1.0), description="share of the area that a random crop covers")
    flip: Probability = Field(default=0.5, description="probability of mirroring")
    optimizer: LabelledOptimizer
    lr: Positive
    momentum: Momentum = 0.0
    weight_decay: NotNegative
    schedule: Schedule = "cosine"
    gamma: Factor = 1.0
    phase_epochs: NotNegative = 0.0
    gamma_late: Factor = 1.0

    def optimizer_spec(self) -> OptimizerSpec:
        """These values as for pretraining, for the optimizers other than LARS."""
        return OptimizerSpec(
            name=self.optimizer, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay, form="paper"
        )

    def schedule_spec(self) -> ScheduleSpec:
        """These values as for pretraining, without warm-up."""
        return ScheduleSpec(
            name=self.schedule, gamma=self.gamma, phase_epochs=self.phase_epochs, gamma_late=self.gamma_late
        )


class LinearSpec(LabelledSpec):
    """A linear layer on the frozen encoder. By default on whole images without flips: features are computed once."""

    epochs: Epochs = 10
    batch_size: int = Field(default=256, ge=1, le=1_000_000)
    crop_scale: Shares = (1.0, 1.0)
    flip: Probability = 0.0
    optimizer: LabelledOptimizer = "adam"
    lr: Positive = 0.001
    weight_decay: NotNegative = 0.0


class FinetuneSpec(LabelledSpec):
    """Encoder and linear layer end to end."""

    epochs: Epochs = 10
    optimizer: LabelledOptimizer = "adamw"
    lr: Positive = 0.0005
    weight_decay: NotNegative = 0.01


class SupervisedSpec(LabelledSpec):
    """The same network from scratch."""

    epochs: int = Field(default=0, ge=0, le=100_000, description="0: for as long as the pretraining took")
    optimizer: LabelledOptimizer = "sgd"
    lr: Positive = 0.05
    momentum: Momentum = 0.9
    weight_decay: NotNegative = 0.0005


class EvaluationSpec(Table):
    """The evaluation methods that train."""

    head: LinearSpec = LinearSpec()
    finetune: FinetuneSpec = FinetuneSpec()
    supervised: SupervisedSpec = SupervisedSpec()


class ShortRun(Table):
    """Settings for runs of at most `epochs` epochs, named as for `--set`: `{"train.views": 4}`."""

    epochs: int = Field(ge=1, le=MOST)
    settings: Annotated[
        FreeTable, _only(lambda s: all("." in key for key in s), 'of keys within a table, such as "train.views"')
    ]


class Recipe(Table):
    """All hyper-parameters of a pretraining run.

    `published` holds the published figures of the system that the recipe reproduces, or nothing: `{"source": …,
    "results": [{"method", "init", "accuracy", …}]}`.
    """

    name: Text
    origin: Text = ""
    notes: Text = ""
    published: FreeTable = Field(default_factory=dict)
    data: DataSpec
    augment: Annotated[AugmentSpec, BeforeValidator(_augment)] = AugmentSpec()
    model: ModelSpec = ModelSpec()
    head: HeadSpec = HeadSpec()
    loss: LossSpec
    optimizer: OptimizerSpec
    schedule: ScheduleSpec = ScheduleSpec()
    train: TrainSpec
    monitor: MonitorSpec = MonitorSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    short_runs: Annotated[tuple[ShortRun, ...], LIST] = ()
    _named: frozenset[str] | None = PrivateAttr(default=None)  # None: every key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.__dict__ == other.__dict__

    __hash__ = Table.__hash__

    def names(self, key: str) -> bool:
        """Whether the user set `key`: by an override, in a file, or because the recipe was made from all its values.

        What a recipe of the package says may be fitted to the images and the machine (`fitting`); what a user says
        stays.
        """
        return self._named is None or key in self._named

    @model_validator(mode="after")
    def _short_runs_can_be_meant(self) -> Recipe:
        for short in self.short_runs:
            self.for_epochs(short.epochs)  # raises unless every setting is a key of the recipe with a valid value
        return self

    @classmethod
    def load(cls, name_or_file: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
        """A named recipe or a TOML file, with `overrides` such as `{"train.epochs": 200}`.

        Raises:
            UsageError: unknown recipe, unknown or missing key (with the nearest name), wrong type, value out of range.
        """
        tree, named = _read(str(name_or_file))
        _override(tree, overrides or {})
        return cls.from_tree(tree, named | frozenset(overrides or ()))

    @classmethod
    def from_toml(cls, text: str) -> Recipe:
        """The recipe that `to_toml` wrote. It must be complete, except for keys that are newer than the file.

        Raises:
            UsageError: the text is not a recipe, or a key is missing.
        """
        tree = _parse(text, "")
        recipe = cls.from_tree(tree)
        there = {key for key, _ in leaves(tree | {"published": {}})} | {"train.micro_batch"}
        complete = [key for key, _ in leaves(recipe.to_tree() | {"published": {}})]
        known = [key for key in complete if "evaluation" in tree or not key.startswith("evaluation.")]
        if lost := [key for key in known if key not in there]:
            raise _incomplete(lost)
        return recipe

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any], named: frozenset[str] | None = None) -> Recipe:
        """A recipe from nested plain values; the user set those in `named` (None: all). Raises the errors of `load`."""
        try:
            recipe = cls.model_validate(tree)
        except ValidationError as error:
            raise _refusal(error) from error
        recipe._named = named
        return recipe

    def replace(self, **overrides: Any) -> Recipe:
        """A copy with overrides, with dots written as double underscores: `replace(train__epochs=2)`."""
        return self.override({key.replace("__", "."): value for key, value in overrides.items()})

    def override(self, values: Mapping[str, Any]) -> Recipe:
        """A copy with overrides such as `{"train.epochs": 200}`; raises the errors of `load`."""
        tree = self.to_tree()
        _override(tree, values)
        return Recipe.from_tree(tree, None if self._named is None else self._named | frozenset(values))

    def fitted(self, values: Mapping[str, Any]) -> Recipe:
        """A copy with values that the user did not set, as `override` takes them; `short_runs` may be among them."""
        tree = self.to_tree()
        for key, value in values.items():
            _set_key(tree, key, value)
        return Recipe.from_tree(tree, self._named)

    def to_tree(self) -> dict[str, Any]:
        """All values as nested plain values (str, int, float, bool, list, dict)."""
        return self.model_dump(mode="json", exclude={"augment": {"image_size"}})

    def to_toml(self) -> str:
        """The recipe as a TOML file with every value."""
        return _to_toml(self.to_tree())

    def hash(self) -> str:
        """sha256 of the complete TOML text, 64 hex digits."""
        return hashlib.sha256(self.to_toml().encode()).hexdigest()

    def learning_rate(self) -> float:
        """Peak learning rate, scaled by batch / 256 if the recipe says so."""
        o = self.optimizer
        return o.lr * self.train.batch_size / 256 if o.lr_per_256 else o.lr

    def for_epochs(self, epochs: float) -> Recipe:
        """The recipe of a run of `epochs` epochs: `short_runs` are applied, the widest first, and removed."""
        tree = self.to_tree()
        tree["short_runs"] = []
        for short in sorted(self.short_runs, key=lambda s: -s.epochs):
            if epochs <= short.epochs:
                _override(tree, short.settings)
        return Recipe.from_tree(tree, self._named)

    def variants(self) -> list[Recipe]:
        """The recipes that `for_epochs` can return, for any length of a run."""
        return [self.for_epochs(epochs) for epochs in (math.inf, *(s.epochs for s in self.short_runs))]

    def differences(self, other: Recipe) -> dict[str, Any]:
        """Key (`train.views`) → this recipe's value, if `other` differs; texts about the recipe are ignored."""
        theirs = _flat(other)
        return {key: value for key, value in _flat(self).items() if theirs.get(key) != value}


def recipe_names() -> list[str]:
    """The names of the recipes that come with the package."""
    files = resources.files("simclr_engine").joinpath("recipes").iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def known_keys(table: type[Table] = Recipe, path: str = "") -> list[str]:
    """Every key that `--set` takes: `train.epochs`, `evaluation.head.lr`."""
    keys: list[str] = []
    for name, field in table.model_fields.items():
        kind = field.annotation
        if kind is AugmentSpec:
            keys += AUGMENT_KEYS
        else:
            keys += known_keys(kind, f"{path}{name}.") if _is_table(kind) else [path + name]
    return keys


def leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """(`a.b`, value) of every value in nested tables."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{path}{key}.")
        else:
            yield path + key, value


def read_value(text: str) -> Any:
    """A TOML value (`[0.2, 1.0]`, `true`, `3`), a number as people type it (`.9`, `1e-6`), or plain text (`adamw`)."""
    try:
        return _tree(f"v = {text}")["v"]
    except (ValueError, RecursionError):
        try:
            return float(text)
        except ValueError:
            return text


def _read(name: str) -> tuple[dict[str, Any], frozenset[str]]:
    """The tree of a named recipe or a file, merged into its `base`, and the keys that a user's file sets."""
    ours = name in recipe_names()
    if ours:
        text, where = resources.files("simclr_engine").joinpath("recipes", f"{name}.toml").read_text("utf-8"), name
    elif name.endswith(".toml") or Path(name).is_file():
        try:
            text, where = read_text(Path(name), LARGEST_RECIPE), name
        except UnfitError as error:
            saw = f"{name}: {error.strerror}"
            raise UsageError("the file cannot be a recipe", saw=saw, fix="name a .toml file") from error
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError("the recipe file cannot be read", saw=f"{name}: {error}", fix="check the path") from error
    else:
        raise UsageError("there is no recipe of this name", saw=name, fix=nearest(name, recipe_names()))
    tree = _parse(text, f"{where}: ")
    base = tree.pop("base", None)
    named = frozenset(() if ours else (key for key, _ in leaves(tree)))
    if base is None:
        return tree, named
    if base not in recipe_names():
        fix = nearest(shown(base), recipe_names())
        raise UsageError("`base` must name a recipe of the package", saw=shown(base), fix=fix)
    merged, _ = _read(base)
    published = tree.pop("published", {})
    there = [key for key, _ in leaves(merged)]
    # A table that says nothing leaves the one of `base` as it is.
    said = {key: v for key, v in leaves(tree) if v != {} or not any(k.startswith(f"{key}.") for k in there)}
    _lay(merged, said)
    return merged | {"published": published}, named


def _parse(text: str, where: str) -> dict[str, Any]:
    """The tree of a TOML file; `where` names it in errors."""
    try:
        return _tree(text)
    except (ValueError, RecursionError) as error:  # also deeply nested brackets, or a number of 5,000 digits
        raise UsageError("the recipe is not valid TOML", saw=cut(f"{where}{error}"), fix="correct that line") from error


# Parts of a key with dots between them, more than any has: the time that tomllib takes grows with their square.
_PART = r"""(?:(?<![\w-])[\w-]+|"[^"\n]*"|'[^'\n]*')"""
_LONG_KEY = re.compile(rf"{_PART}(?:[ \t]*\.[ \t]*{_PART}){{{MOST_KEY_PARTS}}}", re.ASCII)


def _tree(text: str) -> dict[str, Any]:
    """Parses TOML of bounded length and depth; a ValueError or RecursionError for anything else."""
    if len(text) > LARGEST_RECIPE:
        raise ValueError(f"{len(text):,} characters; a recipe has at most {LARGEST_RECIPE:,}")
    if found := _LONG_KEY.search(text):
        raise ValueError(f"a key of more than {MOST_KEY_PARTS} parts: {found[0][:80]}")
    tree = tomllib.loads(text)
    level: list[Any] = [tree]
    for _ in range(DEEPEST_VALUE):
        inner = (part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list))
        level = [one for part in inner for one in part]
    if level:
        raise ValueError(f"tables and lists within each other, more than {DEEPEST_VALUE} levels")
    return tree


def _override(tree: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Sets each `a.b` in the tree; the keys must exist. Text is read as a TOML value where it is one."""
    known = known_keys()
    for key in values:
        if key not in known:
            raise _no_such_key(key, known)
    _lay(tree, {key: read_value(value) if isinstance(value, str) else value for key, value in values.items()})


def _lay(tree: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Lays values over the tree. An optimizer that takes Muon's place does not inherit its settings."""
    optimizer = tree.get("optimizer")
    if values.get("optimizer.name", "muon") != "muon" and isinstance(optimizer, dict):
        for key in OF_MUON:
            optimizer.pop(key, None)
    for key, value in values.items():
        _set_key(tree, key, value)
        _claim(tree, key)


def _claim(tree: dict[str, Any], key: str) -> None:
    """Removes the key from `short_runs`: a value that a user sets also holds for short runs."""
    shorts = tree.get("short_runs")
    for short in shorts if isinstance(shorts, list) else ():
        if isinstance(short, dict) and isinstance(short.get("settings"), dict):
            short["settings"].pop(key, None)


def _set_key(tree: dict[str, Any], key: str, value: Any) -> None:
    *tables, last = key.split(".")
    for name in tables:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):  # `train = 3` together with `"train.epochs" = 4`
            raise UsageError("a recipe table was expected", saw=f"{cut(key)} in {shown(tree)}", fix="write [table]")
    tree[last] = value


def _flat(recipe: Recipe) -> dict[str, Any]:
    tables = {name: t for name, t in recipe.to_tree().items() if isinstance(t, dict) and name != "published"}
    return {"data.levels": list(recipe.data.levels)} | dict(leaves(tables))  # left out where they are all values


def _is_table(kind: Any) -> TypeGuard[type[Table]]:
    return isinstance(kind, type) and issubclass(kind, Table)


def _refusal(error: ValidationError) -> UsageError:
    """The first error: unknown keys before missing ones before values, because the former may cause the latter."""
    problems = [(".".join(part for part in p["loc"] if isinstance(part, str)), p) for p in error.errors()]
    missing = [key for key, p in problems if p["type"] == "missing" and isinstance(p["loc"][-1], str)]
    key, problem = min(problems, key=lambda found: found[1]["type"] != "extra_forbidden")
    if problem["type"] == "extra_forbidden":
        names = [*Recipe.model_fields, *known_keys(), *(f"short_runs.{name}" for name in ShortRun.model_fields)]
        return _no_such_key(key, names)
    if missing:
        return _incomplete(missing)
    value = problem["input"]
    saw = f"{key} = {cut(value) if isinstance(value, str) else shown(value)}"
    match problem["type"]:
        case "model_type" | "dataclass_exact_type":
            return UsageError("a recipe table was expected", saw=saw, fix=f"write it as [{key}]")
        case "value_error":
            cause, allowed = "a recipe value is out of range", str(problem["ctx"]["error"])
        case "literal_error":
            cause, allowed = "a recipe value is out of range", problem["ctx"]["expected"].replace("'", "")
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            cause, allowed = "a recipe value is out of range", _range(key)
        case "finite_number":
            cause, allowed = "a recipe value is out of range", f"finite and {_range(key)}"
        case "missing" | "too_long":
            cause, allowed = (
                "a recipe value has the wrong type",
                "a list as long as `simclr-engine recipes` shows",
            )
        case _:
            cause, allowed = "a recipe value has the wrong type", problem["msg"].removeprefix("Input should be ")
            allowed = allowed.replace("tuple", "list").replace("dictionary", "table")  # in the terms of TOML
    return UsageError(cause, saw=saw, fix=f"{key} must be {allowed}")


def _range(key: str) -> str:
    """The range of a number and its description, in words."""
    *tables, name = key.split(".")
    table: Any = Recipe
    for part in tables:
        table = ShortRun if part == "short_runs" else table.model_fields[part].annotation
    field, words = table.model_fields[name], {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    bounds = {kind: getattr(limit, kind) for limit in field.metadata for kind in words if hasattr(limit, kind)}
    said = " and ".join(f"{words[kind]} {bound:,}" for kind, bound in bounds.items()) or "a number"
    if bounds.keys() == {"ge", "le"}:
        most = "or more" if bounds["le"] == MOST else f"to {bounds['le']:,}"
        said = f"{bounds['ge']:,} {most}"
    return f"{said} ({field.description})" if field.description else said


def _no_such_key(key: str, known: Iterable[str]) -> UsageError:
    return UsageError("the recipe has no such key", saw=cut(key), fix=nearest(cut(key), known))


def _incomplete(keys: list[str]) -> UsageError:
    fix = 'add them, or start from a complete recipe with: base = "cifar10"'
    return UsageError("the recipe is incomplete", saw="no " + ", ".join(keys), fix=fix)


def _to_toml(tree: Mapping[str, Any], path: str = "") -> str:
    """A TOML file of nested tables, in the form that `hash` is defined on (tomli-w breaks lists into lines)."""
    lines = [f"{_toml_key(k)} = {_toml_value(v)}" for k, v in tree.items() if not isinstance(v, dict)]
    for name, table in tree.items():
        if isinstance(table, dict):
            only_tables = bool(table) and all(isinstance(v, dict) for v in table.values())
            head = [] if only_tables else ["", f"[{path}{_toml_key(name)}]"]
            lines += [*head, _to_toml(table, f"{path}{_toml_key(name)}.").rstrip("\n")]
    return "\n".join(lines) + "\n"


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


def _toml_key(key: str) -> str:
    return key if re.fullmatch("[A-Za-z0-9_-]+", key) else _toml_value(key)
