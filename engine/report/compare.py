"""compare.html: several runs side by side on one page. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import __version__
from ..command_line import shell_command
from ..evaluation.result import METHOD_NAMES
from ..files import Folder
from . import markup
from .comparability import notes
from .comparison_cells import method_cell, plain, run_cells
from .comparison_pictures import bars, curves
from .content import find, published_figures, short_name
from .markup import NOTHING, beneath, row, table
from .page import document, gallery
from .provenance import commands
from .style import can_draw
from .subjects import Subject, best_of, differing_keys, method_rows, published_recipes
from .tables import accuracy_text, how_published, protocol


def write_comparison(subjects: Sequence[Subject], out: Path) -> Path:
    """Writes the page; returns its path.

    Raises:
        PlatformError: it cannot be written.
    """
    Folder.open(out.parent, make=True).write_text(out.name, render_comparison(subjects, out))
    return out


def render_comparison(subjects: Sequence[Subject], out: Path) -> str:
    """The page as one HTML text; `out` is where the command at its end writes it again."""
    title = f"{len(subjects)} runs side by side"
    said = notes(subjects)
    names = " · ".join(markup.name(subject.name) for subject in subjects)
    top = [
        f'<header>\n<p class="eyebrow">Comparison</p>\n<h1>{title}</h1>\n<p class="lead">{names}</p>\n</header>',
        markup.warnings(said, css="card warnings"),
    ]
    sections = [
        ("Runs", _runs_table(subjects)),
        ("Methods", _methods_table(subjects) + gallery(bars(subjects))),
        ("Curves", gallery(curves(subjects))),
        ("Beside published figures", _published_table(subjects)),
        ("What differs", _differences_table(subjects)),
        ("How the numbers were made", _protocols(subjects)),
        ("Reproduce", _reproduce(subjects, out)),
    ]
    return document(f"{title} — simclr-engine compare", top, sections, __version__)


def _runs_table(subjects: Sequence[Subject]) -> str:
    head = ("run", "recipe", "data", "#epochs", "#views", "#batch", "#time", "#images/s", "#loss", "#chance")
    rows = []
    for i, subject in enumerate(subjects):
        recipe, data, *facts, device = run_cells(subject)
        unseen = "" if can_draw(subject.name) else f"run {i + 1} in the pictures; "
        name = beneath(f"<b>{markup.name(subject.name)}</b>", unseen + device)
        rows.append(row(name, markup.name(recipe), markup.name(data), *map(markup.text, facts), words=3))
    return markup.card(
        table(head, rows)
        + markup.aside(
            "Loss: NT-Xent at the last logged step, in nats, beside that of an encoder which tells no image from "
            "another. Losses of runs with another batch size, number of views or temperature do not compare. Images/s: "
            "over all training steps, each image once however many views it gave."
        )
    )


def _methods_table(subjects: Sequence[Subject]) -> str:
    rows = method_rows(subjects)
    if not rows:
        return ""
    data, size = len({short_name(one.data) for one in rows}) > 1, len({one.size for one in rows}) > 1
    body = []
    for one in rows:
        best, cells = best_of(one), []
        for i, cell in enumerate(one.cells):
            main, small = method_cell(cell)
            cells.append(beneath(f"<b>{markup.text(main)}</b>" if i == best else markup.text(main), small))
        place = one.size if data else f"{one.train_images:,} / {one.test_images:,} images" if size else ""
        body.append(row(beneath(markup.text(one.name), place), *cells))
    head = ("method", *(f"#{subject.name}" for subject in subjects))
    alone = "" if size else f" All on {rows[0].size} (train / test)."
    return markup.card(
        table(head, body)
        + markup.aside(
            "Test accuracy of each run's pretrained encoder, and below it the points that it is ahead of the same "
            "network with random weights; “random weights”: only those were evaluated. The highest of a row is bold. "
            f"One seed per run.{alone}"
        )
    )


def _published_table(subjects: Sequence[Subject]) -> str:
    blocks = []
    for recipe in published_recipes(subjects):
        rows = []
        for figure in published_figures(recipe):
            method, init = str(figure["method"]), str(figure.get("init", ""))
            cells = []
            for subject in subjects:
                one = find(figure, subject.content.comparisons)
                result = (one.trained if init == "pretrained" else one.scratch) if one else None
                cells.append(accuracy_text(result) if result else NOTHING)
            named = beneath(markup.text(METHOD_NAMES.get(method, method)), how_published(figure))
            encoder = markup.text("random" if init == "scratch" else init)
            rows.append(row(named, encoder, f"{100 * float(figure['accuracy']):.2f} %", *cells, words=2))
        if rows:
            source = recipe.published.get("source", recipe.origin)
            head = ("method", "encoder", "#published", *(f"#{subject.name}" for subject in subjects))
            title = f'<h3 class="of-table">{markup.text(recipe.name)}</h3>'
            blocks.append(title + table(head, rows) + markup.aside(f"Published: {source}."))
    if not blocks:
        return ""
    return markup.card(
        "".join(blocks) + markup.aside("Only figures on the same images and with the same budget compare.")
    )


def _differences_table(subjects: Sequence[Subject]) -> str:
    differing = differing_keys(subjects)
    if not differing:
        return markup.card("<p>The resolved recipes have the same hyper-parameters.</p>")
    rows = [
        row(markup.text(key), *(markup.text(plain(value)) for value in values)) for key, values in differing.items()
    ]
    head = ("hyper-parameter", *(f"#{subject.name}" for subject in subjects))
    return markup.card(table(head, rows) + markup.aside("Everything else in the resolved recipes is the same."))


def _protocols(subjects: Sequence[Subject]) -> str:
    blocks = []
    for subject in subjects:
        listed = "".join(protocol(result) for result in subject.content.results)
        if listed:
            blocks.append(f'<h3 class="of-table">{markup.name(subject.name)}</h3><ul class="protocols">{listed}</ul>')
    return markup.card("".join(blocks)) if blocks else ""


def _reproduce(subjects: Sequence[Subject], out: Path) -> str:
    lines = []
    for subject in subjects:
        lines += [f"# {subject.name}", *commands(subject.content), ""]
    directories = [subject.directory for subject in subjects]
    return markup.card(markup.code([*lines, shell_command("compare", *directories, "--out", out)]))
