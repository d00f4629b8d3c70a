"""Public names load their module when they are first asked for."""

from __future__ import annotations

import sys

import pytest

import simclr_engine
from simclr_engine.lazy import lazy_names


def test_a_name_loads_its_module_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    load, names = lazy_names("simclr_engine", {"shown": ".errors", "AugmentSpec": "simclr_engine.kernels"})
    monkeypatch.delitem(sys.modules, "simclr_engine.errors")
    assert names() == ["AugmentSpec", "shown"]
    assert "simclr_engine.errors" not in sys.modules
    assert load("shown") is sys.modules["simclr_engine.errors"].shown
    assert load("AugmentSpec") is sys.modules["simclr_engine.kernels"].AugmentSpec


def test_an_unknown_name_is_an_attribute_error_of_its_package() -> None:
    with pytest.raises(AttributeError, match="module 'simclr_engine' has no attribute 'pretrian'"):
        simclr_engine.pretrian  # noqa: B018


def test_every_public_name_has_a_home_and_no_other() -> None:
    assert dir(simclr_engine) == sorted(simclr_engine.__all__)
