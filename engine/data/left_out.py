"""What of a source is left out: counted by folder, ending and reason, and refused where it is more than a little."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from ..errors import DataError
from .arrangement import FEW_FILES
from .decode import DRAWN
from .listing import HOLDS_RUN

LARGEST_SHARE = 0.05  # of the files that may be left out unasked
_SHOWN = 3
_NOT_OF_THE_DATA = (HOLDS_RUN, DRAWN)


def rows_left_out(skipped: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """`folder`, `ending` (lower case), `reason` and number of `files` for each kind, the most first.

    Args:
        skipped: `(path, reason)` of each file.
    """
    counts: Counter[tuple[str, str, str]] = Counter()
    for path, reason in skipped:
        place = PurePosixPath(path)
        folder = "" if str(place.parent) == "." else str(place.parent)
        counts[folder, place.suffix.lower(), reason] += 1
    ordered = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    return [{"folder": a, "ending": b, "reason": c, "files": n} for (a, b, c), n in ordered]


def words_left_out(skipped: Sequence[tuple[str, str]]) -> str:
    """The rows of `rows_left_out` in words, the first few of them: `2 cat/*.png (damaged)`."""
    rows = rows_left_out(skipped)
    shown = [f"{row['files']:,} {_pattern(row)} ({row['reason']})" for row in rows[:_SHOWN]]
    more = sum(row["files"] for row in rows[_SHOWN:])
    return "; ".join([*shown, *([f"{more:,} more"] if more else [])])


def _pattern(row: dict[str, Any]) -> str:
    return f"{row['folder']}/*{row['ending']}".lstrip("/")


def check_left_out(name: str, skipped: Sequence[tuple[str, str]], images: int) -> None:
    """Refuses to train on a source of which more than a few per cent cannot be used.

    Args:
        name: of the source.
        skipped: `(path, reason)` of what is left out; runs and drawings of this package do not count.
        images: how many there are besides.

    Raises:
        DataError: more than three files and more than 5 % are left out; by folder, ending and reason.
    """
    counted = [pair for pair in skipped if pair[1] not in _NOT_OF_THE_DATA]
    if len(counted) > FEW_FILES and len(counted) > LARGEST_SHARE * (len(counted) + images):
        raise DataError(
            f"{len(counted):,} of {len(counted) + images:,} files of {name} are left out",
            saw=words_left_out(counted),
            fix="convert or remove them (`simclr-engine data info` lists all), or train on the others with "
            "--allow-skipped",
        )
