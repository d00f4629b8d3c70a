"""The run directory: what is in it, the event log, TensorBoard and progress. Imports no torch."""

from __future__ import annotations

import errno
import json
import math
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, TypeGuard

from .errors import DataError, PlatformError, UsageError
from .files import Folder, is_plain_name, named_path
from .files import write_atomic as write_atomic  # for `export`, until it imports them from there
from .files import write_text_atomic as write_text_atomic
from .layout import LOCK, check_removable, empty, holds_a_lock, is_free, mark, remove_torn
from .recipe import Recipe

try:
    import fcntl
except ImportError:  # no POSIX system; nothing keeps a second process out there
    fcntl = None  # type: ignore[assignment]  # a module, or nothing

if TYPE_CHECKING:
    from torch import nn

RUNS = Path("runs")
MOST_DIGITS = 20  # of a whole number in a run's files: 2⁶⁴ has so many, and no float or picture takes 400


@dataclass(frozen=True)
class Run:
    """A pretraining run on disk.

    Attributes:
        directory: where it lives.
        recipe: the resolved recipe it was trained with.
        environment: device, versions, backends, data, command, `finished`: what environment.json holds.
    """

    directory: Path
    recipe: Recipe
    environment: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """The run in directory `path`.

        Raises:
            DataError: there is no run, or its files cannot be read.
        """
        directory = Path(path)
        try:
            recipe = Recipe.from_toml((directory / "recipe.toml").read_text("utf-8"))
            environment = _read_object((directory / "environment.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                "no readable run here",
                saw=f"{directory}: {error}",
                fix="name a directory that `pretrain` wrote",
            ) from error
        return cls(directory, recipe, environment)

    @classmethod
    def newest(cls, root: str | Path = RUNS) -> Run:
        """The finished run under `root` that ended last."""
        found = []
        for file in Path(root).glob("*/environment.json"):
            try:
                environment = _read_object(file.read_text("utf-8"))
            except (OSError, ValueError):
                continue
            if environment.get("finished"):
                ended = environment.get("ended")
                found.append((float(ended) if _is_number(ended) else 0.0, file.parent))
        if not found:
            raise DataError(
                "no finished run to take",
                saw=f"{Path(root)}/",
                fix="run `simclr-engine pretrain` first, or name one with --run",
            )
        return cls.open(max(found)[1])

    @property
    def image_size(self) -> int:
        """Side of the images it was trained on, pixels.

        Raises:
            DataError: environment.json does not say.
        """
        size = self.data.get("image_size")
        if not isinstance(size, int) or size < 1:
            raise DataError(
                "the run does not say how large its images were",
                saw=f"{self.directory / 'environment.json'}: data.image_size = {size!r}",
                fix="name a directory that `pretrain` wrote",
            )
        return size

    @property
    def data(self) -> dict[str, Any]:
        """What environment.json says of the images that it was trained on; empty where it says nothing."""
        about = self.environment.get("data")
        return about if isinstance(about, dict) else {}

    def locate_data(self) -> str:
        """What `load_data` takes to read those images again: the name of a data set, or the absolute path.

        A run from before paths were kept has what the user typed, relative to where it was started.

        Raises:
            DataError: they are no longer there, or were passed from Python.
        """
        from .data import source_names

        name, path = str(self.data.get("name", "")), self.data.get("path")
        if isinstance(path, str):
            if not Path(path).exists():
                raise DataError(
                    "the images that the run was trained on are no longer there",
                    saw=path,
                    fix="name where they are now: --data PATH",
                )
            return path
        if not name or ("path" in self.data and name not in source_names()):
            raise DataError(
                "only Python had the images that the run was trained on",
                saw=f"{self.directory}: {name or 'no name'}",
                fix="pass them again, or name data: --data NAME|PATH",
            )
        return name

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl in order; a last line cut short by a crash is left out. DataError if it may not be
        read."""
        return list(read_rows(self.directory / "metrics.jsonl"))

    def encoder(self) -> nn.Module:
        """The trained encoder in eval mode, normalised `[B, 3, S, S]` → `[B, feature_dim]`."""
        from .checkpoint import load_encoder

        return load_encoder(self.directory)


def public_name(name: str) -> str:
    """What a user called images, as recipes, reports and files may say it: of an absolute path the last part.

    Those are handed on to others, whom the folders of this machine do not concern.
    """
    return Path(name).name or name if Path(name).is_absolute() else name


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON rows of a log that may end in a torn line; what is no row is left out.

    Raises:
        DataError: the file is there and cannot be read.
    """
    if not path.is_file():
        return
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DataError(
            "the log cannot be read", saw=f"{path}: {error.strerror}", fix="mend its permissions"
        ) from error
    for line in lines:
        with suppress(ValueError):
            yield _read_object(line)


def _read_object(text: str) -> dict[str, Any]:
    """A JSON object; ValueError, in few words, for anything else."""
    try:
        found = json.loads(text, parse_int=_whole_number)
    except RecursionError as error:
        raise ValueError("brackets within brackets without end") from error
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__} where an object should be")
    return found


def _whole_number(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a whole number of {len(digits):,} digits")
    return int(digits)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def run_directory(out: str | Path | None, recipe: str) -> Path:
    """Where a run goes: `out`, or `runs/RECIPE` by the name of its recipe.

    Raises:
        UsageError: `out` is empty; the recipe's name, which may come from elsewhere, is a path.
    """
    if out is not None:
        return named_path(out)
    if not is_plain_name(recipe):
        raise UsageError(
            "the name of the recipe cannot be that of a directory",
            saw=f"name = {recipe!r}",
            fix="give --out DIR, or the recipe another name",
        )
    return RUNS / recipe


def check_directory(path: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuses a run directory that holds something, unless told what to do with it; changes nothing.

    Raises:
        UsageError: it is a file, or occupied; or `overwrite` would remove what no run wrote.
        DataError: there is nothing to resume.
        PlatformError: it cannot be reached.
    """
    try:
        path.stat()
    except FileNotFoundError:
        pass
    except OSError as error:  # a folder above it that may not be entered, or that is a file
        raise PlatformError(
            "the output directory cannot be reached", saw=f"{path}: {error.strerror}", fix="choose another --out"
        ) from error
    if path.exists() and not path.is_dir():
        raise UsageError("the output is a file, not a directory", saw=path, fix="choose another --out")
    if resume:
        if not (path / "checkpoints").is_dir():
            raise DataError("nothing to resume here", saw=path, fix="check the path, or start it without --resume")
    elif path.is_dir() and not is_free(at := Folder.open(path)):
        if not overwrite:
            raise UsageError(
                "the output directory exists and is not empty",
                saw=path,
                fix="--resume to go on, --overwrite to start anew, or another --out",
            )
        check_removable(at)


def make_directory(path: Path, *, resume: bool, overwrite: bool, lock: RunLock) -> None:
    """Makes the run directory and takes its lock; with `overwrite` the run that stood there goes first.

    Raises:
        UsageError: another process has it, or was faster and left a run there.
        PlatformError: it cannot be made, or is no longer the one whose lock was taken.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlatformError(
            "cannot make the output directory", saw=f"{path}: {error.strerror}", fix="choose another --out"
        ) from error
    lock.take()
    check_directory(path, resume=resume, overwrite=overwrite)
    at = lock.folder
    if not resume:
        anew = not is_free(at)
        mark(at)
        if anew:
            empty(at)
    remove_torn(at)
    remove_torn(at.folder("checkpoints"))


class RunLock:
    """Keeps a second process out of a run directory, from `take` to the end of the `with`.

    An advisory lock of the open file `.lock`: the kernel frees it with the process, however that ends, so that a lock
    is never stale. The file stays and says who holds it. Where the file system knows no locks, it is no more than that.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._folder: Folder | None = None
        self._file: IO[str] | None = None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.truncate(0)
            self._file.close()
            self._file = None

    @property
    def folder(self) -> Folder:
        """The directory whose lock was taken: what the run writes goes there and nowhere else."""
        assert self._folder is not None
        return self._folder

    def take(self) -> None:
        """Takes the lock of a directory that exists; a second time does nothing.

        Raises:
            UsageError: another process has it, or the file is somebody else's.
            PlatformError: the directory cannot be written.
            DataError: the lock is a link.
        """
        if self._file is not None:
            return
        folder = Folder.open(self.directory, "into the run directory")
        file = folder.append(LOCK, "a+")
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                file.seek(0)
                holder = file.read(200).strip() or "a process that has not said who it is"
                file.close()
                raise UsageError(
                    "another process is training in this directory",
                    saw=f"{self.directory}: {holder}",
                    fix="wait until it ends, stop it, or choose another --out",
                ) from error
            # ENOLCK, EOPNOTSUPP: a network file system without locks
        file.seek(0)
        if not holds_a_lock(file.read(1000)):
            file.close()
            raise UsageError(
                "the lock file was not written by a run", saw=self.directory / LOCK, fix="choose another --out"
            )
        self._folder, self._file = folder, file
        with suppress(OSError):  # a full disk: the lock holds all the same
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()


class RunLog:
    """metrics.jsonl and TensorBoard, written together; a resumed run drops the rows after its checkpoint.

    Each row is in the hands of the system when `write` returns: a process that is killed loses none.

    Raises:
        PlatformError: from every method, where the disk is full or the directory cannot be written; from `write`, where
            it was removed or replaced.
    """

    def __init__(self, directory: Path | Folder, resume_step: int | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._folder = Folder.of(directory)
        self.path = self._folder.path / "metrics.jsonl"
        if resume_step is not None:
            kept = [r for r in read_rows(self.path) if _is_number(r.get("step", 0)) and r.get("step", 0) <= resume_step]
            self._folder.write_text(self.path.name, "".join(json.dumps(r) + "\n" for r in kept))
        self._file = self._folder.append(self.path.name, "a")
        # Not tensorboard's EventFileWriter: it writes from a thread, where a full disk is a traceback and comes late.
        self._board = RecordWriter(self._folder.folder("tensorboard").append(event_file_name()))
        with self._clear_errors():
            self._board.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """One row `{"event", "step", **values}`; numbers go to TensorBoard as `event/name`."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        row = {"event": event, "step": step, **values}
        scalars = [
            Summary.Value(tag=f"{event}/{k}", simple_value=v) for k, v in values.items() if isinstance(v, int | float)
        ]
        record = Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)).SerializeToString()
        self._folder.check()
        with self._clear_errors():
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
            self._board.write(record)
            self._board.flush()

    def close(self) -> None:
        """Closes both."""
        with self._clear_errors():
            try:
                self._file.close()
            finally:
                self._board.close()

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise PlatformError(
                "cannot write the log",
                saw=f"{error.filename or self.path}: {error.strerror}",
                fix="free space or mend its permissions, then --resume",
            ) from error


def event_file_name() -> str:
    """The name under which TensorBoard finds the events of this process."""
    return f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"


class Progress:
    """A bar on a terminal; elsewhere one plain line at most every `interval` seconds. Always to stderr."""

    def __init__(self, total: int, done: int = 0, *, quiet: bool = False, interval: float = 15.0) -> None:
        self.total, self.done, self.quiet, self.interval = total, done, quiet, interval
        self._bar: Any = None
        self._start, self._first, self._last = time.monotonic(), done, 0.0
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.description}"),
            )
            self._bar = Bar(
                *columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True)
            )
            self._bar.start()
            self._task = self._bar.add_task("starting", total=total, completed=done)

    def update(self, done: int, text: str) -> None:
        """`done` of `total` steps are done; `text` is the state in a few words."""
        self.done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=text)
        elif not self.quiet and (time.monotonic() - self._last >= self.interval or done >= self.total):
            self._last = time.monotonic()
            rate = (done - self._first) / max(1e-9, self._last - self._start)
            left = f"{(self.total - done) / rate:.0f} s left" if rate > 0 else ""
            print(f"[{100 * done // max(1, self.total):3d}%] {text}  {left}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


@contextmanager
def progress(total: int, done: int = 0, *, quiet: bool = False) -> Iterator[Progress]:
    """A `Progress` that is closed whatever happens."""
    bar = Progress(total, done, quiet=quiet)
    try:
        yield bar
    finally:
        bar.close()
