"""The values of 16-bit gray images that become 0 and 255. Imports nothing, for recipes and exported files name them."""

from __future__ import annotations

from collections.abc import Sequence

Levels = tuple[int, int]
FULL_LEVELS: Levels = (0, 65_535)
FEW_GRAYS = 128  # of 256; a range that becomes fewer is noted


def are_levels(levels: Sequence[int]) -> bool:
    """Whether these are (low, high), 0 ≤ low < high ≤ 65,535."""
    return len(levels) == 2 and 0 <= levels[0] < levels[1] <= FULL_LEVELS[1]


def as_levels(levels: Sequence[int]) -> Levels:
    """Those that a recipe or a file names; the full ones where it names none."""
    return (levels[0], levels[1]) if levels else FULL_LEVELS


def levels_key(levels: Levels) -> str:
    """What tells images of these levels from those of the full ones, for a key; empty for the full ones."""
    return "" if levels == FULL_LEVELS else f" levels {levels[0]} {levels[1]}"


def narrow_levels(found: Levels, name: str) -> str:
    """A note if 16-bit images become few of the 256 gray levels; else empty.

    Args:
        found: their lowest and highest value.
        name: of the source.
    """
    low, high = found
    grays = round(high * 255 / FULL_LEVELS[1]) - round(low * 255 / FULL_LEVELS[1]) + 1
    if grays >= FEW_GRAYS or low == high:
        return ""
    return (
        f"the 16-bit images of {name} have values from {low:,} to {high:,}, which become {grays} of 256 gray levels; "
        f"pretrain --set 'data.levels=[{low}, {high}]' spreads them over all"
    )
