"""The JSON documents that the program prints and writes."""

from __future__ import annotations

import json
import math
from typing import Any


def to_json(document: Any, indent: int | None = None, ascii: bool = True) -> str:
    """The document as JSON. A number that is not finite, which JSON has no word for, becomes null.

    Args:
        document: dictionaries, lists, text and numbers.
        indent: spaces of each level; None writes one line.
        ascii: whether other letters are escaped.
    """
    try:
        return json.dumps(document, indent=indent, ensure_ascii=ascii, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(document), indent=indent, ensure_ascii=ascii, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(below) for key, below in value.items()}
    return [_finite(below) for below in value] if isinstance(value, list | tuple) else value
