"""Resumes a run with its own recipe, images, limit and plan, and refuses others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from .bounds import MIN_SIZE
from .checkpoint import newest_checkpoint
from .data.store import ImageStore
from .errors import DataError, UsageError, counted
from .fitting import FITTED
from .recipe import Recipe, leaves
from .run import Run, of_a_start, public_name, read_environment
from .terminal import say
from .training import Own

# What a run goes on from, with its type.
_PARTS = {
    **{"step": int, "total_steps": int, "recipe": str, "data": str},
    **{"model": dict, "optimizer": dict, "scaler": dict, "rng": Tensor},
}
MOST_NAMED = 6  # differences named in one message
LOST = "its path of the images, limit, time, notes and earlier starts are lost (give --data and --limit again)"


@dataclass(frozen=True)
class Stopped:
    """A run that is to be resumed.

    Attributes:
        run: the run in its directory.
        recipe: recipe of its newest checkpoint, with the data that it was trained on.
        state: contents of that checkpoint.
        longer: whether its plan was made longer; recipe and state have the new length.
        lost: what is no longer known, because environment.json cannot be read; else "".
    """

    run: Run
    recipe: Recipe
    state: dict[str, Any]
    longer: bool = False
    lost: str = ""

    @property
    def starts(self) -> list[dict[str, Any]]:
        """What each start until now used. Older versions wrote only the last one."""
        found = [one for one in self.run.environment.get("starts", ()) if isinstance(one, dict)]
        return found or ([] if self.lost else [of_a_start(self.run.environment)])

    @property
    def limit(self) -> int | None:
        """The number of images that it was limited to."""
        limit = self.run.data.get("limit")
        return limit if isinstance(limit, int) else None

    @property
    def max_minutes(self) -> float | None:
        """The time limit of its plan, minutes."""
        return self._limit_of_plan("max_minutes")

    @property
    def max_pflop(self) -> float | None:
        """The limit of the compute of its plan, 10^15 operations."""
        return self._limit_of_plan("max_pflop")

    def _limit_of_plan(self, name: str) -> float | None:
        plan = self.run.environment.get("plan")
        limit = plan.get(name) if isinstance(plan, dict) else None
        return limit if isinstance(limit, int | float) else None

    @property
    def seconds(self) -> float:
        """The time that it has taken so far, seconds."""
        return float(self.run.environment.get("seconds") or 0.0)

    @property
    def uncounted_seconds(self) -> float:
        """Seconds of it that no limit counts: packing and compilation."""
        return float(self.run.environment.get("uncounted_seconds") or 0.0)

    def check_settings(self, asked: Recipe | None, overrides: Mapping[str, Any], limit: int | None) -> None:
        """Refuses settings that differ from those of the run.

        Args:
            asked: a recipe, which may equal that of the run only for its length; None for that of the run.
            overrides: settings that override `asked`; `train.epochs` may be more than the run has: see `lengthened`.
            limit: number of images; None for that of the run.

        Raises:
            UsageError: a setting differs; names both values.
        """
        differing = []
        if limit is not None and limit != self.limit and not self.lost:
            differing.append(f"--limit {limit}, the run has {self.limit or 'no limit'}")
        # The path of the images is not compared, but their fingerprint is.
        named = {key for key in overrides if key in ("data.source", "data.size", "data.levels")}
        asked = (self.recipe if asked is None else asked).override(overrides)
        if "train.epochs" in overrides:
            asked = asked.replace(train__epochs=self.recipe.train.epochs)
        asked = trained_on(asked, public_name(asked.data.source), asked.data.size)
        variants = [_differences(one, self.recipe, named) for one in asked.variants()]
        closest = min(variants, key=len)
        differing += closest
        if differing:
            more = f"; and {len(differing) - MOST_NAMED} more" if len(differing) > MOST_NAMED else ""
            name = "" if asked.name == self.recipe.name else f"recipe {asked.name}, the run has {self.recipe.name}; "
            raise UsageError(
                "a resumed run keeps its settings, and others were given",
                saw=name + "; ".join(differing[:MOST_NAMED]) + more,
                fix="leave them out, or start another run with --out",
            )

    def check_own(self, own: Own) -> None:
        """Raises a UsageError unless the caller's own parts are given again, by their names; no file can hold them."""
        had, given = self.run.environment.get("own") or {}, own.names()
        if had != given and not (self.lost and (self.recipe.model.arch == "own") == (own.encoder is not None)):
            raise UsageError(
                "the run was trained with other parts of its caller's",
                saw=f"the run has {had or 'none'}, given are {given or 'none'}",
                fix="resume from Python, as it was started: pretrain(out=RUN, resume=True, encoder=…, view=…)",
            )

    def lengthened(self, overrides: Mapping[str, Any], max_minutes: float | None, images: int) -> Stopped:
        """The run with as many epochs as `overrides` name in `train.epochs`, if these are more than its plan has.

        The schedule is laid anew over the longer run, from the step that is done. The command that the run was started
        with changes nothing: its plan may have been shortened to `max_minutes`. A limit of compute holds unless there
        are more epochs than the recipe had.

        Raises:
            UsageError: the plan has more epochs.
        """
        if "train.epochs" not in overrides:
            return self
        recipe = self.recipe.override({"train.epochs": overrides["train.epochs"]})
        epochs, per_epoch = recipe.train.epochs, images // recipe.train.batch_size
        planned = int(self.state["total_steps"])
        limited = max_minutes == self.max_minutes or self.max_pflop is not None
        if epochs * per_epoch == planned or (recipe == self.recipe and limited):
            return self
        if epochs * per_epoch < planned:
            raise UsageError(
                "a resumed run can be made longer, not shorter",
                saw=f"--epochs {epochs}, the run has {planned / per_epoch:.4g}",
                fix="leave it out, name more epochs, or use --max-minutes",
            )
        state = self.state | {"recipe": recipe.to_toml(), "total_steps": epochs * per_epoch, "relaid": []}
        return replace(self, recipe=recipe, state=state, longer=True)

    def check_start(self, about: Mapping[str, str]) -> None:
        """Raises a UsageError for other weights to start from than those that the run started from."""
        ours = self.run.environment.get("weights")
        if not self.lost and (not isinstance(ours, dict) or ours.get("sha256") != about["sha256"]):
            raise UsageError(
                "a resumed run goes on with its own weights, and others were given",
                saw=f"--weights {about['name']}; the run started from {_started_from(ours)}",
                fix="leave out --weights, or start another run with --out",
            )

    def check_images(self, store: ImageStore) -> None:
        """Raises a DataError for images that are not those of the run."""
        ours = str(self.state["data"])
        if store.fingerprint != ours:
            was = self.run.data
            raise DataError(
                "the data is not what the run was started on",
                saw=f"{store.name}: {counted(len(store), 'image')}, fingerprint {store.fingerprint[:12]}; the run has "
                f"{was.get('path') or was.get('name')}: {was.get('images', '?')} images, fingerprint {ours[:12]}",
                fix="give --data with the path of the images of the run, unchanged",
            )

    def minutes_left(self, asked: float | None) -> float | None:
        """Minutes that the rest of the run may take; None if its plan is not to be changed.

        The plan already respects the limit that the run was started with. Another limit counts for the whole run,
        including the time that it has taken.

        Raises:
            UsageError: the run has already taken longer.
        """
        if asked is None or (asked == self.max_minutes and not self.longer):
            return None
        spent = (self.seconds - self.uncounted_seconds) / 60
        if spent >= asked:
            raise UsageError(
                "the run has already taken longer; --max-minutes counts the whole run",
                saw=f"--max-minutes {asked:g}, {spent:.1f} minutes so far",
                fix=f"use --max-minutes above {spent:.1f}, or leave it out",
            )
        return asked - spent


def read_stopped(directory: Path) -> Stopped:
    """The run in `directory` with its newest good checkpoint; bad ones are named on stderr.

    Raises:
        DataError: there is no run or no good checkpoint.
    """
    state, path, complaints = newest_checkpoint(directory / "checkpoints")
    _check_parts(state, path)
    for complaint in complaints:
        say(f"warning: {complaint}; using {path.name} instead")
    recipe, lost = Recipe.from_toml(state["recipe"]), ""
    try:
        environment = read_environment(directory)
    except (OSError, ValueError) as error:
        environment, lost = {}, "environment.json could not be read when the run was resumed: " + LOST
        say(f"warning: {directory}: {error}; the checkpoint is good, but {LOST}")
    run = Run(directory, recipe, environment)
    name, size = run.data.get("name"), run.data.get("image_size")
    if isinstance(name, str) and isinstance(size, int):  # the recipes of older versions do not name the data
        recipe = trained_on(recipe, name, size)
    return Stopped(run, recipe, state | {"recipe": recipe.to_toml()}, lost=lost)


def _check_parts(state: Mapping[str, Any], path: Path) -> None:
    """Raises a DataError for a checkpoint without one of the parts that a run goes on from, or with another kind."""
    odd = [name for name, kind in _PARTS.items() if not isinstance(state.get(name), kind)]
    relaid = state.get("relaid", ())
    pairs = isinstance(relaid, list | tuple) and all(isinstance(p, list | tuple) and len(p) == 2 for p in relaid)
    if odd or not pairs or not 0 <= state["step"] <= state["total_steps"]:
        raise DataError(
            "the checkpoint is of another structure than those of a run",
            saw=f"{path}: {', '.join(odd) or 'step, total_steps or relaid'}",
            fix="use the version that wrote it, or start again with --overwrite",
        )


def trained_on(recipe: Recipe, name: str, size: int) -> Recipe:
    """The recipe with the name that the user gave the images, and with their side in pixels."""
    # 0 (as they are) if they are so small as is possible in Python only.
    return recipe.fitted({"data.source": name, "data.size": size if size >= MIN_SIZE else 0})


def _started_from(weights: object) -> str:
    return str(weights.get("name"))[:200] if isinstance(weights, dict) else "random weights"


def _differences(asked: Recipe, recipe: Recipe, named: set[str]) -> list[str]:
    """`train.seed = 1, the run has 0` for every setting that differs; for `[data]`, only those that were given.

    What the run fitted to its images and its machine counts only where the user set it.
    """
    has = dict(leaves({room: table for room, table in recipe.to_tree().items() if isinstance(table, dict)}))
    return [
        f"{key} = {value}, the run has {has.get(key)}"
        for key, value in asked.differences(recipe).items()
        if (key in named if key.startswith("data.") else key not in FITTED or asked.names(key))
    ]
