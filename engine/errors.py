"""The errors a user can meet: each says the cause, the value it saw and the fix, and carries an exit code."""

from __future__ import annotations

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
        rows = [_shown(self.cause)]
        if self.saw is not None:
            rows.append(f"saw: {_shown(self.saw)}")
        if self.fix:
            rows.append(f"fix: {_shown(self.fix)}")
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


def _shown(part: object) -> str:
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
