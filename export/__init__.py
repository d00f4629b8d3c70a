"""ONNX: writing the encoder as one file, checking it, running it without PyTorch.

`OnnxEncoder` and `onnx_features` import no torch; `export_onnx` does, when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .features import onnx_features as onnx_features
    from .runtime import OnnxEncoder as OnnxEncoder
    from .writer import ExportResult as ExportResult
    from .writer import export_onnx as export_onnx

_HOMES = {"ExportResult": "writer", "OnnxEncoder": "runtime", "export_onnx": "writer", "onnx_features": "features"}

__all__ = ["ExportResult", "OnnxEncoder", "export_onnx", "onnx_features"]


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
