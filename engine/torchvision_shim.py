"""Imports torchvision even if its compiled operators do not load (a CUDA build of it with CPU-only torch)."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from .errors import PlatformError

_MISSING_OPERATOR = "operator torchvision::nms does not exist"
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[Any] = []  # a torch.library.Library undoes its declarations when it is collected


def import_torchvision() -> ModuleType:
    """The torchvision module; datasets, models and transforms work; with the shim, `torchvision.ops` and `.io` do not.

    With CPU-only torch, the CUDA build of torchvision raises a RuntimeError on import, because its Python code
    registers a shape function for an operator that was not declared. The shim declares the schema. The operator
    then has no implementation, and nothing here calls it.

    Raises:
        PlatformError: torchvision is missing, or fails to load for another reason.
    """
    try:
        import torchvision
    except ImportError as error:
        raise PlatformError(
            "torchvision cannot be imported", saw=str(error), fix="pip install torchvision, matching your torch"
        ) from error
    except RuntimeError as error:
        if _MISSING_OPERATOR not in str(error):
            raise _broken(error) from error
        _declare_operators()
        try:
            import torchvision
        except (ImportError, RuntimeError) as second:
            raise _broken(second) from second
    return torchvision


def is_shimmed() -> bool:
    """Whether the operators had to be declared, so that `torchvision.ops` does not work in this process."""
    return bool(_declared)


def _declare_operators() -> None:
    import torch

    if _declared:
        return
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    _declared.append(library)
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]  # half-imported modules


def _broken(error: Exception) -> PlatformError:
    return PlatformError(
        "torchvision does not fit the installed torch",
        saw=str(error).splitlines()[0] if str(error) else type(error).__name__,
        fix="install matching versions of both (see constraints.txt)",
    )
