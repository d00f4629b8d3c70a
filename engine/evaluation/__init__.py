"""Honest evaluation of frozen encoders: features, probes, metrics, results. Imports no torch by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..package import lazy_names

if TYPE_CHECKING:
    from .encoders import open_target as open_target
    from .protocol import evaluate as evaluate
    from .protocol import evaluate_all as evaluate_all
    from .result import EvaluationResult as EvaluationResult

_HOME = {
    "evaluate": "protocol",
    "evaluate_all": "protocol",
    "EvaluationResult": "result",
    "open_target": "encoders",
}

__all__ = ["EvaluationResult", "evaluate", "evaluate_all", "open_target"]


__getattr__, __dir__ = lazy_names(__name__, {name: f".{module}" for name, module in _HOME.items()})
