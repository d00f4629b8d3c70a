"""The stem of an encoder, its layers before the first stage, by name. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = re.compile(r"(small|imagenet)(?:-padding-([0-9]))?(?:-(pool|no-pool))?")


@dataclass(frozen=True)
class Stem:
    """A convolution, batch norm, ReLU and perhaps max-pool.

    Attributes:
        small: a 3×3 convolution of stride 1 (for images up to about 96 px: SimCLR paper, B.9), else 7×7 of stride 2.
        padding: of the convolution, pixels.
        pool: whether max-pool follows, 3×3 of stride 2 with padding 1.
    """

    small: bool
    padding: int
    pool: bool

    @classmethod
    def usual(cls, small: bool) -> Stem:
        """The one that most libraries have: 3×3 with padding 1 and no max-pool, or 7×7 with padding 3 and max-pool."""
        return cls(small, 1, False) if small else cls(small, 3, True)

    @classmethod
    def of(cls, name: str) -> Stem:
        """The stem called `small` or `imagenet`, which are the usual ones, followed by what differs from them:
        `-padding-P`, then `-pool` or `-no-pool`. solo-learn's for CIFAR is `small-padding-2`.

        Raises:
            ValueError: there is no stem of this name; each has one name only.
        """
        found = _NAME.fullmatch(name)
        if found is not None:
            kind, padding, pool = found.groups()
            usual = cls.usual(kind == "small")
            stem = cls(usual.small, int(padding or usual.padding), usual.pool if pool is None else pool == "pool")
            if stem.name == name:
                return stem
        raise ValueError(f"stem {name!r}: expected {ALLOWED}")

    @property
    def is_usual(self) -> bool:
        """Whether it is the one called `small` or `imagenet`."""
        return self == self.usual(self.small)

    @property
    def name(self) -> str:
        """What `of` reads."""
        usual = self.usual(self.small)
        padding = f"-padding-{self.padding}" if self.padding != usual.padding else ""
        pool = ("-pool" if self.pool else "-no-pool") if self.pool != usual.pool else ""
        return ("small" if self.small else "imagenet") + padding + pool

    def sentence(self) -> str:
        """A description: `3×3 stem of stride 1 and padding 1, without max-pool`."""
        side, stride = (3, 1) if self.small else (7, 2)
        pool = "with" if self.pool else "without"
        return f"{side}×{side} stem of stride {stride} and padding {self.padding}, {pool} max-pool"


ALLOWED = "small or imagenet, then -padding-P or -pool or -no-pool where it differs from theirs"


def is_stem(name: str) -> bool:
    """Whether `Stem.of` reads the name."""
    try:
        Stem.of(name)
    except ValueError:
        return False
    return True
