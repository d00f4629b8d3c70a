"""What every test shares: the place of the real images, and a cache that no test leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

try:  # tests/gpu needs nothing but pytest
    from hypothesis import settings
except ModuleNotFoundError:
    pass
else:
    # How long an example takes is the machine's affair; a busy one would fail a test that is right.
    settings.register_profile("simclr-engine", deadline=None)
    settings.load_profile("simclr-engine")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the CIFAR-10 JPEG archives; tests that need it are skipped where it is absent."""
    if not (SHARED_DATA / "cifar10-jpeg-mini.tar.xz").is_file():
        pytest.skip(f"the CIFAR-10 JPEG archives are not beside the checkout ({SHARED_DATA})")
    return SHARED_DATA


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cache for the whole test session, away from the user's own."""
    patch = pytest.MonkeyPatch()
    patch.setenv("SIMCLR_ENGINE_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()
