"""The augmentation sheet: an image and its views, the first thing to look at when nothing learns."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .style import LIGHT, Theme


def augmentation_sheet(
    originals: NDArray[np.uint8], views: NDArray[np.uint8], *, title: str = "", theme: Theme = LIGHT
) -> Figure:
    """Images and what the encoder gets to see of them.

    Args:
        originals: uint8 `[N, S, S, 3]`, or one image `[S, S, 3]`.
        views: uint8 `[N, V, S', S', 3]`, or `[V, S', S', 3]` for one image; the normalisation undone.
        title: above the sheet.
        theme: colours.

    Returns:
        A grid: for one image its views in rows of eight, for several one row each; the original stands first, framed.

    Raises:
        ValueError: the arrays do not belong together.
    """
    if originals.ndim == 3:
        originals, views = originals[None], views[None]
    if views.ndim != 5 or len(views) != len(originals) or views.shape[1] < 1:
        raise ValueError(f"need originals [N, S, S, 3] and views [N, V, S, S, 3], saw {originals.shape}, {views.shape}")
    count = views.shape[1]
    columns = 1 + min(8, count)
    rows = [(i, start) for i in range(len(originals)) for start in range(0, count, columns - 1)]
    with theme.applied():
        figure = Figure(figsize=(0.78 * columns, 0.78 * len(rows) + 0.35), layout="constrained")
        figure.suptitle(
            title or f"Originals (framed) and {count} views of each", x=0.01, ha="left", fontsize=10.5, weight="bold"
        )
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for row, (i, start) in enumerate(rows):
            shown = [originals[i] if start == 0 else None, *views[i, start : start + columns - 1]]
            for column, axes in enumerate(grid[row]):
                axes.set_xticks([])
                axes.set_yticks([])
                image = shown[column] if column < len(shown) else None
                axes.spines[:].set_visible(image is not None and column == 0)
                if image is None:
                    axes.axis("off")
                    continue
                axes.imshow(image, interpolation="nearest" if math.prod(image.shape[:2]) <= 96 * 96 else "antialiased")
                if column == 0:
                    for spine in axes.spines.values():
                        spine.set(color=theme.trained, linewidth=2.2)
        return figure
