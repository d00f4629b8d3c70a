"""What keeps the figures of several runs from being compared, said in sentences. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..command_line import shell_command
from ..evaluation.result import EvaluationResult
from .content import other_encoders
from .markup import short
from .subjects import MethodRow, Subject, method_rows


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
            found.append(f"{subject.name} has not been evaluated: {shell_command('evaluate', subject.directory)}")
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
