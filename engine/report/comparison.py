"""Several runs side by side: their names, methods in rows, what their recipes differ in, what does not compare, and the
document of `compare --json`. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..command_line import shell_command
from ..documents import to_json
from ..errors import UsageError, counted
from ..evaluation.result import METHOD_NAMES, Comparison, EvaluationResult, percent, points
from ..run import Run
from .content import (
    NOTHING,
    ReportContent,
    beside_published,
    duration,
    images_per_second,
    load_content,
    other_encoders,
    published_figures,
    published_source,
    short,
    short_name,
)
from .tables import accuracy, accuracy_text, difference, published_sets

if TYPE_CHECKING:
    from ..recipe import Recipe

SCORES = (
    "majority",
    "f1_macro",
    "mean_iou",
    "ece",
    "loss",
    "protocol",
    "encoder",
)  # in the document, besides the accuracy


@dataclass(frozen=True, eq=False)
class ComparedRun:
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

    @property
    def best(self) -> int | None:
        """The run with the highest accuracy among the pretrained; None where fewer than two have one, or where the
        highest is shared."""
        values = {i: accuracy(cell.trained) for i, cell in enumerate(self.cells) if cell and cell.trained}
        top = [i for i, value in values.items() if value == max(values.values())]
        return top[0] if len(values) > 1 and len(top) == 1 else None


def open_runs(directories: Sequence[str | Path]) -> list[ComparedRun]:
    """The runs in these directories, in their order; one that is named twice counts once.

    Raises:
        UsageError: fewer than two different runs.
        DataError: a directory is no run, or one of its results cannot be read.
    """
    paths = list({Path(directory).resolve(): Path(directory) for directory in directories}.values())
    if len(paths) < 2:
        raise UsageError(
            "a comparison needs at least two runs",
            saw=", ".join(map(str, directories)) or "none",
            fix="name another run: simclr-engine compare runs/first runs/second; `report` makes the page of one run",
        )
    contents = [load_content(Run.open(path)) for path in paths]
    return [ComparedRun(name, content) for name, content in zip(shortest_names(paths), contents, strict=True)]


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


def method_rows(runs: Sequence[ComparedRun]) -> list[MethodRow]:
    """What was evaluated, in the order of a report's table; the same method on other data is another row."""
    by_key: dict[tuple[Any, ...], dict[int, Comparison]] = {}
    for i, run in enumerate(runs):
        for pair in run.content.comparisons:
            shown = pair.shown
            size = (short_name(shown.data), shown.train_images, shown.test_images)
            by_key.setdefault((pair.method, shown.label_fraction, len(shown.folds), *size), {}).setdefault(i, pair)
    methods = list(METHOD_NAMES)

    def order(key: tuple[Any, ...]) -> tuple[object, ...]:
        method, fraction, folds, data, train, test = key
        rank = methods.index(method) if method in methods else len(methods)
        return folds > 0 or fraction < 1, rank, -fraction, folds, -test, -train, data

    rows = []
    for key in sorted(by_key, key=order):
        cells = tuple(by_key[key].get(i) for i in range(len(runs)))
        first = next(cell for cell in cells if cell is not None)
        rows.append(MethodRow(first.name, first.shown.data, first.shown.train_images, first.shown.test_images, cells))
    return rows


def differing_keys(runs: Sequence[ComparedRun]) -> dict[str, list[Any]]:
    """Key (`train.views`) → the value of each run, for the hyper-parameters that are not the same everywhere."""
    first, *others = (run.recipe for run in runs)
    differing = {key for other in others for key in first.differences(other)}
    from ..recipe import leaves  # loaded with the recipes already

    values = [dict(leaves(run.recipe.to_tree())) for run in runs]
    return {key: [tree.get(key) for tree in values] for key in values[0] if key in differing}


def notes(runs: Sequence[ComparedRun]) -> list[str]:
    """What keeps figures of these runs from being compared, and what is missing, in sentences."""
    said = [*_about_methods(runs), *_about_data(runs)]
    for run in runs:
        content, warning = run.content, other_encoders(run.content.results)
        said += [f"{run.name}: {warning}"] if warning else []
        if not content.run.environment.get("finished"):
            how_far = f" after {short(content.trained_epochs)} of {counted(short(content.epochs), 'epoch')}"
            said.append(f"{run.name} is not finished{how_far if content.metrics else ' and has logged nothing'}.")
        if not content.comparisons:
            said.append(f"{run.name} has not been evaluated: {shell_command('evaluate', run.directory)}")
    return said


def _about_methods(runs: Sequence[ComparedRun]) -> list[str]:
    """Methods that were evaluated on different images, or by different protocols."""
    rows, said = method_rows(runs), []
    for name in dict.fromkeys(row.name for row in rows):
        same = [row for row in rows if row.name == name]
        if len(same) > 1:
            which = "; ".join(
                f"{row.size}: {', '.join(run.name for run, cell in zip(runs, row.cells, strict=True) if cell)}"
                for row in same
            )
            said.append(f"{name}: evaluated on different images, which do not compare ({which}).")
    for row in rows:
        if len({_protocol_key(cell.shown) for cell in row.cells if cell}) > 1:
            said.append(
                f"{row.name} on {row.size}: the runs were evaluated by different protocols. "
                "Read them below before comparing the figures."
            )
    return said


def _protocol_key(result: EvaluationResult) -> tuple[object, ...]:
    """What must agree for two results to compare; the regularisation that each probe chose for itself may differ, and
    so may the directory of the data."""
    words = re.sub(r"\bC=[0-9.e+-]+", "C", result.protocol)
    return words, result.image_size, result.limit, result.class_names


def _about_data(runs: Sequence[ComparedRun]) -> list[str]:
    """Runs whose training images have one name but not one fingerprint."""
    prints: dict[tuple[str, object, object], dict[str, list[str]]] = {}
    for run in runs:
        about = run.content.data
        if about.get("fingerprint"):
            key = (run.content.data_name, about.get("split"), about.get("limit"))
            prints.setdefault(key, {}).setdefault(str(about["fingerprint"]), []).append(run.name)
    said = []
    for (name, _, _), groups in prints.items():
        if len(groups) > 1:
            which = "; ".join(f"{', '.join(names)}: {digest[:12]}…" for digest, names in groups.items())
            said.append(f"The training images called {name} are not the same in all runs (fingerprints: {which}).")
    return said


def run_cells(run: ComparedRun) -> list[str]:
    """Recipe, data, epochs, views, batch, time, images/s, loss, chance, device, as plain text."""
    content, env = run.content, run.content.run.environment
    reached, finished = content.trained_epochs, bool(env.get("finished"))
    speed, loss, chance = images_per_second(content), content.last("loss"), content.last("chance")
    return [
        run.recipe.name,
        f"{content.data_name}, {content.images:,} × {content.data.get('image_size', '?')} px",
        short(content.epochs) if finished else f"{short(reached)} of {short(content.epochs)}",
        str(run.recipe.train.views),
        f"{run.recipe.train.batch_size:,}",
        duration(float(env["seconds"])) if env.get("seconds") else NOTHING,
        f"{speed:,.0f}" if speed else NOTHING,
        f"{loss:.3f}" if loss is not None else NOTHING,
        f"{chance:.3f}" if chance is not None else NOTHING,
        ", ".join(str(part) for part in (content.device, env.get("precision")) if part),
    ]


def method_cell(pair: Comparison | None) -> tuple[str, str]:
    """(accuracy, what stands below it) of one method and run."""
    if pair is None:
        return NOTHING, ""
    gap = difference(pair)
    if pair.trained is None:
        return accuracy_text(pair.shown), "random weights"
    return accuracy_text(pair.trained), points(gap, pair.shown.test_images) if gap is not None else ""


def baseline_cell(row: MethodRow) -> str:
    """The accuracy of always naming the largest class of the test images."""
    shown = {percent(cell.chance, row.test_images) for cell in row.cells if cell}
    return " to ".join(sorted(shown))


def recipe_value(value: Any) -> str:
    """A hyper-parameter as a recipe writes it."""
    return value if isinstance(value, str) else to_json(value, ascii=False)


def to_document(runs: Sequence[ComparedRun]) -> dict[str, Any]:
    """What `compare --json` prints: plain lists, numbers and text."""
    names = [run.name for run in runs]
    methods = []
    for row in method_rows(runs):
        about = {"method": row.name, "data": row.data, "train_images": row.train_images, "test_images": row.test_images}
        results = [_scores(cell) | {"run": name} for name, cell in zip(names, row.cells, strict=True) if cell]
        methods.append(about | {"runs": results})
    published = [
        {"recipe": recipe.name, "source": published_source(recipe), "results": rows}
        for recipe in published_sets(run.recipe for run in runs)
        if (rows := [dict(figure) for figure in published_figures(recipe)])
        and any(beside_published(run.content, rows) for run in runs)
    ]
    return {
        "runs": [_about(run) for run in runs],
        "methods": methods,
        "differences": {key: dict(zip(names, values, strict=True)) for key, values in differing_keys(runs).items()},
        "published": published,
        "notes": notes(runs),
    }


def _about(run: ComparedRun) -> dict[str, Any]:
    content, env = run.content, run.content.run.environment
    return {
        "name": run.name,
        "directory": str(run.directory),
        "finished": bool(env.get("finished")),
        "recipe": run.recipe.name,
        "data": str(content.data.get("name", "")),
        "images": content.images,
        "epochs": content.trained_epochs,
        "planned_epochs": content.epochs,
        "views": run.recipe.train.views,
        "batch_size": run.recipe.train.batch_size,
        "seconds": env.get("seconds"),
        "images_per_second": images_per_second(content),
        "loss": content.last("loss"),
        "chance": content.last("chance"),
        "device": content.device,
        "precision": str(env.get("precision") or ""),
    }


def _scores(pair: Comparison) -> dict[str, Any]:
    """Both encoders' scores of one method."""
    plain: dict[str, Any] = {"difference": difference(pair)}
    for init, result in (("pretrained", pair.trained), ("scratch", pair.scratch)):
        if result is not None:
            fold_sd = result.fold_spread[1] if result.fold_spread else None
            same = {name: getattr(result, name) for name in SCORES}
            plain[init] = {"accuracy": accuracy(result), "fold_sd": fold_sd, **same}
    return plain | {"epochs_to_baseline": pair.epochs_to_baseline}
