"""The version of the installed package."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def _version() -> str:
    try:
        return version("simclr-engine")
    except PackageNotFoundError:  # run from a checkout without installation, as `make gpu PYTHON=python3` may be
        project = Path(__file__).resolve().parents[1] / "pyproject.toml"
        return str(tomllib.loads(project.read_text("utf-8"))["project"]["version"]) if project.is_file() else "unknown"


__version__ = _version()
