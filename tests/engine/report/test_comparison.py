"""compare: one directory is one run, however its path is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from fixtures.synthetic_run import write_run
from simclr_engine.cli.compare import command
from simclr_engine.errors import UsageError


@pytest.mark.parametrize("again", ["link", "other/../run", "run/."])
def test_a_run_named_again_by_a_detour_or_by_a_link_is_the_same_run(tmp_path: Path, again: str) -> None:
    run = write_run(tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(run.directory)
    error = CliRunner().invoke(command, [str(run.directory), str(tmp_path / again)]).exception
    assert isinstance(error, UsageError) and "at least two runs" in error.cause
