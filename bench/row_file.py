"""Rows of a measurement in a file, on disk one by one; without torch, for whoever only reads them."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from simclr_engine.documents import to_json

from .rows import Row


class RowFile:
    """Rows of one measurement, a line of JSON each, on disk as soon as they are added: a process that is killed leaves
    all rows that it finished. What is there already need not be measured again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, found: Row) -> None:
        """Appends a row and waits until the disk has it."""
        torn = self.path.is_file() and self.path.read_bytes()[-1:] not in (b"", b"\n")
        with self.path.open("a") as file:
            file.write("\n" * torn + to_json(found) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[Row]:
        """The rows so far, without one that was not written to its end; of equal ones the last."""
        found: dict[tuple[str, str], Row] = {}
        for line in self.path.read_text().splitlines() if self.path.is_file() else []:
            with contextlib.suppress(ValueError):
                one = json.loads(line)
                found[one["name"], one["contender"]] = one
        return list(found.values())

    def has(self, name: str, contender: str) -> bool:
        """Whether there is such a row."""
        return any((one["name"], one["contender"]) == (name, contender) for one in self.read())
