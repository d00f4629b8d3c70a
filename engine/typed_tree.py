"""Frozen dataclasses from nested plain values, every key and type checked, and back."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from .errors import UsageError, cut, nearest, shown


def build(cls: type[Any], tree: Mapping[str, Any], path: str) -> Any:
    """An instance of dataclass `cls` from plain values: unknown and missing keys refused, types checked."""
    hints = typing.get_type_hints(cls)
    names = _fields(cls)
    for key in tree:
        if key not in names:
            raise UsageError("the recipe has no such key", saw=cut(f"{path}{key}"), fix=nearest(cut(key), names))
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
            raise UsageError("a recipe table was expected", saw=f"{path} = {shown(value)}", fix=f"write it as [{path}]")
        return build(typing.cast("type[Any]", hint), value, f"{path}.")
    origin = typing.get_origin(hint)
    if origin is tuple and isinstance(value, list | tuple):
        inner = typing.get_args(hint)
        if len(inner) == 2 and inner[1] is Ellipsis:
            return tuple(_convert(inner[0], v, path) for v in value)
        if len(inner) == len(value):
            return tuple(_convert(h, v, path) for h, v in zip(inner, value, strict=True))
    elif origin is dict and isinstance(value, Mapping):
        return _table(value, path)
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, int) and abs(value) >= 2**1023:  # too long for a float
            return math.inf if value > 0 else -math.inf
        return float(value)
    elif isinstance(hint, type) and not isinstance(hint, types.GenericAlias) and type(value) is hint:
        return value
    name = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise UsageError(
        "a recipe value has the wrong type", saw=f"{path} = {shown(value)}", fix=f"{path} must be of type {name}"
    )


def _table(value: Mapping[str, Any], path: str) -> dict[str, Any]:
    """A table of free content; what could not be written down again as it was is refused."""

    def check(part: object) -> None:
        if isinstance(part, Mapping | list | tuple):
            for inner in part.values() if isinstance(part, Mapping) else part:
                check(inner)
        elif not isinstance(part, str | bool | float) and not (isinstance(part, int) and abs(part) < 2**63):
            raise UsageError(
                "a recipe value has the wrong type",
                saw=f"{path}: {shown(part)}",
                fix="text, numbers, true or false, lists and tables of them",
            )

    check(value)
    return dict(value)


def to_plain(value: Any) -> Any:
    """The nested plain values (str, int, float, bool, list, dict) of which `build` makes the same again."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: to_plain(getattr(value, name)) for name in _fields(type(value))}
    if isinstance(value, tuple | list):
        return [to_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: to_plain(v) for k, v in value.items()}
    return value


def known_keys(cls: type[Any], path: str = "") -> list[str]:
    """Every key that `--set` takes: `train.epochs`, `evaluation.head.lr`."""
    keys: list[str] = []
    hints = typing.get_type_hints(cls)
    for name in _fields(cls):
        table = dataclasses.is_dataclass(hints[name])
        keys += known_keys(hints[name], f"{path}{name}.") if table else [path + name]
    return keys


def _fields(cls: type[Any]) -> list[str]:
    """Names of the fields that a recipe sets: all but the one of AugmentSpec that the data decide."""
    return [field.name for field in dataclasses.fields(cls) if field.name != "image_size"]
