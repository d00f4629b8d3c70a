"""Pictures of a classifier: its confusion matrix and its scores per class, each as a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from .style import LIGHT, NARROW, Theme, label, labels, new_figure, titled

MOST_CELLS = 30  # classes; beyond, a matrix is no longer legible
MOST_NUMBERS = 15
SHOWN = 15


def confusion_figure(
    confusion: NDArray[np.int64], class_names: Sequence[str], *, title: str = "", theme: Theme = LIGHT
) -> Figure:
    """Which class is taken for which: int64 `[C, C]`, row = true class, shown as a share of each row.

    Above 30 classes the most frequent confusions are listed instead of a matrix that nobody can read.
    """
    with theme.applied(class_names):
        if len(class_names) > MOST_CELLS:
            return _top_confusions(confusion, class_names, title, theme)
        return _matrix(confusion, class_names, title, theme)


def _matrix(confusion: NDArray[np.int64], class_names: Sequence[str], title: str, theme: Theme) -> Figure:
    classes, names, support = len(class_names), labels(class_names), confusion.sum(1)
    share = confusion / np.maximum(support, 1)[:, None]
    figure, axes = new_figure(5.4, 5.0)
    colours = LinearSegmentedColormap.from_list("share", [theme.surface, theme.trained])
    axes.imshow(share, cmap=colours, vmin=0.0, vmax=1.0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    size = max(5.0, min(9.0, 90 / classes))
    axes.set_xticks(range(classes), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
    equal = len(set(support.tolist())) == 1
    rows = names if equal else [f"{name} ({n:,})" for name, n in zip(names, support, strict=True)]
    axes.set_yticks(range(classes), rows, fontsize=size)
    axes.set_xlabel("predicted class")
    axes.set_ylabel(f"true class ({support[0]:,} images each)" if equal else "true class (images)")
    axes.set_title(titled(title, f"% of each true class (n = {int(support.sum()):,})", NARROW))
    if classes <= MOST_NUMBERS:
        for i in range(classes):
            for j in range(classes):
                if confusion[i, j]:
                    colour = _readable(colours(share[i, j])[:3], theme)
                    text = f"{100 * share[i, j]:.0f}"
                    axes.text(j, i, text, ha="center", va="center", fontsize=min(9.0, 85 / classes), color=colour)
    return figure


def _readable(cell: tuple[float, ...], theme: Theme) -> str:
    """Black or white on a coloured cell, whichever contrasts more (relative luminance of WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in cell]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#ffffff" if (1.05 / (luminance + 0.05)) > ((luminance + 0.05) / 0.05) else "#111820"


def _top_confusions(confusion: NDArray[np.int64], class_names: Sequence[str], title: str, theme: Theme) -> Figure:
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:SHOWN]
    pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True) if wrong[i, j]]
    figure, axes = new_figure(5.4, 1.3 + 0.27 * max(3, len(pairs)))
    axes.barh(range(len(pairs)), [int(wrong[p]) for p in pairs], color=theme.chance, height=0.7)
    names = [f"{label(class_names[i], i)} → {label(class_names[j], j)}" for i, j in pairs]
    axes.set_yticks(range(len(pairs)), names, fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    for row, (i, j) in enumerate(pairs):
        text = f" {int(wrong[i, j]):,} of {int(confusion[i].sum()):,}"
        axes.text(int(wrong[i, j]), row, text, va="center", fontsize=8, color=theme.muted)
    axes.margins(x=0.18)
    axes.set_xlabel(f"test images (n = {int(confusion.sum()):,})")
    axes.set_title(titled(title, f"most frequent confusions of {len(class_names):,} classes", NARROW))
    return figure


def per_class_figure(
    class_names: Sequence[str],
    accuracy: Sequence[float],
    f1: Sequence[float],
    iou: Sequence[float],
    support: Sequence[int],
    *,
    title: str = "",
    scratch_accuracy: Sequence[float] | None = None,
    theme: Theme = LIGHT,
) -> Figure:
    """Accuracy (recall), F1 and IoU per class, 0..1, all `[C]`, best class on top.

    Args:
        class_names: C names.
        accuracy, f1, iou: of the trained encoder.
        support: test images per class.
        title: the method, first words of the title.
        scratch_accuracy: of the random encoder, marked on the accuracy bars.
        theme: colours.

    Above 30 classes the seven best and the seven worst are shown.
    """
    with theme.applied(class_names):
        order = sorted(range(len(class_names)), key=lambda i: (-accuracy[i], i))
        many = len(order) > MOST_CELLS
        shown = order[:7] + order[-7:] if many else order
        figure, axes = new_figure(5.4, 1.4 + 0.36 * max(3, len(shown)))
        colours = (theme.trained, theme.second, theme.chance)
        for k, (what, values) in enumerate((("accuracy", accuracy), ("F1", f1), ("IoU", iou))):
            at = [row + 0.26 * (k - 1) for row in range(len(shown))]
            axes.barh(at, [values[i] for i in shown], height=0.24, color=colours[k], label=what)
        if scratch_accuracy is not None:
            at = [row - 0.26 for row in range(len(shown))]
            ticks = [scratch_accuracy[i] for i in shown]
            axes.scatter(
                ticks, at, marker="|", s=55, linewidths=2.2, color=theme.text, label="accuracy, random encoder"
            )
        equal = len(set(support)) == 1
        names = [label(class_names[i], i) + ("" if equal else f" ({support[i]:,})") for i in shown]
        axes.set_yticks(range(len(shown)), names)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlim(0.0, 1.0)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel(
            "score" + (f" ({support[0]:,} test images per class)" if equal else " (test images in brackets)")
        )
        which = f"best and worst of {len(order):,} classes" if many else "scores per class"
        axes.set_title(titled(title, f"{which} (n = {sum(support):,})", NARROW))
        figure.legend(loc="outside lower center", ncols=4, fontsize=8, handlelength=1.2, columnspacing=1.2)
        return figure
