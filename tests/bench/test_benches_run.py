"""Every line of every benchmark runs, at tiny sizes, and leaves what it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fixtures import ROOT
from simclr_engine.bench.gpu import SECONDS, Part, run_part, table
from simclr_engine.cli.bench import command

ON_A_DEVICE = ("augment", "nt-xent", "optimizer", "epoch")  # what `make gpu` measures


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(command.commands.keys() - {"race"}))
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


def test_a_check_of_tiny_sizes_is_refused() -> None:
    from simclr_engine.errors import UsageError

    assert isinstance(CliRunner().invoke(command, ["epoch", "--small", "--check"]).exception, UsageError)


@pytest.mark.slow
def test_make_gpu_runs_every_line_without_a_device(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "simclr_engine.bench.gpu", "--dry", "--out", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    document = json.loads((tmp_path / "gpu.json").read_text())
    assert done.returncode == 0, done.stderr + (tmp_path / "gpu.md").read_text()
    assert {name: part["status"] for name, part in document["parts"].items()} == dict.fromkeys(
        ["tests", *(f"bench {b}" for b in ON_A_DEVICE), "pretrain", "evaluate"], "done"
    )
    assert document["dry"] and "no figure here means anything" in (tmp_path / "gpu.md").read_text()
    assert all(document["parts"][f"bench {b}"]["rows"] for b in ON_A_DEVICE)
    assert {r["init"] for r in document["parts"]["evaluate"]["result"]["results"]} == {"pretrained", "scratch"}


def test_without_a_device_it_says_how_to_see_it_run(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    done = subprocess.run(
        [sys.executable, "-m", "simclr_engine.bench.gpu", "--out", str(tmp_path / "x")], capture_output=True, text=True
    )
    assert done.returncode == 1 and "make gpu DRY=1" in done.stderr and not (tmp_path / "x").exists()


def test_a_part_that_fails_or_hangs_is_told_from_one_that_is_done(tmp_path: Path) -> None:
    def run(code: str, seconds: int = 30) -> dict[str, object]:
        return run_part(Part([sys.executable, "-c", code], seconds), tmp_path / "log", left=600)

    assert run("print(1)")["status"] == "done"
    assert run("raise SystemExit(3)")["status"] == "failed (exit 3)"
    assert run("import time; time.sleep(60)", seconds=1)["status"] == "stopped after 1 s"
    assert run_part(Part(["never started"], 60), tmp_path / "log", left=0.3)["status"].startswith("not run")
    log = run_part(
        Part([sys.executable, "-c", "import sys; print('a'); print('b', file=sys.stderr)"], 30), tmp_path / "l", left=9
    )
    assert log["summary"] == "a" and sorted((tmp_path / "l").read_text().split()) == ["a", "b"]


def test_a_part_gets_no_more_than_what_is_left_of_nine_minutes(tmp_path: Path) -> None:
    assert SECONDS <= 540
    sleeper = Part([sys.executable, "-c", "import time; time.sleep(60)"], 30)
    assert run_part(sleeper, tmp_path / "log", left=1.2)["status"] == "stopped after 1 s"


def test_a_row_that_was_not_measured_reads_so_in_the_table() -> None:
    rows = [
        {"name": "a", "contender": "ours", "median": 2.0, "p20": 1.0, "p80": 3.0, "unit": "ms", "max_error": 1e-6},
        {"name": "a", "contender": "DALI", "median": None, "p20": None, "p80": None, "unit": "ms", "note": "absent"},
    ]
    part = {"status": "done", "seconds": 1.0, "rows": rows}
    text = table({"device": "X", "versions": {}, "commit": None, "dry": False, "parts": {"bench a": part}})
    assert "| a | ours | 2 | 1 | 3 | ms | max_error 1e-06 |" in text
    assert "| a | DALI | not measured | | | | absent |" in text
