"""Several runs side by side: their names, methods in rows, what their recipes differ in. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..evaluation.result import METHOD_NAMES, Comparison
from ..recipe import Recipe
from ..run import Run
from ..toml_tree import leaves
from .content import ReportContent, gather, short_name
from .tables import accuracy


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


def best_of(one: MethodRow) -> int | None:
    """The run with the highest accuracy among the pretrained; None where fewer than two have one, or where the highest
    is shared."""
    values = {i: accuracy(cell.trained) for i, cell in enumerate(one.cells) if cell and cell.trained}
    top = [i for i, value in values.items() if value == max(values.values())]
    return top[0] if len(values) > 1 and len(top) == 1 else None


def differing_keys(subjects: Sequence[Subject]) -> dict[str, list[Any]]:
    """Key (`train.views`) → the value of each run, for the hyper-parameters that are not the same everywhere."""
    first, *others = (subject.recipe for subject in subjects)
    differing = {key for other in others for key in first.differences(other)}
    values = [dict(leaves(subject.recipe.to_tree())) for subject in subjects]
    return {key: [one.get(key) for one in values] for key in values[0] if key in differing}


def published_recipes(subjects: Sequence[Subject]) -> list[Recipe]:
    """One recipe for each set of published figures."""
    return list({repr(subject.recipe.published): subject.recipe for subject in subjects}.values())
