"""The features as a map: two coordinates per image, such as the first two principal components, coloured by class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..evaluation.threads import one_thread
from .style import LIGHT, MARKERS, Theme, label, new_figure

MOST_POINTS = 5_000
MOST_CLASSES = 20  # with more, the largest are coloured and the rest stays grey


def principal_components(features: NDArray[np.float32]) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """PCA to two dimensions.

    Args:
        features: float32 `[N, D]`.

    Returns:
        Coordinates float32 `[N, 2]` (the sign of a component makes its largest weight positive), and the share of the
        variance, 0..1, that each of the two explains.
    """
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    with one_thread():
        values, vectors = np.linalg.eigh(centred.T @ centred)
    top = vectors[:, ::-1][:, :2]
    if top.shape[1] < 2:
        top = np.concatenate([top, np.zeros_like(top)], axis=1)
    top = top * np.sign(top[np.abs(top).argmax(0), [0, 1]] + 1e-300)
    share = np.clip(np.append(values[::-1], 0.0)[:2], 0.0, None) / max(float(values.clip(0).sum()), 1e-300)
    return (centred @ top).astype(np.float32), (float(share[0]), float(share[1]))


def embedding_figure(
    coordinates: NDArray[np.float32],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    *,
    axis_names: tuple[str, str] = ("component 1", "component 2"),
    title: str = "PCA",
    theme: Theme = LIGHT,
) -> Figure:
    """A scatter of features float32 `[N, 2]` with labels int64 `[N]`, a colour and a mark for each class.

    More than 5,000 points are thinned evenly; beyond 20 classes, only the 20 with the most points are coloured.
    """
    total = len(coordinates)
    if total > MOST_POINTS:
        kept = np.random.default_rng(0).permutation(total)[:MOST_POINTS]
        coordinates, labels = coordinates[kept], labels[kept]
    counts = np.bincount(labels, minlength=len(class_names))
    shown = np.sort(np.argsort(-counts, kind="stable")[:MOST_CLASSES])
    shown = shown[counts[shown] > 0]
    with theme.applied():
        figure, axes = new_figure(5.4, 5.2)
        size = float(np.clip(14_000 / max(1, len(coordinates)), 5, 26))
        rest = ~np.isin(labels, shown)
        if rest.any():
            axes.scatter(coordinates[rest, 0], coordinates[rest, 1], s=size, c=theme.scratch, alpha=0.25, linewidths=0)
        for k, index in enumerate(shown):
            colours = theme.categories
            colour, marker = colours[k % len(colours)], MARKERS[(k // len(colours) + k) % len(MARKERS)]
            at = coordinates[labels == index]
            axes.scatter(
                at[:, 0],
                at[:, 1],
                s=size,
                c=colour,
                marker=marker,
                alpha=0.65,
                linewidths=0,
                label=label(class_names[index], int(index)),
            )
        axes.set_xlabel(axis_names[0])
        axes.set_ylabel(axis_names[1])
        points = f"n = {total:,}" if total <= MOST_POINTS else f"{MOST_POINTS:,} of n = {total:,}"
        axes.set_title(f"{title} ({points})")
        axes.margins(0.03)
        legend = figure.legend(loc="outside lower center", ncols=5, fontsize=8, handletextpad=0.2, columnspacing=1.2)
        for handle in legend.legend_handles:
            if isinstance(handle, PathCollection):
                handle.set(alpha=1.0, sizes=[28.0])
        return figure
