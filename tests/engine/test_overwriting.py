"""What `--overwrite` may remove, what a new run may take, and links and names that lead out of a run."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure

from chaos.training import compare
from fixtures.disturbed_runs import TRAINING, at_step, interrupted, newest_step, store, train
from fixtures.synthetic_run import (
    random_confusion,
    result,
    write_evaluation,
    write_metrics,
    write_neighbours,
    write_predictions,
    write_run,
    write_training,
)
from simclr_engine import layout, pretraining
from simclr_engine.cli import demo
from simclr_engine.errors import DataError, PlatformError, UsageError
from simclr_engine.evaluation.records import save_embeddings, save_result
from simclr_engine.event_log import RunLog, write_scalars
from simclr_engine.files import Folder, write_text_atomic
from simclr_engine.pretraining import pretrain
from simclr_engine.recipe import Recipe
from simclr_engine.report import page, write_report
from simclr_engine.report.feature_figures import cached_tsne
from simclr_engine.report.style import PRETRAINING, Picture, new_figure
from simclr_engine.run import Run


def contents(folder: Path) -> dict[str, bytes | str | None]:
    """Every name below a folder with its bytes, or with where a link leads; a run's lock aside."""
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in folder.rglob("*")
        if path.name != ".lock"
    }


def of_the_user(folder: Path, *extra: str) -> Path:
    """Pictures and documents under version control, with names among them that a run has too."""
    for name in ("thesis.txt", "photos/cat.jpg", ".git/HEAD", *extra):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("years of work")
    return folder


@pytest.fixture
def run(undisturbed: Path, tmp_path: Path) -> Path:
    """A finished run that may be changed."""
    return Path(shutil.copytree(undisturbed, tmp_path / "runs" / "run"))


def older(run: Path) -> Path:
    """As a run was before there was a marker."""
    (run / layout.MARKER).unlink()
    return run


# What is the user's


@pytest.mark.parametrize("known_by", ["recipe.toml", ".lock", "both"])
@pytest.mark.parametrize("out", ["", ".", "here"])
def test_a_folder_with_a_file_of_a_runs_name_is_never_emptied(
    out: str, known_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = of_the_user(tmp_path / "here", *(("recipe.toml", ".lock") if known_by == "both" else (known_by,)))
    before = {path: path.read_text() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.chdir(folder if out != "here" else tmp_path)
    for options in ({"overwrite": True}, {}):
        with pytest.raises(UsageError) as caught:
            train(out, **options)  # type: ignore[arg-type]  # as `--out` gives it
        assert caught.value.exit_code == 2
    assert {path: path.read_text() for path in folder.rglob("*") if path.is_file()} == before


def test_an_empty_out_is_refused_whatever_else_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(UsageError, match="--out is empty"):
            train("", **options)  # type: ignore[arg-type]  # as `--out` gives it
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_no_run_wrote_is_neither_emptied_nor_taken(tmp_path: Path, run: Path) -> None:
    (tmp_path / "theirs").mkdir()
    for folder, options in ((tmp_path / "theirs", {}), (run, {"resume": True}), (run, {"overwrite": True})):
        (folder / ".lock").write_text("deps = 3\n")
        before = contents(folder)
        with pytest.raises(UsageError, match="lock file was not written by a run"):
            train(folder, **options)
        assert (folder / ".lock").read_text() == "deps = 3\n" and contents(folder) == before


PLACES = {
    "the working directory": "the working directory, or one above it",
    "one above it": "the working directory, or one above it",
    "the home folder": "the home folder, or one above it",
    "a mount point": "a mount point",
    "a repository": "the root of a repository",
    "a worktree": "the root of a repository",
}


@pytest.mark.parametrize("linked", [False, True], ids=["named", "through a link"])
@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_is_more_than_a_runs_is_never_emptied(
    place: str, linked: bool, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == "the working directory":
        monkeypatch.chdir(run)
    elif place == "one above it":
        monkeypatch.chdir(run / "checkpoints")
    elif place == "the home folder":
        monkeypatch.setenv("HOME", str(run))
    elif place == "a mount point":
        monkeypatch.setattr(layout, "_mounts", lambda: {str(run)})
    elif place == "a repository":
        (run / ".git").mkdir()
    else:
        (run / ".git").write_text("gitdir: elsewhere")
    (tmp_path / "link").symlink_to(run)
    out, before = tmp_path / "link" if linked else run, contents(run)
    with pytest.raises(UsageError, match=f"never empties {PLACES[place]}") as caught:
        train(out, overwrite=True)
    assert str(run) in str(caught.value.saw)
    with pytest.raises(UsageError, match="not empty"):
        train(out)
    assert contents(run) == before
    train(out, resume=True)


def test_the_working_directory_is_taken_for_a_run_when_it_is_empty(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train(Path(), overwrite=True)
    assert compare(tmp_path, undisturbed) == []


def test_mount_points_of_the_same_file_system_are_known() -> None:
    if not Path("/proc/self/mountinfo").exists():
        pytest.skip("no list of mounts here")
    assert "/" in layout._mounts() and "/proc" in layout._mounts()


FOREIGN = [
    "notes.txt",
    "encoder.onnx",
    ".hidden",
    "figures/mine.png",
    "figures/loss.svg",
    "evaluation/paper.json",
    "embeddings/train.csv",
    "checkpoints/best.pt",
    "checkpoints/deep/last.pt",
    "tensorboard/notes/events.out.tfevents.1.host.2",
    "tensorboard/head-scratch/fold-2/me.txt",
    "report/report.html",
    "metrics.jsonl.bak",
]


@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("marked", [True, False], ids=["marked", "before the marker"])
def test_anything_else_among_a_runs_files_is_named_and_nothing_removed(foreign: str, marked: bool, run: Path) -> None:
    if not marked:
        older(run)
    (run / foreign).parent.mkdir(parents=True, exist_ok=True)
    (run / foreign).write_text("mine")
    before = contents(run)
    with pytest.raises(UsageError, match="something else") as caught:
        train(run, overwrite=True)
    named = str(caught.value.saw).removeprefix(f"{run}: ").rstrip("/")
    assert foreign == named or foreign.startswith(f"{named}/"), named
    assert contents(run) == before


@pytest.mark.parametrize("name", ["report.html", "figures", "checkpoints/last.pt", "model.safetensors"])
def test_a_link_or_a_folder_in_place_of_a_file_is_something_else(name: str, run: Path, tmp_path: Path) -> None:
    of_the_user(tmp_path / "mine")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / "mine")
    with pytest.raises(UsageError, match=rf"(?s)something else.*: {name}"):
        train(run, overwrite=True)
    if name != "figures":
        (run / name).unlink()
        (run / name).mkdir()
        with pytest.raises(UsageError, match=rf"(?s)something else.*: {name}/"):
            train(run, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


# A run


def test_a_run_is_marked_before_anything_else_of_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[set[str]] = []
    real = Folder.writing

    def writing(self: Folder, name: str) -> object:
        found.append({path.name for path in (tmp_path / "run").iterdir()} | {name})
        return real(self, name)

    monkeypatch.setattr(Folder, "writing", writing)
    train(tmp_path / "run")
    assert found[0] == {".lock", layout.MARKER}
    marker = json.loads((tmp_path / "run" / layout.MARKER).read_text())
    assert marker["format"] == "simclr-engine run 1" and len(marker["id"]) == 32


def test_a_run_that_takes_the_place_of_another_has_its_own_mark(run: Path) -> None:
    before = (run / layout.MARKER).read_text()
    train(run, resume=True)
    assert (run / layout.MARKER).read_text() == before
    train(run, overwrite=True)
    assert (run / layout.MARKER).read_text() != before


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"format": 3, "id": "a"}', '{"format": "simclr-engine run 1"}', "[" * 100_000]
)
def test_a_marker_that_we_did_not_write_makes_no_run(text: str, tmp_path: Path) -> None:
    (tmp_path / layout.MARKER).write_text(text)
    with pytest.raises(UsageError, match="removes runs only"):
        train(tmp_path, overwrite=True)
    assert (tmp_path / layout.MARKER).read_text() == text


def test_a_recipe_that_is_none_makes_no_run(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('name = "pancakes"\n')
    with pytest.raises(UsageError, match="removes runs only"):
        train(tmp_path, overwrite=True)
    assert (tmp_path / "recipe.toml").exists()


@pytest.mark.usefixtures("two_pictures")
def test_a_run_from_before_the_marker_is_opened_resumed_and_reported(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    interrupted(out, monkeypatch)
    older(out)
    assert Run.open(out).directory == out
    train(out, resume=True)
    assert compare(out, undisturbed) == [f"differs: files {layout.MARKER}"]
    assert write_report(Run.open(out)).is_file()


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from before the marker, with all that an evaluation and a report leave in it. Not to be changed."""
    directory = tmp_path_factory.mktemp("runs") / "reported"
    run = write_run(directory, data="photos-2/cats.tar.gz")
    write_metrics(run)
    write_evaluation(run)
    write_training(run)
    write_predictions(run)
    write_neighbours(run)
    for share in (0.001, 1e-6):
        one = result(random_confusion(3, 90, 0.5), method="finetune", label_fraction=share, limit=500)
        save_result(directory / "evaluation", one)
    rows = [{"fold": fold, "step": 1, "lr": 0.1} for fold in (1, 2)]
    write_scalars(directory / "tensorboard", rows, [], "finetune-pretrained-0.1pct-5folds")
    views = np.zeros((4, 16, 8, 8, 3), np.uint8)
    np.savez(directory / "views.npz", originals=views[:, 0], views=views)
    RunLog(run.directory).close()
    real = page.run_pictures
    with pytest.MonkeyPatch.context() as patch:  # all of them, each drawn in a moment
        patch.setattr(page, "run_pictures", lambda *a, **k: [replace(one, draw=blank) for one in real(*a, **k)])
        write_report(run)
    return directory


def blank(theme: object) -> Figure:
    """For drawing takes its time."""
    return new_figure(height=1)[0]


@pytest.fixture
def evaluated(reported: Path, tmp_path: Path) -> Run:
    """The same, to be changed."""
    return Run.open(shutil.copytree(reported, tmp_path / "evaluated"))


@pytest.fixture
def two_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report of no more."""
    pictures = [Picture(name, PRETRAINING, name, blank) for name in ("loss", "methods")]
    monkeypatch.setattr(page, "run_pictures", lambda *_, **__: pictures)


def test_all_that_a_run_an_evaluation_and_a_report_write_is_removed(
    undisturbed: Path, evaluated: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    out = evaluated.directory
    torn = [".encoder.safetensors.9.tmp", "checkpoints/.next.pt.8.tmp", "embeddings/.tsne-0123456789abcdef.npz.tmp.npz"]
    (out / "checkpoints").mkdir()
    for name in torn:
        (out / name).write_text("half")
    files = len([path for path in out.rglob("*") if path.is_file()])
    assert files > 60
    train(out, overwrite=True)
    assert compare(out, undisturbed) == []
    assert len(list((out / "tensorboard").iterdir())) == 1
    said = capsys.readouterr().err
    assert f"removing the run in {out}: " in said
    for part in ("recipe.toml", "evaluation/ (", "figures/ (", "embeddings/ (", "tensorboard/ (3 files)"):
        assert part in said, part


def test_what_goes_is_said_before_it_goes(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    real = Folder.remove
    monkeypatch.setattr(Folder, "remove", lambda self, name: (said.append(capsys.readouterr().err), real(self, name)))
    train(run, overwrite=True)
    assert "removing the run in" in said[0] and "checkpoints/ (" in said[0]


def test_an_overwriting_that_was_cut_short_can_be_done_again(
    undisturbed: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, removed = Folder.remove, []

    def cut(self: Folder, name: str) -> None:
        if len(removed) == 6:  # all checkpoints, and one file
            raise KeyboardInterrupt
        removed.append(name)
        real(self, name)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Folder, "remove", cut)
        train(older(run), overwrite=True)
    assert not list((run / "checkpoints").glob("*.pt"))  # nothing that could be resumed is left
    train(run, overwrite=True)
    assert compare(run, undisturbed) == []


def test_the_launchers_restart_removes_no_more_than_the_user_may(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps(environment | {"launch": "abc"}))
    for checkpoint in (run / "checkpoints").glob("*.pt"):
        checkpoint.unlink()  # so that the restart starts anew
    (run / "notes.txt").write_text("mine")
    before = contents(run)
    monkeypatch.setattr("simclr_engine.pretraining.restarts", lambda: 1)
    monkeypatch.setattr("simclr_engine.pretraining.run_id", lambda: "abc")
    with pytest.raises(UsageError, match=r"(?s)something else.*notes\.txt"):
        train(run)
    assert contents(run) == before
    (run / "notes.txt").unlink()
    train(run)
    assert newest_step(run) == 12


# Links inside a run


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A file of the user's, to which the links of somebody else's run lead."""
    path = tmp_path / "home" / "key"
    path.parent.mkdir()
    path.write_text("secret")
    return path


@pytest.mark.parametrize("option", ["resume", "overwrite"])
def test_a_lock_that_is_a_link_truncates_nothing(option: str, run: Path, key: Path) -> None:
    (run / ".lock").unlink()
    (run / ".lock").symlink_to(key)
    with pytest.raises((DataError, UsageError), match=r"a link in place of a file of the run|something else"):
        train(run, **{option: True})
    assert key.read_text() == "secret"


def test_a_resumed_run_writes_through_no_link(
    undisturbed: Path, tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    interrupted(out, monkeypatch)
    names = ["recipe.toml", "environment.json", "metrics.jsonl", "views.npz", "checkpoints/last.pt"]
    for i, name in enumerate(names):
        shutil.move(out / name, key.with_name(f"{i}"))
        (out / name).symlink_to(key.with_name(f"{i}"))
    for name in ("model.safetensors", "encoder.safetensors", "checkpoints/next.pt", "checkpoints/epoch_0002.pt"):
        (out / name).symlink_to(key)
    before = contents(key.parent)
    train(out, resume=True)
    assert contents(key.parent) == before
    assert compare(out, undisturbed) == []
    assert not [path for path in out.rglob("*") if path.is_symlink() and path.name != "previous.pt"]


@pytest.mark.parametrize("folder", ["checkpoints", "tensorboard"])
def test_a_linked_folder_of_a_resumed_run_is_refused(
    folder: str, tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    interrupted(out, monkeypatch)
    shutil.move(out / folder, key.parent / folder)
    (out / folder).symlink_to(key.parent / folder)
    before = contents(key.parent)
    with pytest.raises(DataError, match="a link in place of a folder of the run") as caught:
        train(out, resume=True)
    assert caught.value.saw == out / folder
    assert contents(key.parent) == before


@pytest.mark.usefixtures("two_pictures")
def test_a_report_writes_through_no_link(evaluated: Run, key: Path) -> None:
    run, written = evaluated, ["report.html", "figures/loss.png", "figures/methods.png"]
    for name in written:
        (run.directory / name).unlink()
        (run.directory / name).symlink_to(key)
    write_report(run)
    assert contents(key.parent) == {"key": b"secret"}
    assert not [name for name in written if (run.directory / name).is_symlink()]


@pytest.mark.usefixtures("two_pictures")
def test_a_linked_folder_is_not_filled_by_a_report(evaluated: Run, key: Path) -> None:
    figures = evaluated.directory / "figures"
    shutil.rmtree(figures)
    figures.symlink_to(key.parent)
    with pytest.raises(DataError, match="a link in place of a folder of the run") as caught:
        write_report(evaluated)
    assert caught.value.saw == figures
    with pytest.raises(DataError, match="a link in place of a folder of the run"):
        cached_tsne(np.eye(5, dtype=np.float32), figures)
    assert contents(key.parent) == {"key": b"secret"}


def test_the_map_of_features_is_written_through_no_link(tmp_path: Path, key: Path) -> None:
    features = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    expected = cached_tsne(features, tmp_path)
    kept = next(tmp_path.glob("tsne-*.npz"))
    kept.unlink()
    kept.symlink_to(key)
    kept.with_name(f".{kept.name}.tmp.npz").symlink_to(key)
    np.testing.assert_array_equal(cached_tsne(features, tmp_path)[0], expected[0])
    assert key.read_text() == "secret" and not kept.is_symlink()


def test_curves_of_an_evaluation_touch_nothing_behind_a_link(tmp_path: Path, key: Path) -> None:
    rows = [{"fold": fold, "step": 1, "lr": 0.1} for fold in (1, 2)]
    (key.parent / "events.out.tfevents.1.host.2").write_text("mine")
    before = contents(key.parent)
    for link in (
        "tensorboard/head-scratch",
        "tensorboard/head-pretrained/fold-2",
        "tensorboard/head-pretrained/fold-7",
    ):
        (tmp_path / link).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / link).symlink_to(key.parent)
        with pytest.raises(DataError, match="a link in place of a folder of the run"):
            write_scalars(tmp_path / "tensorboard", rows, [], link.split("/")[1])
        (tmp_path / link).unlink()
    assert contents(key.parent) == before


# Names that are paths


@pytest.mark.parametrize("name", ["../../esc", "..", "/tmp/esc", "a/b", "a\\b", "", "\x1b[31m"])
def test_the_name_of_a_recipe_is_no_path(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    recipe = TRAINING.recipe().replace(name=name)
    with pytest.raises(UsageError, match="name of the recipe") as caught:
        train(None, recipe=recipe)  # type: ignore[arg-type]  # no --out
    assert repr(name) in str(caught.value.saw)
    assert contents(tmp_path) == {"deep": None, "deep/er": None}
    train(tmp_path / "named", recipe=recipe)


def test_the_method_of_a_result_is_no_path(evaluated: Run, tmp_path: Path) -> None:
    run = evaluated
    theirs = run.directory / "evaluation" / "theirs.json"
    one = json.loads(next((run.directory / "evaluation").glob("*-linear-pretrained.json")).read_text())
    del one["seal"]  # as an earlier version wrote it
    theirs.write_text(json.dumps(one | {"method": "../../../esc"}))
    with pytest.raises(DataError, match="method of a result"):
        write_report(run)
    assert {path.name for path in tmp_path.iterdir()} == {"evaluated"}
    with pytest.raises(DataError, match="method of a result"):
        save_result(tmp_path, result(random_confusion(3, 9, 0.5), method="../esc"))


# A run directory that is another now


@pytest.mark.parametrize("how", ["moved", "removed", "replaced"])
def test_a_run_whose_directory_is_another_stops_and_writes_no_more(
    how: str, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, moved = tmp_path / "run", tmp_path / "moved"

    def disturb(_: object) -> None:
        if how == "removed":
            shutil.rmtree(out)
        else:
            out.rename(moved)
        if how == "replaced":
            shutil.copytree(undisturbed, out)

    with monkeypatch.context() as patch, pytest.raises(PlatformError, match="removed or replaced") as caught:
        patch.setattr("simclr_engine.recording.SAVE_SECONDS", 0.0)
        at_step(patch, 6, disturb)
        train(out)
    assert caught.value.exit_code == 3 and caught.value.saw == out
    if how == "replaced":
        assert contents(out) == contents(undisturbed)
    else:
        assert not out.exists()
    if how != "removed":
        assert f"are in {moved}:" in str(caught.value.fix)
        assert newest_step(moved) == 6
        train(moved, resume=True)
        assert compare(moved, undisturbed) == []


def test_an_evaluation_writes_nothing_into_a_run_that_took_the_place(run: Path, tmp_path: Path) -> None:
    at = Folder.open(run)
    evaluation, embeddings = at.folder("evaluation"), at.folder("embeddings")
    run.rename(tmp_path / "moved")
    for folder in ("evaluation", "embeddings"):
        (run / folder).mkdir(parents=True)
    with pytest.raises(PlatformError, match="removed or replaced"):
        save_result(evaluation, result(random_confusion(3, 9, 0.5)))
    with pytest.raises(PlatformError, match="removed or replaced"):
        save_embeddings(embeddings, "train", store(), np.zeros((32, 4), np.float32))
    assert contents(run) == {"evaluation": None, "embeddings": None}


def test_a_run_on_another_disk_is_written_where_it_is(undisturbed: Path, tmp_path: Path) -> None:
    (tmp_path / "disk" / "runs").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "disk" / "runs")
    train(tmp_path / "runs" / "run")
    train(tmp_path / "runs" / "run", overwrite=True)
    assert compare(tmp_path / "disk" / "runs" / "run", undisturbed) == []
    assert (tmp_path / "runs").is_symlink()
    assert os.listdir(tmp_path / "disk" / "runs") == ["run"]  # noqa: PTH208


def test_python_refuses_an_empty_out_as_the_command_does() -> None:
    with pytest.raises(UsageError, match="--out is empty"):
        pretrain(TRAINING.recipe(), out="")


def test_the_demo_replaces_a_demo_alone(undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, asked = tmp_path / "run", []
    shutil.copytree(undisturbed, out)

    def ask(*_: Any, out: str, overwrite: bool, **__: Any) -> None:
        asked.append(overwrite)
        raise UsageError("no more than that is asked for", saw=out, fix="")

    monkeypatch.setattr(pretraining, "pretrain", ask)
    for options in ([], ["--overwrite"]):
        CliRunner().invoke(demo.command, ["--out", str(out), *options])
    write_text_atomic(out / "recipe.toml", Recipe.load("demo").to_toml())
    CliRunner().invoke(demo.command, ["--out", str(out)])
    assert asked == [False, True, True]
