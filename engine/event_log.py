"""Writes metrics.jsonl and TensorBoard events, for runs and for evaluations that train. Imports no torch."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any

from .documents import to_json
from .errors import PlatformError
from .files import Folder
from .run import is_number, read_rows


class RunLog:
    """metrics.jsonl and TensorBoard, written together; a resumed run drops the rows after its checkpoint.

    Each row has reached the operating system when `write` returns, so a killed process loses none.

    Raises:
        PlatformError: from every method, if the disk is full or the directory is not writable; from `write`, if the
            directory was removed or replaced.
    """

    def __init__(self, directory: Path | Folder, resume_step: int | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._folder = Folder.of(directory)
        self.path = self._folder.path / "metrics.jsonl"
        if resume_step is not None:
            kept = [r for r in read_rows(self.path) if is_number(r.get("step", 0)) and r.get("step", 0) <= resume_step]
            self._folder.write_text(self.path.name, "".join(to_json(r) + "\n" for r in kept))
        self._file = self._folder.append(self.path.name, "a")
        # Not tensorboard's EventFileWriter: it writes from a thread, so errors come late, as a traceback.
        self._board = RecordWriter(self._folder.folder("tensorboard").append(event_file_name()))
        with self._clear_errors():
            self._board.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """Writes one row `{"event", "step", **values}`. Numbers are written to TensorBoard as `event/name`."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        row = {"event": event, "step": step, **values}
        scalars = [
            Summary.Value(tag=f"{event}/{k}", simple_value=v) for k, v in values.items() if isinstance(v, int | float)
        ]
        record = Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)).SerializeToString()
        self._folder.check()
        with self._clear_errors():
            self._file.write(to_json(row) + "\n")
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
                fix="free space or correct the permissions, then use --resume",
            ) from error


def event_file_name() -> str:
    """The name under which TensorBoard finds the events of this process."""
    return f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"


# Key in a row → tag. Both have the learning rate; the finer of the two is written.
HISTORY = {"test_accuracy": "test/accuracy", "test_loss": "test/loss", "train_loss": "train/loss_epoch", "lr": "lr"}
STEPS = {"train_loss": "train/loss_step", "lr": "lr"}

Row = Mapping[str, Any]
_Point = tuple[int, str, float]  # step, tag, value


def write_scalars(
    directory: Path | Folder, history_rows: Iterable[Row], step_rows: Iterable[Row], group: str
) -> tuple[Path, ...]:
    """Writes the curves of one protocol; curves of an earlier evaluation with the same `group` are replaced.

    Args:
        directory: `tensorboard/` of the run; the events go to `directory/group`, those of the folds above one to
            `directory/group/fold-2` and so on.
        history_rows: one per epoch: `fold` (0 without folds, else from 1), `step`, and any of `train_loss`,
            `test_loss`, `test_accuracy`, `lr`. A value that is missing or None gives no point.
        step_rows: one per logged step: `fold`, `step`, and any of `train_loss`, `lr`.
        group: name of the protocol, such as `finetune-pretrained`.

    Returns:
        The folders written, in order of folds.

    Raises:
        ValueError: `group` is not a plain folder name.
        PlatformError: no space or no permission.
    """
    if not re.fullmatch(r"[\w-][\w.-]*", group):
        raise ValueError(f"group must be a plain folder name, saw {group!r}")
    folds = _by_fold(history_rows, step_rows)
    at = Folder.of(directory, "the curves for TensorBoard")
    if not folds and group not in at.names():
        return ()
    base = at.folder(group)
    _clear(base)
    return tuple(_write(base.folder(f"fold-{fold}") if fold > 1 else base, points) for fold, points in folds)


def _by_fold(history: Iterable[Row], steps: Iterable[Row]) -> list[tuple[int, list[_Point]]]:
    """The points of each fold, in order of folds and steps."""
    fine = _points(steps, STEPS)
    finer = {fold for fold, points in fine.items() if any(tag == "lr" for _, tag, _ in points)}
    found = _points(history, HISTORY)
    for fold in finer & found.keys():
        found[fold] = [point for point in found[fold] if point[1] != "lr"]
    for fold, points in fine.items():
        found.setdefault(fold, []).extend(points)
    return [(fold, sorted(found[fold], key=lambda point: point[0])) for fold in sorted(found)]


def _points(rows: Iterable[Row], tags: Mapping[str, str]) -> dict[int, list[_Point]]:
    """Points by fold; values that are not numbers are skipped."""
    found: dict[int, list[_Point]] = {}
    for row in rows:
        points = [
            (int(row["step"]), tag, float(row[key]))
            for key, tag in tags.items()
            if isinstance(row.get(key), Real) and not isinstance(row[key], bool)  # numpy's numbers are Real too
        ]
        if points:
            found.setdefault(int(row.get("fold", 0)), []).extend(points)
    return found


def _clear(base: Folder) -> None:
    """Removes the event files of a folder: TensorBoard would draw old and new events as one curve."""
    _remove_events(base)
    for name in base.names():
        if re.fullmatch(r"fold-\d+", name) and not base.is_file(name):
            fold = base.folder(name, make=False)
            _remove_events(fold)
            if not fold.names():  # otherwise it holds files that are not ours
                base.remove_folder(name)


def _remove_events(folder: Folder) -> None:
    for name in folder.names():
        if name.startswith("events.out.tfevents.") and folder.is_file(name):
            folder.remove(name)


def _write(folder: Folder, points: list[_Point]) -> Path:
    """One event file; points of one step make one event."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    steps: dict[int, list[Any]] = {}
    for step, tag, value in points:
        steps.setdefault(step, []).append(Summary.Value(tag=tag, simple_value=value))
    now = time.time()
    events = [Event(wall_time=now, step=step, summary=Summary(value=values)) for step, values in steps.items()]
    with folder.writing(event_file_name()) as file:
        board = RecordWriter(file)
        for event in (Event(wall_time=now, file_version="brain.Event:2"), *events):
            board.write(event.SerializeToString())
    return folder.path
