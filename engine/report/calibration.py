"""The reliability diagram: is a classifier right as often as it says?"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from ..evaluation.metrics import CALIBRATION_BINS
from .style import LIGHT, NARROW, Theme, titled


def reliability_figure(
    confidence: NDArray[np.floating], right: NDArray[np.bool_], ece: float, *, title: str = "", theme: Theme = LIGHT
) -> Figure:
    """Accuracy over confidence in 15 equally wide bins (arXiv 1706.04599, figure 1), the images per bin beneath.

    Args:
        confidence: `[n]`, probability of the predicted class, 0..1.
        right: bool `[n]`, whether the prediction is right.
        ece: expected calibration error, 0..1.
        title: first words of the title.
        theme: colours.
    """
    bins = CALIBRATION_BINS
    at = np.clip(
        np.ceil(np.asarray(confidence, np.float64) * bins).astype(np.int64) - 1, 0, bins - 1
    )  # as the ECE has it
    count = np.bincount(at, minlength=bins)
    filled = np.flatnonzero(count)
    accuracy = np.bincount(at, weights=right, minlength=bins)[filled] / count[filled]
    mean = np.bincount(at, weights=confidence, minlength=bins)[filled] / count[filled]
    middle, width = (np.arange(bins) + 0.5) / bins, 0.92 / bins
    with theme.applied():
        figure = Figure(figsize=(5.4, 4.6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
        upper.bar(middle[filled], accuracy, width=width, color=theme.trained, label="accuracy")
        upper.scatter(mean, accuracy, s=16, color=theme.text, zorder=3, label="at the mean confidence of the bin")
        upper.plot([0, 1], [0, 1], color=theme.chance, linestyle=(0, (4, 3)), label="as right as it says")
        upper.set_ylabel("accuracy")
        upper.set_ylim(0.0, 1.02)
        upper.yaxis.set_major_formatter(PercentFormatter(1.0))
        lower.bar(middle, count / max(1, len(at)), width=width, color=theme.scratch)
        lower.set_ylabel("share of\nimages")
        lower.yaxis.set_major_formatter(PercentFormatter(1.0))
        lower.set_xlabel(f"confidence: probability of the predicted class (n = {len(at):,}, {bins} bins)")
        lower.set_xlim(0.0, 1.0)
        lower.xaxis.set_major_formatter(PercentFormatter(1.0))
        for axes in (upper, lower):
            axes.grid(axis="x", visible=False)
        upper.set_title(titled(title, f"calibration error {ece:.3f}", NARROW))
        figure.legend(loc="outside lower center", ncols=3, fontsize=8, handlelength=1.6, columnspacing=1.2)
        return figure
