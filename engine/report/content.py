"""What a report says, gathered from a run's files; how it looks is the page's business. Imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..evaluation.records import load_results
from ..evaluation.result import METHOD_NAMES, Comparison, EvaluationResult, compare
from ..recipe import Recipe
from ..run import Run


@dataclass(frozen=True, eq=False)
class Published:
    """A published figure of the recipe's system, and our comparison of the same method, share of the labels and folds
    where one was run."""

    row: Mapping[str, Any]
    comparison: Comparison | None

    @property
    def ours(self) -> EvaluationResult | None:
        """Our result, of the row's init."""
        if self.comparison is None:
            return None
        return self.comparison.trained if self.row.get("init") == "pretrained" else self.comparison.scratch


@dataclass(frozen=True, eq=False)
class ReportContent:
    """Everything on the page.

    Attributes:
        run: the run.
        metrics: the rows of its log.
        comparisons: its results in pairs, the headline first.
        published: the figures of its recipe's system.
        export: what its last export said of itself, if there was one.
    """

    run: Run
    metrics: tuple[Mapping[str, Any], ...]
    comparisons: tuple[Comparison, ...]
    published: tuple[Published, ...]
    export: Mapping[str, Any] | None

    @property
    def headline(self) -> Comparison | None:
        """The comparison on top of the page: the linear probe if it was run."""
        return self.comparisons[0] if self.comparisons else None

    @property
    def results(self) -> list[EvaluationResult]:
        """All results, in the order of the comparisons, the trained encoder's first."""
        return [result for one in self.comparisons for result in one.both if result is not None]

    @property
    def data(self) -> Mapping[str, Any]:
        """What environment.json says of the training images."""
        about: Mapping[str, Any] = self.run.environment.get("data", {})
        return about

    @property
    def data_name(self) -> str:
        """The training data as people call it: the last part of a path."""
        return short_name(str(self.data.get("name", "unknown data")))

    @property
    def epochs(self) -> float:
        """Planned length of the run."""
        return float(self.run.environment.get("plan", {}).get("epochs") or self.run.recipe.train.epochs)

    @property
    def trained_epochs(self) -> float:
        """How far the log goes, in epochs; 0 where nothing was logged."""
        return max((row["epoch"] for row in self.metrics if _is_number(row.get("epoch"))), default=0.0)

    def last(self, column: str, event: str = "train") -> float | None:
        """The last finite number that the log has in a column."""
        values = [row[column] for row in self.metrics if row.get("event") == event and _is_number(row.get(column))]
        return float(values[-1]) if values else None


def gather(run: Run) -> ReportContent:
    """Reads the results of a run.

    Raises:
        DataError: a file under evaluation/ is not a result.
    """
    own = str(run.environment.get("data", {}).get("name", ""))
    comparisons = compare(load_results(run.directory / "evaluation").values(), own)
    published = tuple(Published(row, find(row, comparisons)) for row in published_figures(run.recipe))
    return ReportContent(run, tuple(run.metrics), tuple(comparisons), published, _export_record(run.directory))


def published_figures(recipe: Recipe) -> list[Mapping[str, Any]]:
    """The published figures of the recipe's system: those rows that name a method and an accuracy."""
    rows = recipe.published.get("results", ())
    rows = rows if isinstance(rows, list | tuple) else ()
    return [row for row in rows if isinstance(row, Mapping) and row.get("method") and _is_number(row.get("accuracy"))]


def published_classes(recipe: Recipe) -> dict[str, Mapping[str, Any]]:
    """The published scores of each class by its name, of the linear probe; from a table or from rows with a `name`."""
    found = recipe.published.get("per_class", ())
    if isinstance(found, Mapping):
        return {str(name): row for name, row in found.items() if isinstance(row, Mapping)}
    rows = [row for row in found if isinstance(row, Mapping)] if isinstance(found, list | tuple) else []
    return {str(row["name"]): row for row in rows if "name" in row}


def find(row: Mapping[str, Any], comparisons: Iterable[Comparison]) -> Comparison | None:
    """The first comparison whose method, share of the labels and number of folds are those of a published figure, and
    which has a result of its init."""
    for one in comparisons:
        result = one.trained if row.get("init") == "pretrained" else one.scratch
        if result is None or result.method != row.get("method") or len(result.folds) != row.get("folds", 0):
            continue
        if math.isclose(result.label_fraction, float(row.get("label_fraction", 1.0)), rel_tol=1e-6):
            return one
    return None


def other_encoders(results: Sequence[EvaluationResult]) -> str:
    """A warning where results of the pretrained encoder belong to different weights: the run was trained on after some
    of them, or its files come from another run. Empty where they agree, or where results do not say."""
    found: dict[str, list[str]] = {}
    for result in results:
        if result.init == "pretrained" and result.method != "probe" and result.encoder:
            words = METHOD_NAMES.get(result.method, result.method)
            part = f" with {100 * result.label_fraction:g} % of the labels" if result.label_fraction < 1 else ""
            found.setdefault(result.encoder, []).append(words + part)
    if len(found) < 2:
        return ""
    which = "; ".join(f"{', '.join(dict.fromkeys(methods))}: {encoder[:12]}…" for encoder, methods in found.items())
    return (
        f"Results of {len(found)} different encoders stand on this page, so some are not those of the run's present "
        f"weights ({which}). Evaluate again with the same methods to replace them."
    )


def short_name(source: str) -> str:
    """The last part of a path, or the name as it is."""
    return Path(source).name or source


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _export_record(directory: Path) -> Mapping[str, Any] | None:
    try:
        record = json.loads((directory / "export.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
