"""Pictures and the report page of a run; takes arrays, imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .build import write_report as write_report

__all__ = ["write_report"]


def __getattr__(name: str) -> Any:
    """Loads matplotlib with the first picture, not with the package."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .build import write_report

    return write_report
