"""The version is that of the installed package, or of the checkout that is run without one."""

from __future__ import annotations

import importlib.metadata
import tomllib

import pytest

import simclr_engine
from fixtures import ROOT
from simclr_engine import version


def test_the_version_is_that_of_the_package_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    assert simclr_engine.__version__ == importlib.metadata.version("simclr-engine")
    monkeypatch.setattr(version, "version", lambda package: f"9.9 of {package}")
    assert version._version() == "9.9 of simclr-engine"


def test_a_checkout_without_installation_has_its_project_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(version, "version", missing)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert version._version() == project["version"]
    monkeypatch.setattr(version, "__file__", "/nowhere/at/all.py")
    assert version._version() == "unknown"
