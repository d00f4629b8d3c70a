"""The files of an unfinished index: appended to, logged, and moved to their places when all is there.

What is unfinished lies in NAME.partial/. Vectors, paths and pictures are appended there window by window; only then a
line of the log says so. Whoever goes on cuts the files back to the last line of the log. Imports no torch.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from simclr_engine.errors import UsageError
from simclr_engine.run import write_text_atomic

from .embedder import Embedder, Vectors
from .index import IndexFiles, check_replaceable, table_writer, write_manifest
from .pictures import Pictures, Window


class GrowingIndex:
    """The files of an unfinished index, in NAME.partial/: appended to, then logged, then moved to their places."""

    def __init__(
        self, files: IndexFiles, dim: int, size: int, total: int, pictures: bool, overwrite: bool = False
    ) -> None:
        self.files, self._dim, self._size, self._total, self._pictures = files, dim, size, total, pictures
        self._overwrite = overwrite
        self.next = self.kept = 0
        self.publishing = False
        self._open_files: dict[str, IO[bytes]] = {}
        self._starts: dict[str, int] = {}

    @classmethod
    @contextmanager
    def opened(
        cls,
        files: IndexFiles,
        plan: dict[str, Any],
        dim: int,
        size: int,
        total: int,
        pictures: bool,
        overwrite: bool = False,
    ) -> Iterator[GrowingIndex]:
        """Goes on with the unfinished index of this plan, or begins it.

        Raises:
            UsageError: another process is writing it, or what is no index of ours would be replaced (see
                `check_replaceable`).
        """
        self = cls(files, dim, size, total, pictures, overwrite)
        resume = unfinished_plan(files) == plan["digest"]
        self._check_targets()
        if not resume:
            remove_partial(files)
            row = 4 * dim + (3 * size * size if pictures else 0)
            files.vectors.parent.mkdir(parents=True, exist_ok=True)
            if total * row > (free := shutil.disk_usage(files.vectors.parent).free):
                raise OSError(28, f"{total * row:,} bytes are needed, {free:,} are free", str(files.vectors))
            files.partial.mkdir()
        with _locked(files.partial):
            if not resume:
                write_text_atomic(files.partial / "plan.json", json.dumps(plan) + "\n")
            self.publishing = bool(resume and self._row("log") and not self._at("vectors").exists())
            try:
                if self.publishing:
                    self.next = total
                else:
                    self._begin()
                yield self
            finally:
                for file in self._open_files.values():
                    with suppress(OSError):
                        file.close()

    def append(self, part: Window, vectors: Vectors) -> None:
        """One window: its rows, then the line of the log that makes them count."""
        self._open_files["vectors"].write(np.ascontiguousarray(vectors).data)
        if self._pictures:
            self._open_files["images"].write(part.images.data)
        rows = ((self.kept + i, *row) for i, row in enumerate(zip(part.paths, part.classes, strict=True)))
        self._open_files["table"].write(_csv(rows))
        self._open_files["skipped"].write(_csv(part.skipped))
        self.next, self.kept = part.stop, self.kept + len(vectors)
        for name in self._data:
            self._open_files[name].flush()
            os.fsync(self._open_files[name].fileno())
        sizes = {name: self._open_files[name].tell() for name in self._data}
        log = self._open_files["log"]
        log.write(json.dumps({"next": self.next, "kept": self.kept, "sizes": sizes}).encode() + b"\n")
        log.flush()
        os.fsync(log.fileno())

    def publish(self, embedder: Embedder, parts: Sequence[Pictures]) -> None:
        """Headers for the rows there are, the manifest, then each file to its place, the manifest last."""
        if not self.publishing:
            for name in ("vectors", *(["images"] if self._pictures else [])):
                if self._header(name, self.kept) != self._starts[name]:
                    raise AssertionError("numpy pads its headers so that a count may change")
            for file in self._open_files.values():
                file.close()
            skipped = [*(one for part in parts for one in part.refused), *self._skipped()]
            names = tuple(dict.fromkeys(name for part in parts for name in part.class_names))
            write_manifest(
                self.files,
                embedder.identity,
                names,
                self.kept,
                self._dim,
                self._pictures,
                more={"plan": unfinished_plan(self.files), "skipped": skipped},
                target=self._at("manifest"),
                table=self._at("table"),
            )
        if self._at("manifest").exists():
            self._check_targets()
            if self.files.manifest.exists():
                self.files.manifest.replace(self.files.replaced)  # while the parts change, there is no index
            if not self._pictures:
                self.files.images.unlink(missing_ok=True)
            for name, target in self._targets.items():
                if self._at(name).exists():
                    self._at(name).replace(target)
        remove_partial(self.files)

    @property
    def _targets(self) -> dict[str, Path]:
        """Where each file goes in the end; the manifest last."""
        files = self.files
        pictures = {"images": files.images} if self._pictures else {}
        return {"vectors": files.vectors, "table": files.table, **pictures, "manifest": files.manifest}

    def _check_targets(self) -> None:
        """`check_replaceable`, but for what was moved to its place before a kill."""
        publishing = self._at("manifest").exists()
        moved = [target for name, target in self._targets.items() if publishing and not self._at(name).exists()]
        check_replaceable(self.files, self._overwrite, moved)

    def first_skipped(self) -> tuple[str, str] | None:
        """The first image that could not be read, and why."""
        return next(iter(self._skipped()), None)

    @property
    def _data(self) -> tuple[str, ...]:
        return ("vectors", "table", "skipped", *(["images"] if self._pictures else []))

    def _at(self, name: str) -> Path:
        endings = {"vectors": "npy", "images": "npy", "log": "jsonl", "manifest": "json"}
        return self.files.partial / f"{name}.{endings.get(name, 'csv')}"

    def _begin(self) -> None:
        """Opens the files and cuts each back to the last line of the log that all of them have reached."""
        for name in (*self._data, "log"):
            self._open_files[name] = self._at(name).open("r+b" if self._at(name).exists() else "w+b")
        if last := self._row("log"):
            self.next, self.kept = last["next"], last["kept"]
        for name in self._data:
            file = self._open_files[name]
            if name in ("vectors", "images"):
                self._starts[name] = self._header(name, self._total)
            if last:
                file.truncate(last["sizes"][name])
            else:
                if name == "table":
                    header = io.StringIO()
                    table_writer(header)
                    file.truncate(0)
                    file.write(header.getvalue().encode())
                file.truncate(file.tell())
            file.seek(0, os.SEEK_END)
        log = self._open_files["log"]
        log.truncate(last["end"] if last else 0)
        log.seek(0, os.SEEK_END)

    def _row(self, name: str) -> dict[str, Any]:
        """The last whole line of the log whose rows are all in the files; `end` is where it ends. Empty for none."""
        try:
            data = self._at(name).read_bytes()
        except FileNotFoundError:
            return {}
        ends = [i + 1 for i, byte in enumerate(data) if byte == 10]
        for k in reversed(range(len(ends))):
            try:
                row = dict(json.loads(data[ends[k - 1] if k else 0 : ends[k]]))
            except ValueError:
                continue
            there = {one: self._at(one) for one in row["sizes"]}
            moved = not there["vectors"].exists()
            if moved or all(path.is_file() and path.stat().st_size >= row["sizes"][n] for n, path in there.items()):
                return row | {"end": ends[k]}
        return {}

    def _header(self, name: str, count: int) -> int:
        """Writes the .npy header for `count` rows; returns its length."""
        shape = (count, self._dim) if name == "vectors" else (count, self._size, self._size, 3)
        about = {"descr": "<f4" if name == "vectors" else "|u1", "fortran_order": False, "shape": shape}
        file = self._open_files[name]
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, about)
        return file.tell()

    def _skipped(self) -> list[tuple[str, str]]:
        text = self._at("skipped").read_bytes().decode(errors="surrogateescape")
        return [(row[0], row[1]) for row in csv.reader(io.StringIO(text, newline=""))]


def remove_partial(files: IndexFiles) -> None:
    """Removes the folder of an unfinished index: the files that `GrowingIndex` makes there, one by one, and no others.

    Raises:
        UsageError: something else lies there; nothing was removed.
    """
    if not occupied_folder(files.partial):
        return
    names = [path.name for path in files.partial.iterdir()]
    strange = sorted(name for name in names if not _PARTS.fullmatch(name))
    if strange:
        raise UsageError(
            "the folder for the unfinished index holds a file that is not its own",
            saw=files.partial / strange[0],
            fix="move it away, or choose another --out",
        )
    for name in names:
        (files.partial / name).unlink()
    files.partial.rmdir()


def occupied_folder(path: Path) -> bool:
    """Whether a folder is at `path`; UsageError for a file or a link."""
    if path.is_dir() and not path.is_symlink():
        return True
    if path.is_symlink() or path.exists():
        fix = "move it away, or choose another --out"
        raise UsageError("the folder for the unfinished index cannot be made: its name is taken", saw=path, fix=fix)
    return False


# Its files, and those that a kill leaves while they are written.
_PARTS = re.compile(
    r"lock|(vectors|images)\.npy|(table|skipped)\.csv|log\.jsonl|(plan|manifest|replaced)\.json"
    r"|\.(plan|manifest)\.json\.\d+\.tmp"
)


def unfinished_plan(files: IndexFiles) -> str | None:
    try:
        return str(json.loads((files.partial / "plan.json").read_text("utf-8"))["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _csv(rows: Any) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(errors="surrogateescape")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps a second process away while this one writes; the lock goes with the process, however it ends."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows: there the open files themselves cannot be replaced
        yield
        return
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                "another process is writing this index", saw=folder, fix="wait for it, or choose another --out"
            ) from None
        yield
