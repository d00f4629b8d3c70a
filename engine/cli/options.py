"""What several commands share: `--set KEY=VALUE` and `--json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..errors import UsageError
from ..terminal import tell


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
    """Prints the document of `--json` to stdout."""
    tell(*json.dumps(document, indent=2).replace("\x7f", "\\u007f").split("\n"))
