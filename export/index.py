"""EmbeddingIndex: vectors on disk with their paths and classes, and exact search for the nearest by cosine.

NAME.npy          float32 [N, D], as the encoder gave them; memory-mapped, so that opening a large one costs no memory
NAME.csv          row, path, class (empty where it has none)
NAME.images.npy   uint8 [N, S, S, 3], the pictures themselves, where they were asked for
NAME.json         which encoder made them, class names, what was left out; written last: without it nothing is read

Imports no torch.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simclr_engine.boundary import raise_fault
from simclr_engine.bounds import LARGEST_INDEX
from simclr_engine.errors import DataError, UsageError
from simclr_engine.files import write_atomic
from simclr_engine.inputs import open_regular, read_bytes
from simclr_engine.outputs import occupied
from simclr_engine.sealing import NewerError, read_json, sealed_json

FORMAT = 1
COLUMNS = ("row", "path", "class")
NO_CLASS = -1
ITSELF = 1 - 1e-6  # cosine from which on two vectors are of one picture
CHUNK_BYTES = 64 << 20  # of vectors or similarities held at once
EMBED_AGAIN = "write it again with `simclr-engine embed --overwrite`"


@dataclass(frozen=True)
class IndexFiles:
    """Where the four files of an index lie; `vectors` is the one that is named."""

    vectors: Path

    def _beside(self, ending: str) -> Path:
        return self.vectors.with_name(self.vectors.name.removesuffix(".npy") + ending)

    @property
    def table(self) -> Path:
        """Row, path and class of every vector."""
        return self._beside(".csv")

    @property
    def images(self) -> Path:
        """The pictures; need not be there."""
        return self._beside(".images.npy")

    @property
    def manifest(self) -> Path:
        """What makes the other three an index."""
        return self._beside(".json")

    @property
    def partial(self) -> Path:
        """The folder in which an unfinished index grows."""
        return self._beside(".partial")

    @property
    def replaced(self) -> Path:
        """Where the manifest of an index lies while its files are replaced one by one."""
        return self.partial / "replaced.json"


@dataclass(frozen=True, eq=False)
class EmbeddingIndex:
    """Vectors that can be searched.

    Attributes:
        vectors: float32 `[N, D]`, any length; possibly a read-only memory map.
        paths: where each image came from.
        labels: int64 `[N]`, indices into `class_names`, `NO_CLASS` where an image has none.
        class_names: in label order; empty without classes.
        images: uint8 `[N, S, S, 3]`, or None.
        encoder: sha256 of the encoder that made the vectors (64 hex digits); "" where it is not known.
    """

    vectors: NDArray[np.float32]
    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...] = ()
    images: NDArray[np.uint8] | None = None
    encoder: str = ""
    _inverse: NDArray[np.float32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check(self)
        object.__setattr__(self, "_inverse", _inverse_lengths(self.vectors))

    @classmethod
    def build(
        cls,
        vectors: NDArray[np.float32],
        paths: Sequence[str],
        classes: Sequence[str] | None = None,
        class_names: Sequence[str] = (),
        images: NDArray[np.uint8] | None = None,
        encoder: str = "",
    ) -> EmbeddingIndex:
        """An index over arrays at hand.

        Args:
            vectors: float32 `[N, D]`.
            paths: N of them.
            classes: the class of each by name, "" for none; None where no image has one.
            class_names: their order; sorted where it is not given.
            images: uint8 `[N, S, S, 3]`.
            encoder: sha256 of what made the vectors.

        Raises:
            DataError: the parts do not fit each other, or a vector is not finite.
        """
        given = classes if classes is not None else [""] * len(paths)
        names = tuple(class_names) or tuple(sorted({name for name in given if name}))
        return cls(vectors, tuple(paths), _labels(given, names, "the index"), names, images, encoder)

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def dim(self) -> int:
        """Width D of the vectors."""
        return int(self.vectors.shape[1])

    def class_of(self, row: int) -> str:
        """The class of a row by name; "" where it has none."""
        label = int(self.labels[row])
        return "" if label == NO_CLASS else self.class_names[label]

    def save(self, path: str | Path) -> Path:
        """Writes the files at and beside `path` (NAME.npy), which is returned; an index that is there is replaced.

        Raises:
            UsageError: one of them would replace what is no file of an index.
            PlatformError: they cannot be written.
        """
        files = index_files(path)
        check_replaceable(files)
        with suppress(OSError):  # from here on the old one is none; a failure shows in the writes below
            files.manifest.unlink(missing_ok=True)
            files.images.unlink(missing_ok=True)
        write_atomic(files.vectors, _npy(self.vectors))
        if self.images is not None:
            write_atomic(files.images, _npy(self.images))
        text = io.StringIO()
        writer = table_writer(text)
        writer.writerows((row, path, self.class_of(row)) for row, path in enumerate(self.paths))
        write_atomic(files.table, text.getvalue().encode(errors="surrogateescape"))
        parts = {"table": files.table, "vectors": files.vectors}
        parts |= {"images": files.images} if self.images is not None else {}
        write_manifest(files.manifest, manifest_of(parts, self.encoder, self.class_names, len(self), self.dim))
        return files.vectors

    @classmethod
    def load(cls, path: str | Path, encoder: str | None = None, dim: int | None = None) -> EmbeddingIndex:
        """The index at `path` (NAME.npy), its vectors and pictures memory-mapped, compared with their hashes.

        Args:
            path: the vectors' file.
            encoder: sha256 of the encoder whose vectors will be looked up; the index must be its own.
            dim: width of those vectors.

        Raises:
            DataError: not there, unfinished, damaged, of other files, or made by another encoder.
        """
        files = index_files(path)
        manifest = read_manifest(files)
        if encoder is not None and manifest["encoder"] != encoder:
            raise DataError(
                "the index was made with another encoder: its vectors cannot be compared with this one's",
                saw=f"{files.vectors}: encoder {str(manifest['encoder'])[:16]}…, this one is {encoder[:16]}…",
                fix=f"{EMBED_AGAIN} and this encoder",
            )
        vectors = _mapped(files.vectors)
        if vectors.dtype != np.float32 or vectors.ndim != 2:
            raise DataError(
                "the vectors of an index are float32 [N, D]",
                saw=f"{files.vectors}: {vectors.dtype} {list(vectors.shape)}",
                fix=EMBED_AGAIN,
            )
        if dim is not None and vectors.shape[1] != dim:
            raise DataError(
                "the index is of another width than the encoder's features",
                saw=f"{files.vectors}: {vectors.shape[1]}, the encoder gives {dim}",
                fix=EMBED_AGAIN,
            )
        names = tuple(manifest["class_names"])
        paths, classes = _read_table(files.table, manifest["table_sha256"])
        images = _mapped(files.images) if manifest["pictures"] else None
        if len(vectors) != manifest["images"]:
            raise _misfit(f"{files.vectors}: {len(vectors):,} rows, {files.manifest.name} says {manifest['images']:,}")
        labels = _labels(classes, names, str(files.table))
        index = cls(vectors, paths, labels, names, images, manifest["encoder"])
        check_hashes(files, manifest)
        return index

    def search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k rows with the highest cosine to each query, best first; exact; equal cosines keep the index's order.

        Args:
            queries: float32 `[Q, D]`, any length.
            k: at least 1; an index with fewer rows gives all of them.

        Returns:
            Cosines float32 `[Q, min(k, N)]`, 0 for a vector of length 0, and rows int64 of the same shape.

        Raises:
            DataError: queries of another width or type, or not finite.
            ValueError: k below 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, saw {k}")
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise DataError(
                f"queries must be float32 [Q, {self.dim}], as the index is",
                saw=f"{queries.dtype} {list(queries.shape)}",
                fix="embed them with the encoder that made the index",
            )
        k = min(k, len(self))
        unit = queries.astype(np.float32) * _inverse_lengths(queries)[:, None]
        cosines = np.empty((len(unit), k), dtype=np.float32)
        rows = np.empty((len(unit), k), dtype=np.int64)
        chunk = max(1, CHUNK_BYTES // (4 * len(self)))
        for start in range(0, len(unit), chunk):
            # One query is a matrix-vector product, as fast as the vectors come from memory; several share that way.
            similarity = unit[start : start + chunk] @ self.vectors.T
            similarity *= self._inverse
            for i, row in enumerate(similarity, start):
                least = np.partition(row, len(row) - k)[len(row) - k]
                at = np.flatnonzero(row >= least)  # all that tie for the last place, so that the order can decide
                best = at[np.argsort(-row[at], kind="stable")[:k]]
                cosines[i], rows[i] = row[best], best
        return np.clip(cosines, -1.0, 1.0), rows


def without_itself(
    cosines: NDArray[np.float32], rows: NDArray[np.int64], k: int, itself: Sequence[bool] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64], int | None]:
    """The k nearest rows of one query, without the query itself where the index holds it.

    Args:
        cosines, rows: float32 and int64 `[k + 1]`, from `EmbeddingIndex.search`.
        k: how many to keep.
        itself: whether each row may be the query, by its name or its pixels; None where neither is known. The first
            of these that has the query's features is left out, so that copies under other names stay neighbours.

    Returns:
        Cosines and rows `[≤ k]`, and the row that was left out; None where the query is not in the index.
    """
    same = cosines >= ITSELF
    if itself is not None:
        same &= np.array(itself)
    if not same.any():
        return cosines[:k], rows[:k], None
    at = int(same.argmax())
    return np.delete(cosines, at)[:k], np.delete(rows, at)[:k], int(rows[at])


def index_files(path: str | Path) -> IndexFiles:
    """The files of the index whose vectors are at `path`; UsageError unless that ends in .npy."""
    path = Path(path)
    if path.suffix != ".npy" or path.name.endswith(".images.npy") or path.stem in ("", ".npy"):
        raise UsageError("an index is named by its vectors, NAME.npy", saw=path, fix="such as encoder.index.npy")
    return IndexFiles(path)


def default_index(model: Path) -> Path:
    """Where the index of an encoder is looked for: `encoder.index.npy` beside `encoder.onnx`, `index.npy` in a run."""
    return model / "index.npy" if model.is_dir() else model.with_name(model.stem + ".index.npy")


def check_replaceable(files: IndexFiles, overwrite: bool = False, ours: Collection[Path] = ()) -> None:
    """Checks that an index replaces only the files of an index: each must be the one that the manifest describes.

    Args:
        files: what will be written.
        overwrite: allows any regular file at NAME.npy, which the user named; not at the names beside it.
        ours: files that the caller wrote itself, without a manifest yet.

    Raises:
        UsageError: names the first.
    """
    about = _manifest_of(files.manifest) or _manifest_of(files.replaced)
    for path in (files.vectors, files.table, files.images, files.manifest):
        if path in ours or not occupied(path) or (about is not None and _is_told_of(files, path, about)):
            continue
        if path != files.vectors:
            fix = "move it away, or choose another --out"
            raise UsageError("the index would replace a file that is not its own", saw=path, fix=fix)
        if not overwrite:
            raise taken("there is a file here that is no index", path)


def taken(cause: str, saw: Path) -> UsageError:
    """The error for a name that is taken by something else."""
    return UsageError(cause, saw=saw, fix="choose another --out, or replace it with --overwrite")


def _manifest_of(path: Path) -> dict[str, Any] | None:
    try:
        return _read_manifest(path)
    except NewerError:
        raise
    except (DataError, OSError, ValueError, KeyError, TypeError):
        return None


def _is_told_of(files: IndexFiles, path: Path, about: Mapping[str, Any]) -> bool:
    if path == files.manifest:
        return True
    if path == files.table:
        return _sha256(path) == str(about["table_sha256"])
    try:
        array = _mapped(path)
    except DataError:
        return False
    if path == files.vectors:
        return array.dtype == np.float32 and array.shape == (about["images"], about["dim"])
    return about["pictures"] and array.dtype == np.uint8 and array.ndim == 4 and len(array) == about["images"]


def table_writer(file: Any) -> Any:
    """A CSV writer that has written the column names; the rows are (row, path, class)."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    return writer


def manifest_of(
    parts: Mapping[str, Path], encoder: str, class_names: Sequence[str], images: int, dim: int
) -> dict[str, Any]:
    """What NAME.json says of an index whose `table`, `vectors` and, if there are any, `images` are in these files."""
    return {
        "format": FORMAT,
        "encoder": encoder,
        "images": images,
        "dim": dim,
        "pictures": "images" in parts,
        "class_names": list(class_names),
        **{f"{name}_sha256": _sha256(path) for name, path in parts.items()},
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_hashes(files: IndexFiles, manifest: Mapping[str, Any]) -> None:
    """Compares vectors and pictures with their hashes, which an earlier version did not write; DataError names one."""
    for name, path in {"vectors": files.vectors, "images": files.images}.items():
        if f"{name}_sha256" in manifest and _sha256(path) != manifest[f"{name}_sha256"]:
            raise _misfit(f"{path} was altered, or is of another index")


def write_manifest(path: Path, about: Mapping[str, Any]) -> None:
    """Writes NAME.json, the last of the files; PlatformError where it cannot."""
    write_atomic(path, sealed_json(about))


def read_manifest(files: IndexFiles) -> dict[str, Any]:
    """NAME.json.

    Raises:
        DataError: there is no index, it is unfinished, of a newer version, or not one.
    """
    if not files.vectors.exists() and not files.partial.exists():
        raise DataError("there is no index here", saw=files.vectors, fix="make one with `simclr-engine embed`")
    try:
        return _read_manifest(files.manifest)
    except FileNotFoundError as error:
        unfinished = files.partial.exists()
        raise DataError(
            "the index is not finished"
            if unfinished
            else "these vectors are not an index: the file next to them is missing",
            saw=files.partial if unfinished else files.manifest,
            fix="run the same `simclr-engine embed` command again to continue" if unfinished else EMBED_AGAIN,
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError("the index cannot be read", saw=f"{files.manifest}: {error}", fix=EMBED_AGAIN) from error


_TYPES = {"encoder": str, "images": int, "dim": int, "pictures": bool, "class_names": list, "table_sha256": str}


def _read_manifest(path: Path) -> dict[str, Any]:
    about = read_json(path, EMBED_AGAIN, ours=FORMAT)
    if {k: type(about[k]) for k in _TYPES} != _TYPES or any(type(n) is not str for n in about["class_names"]):
        raise ValueError("a field is of the wrong type")
    return about


def _read_table(path: Path, sha256: str) -> tuple[tuple[str, ...], list[str]]:
    """Paths and classes, row by row; the file must be the very one that was written with the vectors."""
    try:
        data = read_bytes(path, LARGEST_INDEX)
    except OSError as error:
        raise DataError("the index cannot be read", saw=f"{path}: {error.strerror}", fix=EMBED_AGAIN) from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise _misfit(f"{path} was altered, or is of another index")
    rows = list(csv.reader(io.StringIO(data.decode(errors="surrogateescape"), newline="")))
    if not rows or tuple(rows[0]) != COLUMNS or any(len(row) != len(COLUMNS) for row in rows):
        raise _misfit(f"{path} has other columns than {', '.join(COLUMNS)}")
    return tuple(row[1] for row in rows[1:]), [row[2] for row in rows[1:]]


def _labels(classes: Sequence[str], names: Sequence[str], where: str) -> NDArray[np.int64]:
    number = {name: i for i, name in enumerate(names)} | {"": NO_CLASS}
    unknown = sorted({name for name in classes if name not in number})
    if unknown:
        raise _misfit(f"{where}: class {unknown[0]!r} is not among {', '.join(names) or 'none'}")
    return np.array([number[name] for name in classes], dtype=np.int64)


def _check(index: EmbeddingIndex) -> None:
    """Refuses parts that do not fit each other."""
    vectors, images, rows = index.vectors, index.images, len(index.vectors)
    if vectors.dtype != np.float32 or vectors.ndim != 2:
        raise DataError(
            "the vectors of an index are float32 [N, D]",
            saw=f"{vectors.dtype} {list(vectors.shape)}",
            fix="pass what `OnnxEncoder.embed` gives",
        )
    if rows == 0:
        raise DataError("an index needs at least one vector", saw="0 images", fix="embed at least one image")
    if len(index.paths) != rows or index.labels.shape != (rows,):
        raise _misfit(f"{rows:,} vectors, {len(index.paths):,} paths, {len(index.labels):,} classes")
    if images is not None and (
        images.dtype != np.uint8 or images.ndim != 4 or len(images) != rows or images.shape[3] != 3
    ):
        raise _misfit(f"{rows:,} vectors, pictures {images.dtype} {list(images.shape)}")


def _misfit(saw: str) -> DataError:
    return DataError("the parts of the index do not fit each other", saw=saw, fix=EMBED_AGAIN)


def _inverse_lengths(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / length of each row, 0 for a row of length 0, float32 `[N]`; DataError names the first that is not finite."""
    inverse = np.empty(len(vectors), dtype=np.float32)
    step = max(1, CHUNK_BYTES // max(1, 4 * vectors.shape[1]))
    for start in range(0, len(vectors), step):
        part = np.asarray(vectors[start : start + step], dtype=np.float32)
        squares = np.einsum("nd,nd->n", part, part, dtype=np.float32)
        # Squares overflow where the vector is finite, and vanish where it is not 0: those few again, in float64.
        odd = ~np.isfinite(squares) | (squares < 1e-30)
        lengths = np.sqrt(squares, dtype=np.float64)
        lengths[odd] = np.linalg.norm(part[odd].astype(np.float64), axis=1)
        broken = np.flatnonzero(~np.isfinite(lengths))
        if len(broken):
            raise DataError(
                "a vector is not finite", saw=f"row {start + int(broken[0]):,}", fix=f"check the encoder; {EMBED_AGAIN}"
            )
        positive = lengths > 1e-12  # as the evaluation's kNN has it
        inverse[start : start + len(part)] = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=positive)
    return inverse


def _mapped(path: Path) -> NDArray[Any]:
    try:
        open_regular(path).close()
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy's readers raise a dozen kinds for damaged files; all mean the same here
        raise_fault(error)
        raise DataError("the index cannot be read", saw=f"{path}: {str(error)[:200]}", fix=EMBED_AGAIN) from error
    return array


def _npy(array: NDArray[Any]) -> bytes:
    """The array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
