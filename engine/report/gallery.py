"""The prediction gallery: test images with what a classifier took them for, and how sure it was."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .style import LIGHT, Theme, label, mark_image, new_grid, show_image, titled

COLUMNS = 6
LONGEST = 15  # columns of a class name that fit under an image


def pick(n: int, seed: int, stored: int) -> NDArray[np.int64]:
    """Which `n` of the `stored` images a gallery shows: drawn without replacement, the same for the same seed."""
    return np.random.default_rng(seed).permutation(stored)[: max(0, n)]


def gallery_figure(
    images: NDArray[np.uint8],
    class_names: Sequence[str],
    predicted: NDArray[np.int64],
    confidence: NDArray[np.floating],
    truth: NDArray[np.int64] | None = None,
    *,
    title: str = "",
    theme: Theme = LIGHT,
) -> Figure:
    """Images with the predicted class and its confidence.

    Args:
        images: uint8 `[n, S, S, 3]`, n ≥ 1.
        class_names: C names.
        predicted: int64 `[n]`, in 0..C-1.
        confidence: `[n]`, probability of the predicted class, 0..1.
        truth: int64 `[n]`; None where nobody knows. A right prediction has a tick and a solid frame, a wrong one a
            cross, a dashed frame of another colour, and the true class beneath.
        title: first words of the title.
        theme: colours.

    Raises:
        ValueError: the arrays do not belong together.
    """
    count = len(images)
    given = [predicted, confidence, *([] if truth is None else [truth])]
    if images.ndim != 4 or count < 1 or any(one.shape != (count,) for one in given):
        raise ValueError(
            f"need images [n, S, S, 3] and n values of each kind, saw {images.shape}, {[one.shape for one in given]}"
        )
    with theme.applied(class_names):
        columns = min(COLUMNS, count)
        below = 0.40 if truth is None else 0.52
        figure, grid = new_grid(-(-count // columns), columns, 0.86, below, _title(title, predicted, truth))
        for i, axes in enumerate(grid.flat):
            if i >= count:
                axes.axis("off")
                continue
            right = truth is None or bool(predicted[i] == truth[i])
            colour = theme.muted if truth is None else theme.second if right else theme.chance
            show_image(axes, images[i], colour, dashed=not right)
            if truth is not None:
                mark_image(axes, right, theme)
            index = int(predicted[i])
            lines = [label(class_names[index], index, LONGEST), f"{100 * confidence[i]:.0f} %"]
            if truth is not None and not right:
                actual = int(truth[i])
                lines.append(f"is: {label(class_names[actual], actual, LONGEST - 4)}")
            axes.set_xlabel("\n".join(lines), fontsize=7, color=theme.text, labelpad=3.0, linespacing=1.15)
        return figure


def _title(title: str, predicted: NDArray[np.int64], truth: NDArray[np.int64] | None) -> str:
    right = "" if truth is None else f", {int((predicted == truth).sum())} right"
    return titled(title, f"{len(predicted)} images{right}")
