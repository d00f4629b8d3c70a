"""What the packages say of themselves: public names that load their module when first asked for, and the version.

`--help` stays fast and torch optional.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package (PEP 562).

    An AttributeError of a module that is loaded becomes an ImportError.

    Args:
        package: its `__name__`.
        homes: public name → its module, relative to the package (`.recipe`) or in full (`simclr_engine.kernels`).
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            module = import_module(homes[name], package)
        except AttributeError as error:  # `from package import name` would take it for a missing name
            raise ImportError(f"{type(error).__name__}: {error}", name=package) from error
        return getattr(module, name)

    def names() -> list[str]:
        return sorted(homes)

    return load, names


def package_version() -> str:
    """The installed version; of a checkout that runs without installation (`make gpu PYTHON=python3`) its own."""
    import tomllib
    from importlib.metadata import PackageNotFoundError, version
    from pathlib import Path

    try:
        return version("simclr-engine")
    except PackageNotFoundError:
        project = Path(__file__).resolve().parents[1] / "pyproject.toml"
        return str(tomllib.loads(project.read_text("utf-8"))["project"]["version"]) if project.is_file() else "unknown"


def __getattr__(name: str) -> str:
    """`__version__`, read when it is asked for: that takes time which `--help` does not need."""
    if name == "__version__":
        return package_version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
