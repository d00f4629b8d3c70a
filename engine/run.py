"""The run directory: reading a run, its path and its lock. Imports no torch."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, TypeGuard

from .bounds import LARGEST_DOCUMENT, LARGEST_RECIPE, LARGEST_ROW, MAX_SIZE
from .data.levels import Levels, as_levels
from .errors import DataError, PlatformError, UsageError, plain
from .files import MARKER, Folder, is_plain_name, named_path
from .inputs import open_regular, read_text
from .layout import LOCK, TORN_BY_TRAINING, check_removable, empty, holds_a_lock, is_free, mark
from .locks import lock
from .sealing import AlteredError, has_seal, verify_file
from .terminal import say, say_once

if TYPE_CHECKING:
    from torch import nn

    from .data import Selection
    from .recipe import Recipe

RUNS = Path("runs")
MOST_DIGITS = 20  # longest whole number in the files of a run: that of 2⁶⁴


@dataclass(frozen=True)
class Run:
    """A pretraining run on disk.

    Attributes:
        directory: its directory.
        recipe: the complete recipe it was trained with.
        environment: contents of environment.json: device, versions, backends, data, command, `finished`.
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
        from .recipe import Recipe  # and pydantic with it

        directory = Path(path)
        try:
            needed = has_seal(directory / MARKER)
            for name in ("recipe.toml", "environment.json"):  # text, which may be edited on purpose
                try:
                    verify_file(directory / name, "restore it from a copy unless you edited it", name, needed=needed)
                except AlteredError as error:
                    say_once(f"note: {error.saw}; {error.fix}")
            recipe = Recipe.from_toml(read_text(directory / "recipe.toml", LARGEST_RECIPE))
            environment = read_environment(directory)
        except (OSError, ValueError) as error:
            raise DataError(
                "no readable run here",
                saw=f"{directory}: {error}",
                fix="name a directory that `pretrain` wrote",
            ) from error
        return cls(directory, recipe, environment)

    @classmethod
    def newest(cls, root: str | Path = RUNS) -> Run:
        """The finished run under `root` that ended last, by the number that it took when it ended; of runs of older
        versions, which have none, by the date that they wrote."""
        found = finished_runs(Path(root))
        if not found:
            raise DataError(
                "no finished run to take",
                saw=f"{Path(root)}/",
                fix="run `simclr-engine pretrain` first, or name one with --run",
            )
        return cls.open(max(found)[-1])

    @property
    def image_size(self) -> int:
        """Side of the images it was trained on, pixels.

        Raises:
            DataError: environment.json does not say it.
        """
        size = self.data.get("image_size")
        if not isinstance(size, int) or not 1 <= size <= MAX_SIZE:
            raise DataError(
                "the run does not say how large its images were",
                saw=f"{self.directory / 'environment.json'}: data.image_size = {size!r}",
                fix="name a directory that `pretrain` wrote",
            )
        return size

    @property
    def unfinished(self) -> str:
        """How far a run that has not ended has been saved: `46 of 380 steps`; "" for a finished one."""
        if self.environment.get("finished"):
            return ""
        plan, done = self.environment.get("plan"), self.environment.get("step")
        total = plan.get("total_steps") if isinstance(plan, dict) else None
        if not is_number(done):  # of an older version
            done = max((row.get("step", 0) for row in self.metrics), default=0)
        return f"{int(done):,} of {int(total):,} steps" if is_number(total) else f"{int(done):,} steps"

    @property
    def levels(self) -> Levels:
        """The values of 16-bit gray images that became 0 and 255."""
        return as_levels(self.recipe.data.levels)

    @property
    def data(self) -> dict[str, Any]:
        """The entry of environment.json about the images that it was trained on; empty if there is none."""
        about = self.environment.get("data")
        return about if isinstance(about, dict) else {}

    @property
    def place(self) -> dict[str, str]:
        """The absolute paths of the images (`path`), of their table (`labels`) and list (`files`), where there are."""
        return {name: path for name in ("path", "labels", "files") if isinstance(path := self.data.get(name), str)}

    def locate_data(self) -> str | Selection:
        """The argument of `load_data` that reads those images again: the name of a data set, an absolute path, or a
        selection of absolute paths.

        Runs of older versions have the path that the user typed, relative to the working directory of the time.

        Raises:
            DataError: the images are no longer there, or were passed from Python.
        """
        from .data import Selection, source_names

        name, place = str(self.data.get("name", "")), self.place
        for what, path in place.items():
            if not Path(path).exists():
                raise DataError(
                    "the images that the run was trained on are no longer there",
                    saw=path,
                    fix="give their new path: --data PATH" + ("" if what == "path" else ", with --labels and --list"),
                )
        if "path" in place:
            tables = place.get("labels"), place.get("files")
            return Selection(place["path"], *tables) if any(tables) else place["path"]
        if not name or ("path" in self.data and name not in source_names()):
            raise DataError(
                "the images of the run were passed from Python",
                saw=f"{self.directory}: {name or 'no name'}",
                fix="pass them again, or name data: --data NAME|PATH",
            )
        return name

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl in order, without a last line cut short by a crash. DataError if it cannot be read."""
        return read_log(self.directory / "metrics.jsonl")

    def encoder(self, own: nn.Module | None = None) -> nn.Module:
        """The trained encoder in eval mode, normalised `[B, 3, S, S]` → `[B, feature_dim]`.

        `own` is the caller's module, of a run that trained one; see `load_encoder`.
        """
        from .checkpoint import load_encoder

        return load_encoder(self.directory, own)


def finished_runs(root: Path) -> list[tuple[int, float, Path]]:
    """Number, end (seconds since 1970) and directory of the finished runs under `root`; 0 where one does not say."""
    found = []
    for directory in (file.parent for file in root.glob("*/environment.json")):
        with suppress(OSError, ValueError):
            about = read_environment(directory)
            if about.get("finished"):
                number = about.get("number") or 0
                found.append((number, 0.0 if number else float(about.get("ended") or 0), directory))
    return found


# What readers of environment.json take for granted, wherever an entry stands; one of another kind counts as absent.
_KINDS: dict[str, Callable[[Any], bool]] = {
    "step number parameters feature_dim ranks peak_bytes images limit image_size total_steps steps_per_epoch": (
        lambda value: value is None or (type(value) is int and 0 <= value < 2**63)
    ),
    "seconds uncounted_seconds ended epochs pflop peak_lr max_minutes max_pflop estimated_seconds": (
        lambda value: value is None or (is_number(value) and 0 <= value < 2**63)
    ),
    "version command commit device device_name precision name path labels files split fingerprint words sha256": (
        lambda value: value is None or isinstance(value, str)
    ),
    "notes starts class_names lengthened": lambda value: isinstance(value, list),
    "data plan own loggers weights backends versions": lambda value: isinstance(value, dict),
}
_CHECKS = {name: check for names, check in _KINDS.items() for name in names.split()}


def read_environment(directory: Path) -> dict[str, Any]:
    """environment.json of a run, without entries of a kind that no run writes.

    Raises:
        OSError, ValueError: it is not there, cannot be read, or is no object.
    """

    def known(found: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in found.items() if name not in _CHECKS or _CHECKS[name](value)}

    return _read_object(read_text(directory / "environment.json", LARGEST_DOCUMENT), known)


# What a start of a run uses and a later one may not.
_OF_A_START = (
    *("version", "commit", "device", "device_name", "precision", "compile", "deterministic", "backends", "versions"),
    *("ranks", "threads", "micro_batch", "batch_norm"),
)
MOST_STARTS = 1000


def of_a_start(environment: Mapping[str, Any]) -> dict[str, Any]:
    """What a start of a run used, by its environment.json: kernels, device, versions, commit, …"""
    return {name: environment[name] for name in _OF_A_START if name in environment}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`augment native → torch` for each entry of two starts that differs."""
    found = []
    for name, value in now.items():
        if isinstance(value, dict):
            earlier = before.get(name)
            found += changes(earlier if isinstance(earlier, dict) else {}, value)
        elif name in before and before[name] != value:
            found.append(f"{name} {str(before[name])[:60]} → {str(value)[:60]}")
    return found


def unfinished_notes(how_far: str) -> tuple[str, ...]:
    """What is said wherever the encoder of a run is used that has not ended; nothing of a finished one (`""`)."""
    return (f"the run of this encoder has not ended: {how_far[:80]} are done",) if how_far else ()


def public_name(name: str) -> str:
    """The name of images for recipes, reports and files: the last part of an absolute path, else what the user gave.

    Such files are passed on to others, and should not name the folders of this machine. A name that is not UTF-8, which
    a recipe cannot hold, is escaped.
    """
    name = Path(name).name or name if Path(name).is_absolute() else name
    return plain(name) if any("\ud800" <= c <= "\udfff" for c in name) else name


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON rows of a log. Lines that are not a row, such as a last line cut short, are skipped.

    Raises:
        DataError: the file exists but cannot be read.
    """
    if not path.exists():
        return
    try:
        with open_regular(path) as file:
            while line := file.readline(LARGEST_ROW):  # of a longer line no part is an object
                with suppress(ValueError):
                    yield _read_object(line.decode("utf-8", "replace"))
    except OSError as error:
        raise DataError(
            "the log cannot be read", saw=f"{path}: {error.strerror}", fix="correct its permissions"
        ) from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a log as it was written: text for `event`, else numbers. What is neither is left out of its row.

    Raises:
        DataError: the file exists but cannot be read.
    """
    return [
        {
            name: value
            for name, value in row.items()
            if (isinstance(value, str) if name == "event" else is_number(value))
        }
        for row in read_rows(path)
    ]


def _read_object(text: str, of_each: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> dict[str, Any]:
    """Parses a JSON object; a short ValueError for anything else. `of_each` changes it and the objects in it."""
    try:
        found = json.loads(text, parse_int=_whole_number, object_hook=of_each)
    except RecursionError as error:
        raise ValueError("brackets nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__} instead of an object")
    return found


def _whole_number(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a whole number of {len(digits):,} digits")
    return int(digits)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value of a log or document is a number that can be drawn: matplotlib's own sums overflow near 1e308."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e100


def run_directory(out: str | Path | None, recipe: str) -> Path:
    """The directory of a new run: `out`, or `runs/RECIPE` by the name of the recipe.

    Raises:
        UsageError: `out` is empty, or the name of the recipe is a path.
    """
    if out is not None:
        return named_path(out)
    if not is_plain_name(recipe):
        raise UsageError(
            "the name of the recipe cannot be the name of a directory",
            saw=f"name = {recipe!r}",
            fix="give --out DIR, or give the recipe another name",
        )
    return RUNS / recipe


def check_directory(path: Path, *, resume: bool, overwrite: bool) -> None:
    """Checks that a run may be written to the directory; changes nothing.

    Raises:
        UsageError: it is a file or not empty, or `overwrite` would remove files that no run wrote.
        DataError: there is nothing to resume.
        PlatformError: it cannot be reached.
    """
    try:
        path.stat()
    except FileNotFoundError:
        pass
    except OSError as error:  # a folder above it may not be entered, or is a file
        raise PlatformError(
            "the output directory cannot be reached", saw=f"{path}: {error.strerror}", fix="choose another --out"
        ) from error
    if path.exists() and not path.is_dir():
        raise UsageError("the output is a file, not a directory", saw=path, fix="choose another --out")
    if resume:
        if not (path / "checkpoints").is_dir():
            raise DataError("nothing to resume here", saw=path, fix="check the path, or start the run without --resume")
    elif path.is_dir() and not is_free(at := Folder.open(path)):
        if not overwrite:
            raise UsageError(
                "the output directory exists and is not empty",
                saw=path,
                fix="use --resume to continue, --overwrite to start again, or another --out",
            )
        check_removable(at)


def make_directory(path: Path, *, resume: bool, overwrite: bool, lock: RunLock) -> None:
    """Makes the run directory and takes its lock; with `overwrite`, removes the existing run first.

    Raises:
        UsageError: another process uses it, or has left a run there in the meantime.
        PlatformError: it cannot be made, or was replaced after its lock was taken.
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
    at.sweep(TORN_BY_TRAINING)
    at.folder("checkpoints").sweep(TORN_BY_TRAINING)


class RunLock:
    """Keeps a second process from training in a run directory, from `take` to the end of the `with`.

    An advisory lock on the open file `.lock`. The kernel frees it when the process ends, so a lock is never stale. The
    file stays and names its holder. On a file system without locks, it does only that, and `take` says so.
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
                self._write("")
            with suppress(OSError):  # which would hide `error`
                self._file.close()
            self._file = None

    def _write(self, text: str) -> None:
        assert self._file is not None
        if os.fstat(self._file.fileno()).st_nlink == 1:  # else the file is that of another folder, too
            self._file.truncate(0)
            self._file.write(text)
            self._file.flush()

    @property
    def folder(self) -> Folder:
        """The directory whose lock was taken; the run writes only into it."""
        assert self._folder is not None
        return self._folder

    def take(self) -> None:
        """Takes the lock of a directory that exists; a second time does nothing.

        Raises:
            UsageError: another process has the lock, or a run did not write the file.
            PlatformError: the directory cannot be written.
            DataError: the lock is a link.
        """
        if self._file is not None:
            return
        folder = Folder.open(self.directory, "into the run directory")
        file = folder.append(LOCK, "a+")
        try:
            if not lock(file, self.directory.absolute() / LOCK):
                say(f"note: there are no locks in {self.directory}: a second process here would not be noticed")
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read(200).strip() or "an unknown process"
            file.close()
            raise UsageError(
                "another process is training in this directory",
                saw=f"{self.directory}: {holder}",
                fix="wait until it ends, stop it, or choose another --out",
            ) from error
        file.seek(0)
        if not holds_a_lock(file.read(1000)):
            file.close()
            raise UsageError(
                "the lock file was not written by a run", saw=self.directory / LOCK, fix="choose another --out"
            )
        self._folder, self._file = folder, file
        with suppress(OSError):  # the disk is full: the lock holds nevertheless
            self._write(f"process {os.getpid()} on {socket.gethostname()}\n")
