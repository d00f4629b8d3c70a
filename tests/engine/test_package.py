"""Public names load their module when first asked for; the version is that of the installation, or of the checkout."""

from __future__ import annotations

import importlib.metadata
import sys
import tomllib
from pathlib import Path

import pytest

import simclr_engine
from fixtures import ROOT
from simclr_engine import package
from simclr_engine.boundary import broken_package
from simclr_engine.package import lazy_names


def test_a_name_loads_its_module_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    load, names = lazy_names("simclr_engine", {"shown": ".errors", "AugmentSpec": "simclr_engine.kernels"})
    monkeypatch.delitem(sys.modules, "simclr_engine.errors")
    assert names() == ["AugmentSpec", "shown"]
    assert "simclr_engine.errors" not in sys.modules
    assert load("shown") is sys.modules["simclr_engine.errors"].shown
    assert load("AugmentSpec") is sys.modules["simclr_engine.kernels"].AugmentSpec


def test_a_module_that_breaks_while_it_is_loaded_is_not_taken_for_a_missing_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "halfway").mkdir()
    (tmp_path / "halfway" / "__init__.py").write_text(
        "from simclr_engine.package import lazy_names\n__getattr__, __dir__ = lazy_names(__name__, {'one': '.part'})\n"
    )
    (tmp_path / "halfway" / "part.py").write_text("import math\nmath.no_such_part\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match="no attribute 'no_such_part'") as caught:
        exec("from halfway import one")
    assert broken_package(caught.value) == "halfway" == caught.value.name


def test_an_unknown_name_is_an_attribute_error_of_its_package() -> None:
    with pytest.raises(AttributeError, match="module 'simclr_engine' has no attribute 'pretrian'"):
        simclr_engine.pretrian  # noqa: B018  # the access is the test


def test_every_public_name_has_a_home_and_no_other() -> None:
    assert dir(simclr_engine) == sorted(simclr_engine.__all__)


def test_the_version_is_that_of_the_package_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    assert simclr_engine.__version__ == importlib.metadata.version("simclr-engine")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"9.9 of {name}")
    assert package.package_version() == "9.9 of simclr-engine"


def test_a_checkout_without_installation_has_its_project_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert package.package_version() == project["version"]
    monkeypatch.setattr(package, "__file__", "/nowhere/at/all.py")
    assert package.package_version() == "unknown"
