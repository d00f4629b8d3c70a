"""Every line of every benchmark runs, at tiny sizes, and leaves what it promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from simclr_engine.bench import augment, nt_xent
from simclr_engine.bench.rows import Floor, single_row
from simclr_engine.cli import bench
from simclr_engine.cli.bench import command
from simclr_engine.errors import CheckFailed, PlatformError, UsageError
from simclr_engine.sealing import read_json, sealed_json


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(command.commands.keys() - {"race", "clients"}))
def test_a_benchmark_runs_at_tiny_sizes(name: str, tmp_path: Path) -> None:
    out, plot = tmp_path / "rows.json", tmp_path / "rows.png"
    more = ["--sheet", str(tmp_path / "sheet.png")] if name == "augment" else []
    arguments = [name, "--small", "--repeats", "1", "--out", str(out), "--plot", str(plot), "--json", *more]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    document = json.loads(out.read_text())
    assert document.pop("seal") and json.loads(result.stdout) == document
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


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(command, ["nt-xent", "--small", "--repeats", "1", *arguments])


def test_a_benchmark_replaces_only_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words that a user may write too are no mark of ours."""
    out, plot = tmp_path / "rows.json", tmp_path / "rows.png"
    both = ["--out", str(out), "--plot", str(plot)]
    assert _run(*both).exit_code == 0
    earlier = {key: value for key, value in read_json(out, "", needed=True).items() if key != "commit"}
    for text in (sealed_json(earlier), out.read_bytes()):  # both are ours
        out.write_bytes(text)
        assert _run(*both).exit_code == 0
    monkeypatch.setattr(nt_xent, "rows", None)  # nothing is measured any more
    ours = out.read_text()
    for text in ('{"device": "cuda", "my": "config"}', ours.replace('"unit": "ms"', '"unit": "my"', 1), "[" * 9_999):
        out.write_text(text)
        assert isinstance(_run(*both).exception, UsageError) and out.read_text() == text
    out.write_text(ours)
    plot.write_text("notes on simclr-engine bench")
    assert isinstance(_run(*both).exception, UsageError)
    assert isinstance(_run("--plot", str(tmp_path / "x.svg")).exception, UsageError)
    assert isinstance(_run("--out", "/proc/x.json").exception, PlatformError)


def test_files_and_verdict_do_not_need_a_reader_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*shown: object, **more: object) -> None:
        raise SystemExit(0)

    monkeypatch.setattr(bench, "show", gone)
    paths = [tmp_path / name for name in ("rows.json", "rows.png", "sheet.png")]
    monkeypatch.setattr(augment, "rows", lambda **sizes: [single_row("a", "ours", 1, "ms")])
    monkeypatch.setattr(augment, "floors", lambda: (Floor("a", "ours", least=2),))
    files = [word for pair in zip(("--out", "--plot", "--sheet"), map(str, paths), strict=True) for word in pair]
    failed = CliRunner().invoke(command, ["augment", "--check", *files]).exception
    assert isinstance(failed, CheckFailed) and all(path.is_file() for path in paths)


def test_a_check_of_tiny_sizes_is_refused() -> None:
    assert isinstance(CliRunner().invoke(command, ["epoch", "--small", "--check"]).exception, UsageError)
