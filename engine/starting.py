"""Starts a pretraining from an encoder that was trained before: of a run, or of a file from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from .checkpoint import newest_checkpoint
from .errors import UsageError
from .evaluation.features import encoder_hash
from .recipe import Recipe
from .run import public_name
from .weights import ForeignEncoder, load_foreign


@dataclass(frozen=True, eq=False)
class Start:
    """The encoder that a run starts from.

    Attributes:
        recipe: the recipe with its architecture, stem and normalisation.
        encoder: its weights; None on all ranks but the first.
        about: for environment.json: `name`, `sha256` of the weights, and `words`.
    """

    recipe: Recipe
    encoder: nn.Module | None
    about: dict[str, str]

    def lines(self) -> list[str]:
        """For the description of the plan."""
        return [f"weights  starts from {self.about['words']}"]


def open_start(
    weights: str | Path,
    recipe: Recipe,
    named: Mapping[str, Any],
    stem_padding: int | None = None,
    stem_pool: str | None = None,
) -> Start:
    """The encoder in `weights`, and `recipe` with what follows from it.

    Args:
        weights: a run directory, or a file that `load_foreign` reads.
        recipe: the recipe to train by.
        named: settings that the user named; the weights must agree with them. Where they say nothing of the
            normalisation, it is that of the weights.
        stem_padding, stem_pool: as `load_foreign` takes them.

    Raises:
        DataError: there are no weights, or they cannot be read.
        UsageError: the network is another one than the user named, or one that no recipe describes.
    """
    found = load_foreign(_file(Path(weights)), stem_padding, stem_pool)
    if found.left_out or found.smoothing:
        raise UsageError(
            "a run cannot start from this network",
            saw=found.sentence(),
            fix="name weights of a plain ResNet; `evaluate` takes these",
        )
    given: dict[str, Any] = {"model.arch": found.arch, "model.stem": found.stem}
    if other := {key: value for key, value in given.items() if key in named and named[key] != value}:
        raise UsageError(
            "the weights are those of another network",
            saw=", ".join(f"{key} = {named[key]}, the weights have {value}" for key, value in other.items()),
            fix="leave it out: the network is that of the weights",
        )
    colours = {"augment.mean": list(found.mean), "augment.std": list(found.std)}
    given |= {key: value for key, value in colours.items() if key not in named}
    name = public_name(str(weights))
    about = {"name": name, "sha256": encoder_hash(found.encoder), "words": _words(found, name)}
    return Start(recipe.override(given), found.encoder, about)


def _file(weights: Path) -> Path:
    """The file itself; of a run its encoder or, where it has not ended, its newest checkpoint."""
    if not weights.is_dir():
        return weights
    encoder = weights / "encoder.safetensors"
    return encoder if encoder.is_file() else newest_checkpoint(weights / "checkpoints")[1]


def _words(found: ForeignEncoder, name: str) -> str:
    return found.sentence().replace(f" from {found.path.name} ", f" from {name} ", 1)
