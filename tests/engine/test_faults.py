"""What happens when things break: two processes on one run, a full disk, no permission, no memory, a wrong clock."""

from __future__ import annotations

import builtins
import errno
import io
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from chaos.training import Training, compare, narrow_encoder
from reference.image_files import class_tree, tar_bytes
from simclr_engine import memory, pretraining
from simclr_engine import run as run_module
from simclr_engine.checkpoint import load_checkpoint, newest_checkpoint, save_last
from simclr_engine.data import load_data
from simclr_engine.data.store import ImageStore
from simclr_engine.device import Platform
from simclr_engine.errors import CheckFailed, PlatformError, UsageError
from simclr_engine.memory import images_that_fit, is_out_of_memory, largest_divisor
from simclr_engine.pretraining import Interrupted, pretrain
from simclr_engine.recipe import Recipe
from simclr_engine.run import RunLock, check_directory, make_directory
from simclr_engine.training import Backends, Plan, Trainer

TRAINING = Training("narrow", often=False)


def store() -> ImageStore:
    """What the campaign of kills trains on."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (32, 8, 8, 3), dtype=np.uint8)
    return ImageStore.from_arrays(images, np.arange(32) % 2, ("even", "odd"), name="noise", split="train")


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder of which nothing is asked here."""
    monkeypatch.setattr("simclr_engine.model.build_encoder", narrow_encoder)


def train(out: Path, **options: Any) -> Any:
    """The twelve steps of the campaign, or what is left of them."""
    recipe = options.pop("recipe", TRAINING.recipe())
    return pretrain(recipe, store(), out, device="cpu", fused=False, quiet=True, **options)


def newest_step(out: Path) -> int:
    """Where the newest good checkpoint stands."""
    return int(newest_checkpoint(out / "checkpoints")[0]["step"])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to which nothing happened."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simclr_engine.model.build_encoder", narrow_encoder)
        train(out)
    return out


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, what: Callable[[Trainer], None]) -> None:
    """Lets something happen between the gradients of `step` (counted from 0) and its update."""
    real = Trainer.gradients

    def gradients(self: Trainer, number: int, size: int | None = None) -> Any:
        result = real(self, number, size)
        if number == step:
            what(self)
        return result

    monkeypatch.setattr(Trainer, "gradients", gradients)


def interrupted(out: Path, monkeypatch: pytest.MonkeyPatch, step: int = 6) -> None:
    """Leaves a run that SIGTERM stopped after the step `step`."""
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        at_step(patch, step - 1, lambda trainer: os.kill(os.getpid(), signal.SIGTERM))
        train(out)
    assert newest_step(out) == step


# Two processes on one run directory

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
    real = pretraining._saved_state
    monkeypatch.setattr(pretraining, "_saved_state", lambda *args: (second(), real(*args))[1])
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


def test_without_locks_in_the_file_system_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(run_module.fcntl, "flock", unknown)
    train(tmp_path / "run")
    monkeypatch.setattr(run_module, "fcntl", None)
    train(tmp_path / "run", overwrite=True)


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
    for name in ("old.txt", "report/index.html"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("old")
    (out / "link").symlink_to(undisturbed)
    train(out, overwrite=True)
    assert compare(out, undisturbed) == []
    interrupted(tmp_path / "other", monkeypatch)
    torn, theirs = ["checkpoints/.next.pt.7.tmp", ".metrics.jsonl.7.tmp"], ".report.html.7.tmp"
    for name in (*torn, theirs):
        (tmp_path / "other" / name).write_text("half")
    train(tmp_path / "other", resume=True)
    assert [name for name in (*torn, theirs) if (tmp_path / "other" / name).exists()] == [theirs]


# SIGTERM

HANGS = """
import ctypes, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from chaos.training import Training
from simclr_engine import pretraining
from simclr_engine.training import Trainer
pretraining.STOP_SECONDS = 1.0
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
    script = HANGS.format(tests=str(Path(__file__).parents[1]))
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
    assert "error: stopped in the middle of a step" in said and f"--out {out} --resume" in said
    assert "Traceback" not in said and newest_step(out) == 8
    train(out, resume=True)
    assert compare(out, undisturbed) == []


def test_the_deadline_leaves_time_before_a_scheduler_kills() -> None:
    assert 20 <= pretraining.STOP_SECONDS <= 27


def test_a_run_that_ends_in_time_is_not_cut_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_up: list[object] = []
    monkeypatch.setattr(pretraining, "_give_up", lambda *_: given_up.append(1))
    monkeypatch.setattr(pretraining, "STOP_SECONDS", 0.3)
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    interrupted(tmp_path / "run", monkeypatch)
    time.sleep(0.4)
    assert given_up == [] and signal.set_wakeup_fd(-1) == -1
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_steps_that_the_deadline_might_cut_are_each_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(
        pretraining, "save_last", lambda folder, state: (saved.append(state["step"]), save_last(folder, state))
    )
    train(tmp_path / "quick")
    assert saved == [4, 8, 12]
    saved.clear()
    monkeypatch.setattr(pretraining, "STOP_SECONDS", 0.0)
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
        pretraining, "save_last", lambda folder, state: (save_last(folder, state), saved.append(state["step"]))
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
    opened = Path.open

    def open_full(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        full = name in str(self) and mode.startswith("a")  # to read it would never end
        return opened(Path("/dev/full") if full else self, mode, *args, **kwargs)

    for name in ("metrics.jsonl", "tfevents"):
        out = tmp_path / f"run-{len(name)}"
        interrupted(out, monkeypatch)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", open_full)
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
    """A folder, and no right to write anywhere else; root, whom permissions do not bind, becomes nobody for a while."""
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


def test_a_directory_that_may_not_be_written_or_entered_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert "last.pt: the checkpoint is truncated or was altered; previous.pt is taken" in capsys.readouterr().err
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


# Numbers that are not finite


def test_an_infinite_gradient_under_a_finite_loss_stops_the_run_before_it_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflow(trainer: Trainer) -> None:
        next(trainer.model.parameters()).grad[0, 0, 0, 0] = torch.inf  # type: ignore[union-attr]

    at_step(monkeypatch, 8, overflow)  # the ninth
    with pytest.raises(CheckFailed, match="a gradient is no longer finite") as caught:
        train(tmp_path / "run")
    assert "step 9" in str(caught.value.saw) and "lower optimizer.lr" in str(caught.value.fix)
    assert newest_step(tmp_path / "run") == 8
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(row)["step"] for row in rows) == 8


def trainer_of(recipe: Recipe, precision: str = "fp32") -> Trainer:
    """A trainer with nothing around it."""
    platform = Platform(torch.device("cpu"), precision, channels_last=True, compile=False)
    trainer = Trainer(recipe, Plan.of(recipe, store()), platform, store(), Backends("torch", "torch"))
    trainer.model.train()
    return trainer


@pytest.mark.parametrize("fault", ["gradient", "optimizer"])
def test_a_state_is_not_saved_after_a_gradient_or_with_an_optimizer_that_is_not_finite(fault: str) -> None:
    trainer = trainer_of(TRAINING.recipe())
    trainer.train_step(0)
    trainer.state_dict()
    if fault == "gradient":  # in the middle of a row, so that only the flag remembers
        parameter = next(trainer.model.parameters())
        parameter.grad = torch.full_like(parameter, torch.nan)
        trainer._note_gradients()
        parameter.grad = torch.zeros_like(parameter)
        trainer._note_gradients()
    else:
        next(iter(trainer.optimizer.state.values()))["momentum_buffer"][0, 0, 0, 0] = torch.inf
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    with pytest.raises(CheckFailed, match="no longer finite"):
        trainer.state_dict()


def test_under_fp16_the_scaler_leaves_the_step_out_and_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def overflow(trainer: Trainer) -> None:
        next(trainer.model.parameters()).grad[0, 0, 0, 0] = torch.inf  # type: ignore[union-attr]

    trainer = trainer_of(TRAINING.recipe(), "fp16")
    at_step(monkeypatch, 1, overflow)
    steps = trainer.steps(lambda step, row: None)
    next(steps)
    before, scale = [p.detach().clone() for p in trainer.model.parameters()], trainer.scaler.get_scale()
    next(steps)
    assert all(torch.equal(p, q) for p, q in zip(trainer.model.parameters(), before, strict=True))
    assert trainer.scaler.get_scale() == scale / 2
    next(steps)
    assert not any(torch.equal(p, q) for p, q in zip(trainer.model.parameters(), before, strict=True))
    trainer.state_dict()


# No memory

ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore of it"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
    "python": MemoryError(),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_running_out_of_memory_names_the_batch_and_a_micro_batch_that_divides_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(trainer: Trainer) -> None:
        raise ERRORS[kind]

    at_step(monkeypatch, 9, fails)
    with pytest.raises(PlatformError, match="not enough memory") as caught:
        train(tmp_path / "run")
    assert caught.value.exit_code == 3 and newest_step(tmp_path / "run") == 8
    assert "batch 8, 2 views of 8 px" in str(caught.value.saw)
    assert "--set train.micro_batch=4" in str(caught.value.fix) and "--batch-size 4" in str(caught.value.fix)
    assert "an estimate: half of what did not fit" in str(caught.value.fix)


def test_running_out_of_memory_while_the_time_is_measured_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(trainer: Trainer) -> None:
        raise ERRORS["cuda"]

    at_step(monkeypatch, 0, fails)
    with pytest.raises(PlatformError, match="not enough memory"):
        train(tmp_path / "run", max_minutes=1)
    assert not (tmp_path / "run").exists()


def test_other_errors_of_a_step_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(trainer: Trainer) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    at_step(monkeypatch, 1, fails)
    with pytest.raises(RuntimeError, match="mat1"):
        train(tmp_path / "run")
    assert not is_out_of_memory(ValueError("out of memory"))


def test_on_cuda_the_estimate_comes_from_two_smaller_steps_after_the_failed_one_is_freed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = TRAINING.recipe().replace(train__batch_size=32)
    trainer = trainer_of(recipe)
    trainer.platform = replace(trainer.platform, device=torch.device("cuda"))
    alive: list[Any] = []
    measured: list[int] = []

    def fails() -> None:
        activations = torch.zeros(1000)
        alive.append(weakref.ref(activations))
        raise ERRORS["cuda"]

    def peak(_: Trainer, images: int) -> int:
        assert alive[0]() is None, "the failed step still holds its memory"
        measured.append(images)
        return 1000 + 100 * images

    monkeypatch.setattr(memory, "_peak_bytes", peak)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2000, 9999))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 1000)
    with pytest.raises(PlatformError) as caught, memory.memory_errors(trainer):
        fails()
    assert measured == [2, 4]  # 90 % of 3000 bytes are 17 images
    assert "--set train.micro_batch=16" in str(caught.value.fix)
    assert "about 17 fit, from the peak memory of steps of 2 and 4" in str(caught.value.fix)

    def never(_: Trainer, images: int) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(memory, "_peak_bytes", never)
    with pytest.raises(PlatformError, match=r"micro_batch=1\b.*not even 4 images fit"), memory.memory_errors(trainer):
        fails()


def test_images_that_do_not_fit_beside_the_model_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise ERRORS["cuda"]

    monkeypatch.setattr("simclr_engine.training._resident_images", full)
    with pytest.raises(PlatformError, match="for the model and the images") as caught:
        train(tmp_path / "run")
    assert "32 images of 8 px" in str(caught.value.saw) and "--limit" in str(caught.value.fix)


def test_the_estimate_is_a_line_through_two_points() -> None:
    assert images_that_fit((8, 1_800), (16, 2_600), 10_000) == 90
    assert images_that_fit((8, 1_800), (16, 2_600), 999) == 0
    assert images_that_fit((8, 500), (16, 500), 10_000) == 16
    assert [largest_divisor(4096, limit) for limit in (300, 256, 4096, 1, 0)] == [256, 256, 4096, 1, 0]
    assert largest_divisor(30, 7) == 6


# Determinism


def test_deterministic_runs_are_bitwise_equal_and_torch_is_left_as_it_was(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    at_step(monkeypatch, 3, lambda trainer: seen.append(torch.are_deterministic_algorithms_enabled()))
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    runs = [train(tmp_path / name, deterministic=True) for name in ("first", "second")]
    assert seen == [True, True] and not torch.are_deterministic_algorithms_enabled()
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"
    assert compare(tmp_path / "first", tmp_path / "second") == []
    assert compare(tmp_path / "first", undisturbed) == []  # on the CPU the flag changes nothing
    assert [run.environment["deterministic"] for run in runs] == [True, True]
    with pytest.raises(RuntimeError, match="boom"):
        at_step(monkeypatch, 4, lambda trainer: (_ for _ in ()).throw(RuntimeError("boom")))
        train(tmp_path / "third", deterministic=True)
    assert not torch.are_deterministic_algorithms_enabled()


def test_runs_on_several_threads_are_bitwise_equal_too(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for name in ("first", "second"):
            train(tmp_path / name, deterministic=True, recipe=TRAINING.recipe().replace(train__epochs=1))
    finally:
        torch.set_num_threads(threads)
    assert compare(tmp_path / "first", tmp_path / "second") == []


def test_an_operation_without_a_deterministic_form_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pooled(trainer: Trainer) -> None:  # in the words of torch.use_deterministic_algorithms
        raise RuntimeError("max_pool2d_backward_cuda does not have a deterministic implementation, but you set ...")

    at_step(monkeypatch, 0, pooled)
    with pytest.raises(PlatformError, match="no deterministic form on this device") as caught:
        train(tmp_path / "run", deterministic=True)
    assert "max_pool2d_backward_cuda" in str(caught.value.saw)
    with pytest.raises(RuntimeError, match="does not have"):
        train(tmp_path / "other")


@pytest.mark.parametrize("option", [{"compile": True}, {"max_minutes": 1.0}])
def test_what_depends_on_measured_times_is_refused_beside_deterministic(option: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="measured times"):
        train(tmp_path / "run", deterministic=True, **option)
    assert not (tmp_path / "run").exists()


def test_on_cuda_deterministic_neither_compiles_nor_tries_out_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    from simclr_engine import device

    monkeypatch.setattr(device, "_pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(device, "_precisions", lambda picked: ["bf16", "fp32"])
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/c++")
    chosen = {}
    for wanted in (False, True):
        with device.deterministic_algorithms(wanted):
            platform = device.choose_platform("cuda", steps=1_000_000)
            chosen[wanted] = platform.deterministic, platform.compile, torch.backends.cudnn.benchmark
    assert chosen == {False: (False, True, True), True: (True, False, False)}


@pytest.mark.parametrize("wanted", [True, False])
def test_the_command_line_passes_deterministic_on(
    wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simclr_engine.cli.pretrain import command

    asked: dict[str, Any] = {}
    monkeypatch.setattr(pretraining, "pretrain", lambda *args, **options: (asked.update(options), exit())[0])
    CliRunner().invoke(command, ["--out", str(tmp_path)] + ["--deterministic"] * wanted)
    assert asked["deterministic"] is wanted
