"""simclr-engine: pretrain an image encoder without labels, evaluate it, ship it as one ONNX file.

from simclr_engine import Recipe, load_data, pretrain

run = pretrain(Recipe.load("cifar10", overrides={"train.epochs": 200}), data=load_data("cifar10"), out="runs/first")
encoder = run.encoder()  # [B, 3, S, S] -> [B, 512]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import lazy_names

if TYPE_CHECKING:
    from simclr_engine.export import OnnxEncoder, export_onnx
    from simclr_engine.kernels import AugmentSpec, augment, draw_params, nt_xent

    from .checkpoint import load_encoder
    from .data import ImageStore, load_data
    from .errors import EngineError
    from .evaluation import EvaluationResult, evaluate
    from .pretraining import pretrain
    from .recipe import Recipe
    from .run import Run
    from .version import __version__

__all__ = [
    "AugmentSpec",
    "EngineError",
    "EvaluationResult",
    "ImageStore",
    "OnnxEncoder",
    "Recipe",
    "Run",
    "__version__",
    "augment",
    "draw_params",
    "evaluate",
    "export_onnx",
    "load_data",
    "load_encoder",
    "nt_xent",
    "pretrain",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "AugmentSpec": ".kernels",
        "EngineError": ".errors",
        "EvaluationResult": ".evaluation",
        "ImageStore": ".data",
        "OnnxEncoder": ".export",
        "Recipe": ".recipe",
        "Run": ".run",
        "__version__": ".version",
        "augment": ".kernels",
        "draw_params": ".kernels",
        "evaluate": ".evaluation",
        "export_onnx": ".export",
        "load_data": ".data",
        "load_encoder": ".checkpoint",
        "nt_xent": ".kernels",
        "pretrain": ".pretraining",
    },
)
