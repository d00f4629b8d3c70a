"""What a report says, gathered from a run's files; how it looks is the page's business. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..evaluation.comparison import Comparison, compare
from ..evaluation.records import load_results
from ..evaluation.result import EvaluationResult
from ..run import Run


@dataclass(frozen=True, eq=False)
class Published:
    """A published figure of the recipe's system, and ours by the same method and init where it was run."""

    row: Mapping[str, Any]
    ours: EvaluationResult | None


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


def gather(run: Run) -> ReportContent:
    """Reads the results of a run.

    Raises:
        DataError: a file under evaluation/ is not a result.
    """
    own = str(run.environment.get("data", {}).get("name", ""))
    comparisons = compare(load_results(run.directory / "evaluation").values(), own)
    rows = [row for row in run.recipe.published.get("results", ()) if isinstance(row, Mapping)]
    published = tuple(Published(row, _ours(row, comparisons)) for row in rows)
    return ReportContent(run, tuple(run.metrics), tuple(comparisons), published, _export_record(run.directory))


def short_name(source: str) -> str:
    """The last part of a path, or the name as it is."""
    return Path(source).name or source


def _ours(row: Mapping[str, Any], comparisons: list[Comparison]) -> EvaluationResult | None:
    """Our result for a published one; none for those on a part of the labels, which these methods do not do."""
    if "label_fraction" in row or "folds" in row:
        return None
    for one in comparisons:
        if one.method == row.get("method"):
            return one.trained if row.get("init") == "pretrained" else one.scratch
    return None


def _export_record(directory: Path) -> Mapping[str, Any] | None:
    try:
        record = json.loads((directory / "export.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
