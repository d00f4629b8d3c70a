"""Embed any number of images into an index on disk: streamed, and resumable to the byte.

What is unfinished lies in NAME.partial/. Vectors, paths and pictures are appended there window by window; only then a
line of the log says so. Whoever goes on cuts the files back to the last line of the log. Windows start at fixed places
in the list of images, so that every image meets the same batch whether or not something was stopped in between.

A run as the target imports torch; an exported file does not.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from simclr_engine.data.archive import ArchiveSource
from simclr_engine.data.decode import EXTENSIONS, decode_image
from simclr_engine.data.folder import FolderSource
from simclr_engine.data.listing import arrange
from simclr_engine.data.pack import survey
from simclr_engine.data.sources import load_data, open_source, packed, source_names
from simclr_engine.errors import CheckFailed, DataError, PlatformError, UsageError
from simclr_engine.run import Run, write_text_atomic

from .index import IndexFiles, index_files, table_writer, write_manifest
from .metadata import INTERPOLATION, ModelMetadata
from .runtime import OnnxEncoder, available_threads

SPLITS = ("train", "test", "val", "unlabeled", "all")
WINDOW = 512  # images between two lines of the log; a run's encoder is hashed once for each
NEITHER = "name a directory that `pretrain` wrote, or a file that `export` wrote"

Vectors = NDArray[np.float32]
Images = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Embedder:
    """An encoder of either kind, as `embed`, `predict` and `serve` use it.

    Attributes:
        path: the run or the file.
        identity: sha256 that changes with the encoder: of the file, or of a run's weights and normalisation.
        image_size: side S of the images it takes.
        feature_dim: D.
        class_names: those its probe tells apart, in label order; those of its data where it has no probe.
        probe: in words, what its classes come from; "" where it has no probe.
        embed: uint8 `[N, S, S, 3]` to features float32 `[N, D]`.
        predict: the same images to probabilities float32 `[N, C]`; None without a probe.
        check: raises DataError, which names the expected shape, for an array that is no such images.
        about: an exported file's own words; None for a run.
    """

    path: Path
    identity: str
    image_size: int
    feature_dim: int
    class_names: tuple[str, ...]
    probe: str
    embed: Callable[[Images], Vectors]
    predict: Callable[[Images], Vectors] | None
    check: Callable[[object], None]
    about: ModelMetadata | None


def open_embedder(target: str | Path) -> Embedder:
    """The encoder of a run directory (imports torch) or of an .onnx file.

    Raises:
        UsageError: it is neither.
        DataError: it cannot be used.
    """
    path = Path(target)
    if path.is_dir():
        return _run_embedder(Run.open(path))
    if path.suffix.lower() != ".onnx" or not path.is_file():
        cause = "this is neither a run nor an .onnx file" if path.exists() else "there is no such run or file"
        raise UsageError(cause, saw=path, fix=NEITHER)
    encoder = OnnxEncoder(path, spin=True)
    probe = str(encoder.metadata.probe.get("id", "its own")) if encoder.has_probe else ""

    def predict(images: Images) -> Vectors:
        return encoder.predict(images)[0]

    return Embedder(
        path=path,
        identity=encoder.sha256,
        image_size=encoder.image_size,
        feature_dim=encoder.feature_dim,
        class_names=encoder.class_names,
        probe=probe,
        embed=encoder.embed,
        predict=predict if encoder.has_probe else None,
        check=encoder._check_images,
        about=encoder.metadata,
    )


def _run_embedder(run: Run) -> Embedder:
    from simclr_engine.evaluation.features import default_device, encoder_hash, extract_features

    from .probe import choose_probe, saved_probes

    encoder, augment = run.encoder(), run.recipe.augment
    weights = encoder_hash(encoder)
    width = int(encoder.feature_dim)  # type: ignore[arg-type]  # torch says: Tensor or Module
    saved = saved_probes(run.directory)
    chosen = choose_probe(run, saved[0][0], width, weights) if saved else None
    # What the check of an exported file looks at; a run takes the same images.
    shape = SimpleNamespace(image_size=run.image_size, metadata=SimpleNamespace(interpolation=INTERPOLATION))

    def embed(images: Images) -> Vectors:
        return extract_features(encoder, images, augment.mean, augment.std, device=default_device())

    def predict(images: Images) -> Vectors:
        assert chosen is not None
        return chosen.probabilities(embed(images))

    return Embedder(
        path=run.directory,
        identity=hashlib.sha256(f"{weights} mean {augment.mean} std {augment.std}".encode()).hexdigest(),
        image_size=run.image_size,
        feature_dim=width,
        class_names=chosen.class_names if chosen else tuple(run.environment["data"].get("class_names") or ()),
        probe=chosen.id if chosen else "",
        embed=embed,
        predict=predict if chosen else None,
        check=lambda images: OnnxEncoder._check_images(cast(OnnxEncoder, shape), images),
        about=None,
    )


@dataclass(frozen=True, eq=False)
class Pictures:
    """Images in a fixed order, decoded only when they are asked for.

    Attributes:
        paths: how each is named to people.
        classes: the class of each by name, "" for none.
        class_names: those of the source, in label order.
        pixels: uint8 `[S, S, 3]` of the image in a row; raises DataError where it cannot be read.
        refused: `(path, reason)` of what was not even listed.
        identity: changes when the images do.
    """

    paths: Sequence[str]
    classes: Sequence[str]
    class_names: tuple[str, ...]
    pixels: Callable[[int], Images]
    refused: tuple[tuple[str, str], ...]
    identity: str

    def __len__(self) -> int:
        return len(self.paths)


def gather(embedder: Embedder, sources: Sequence[str], split: str = "all", progress: bool = False) -> list[Pictures]:
    """The images of each source: an image file, a folder, an archive, a data set by name, or an .npy of images.

    Args:
        embedder: for what; images are brought to its size by `decode_image`'s rule, but those of an array must have it.
        sources: as the user named them.
        split: `all`, or one of a source that has splits; a source without any is `train`, as everywhere.
        progress: bars while archives are packed.

    Raises:
        DataError, UsageError: nothing there, no images, no such split; what `load_data` raises.
    """
    if not sources:
        raise UsageError("no images were named", fix="name image files, a folder, an archive or a data set")
    found, image_size = [], embedder.image_size
    for text in sources:
        path = Path(text).expanduser()
        if text in source_names():
            found += _stores(text, image_size, split, progress)
        elif text and path.is_dir():
            found.append(_folder(path, text, image_size, split))
        elif path.suffix.lower() in (".npy", *EXTENSIONS) and not path.exists():
            raise DataError("there is no such file", saw=text, fix="check the path")
        elif path.is_file() and path.suffix.lower() == ".npy":
            found.append(_array(path, text, embedder.check))
        elif isinstance(source := _open(text, path), ArchiveSource):
            found += _stores(text, image_size, split, progress, source)
        else:
            found.append(_single(path, text, image_size))
    return found


def _open(text: str, path: Path) -> object:
    """The archive of that name, or None for another file; what is not there is refused by `open_source`."""
    try:
        return open_source(text)
    except DataError:
        if path.is_file():
            return None
        raise


def _single(path: Path, text: str, size: int) -> Pictures:
    status = path.stat()
    identity = f"file {text} {status.st_size} {status.st_mtime_ns}"
    return Pictures([text], [""], (), lambda _: decode_image(path, size), (), identity)


def _folder(folder: Path, text: str, size: int, split: str) -> Pictures:
    """A folder's images; with `all` also those that lie beside its class folders, without a class."""
    source = FolderSource(folder, text)
    content = source.content()
    blobs = list(source.blobs(contents=False))
    refused = [(blob.path, blob.refused) for blob in blobs if blob.content is None]
    listed = [blob.path for blob in blobs if blob.content is not None]
    listing = arrange(listed)
    known: dict[str, str] = {}
    for name, part in listing.splits.items():
        if split in ("all", name) or (split, name) == ("train", "all"):
            labels = part.labels.tolist() if part.labels is not None else None
            names = [""] * len(part.paths) if labels is None else [listing.class_names[i] for i in labels]
            known |= dict(zip(part.paths, names, strict=True))
    if split == "all":
        known |= {path: "" for path in listed if path not in known}
    if not known:
        raise DataError(
            f"{text} has no split {split!r}", saw=f"splits {', '.join(listing.splits)}", fix="name one of them"
        )
    paths = sorted(known)
    return Pictures(
        [str(Path(text) / path) for path in paths],
        [known[path] for path in paths],
        listing.class_names,
        lambda row: decode_image(folder / paths[row], size),
        tuple((str(Path(text) / path), why) for path, why in refused),
        f"folder {text} {content} {split}",
    )


def _array(path: Path, text: str, check: Callable[[object], None]) -> Pictures:
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            "not a readable .npy array", saw=f"{text}: {error}", fix="write it with numpy.save, without objects"
        ) from error
    check(images)
    status = path.stat()
    identity = f"array {text} {status.st_size} {status.st_mtime_ns}"
    names = [f"{text}[{row}]" for row in range(len(images))]
    return Pictures(names, [""] * len(images), (), lambda row: np.asarray(images[row]), (), identity)


def _stores(text: str, size: int, split: str, progress: bool, archive: ArchiveSource | None = None) -> list[Pictures]:
    """The splits of an archive or a named data set, through the cache."""
    _, meta = packed(archive or open_source(text), size, progress)
    wanted = list(meta.splits) if split == "all" else [split]
    listing = survey(archive.blobs(contents=False, progress=progress), measure=False).listing if archive else None
    found: list[Pictures] = []
    for name in wanted:
        store = load_data(text, name, size, progress)
        actual = "all" if name == "train" and "all" in meta.splits else name
        lost = {path for path, _ in store.skipped}
        members = [p for p in listing.splits[actual].paths if p not in lost] if listing else []
        if len(members) != len(store):  # a data set by name has no paths
            members = [f"{actual}/{row}" for row in range(len(store))]
        labels = [""] * len(store) if store.labels is None else [store.class_names[i] for i in store.labels.tolist()]
        skipped = tuple((f"{text}/{path}", why) for path, why in store.skipped) if not found else ()
        images = store.images
        found.append(
            Pictures(
                [f"{text}/{member}" for member in members],
                labels,
                store.class_names,
                lambda row, images=images: np.asarray(images[row]),  # type: ignore[misc]
                skipped,
                f"store {text} {name} {store.fingerprint}",
            )
        )
    return found


@dataclass(frozen=True)
class Window:
    """Decoded images uint8 `[n, S, S, 3]` of one stretch of the list, with paths and classes, and what was left out."""

    start: int
    stop: int
    images: Images
    paths: list[str]
    classes: list[str]
    skipped: list[tuple[str, str]]


def windows(parts: Sequence[Pictures], image_size: int, start: int = 0, length: int = WINDOW) -> Iterator[Window]:
    """The images from `start` on, decoded in threads while the caller works on the window before: two in memory."""
    ends = np.cumsum([len(part) for part in parts])
    total = int(ends[-1]) if len(ends) else 0

    def decode(at: int) -> tuple[str, str, Images | str]:
        k = int(np.searchsorted(ends, at, side="right"))
        part, row = parts[k], at - int(ends[k] - len(parts[k]))
        try:
            return part.paths[row], part.classes[row], part.pixels(row)
        except DataError as error:
            return part.paths[row], part.classes[row], error.cause

    with ThreadPoolExecutor(min(8, available_threads()), thread_name_prefix="decode") as pool:

        def begin(at: int) -> list[Future[tuple[str, str, Images | str]]]:
            return [pool.submit(decode, i) for i in range(at, min(at + length, total))]

        waiting = begin(start)
        try:
            for at in range(start, total, length):
                done = [future.result() for future in waiting]
                waiting = begin(at + length)
                yield _window(at, at + len(done), done, image_size)
        finally:
            for future in waiting:
                future.cancel()


def _window(start: int, stop: int, done: list[tuple[str, str, Images | str]], size: int) -> Window:
    good = [(path, name, pixels) for path, name, pixels in done if not isinstance(pixels, str)]
    images = np.empty((len(good), size, size, 3), dtype=np.uint8)
    for row, (_, _, pixels) in zip(images, good, strict=True):
        row[:] = pixels
    skipped = [(path, pixels) for path, _, pixels in done if isinstance(pixels, str)]
    return Window(start, stop, images, [g[0] for g in good], [g[1] for g in good], skipped)


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
    """

    out: Path
    csv: Path
    images: int
    dim: int
    skipped: tuple[tuple[str, str], ...]
    seconds: float
    embedded: int

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
        parts: the images, from `gather`.
        out: NAME.npy.
        pictures: also keep the pixels, for galleries of neighbours.
        overwrite: replace an index of something else, finished or not.
        window: images between two lines of the log.
        advance: called with the number of images done, those of an earlier call first.

    Raises:
        DataError: no images, none readable.
        UsageError: `out` holds something else, or another process is writing it.
        PlatformError: it cannot be written.
    """
    began = time.perf_counter()
    files = index_files(out)
    total = sum(len(part) for part in parts)
    if not total:
        raise DataError("there are no images to embed", saw="0 images", fix="name at least one image")
    plan = _plan(embedder, parts, pictures, window)
    state = _published_plan(files)
    unfinished = _unfinished_plan(files)
    if not overwrite and unfinished is None and state == plan["digest"]:
        shutil.rmtree(files.partial, ignore_errors=True)  # what a kill between publishing and tidying up left
        advance(total)
        return _result(files, began, 0)
    if not overwrite and unfinished is not None and unfinished != plan["digest"]:
        raise _taken("an index of something else was begun here and not finished", files.partial)
    if not overwrite and unfinished is None and (state is not None or files.vectors.exists()):
        raise _taken("there is an index of something else here already", files.vectors)
    try:
        with _Growing.opened(files, plan, embedder.feature_dim, embedder.image_size, total, pictures) as growing:
            advance(growing.next)
            before = growing.kept
            if not growing.publishing:
                _fill(growing, embedder, parts, window, advance)
            kept = growing.kept
            growing.publish(embedder, parts)
    except OSError as error:
        raise PlatformError(
            "cannot write the index",
            saw=f"{error.filename or files.vectors}: {error.strerror or error}",
            fix="free space or choose another --out; the same command goes on where this one stopped",
        ) from error
    return _result(files, began, kept - before)


def _fill(
    growing: _Growing, embedder: Embedder, parts: Sequence[Pictures], window: int, advance: Callable[[int], None]
) -> None:
    for part in windows(parts, embedder.image_size, growing.next, window):
        vectors = embedder.embed(part.images) if len(part.images) else np.empty((0, embedder.feature_dim), np.float32)
        broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(broken):
            raise CheckFailed(
                "a feature is not finite", saw=part.paths[int(broken[0])], fix="train or export the encoder again"
            )
        growing.append(part, vectors)
        advance(part.stop - part.start)
    if not growing.kept:
        first = growing.first_skipped()
        growing.discard()
        raise DataError(
            "none of the images can be read",
            saw=f"{first[0]}: {first[1]}" if first else None,
            fix="open one in an image viewer; if it shows, save it again as PNG or JPEG",
        )


def _plan(embedder: Embedder, parts: Sequence[Pictures], pictures: bool, window: int) -> dict[str, Any]:
    """What decides every byte of the result, and its digest."""
    facts = [embedder.identity, embedder.image_size, window, pictures, [part.identity for part in parts]]
    return {"digest": hashlib.sha256(json.dumps(facts).encode(errors="surrogateescape")).hexdigest()}


def _published_plan(files: IndexFiles) -> str | None:
    """The plan of the finished index here; "" for one that cannot say."""
    try:
        return str(json.loads(files.manifest.read_text("utf-8")).get("plan", ""))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, AttributeError):
        return ""


def _unfinished_plan(files: IndexFiles) -> str | None:
    try:
        return str(json.loads((files.partial / "plan.json").read_text("utf-8"))["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _taken(cause: str, saw: Path) -> UsageError:
    return UsageError(cause, saw=saw, fix="choose another --out, or replace it with --overwrite")


def _result(files: IndexFiles, began: float, embedded: int) -> EmbedResult:
    about = json.loads(files.manifest.read_text("utf-8"))
    skipped = tuple((str(path), str(why)) for path, why in about.get("skipped", ()))
    return EmbedResult(
        files.vectors, files.table, about["images"], about["dim"], skipped, time.perf_counter() - began, embedded
    )


class _Growing:
    """The files of an unfinished index, in NAME.partial/: appended to, then logged, then moved to their places."""

    def __init__(self, files: IndexFiles, dim: int, size: int, total: int, pictures: bool) -> None:
        self.files, self._dim, self._size, self._total, self._pictures = files, dim, size, total, pictures
        self.next = self.kept = 0
        self.publishing = False
        self._open_files: dict[str, IO[bytes]] = {}
        self._starts: dict[str, int] = {}

    @classmethod
    @contextmanager
    def opened(
        cls, files: IndexFiles, plan: dict[str, Any], dim: int, size: int, total: int, pictures: bool
    ) -> Iterator[_Growing]:
        """Goes on with the unfinished index of this plan, or begins it."""
        self = cls(files, dim, size, total, pictures)
        resume = _unfinished_plan(files) == plan["digest"]
        if not resume:
            if files.partial.exists():
                shutil.rmtree(files.partial)
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
                more={"plan": _unfinished_plan(self.files), "skipped": skipped},
                target=self._at("manifest"),
                table=self._at("table"),
            )
        targets = {"vectors": self.files.vectors, "table": self.files.table, "images": self.files.images}
        if self._at("manifest").exists():
            self.files.manifest.unlink(missing_ok=True)  # while the parts change, there is no index
            if not self._pictures:
                self.files.images.unlink(missing_ok=True)
            for name, target in (targets | {"manifest": self.files.manifest}).items():
                if self._at(name).exists():
                    self._at(name).replace(target)
        shutil.rmtree(self.files.partial)

    def discard(self) -> None:
        """Gives the unfinished index up."""
        shutil.rmtree(self.files.partial, ignore_errors=True)

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
