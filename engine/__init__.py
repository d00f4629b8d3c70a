"""simclr-engine: pretrain an image encoder without labels, evaluate it, ship it as one ONNX file.

from simclr_engine import Recipe, load_data, pretrain

run = pretrain(Recipe.load("cifar10", overrides={"train.epochs": 200}), data=load_data("cifar10"), out="runs/first")
encoder = run.encoder()  # [B, 3, S, S] -> [B, 512]
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Libraries that report to their makers, or look for a newer version, are told not to. They ask when they are imported,
# and every import of ours passes here first. A variable that is set already is left as it is.
for _name, _value in {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime 1.29 and newer: an events host, a device id in the user's cache folder
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",  # comes with Gradio
    "NO_ALBUMENTATIONS_UPDATE": "1",  # a peer of `bench augment`
}.items():
    os.environ.setdefault(_name, _value)

if TYPE_CHECKING:
    from simclr_engine.export import OnnxEncoder, export_onnx
    from simclr_engine.kernels import AugmentSpec, augment, draw_params, nt_xent

    from .checkpoint import load_encoder
    from .data import ImageStore, load_data
    from .errors import EngineError
    from .evaluation import EvaluationResult, evaluate, evaluate_all
    from .pretraining import pretrain
    from .recipe import Recipe
    from .run import Run

# Every public name and where it lives; loaded when first asked for: `--help` and the torch-free evaluator stay light.
_HOMES = {
    "AugmentSpec": "simclr_engine.kernels",
    "EngineError": "simclr_engine.errors",
    "EvaluationResult": "simclr_engine.evaluation",
    "ImageStore": "simclr_engine.data",
    "OnnxEncoder": "simclr_engine.export",
    "Recipe": "simclr_engine.recipe",
    "Run": "simclr_engine.run",
    "augment": "simclr_engine.kernels",
    "draw_params": "simclr_engine.kernels",
    "evaluate": "simclr_engine.evaluation",
    "evaluate_all": "simclr_engine.evaluation",
    "export_onnx": "simclr_engine.export",
    "load_data": "simclr_engine.data",
    "load_encoder": "simclr_engine.checkpoint",
    "nt_xent": "simclr_engine.kernels",
    "pretrain": "simclr_engine.pretraining",
}

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
    "evaluate_all",
    "export_onnx",
    "load_data",
    "load_encoder",
    "nt_xent",
    "pretrain",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
