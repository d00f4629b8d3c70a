"""The errors a user can meet: each says the cause, the value it saw and the fix, and carries an exit code."""

from __future__ import annotations


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
        """The message, one line per part that is known; control characters of foreign text are made visible."""
        rows = [self.cause]
        if self.saw is not None:
            rows.append(f"saw: {self.saw}")
        if self.fix:
            rows.append(f"fix: {self.fix}")
        return ["".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in row) for row in rows]

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
