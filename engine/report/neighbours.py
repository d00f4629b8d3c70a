"""The nearest-neighbour sheet: test images beside the train images that an encoder puts next to them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .style import LIGHT, Theme, label, mark_image, new_grid, show_image, titled

LONGEST = 12  # columns of a class name that fit under an image


def neighbours_figure(
    queries: NDArray[np.uint8],
    query_labels: NDArray[np.int64],
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    cosines: NDArray[np.floating],
    class_names: Sequence[str],
    *,
    title: str = "",
    theme: Theme = LIGHT,
) -> Figure:
    """One row per query: the query, framed, then its k neighbours with their class and cosine, nearest first.

    Args:
        queries: uint8 `[q, S, S, 3]`, q ≥ 1; `query_labels` int64 `[q]`.
        query_labels: their classes, in 0..C-1.
        images: uint8 `[q, k, S, S, 3]`, k ≥ 1.
        labels: int64 `[q, k]`; a neighbour of the query's class has a tick and a solid frame, another one a cross and
            a dashed frame of another colour.
        cosines: `[q, k]`, in -1..1.
        class_names: C names.
        title: first words of the title.
        theme: colours.

    Raises:
        ValueError: the arrays do not belong together.
    """
    count, nearest = labels.shape if labels.ndim == 2 else (0, 0)
    together = len(queries) == len(query_labels) == count and images.shape[:2] == cosines.shape == labels.shape
    if not together or 0 in (count, nearest) or images.ndim != 5 or queries.ndim != 4:
        raise ValueError(
            "need queries [q, S, S, 3], neighbours [q, k, S, S, 3] and their labels and cosines [q, k], saw "
            f"{queries.shape}, {images.shape}, {labels.shape}, {cosines.shape}"
        )
    same = labels == query_labels[:, None]
    text = f"{int(same.sum())} of {same.size} neighbours are of the query's class"
    with theme.applied(class_names):
        figure, grid = new_grid(count, 1 + nearest, 0.72, 0.42, titled(title, text))
        for row in range(count):
            own = int(query_labels[row])
            show_image(grid[row, 0], queries[row], theme.text)
            name = label(class_names[own], own, LONGEST)
            grid[row, 0].set_xlabel(f"{name}\nquery", fontsize=6.8, color=theme.text, labelpad=3.0, linespacing=1.1)
            for column in range(nearest):
                axes, other, hit = grid[row, 1 + column], int(labels[row, column]), bool(same[row, column])
                show_image(axes, images[row, column], theme.second if hit else theme.chance, dashed=not hit)
                mark_image(axes, hit, theme)
                name = label(class_names[other], other, LONGEST)
                words = f"{name}\n{round(float(cosines[row, column]), 2) + 0.0:.2f}".replace("-", "−")
                axes.set_xlabel(words, fontsize=6.8, color=theme.text, labelpad=3.0, linespacing=1.1)
        return figure
