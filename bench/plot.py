"""The rows of a benchmark as a picture: a panel for each thing measured, a line for each contender."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(document: dict[str, Any]) -> Figure:
    """A matplotlib Figure of `{device, versions, rows}`; whiskers from p20 to p80, a logarithmic scale.

    Contenders without a figure are named in the margin with their reason.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    names = list(dict.fromkeys(row["name"] for row in document["rows"] if row["median"] is not None))
    heights = [sum(row["name"] == name and row["median"] is not None for row in document["rows"]) for name in names]
    figure = Figure(figsize=(9, 1.1 + sum(0.32 * n + 0.5 for n in heights)), layout="constrained")
    panels = figure.subplots(len(names), 1, squeeze=False, height_ratios=heights)[:, 0] if names else ()
    for axis, name in zip(panels, names, strict=True):
        rows = [row for row in document["rows"] if row["name"] == name and row["median"] is not None]
        medians = [row["median"] for row in rows]
        whiskers = [
            [row["median"] - min(row["p20"], row["p80"]) for row in rows],
            [max(row["p20"], row["p80"]) - row["median"] for row in rows],
        ]
        colours = ["#2b6cb0" if row["contender"].startswith("ours") else "#a0aec0" for row in rows]
        # Points, not bars: a bar's length means nothing on a logarithmic scale.
        places = list(range(len(rows)))
        axis.errorbar(medians, places, xerr=whiskers, fmt="none", ecolor="#4a5568", capsize=3, zorder=1)
        axis.scatter(medians, places, c=colours, s=45, zorder=2)
        axis.set_yticks(places, [row["contender"] for row in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.grid(axis="x", color="#e2e8f0")
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_title(f"{name} ({rows[0]['unit']})", fontsize="small", loc="left")
        for index, median in enumerate(medians):
            text = f"{median:,.0f}" if median >= 100 else f"{median:.3g}"
            axis.annotate(text, (median, index), (7, 5), textcoords="offset points", fontsize="x-small")
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    absent = sorted({f"{r['contender']}: {r.get('note', '')}"[:110] for r in document["rows"] if r["median"] is None})
    versions = ", ".join(f"{k} {v}" for k, v in document["versions"].items())
    figure.suptitle(f"{document['device']}; {versions}", fontsize="small")
    if absent:
        figure.supxlabel("not measured: " + "\n".join(absent), fontsize="xx-small", ha="center")
    return figure
