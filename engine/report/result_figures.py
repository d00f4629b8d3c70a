"""Pictures of results: accuracy by method and by labels, matrices, scores per class, galleries, reliability, learning
curves; and which of them a run gives. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, NullLocator, PercentFormatter
from numpy.typing import NDArray

from ..errors import counted
from ..evaluation.metrics import CALIBRATION_BINS
from ..evaluation.records import load_predictions, load_steps, result_id
from ..evaluation.result import FROZEN, Comparison, EvaluationResult, percent, standard_error
from .content import first_capital, short_name
from .style import (
    ACCURACY,
    DASHED,
    DOTTED,
    FEW_POINTS,
    LEARNING,
    LIGHT,
    PREDICTIONS,
    SCRATCH_DASHES,
    SMALL,
    WIDTH,
    Picture,
    Sheet,
    Theme,
    Tile,
    label,
    labels,
    legend_below,
    mark_image,
    new_figure,
    new_grid,
    printable,
    running_mean,
    set_title,
    shortened,
    show_image,
    titled,
    unnamed,
    wrapped,
)
from .tables import accuracy

if TYPE_CHECKING:
    from scipy.sparse import csr_array

MOST_CELLS = 18  # classes; beyond, a matrix is no longer legible
MOST_NUMBERS = 12  # with more, names are shorter too, and stand upright
SHOWN = 15  # confusions in a list
COLUMNS = 6  # of a gallery
LONGEST = 15  # columns of a class name that fit under an image
SHORT = 6  # up to here, eight images fit in a row of half the page
SMOOTH = 20  # more steps than that many times 2 are drawn faintly, their running mean over a twentieth on top
MANY = 6  # comparisons; with more, only the first of each of these methods has a gallery and a reliability diagram
SHOWN_OF_MANY = ("linear", "head", "finetune")
ENCODERS = {"pretrained": "pretrained", "scratch": "random"}

SCORES_NOTE = "Accuracy of a class: how much of it is found, its recall. IoU = TP / (TP + FP + FN)."
RELIABILITY_NOTE = (
    "Calibration: is a method right as often as it says? Bars below the line: surer than it should be. The calibration "
    "error is the mean distance from the line, weighted by images."
)
GALLERY_NOTE = (
    "Galleries: test images drawn at random (seed {seed}; the same for every method), with the predicted class, its "
    "confidence, and the true class where it is another."
)

Values = Sequence[float | None]
Rows = Sequence[Mapping[str, float]]


def accuracy_bars(
    names: Sequence[str],
    trained: Values,
    scratch: Values,
    *,
    trained_error: Values = (),
    scratch_error: Values = (),
    chance: Values = (),
    theme: Theme = LIGHT,
) -> Figure:
    """A pair of bars per method, all `[m]`, accuracies in 0..1; None where it was not run.

    Args:
        names: of the methods, as they are to be read; not class names.
        trained, scratch: accuracy on the pretrained and on the random encoder.
        trained_error, scratch_error: half the length of the whiskers, 0..1; None for none.
        chance: accuracy of always naming the largest class.
    """
    with theme.applied(names):
        figure, axes = new_figure("Every method", 1.1 + 0.52 * max(2, len(names)))
        alone = all(value is None for value in trained) or all(value is None for value in scratch)
        reach = 1e-3
        for values, errors, offset, colour, name in (
            (trained, trained_error, -0.2, theme.trained, "pretrained encoder"),
            (scratch, scratch_error, 0.2, theme.scratch, "random encoder"),
        ):
            rows, length, whisker = _known(values, errors)
            if not rows:
                continue
            place = [i + (0.0 if alone else offset) for i in rows]
            axes.barh(place, length, height=0.5 if alone else 0.37, color=colour, label=name)
            axes.errorbar(length, place, xerr=whisker, fmt="none", ecolor=theme.text, elinewidth=1.1, capsize=2.0)
            for at, value, error in zip(place, length, whisker, strict=True):
                axes.text(value + error, at, f" {100 * value:.1f} %", va="center", fontsize=SMALL, color=theme.text)
                reach = max(reach, value + error)
        rows, levels, _ = _known(chance, ())
        for k, (i, value) in enumerate(zip(rows, levels, strict=True)):
            axes.plot([value] * 2, [i - 0.44, i + 0.44], color=theme.chance, label=None if k else "chance")
        axes.set_yticks(range(len(names)), [wrapped(printable(name)) for name in names])
        axes.grid(axis="y", visible=False)
        axes.set(ylim=(len(names) - 0.45, -0.55), xlim=(0.0, 1.3 * max(reach, *levels, 0.0)))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set(xlabel="test accuracy")
        legend_below(figure)
        return figure


def _known(values: Values, errors: Values) -> tuple[list[int], list[float], list[float]]:
    """Where there is a value, the value, and its error (0 where there is none)."""
    rows = [i for i, value in enumerate(values) if value is not None]
    whiskers = [float(errors[i] or 0.0) if i < len(errors) else 0.0 for i in rows]
    return rows, [float(values[i] or 0.0) for i in rows], whiskers


def label_efficiency_figure(
    fractions: Sequence[float],
    trained: Values,
    scratch: Values,
    *,
    trained_error: Values = (),
    scratch_error: Values = (),
    labelled: Sequence[int] = (),
    chance: float | None = None,
    title: str = "",
    theme: Theme = LIGHT,
) -> Figure:
    """Accuracy (0..1) over the share of the labels, all `[n]`; None where it was not run.

    Args:
        fractions: share of the train labels, 0..1, rising.
        trained, scratch: accuracy from the pretrained and from the random encoder.
        trained_error, scratch_error: half the length of the whiskers, 0..1.
        labelled: how many images each fraction is, for the axis.
        chance: accuracy of always naming the largest class.
        title: the method.
    """
    with theme.applied():
        figure, axes = new_figure(titled(title, "accuracy by labels"), 2.6)
        for values, errors, name, look in (
            (trained, trained_error, "pretrained encoder", _look(theme.trained, "o", "solid")),
            (scratch, scratch_error, "random encoder", _look(theme.scratch, "s", SCRATCH_DASHES)),
        ):
            rows, heights, whiskers = _known(values, errors)
            if rows:
                at = [fractions[i] for i in rows]
                axes.errorbar(at, heights, yerr=whiskers, markersize=5, capsize=2.5, label=name, **look)
        if chance is not None:
            axes.axhline(chance, color=theme.chance, linestyle=DASHED, linewidth=1.4, label="chance")
        axes.set_xscale("log")
        short = EngFormatter(sep="")
        counts = [f"\n{short(n)}" for n in labelled] or [""] * len(fractions)
        texts = [f"{100 * share:g} %{count}" for share, count in zip(fractions, counts, strict=True)]
        axes.set_xticks(list(fractions), texts)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlabel="share of the train labels" + (" and images" if labelled else ""), ylabel="test accuracy")
        axes.set(xlim=(min(fractions) / 1.4, max(fractions) * 1.4), ylim=(0.0, None))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        legend_below(figure, handlelength=2.4)
        return figure


def _look(colour: str, marker: str, dashes: Any) -> dict[str, Any]:
    return {"color": colour, "marker": marker, "linestyle": dashes}


def confusion_figure(
    confusion: csr_array, class_names: Sequence[str], *, title: str = "", theme: Theme = LIGHT
) -> Figure:
    """Which class is taken for which: sparse int64 `[C, C]`, row = true class, shown as a share of each row.

    Above 18 classes the most frequent confusions are listed instead of a matrix that nobody can read.
    """
    with theme.applied(class_names):
        if len(class_names) > MOST_CELLS:
            return _top_confusions(confusion, class_names, title, theme)
        return _matrix(confusion.toarray(), class_names, title, theme)


def _matrix(confusion: NDArray[np.int64], class_names: Sequence[str], title: str, theme: Theme) -> Figure:
    classes, support = len(class_names), confusion.sum(1)
    few = classes <= MOST_NUMBERS
    names = labels(class_names, LONGEST if few else 10)
    share = confusion / np.maximum(support, 1)[:, None]
    heading = titled(title, f"% of each true class (n = {int(support.sum()):,})")
    figure, axes = new_figure(heading, max(3.2, 1.1 + 0.155 * classes))
    colours = LinearSegmentedColormap.from_list("share", [theme.surface, theme.trained])
    axes.imshow(share, cmap=colours, vmin=0.0, vmax=1.0, aspect="auto")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    slanted: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if few else {"rotation": 90}
    axes.set_xticks(range(classes), names, **(slanted if max(map(len, names)) > 2 else {}))
    equal = len(set(support.tolist())) == 1
    rows = names if equal else [f"{name} ({n:,})" for name, n in zip(names, support, strict=True)]
    axes.set_yticks(range(classes), rows)
    axes.set_xlabel("predicted class")
    axes.set_ylabel(f"true class ({counted(support[0], 'image')} each)" if equal else "true class (images)")
    for i, j in np.argwhere(confusion) if few else ():
        look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": SMALL}
        axes.text(j, i, f"{100 * share[i, j]:.0f}", color=_readable(colours(share[i, j])[:3]), **look)
    return figure


def _readable(cell: tuple[float, ...]) -> str:
    """Black or white on a coloured cell, whichever contrasts more (relative luminance of WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in cell]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#ffffff" if (1.05 / (luminance + 0.05)) > ((luminance + 0.05) / 0.05) else "#111820"


def _top_confusions(confusion: csr_array, class_names: Sequence[str], title: str, theme: Theme) -> Figure:
    cells, support = confusion.tocoo(), confusion.sum(1)
    wrong = np.flatnonzero(cells.row != cells.col)
    order = wrong[np.argsort(-cells.data[wrong], kind="stable")[:SHOWN]]
    pairs, counts = list(zip(cells.row[order], cells.col[order], strict=True)), cells.data[order].tolist()
    heading = titled(title, f"most frequent confusions of {len(class_names):,} classes")
    figure, axes = new_figure(heading, 0.9 + 0.16 * max(3, len(pairs)))
    axes.barh(range(len(pairs)), counts, color=theme.chance, height=0.7)
    names = [" → ".join(label(class_names[k], k, LONGEST - 1) for k in pair) for pair in pairs]
    axes.set_yticks(range(len(pairs)), names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    for row, (count, (true, _)) in enumerate(zip(counts, pairs, strict=True)):
        text = f" {count:,} of {int(support[true]):,}"
        axes.text(count, row, text, va="center", fontsize=SMALL, color=theme.muted)
    axes.set_xlim(0, 3 * max(counts, default=1))  # the words need more than the bars
    axes.set_xlabel(f"images, of {int(support.sum()):,}")
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

    Above 18 classes the seven best and the seven worst are shown.
    """
    with theme.applied(class_names):
        order = sorted(range(len(class_names)), key=lambda i: (-accuracy[i], i))
        many = len(order) > MOST_CELLS
        shown = order[:7] + order[-7:] if many else order
        which = f"best and worst of {len(order):,} classes" if many else "scores per class"
        heading = titled(title, f"{which} (n = {sum(support):,})")
        figure, axes = new_figure(heading, max(3.2, 1.2 + 0.2 * len(shown)))
        colours = (theme.trained, theme.second, theme.categories[6])
        for k, (what, values) in enumerate((("accuracy", accuracy), ("F1", f1), ("IoU", iou))):
            at = [row + 0.26 * (k - 1) for row in range(len(shown))]
            axes.barh(at, [values[i] for i in shown], height=0.24, color=colours[k], label=what)
        if scratch_accuracy is not None:
            at, ticks = [row - 0.26 for row in range(len(shown))], [scratch_accuracy[i] for i in shown]
            mark: dict[str, Any] = {"marker": "|", "s": 30, "linewidths": 2.0, "label": "accuracy, random encoder"}
            axes.scatter(ticks, at, color=theme.text, **mark)
        equal = len(set(support)) == 1
        names = [label(class_names[i], i, LONGEST) + ("" if equal else f" ({support[i]:,})") for i in shown]
        axes.set_yticks(range(len(shown)), names)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        unit = f"score ({counted(support[0], 'image')} per class)" if equal else "score (images in brackets)"
        axes.set(xlim=(0.0, 1.0), xlabel=unit)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        legend_below(figure, 4, handlelength=1.2)
        return figure


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

    Raises:
        ValueError: the arrays do not belong together.
    """
    count = len(images)
    shapes = [values.shape for values in (predicted, confidence, truth) if values is not None]
    if images.ndim != 4 or count < 1 or any(shape != (count,) for shape in shapes):
        raise ValueError(f"need images [n, S, S, 3] and n values of each kind, saw {images.shape}, {shapes}")
    words = counted(count, "image") + ("" if truth is None else f", {int((predicted == truth).sum())} right")
    with theme.applied(class_names):
        columns, below = min(COLUMNS, count), 0.40 if truth is None else 0.52
        figure, grid = new_grid(-(-count // columns), columns, 0.86, below, titled(title, words))
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


def reliability_figure(
    confidence: NDArray[np.floating], right: NDArray[np.bool_], ece: float, *, title: str = "", theme: Theme = LIGHT
) -> Figure:
    """Accuracy over confidence in 15 equally wide bins (arXiv 1706.04599, figure 1), the images per bin beneath.

    Args:
        confidence: `[n]`, probability of the predicted class, 0..1.
        right: bool `[n]`, whether the prediction is right.
        ece: expected calibration error, 0..1.
        title: first words of the title.
    """
    bins = CALIBRATION_BINS
    at = np.ceil(np.asarray(confidence, np.float64) * bins).astype(np.int64) - 1  # as the ECE has it
    at = np.clip(at, 0, bins - 1)
    count = np.bincount(at, minlength=bins)
    filled = np.flatnonzero(count)
    share = np.bincount(at, weights=right, minlength=bins)[filled] / count[filled]
    mean = np.bincount(at, weights=confidence, minlength=bins)[filled] / count[filled]
    middle, width = (np.arange(bins) + 0.5) / bins, 0.92 / bins
    with theme.applied():
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        set_title(figure, titled(title, f"calibration error {ece:.3f}"))
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
        upper.bar(middle[filled], share, width=width, color=theme.trained, label="accuracy")
        upper.scatter(mean, share, s=9, color=theme.text, zorder=3, clip_on=False, label="at the mean confidence")
        upper.plot([0, 1], [0, 1], color=theme.chance, linestyle=DASHED, label="as right as it says")
        upper.set(ylabel="accuracy", ylim=(0.0, 1.02))
        lower.bar(middle, count / max(1, len(at)), width=width, color=theme.scratch)
        unit = f"confidence (n = {len(at):,}, {bins} bins)"
        lower.set(ylabel="images", xlabel=unit, xlim=(0.0, 1.0))
        lower.xaxis.set_major_formatter(PercentFormatter(1.0))
        for axes in (upper, lower):
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
            axes.grid(axis="x", visible=False)
        legend_below(figure)
        return figure


def training_figure(
    trained: Rows = (),
    scratch: Rows = (),
    *,
    trained_steps: Rows = (),
    scratch_steps: Rows = (),
    reached: int | None = None,
    scored: str = "test",
    images: int = 0,
    title: str = "",
    theme: Theme = LIGHT,
) -> Figure:
    """Accuracy and loss on the scored images, train loss per epoch and per step, and the learning rate.

    With several folds, each is a thin line; the mean is a thick one, in a band of ± one standard deviation (n − 1).

    Args:
        trained, scratch: history of the run from the pretrained and from the random encoder: rows with `fold`, `epoch`,
            `test_accuracy` (0..1), `test_loss` and `train_loss` (nats), `lr`.
        trained_steps, scratch_steps: rows with `fold`, `step`, `train_loss`; without them there is no such panel.
        reached: the first epoch at which `trained` is as accurate as `scratch` at its end; it is marked.
        scored: what the accuracy is measured on, such as `test` or `held-out fold`.
        images: how many images that are, for the axis; 0 if unknown.
        title: above all.

    Raises:
        ValueError: there is no row.
    """
    if not trained and not scratch:
        raise ValueError("there is no history to draw")
    looks = _look(theme.scratch, "s", SCRATCH_DASHES), _look(theme.trained, "o", "solid")
    per_epoch = list(zip((scratch, trained), ("random encoder", "pretrained encoder"), looks, strict=True))
    per_step = bool(trained_steps or scratch_steps)
    with theme.applied():
        figure = Figure(figsize=(WIDTH, 7.6 if per_step else 6.1), layout="constrained")
        set_title(figure, title)
        panels = figure.subplots(5 if per_step else 4, 1)
        for axes, column in zip(panels, ("test_accuracy", "test_loss", "train_loss", "lr"), strict=False):
            for rows, name, look in per_epoch:
                _per_epoch(axes, rows, column, name, look)
        size = f" ({counted(images, 'image')})" if images else ""
        _dress(panels[0], f"{first_capital(scored)} accuracy{size}", "accuracy")
        _dress(panels[1], f"{first_capital(scored)} cross-entropy", "nats")
        _dress(panels[2], "Train cross-entropy, per epoch", "nats")
        _dress(panels[3], "Learning rate", "")
        panels[0].yaxis.set_major_formatter(PercentFormatter(1.0))
        panels[3].set_ylim(bottom=0.0)
        if reached is not None and trained and scratch:
            _mark_reached(panels[0], scratch, reached, theme)
        if per_step:
            for rows, (_, name, look) in zip((scratch_steps, trained_steps), per_epoch, strict=True):
                _per_step(panels[4], rows, name, look)
            _dress(panels[4], "Train cross-entropy, per step", "nats", "step")
        legend_below(figure, 2, handles=panels[0].get_legend_handles_labels()[0], handlelength=2.4)
        return figure


def by_fold(rows: Rows, position: str, column: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The positions that all folds have, float64 `[n]`, and the column there, float64 `[folds, n]`."""
    folds: dict[int, dict[float, float]] = {}
    for row in rows:
        if column in row and position in row:
            folds.setdefault(int(row.get("fold", 0)), {})[float(row[position])] = float(row[column])
    common = sorted(set.intersection(*(set(fold) for fold in folds.values()))) if folds else []
    values = np.array([[fold[x] for x in common] for fold in folds.values()], dtype=np.float64)
    return np.array(common), values.reshape(len(folds), len(common))


def _per_epoch(axes: Axes, rows: Rows, column: str, name: str, look: Mapping[str, Any]) -> None:
    at, values = by_fold(rows, "epoch", column)
    if not len(at):
        return
    line = dict(look)
    marks: dict[str, Any] = {"marker": line.pop("marker"), "markersize": 3.5}
    if len(values) > 1:
        name = f"{name}: mean of {len(values)} folds ± sd"
        mean, sd = values.mean(0), values.std(0, ddof=1)
        axes.fill_between(at, mean - sd, mean + sd, color=line["color"], alpha=0.18, linewidth=0)
        axes.plot(at, values.T, color=line["color"], alpha=0.45, linewidth=0.7)
    axes.plot(at, values.mean(0), label=name, **line, **(marks if len(at) <= FEW_POINTS else {}))


def _per_step(axes: Axes, rows: Rows, name: str, look: Mapping[str, Any]) -> None:
    at, values = by_fold(rows, "step", "train_loss")
    if not len(at):
        return
    mean, width, line = values.mean(0), len(at) // SMOOTH, {"color": look["color"], "linestyle": look["linestyle"]}
    if width >= 2:
        axes.plot(at, mean, alpha=0.3, linewidth=0.8, color=look["color"])
        mean = running_mean(mean, width)
    axes.plot(at, mean, label=name, **line)


def _mark_reached(axes: Axes, scratch: Rows, reached: int, theme: Theme) -> None:
    goal = float(by_fold(scratch, "epoch", "test_accuracy")[1].mean(0)[-1])
    words = "final accuracy, random encoder"
    axes.axhline(goal, color=theme.chance, linestyle=DOTTED, linewidth=1.4, label=words)
    words = f"reached by the pretrained one: epoch {reached}"
    axes.axvline(reached, color=theme.chance, linewidth=1.2, label=words, zorder=1)


def _dress(axes: Axes, heading: str, unit: str, position: str = "epoch") -> None:
    axes.set(title=heading, xlabel=position, ylabel=unit)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


def result_pictures(comparisons: Sequence[Comparison], directory: Path, images: int, seed: int) -> list[Picture]:
    """What the results of a run give: every method, what the classifiers say, how they learnt.

    Args:
        comparisons: of the run.
        directory: where its results and predictions are.
        images: of a gallery.
        seed: which images.
    """
    return [
        *(_method_pictures(comparisons) if comparisons else ()),
        *_prediction_pictures(comparisons, directory, images, seed),
        *(picture for pair in comparisons for picture in _learning_pictures(pair, directory)),
    ]


def _method_pictures(comparisons: Sequence[Comparison]) -> list[Picture]:
    """Every method in one picture, and a curve for each that was run with several shares of the labels."""
    several = len({pair.shown.data for pair in comparisons}) > 1
    names = [f"{pair.name} · {short_name(pair.shown.data)}" if several else pair.name for pair in comparisons]
    chance = [pair.chance for pair in comparisons]
    bars = partial(accuracy_bars, names, **_both_encoders(comparisons), chance=chance)
    sizes = sorted({pair.shown.test_images for pair in comparisons})
    span = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    folds = any(pair.shown.folds for pair in comparisons)
    whiskers = "; of a cross-validation ± one standard deviation over the folds" if folds else ""
    caption = (
        f"The pretrained encoder beside the same network with random weights, on {counted(span, 'image')} that were "
        f"not learnt from. Whiskers: ± one standard error{whiskers}. Chance: always naming the largest class."
    )
    groups: dict[tuple[str, int | None, str, bool], list[Comparison]] = {}
    for pair in comparisons:
        shown = pair.shown
        groups.setdefault((shown.data, shown.limit, pair.method, bool(shown.folds)), []).append(pair)
    rising = [sorted(group, key=lambda pair: pair.shown.label_fraction) for group in groups.values()]
    curves = [_label_curve(group) for group in rising if len({pair.shown.label_fraction for pair in group}) > 1]
    return [Picture("methods", ACCURACY, caption, bars), *curves]


def _both_encoders(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Accuracies and their errors, of the figures that show both encoders."""
    both = {"trained": [pair.trained for pair in comparisons], "scratch": [pair.scratch for pair in comparisons]}
    values = {side: [accuracy(result) if result else None for result in results] for side, results in both.items()}
    return values | {f"{side}_error": [_uncertainty(result) for result in results] for side, results in both.items()}


def _label_curve(group: Sequence[Comparison]) -> Picture:
    """Of comparisons of one method, by rising share of the labels."""
    method, most = group[0].name.split(",")[0], group[-1].shown
    span = " to ".join(f"{100 * group[i].shown.label_fraction:g} %" for i in (0, -1))
    caption = (
        f"{first_capital(method)} with {span} of the train labels, drawn so that every class keeps its share; below "
        "each share the images that were learnt from."
    )
    curve = partial(
        label_efficiency_figure,
        [pair.shown.label_fraction for pair in group],
        **_both_encoders(group),
        labelled=[pair.shown.train_images for pair in group],
        chance=group[-1].chance,
        title=method,
    )
    return Picture(f"labels-{result_id(most).replace(f'-{most.init}', '')}", ACCURACY, caption, curve)


def _uncertainty(result: EvaluationResult | None) -> float | None:
    """Standard deviation over the folds, or standard error of the accuracy."""
    if result is None:
        return None
    return result.fold_spread[1] if result.fold_spread else standard_error(result)


def _prediction_pictures(comparisons: Sequence[Comparison], directory: Path, images: int, seed: int) -> list[Picture]:
    """Matrix, scores per class, gallery and reliability of each comparison."""
    pictures: list[Picture] = []
    crowded, seen = len(comparisons) > MANY, set()
    for pair in comparisons:
        if pair.trained is not None or pair.method not in FROZEN:
            pictures += classifier_pictures(pair)
        if crowded and (pair.method in seen or pair.method not in SHOWN_OF_MANY):
            continue
        seen.add(pair.method)
        for result in pair.both:
            if result is not None:
                pictures += _gallery_and_reliability(pair, result, directory, images, seed)
    return pictures


def _described(pair: Comparison, result: EvaluationResult) -> str:
    """`linear probe, random encoder`; a method that has no pretrained side needs no such word."""
    if pair.method == "supervised":
        return pair.name
    return f"{pair.name}, {ENCODERS.get(result.init, result.init)} encoder"


def classifier_pictures(pair: Comparison) -> list[Picture]:
    """Confusion matrix and scores per class of the trained encoder's result (or of the only one there is)."""
    result, table = pair.shown, pair.shown.per_class
    scratch = [row.accuracy for row in pair.scratch.per_class] if pair.trained and pair.scratch else None
    best, worst = max(table, key=lambda row: row.accuracy), min(table, key=lambda row: row.accuracy)
    name, spelling = result_id(result), unnamed(result.class_names)
    method = first_capital(pair.name if result.init == "pretrained" else _described(pair, result))
    matrix = partial(confusion_figure, result.confusion, result.class_names, title=pair.name)
    columns = ([getattr(row, score) for row in table] for score in ("accuracy", "f1", "iou", "support"))
    bars = partial(per_class_figure, result.class_names, *columns, title=pair.name, scratch_accuracy=scratch)
    right = (
        f"{method}: {percent(result.accuracy, result.test_images)} of {counted(result.test_images, 'test image')} are "
        f"right{' (the diagonal)' if len(table) <= MOST_CELLS else ''}.{spelling}"
    )
    classes = (
        f"{method}: the easiest class is {best.name} ({100 * best.accuracy:.1f} %), the hardest {worst.name} "
        f"({100 * worst.accuracy:.1f} %).{spelling}"
    )
    return [
        Picture(f"confusion-{name}", PREDICTIONS, right, matrix),
        Picture(f"per-class-{name}", PREDICTIONS, classes, bars, note=SCORES_NOTE),
    ]


def _gallery_and_reliability(
    pair: Comparison, result: EvaluationResult, directory: Path, images: int, seed: int
) -> list[Picture]:
    """The gallery, and the reliability diagram of the trained encoder's result (or of the only one there is)."""
    name, classes = result_id(result), result.class_names
    stored = load_predictions(directory, name)
    if stored is None or min(stored.predicted.min(), stored.truth.min()) < 0:
        return []
    if max(stored.predicted.max(), stored.truth.max()) >= len(classes):
        return []
    pictures: list[Picture] = []
    method, right = first_capital(_described(pair, result)), stored.predicted == stored.truth
    chosen = pick(images, seed, len(stored.rows))
    if result is pair.shown:
        caption = (
            f"{method}: {100 * float(stored.confidence.mean()):.1f} % sure on average, and right for "
            f"{percent(float(right.mean()), len(right))}."
        )
        reliability = partial(reliability_figure, stored.confidence, right, result.ece, title=pair.name)
        pictures.append(Picture(f"reliability-{name}", PREDICTIONS, caption, reliability, note=RELIABILITY_NOTE))
    if len(chosen):
        rows = stored.rows[chosen]
        given = (stored.predicted[rows], stored.confidence[rows], stored.truth[rows])
        hits, total = int(right[rows].sum()), counted(len(right), "test image")
        caption = f"{hits} of these {len(chosen)} are right, {percent(float(right.mean()), len(right))} of all {total}."
        if not right.all():
            sure = 100 * float(stored.confidence[~right].mean())
            caption += f" Where it is wrong, it is {sure:.0f} % confident on average."
        draw = partial(gallery_figure, stored.images[chosen], classes, *given, title=method)
        sheet = _gallery_sheet(method, stored.images[chosen], classes, *given)
        caption += unnamed(classes)
        note = GALLERY_NOTE.format(seed=seed)
        pictures.append(Picture(f"predictions-{name}", PREDICTIONS, caption, draw, note=note, sheet=sheet))
    return pictures


def _gallery_sheet(
    title: str,
    images: NDArray[np.uint8],
    class_names: Sequence[str],
    predicted: NDArray[np.int64],
    confidence: NDArray[np.floating],
    truth: NDArray[np.int64],
) -> Sheet:
    tiles = []
    for image, said, sure, actual in zip(images, predicted, confidence, truth, strict=True):
        name, real, value = class_names[said], class_names[actual], f"{100 * sure:.0f} %"
        words = f"a test image of class {real}, taken for {name} with {value}"
        kind, correction = ("right", "") if said == actual else ("wrong", shortened(real, LONGEST))
        tiles.append(Tile(image, words, kind, shortened(name, LONGEST), value, correction))
    short = max(map(len, class_names)) <= SHORT
    return Sheet(title, tiles, *((8, 6) if short else (6, 4)))


def _learning_pictures(pair: Comparison, directory: Path) -> list[Picture]:
    """The curves of a method that trains."""
    histories = [result.history if result else () for result in pair.both]
    if not any(histories):
        return []
    steps = [load_steps(directory, result_id(result)) if result else [] for result in pair.both]
    shown, reached = pair.shown, pair.epochs_to_baseline
    folds = len(shown.folds)
    curve = f" Thin: the {folds} folds; thick: their mean, in a band of ± one standard deviation." if folds else ""
    goal = ""
    if all(histories):
        when = "never is within these epochs" if reached is None else f"is after epoch {reached}"
        goal = (
            f" As accurate as training from the random encoder is at its end, training from the pretrained one {when}."
        )
    epochs, title = max(int(row.get("epoch", 0)) for rows in histories for row in rows), first_capital(pair.name)
    caption = f"{title}: {counted(epochs, 'epoch')} on {counted(shown.train_images, 'labelled image')}.{goal}{curve}"
    curves = partial(
        training_figure,
        histories[0],
        histories[1],
        trained_steps=steps[0],
        scratch_steps=steps[1],
        reached=reached,
        scored="held-out fold" if folds else "test",
        images=shown.folds[0].held_out_images if folds else shown.test_images,
        title=title,
    )
    return [Picture(f"training-{result_id(shown)}", LEARNING, caption, curves, "The last epoch counts, not the best.")]
