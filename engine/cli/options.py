"""Options that several commands share: `--set KEY=VALUE` and `--json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from ..errors import UsageError


def parse_overrides(pairs: Sequence[str]) -> dict[str, str]:
    """`["a.b=c", …]` → `{"a.b": "c"}`."""
    overrides = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError("--set takes KEY=VALUE", saw=pair, fix="for example --set train.epochs=200")
        overrides[key.strip()] = value.strip()
    return overrides


def print_json(document: dict[str, Any]) -> None:
    """Prints the one document of `--json` to stdout."""
    click.echo(json.dumps(document, indent=2))
