"""A run that the tests of this folder compare with."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.disturbed_runs import train


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps to which nothing happened. Not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(out)
    return out
