"""Nested plain values, as TOML files hold them: read, written, and set or listed by keys with dots (`train.epochs`)."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from .errors import UsageError, cut, shown


def parse(text: str, where: str) -> dict[str, Any]:
    """The tree of a TOML file.

    Raises:
        UsageError: it is none; `where` stands before what is wrong.
    """
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also brackets within brackets without end, a number of 5,000 digits
        raise UsageError("the recipe is not valid TOML", saw=cut(f"{where}{error}"), fix="mend that line") from error


def read_value(text: str) -> Any:
    """A TOML value (`[0.2, 1.0]`, `true`, `3`), a number as one types it (`.9`, `1e-6`), or plain text (`adamw`)."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except (ValueError, RecursionError):
        try:
            return float(text)
        except ValueError:
            return text


def leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """(`a.b`, value) of everything in nested tables."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{path}{key}.")
        else:
            yield path + key, value


def set_key(tree: dict[str, Any], key: str, value: Any) -> None:
    """`tree["a"]["b"] = value` for the key `a.b`."""
    *rooms, field = key.split(".")
    for name in rooms:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):  # `train = 3` beside `"train.epochs" = 4`
            raise UsageError("a recipe table was expected", saw=f"{cut(key)} in {shown(tree)}", fix="write [table]")
    tree[field] = value


def to_toml(tree: Mapping[str, Any], path: str = "") -> str:
    """A TOML file of nested tables (the standard library reads TOML but does not write it)."""
    lines = [f"{_toml_key(k)} = {_toml_value(v)}" for k, v in tree.items() if not isinstance(v, dict)]
    for name, table in tree.items():
        if isinstance(table, dict):
            only_tables = bool(table) and all(isinstance(v, dict) for v in table.values())
            head = [] if only_tables else ["", f"[{path}{_toml_key(name)}]"]
            lines += [*head, to_toml(table, f"{path}{_toml_key(name)}.").rstrip("\n")]
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
