"""Results saved into a run, and the report page of a run without its pictures."""

from __future__ import annotations

from typing import Any

from reference.html_page import Page
from reference.synthetic_run import random_confusion, result
from simclr_engine.evaluation.records import save_result
from simclr_engine.evaluation.result import EvaluationResult
from simclr_engine.report.content import gather
from simclr_engine.report.page import render_page
from simclr_engine.run import Run


def page_of(run: Run) -> Page:
    """The page without its pictures, which take the most time."""
    return Page(render_page(gather(Run.open(run.directory)), []))


def saved(run: Run, right: float = 0.7, **rest: Any) -> EvaluationResult:
    """A result over 300 images, saved into the run; fields that `result` sets itself may be replaced."""
    plain = result(random_confusion(3, 300, right), data=run.environment["data"]["name"]).to_dict()
    plain |= {k: [vars(one) for one in v] if k == "folds" else v for k, v in rest.items()}
    one = EvaluationResult.from_dict(plain)
    save_result(run.directory / "evaluation", one)
    return one
