"""Tensor kernels: view parameters and augmentation, and the NT-Xent loss. Nothing here imports recipes or models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .augmentation.spec import AugmentSpec

if TYPE_CHECKING:
    from .augmentation.dispatch import augment, pick_augment
    from .augmentation.params import draw_params
    from .ntxent.loss import nt_xent, pick_nt_xent
    from .ntxent.metrics import contrastive_metrics

# Loaded when first asked for, so that a recipe, which needs only AugmentSpec, is read without torch.
_HOMES = {
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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f".{_HOMES[name]}", __name__)
    except AttributeError as error:  # `from … import name` would take it for a missing name
        raise ImportError(f"{type(error).__name__}: {error}", name=__name__) from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
