"""What a recipe leaves open is fitted to the images, the memory and the time; what the user set stays as it is.

The recipes of the package are written for images of 32 pixels and tens of thousands of them. Imports no torch.
"""

from __future__ import annotations

from typing import Any

from .recipe import Recipe

# The settings that may be changed here.
FITTED = (
    "model.stem",
    "train.resolution",
    "train.batch_size",
    "train.micro_batch",
    "optimizer.lr",
    "optimizer.rest_lr",
)

# Larger images take the ImageNet stem, which makes a step about fourteen times cheaper.
LARGEST_FOR_SMALL_STEM = 64
RECIPE_SIDE = 32  # of the images that the recipes' resolutions are written for
# A ResNet-18 with the ImageNet stem takes 0.6 GFLOP for a view of 128 px, as it does with the small one for 32 px.
LARGEST_ON_CPU = 128
FEWEST_STEPS = 50  # of a run within a time limit; the batch shrinks for them
SMALLEST_BATCH = 32  # that it shrinks to for the time; there are too few negatives below


def fit_to_images(recipe: Recipe, images: int, size: int, ranks: int = 1) -> tuple[Recipe, list[str]]:
    """The recipe for so many images of `size` pixels, and a note for each value that it changes.

    Images above `LARGEST_FOR_SMALL_STEM` take the ImageNet stem, and the sides of progressive resolution grow with
    them. A batch that is larger than the data becomes one that fits.
    """
    recipe, notes = _fit_stem(recipe, size)
    if images < recipe.train.batch_size:
        recipe, more = shrink_batch(recipe, images, f"there are {images:,} images", ranks)
        notes += more
    return recipe, notes


def _fit_stem(recipe: Recipe, size: int) -> tuple[Recipe, list[str]]:
    if size <= LARGEST_FOR_SMALL_STEM or recipe.model.stem != "small" or recipe.names("model.stem"):
        return recipe, []
    changed: dict[str, Any] = {"model.stem": "imagenet"}
    if not recipe.names("train.resolution"):
        key, tree = "train.resolution", recipe.to_tree()
        changed[key] = _grown(tree["train"]["resolution"], size)
        shorts = [short | {"settings": dict(short["settings"])} for short in tree["short_runs"]]
        for short in shorts:
            if key in short["settings"]:
                short["settings"][key] = _grown(short["settings"][key], size)
        changed["short_runs"] = shorts
    note = f"images of {size} px take the imagenet stem, as those above {LARGEST_FOR_SMALL_STEM} px do"
    return recipe.fitted(changed), [f"{note} (--set model.stem=small keeps the other)"]


def _grown(stages: list[list[Any]], size: int) -> list[list[Any]]:
    """The stages of progressive resolution with sides that are the same share of the images'; 0 is all of it."""
    return [[end, min(size, round(side * size / RECIPE_SIDE))] for end, side in stages]


def shrink_batch(recipe: Recipe, most: int, why: str, ranks: int = 1) -> tuple[Recipe, list[str]]:
    """The recipe with a batch of at most `most` images, unless the user set the batch, and the note that says so.

    The batch is the largest power of two, or such a multiple of the ranks and of the user's micro-batch. The learning
    rate shrinks with it, unless the user set it or the recipe gives it per 256 images, which scales it already.
    """
    train, optimizer = recipe.train, recipe.optimizer
    own_micro = train.micro_batch if recipe.names("train.micro_batch") else 0
    batch = ranks * (own_micro or 1)
    while 2 * batch <= most:
        batch *= 2
    if recipe.names("train.batch_size") or batch > most or not 2 <= batch < train.batch_size:
        return recipe, []
    changed: dict[str, Any] = {"train.batch_size": batch, "train.micro_batch": own_micro}
    if not optimizer.lr_per_256:
        share = batch / train.batch_size
        if not recipe.names("optimizer.lr"):
            changed["optimizer.lr"] = optimizer.lr * share
        if optimizer.name == "muon" and not recipe.names("optimizer.rest_lr"):
            changed["optimizer.rest_lr"] = optimizer.rest_lr * share
        changed["short_runs"] = [
            {
                "epochs": short.epochs,
                "settings": {k: v * share if k == "optimizer.lr" else v for k, v in short.settings.items()},
            }
            for short in recipe.short_runs
        ]
    smaller = recipe.fitted(changed)
    rates = f"{recipe.learning_rate():.4g} → {smaller.learning_rate():.4g}"
    if smaller.learning_rate() == recipe.learning_rate():
        rates = f"stays {recipe.learning_rate():.4g}, as you set it"
    return smaller, [f"batch {train.batch_size} → {batch}, because {why}; peak learning rate {rates}"]
