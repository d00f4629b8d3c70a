"""metrics.jsonl and TensorBoard: the one writer of both. Imports no torch."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import PlatformError
from .files import Folder
from .run import is_number, read_rows


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
            kept = [r for r in read_rows(self.path) if is_number(r.get("step", 0)) and r.get("step", 0) <= resume_step]
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
