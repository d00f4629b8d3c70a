"""What is compared of several runs, and what is said not to compare."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from fixtures.saved_results import saved
from fixtures.synthetic_run import write_run
from simclr_engine.cli.compare import command
from simclr_engine.errors import DataError, UsageError
from simclr_engine.report.comparison import method_rows, notes, open_runs, shortest_names


def test_runs_of_one_name_are_told_apart_by_the_shortest_path_that_does() -> None:
    paths = [Path("/a/x/run"), Path("/b/x/run"), Path("/c/run"), Path("/c/other")]
    assert shortest_names(paths) == ["a/x/run", "b/x/run", "c/run", "other"]


def test_fewer_than_two_runs_and_directories_that_are_none_are_errors(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for named in ([run.directory], [run.directory, tmp_path / "." / "run"]):
        with pytest.raises(UsageError, match="at least two runs"):
            open_runs(named)
    (tmp_path / "no run").mkdir()
    with pytest.raises(DataError, match="no readable run here") as caught:
        open_runs([run.directory, tmp_path / "no run"])
    assert str(tmp_path / "no run") in str(caught.value.saw)


def test_differing_protocols_are_warned_of_but_not_another_c_of_a_probe(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    saved(a, 0.7, protocol="probe, C=0.01 chosen on 10 % of train; 32 px")
    saved(b, 0.7, protocol="probe, C=1e-3 chosen on 10 % of train; 32 px")
    assert notes(open_runs([a.directory, b.directory])) == []
    saved(b, 0.7, protocol="probe, C=0.01 chosen on 10 % of train; 16 px")
    (note,) = notes(open_runs([a.directory, b.directory]))
    assert "different protocols" in note


def test_other_images_of_one_name_are_warned_of(tmp_path: Path) -> None:
    a, b = (write_run(tmp_path / n, data=f"/{n}/photos", fingerprint=n * 64) for n in ("a", "b"))
    for run in (a, b):
        saved(run, 0.7)
    found = notes(open_runs([a.directory, b.directory]))
    assert found == [
        "The training images called photos are not the same in all runs "
        "(fingerprints: a: aaaaaaaaaaaa…; b: bbbbbbbbbbbb…)."
    ]


def test_results_of_an_older_encoder_are_warned_of(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    saved(a, 0.7, encoder="1" * 64)
    saved(b, 0.7, encoder="1" * 64)
    saved(b, 0.7, method="knn", encoder="2" * 64)
    found = notes(open_runs([a.directory, b.directory]))
    assert len(found) == 1 and found[0].startswith("b: Results of 2 different encoders")


def test_the_highest_is_marked_only_where_there_is_one(tmp_path: Path) -> None:
    a, b, c = (write_run(tmp_path / name) for name in "abc")
    for run, right in ((a, 0.7), (b, 0.9), (c, 0.3)):
        saved(run, right)
        saved(run, 0.5, method="knn")
    saved(a, 0.5, method="head")
    rows = method_rows(open_runs([a.directory, b.directory, c.directory]))
    assert [row.best for row in rows] == [1, None, None]


@pytest.mark.parametrize("again", ["link", "other/../run", "run/."])
def test_a_run_named_again_by_a_detour_or_by_a_link_is_the_same_run(tmp_path: Path, again: str) -> None:
    run = write_run(tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(run.directory)
    error = CliRunner().invoke(command, [str(run.directory), str(tmp_path / again)]).exception
    assert isinstance(error, UsageError) and "at least two runs" in error.cause
