"""Honest evaluation of frozen encoders: features, probes, metrics, results. Imports no torch by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .protocol import evaluate as evaluate
    from .protocol import evaluate_all as evaluate_all
    from .result import EvaluationResult as EvaluationResult

_HOME = {"evaluate": "protocol", "evaluate_all": "protocol", "EvaluationResult": "result"}

__all__ = ["EvaluationResult", "evaluate", "evaluate_all"]


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOME[name]}", __name__), name)
