"""The room that every file of ours passes: whole or not at all, and only inside the directory that was opened."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest

from simclr_engine import files
from simclr_engine.bounds import LARGEST_DOCUMENT
from simclr_engine.errors import DataError, PlatformError, UsageError
from simclr_engine.files import (
    Folder,
    is_plain_name,
    named_path,
    read_arrays,
    write_atomic,
    write_text_atomic,
)
from simclr_engine.inputs import read_bytes
from simclr_engine.run import public_name


@pytest.fixture(params=["in an open directory", "by joined paths"], autouse=True)
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test holds also where the system does not look names up in an open directory."""
    monkeypatch.setattr(files, "RELATIVE", files.RELATIVE and request.param == "in an open directory")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A file of the user's, to which somebody else's links lead."""
    path = tmp_path / "key"
    path.write_text("secret")
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


def test_a_link_in_place_of_a_file_is_replaced_and_its_target_kept(run: Path, key: Path) -> None:
    (run / "a").symlink_to(key)
    Folder.open(run).write("a", b"one", b" two")
    assert (run / "a").read_text() == "one two" and not (run / "a").is_symlink()
    assert key.read_text() == "secret"


def test_nothing_is_appended_through_a_link_or_to_a_pipe(run: Path, key: Path) -> None:
    (run / "a").symlink_to(key)
    os.mkfifo(run / "b")
    for name in ("a", "b"):
        for mode in ("ab", "a", "a+"):
            with pytest.raises(DataError, match="not written through"):
                Folder.open(run).append(name, mode)
    assert key.read_text() == "secret"


def test_a_hard_link_in_place_of_a_file_is_replaced(run: Path, key: Path) -> None:
    (run / "a").hardlink_to(key)
    Folder.open(run).write("a", b"new")
    assert key.read_text() == "secret" and (run / "a").read_text() == "new"


def test_a_link_in_place_of_a_folder_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (run / "figures").symlink_to(tmp_path / "photos")
    with pytest.raises(DataError, match="a link in place of a folder of the run") as caught:
        Folder.open(run).folder("figures")
    assert caught.value.saw == run / "figures" and caught.value.exit_code == 4
    assert list((tmp_path / "photos").iterdir()) == []


def test_a_link_at_a_temporary_name_is_neither_written_through_nor_removed(
    run: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "urandom", bytes)
    link = run / f".a.{0:020}.tmp"
    link.symlink_to(key)
    with pytest.raises(PlatformError, match="cannot write"):
        Folder.open(run).write("a", b"new")
    Folder.open(run).sweep()
    assert key.read_text() == "secret" and [path.name for path in run.iterdir()] == [link.name]


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_two_that_write_one_name_at_once_both_write_it_whole(run: Path) -> None:
    first, second = Folder.open(run), Folder.open(run)  # as in two containers whose processes have one number
    with first.writing("a") as one:
        one.write(b"first")
        with second.writing("a") as other:
            other.write(b"se")
            second.sweep()  # takes neither for a killed one's
            other.write(b"cond")
        assert (run / "a").read_bytes() == b"second"
    assert (run / "a").read_bytes() == b"first" and names(run) == ["a"]


def test_what_a_killed_process_wrote_is_swept_and_a_failed_one_leaves_nothing(run: Path) -> None:
    child = os.fork()
    if child == 0:
        with Folder.open(run).writing("a") as file:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (left,) = names(run)
    (run / ".a.7.tmp").touch()  # of an older version, which may still be writing
    with pytest.raises(KeyboardInterrupt), Folder.open(run).writing("a"):
        raise KeyboardInterrupt
    assert sorted(names(run)) == sorted([left, ".a.7.tmp"])
    Folder.open(run).sweep()
    assert names(run) == [".a.7.tmp"]


def test_who_writes_files_that_belong_together_waits_for_the_other(run: Path) -> None:
    order = []

    def second() -> None:
        with Folder.open(run).alone():
            order.append("second")

    with Folder.open(run).alone():
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


@pytest.mark.parametrize("what", ["pipe", "device", "folder", "large", "link to a pipe"])
def test_what_is_no_small_regular_file_is_not_read(what: str, run: Path) -> None:
    path = run / "a"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "folder":
        path.mkdir()
    elif what == "large":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    else:
        os.mkfifo(run / "pipe")
        path.symlink_to(run / "pipe")
    said = {"large": "at most", "folder": "directory"}.get(what, "not a regular file")
    with pytest.raises(OSError, match=said) as caught:
        read_bytes(path, LARGEST_DOCUMENT)
    assert caught.value.filename == str(path)
    assert read_arrays(path, "x") is None


def test_a_name_of_the_greatest_length_is_written(run: Path) -> None:
    for name in ("x" * 255, "ä" * 127):
        Folder.open(run).write(name, b"1")
        assert (run / name).read_bytes() == b"1"


def test_links_on_the_way_to_the_directory_are_followed(run: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").symlink_to(tmp_path)
    (tmp_path / "named").symlink_to(run)
    Folder.open(tmp_path / "disk" / "run").folder("a").write("x", b"1")
    Folder.open(tmp_path / "named").write("y", b"2")
    assert (run / "a" / "x").read_bytes() == b"1" and (run / "y").read_bytes() == b"2"


@pytest.mark.parametrize("name", ["", ".", "..", "../key", "a/b", "/key", "a\0"])
def test_a_name_that_is_more_than_a_name_is_refused(name: str, run: Path) -> None:
    at = Folder.open(run)
    (run / "x").write_text("mine")
    calls = [at.remove, at.remove_folder, at.folder, at.append, lambda n: at.rename("x", n), lambda n: at.copy("x", n)]
    for call in (*calls, lambda n: at.write(n, b"")):
        with pytest.raises(DataError, match="name of a file"):
            call(name)
    assert not is_plain_name(name)
    assert [path.name for path in run.iterdir()] == ["x"]


@pytest.mark.parametrize("name", ["a\\b", "a\nb", "\x1b[31m"])
def test_a_name_from_elsewhere_is_plain_or_refused(name: str) -> None:
    assert not is_plain_name(name)
    assert is_plain_name("résumé 2.png") and is_plain_name(".lock")


@pytest.mark.parametrize("how", ["removed", "moved", "replaced", "replaced by a file", "replaced by a link"])
def test_a_directory_that_is_another_now_is_never_written(how: str, run: Path, tmp_path: Path) -> None:
    at = Folder.open(run)
    within = at.folder("checkpoints")
    at.write("a", b"1")
    if how == "removed":
        shutil.rmtree(run)
    else:
        run.rename(tmp_path / "old")
        if how == "replaced":
            (run / "checkpoints").mkdir(parents=True)
        elif how == "replaced by a file":
            run.write_text("")
        elif how == "replaced by a link":
            (tmp_path / "other").mkdir()
            run.symlink_to(tmp_path / "other")
    before = sorted(path for path in tmp_path.rglob("*"))
    for write in (at.append, at.remove, at.folder, lambda n: at.write(n, b""), lambda n: within.write(n, b"")):
        with pytest.raises(PlatformError, match="removed or replaced") as caught:
            write("b")
        assert caught.value.exit_code == 3 and caught.value.saw == run
        known = how != "removed" and files.RELATIVE and Path("/proc/self/fd").exists()
        assert (f"are in {tmp_path / 'old'}:" in str(caught.value.fix)) == known
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_a_directory_that_takes_the_place_while_writing_stays_as_it_is(run: Path, tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match="removed or replaced"), Folder.open(run).writing("a") as file:
        file.write(b"1")
        run.rename(tmp_path / "old")
        run.mkdir()
    assert list(run.iterdir()) == []


def test_a_folder_inside_that_is_another_now_is_never_written(run: Path) -> None:
    within = Folder.open(run).folder("checkpoints")
    (run / "checkpoints").rename(run / "old")
    (run / "checkpoints").mkdir()
    with pytest.raises(PlatformError, match="removed or replaced"):
        within.write("last.pt", b"")
    assert list((run / "checkpoints").iterdir()) == []


def test_another_working_directory_changes_nothing(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    at = Folder.open("run")
    (run / "run").mkdir()
    monkeypatch.chdir(run)
    at.folder("figures").write("a", b"1")
    assert (run / "figures" / "a").read_bytes() == b"1" and list((run / "run").iterdir()) == []


def test_a_write_that_fails_leaves_what_stood_there(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (run / "a").write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PlatformError, match="cannot write the pictures") as caught:
        Folder.open(run, "the pictures").write("a", b"new")
    assert caught.value.saw == f"{run / 'a'}: No space left on device"
    assert (run / "a").read_text() == "old" and [path.name for path in run.iterdir()] == ["a"]


def test_a_second_name_is_a_copy_where_there_are_no_hard_links(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    at = Folder.open(run)
    at.write("last.pt", b"1")
    at.copy("last.pt", "epoch_0001.pt")
    assert (run / "epoch_0001.pt").samefile(run / "last.pt")
    monkeypatch.setattr(os, "link", unknown)
    at.copy("last.pt", "epoch_0001.pt")
    assert (run / "epoch_0001.pt").read_bytes() == b"1" and not (run / "epoch_0001.pt").samefile(run / "last.pt")


def test_a_directory_is_held_open_no_longer_than_it_is_used(run: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("no list of open files here")
    gc.collect()  # files of earlier tests
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        Folder.open(run).folder("a").names()
        write_atomic(run / "b", b"1")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_name_that_vanishes_while_it_is_listed_is_left_out(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "a").touch()
    monkeypatch.setattr(Folder, "names", lambda self: ["a", ".next.pt.7.tmp"])
    assert list(Folder.open(run).kinds()) == ["a"]


def test_an_empty_path_is_refused_and_not_taken_for_the_working_directory() -> None:
    with pytest.raises(UsageError, match="--out is empty"):
        named_path("")
    assert named_path("a") == Path("a")


NOT_UTF8 = os.fsdecode(b"caf\xe9")


def test_a_document_with_a_name_that_is_not_utf8_reads_back_equal(tmp_path: Path) -> None:
    document = {"class": NOT_UTF8, "é": "中"}
    Folder.open(tmp_path).write_text("a.json", json.dumps(document, ensure_ascii=False))
    write_text_atomic(tmp_path / "b.json", json.dumps(document, ensure_ascii=False))
    for name in ("a.json", "b.json"):
        assert json.loads((tmp_path / name).read_text("utf-8")) == document


def test_an_output_whose_name_is_not_utf8_is_refused_at_the_door() -> None:
    with pytest.raises(UsageError, match="not UTF-8"):
        named_path(NOT_UTF8)


@pytest.mark.parametrize(
    ("given", "shown"), [(f"/somewhere/{NOT_UTF8}", r"caf\udce9"), (f"{NOT_UTF8}/é", r"caf\udce9/é"), ("a/é", "a/é")]
)
def test_the_name_of_images_can_stand_in_a_recipe(given: str, shown: str) -> None:
    assert public_name(given) == shown


def test_a_name_as_long_as_the_file_system_allows_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 127)
    write_atomic(path, b"x")
    assert path.read_bytes() == b"x" and list(tmp_path.iterdir()) == [path]
