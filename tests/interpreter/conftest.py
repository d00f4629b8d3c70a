"""Tests that run Triton's kernels on the CPU, in Triton's interpreter, in a process of their own.

Triton chooses between compiler and interpreter when a kernel is decorated, once for the whole process.
"""

from __future__ import annotations

import os

import pytest


def pytest_collection(session: pytest.Session) -> None:
    """Called when this folder is asked for by name; the whole suite passes it by (pyproject.toml, norecursedirs)."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise pytest.UsageError(
            "tests/interpreter runs Triton's kernels on the CPU and needs a process of its own: "
            "TRITON_INTERPRET=1 pytest tests/interpreter"
        )
