"""What errors of the system and of libraries become: a cause, what was seen, a fix, the documented exit code."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import sqlite3
import sys
import tarfile
import tomllib
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
import PIL.Image
import pytest
import torch
from google.protobuf.message import EncodeError
from safetensors import safe_open
from sklearn.linear_model import LogisticRegression

from fixtures.disturbed_runs import newest_step, train
from simclr_engine import checkpoint
from simclr_engine.boundary import engine_error
from simclr_engine.checkpoint import load_checkpoint, save_checkpoint
from simclr_engine.cli import recipes
from simclr_engine.cli.main import main
from simclr_engine.data.cache import cache_root
from simclr_engine.data.sources import open_source
from simclr_engine.distributed import is_main, start_world
from simclr_engine.errors import DataError, EngineError, PlatformError, UsageError
from simclr_engine.files import write_atomic
from simclr_engine.planning import RunOptions
from simclr_engine.run import RunLock


def raised(call: Callable[[], object]) -> BaseException:
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def translated(call: Callable[[], object]) -> EngineError:
    error = engine_error(raised(call))
    assert error is not None
    assert error.saw and error.fix
    return error


def nested(depth: int = 0) -> int:
    return nested(depth + 1)


def fails(error: BaseException) -> Callable[[], object]:
    def call() -> object:
        raise error

    return call


@pytest.mark.parametrize(
    ("number", "code", "cause"),
    [
        (errno.ENOSPC, 3, "the disk is full"),
        (errno.EDQUOT, 3, "the disk is full"),
        (errno.EFBIG, 3, "larger than the system allows"),
        (errno.EACCES, 3, "no permission"),
        (errno.EROFS, 3, "no permission"),
        (errno.EMFILE, 3, "too many files are open"),
        (errno.ENOMEM, 3, "not enough memory"),
        (errno.EIO, 3, "disk or its connection failed"),
        (errno.EPIPE, 3, "the system cannot do this"),
        (errno.ENAMETOOLONG, 4, "name is too long"),
        (errno.ENOENT, 4, "cannot be opened"),
    ],
)
def test_an_error_of_the_system_is_told_by_its_number(number: int, code: int, cause: str) -> None:
    error = translated(fails(OSError(number, os.strerror(number), "a/b")))
    assert error.exit_code == code and cause in error.cause
    assert error.saw == f"a/b: {os.strerror(number)}"


LIBRARIES: dict[str, tuple[Callable[[Path], object], int]] = {
    "PIL": (lambda path: PIL.Image.open(path), 4),
    "zipfile": (lambda path: zipfile.ZipFile(path), 4),
    "tarfile": (tarfile.open, 4),
    "zlib": (lambda path: zlib.decompress(path.read_bytes()), 4),
    "safetensors": (lambda path: safe_open(path, "pt"), 4),
    "onnx": (lambda path: onnx.load(path), 4),
    "onnxruntime": (lambda path: onnxruntime.InferenceSession(path), 4),
    "json": (lambda path: json.loads(path.read_text()), 4),
    "tomllib": (lambda path: tomllib.loads(path.read_text()), 4),
    "pickle": (lambda path: pickle.loads(path.read_bytes()), 4),
    "numpy": (lambda path: np.load(path), 4),
    "torch": (lambda path: torch.load(path, weights_only=True), 4),
    "sklearn": (lambda path: LogisticRegression().fit([[np.nan], [1.0]], [0, 1]), 4),
    "text": (lambda path: b"\xff".decode(), 4),
    "recursion": (lambda path: nested(), 4),
    "sqlite3": (lambda path: sqlite3.connect(path).execute("select * from nothing"), 3),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_an_error_of_a_library_is_ours_with_its_exit_code(library: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"garbage, which no library reads: \x00\x01" * 9)
    call, code = LIBRARIES[library]
    assert translated(lambda: call(tmp_path / "file")).exit_code == code


class Cramped(io.BytesIO):
    """Has no memory for what is written to it."""

    def write(self, data: Any) -> int:
        raise MemoryError


def chained(first: Exception, second: Exception) -> None:
    """Raises the second error while the first is handled, twice removed."""
    try:
        try:
            raise first
        except Exception as error:
            raise ValueError("x") from error
    except ValueError as error:
        raise second from error


MEMORY: dict[str, Callable[[], object]] = {
    "python": fails(MemoryError()),
    "numpy": lambda: np.ones(1 << 60, dtype=np.uint8),
    "torch": lambda: torch.empty(1 << 60, dtype=torch.uint8),
    "C++": fails(RuntimeError("std::bad_alloc")),
    "protobuf": fails(EncodeError("Failed to serialize proto")),
    "the loader": fails(ImportError("/lib/part.so: failed to map segment from shared object")),
    "behind an error of a library": lambda: chained(MemoryError(), zipfile.BadZipFile("File is not a zip file")),
    "within torch": lambda: torch.save({}, Cramped()),
    "CUDA": fails(torch.OutOfMemoryError("CUDA out of memory.")),
}


@pytest.mark.parametrize("library", MEMORY)
def test_memory_that_ends_is_a_fault_of_the_machine(library: str) -> None:
    error = translated(MEMORY[library])
    assert error.exit_code == 3 and error.cause == "there is not enough memory"


WORDED = {
    "tofile": (OSError("1000 requested and 0 written"), "the disk is full"),
    "torch.save": (RuntimeError("[enforce fail] . unexpected pos 64 vs 0"), "the disk is full"),
    "rust": (ValueError("I/O error: No space left on device (os error 28)"), "the disk is full"),
    "onnxruntime": (RuntimeError("Load model from a failed: system error number 13"), "there is no permission"),
    "threads": (RuntimeError("can't start new thread"), "the system starts no more threads"),
}


@pytest.mark.parametrize("library", WORDED)
def test_an_error_without_a_number_is_told_by_its_words(library: str) -> None:
    error, cause = WORDED[library]
    assert (translated(fails(error)).cause, translated(fails(error)).exit_code) == (cause, 3)


class PanicException(BaseException):  # its name in pyo3
    """What a library in Rust raises."""


@pytest.mark.parametrize("error", [SystemError("error return without exception set"), PanicException("null")])
def test_a_compiled_library_that_breaks_is_a_fault_of_the_machine(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, error) == 3
    assert "a compiled library failed" in capsys.readouterr().err


def test_a_disk_that_fails_behind_an_error_of_a_library_is_told() -> None:
    first = OSError(errno.EIO, os.strerror(errno.EIO), "set.zip")
    error = translated(lambda: chained(first, zipfile.BadZipFile("File is not a zip file")))
    assert (error.exit_code, error.cause) == (3, "the disk or its connection failed") and "set.zip" in str(error.saw)
    missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "set.zip")  # something else was tried then
    assert translated(lambda: chained(missing, zipfile.BadZipFile("File is not a zip file"))).exit_code == 4
    assert engine_error(raised(lambda: chained(first, KeyError("x")))) is None


@pytest.mark.parametrize("kind", [TypeError, KeyError, AttributeError, IndexError, AssertionError, ValueError])
def test_a_mistake_of_ours_is_not_excused(kind: type[Exception]) -> None:
    assert engine_error(raised(fails(kind("x")))) is None
    assert engine_error(raised(lambda: json.dumps(object()))) is None


def test_a_failure_within_an_open_file_names_the_file(tmp_path: Path) -> None:
    def call() -> None:
        with (tmp_path / "images.npy").open("wb") as file:
            assert file
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    assert translated(call).saw == f"{tmp_path / 'images.npy'}: Input/output error"


# The command line


def ended(monkeypatch: pytest.MonkeyPatch, error: BaseException, *words: str) -> int:
    """The exit code of a command that raises the error."""

    @click.command()
    def command() -> None:
        raise error

    monkeypatch.setattr(recipes, "command", command)
    monkeypatch.setattr(sys, "argv", ["simclr-engine", "recipes", *words])
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    with pytest.raises(SystemExit) as stop:
        main()
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EOFError("Compressed file ended before the end"), 4),  # click takes it for Ctrl-D
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 3),  # and this for a reader that is gone
        (ImportError("libtorch.so: failed to map segment from shared object"), 3),
        (MemoryError(), 3),
        (zipfile.BadZipFile("no zip"), 4),
    ],
)
def test_every_error_passes_the_boundary(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, error) == code
    said = capsys.readouterr().err
    assert "error: " in said and "  saw: " in said and "  fix: " in said and "saw: :" not in said
    assert ("not enough memory" in said) == isinstance(error, MemoryError | ImportError)


def test_a_mistake_of_ours_keeps_its_traceback_and_asks_to_be_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, KeyError("a\x1b[2J")) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback") and "fix: report it with the lines above" in said and "\x1b" not in said


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])
@pytest.mark.parametrize("text", ["abc", "-1", "", "1e9", "9" * 30])
def test_a_variable_of_the_launcher_that_is_no_number_is_named(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for variable, value in (launch | {name: text}).items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError, match="not a number") as caught, start_world("cpu"):
        pass
    assert caught.value.saw == f"{name}={text}"


def test_a_rank_outside_its_world_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="contradict"), start_world("cpu"):
        pass
    assert is_main() is False


@pytest.mark.parametrize("limit", [float("inf"), float("nan"), -float("inf"), 0.0])
def test_a_limit_that_is_not_finite_is_refused(limit: float) -> None:
    for name in ("max_minutes", "max_pflop"):
        with pytest.raises(UsageError, match="must be above 0 and finite"):
            RunOptions(**{name: limit})


def test_a_missing_home_and_an_unknown_user_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "SIMCLR_ENGINE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DataError) as caught:
        open_source("~nouser/photos")
    assert "~nouser/photos" in str(caught.value.saw)
    monkeypatch.setattr(os.path, "expanduser", str)  # as where there is no entry in passwd either
    with pytest.raises(PlatformError, match="home folder"):
        cache_root()


# Runs


def test_a_lock_that_cannot_be_emptied_does_not_hide_why_the_run_ended(tmp_path: Path) -> None:
    class Full(io.StringIO):
        def truncate(self, size: int | None = None) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            super().close()
            raise OSError(errno.ENOSPC, "No space left on device")

    lock = RunLock(tmp_path)
    with pytest.raises(DataError, match="why"), lock:
        lock.take()
        assert lock._file is not None
        lock._file.close()
        lock._file = Full()
        raise DataError("why")


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a part is missing": lambda state: state.pop("optimizer"),
    "a part is of another kind": lambda state: state.update(step="9"),
    "more steps than the plan": lambda state: state.update(step=10**6),
    "another network": lambda state: state["model"].popitem(),
    "another optimizer": lambda state: state["optimizer"].update(param_groups=[]),
    "another generator": lambda state: state.update(rng=torch.zeros(3)),
    "a torn history": lambda state: state.update(relaid=[1]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_of_another_structure_is_refused_and_stays(change: str, tmp_path: Path) -> None:
    train(tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    state = load_checkpoint(path)
    CHANGES[change](state)
    save_checkpoint(path, state)
    before = path.read_bytes()
    with pytest.raises(DataError) as caught:
        train(tmp_path / "run", resume=True)
    assert "structure" in caught.value.cause or "another network" in caught.value.cause
    assert path.read_bytes() == before


def test_memory_that_ends_while_saving_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = torch.save, []

    def save(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        real(*arguments)

    monkeypatch.setattr(checkpoint.torch, "save", save)
    assert translated(lambda: train(tmp_path / "run")).exit_code == 3
    assert newest_step(tmp_path / "run") == 4
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_what_to_do_about_a_file_that_cannot_be_written_fits_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "fsync", refuses)
    with pytest.raises(PlatformError) as caught:
        write_atomic(tmp_path / "file", b"")
    assert str(caught.value.fix).startswith("correct the permissions")
