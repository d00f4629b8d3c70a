"""What a run that goes on keeps: its recipe, images, limit and plan. What differs from them is refused."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkpoint import newest_checkpoint
from .data.decode import MAX_SIZE, MIN_SIZE
from .data.store import ImageStore
from .errors import DataError, UsageError
from .recipe import Recipe
from .run import Run, public_name
from .toml_tree import leaves

MOST_NAMED = 6  # differences in one message


@dataclass(frozen=True)
class Stopped:
    """A run that is to go on.

    Attributes:
        run: as its directory says.
        recipe: of its newest checkpoint, with the data that it was trained on.
        state: that checkpoint.
    """

    run: Run
    recipe: Recipe
    state: dict[str, Any]

    @property
    def limit(self) -> int | None:
        """How many images it was limited to."""
        limit = self.run.data.get("limit")
        return limit if isinstance(limit, int) else None

    @property
    def max_minutes(self) -> float | None:
        """What its plan was laid out for."""
        plan = self.run.environment.get("plan")
        minutes = plan.get("max_minutes") if isinstance(plan, dict) else None
        return minutes if isinstance(minutes, int | float) else None

    @property
    def seconds(self) -> float:
        """What it has taken so far."""
        return float(self.run.environment.get("seconds") or 0.0)

    def check_settings(self, asked: Recipe | None, overrides: Mapping[str, Any], limit: int | None) -> None:
        """Refuses what was asked for and is not the run's.

        Args:
            asked: a recipe, which may be one that becomes the run's where the run is short; None for the run's own.
            overrides: settings over that.
            limit: None for the run's own.

        Raises:
            UsageError: something differs; both values are named.
        """
        differing = []
        if limit is not None and limit != self.limit:
            differing.append(f"--limit {limit}, the run has {self.limit or 'no limit'}")
        # Where images lie is no setting: their fingerprint is compared.
        named = {key for key in overrides if key in ("data.source", "data.size")}
        asked = (self.recipe if asked is None else asked).override(overrides)
        asked = trained_on(asked, public_name(asked.data.source), asked.data.size)
        variants = [_differences(one, self.recipe, named) for one in asked.variants()]
        closest = min(variants, key=len)
        differing += closest
        if differing:
            more = f"; and {len(differing) - MOST_NAMED} more" if len(differing) > MOST_NAMED else ""
            name = "" if asked.name == self.recipe.name else f"recipe {asked.name}, the run has {self.recipe.name}; "
            raise UsageError(
                "a run that goes on keeps its settings, and others were asked for",
                saw=name + "; ".join(differing[:MOST_NAMED]) + more,
                fix="leave them out, or start another run with --out",
            )

    def check_images(self, store: ImageStore) -> None:
        """Refuses images that are not those of the run (DataError)."""
        ours = str(self.state["data"])
        if store.fingerprint != ours:
            was = self.run.data
            raise DataError(
                "the data is not what the run was started on",
                saw=f"{store.name}: {len(store):,} images, fingerprint {store.fingerprint[:12]}; the run has "
                f"{was.get('path') or was.get('name')}: {was.get('images', '?')} images, fingerprint {ours[:12]}",
                fix="--data with the place where the run's own images are, unchanged",
            )

    def minutes_left(self, asked: float | None) -> float | None:
        """Minutes that the rest of the run may take; None where its plan stays as it is.

        A run was laid out once to end within its minutes, and the steps that are left are what is left of them. Other
        minutes count for the whole run, as at its start.

        Raises:
            UsageError: it has taken them already.
        """
        if asked is None or asked == self.max_minutes:
            return None
        spent = self.seconds / 60
        if spent >= asked:
            raise UsageError(
                "the run has taken longer already; --max-minutes counts all of it",
                saw=f"--max-minutes {asked:g}, {spent:.1f} minutes so far",
                fix=f"--max-minutes above {spent:.1f}, or leave it out",
            )
        return asked - spent


def read_stopped(directory: Path) -> Stopped:
    """The run in `directory`, with its newest good checkpoint; worse ones are named on stderr.

    Raises:
        DataError: there is no run, or no good checkpoint.
    """
    state, path, complaints = newest_checkpoint(directory / "checkpoints")
    for complaint in complaints:
        print(f"warning: {complaint}; {path.name} is taken instead", file=sys.stderr)
    run, recipe = Run.open(directory), Recipe.from_toml(state["recipe"])
    name, size = run.data.get("name"), run.data.get("image_size")
    if isinstance(name, str) and isinstance(size, int):  # a run from before the recipe said what was trained on
        recipe = trained_on(recipe, name, size)
    return Stopped(run, recipe, state | {"recipe": recipe.to_toml()})


def trained_on(recipe: Recipe, name: str, size: int) -> Recipe:
    """The recipe with the images that are trained on: what the user called them, and their side in pixels."""
    tree = recipe.to_tree()
    # 0, as they are, where only Python has images of such a size.
    tree["data"] |= {"source": name, "size": size if MIN_SIZE <= size <= MAX_SIZE else 0}
    return Recipe.from_tree(tree)


def _differences(asked: Recipe, recipe: Recipe, named: set[str]) -> list[str]:
    """`train.seed = 1, the run has 0`, of every setting that differs; of `[data]` those that were named."""
    has = dict(leaves({room: table for room, table in recipe.to_tree().items() if isinstance(table, dict)}))
    return [
        f"{key} = {value}, the run has {has.get(key)}"
        for key, value in asked.differences(recipe).items()
        if not key.startswith("data.") or key in named
    ]
