"""The plan of a run: its length, and its learning rate and view size at each step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from .data.store import ImageStore
from .errors import DataError, counted
from .optim import WARMUP_SHARE, lr_factor, warmup_steps
from .recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """The length of a run, and its learning rate and view size at each step.

    Attributes:
        samples: number of images N.
        steps_per_epoch: ⌊N / batch⌋; the remaining images of an epoch are skipped.
        total_steps: number of steps of the run.
        peak_lr: learning rate after the warm-up, including the scaling by batch size.
        image_size: side of the stored images, pixels.
        relaid: how its length was changed on the way: (steps done at the time, the length until then), in order.
    """

    recipe: Recipe
    samples: int
    steps_per_epoch: int
    total_steps: int
    peak_lr: float
    image_size: int
    relaid: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        store: ImageStore,
        total_steps: int | None = None,
        relaid: Sequence[Sequence[int]] = (),
    ) -> Plan:
        """The plan of `recipe` for the images of `store`, over its epochs or over `total_steps`.

        Raises:
            DataError: there are fewer images than a batch needs.
        """
        batch = recipe.train.batch_size
        if len(store) < batch:
            fix = f"use --batch-size {len(store)} or less" if len(store) >= 2 else "training needs at least two images"
            saw = f"batch {batch}, {counted(len(store), 'image')}"
            raise DataError("the batch is larger than the data", saw=saw, fix=fix)
        per_epoch = len(store) // batch
        total = total_steps or recipe.train.epochs * per_epoch
        earlier = tuple((int(step), int(length)) for step, length in relaid)
        return cls(recipe, len(store), per_epoch, total, recipe.learning_rate(), store.image_size, earlier)

    def relay(self, step: int, total_steps: int) -> Plan:
        """The plan with another length from `step` on, the number of steps that are done.

        The rest of the schedule, from where it stands, is stretched or compressed over the remaining steps.
        """
        if total_steps == self.total_steps:
            return self
        return replace(self, total_steps=total_steps, relaid=(*self.relaid, (step, self.total_steps)))

    @property
    def first_length(self) -> int:
        """The steps that were planned at first; the schedule is laid over them."""
        return self.relaid[0][1] if self.relaid else self.total_steps

    def planned(self, step: int) -> Fraction:
        """The step of the first plan whose learning rate and view size `step` has: `step` itself before any relaying.

        It is exact, so that every rank and a resumed run find the same.
        """
        at, planned = 0, Fraction(0)
        for relaid_at, length in self.relaid:
            if step < relaid_at:
                return planned + (self.first_length - planned) * Fraction(step - at, length - at)
            planned += (self.first_length - planned) * Fraction(relaid_at - at, length - at)
            at = relaid_at
        return planned + (self.first_length - planned) * Fraction(step - at, self.total_steps - at)

    def lr(self, step: int) -> float:
        """Learning rate of `step` (0-based)."""
        factor = lr_factor(self.recipe.schedule, self.planned(step), self.first_length, self.steps_per_epoch)
        return self.peak_lr * factor

    def view_size(self, step: int) -> int:
        """Side of the views at `step`, pixels: from progressive resolution, or the size of the images."""
        planned = self.planned(step)
        for end, size in self.phases():
            if planned < round(end * self.first_length):
                return size
        return self.phases()[-1][1]

    def phases(self) -> list[tuple[float, int]]:
        """(end as a fraction of the run, side of the views in pixels) of each phase of progressive resolution."""
        return [(end, size or self.image_size) for end, size in self.recipe.train.resolution or ((1.0, 0),)]

    def notes(self) -> list[str]:
        """Where the plan differs from the recipe, one sentence each."""
        taken, asked = warmup_steps(self.recipe.schedule, self.first_length, self.steps_per_epoch)
        if taken == asked:
            return []
        epochs = taken / self.steps_per_epoch
        return [
            f"the warm-up is cut from {self.recipe.schedule.warmup_epochs:g} to {epochs:.3g} epochs, "
            f"{100 * WARMUP_SHARE:.0f} % of the run"
        ]

    def chance_loss(self) -> float:
        """Loss of uninformative projections: ln(V·B − 1)."""
        return math.log(self.recipe.train.views * self.recipe.train.batch_size - 1)
