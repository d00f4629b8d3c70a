"""Collapse, shown as collapse: the directions that features use, and the classes that a classifier on them names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from ..evaluation.metrics import feature_statistics, one_thread
from .style import LIGHT, Theme, labels, titled

MOST_BARS = 20  # classes; with more, the shares are sorted and summed up to a curve
FLOOR = 1e-6  # of the largest singular value: below lies rounding
DASHED, DOTTED = (0, (5, 1.5)), (0, (1, 1.5))

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of a feature matrix, largest first, float64 `[D]`, and their effective rank (RankMe), 1..D."""

    values: NDArray[np.float64]
    effective_rank: float


def spectrum(features: NDArray[np.float32]) -> Spectrum:
    """Of finite features float32 `[N, D]`, not centred, as RankMe is defined (arXiv 2210.02885, equations 2 and 3)."""
    rows = features.astype(np.float64)
    with one_thread():
        values = np.sqrt(np.linalg.eigvalsh(rows.T @ rows).clip(0.0))[::-1]
    return Spectrum(values, feature_statistics(features).effective_rank)


def collapse_figure(
    trained: Spectrum | None,
    scratch: Spectrum | None,
    *,
    class_names: Sequence[str] = (),
    trained_counts: NDArray[np.int64] | None = None,
    scratch_counts: NDArray[np.int64] | None = None,
    support: NDArray[np.int64] | None = None,
    images: int = 0,
    title: str = "",
    theme: Theme = LIGHT,
) -> Figure:
    """How many directions the features use, and, where counts are given, which share of the images each class is named
    for. A collapsed encoder has one large singular value, and a classifier on it names one class for all.

    Args:
        trained, scratch: spectra of the trained and of the random encoder; either may be missing.
        class_names: C names.
        trained_counts, scratch_counts: int64 `[C]`, images that each class was predicted for.
        support: int64 `[C]`, images that are of each class.
        images: images that the spectra are of, for the axis; 0 if unknown.
        title: the method that predicted, for the lower title.
        theme: colours.

    Above 20 classes the shares are summed up, the most often named class first, one curve per encoder.
    """
    counted = _encoders(trained_counts, scratch_counts, theme)
    bars = bool(counted) and len(class_names) <= MOST_BARS
    height = 3.4 + ((1.0 + 0.30 * max(3, len(class_names)) if bars else 2.6) if counted else 0.0)
    with theme.applied(class_names):
        figure = Figure(figsize=(5.4, height), layout="constrained")
        grid = figure.subplots(
            2 if counted else 1, 1, squeeze=False, height_ratios=[3.0, height - 3.0] if counted else None
        )
        _spectra(grid[0, 0], _encoders(trained, scratch, theme), images)
        if counted:
            axes = grid[1, 0]
            (_share_bars if bars else _share_curves)(axes, counted, support, class_names, theme)
            text = f"predicted classes (n = {int(counted[0][0].sum()):,})"
            axes.set_title(titled(title, text))
        return figure


def _encoders(trained: T | None, scratch: T | None, theme: Theme) -> list[tuple[T, str, str]]:
    """What there is of the two encoders, each with its name and colour."""
    both = ((trained, "pretrained", theme.trained), (scratch, "random", theme.scratch))
    return [(found, name, colour) for found, name, colour in both if found is not None]


def _spectra(axes: Axes, spectra: Sequence[tuple[Spectrum, str, str]], images: int) -> None:
    for found, name, colour in spectra:
        share = found.values / max(float(found.values[0]), 1e-300)
        text = f"{name}: effective rank {found.effective_rank:.1f} of {len(share)}"
        dashes = "solid" if name == "pretrained" else DASHED
        axes.plot(np.arange(1, len(share) + 1), share.clip(FLOOR / 10), color=colour, linestyle=dashes, label=text)
    smallest = min(float(found.values[-1] / max(found.values[0], 1e-300)) for found, *_ in spectra)
    axes.set_yscale("log")
    axes.set_ylim(max(FLOOR, min(0.5 * smallest, 0.1)), 2.0)
    axes.set_xlabel("direction, largest first")
    axes.set_ylabel("singular value, of the largest")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.set_title("Directions that the features use" + (f" (n = {images:,})" if images else ""))
    axes.tick_params(which="minor", length=0)
    axes.legend(fontsize=8, handlelength=2.2)


def _share_bars(
    axes: Axes,
    counted: Sequence[tuple[NDArray[np.int64], str, str]],
    support: NDArray[np.int64] | None,
    class_names: Sequence[str],
    theme: Theme,
) -> None:
    height = 0.8 / len(counted)
    for k, (counts, name, colour) in enumerate(counted):
        at = np.arange(len(counts)) + (k - (len(counted) - 1) / 2) * height
        axes.barh(at, counts / max(1, counts.sum()), height=0.92 * height, color=colour, label=f"named, {name}")
    if support is not None:
        for row, share in enumerate(support / max(1, support.sum())):
            axes.plot(
                [share, share],
                [row - 0.42, row + 0.42],
                color=theme.text,
                linewidth=1.6,
                label="true share" if row == 0 else None,
            )
    axes.set_yticks(range(len(class_names)), labels(class_names))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("share of the test images")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlim(left=0.0)
    axes.figure.legend(loc="outside lower center", ncols=3, fontsize=8, handles=axes.get_legend_handles_labels()[0])


def _share_curves(
    axes: Axes,
    counted: Sequence[tuple[NDArray[np.int64], str, str]],
    support: NDArray[np.int64] | None,
    class_names: Sequence[str],
    theme: Theme,
) -> None:
    curves = [(counts, f"named, {name}", colour) for counts, name, colour in counted]
    curves += [(support, "true share", theme.text)] if support is not None else []
    for (counts, name, colour), dashes in zip(curves, ("solid", DASHED, DOTTED), strict=False):
        share = np.cumsum(np.sort(counts)[::-1]) / max(1, counts.sum())
        axes.plot(np.arange(1, len(share) + 1), share, color=colour, linestyle=dashes, label=name)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel(f"so many of the {len(class_names):,} classes, most often named first")
    axes.set_ylabel("share of the test images")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(0.0, 1.04)
    axes.legend(fontsize=8, handlelength=2.2, loc="lower right")
