"""Every line of every benchmark runs, at tiny sizes, and leaves what it promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from simclr_engine.cli.bench import command
from simclr_engine.errors import UsageError


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(command.commands.keys() - {"race", "clients"}))
def test_a_benchmark_runs_at_tiny_sizes(name: str, tmp_path: Path) -> None:
    out, plot = tmp_path / "rows.json", tmp_path / "rows.png"
    more = ["--sheet", str(tmp_path / "sheet.png")] if name == "augment" else []
    arguments = [name, "--small", "--repeats", "1", "--out", str(out), "--plot", str(plot), "--json", *more]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    document = json.loads(out.read_text())
    assert json.loads(result.stdout) == document
    measured = [row for row in document["rows"] if row["median"] is not None]
    assert any(row["contender"].startswith("ours") for row in measured)
    assert all(row["median"] > 0 and row["p20"] > 0 and row["p80"] > 0 and row["unit"] for row in measured)
    assert all(row["note"] for row in document["rows"] if row["median"] is None)
    assert {"device", "versions", "rows"} <= document.keys()
    for picture in (plot, *tmp_path.glob("sheet.png")):
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_errors_are_measured_beside_the_speed() -> None:
    result = CliRunner().invoke(command, ["nt-xent", "--small", "--repeats", "1", "--json"], catch_exceptions=False)
    rows = [row for row in json.loads(result.stdout)["rows"] if row["median"] is not None]
    assert all(0 <= row["gradient_error"] < 1e-5 and row["loss_error"] < 1e-5 for row in rows)
    ours = {(r["name"], r["contender"]): r["peak_bytes"] for r in rows}
    assert all(v > 0 for v in ours.values())


def test_one_name_for_rows_and_picture_is_refused_before_anything_runs(tmp_path: Path) -> None:
    arguments = ["epoch", "--small", "--out", str(tmp_path / "x.png"), "--plot", str(tmp_path / "x.png")]
    error = CliRunner().invoke(command, arguments).exception
    assert isinstance(error, UsageError) and "one name" in str(error)
    assert not (tmp_path / "x.png").exists()


def test_a_check_of_tiny_sizes_is_refused() -> None:
    assert isinstance(CliRunner().invoke(command, ["epoch", "--small", "--check"]).exception, UsageError)
