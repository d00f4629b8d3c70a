"""The errors a user can meet: each says the cause, the value it saw and the fix, and carries an exit code.

What `shown`, `cut` and `nearest` give is foreign text and values as such a message holds them.
"""

from __future__ import annotations

from collections.abc import Iterable

LONGEST_VALUE = 200  # characters of a foreign value within a part of a message
LONGEST = 800  # characters of one part of a message that are shown: foreign text and a library's words have no bound


class EngineError(Exception):
    """Base of every error that is shown without a traceback.

    Args:
        cause: what went wrong, one sentence.
        saw: the offending value as it was met.
        fix: what the user can do about it.
    """

    exit_code = 1

    def __init__(self, cause: str, *, saw: object = None, fix: str | None = None) -> None:
        self.cause, self.saw, self.fix = cause, saw, fix
        super().__init__(cause)

    def lines(self) -> list[str]:
        """The message, one line per part that is known; control characters of foreign text are made visible, and a
        part that is too long loses its middle."""
        rows = [_printable(self.cause)]
        if self.saw is not None:
            rows.append(f"saw: {_printable(self.saw)}")
        if self.fix:
            rows.append(f"fix: {_printable(self.fix)}")
        return rows

    def __str__(self) -> str:
        return "\n".join(self.lines())


class CheckFailed(EngineError):
    """A gate did not hold: parity, a guard of the evaluation, a loss that is no longer finite."""

    exit_code = 1


class UsageError(EngineError):
    """A recipe, an option or an argument that cannot be meant."""

    exit_code = 2


class PlatformError(EngineError):
    """The machine cannot do it: no space, no permission, a missing package or device."""

    exit_code = 3


class DataError(EngineError):
    """Images, labels, archives, checkpoints or model files that cannot be used."""

    exit_code = 4


def _printable(part: object) -> str:
    """At most `LONGEST` printable characters, … included: a path stands first and the reason last, so both are kept."""
    try:
        text = str(part)
    except (ValueError, RecursionError):  # an integer of more than 4,300 digits, lists within lists without end
        text = f"a value of type {type(part).__name__} that cannot be written out"
    if len(text) > 2 * LONGEST:  # what lies between cannot be shown, and may be a gigabyte
        text = text[:LONGEST] + text[-LONGEST:]
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(text) <= LONGEST:
        return text
    last = LONGEST // 4
    return f"{text[: LONGEST - last - 1]}…{text[-last:]}"


def shown(value: object) -> str:
    """A foreign value as Python writes it, at most `LONGEST_VALUE` characters and …"""
    try:
        return cut(repr(value))
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} too long to show"


def cut(text: str) -> str:
    """The first `LONGEST_VALUE` characters."""
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "…"


def nearest(word: str, known: Iterable[str]) -> str:
    """The known name that was probably meant, as the fix of an error; all of them where none is close."""
    import difflib  # not at the top: `--help` loads this module too

    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean `{close[0]}`?" if close else "one of: " + ", ".join(names)
