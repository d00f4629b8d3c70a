"""What a table of several runs says of one of them, and of one of its methods, in plain text. Imports no torch."""

from __future__ import annotations

import json
from typing import Any

from ..evaluation.result import Comparison, points
from .markup import NOTHING, duration, short
from .subjects import Subject
from .tables import accuracy_text, difference
from .throughput import images_per_second


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


def method_cell(one: Comparison | None) -> tuple[str, str]:
    """(accuracy, what stands below it) of one method and run."""
    if one is None:
        return NOTHING, ""
    gap = difference(one)
    if one.trained is None:
        return accuracy_text(one.shown), "random weights"
    return accuracy_text(one.trained), points(gap, one.shown.test_images) if gap is not None else ""


def accuracy_of(one: Comparison | None) -> str:
    """The accuracy of a cell as the terminal shows it, the difference to random behind it."""
    main, _ = method_cell(one)
    gap = difference(one) if one else None
    return f"{main} ({points(gap, one.shown.test_images).removesuffix(' points')})" if one and gap is not None else main


def plain(value: Any) -> str:
    """A hyper-parameter as a recipe writes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
