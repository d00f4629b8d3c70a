"""Runs that are stopped: a signal and its deadline, a corrupt last checkpoint, a clock that goes wrong."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from chaos.training import compare
from fixtures import TESTS
from fixtures.disturbed_runs import at_step, interrupted, newest_step, train
from fixtures.image_files import class_tree, tar_bytes
from simclr_engine import pretraining, recording, stopping
from simclr_engine.checkpoint import save_last
from simclr_engine.data import load_data
from simclr_engine.errors import PlatformError
from simclr_engine.event_log import RunLog
from simclr_engine.run import Run
from simclr_engine.training import Trainer

HANGS = """
import ctypes, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from chaos.training import Training
from simclr_engine import stopping
from simclr_engine.training import Trainer
stopping.STOP_SECONDS = 1.0
real = Trainer.gradients
def gradients(self, step, size=None):
    if step == 9:
        print("hangs", flush=True)
        mutex = ctypes.create_string_buffer(64)  # locked twice: no signal ends that, and no Python runs
        for _ in range(2):
            ctypes.CDLL(None).pthread_mutex_lock(mutex)
    return real(self, step, size)
Trainer.gradients = gradients
Training("narrow", often=False).work(Path(sys.argv[1]), lambda text: None, resume=False)
"""


def test_a_step_that_does_not_end_is_cut_at_the_deadline_and_the_run_goes_on_from_the_one_before(
    undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    script = HANGS.format(tests=str(TESTS))
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "hangs\n", process.communicate()[1]
        process.terminate()
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "error: stopped in the middle of a step" in said and f"out={str(out)!r}, resume=True" in said
    assert "Traceback" not in said and newest_step(out) == 8
    train(out, resume=True)
    assert compare(out, undisturbed) == []


COMMAND = """
import sys, time
from pathlib import Path
from simclr_engine.cli import main
from simclr_engine.locks import held_folder
def command(**options):
    with held_folder(Path(sys.argv[1]), "made-"):
        print("ready", flush=True)
        time.sleep(60)
main.cli.main = command
main.main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_that_removes_what_is_not_finished(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", COMMAND, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert (
            process.stdout is not None and process.stdout.readline() == "ready\n" and len(list(tmp_path.iterdir())) == 1
        )
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number and list(tmp_path.iterdir()) == [] and said == ""


def test_the_deadline_leaves_time_before_a_scheduler_kills() -> None:
    assert 20 <= stopping.STOP_SECONDS <= 27


def test_a_run_that_ends_in_time_is_not_cut_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_up: list[object] = []
    monkeypatch.setattr(pretraining, "give_up", lambda *_: given_up.append(1))
    monkeypatch.setattr(stopping, "STOP_SECONDS", 0.3)
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    interrupted(tmp_path / "run", monkeypatch)
    time.sleep(0.4)
    assert given_up == [] and signal.set_wakeup_fd(-1) == -1
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_steps_that_the_deadline_might_cut_are_each_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(
        recording, "save_last", lambda folder, state: (saved.append(state["step"]), save_last(folder, state))
    )
    train(tmp_path / "quick")
    assert saved == [4, 8, 12]
    saved.clear()
    monkeypatch.setattr(stopping, "STOP_SECONDS", 0.0)
    train(tmp_path / "slow")
    assert saved == list(range(1, 13))


def test_a_signal_before_the_monitor_saves_before_the_monitor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, seen = tmp_path / "run", []
    real = pretraining.OnlineMonitor.__call__

    def slow(self: Any, model: Any) -> Any:
        seen.append(newest_step(out) if (out / "checkpoints" / "last.pt").exists() else 0)
        return real(self, model)

    monkeypatch.setattr(pretraining.OnlineMonitor, "__call__", slow)
    interrupted(out, monkeypatch, step=8)
    assert seen == [0, 8]


@pytest.mark.parametrize("disk", ["free", "full"])
def test_a_run_cut_by_ctrl_c_closes_its_log_and_tells_its_time(
    disk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(trainer: Trainer) -> None:
        raise KeyboardInterrupt

    def close(log: RunLog) -> None:
        closed.append((tmp_path / "run" / "environment.json").read_bytes())
        real(log)
        if disk == "full":
            raise PlatformError("cannot write the log")

    closed, real = list[bytes](), RunLog.close
    monkeypatch.setattr(RunLog, "close", close)
    at_step(monkeypatch, 5, cut)
    with pytest.raises(KeyboardInterrupt):  # not what failed after it
        train(tmp_path / "run")
    environment = Run.open(tmp_path / "run").environment
    assert len(closed) == 1 and environment["finished"] is False
    assert environment["seconds"] > 0 and environment["peak_bytes"] > 0
    # Told at the end too, where the disk takes it.
    assert ((tmp_path / "run" / "environment.json").read_bytes() != closed[0]) is (disk == "free")


def test_a_run_that_is_killed_keeps_the_time_up_to_its_last_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, at_start = tmp_path / "run", list[float]()

    def seconds() -> float:
        return float(Run.open(out).environment["seconds"])

    with monkeypatch.context() as patch:
        patch.setattr(recording.Recording, "__exit__", lambda *_: None)  # nothing is written at the end
        at_step(patch, 0, lambda trainer: at_start.append(seconds()))
        interrupted(out, patch, step=10)
    spent = seconds()
    assert spent > at_start[0]
    assert train(out, resume=True).environment["seconds"] > spent


def test_a_run_at_its_last_step_is_finished_when_it_goes_on(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(recording.Recording, "finish", killed)
        train(out)
    (out / "checkpoints" / "epoch_0003.pt").unlink()  # as if it had been killed before it had that name
    spent = Run.open(out).environment["seconds"]
    run = train(out, resume=True)
    assert run.environment["finished"] and run.environment["seconds"] > spent
    assert compare(out, undisturbed) == []


# Damage, and a wrong clock


def test_a_run_whose_last_checkpoint_is_corrupt_goes_on_from_the_one_before_and_says_so(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    interrupted(out, monkeypatch, step=10)
    last = out / "checkpoints" / "last.pt"
    raw = bytearray(last.read_bytes())
    raw[len(raw) // 2] ^= 1
    last.write_bytes(raw)
    train(out, resume=True)
    assert "last.pt: the checkpoint is truncated or was altered; using previous.pt instead" in capsys.readouterr().err
    assert compare(out, undisturbed) == []


def test_nothing_depends_on_a_clock_that_goes_backwards_or_stands_still(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backwards = itertools.count(2e9, -3600.0)
    (tmp_path / "set.tar").write_bytes(tar_bytes(class_tree(each=4)))
    monkeypatch.setenv("SIMCLR_ENGINE_CACHE", str(tmp_path / "before"))
    packed = load_data(tmp_path / "set.tar")
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: next(backwards))
        for clock in ("monotonic", "perf_counter"):
            patch.setattr(time, clock, lambda: 5.0)
        interrupted(tmp_path / "run", patch)
        run = train(tmp_path / "run", resume=True)
        patch.setenv("SIMCLR_ENGINE_CACHE", str(tmp_path / "after"))
        assert load_data(tmp_path / "set.tar").fingerprint == packed.fingerprint
    assert compare(tmp_path / "run", undisturbed) == []
    assert run.environment["seconds"] == 0
