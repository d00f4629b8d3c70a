"""What is fed with the changed files: every reader of the product, as its callers use it, and what must hold then."""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from simclr_engine.errors import EngineError, plain

from .seeds import PART

LONGEST_MESSAGE = 3_000  # characters; what a terminal can show


class Broken(AssertionError):
    """A reader took an input, but what it made of it does not hold together."""


@dataclass(frozen=True)
class Outcome:
    """What became of an input: `accepted` or the kind of error; `failure` says what is wrong, with the place."""

    kind: str
    failure: str = ""
    message: int = 0


class Room:
    """A folder for one worker: only the input and the cache may ever be found in it."""

    def __init__(self, root: Path) -> None:
        self.root, self.input, self.cache = root, root / "in" / "side", root / "cache"
        self.outside = root / "in" / "outside"
        for folder in (self.input, self.cache, root / "home", root / "tmp", root / "cwd"):
            folder.mkdir(parents=True)
        self.cwd = root / "cwd"
        (root / "in" / "guard.png").write_bytes(b"guard")
        os.environ |= {"SIMCLR_ENGINE_CACHE": str(self.cache), "HOME": str(root / "home"), "TMPDIR": str(root / "tmp")}
        os.chdir(self.cwd)
        self._guard = (root / "in" / "guard.png").stat()
        self._settled: set[str] = set()

    def settle(self) -> None:
        """What lies here now is no input's doing: libraries make folders of their own when they are imported."""
        self._settled = set(self.strangers(set()))

    def strangers(self, expected: set[str]) -> list[str]:
        """Files that an input has brought about, besides those in the cache."""
        found = [name for folder in ("home", "tmp", "cwd") for name in _names(self.root / folder)]
        found += _names(self.root / "in") - {"side", "guard.png"}
        found += _names(self.root) - {"in", "cache", "home", "tmp", "cwd"}
        found += _names(self.input) - expected
        guard = (self.root / "in" / "guard.png").stat()
        if (guard.st_size, guard.st_mtime_ns) != (self._guard.st_size, self._guard.st_mtime_ns):
            found.append("guard.png changed")
        return [name for name in found if name not in self._settled]


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def run_input(reader: str, raw: bytes, suffix: str, room: Room) -> Outcome:
    """Feeds one file to a reader and judges what came of it."""
    path = room.input / f"input{suffix}"
    path.write_bytes(raw)
    try:
        outcome = _outcome(READERS[reader], path, room)
    finally:
        expected = _names(room.input) if reader in OWN_FOLDERS else {path.name}
        strangers = room.strangers(expected)
        for left in room.input.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    if strangers:
        return Outcome(outcome.kind, f"written outside: {strangers}", outcome.message)
    return outcome


OWN_FOLDERS = ("checkpoint", "onnx", "result", "index")  # the reader below writes files beside the input itself


def _outcome(reader: Callable[[Path, Room], None], path: Path, room: Room) -> Outcome:
    try:
        reader(path, room)
    except EngineError as error:
        text = str(error)
        kind = type(error).__name__
        if any(plain(line) != line for line in text.split("\n")):
            return Outcome(kind, f"control characters in a message at {_place(error)}: {text[:200]!r}", len(text))
        if len(text) > LONGEST_MESSAGE:
            return Outcome(kind, f"message too long at {_place(error)}: {len(text):,} characters", len(text))
        return Outcome(kind, message=len(text))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return Outcome(type(error).__name__, f"{type(error).__name__} at {_place(error)}: {str(error)[:200]}")
    return Outcome("accepted")


def _place(error: BaseException) -> str:
    """The last line of the product on the way to the error."""
    rows = traceback.extract_tb(error.__traceback__)
    ours = [row for row in rows if "/tests/" not in row.filename and "site-packages" not in row.filename]
    ours = [row for row in ours if any(f"/{name}/" in row.filename for name in ("engine", "export", "kernels"))]
    row = (ours or rows)[-1]
    return f"{Path(row.filename).name}:{row.lineno} {row.name}"


def read_archive(path: Path, room: Room) -> None:
    """The listing with the images' dimensions; of some, everything: packed into the cache and read from there."""
    from simclr_engine.data import load_data
    from simclr_engine.data.archive import ArchiveSource
    from simclr_engine.data.pack import survey

    source = ArchiveSource(path, path.name)
    surveyed = survey(source.blobs(), measure=True)
    for split in surveyed.listing.splits.values():
        if any(".." in name.split("/") or name.startswith("/") for name in split.paths):
            raise Broken(f"a path leads out: {split.paths}")
    if path.stat().st_size % 16 == 0:
        try:
            store = load_data(path, size=8)
            if store.images.shape != (len(store), 8, 8, 3):
                raise Broken(f"images {store.images.shape}")
        finally:
            for kept in room.cache.rglob("*"):
                if kept.is_symlink() or room.cache not in kept.resolve().parents:
                    raise Broken(f"{kept} leads out of the cache")
            for left in room.cache.iterdir():
                shutil.rmtree(left)


def read_image(path: Path, room: Room) -> None:
    """Dimensions and pixels, from bytes and from the file."""
    from simclr_engine.data.decode import decode_image, image_dimensions

    with suppress(EngineError):
        width, height = image_dimensions(path)
        if width < 1 or height < 1:
            raise Broken(f"{width} × {height}")
    pixels = decode_image(path.read_bytes(), 8)
    if pixels.shape != (8, 8, 3) or pixels.dtype != "uint8" or not pixels.flags.writeable:
        raise Broken(f"{pixels.dtype} {pixels.shape}")


def read_recipe(path: Path, room: Room) -> None:
    """A recipe that is taken can be written down, read again, and asked for what a run asks it."""
    from simclr_engine.recipe import Recipe

    if path.suffix == ".set":
        pairs = (line.partition("=")[::2] for line in path.read_text("utf-8", "replace").split("\n"))
        recipe = Recipe.load("demo", {key.strip(): value.strip() for key, value in pairs})
    elif path.suffix == ".run":
        recipe = Recipe.from_toml(path.read_text("utf-8", "replace"))
    else:
        recipe = Recipe.load(path)
    text = recipe.to_toml()
    if Recipe.from_toml(text).to_toml() != text:
        raise Broken("the recipe comes back as another")
    recipe.hash(), recipe.learning_rate(), recipe.variants(), recipe.differences(recipe)


def read_table(path: Path, room: Room) -> None:
    """Classes of files, looked up for some, or a list of files; each normal and named once."""
    from simclr_engine.data.tables import read_labels, read_list

    names = read_list(path) if path.suffix == ".list" else tuple((table := read_labels(path)).rows)
    if len(set(names)) < len(names) or any("\0" in name or name != name.strip() for name in names):
        raise Broken(f"names {names[:5]}")
    if path.suffix != ".list" and not set(table.of((*names, "cat/1.png")).values()) <= set(table.rows.values()):
        raise Broken("a class that no row has")


def read_checkpoint(path: Path, room: Room) -> None:
    """As a checkpoint of ours, as the one of a run, as weights from elsewhere, as a probe."""
    from simclr_engine.checkpoint import load_checkpoint, load_encoder
    from simclr_engine.evaluation.linear import LinearProbe
    from simclr_engine.weights import load_foreign

    with suppress(EngineError):
        load_foreign(path)
    if path.suffix == ".safetensors":
        with suppress(EngineError):
            LinearProbe.load(path)
        load_encoder(path)
    elif ".foreign" in path.suffixes:
        load_foreign(path)
    else:
        load_checkpoint(path)
        _write_run(path, room)
        load_encoder(room.input / "run")


def _write_run(path: Path, room: Room) -> None:
    folder = room.input / "run"
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(path, folder / "checkpoints" / "last.pt")


def read_onnx(path: Path, room: Room) -> None:
    """A file that is taken holds all of its weights, by onnx's own reading, and says of itself what can be used."""
    from simclr_engine.export.metadata import ModelMetadata, read_model, sidecar_path

    model, _, checksum = path.read_bytes().partition(PART)
    if ".summed" in path.suffixes:
        path.write_bytes(model)
        sidecar_path(path).write_bytes(checksum)
    metadata = read_model(path).metadata
    metadata.difference()
    if ModelMetadata.from_properties(metadata.to_properties(), "again").to_properties() != metadata.to_properties():
        raise Broken("the metadata come back as others")
    _require_no_weights_elsewhere(path.read_bytes())
    _run(path)


def _run(path: Path) -> None:
    """What is accepted is loaded and run: it may be wrong, but takes no more than any encoder."""
    import numpy as np

    from simclr_engine.export.runtime import OnnxEncoder

    with suppress(EngineError):
        encoder = OnnxEncoder(path, threads=1)
        side = encoder.image_size
        with suppress(Exception):  # shapes that do not fit at run time are onnxruntime's to refuse
            encoder.embed(np.zeros((1, side, side, 3), np.uint8))


def _require_no_weights_elsewhere(data: bytes) -> None:
    import onnx
    from google.protobuf.message import DecodeError
    from onnx.external_data_helper import _get_all_tensors, uses_external_data

    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError:
        return  # onnxruntime would not open it either
    elsewhere = [
        tensor.name for tensor in _get_all_tensors(model) if uses_external_data(tensor) or tensor.external_data
    ]
    if elsewhere:
        raise Broken(f"weights elsewhere: {elsewhere}")


def read_index(path: Path, room: Room) -> None:
    """An index that is taken can be searched."""
    from simclr_engine.export.index import EmbeddingIndex

    for part, name in zip([*path.read_bytes().split(PART), b"", b""], ("v.npy", "v.json", "v.csv"), strict=False):
        (room.input / name).write_bytes(part)
    index = EmbeddingIndex.load(room.input / "v.npy")
    if len(index):
        index.search(index.vectors[:1], 1)
        index.class_of(0), index.paths[0]


def read_result(path: Path, room: Room) -> None:
    """An evaluation's files, and an entry of the cache."""
    READ_RESULT[path.suffix](path, room)


def _read_evaluation(path: Path, room: Room) -> None:
    from simclr_engine.evaluation.records import load_results, result_id

    for result in load_results(room.input).values():
        result.to_json(), result_id(result), result.fold_spread, result.class_names


def _read_predictions(path: Path, room: Room) -> None:
    from simclr_engine.evaluation.records import load_predictions

    found = load_predictions(path.rename(room.input / "r.npz").parent, "r")
    if found is not None:
        found.images[:1], found.truth[found.rows], found.predicted[found.rows], found.confidence[found.rows]
    _say(found is not None)


def _read_neighbours(path: Path, room: Room) -> None:
    from simclr_engine.evaluation.records import load_neighbours

    found = load_neighbours(path.rename(room.input / "r.npz").parent, "r")
    if found is not None:
        [found.class_names[row] for row in (*found.labels.flat, *found.query_labels)]
    _say(found is not None)


def _read_embeddings(path: Path, room: Room) -> None:
    from simclr_engine.evaluation.records import load_embeddings

    features, _, labels = path.read_bytes().partition(PART)
    (room.input / "e.npy").write_bytes(features)
    (room.input / "e_labels.npz").write_bytes(labels)
    found = load_embeddings(room.input, "e")
    if found is not None:
        [found.class_names[label] for label in found.labels]
    _say(found is not None)


def _read_cache(path: Path, room: Room) -> None:
    from simclr_engine.data import cache

    meta, images, labels = [*path.read_bytes().split(PART), b"", b""][:3]
    (room.input / "meta.json").write_bytes(meta)
    (room.input / "images-all.npy").write_bytes(images)
    (room.input / "labels-all.npy").write_bytes(labels)
    try:
        said = cache.read_meta(room.input)
        assert said is not None
        for split in said.splits:
            store = cache.read_split(room.input, said, split, "s")
            store.limit(1)
    except cache.DamagedError as error:
        raise NotTaken(str(error)) from error


class NotTaken(EngineError):
    """A file of the product's own that it would make again: without an error for its user."""


def _say(taken: bool) -> None:
    if not taken:
        raise NotTaken("not whole")


READ_RESULT: dict[str, Callable[[Path, Room], None]] = {
    ".json": _read_evaluation,
    ".predictions": _read_predictions,
    ".neighbours": _read_neighbours,
    ".embeddings": _read_embeddings,
    ".cache": _read_cache,
}
READERS: dict[str, Callable[[Path, Room], None]] = {
    "archive": read_archive,
    "image": read_image,
    "recipe": read_recipe,
    "checkpoint": read_checkpoint,
    "onnx": read_onnx,
    "result": read_result,
    "table": read_table,
    "index": read_index,
}
