"""simclr-engine: pretrain an image encoder without labels, evaluate it, ship it as one ONNX file.

from simclr_engine import Recipe, load_data, pretrain

run = pretrain(Recipe.load("cifar10", overrides={"train.epochs": 200}), data=load_data("cifar10"), out="runs/first")
encoder = run.encoder()  # [B, 3, S, S] -> [B, 512]
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .package import lazy_names

# Switches off telemetry and version checks of libraries. They read these variables when they are imported, and every
# import of this package runs this file first. Variables that are already set are not changed.
for _name, _value in {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime 1.29 and newer: contacts a host, stores a device id in the cache folder
    "HF_HUB_DISABLE_TELEMETRY": "1",  # comes with timm
    "NO_ALBUMENTATIONS_UPDATE": "1",  # `bench augment` compares with albumentations
}.items():
    os.environ.setdefault(_name, _value)

if TYPE_CHECKING:
    from simclr_engine.export import OnnxEncoder, export_onnx
    from simclr_engine.kernels import AugmentSpec, augment, draw_params, nt_xent

    from .checkpoint import load_encoder
    from .data import ImageStore, load_data
    from .errors import EngineError
    from .evaluation import EvaluationResult, evaluate, evaluate_all
    from .package import __version__
    from .pretraining import pretrain
    from .recipe import Recipe
    from .run import Run

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
        "__version__": ".package",
        "augment": ".kernels",
        "draw_params": ".kernels",
        "evaluate": ".evaluation",
        "evaluate_all": ".evaluation",
        "export_onnx": ".export",
        "load_data": ".data",
        "load_encoder": ".checkpoint",
        "nt_xent": ".kernels",
        "pretrain": ".pretraining",
    },
)
