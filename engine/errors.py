"""The errors that a user sees. Each has a cause, the value seen, a fix and an exit code.

`shown`, `cut` and `nearest` format values and text from outside for such messages; `plain` escapes text from outside
for everything that shows it: messages, tables, pages.
"""

from __future__ import annotations

from collections.abc import Iterable

LONGEST_VALUE = 200  # characters of a value from outside within a part of a message
LONGEST = 800  # characters of one part of a message; text from outside may be longer and is cut
# Not printable by Python's rule, but neither obeyed nor misleading: spaces, joiners and marks that letters need.
HARMLESS = frozenset("\u00a0\u2002\u2003\u2009\u200a\u200c\u200d\u200e\u200f\u202f\u3000")


class EngineError(Exception):
    """Base class of the errors that are shown without a traceback.

    Args:
        cause: what went wrong, in one sentence.
        saw: the value that was seen.
        fix: what the user can do about it.
    """

    exit_code = 1

    def __init__(self, cause: str, *, saw: object = None, fix: str | None = None) -> None:
        self.cause, self.saw, self.fix = cause, saw, fix
        super().__init__(cause)

    def lines(self) -> list[str]:
        """The message, one line per part. Control characters are escaped, and the middle of a long part is left out."""
        rows = [_printable(self.cause)]
        if self.saw is not None:
            rows.append(f"saw: {_printable(self.saw)}")
        if self.fix:
            rows.append(f"fix: {_printable(self.fix)}")
        return rows

    def __str__(self) -> str:
        return "\n".join(self.lines())


class CheckFailed(EngineError):
    """A check failed: parity, a guard of the evaluation, or a loss that is not finite."""

    exit_code = 1


class UsageError(EngineError):
    """A recipe, an option or an argument is not valid."""

    exit_code = 2


class PlatformError(EngineError):
    """The machine lacks something: disk space, memory, a permission, a package or a device."""

    exit_code = 3


class DataError(EngineError):
    """Images, labels, archives, checkpoints or model files that cannot be used."""

    exit_code = 4


def _printable(part: object) -> str:
    """At most `LONGEST` printable characters. The beginning and the end are kept: often a path and the reason."""
    try:
        text = str(part)
    except (ValueError, RecursionError):  # an integer of more than 4,300 digits, or very deeply nested lists
        text = f"a value of type {type(part).__name__} that cannot be written out"
    if len(text) > 2 * LONGEST:  # the middle is not shown, and may be a gigabyte
        text = text[:LONGEST] + text[-LONGEST:]
    text = plain(text)
    if len(text) <= LONGEST:
        return text
    last = LONGEST // 4
    return f"{text[: LONGEST - last - 1]}…{text[-last:]}"


def plain(text: str) -> str:
    """Text from outside on one line: what a terminal or a browser would obey, or cannot encode, becomes visible.

    This is the only escaping for readers. Control characters, overrides of the writing direction, halves of surrogate
    pairs (Python's form of a name that is not UTF-8) and line breaks become `\\x1b`, `\\u202e`, `\\udce9`, `\\n`.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in HARMLESS else c.encode("unicode_escape").decode() for c in text)


def counted(number: int | str, noun: str) -> str:
    """`1 image`, `306 images`, also of a number in the form that is to be shown; for nouns whose plural ends in s."""
    shown = number if isinstance(number, str) else f"{number:,}"
    return f"{shown} {noun}" + "s" * (shown != "1")


def shown(value: object) -> str:
    """The repr of a value from outside, cut after `LONGEST_VALUE` characters."""
    try:
        return cut(repr(value))
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} too long to show"


def cut(text: str) -> str:
    """The first `LONGEST_VALUE` characters."""
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "…"


def nearest(word: str, known: Iterable[str]) -> str:
    """The fix of an error about an unknown name: the nearest known name, or all of them if none is close."""
    import difflib  # imported here because `--help` loads this module

    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean `{close[0]}`?" if close else "one of: " + ", ".join(names)
