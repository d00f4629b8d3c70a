"""Accuracy of every method, the pretrained encoder beside the random one, and how it grows with the labels."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from .style import LIGHT, Theme, new_figure, printable, titled

Values = Sequence[float | None]


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
        theme: colours.
    """
    with theme.applied(names):
        figure, axes = new_figure(5.4, 1.25 + 0.52 * max(2, len(names)))
        alone = all(value is None for value in trained) or all(value is None for value in scratch)
        reach = 0.0
        for values, errors, offset, colour, name in (
            (trained, trained_error, -0.2, theme.trained, "pretrained encoder"),
            (scratch, scratch_error, 0.2, theme.scratch, "random encoder"),
        ):
            rows = [i for i, value in enumerate(values) if value is not None]
            if not rows:
                continue
            length = [float(values[i] or 0.0) for i in rows]
            whisker = [float(errors[i] or 0.0) if i < len(errors) else 0.0 for i in rows]
            place = [i + (0.0 if alone else offset) for i in rows]
            axes.barh(place, length, height=0.5 if alone else 0.37, color=colour, label=name)
            axes.errorbar(
                length,
                place,
                xerr=whisker,
                fmt="none",
                ecolor=theme.text,
                elinewidth=1.1,
                capsize=2.0,
            )
            for at, value, error in zip(place, length, whisker, strict=True):
                text = f" {100 * value:.1f} %"
                axes.text(value + error, at, text, va="center", fontsize=8, color=theme.text)
                reach = max(reach, value + error)
        known = [(i, value) for i, value in enumerate(chance) if value is not None]
        for k, (i, value) in enumerate(known):
            axes.plot([value] * 2, [i - 0.44, i + 0.44], color=theme.chance, label=None if k else "chance")
        axes.set_yticks(range(len(names)), [printable(name) for name in names], fontsize=8.5)
        axes.set_ylim(len(names) - 0.45, -0.55)
        axes.grid(axis="y", visible=False)
        axes.set_xlim(
            0.0, 1.18 * max(reach, *(value for _, value in known), 1e-3) if known else 1.18 * max(reach, 1e-3)
        )
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel("test accuracy")
        axes.set_title("Every method")
        figure.legend(loc="outside lower center", ncols=3, fontsize=8, handlelength=1.4, columnspacing=1.2)
        return figure


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
        theme: colours.
    """
    with theme.applied():
        figure, axes = new_figure(5.4, 3.5)
        for values, errors, colour, marker, dashes, name in (
            (trained, trained_error, theme.trained, "o", "solid", "pretrained encoder"),
            (scratch, scratch_error, theme.scratch, "s", (0, (5, 1.5)), "random encoder"),
        ):
            rows = [i for i, value in enumerate(values) if value is not None]
            if rows:
                axes.errorbar(
                    [fractions[i] for i in rows],
                    [float(values[i] or 0.0) for i in rows],
                    yerr=[float(errors[i] or 0.0) if i < len(errors) else 0.0 for i in rows],
                    color=colour,
                    marker=marker,
                    markersize=5,
                    linestyle=dashes,
                    capsize=2.5,
                    label=name,
                )
        if chance is not None:
            axes.axhline(chance, color=theme.chance, linestyle=(0, (4, 3)), linewidth=1.4, label="chance")
        axes.set_xscale("log")
        counts = [f"\n{n:,}" for n in labelled] or [""] * len(fractions)
        texts = [f"{100 * share:g} %{count}" for share, count in zip(fractions, counts, strict=True)]
        axes.set_xticks(list(fractions), texts)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(min(fractions) / 1.4, max(fractions) * 1.4)
        axes.set_xlabel("share of the train labels" + (" and images" if labelled else ""))
        axes.set_ylabel("test accuracy")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_ylim(bottom=0.0)
        axes.set_title(titled(title, "accuracy by labels"))
        figure.legend(loc="outside lower center", ncols=3, fontsize=8, handlelength=2.4, columnspacing=1.2)
        return figure
