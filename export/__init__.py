"""ONNX: writing the encoder as one file, checking it, running it without PyTorch.

`OnnxEncoder` and `onnx_features` import no torch; `export_onnx` does, when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simclr_engine.package import lazy_names

if TYPE_CHECKING:
    from .features import onnx_features as onnx_features
    from .index import EmbeddingIndex as EmbeddingIndex
    from .runtime import OnnxEncoder as OnnxEncoder
    from .web import WebPage as WebPage
    from .web import export_web as export_web
    from .writer import ExportResult as ExportResult
    from .writer import export_onnx as export_onnx

_HOMES = {
    "EmbeddingIndex": "index",
    "ExportResult": "writer",
    "OnnxEncoder": "runtime",
    "WebPage": "web",
    "export_onnx": "writer",
    "export_web": "web",
    "onnx_features": "features",
}

__all__ = ["EmbeddingIndex", "ExportResult", "OnnxEncoder", "WebPage", "export_onnx", "export_web", "onnx_features"]


__getattr__, __dir__ = lazy_names(__name__, {name: f".{module}" for name, module in _HOMES.items()})
