"""compare.html: several runs side by side; what stands on it, and the page. Imports no torch."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .. import __version__
from ..errors import UsageError
from ..evaluation.comparison import METHOD_NAMES, Comparison, points
from ..evaluation.result import EvaluationResult
from ..recipe import Recipe
from ..run import Run, write_text_atomic
from . import markup, overlay
from .content import ReportContent, find, gather, other_encoders, published_figures, short_name
from .markup import NOTHING, beneath, duration, row, short, table
from .page import DrawnPicture, document, gallery
from .provenance import commands
from .style import THEMES, Theme, can_draw, to_png
from .tables import accuracy, accuracy_text, difference, how_published, protocol

MOST_BARS = 12  # methods in the picture of bars; the table has all
UNITS = {"epoch": "epoch", "images": "number of images seen"} | dict.fromkeys(
    ("minutes", "hours"), "time spent in training steps (logged throughput; without start-up and monitoring)"
)
LOSS_WORDS = (
    "What each run minimised, against the {unit}. Dotted: the loss of an encoder that tells no image from another, "
    "which depends on batch size and views."
)
KNN_WORDS = (
    "Watched while training, against the {unit}: kNN (k = 10, cosine) on a part of each run's train split. The test "
    "split is not looked at."
)


@dataclass(frozen=True, eq=False)
class Subject:
    """One of the runs: the shortest part of its path that no other has, and what its report says."""

    name: str
    content: ReportContent

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe it was trained with."""
        return self.content.run.recipe

    @property
    def directory(self) -> Path:
        """Where it lives."""
        return self.content.run.directory


@dataclass(frozen=True, eq=False)
class MethodRow:
    """One method on one data set: the comparison of each run, None where it was not run."""

    name: str
    data: str
    train_images: int
    test_images: int
    cells: tuple[Comparison | None, ...]

    @property
    def size(self) -> str:
        """`photos, 600 / 300 images`."""
        return f"{short_name(self.data)}, {self.train_images:,} / {self.test_images:,} images"


def gather_runs(directories: Sequence[str | Path]) -> list[Subject]:
    """The runs in these directories, in their order; one that is named twice counts once.

    Raises:
        UsageError: fewer than two different runs.
        DataError: a directory is no run, or one of its results cannot be read.
    """
    paths = list({Path(one).resolve(): Path(one) for one in directories}.values())
    if len(paths) < 2:
        raise UsageError(
            "a comparison needs at least two runs",
            saw=", ".join(map(str, directories)) or "none",
            fix="name another: simclr-engine compare runs/first runs/second; of one run, `report` makes the page",
        )
    contents = [gather(Run.open(path)) for path in paths]
    return [Subject(name, content) for name, content in zip(shortest_names(paths), contents, strict=True)]


def shortest_names(paths: Sequence[Path]) -> list[str]:
    """Of each path as many of its last parts as no other path ends with: `a/run`, `b/run`, `third`."""
    parts, names = [path.resolve().parts for path in paths], []
    for mine in parts:
        others = [theirs for theirs in parts if theirs is not mine]
        length = 1
        while length < len(mine) and any(theirs[-length:] == mine[-length:] for theirs in others):
            length += 1
        names.append(str(Path(*mine[-length:])))
    return names


def method_rows(subjects: Sequence[Subject]) -> list[MethodRow]:
    """What was evaluated, in the order of a report's table; the same method on other data is another row."""
    found: dict[tuple[object, ...], dict[int, Comparison]] = {}
    for i, subject in enumerate(subjects):
        for one in subject.content.comparisons:
            shown = one.shown
            size = (short_name(shown.data), shown.train_images, shown.test_images)
            found.setdefault((one.method, shown.label_fraction, len(shown.folds), *size), {}).setdefault(i, one)
    methods = list(METHOD_NAMES)

    def order(key: tuple[Any, ...]) -> tuple[object, ...]:
        method, fraction, folds, data, train, test = key
        rank = methods.index(method) if method in methods else len(methods)
        return folds > 0 or fraction < 1, rank, -fraction, folds, -test, -train, data

    rows = []
    for key in sorted(found, key=order):
        cells = tuple(found[key].get(i) for i in range(len(subjects)))
        first = next(one for one in cells if one is not None)
        rows.append(MethodRow(first.name, first.shown.data, first.shown.train_images, first.shown.test_images, cells))
    return rows


def differing_keys(subjects: Sequence[Subject]) -> dict[str, list[Any]]:
    """Key (`train.views`) → the value of each run, for the hyper-parameters that are not the same everywhere."""
    first, *others = (subject.recipe for subject in subjects)
    differing = {key for other in others for key in first.differences(other)}
    trees = [subject.recipe.to_tree() for subject in subjects]
    return {key: [_at(tree, key) for tree in trees] for key in _keys(trees[0]) if key in differing}


def _keys(tree: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """`a.b` of everything in nested tables, in their order."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _keys(value, f"{path}{key}.")
        else:
            yield path + key


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def notes(subjects: Sequence[Subject]) -> list[str]:
    """What keeps figures of these runs from being compared, and what is missing."""
    rows, found = method_rows(subjects), []
    kinds: dict[str, list[MethodRow]] = {}
    for one in rows:
        kinds.setdefault(one.name, []).append(one)
    for kind, same in kinds.items():
        if len(same) > 1:
            which = "; ".join(f"{one.size}: {_named(subjects, one)}" for one in same)
            found.append(f"{kind}: evaluated on different images, which do not compare ({which}).")
    for one in rows:
        if len({_protocol_key(cell.shown) for cell in one.cells if cell}) > 1:
            found.append(
                f"{one.name} on {one.size}: the runs were evaluated by different protocols. "
                "Read them below before comparing the figures."
            )
    found += _about_data(subjects)
    for subject in subjects:
        content, warning = subject.content, other_encoders(subject.content.results)
        found += [f"{subject.name}: {warning}"] if warning else []
        if not content.run.environment.get("finished"):
            how_far = f" after {short(content.trained_epochs)} of {short(content.epochs)} epochs"
            found.append(f"{subject.name} is not finished{how_far if content.metrics else ' and has logged nothing'}.")
        if not content.comparisons:
            where = shlex.quote(str(subject.directory))
            found.append(f"{subject.name} has not been evaluated: simclr-engine evaluate {where}")
    return found


def _named(subjects: Sequence[Subject], one: MethodRow) -> str:
    return ", ".join(subject.name for subject, cell in zip(subjects, one.cells, strict=True) if cell)


def _protocol_key(result: EvaluationResult) -> tuple[object, ...]:
    """What must agree for two results to compare; the regularisation that each probe chose for itself may differ, and
    so may the directory of the data."""
    words = re.sub(r"\bC=[0-9.e+-]+", "C", result.protocol)
    return words, result.image_size, result.limit, result.class_names


def _about_data(subjects: Sequence[Subject]) -> list[str]:
    """Runs whose training images have one name but not one fingerprint."""
    prints: dict[tuple[str, object, object], dict[str, list[str]]] = {}
    for subject in subjects:
        about = subject.content.data
        if about.get("fingerprint"):
            key = (subject.content.data_name, about.get("split"), about.get("limit"))
            prints.setdefault(key, {}).setdefault(str(about["fingerprint"]), []).append(subject.name)
    found = []
    for (name, _, _), groups in prints.items():
        if len(groups) > 1:
            which = "; ".join(f"{', '.join(names)}: {one[:12]}…" for one, names in groups.items())
            found.append(f"The training images called {name} are not the same in all runs (fingerprints: {which}).")
    return found


def seconds_of_training(content: ReportContent) -> list[float]:
    """Of each logged `train` row with a throughput, how long the training steps up to it took, in seconds: the sum of
    images / throughput, so without start-up and monitoring, and right for a resumed run too."""
    images, spent, before, times = float(content.data.get("images") or 0), 0.0, 0.0, []
    for logged in _rows(content, "train", "epoch", "images_per_second"):
        if logged["images_per_second"] > 0:
            spent += max(0.0, logged["epoch"] - before) * images / logged["images_per_second"]
            before = logged["epoch"]
        times.append(spent)
    return times


def images_per_second(content: ReportContent) -> float | None:
    """Throughput of the whole training, as logged; None where it was not."""
    times, rows = seconds_of_training(content), _rows(content, "train", "epoch", "images_per_second")
    if not times or not times[-1]:
        return None
    return rows[-1]["epoch"] * float(content.data.get("images") or 0) / times[-1]


def _rows(content: ReportContent, event: str, *columns: str) -> list[Mapping[str, Any]]:
    """The rows of one kind that have all these columns as finite numbers."""
    rows = [logged for logged in content.metrics if logged.get("event") == event]
    return [
        logged
        for logged in rows
        if all(isinstance(logged.get(c), int | float) and math.isfinite(logged[c]) for c in columns)
    ]


def to_document(subjects: Sequence[Subject]) -> dict[str, Any]:
    """What `compare --json` prints: plain lists, numbers and text."""
    names = [subject.name for subject in subjects]
    methods = []
    for one in method_rows(subjects):
        about = {"method": one.name, "data": one.data, "train_images": one.train_images, "test_images": one.test_images}
        results = [_scores(cell) | {"run": name} for name, cell in zip(names, one.cells, strict=True) if cell]
        methods.append(about | {"runs": results})
    published = [
        {"recipe": recipe.name, "source": str(recipe.published.get("source", recipe.origin)), "results": rows}
        for recipe in _published_recipes(subjects)
        if (rows := [dict(figure) for figure in published_figures(recipe)])
    ]
    return {
        "runs": [_about(subject) for subject in subjects],
        "methods": methods,
        "differences": {key: dict(zip(names, values, strict=True)) for key, values in differing_keys(subjects).items()},
        "published": published,
        "notes": notes(subjects),
    }


def _about(subject: Subject) -> dict[str, Any]:
    content, env = subject.content, subject.content.run.environment
    return {
        "name": subject.name,
        "directory": str(subject.directory),
        "finished": bool(env.get("finished")),
        "recipe": subject.recipe.name,
        "data": str(content.data.get("name", "")),
        "images": int(content.data.get("images") or 0),
        "epochs": content.trained_epochs,
        "planned_epochs": content.epochs,
        "views": subject.recipe.train.views,
        "batch_size": subject.recipe.train.batch_size,
        "seconds": env.get("seconds"),
        "images_per_second": images_per_second(content),
        "loss": content.last("loss"),
        "chance": content.last("chance"),
        "device": str(env.get("device_name") or env.get("device") or ""),
        "precision": str(env.get("precision") or ""),
    }


def _scores(one: Comparison) -> dict[str, Any]:
    """Both encoders' scores of one method."""
    plain: dict[str, Any] = {"difference": difference(one)}
    for init, result in (("pretrained", one.trained), ("scratch", one.scratch)):
        if result is not None:
            plain[init] = {
                "accuracy": accuracy(result),
                "fold_sd": result.fold_spread[1] if result.fold_spread else None,
                "f1_macro": result.f1_macro,
                "mean_iou": result.mean_iou,
                "ece": result.ece,
                "loss": result.loss,
                "protocol": result.protocol,
                "encoder": result.encoder,
            }
    return plain | {"epochs_to_baseline": one.epochs_to_baseline}


def write_comparison(subjects: Sequence[Subject], out: Path) -> Path:
    """Writes the page; returns its path.

    Raises:
        PlatformError: it cannot be written.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(out, render_comparison(subjects, out))
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
        ("Methods", _methods_table(subjects) + gallery(_bars(subjects))),
        ("Curves", gallery(_curves(subjects))),
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


def run_cells(subject: Subject) -> list[str]:
    """Recipe, data, epochs, views, batch, time, images/s, loss, chance, device, as plain text."""
    content, env = subject.content, subject.content.run.environment
    reached, finished = content.trained_epochs, bool(env.get("finished"))
    speed, loss, chance = images_per_second(content), content.last("loss"), content.last("chance")
    images, size = int(content.data.get("images") or 0), content.data.get("image_size", "?")
    return [
        subject.recipe.name,
        f"{content.data_name}, {images:,} × {size} px",
        short(content.epochs) if finished else f"{short(reached)} of {short(content.epochs)}",
        str(subject.recipe.train.views),
        f"{subject.recipe.train.batch_size:,}",
        duration(float(env["seconds"])) if env.get("seconds") else NOTHING,
        f"{speed:,.0f}" if speed else NOTHING,
        f"{loss:.3f}" if loss is not None else NOTHING,
        f"{chance:.3f}" if chance is not None else NOTHING,
        ", ".join(str(part) for part in (env.get("device_name") or env.get("device"), env.get("precision")) if part),
    ]


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


def method_cell(one: Comparison | None) -> tuple[str, str]:
    """(accuracy, what stands below it) of one method and run."""
    if one is None:
        return NOTHING, ""
    gap = difference(one)
    if one.trained is None:
        return accuracy_text(one.shown), "random weights"
    return accuracy_text(one.trained), points(gap, one.shown.test_images) if gap is not None else ""


def best_of(one: MethodRow) -> int | None:
    """The run with the highest accuracy among the pretrained; None where fewer than two have one, or where the highest
    is shared."""
    values = {i: accuracy(cell.trained) for i, cell in enumerate(one.cells) if cell and cell.trained}
    top = [i for i, value in values.items() if value == max(values.values())]
    return top[0] if len(values) > 1 and len(top) == 1 else None


def _bars(subjects: Sequence[Subject]) -> list[DrawnPicture]:
    """The accuracies of the first methods of the table; none where nothing was evaluated."""
    rows = method_rows(subjects)
    if not rows:
        return []
    numbered = len({one.name for one in rows}) < len(rows)
    shown = rows[:MOST_BARS]
    names = [f"{one.name} ({i + 1})" if numbered else one.name for i, one in enumerate(shown)]
    trained = [[accuracy(cell.trained) if cell and cell.trained else None for cell in one.cells] for one in shown]
    scratch = [[accuracy(cell.scratch) if cell and cell.scratch else None for cell in one.cells] for one in shown]
    runs = [subject.name for subject in subjects]
    caption = "Test accuracy of each method, a bar per run; the upright mark is the random encoder's."
    caption += " In brackets: the row of the table." if numbered else ""
    caption += f" The first {len(shown)} of {len(rows)} rows." if len(shown) < len(rows) else ""
    draw = partial(overlay.accuracy_overlay, names, runs, trained, scratch)
    return [_drawn(caption, lambda theme: draw(theme=theme))]


def _curves(subjects: Sequence[Subject]) -> list[DrawnPicture]:
    """Loss and online kNN, each against epochs and against time (images seen where no throughput was logged)."""
    axes = ("epoch", _time_axis(subjects))
    counts = {len(subject.content.data.get("class_names") or ()) for subject in subjects}
    classes = counts.pop() if len(counts) == 1 else 0
    drawn = []
    for event, column, words in (("train", "loss", LOSS_WORDS), ("knn", "accuracy", KNN_WORDS)):
        for against in axes:
            traces = [_trace(i, subject, event, column, against) for i, subject in enumerate(subjects)]
            if found := [trace for trace in traces if trace]:
                if event == "train":
                    draw = partial(overlay.loss_overlay, found, against=against)
                else:
                    draw = partial(overlay.knn_overlay, found, against=against, classes=classes)
                drawn.append(_drawn(words.format(unit=UNITS[against]), _in_theme(draw)))
    return drawn


def _in_theme(draw: Callable[..., Figure]) -> Callable[[Theme], Figure]:
    """`draw` of the moment, whatever the loop that made it does next."""
    return lambda theme: draw(theme=theme)


def _drawn(caption: str, draw: Callable[[Theme], Figure]) -> DrawnPicture:
    return DrawnPicture("Curves", caption, {theme.name: to_png(draw(theme)) for theme in THEMES})


def _time_axis(subjects: Sequence[Subject]) -> str:
    """`minutes` or `hours` where every run with a log has a throughput, else `images`."""
    longest = 0.0
    for subject in subjects:
        times = seconds_of_training(subject.content)
        if _rows(subject.content, "train", "epoch") and not (times and times[-1]):
            return "images"
        longest = max([longest, *times])
    return "hours" if longest > 3 * 3600 else "minutes"


def _trace(number: int, subject: Subject, event: str, column: str, against: str) -> overlay.Trace | None:
    """A column of a run's log against epochs, minutes, hours or images; None where it was not logged."""
    content = subject.content
    rows = _rows(content, event, "epoch", column)
    if not rows:
        return None
    at = [float(logged["epoch"]) for logged in rows]
    if against == "images":
        at = [epoch * float(content.data.get("images") or 0) for epoch in at]
    elif against != "epoch":
        at = _in_time(content, at, 3600.0 if against == "hours" else 60.0)
    chance = [float(logged.get("chance", math.nan)) for logged in rows] if column == "loss" else []
    return overlay.Trace(subject.name, number, at, [float(logged[column]) for logged in rows], chance)


def _in_time(content: ReportContent, epochs: Sequence[float], unit: float) -> list[float]:
    """When these epochs were reached, in units of so many seconds, between the rows linearly."""
    import numpy as np

    known = [0.0, *(logged["epoch"] for logged in _rows(content, "train", "epoch", "images_per_second"))]
    return [float(t) / unit for t in np.interp(epochs, known, [0.0, *seconds_of_training(content)])]


def _published_recipes(subjects: Sequence[Subject]) -> list[Recipe]:
    """One recipe for each set of published figures."""
    return list({repr(subject.recipe.published): subject.recipe for subject in subjects}.values())


def _published_table(subjects: Sequence[Subject]) -> str:
    blocks = []
    for recipe in _published_recipes(subjects):
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


def plain(value: Any) -> str:
    """A hyper-parameter as a recipe writes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


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
    where = " ".join(shlex.quote(str(subject.directory)) for subject in subjects)
    return markup.card(markup.code([*lines, f"simclr-engine compare {where} --out {shlex.quote(str(out))}"]))


def accuracy_of(one: Comparison | None) -> str:
    """The accuracy of a cell as the terminal shows it, the difference to random behind it."""
    main, _ = method_cell(one)
    gap = difference(one) if one else None
    return f"{main} ({points(gap, one.shown.test_images).removesuffix(' points')})" if one and gap is not None else main
