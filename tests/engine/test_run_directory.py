"""A run directory that two processes want, on a disk that is full, or where writing is not allowed."""

from __future__ import annotations

import builtins
import errno
import io
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chaos.training import compare
from fixtures.disturbed_runs import at_step, interrupted, newest_step, train
from simclr_engine import locks, pretraining, recording
from simclr_engine.checkpoint import load_checkpoint, save_last
from simclr_engine.errors import PlatformError, UsageError
from simclr_engine.run import RunLock, check_directory, make_directory

HOLDER = """
import sys, time
from pathlib import Path
from simclr_engine.run import RunLock
with RunLock(Path(sys.argv[1])) as lock:
    lock.take()
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_and_told_whose_the_run_is_until_the_first_is_dead(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    interrupted(out, monkeypatch)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        for option in ("resume", "overwrite"):
            with pytest.raises(UsageError, match="another process is training") as caught:
                train(out, **{option: True})
            assert f"process {holder.pid} on " in str(caught.value.saw) and caught.value.exit_code == 2
        assert before == {path: path.read_bytes() for path in out.rglob("*") if path in before}
    finally:
        holder.kill()  # without a chance to clean up: its lock must not outlive it
        holder.wait()
    train(out, resume=True)
    assert compare(out, undisturbed) == []
    assert (out / ".lock").read_text() == ""


def test_the_lock_is_held_from_before_the_checkpoint_is_read_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, refused = tmp_path / "run", []

    def second(*_: object) -> None:
        with RunLock(out) as lock, pytest.raises(UsageError, match=f"process {os.getpid()} on"):
            lock.take()
        refused.append(1)

    at_step(monkeypatch, 0, second)
    train(out)
    assert refused == [1]
    real = pretraining.read_stopped
    monkeypatch.setattr(pretraining, "read_stopped", lambda *args: (second(), real(*args))[1])
    train(out, resume=True)
    assert refused == [1, 1]
    with RunLock(out) as lock:
        lock.take()
        lock.take()


def test_who_comes_second_to_a_new_directory_finds_the_run_and_leaves_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    check_directory(out, resume=False, overwrite=False)  # nothing there yet, says one process; then another finishes
    train(out)
    with pytest.raises(UsageError, match="exists and is not empty"), RunLock(out) as lock:
        make_directory(out, resume=False, overwrite=False, lock=lock)
    assert newest_step(out) == 12


def test_without_locks_in_the_file_system_training_goes_on_and_this_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "flock", unknown)
    train(tmp_path / "run")
    said = f"note: there are no locks in {tmp_path / 'run'}: a second process here would not be noticed"
    assert capsys.readouterr().err.count(said) == 1
    monkeypatch.setattr(locks, "fcntl", None)
    train(tmp_path / "run", overwrite=True)
    assert capsys.readouterr().err.count(said) == 1


def test_a_run_killed_while_it_began_can_be_overwritten_and_nothing_else_can(tmp_path: Path) -> None:
    begun, foreign = tmp_path / "begun", tmp_path / "photos"
    (begun / "checkpoints").mkdir(parents=True)
    (begun / ".lock").touch()
    train(begun, overwrite=True)
    assert newest_step(begun) == 12
    (foreign / "checkpoints").mkdir(parents=True)
    with pytest.raises(UsageError, match="removes runs only"):
        train(foreign, overwrite=True)


def test_overwriting_leaves_nothing_of_the_old_run_and_resuming_removes_what_was_torn(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    interrupted(out, monkeypatch)
    (out / "figures").mkdir()
    for name in ("report.html", "figures/loss.png", ".report.html.7.tmp"):
        (out / name).write_text("old")
    train(out, overwrite=True)
    assert compare(out, undisturbed) == []
    interrupted(tmp_path / "other", monkeypatch)
    torn, theirs = ["checkpoints/.next.pt.7.tmp", ".metrics.jsonl.7.tmp"], ".report.html.7.tmp"
    for name in (*torn, theirs):
        (tmp_path / "other" / name).write_text("half")
    train(tmp_path / "other", resume=True)
    assert [name for name in (*torn, theirs) if (tmp_path / "other" / name).exists()] == [theirs]


# No space, no permission


class FullDisk:
    """Takes so many bytes below a folder and then none, as far as Python's files can tell."""

    def __init__(self, folder: Path, room: float) -> None:
        self.folder, self.room, self.written = str(folder), room, 0

    @contextmanager
    def planted(self) -> Iterator[FullDisk]:
        """In place of `open`."""
        opened = io.open

        def open_full(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            real = opened(file, mode, *args, **kwargs)
            ours = not isinstance(file, int) and str(os.fspath(file)).startswith(self.folder)
            return FullFile(real, self) if ours and set(mode) & set("wax+") else real

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(io, "open", open_full)
            patch.setattr(builtins, "open", open_full)
            yield self

    def take(self, nbytes: int) -> None:
        """Room for so many bytes, or ENOSPC."""
        self.written += nbytes
        if self.written > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullFile:
    """One of its files."""

    def __init__(self, file: Any, disk: FullDisk) -> None:
        self._file, self._disk = file, disk

    def write(self, data: Any) -> Any:
        """All or nothing: what is half written is the campaign's affair."""
        self._disk.take(len(data))
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> FullFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def test_a_disk_that_fills_up_anywhere_is_a_clear_error_and_costs_no_checkpoint(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    monkeypatch.setattr(
        recording, "save_last", lambda folder, state: (save_last(folder, state), saved.append(state["step"]))
    )
    with FullDisk(tmp_path, float("inf")).planted() as disk:
        train(tmp_path / "whole")
    whole, where = disk.written, set()
    for i, share in enumerate([0.002, *np.linspace(0.05, 0.99, 8)]):
        out = tmp_path / f"run{i}"
        saved.clear()
        with FullDisk(out, int(share * whole)).planted(), pytest.raises(PlatformError, match="No space left") as caught:
            train(out)
        assert caught.value.exit_code == 3
        where.add(str(caught.value.saw).split(":")[0].rpartition("/")[2])
        if saved:
            assert newest_step(out) == saved[-1]
        train(out, resume=bool(saved), overwrite=not saved)
        assert compare(out, undisturbed) == []
    assert {"next.pt", "views.npz"} < where and len(where) >= 4, where


def test_a_log_on_a_disk_without_space_is_named_once(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    opened = open

    def open_full(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if name in str(path) and mode.startswith("a"):  # to read it would never end
            return opened("/dev/full", mode, **kwargs | {"opener": None})
        return opened(path, mode, *args, **kwargs)

    for name in ("metrics.jsonl", "tfevents"):
        out = tmp_path / f"run-{len(name)}"
        interrupted(out, monkeypatch)
        with monkeypatch.context() as patch:
            patch.setattr(builtins, "open", open_full)
            with pytest.raises(PlatformError, match="cannot write the log") as caught:
                train(out, resume=True)
        assert "No space left" in str(caught.value.saw) and newest_step(out) == 6
        train(out, resume=True)
        assert compare(out, undisturbed) == []
    assert "Traceback" not in capfd.readouterr().err


def test_a_limit_of_the_system_on_the_size_of_files_is_one_too(tmp_path: Path) -> None:
    state = {"step": 1, "model": torch.zeros(10_000)}
    save_last(tmp_path, state)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(PlatformError, match="File too large"):
            save_last(tmp_path, state | {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 1


@contextmanager
def unprivileged() -> Iterator[Path]:
    """A folder, and no right to write anywhere else, nor perhaps to read: root, whom permissions do not bind, becomes
    nobody for a while."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    root = os.geteuid() == 0
    try:
        folder.chmod(0o777)
        if root:
            os.seteuid(65534)
        yield folder
    finally:
        if root:
            os.seteuid(0)
        for path in folder.rglob("*"):
            path.chmod(0o700)
        shutil.rmtree(folder)


def test_a_directory_that_may_not_be_written_or_entered_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Python and the checkout may lie below a home that only root enters: a rehearsal imports what the rest needs.
    interrupted(tmp_path / "rehearsal", monkeypatch)
    train(tmp_path / "rehearsal", resume=True)
    with unprivileged() as folder:
        out = folder / "kept" / "run"
        interrupted(out, monkeypatch)
        for path in (out, out / "checkpoints", out / "tensorboard"):
            path.chmod(0o500)
        (out / ".lock").chmod(0o400)
        for option in ("resume", "overwrite"):
            with pytest.raises(PlatformError, match="cannot write") as caught:
                train(out, **{option: True})
            assert str(out) in str(caught.value.saw) and "Permission denied" in str(caught.value.saw)
        (out / ".lock").chmod(0o600)  # the log cannot be replaced, then
        with pytest.raises(PlatformError, match="Permission denied"):
            train(out, resume=True)
        assert newest_step(out) == 6
        out.parent.chmod(0o500)
        with pytest.raises(PlatformError, match="cannot make the output directory"):
            train(out.parent / "new")
        out.parent.chmod(0o000)
        with pytest.raises(PlatformError, match="cannot be reached"):
            train(out, resume=True)
        out.parent.chmod(0o700)


def test_a_checkout_that_may_not_be_read_has_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    with unprivileged() as folder:
        (folder / "checkout" / "engine").mkdir(parents=True)
        monkeypatch.setattr(recording, "__file__", str(folder / "checkout" / "engine" / "recording.py"))
        (folder / "checkout").chmod(0o000)
        assert recording.commit_of_checkout() is None
