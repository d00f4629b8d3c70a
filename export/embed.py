"""Embed any number of images into an index on disk: streamed, and resumable to the byte.

Windows of images start at fixed places in their list, so that every image meets the same batch whether or not
something was stopped in between. Each window that is done is a file in NAME.partial/, which is there when it is whole;
at the end they are joined, and what they give is moved to its place, the manifest last. A run as the target imports
torch; an exported file does not.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simclr_engine.boundary import raise_fault
from simclr_engine.bounds import LARGEST_DOCUMENT
from simclr_engine.data.stream import WINDOW, Pictures, Window, windows
from simclr_engine.errors import DataError, PlatformError, UsageError
from simclr_engine.files import Folder, read_arrays, synchronise, write_atomic
from simclr_engine.inputs import read_text
from simclr_engine.locks import HELD, lock
from simclr_engine.sealing import AlteredError, read_json, sealed_json
from simclr_engine.terminal import say

from .embedder import Embedder, Vectors, naming
from .index import (
    FORMAT,
    EmbeddingIndex,
    IndexFiles,
    check_replaceable,
    index_files,
    manifest_of,
    table_writer,
    taken,
    write_manifest,
)
from .runtime import require_finite

MOVE = "move it away, or choose another --out"


@dataclass(frozen=True)
class EmbedResult:
    """What was written.

    Attributes:
        out: the vectors; the other files of the index lie beside it.
        csv: row, path and class of each.
        images: vectors in it.
        dim: their width.
        skipped: `(path, reason)` of what could not be read.
        seconds: this call took.
        embedded: images that this call embedded; fewer than `images` where it went on with an unfinished index.
        unfinished: how far the run of the encoder had come, if that has not ended, else "".
    """

    out: Path
    csv: Path
    images: int
    dim: int
    skipped: tuple[tuple[str, str], ...]
    seconds: float
    embedded: int
    unfinished: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {
            "out": str(self.out),
            "csv": str(self.csv),
            "images": self.images,
            "dim": self.dim,
            "skipped": [{"path": path, "reason": reason} for path, reason in self.skipped],
            "seconds": round(self.seconds, 3),
            "embedded": self.embedded,
            "images_per_second": round(self.embedded / self.seconds, 1) if self.embedded else None,
            **({"unfinished": self.unfinished} if self.unfinished else {}),
        }


def embed_to_index(
    embedder: Embedder,
    parts: Sequence[Pictures],
    out: str | Path,
    *,
    pictures: bool = False,
    overwrite: bool = False,
    window: int = WINDOW,
    advance: Callable[[int], None] = lambda _: None,
) -> EmbedResult:
    """Embeds all images into the index at `out`, going on with what an earlier call with the same arguments left.

    Args:
        embedder: the encoder.
        parts: the images, from `find_images`.
        out: NAME.npy.
        pictures: also keep the pixels, for galleries of neighbours.
        overwrite: replace an index of something else, finished or not, and any other file of the name `out`; the files
            beside it are replaced only where they are an index's.
        window: images that are embedded between two writes.
        advance: called with the number of images done, those of an earlier call first.

    Raises:
        DataError: no images, none readable.
        UsageError: `out`, or a file beside it that the index would replace, is something else, or another process is
            writing it.
        PlatformError: it cannot be written.
    """
    began = time.perf_counter()
    files = index_files(out)
    total = sum(len(part) for part in parts)
    if not total:
        raise DataError("there are no images to embed", saw="0 images", fix="name at least one image")
    plan = _plan(embedder, parts, pictures, window)
    finished, begun = _finished_plan(files), _begun_plan(files)
    if not overwrite and finished == plan and begun in (None, plan):
        EmbeddingIndex.load(files.vectors)  # an error says what is damaged
        _tidy_up(files)
        advance(total)
        return _result(files, began, 0)
    if not overwrite and begun not in (None, plan):
        raise taken("an index of something else was begun here and not finished", files.partial)
    if not overwrite and begun is None and (finished is not None or files.vectors.exists()):
        raise taken("there is an index of something else here already", files.vectors)
    unfinished = UnfinishedIndex(files, embedder, pictures, overwrite)
    unfinished.check_targets()
    try:
        if begun != plan:
            unfinished.check_space(total)
        with unfinished.opened(plan):
            before = unfinished.kept
            if not unfinished.is_joined:
                _fill(unfinished, parts, window, advance)
                unfinished.join(parts, plan)
            else:
                advance(total)
            unfinished.publish()
    except OSError as error:
        raise PlatformError(
            "cannot write the index",
            saw=f"{error.filename or files.vectors}: {error.strerror or error}",
            fix="free space or choose another --out; run the same command again to continue",
        ) from error
    return _result(files, began, unfinished.kept - before)


def _fill(unfinished: UnfinishedIndex, parts: Sequence[Pictures], length: int, advance: Callable[[int], None]) -> None:
    """Embeds what is missing, window by window.

    Raises:
        DataError: no image could be read, or a feature is not finite.
    """
    embedder = unfinished.embedder
    start = min(unfinished.windows * length, sum(len(part) for part in parts))
    advance(start)
    for window in windows(parts, embedder.image_size, start, length):
        images = window.images
        with naming(window.paths):
            vectors = embedder.embed(images) if len(images) else np.empty((0, embedder.feature_dim), np.float32)
            require_finite(vectors, embedder.path)
        unfinished.append(window, vectors)
        advance(window.stop - window.start)
    if not unfinished.kept:
        first = next(unfinished.skipped(), None)
        _clear(unfinished.files)
        raise DataError(
            "none of the images can be read",
            saw=f"{first[0]}: {first[1]}" if first else None,
            fix="open one in an image viewer; if it shows, save it again as PNG or JPEG",
        )


class UnfinishedIndex:
    """The files of an index in NAME.partial/.

    Attributes:
        windows: how many are done.
        kept: images in them that could be read.
    """

    def __init__(self, files: IndexFiles, embedder: Embedder, pictures: bool, overwrite: bool) -> None:
        self.files, self.embedder, self._overwrite = files, embedder, overwrite
        self.windows = self.kept = 0
        size = embedder.image_size
        self._arrays: dict[str, tuple[str, tuple[int, ...]]] = {"vectors": ("<f4", (embedder.feature_dim,))}
        self._targets = {"vectors.npy": files.vectors, "table.csv": files.table}
        if pictures:
            self._arrays["images"] = ("|u1", (size, size, 3))
            self._targets["images.npy"] = files.images
        self._targets["manifest.json"] = files.manifest  # moved last: without it nothing is read

    @contextmanager
    def opened(self, plan: str) -> Iterator[None]:
        """Locks NAME.partial/ and finds the windows of this plan that are done; what another plan left there goes.

        Raises:
            UsageError: another process is writing it, or something else lies there.
        """
        _names_in(self.files.partial)
        self.files.partial.mkdir(parents=True, exist_ok=True)
        with _locked(self.files.partial):
            if _begun_plan(self.files) != plan:
                _clear(self.files, but=HELD)
                write_atomic(self._at("plan.json"), sealed_json({"digest": plan}))
            self.windows = next(number for number in count() if not self._is_whole(number))
            if self.windows:
                self.kept = int(self._read(self.windows - 1)["kept"])
            yield

    def append(self, window: Window, vectors: Vectors) -> None:
        """One more window, and the number of images that there are with it."""
        text = io.StringIO()
        rows = enumerate(zip(window.paths, window.classes, strict=True), self.kept)
        csv.writer(text, lineterminator="\n").writerows((row, *about) for row, about in rows)
        arrays: dict[str, Any] = {
            "vectors": np.ascontiguousarray(vectors, dtype=np.float32),
            "images": window.images,
            "table": _bytes(text.getvalue().encode(errors="surrogateescape")),
            "skipped": _bytes(json.dumps(window.skipped).encode()),
            "kept": np.int64(self.kept + len(vectors)),
        }
        if "images" not in self._arrays:
            del arrays["images"]
        with Folder.open(self.files.partial).sealing(self._window(self.windows).name) as of_window:
            np.savez(of_window, **arrays)
        self.windows, self.kept = self.windows + 1, self.kept + len(vectors)

    def skipped(self) -> Iterator[tuple[str, str]]:
        """`(path, reason)` of what could not be read."""
        for number in range(self.windows):
            yield from ((path, why) for path, why in json.loads(self._read(number)["skipped"].tobytes()))

    @property
    def is_joined(self) -> bool:
        """Whether all that is left is to move the files to their places."""
        return self._at("manifest.json").exists()

    def join(self, parts: Sequence[Pictures], plan: str) -> None:
        """Writes the files of the index, still in NAME.partial/; the manifest last."""
        with ExitStack() as stack:
            arrays = {name: stack.enter_context(self._at(f"{name}.npy").open("wb")) for name in self._arrays}
            for name, (kind, shape) in self._arrays.items():
                header = {"descr": kind, "fortran_order": False, "shape": (self.kept, *shape)}
                np.lib.format.write_array_header_1_0(arrays[name], header)
            head = io.StringIO()
            table_writer(head)
            table = stack.enter_context(self._at("table.csv").open("wb"))
            table.write(head.getvalue().encode())
            for number in range(self.windows):
                of_window = self._read(number)
                for name, file in arrays.items():
                    file.write(of_window[name].data)
                table.write(of_window["table"].data)
            for file in (*arrays.values(), table):
                file.flush()
                os.fsync(file.fileno())
        names = tuple(dict.fromkeys(name for part in parts for name in part.class_names))
        parts_of = {"table": self._at("table.csv")} | {name: self._at(f"{name}.npy") for name in self._arrays}
        about = manifest_of(parts_of, self.embedder.identity, names, self.kept, self.embedder.feature_dim)
        skipped = [*(refusal for part in parts for refusal in part.refused), *self.skipped()]
        about |= {"unfinished": self.embedder.unfinished} if self.embedder.unfinished else {}
        write_manifest(self._at("manifest.json"), about | {"plan": plan, "skipped": skipped})

    def publish(self) -> None:
        """Moves the files to their places and removes NAME.partial/. While the files change there is no index: the
        manifest of the one that is replaced goes first, to where `check_replaceable` finds it after a kill."""
        self.check_targets()
        if self.files.manifest.exists():
            self.files.manifest.replace(self.files.replaced)
        if "images" not in self._arrays:
            self.files.images.unlink(missing_ok=True)
        for name, target in self._targets.items():
            if self._at(name).exists():
                self._at(name).replace(target)
                synchronise(target.parent)  # the manifest's name is on the disk after the others
        _clear(self.files)

    def check_targets(self) -> None:
        """`check_replaceable`, but for what was moved to its place before a kill."""
        moved = [path for name, path in self._targets.items() if self.is_joined and not self._at(name).exists()]
        check_replaceable(self.files, self._overwrite, moved)

    def check_space(self, total: int) -> None:
        """Refuses to begin where there is no room for the windows and for what they are joined to; OSError."""
        row = sum(np.dtype(kind).itemsize * math.prod(shape) for kind, shape in self._arrays.values())
        folder = self.files.vectors.parent
        folder.mkdir(parents=True, exist_ok=True)
        if 2 * total * row > (free := shutil.disk_usage(folder).free):
            needed = f"{2 * total * row:,} bytes are needed, {free:,} are free"
            raise OSError(errno.ENOSPC, needed, str(self.files.vectors))

    def _at(self, name: str) -> Path:
        return self.files.partial / name

    def _window(self, number: int) -> Path:
        return self._at(f"window-{number:07}.npz")

    def _is_whole(self, number: int) -> bool:
        """Whether a window is there; one that is damaged is embedded again, with a note."""
        known = self._window(number).exists()
        return known and read_arrays(self._window(number), "it is embedded again", "kept", needed=True) is not None

    def _read(self, number: int) -> dict[str, np.ndarray]:
        with np.load(self._window(number), allow_pickle=False) as of_window:
            return dict(of_window)


def _bytes(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, dtype=np.uint8)


# What may lie in NAME.partial/, also by a version that kept a log, and what a kill leaves while one of them is written.
_OURS = re.compile(
    r"lock|(vectors|images)\.npy|(table|skipped)\.csv|log\.jsonl|replaced\.json"
    r"|(plan|manifest)\.json|window-\d+\.npz|\.(plan\.json|manifest\.json|window-\d+\.npz)\.\d+\.tmp"
)


def _names_in(folder: Path) -> list[str]:
    """Names of the files in NAME.partial/; none where there is no such folder.

    Raises:
        UsageError: it is no folder, or holds something else.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError("the folder for the unfinished index cannot be made: its name is taken", saw=folder, fix=MOVE)
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    strange = [n for n in names if not _OURS.fullmatch(n) or (folder / n).is_symlink() or not (folder / n).is_file()]
    if strange:
        cause = "the folder for the unfinished index holds a file that is not its own"
        raise UsageError(cause, saw=folder / strange[0], fix=MOVE)
    return names


def _clear(files: IndexFiles, but: str = "") -> None:
    """Removes the files in NAME.partial/ one by one, and then the folder; with `but`, all except that one."""
    for name in sorted(_names_in(files.partial), key=HELD.__eq__):  # the lock last
        if name != but:
            (files.partial / name).unlink()
    if not but and files.partial.exists():
        files.partial.rmdir()


def _tidy_up(files: IndexFiles) -> None:
    """Removes what a kill at the end of publishing left, unless another process writes there or it is not ours."""
    with suppress(UsageError, OSError):
        _names_in(files.partial)
        if files.partial.exists():
            with _locked(files.partial):
                _clear(files)


def _plan(embedder: Embedder, parts: Sequence[Pictures], pictures: bool, window: int) -> str:
    """A digest of what decides every byte of the result."""
    facts = [embedder.identity, embedder.image_size, window, pictures, [part.identity for part in parts]]
    return hashlib.sha256(json.dumps(facts).encode(errors="surrogateescape")).hexdigest()


def _begun_plan(files: IndexFiles) -> str | None:
    """The plan of the unfinished index here; None for none."""
    try:
        return str(read_json(files.partial / "plan.json", MOVE)["digest"])
    except (OSError, ValueError, KeyError, AlteredError) as error:
        raise_fault(error)
        return None


def _finished_plan(files: IndexFiles) -> str | None:
    """The plan of the finished index here; "" for one that cannot say."""
    try:
        return str(read_json(files.manifest, MOVE, ours=FORMAT).get("plan", ""))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, AlteredError) as error:
        raise_fault(error)
        return ""


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps a second process away while this one writes; the lock goes with the process, however it ends."""
    with (folder / HELD).open("w") as file:
        try:
            if not lock(file, folder / HELD):
                file.close()  # Windows removes no open file
                say(f"note: there are no locks in {folder}: a second process here would not be noticed")
        except BlockingIOError:
            fix = "wait for it, or choose another --out"
            raise UsageError("another process is writing this index", saw=folder, fix=fix) from None
        yield


def _result(files: IndexFiles, began: float, embedded: int) -> EmbedResult:
    about = json.loads(read_text(files.manifest, LARGEST_DOCUMENT))
    skipped = tuple((str(path), str(why)) for path, why in about.get("skipped", ()))
    return EmbedResult(
        files.vectors,
        files.table,
        about["images"],
        about["dim"],
        skipped,
        time.perf_counter() - began,
        embedded,
        str(about.get("unfinished", "")),
    )
