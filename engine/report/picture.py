"""Picture: one picture of a report, with its caption; and what several captions say."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from matplotlib.figure import Figure

from .style import Theme, can_draw

ACCURACY, PREDICTIONS, LEARNING = "Accuracy by method", "Predictions", "Learning from labels"
FEATURES, PRETRAINING = "Features", "Pretraining"


@dataclass(frozen=True)
class Picture:
    """One picture: `name` is its file in figures/, `draw` makes it in a theme."""

    name: str
    section: str
    caption: str
    draw: Callable[[Theme], Figure]


def unnamed(class_names: Iterable[str]) -> str:
    """What a caption adds when the picture cannot spell every class name."""
    if all(can_draw(name) for name in class_names):
        return ""
    return " “class 3” is the class of that number: no font of the picture has the letters of its name."
