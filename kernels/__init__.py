"""Tensor kernels: view parameters and augmentation, and the NT-Xent loss. Nothing here imports recipes or models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simclr_engine.package import lazy_names

if TYPE_CHECKING:
    from .augmentation.dispatch import augment, pick_augment
    from .augmentation.params import draw_params
    from .augmentation.spec import AugmentSpec
    from .ntxent.loss import nt_xent, pick_nt_xent
    from .ntxent.metrics import contrastive_metrics

# Loaded when first asked for, so that a recipe, which needs only AugmentSpec, is read without torch.
_HOMES = {
    "AugmentSpec": "augmentation.spec",
    "augment": "augmentation.dispatch",
    "pick_augment": "augmentation.dispatch",
    "draw_params": "augmentation.params",
    "nt_xent": "ntxent.loss",
    "pick_nt_xent": "ntxent.loss",
    "contrastive_metrics": "ntxent.metrics",
}

__all__ = [
    "AugmentSpec",
    "augment",
    "contrastive_metrics",
    "draw_params",
    "nt_xent",
    "pick_augment",
    "pick_nt_xent",
]


__getattr__, __dir__ = lazy_names(__name__, {name: f".{module}" for name, module in _HOMES.items()})
