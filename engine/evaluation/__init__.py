"""Honest evaluation of frozen encoders: features, probes, metrics, results. Imports no torch by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .protocol import evaluate as evaluate
    from .result import EvaluationResult as EvaluationResult

_HOME = {"evaluate": "protocol", "EvaluationResult": "result"}

__all__ = ["EvaluationResult", "evaluate"]


__getattr__, __dir__ = lazy_names(__name__, {name: f".{module}" for name, module in _HOME.items()})
