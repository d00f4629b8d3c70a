"""Foreign text and values in an error message: bounded in length, with the known name that they come nearest to."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 200  # characters of a foreign value in a message


def shown(value: object) -> str:
    """A foreign value as Python writes it, bounded."""
    try:
        return cut(repr(value))
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} too long to show"


def cut(text: str) -> str:
    """The first `LONGEST` characters."""
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def nearest(word: str, known: Iterable[str]) -> str:
    """The known name that was probably meant, as the fix of an error; all of them where none comes near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean `{close[0]}`?" if close else "one of: " + ", ".join(known)
