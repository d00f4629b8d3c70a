"""compare.html: several runs side by side on one page. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..command_line import shell_command
from ..files import Folder
from ..inputs import open_regular
from ..outputs import Output, check_outputs
from .comparison import (
    ComparedRun,
    baseline_cell,
    differing_keys,
    method_cell,
    method_rows,
    notes,
    recipe_value,
    run_cells,
)
from .comparison_figures import accuracy_pictures, curve_pictures
from .content import beside_published, commands, published_figures, published_source, short_name
from .page import draw, render, with_pictures
from .style import can_draw
from .tables import COMPARES, Cell, Section, Table, accuracy_text, protocols, published_cells, published_sets, row

# The page begins with this, by which the next one knows that it may replace it.
BEGINNING = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="simclr-engine compare">
"""


def write_comparison(runs: Sequence[ComparedRun], out: Path, overwrite: bool = False) -> Path:
    """Writes the page; returns its path. A page of an earlier comparison is replaced, with `overwrite` any file.

    Raises:
        UsageError: something else lies at `out`.
        PlatformError: jinja2 is not installed, or the page cannot be written.
    """
    check_outputs(Output(out, is_comparison), overwrite=overwrite)
    Folder.open(out.parent, make=True).write_text(out.name, render_comparison(runs, out))
    return out


def is_comparison(path: Path) -> bool:
    """Whether `compare` wrote the page; OSError where it cannot be read."""
    with open_regular(path) as file:
        return file.read(len(BEGINNING)) == BEGINNING


def render_comparison(runs: Sequence[ComparedRun], out: Path) -> str:
    """The page as one HTML text; `out` is where the command at its end writes it again."""
    heading = f"{len(runs)} runs side by side"
    drawn = [draw(picture) for picture in (*accuracy_pictures(runs), *curve_pictures(runs))]
    sections = [
        _runs_section(runs),
        _methods_section(runs),
        with_pictures(Section("Figures"), drawn) if drawn else None,
        _published_section(runs),
        _differences_section(runs),
        _protocols_section(runs),
        _reproduce_section(runs, out),
    ]
    top: dict[str, Any] = {"heading": heading, "names": [run.name for run in runs], "warnings": notes(runs)}
    return render("compare", f"{heading} — simclr-engine compare", sections, __version__, **top)


def _runs_section(runs: Sequence[ComparedRun]) -> Section:
    rows = []
    for i, run in enumerate(runs):
        recipe, data, *facts, device = run_cells(run)
        unseen = "" if can_draw(run.name) else f"run {i + 1} in the pictures; "
        name = Cell(run.name, unseen + device, bold=True, name=True)
        rows.append(row(name, Cell(recipe, name=True), Cell(data, name=True), *facts))
    head = ("run", "recipe", "data", "epochs", "views", "batch", "time", "images/s", "loss", "chance")
    aside = (
        "Loss: NT-Xent at the last logged step, in nats, beside that of an encoder which tells no image from "
        "another. Losses of runs with another batch size, number of views or temperature do not compare. Images/s: "
        "over all training steps, each image once however many views it gave."
    )
    return Section("Runs", tables=(Table(head, tuple(rows), words=3, aside=aside),))


def _methods_section(runs: Sequence[ComparedRun]) -> Section | None:
    methods = method_rows(runs)
    if not methods:
        return None
    data, size = len({short_name(method.data) for method in methods}) > 1, len({method.size for method in methods}) > 1
    rows = []
    for method in methods:
        place = f"{method.train_images:,} / {method.test_images:,} images" if size else ""
        cells = [Cell(*method_cell(cell), bold=i == method.best) for i, cell in enumerate(method.cells)]
        rows.append(row(Cell(method.name, method.size if data else place), *cells, baseline_cell(method)))
    alone = "" if size else f" All on {methods[0].size} (train / test)."
    aside = (
        "Test accuracy of each run's pretrained encoder, and below it the points that it is ahead of the same "
        "network with random weights; “random weights”: only those were evaluated. The highest of a row is bold. "
        "Largest class: the accuracy of always naming it. "
        f"One seed per run.{alone}"
    )
    table = Table(("method", *(run.name for run in runs), "largest class"), tuple(rows), aside=aside)
    return Section("Methods", tables=(table,))


def _published_section(runs: Sequence[ComparedRun]) -> Section | None:
    tables = []
    head = ("method", "encoder", "published", *(run.name for run in runs))
    for recipe in published_sets(run.recipe for run in runs):
        figures = published_figures(recipe)
        ours = [beside_published(run.content, figures) for run in runs]
        rows = [
            row(*published_cells(figure), *(accuracy_text(found[i].ours if found else None) for found in ours))
            for i, figure in enumerate(figures)
            if any(ours)
        ]
        aside = f"Published: {published_source(recipe)}."
        tables += [Table(head, tuple(rows), words=2, title=recipe.name, aside=aside)] if rows else []
    return Section("Beside published figures", tables=tables, aside=COMPARES) if tables else None


def _differences_section(runs: Sequence[ComparedRun]) -> Section:
    differing = differing_keys(runs)
    if not differing:
        return Section("What differs", text="The resolved recipes have the same hyper-parameters.")
    rows = tuple(row(key, *map(recipe_value, values)) for key, values in differing.items())
    aside = "Everything else in the resolved recipes is the same."
    table = Table(("hyper-parameter", *(run.name for run in runs)), rows, aside=aside)
    return Section("What differs", tables=(table,))


def _protocols_section(runs: Sequence[ComparedRun]) -> Section | None:
    """How the results of each run were made; what is the same in all of them once."""
    each = {run.name: protocols(run.content.results) for run in runs if run.content.results}
    if not each:
        return None
    shared = [one for one in next(iter(each.values())) if len(each) > 1 and all(one in made for made in each.values())]
    groups = {name: own for name, made in each.items() if (own := [one for one in made if one not in shared])}
    return Section("How the numbers were made", protocols=groups | ({"All runs": shared} if shared else {}))


def _reproduce_section(runs: Sequence[ComparedRun], out: Path) -> Section:
    lines = [line for run in runs for line in (f"# {run.name}", *commands(run.content), "")]
    directories = [run.directory for run in runs]
    return Section("Reproduce", code=[*lines, shell_command("compare", *directories, "--out", out)])
