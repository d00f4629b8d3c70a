"""The metadata in `encoder.onnx`: what is written into the file, and how a file is judged before it is used.

ONNX keeps metadata as text by key. Each of ours is a JSON value under `simclr_engine.FIELD`; beside them stand the
`Image.*` keys that the ONNX specification defines for image inputs, and `names`, the class names by label as several
tools read them.

The light install has no `onnx`, and a file must be judged before onnxruntime opens it: its bytes are read with the
standard library alone. An ONNX file is one protobuf message, so a walk over its fields is enough:
https://protobuf.dev/programming-guides/encoding/ for the encoding,
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto for the field numbers. Imports neither torch nor onnx.
"""

from __future__ import annotations

import hashlib
import json
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from simclr_engine.bounds import LARGEST_MARK, LARGEST_MODEL, LARGEST_PROPERTY, MAX_SIZE, MOST_FEATURES
from simclr_engine.data.levels import are_levels
from simclr_engine.errors import DataError, PlatformError, UsageError
from simclr_engine.inputs import UnfitError, read_bytes

from .acceptance import AcceptedGraph, ElsewhereError, RefusedError
from .protobuf import Field, MalformedError, fields_of

SCHEMA = 2
LIMIT = 1e-4  # what a feature of an fp32 file may differ by from PyTorch's, absolute
PRECISIONS = ("fp32", "fp16", "int8")
ADDED_LATER: Mapping[str, tuple[int, Any]] = {"precision": (2, "fp32"), "probe": (2, {})}  # schema, value before it
# Fields that are written only where they say something, and their values where they are not.
OPTIONAL: Mapping[str, Any] = {"unfinished": "", "levels": ()}
PREFIX = "simclr_engine."
NAMES = "names"  # class names by label, where tools of other makers look for them
DIGEST = PREFIX + "content_sha256"
# https://github.com/onnx/onnx/blob/main/docs/MetadataProps.md
IMAGE_PROPERTIES = {
    "Image.BitmapPixelFormat": "Rgb8",
    "Image.ColorSpaceGamma": "SRGB",
    "Image.NominalPixelRange": "NominalRange_0_255",
}
INTERPOLATION = "bilinear, antialiased, centre crop"  # what `data.decode.decode_image` does to images of another size
IR_VERSION, GRAPH, OPSET_IMPORT, METADATA = 1, 7, 8, 14  # fields of ModelProto

EXPORT_AGAIN = "export it again: simclr-engine export FILE.onnx --run RUN"
FETCH_AGAIN = "copy or download it again, or export it again from its run"


@dataclass(frozen=True)
class ModelMetadata:
    """What the file says of itself.

    Attributes:
        schema: version of this list; a reader refuses a newer one.
        project_version: version of simclr-engine that wrote the file.
        architecture: `resnet18`, `resnet34` or `resnet50`.
        stem: `small` or `imagenet`.
        feature_dim: D, width of the output `features` float32 `[batch, D]`.
        image_size: S in pixels; the input `images` is uint8 `[batch, S, S, 3]`.
        mean, std: per RGB channel, in units of pixel / 255; applied inside the graph.
        interpolation: how images of another size were brought to S.
        class_names: of the probe, in label order, where there is one; else of the data it was trained on, empty where
            that had no labels.
        data_fingerprint: sha256 of the training images (`ImageStore.fingerprint`).
        recipe: name of the training recipe.
        recipe_hash: sha256 of the resolved recipe.
        parity: difference to PyTorch as bounds, each rounded up to a power of ten, so that a second export gives the
            same bytes: `max_abs`, `max_relative`, `min_cosine`; then the number of `images` and the `batches`. With a
            probe also `max_probability`; of an int8 or fp16 file also what its gate found (see `parity.py`).
        precision: of the convolutions: `fp32`, `fp16` or `int8` (since schema 2; earlier files are fp32).
        unfinished: how far the run had come, `46 of 380 steps`, if it had not ended; the file says nothing of it if
            it had.
        probe: of a file with the outputs `probabilities` and `label`: `id`, `data`, `accuracy`, `train_images`,
            `test_images`, `class_names`, and `data_fingerprint` if known; empty without (since schema 2).
        levels: the values of 16-bit gray images that became 0 and 255; absent for all of 0 to 65,535.
    """

    schema: int
    project_version: str
    architecture: str
    stem: str
    feature_dim: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    class_names: tuple[str, ...]
    data_fingerprint: str
    recipe: str
    recipe_hash: str
    parity: Mapping[str, Any]
    precision: str = "fp32"
    probe: Mapping[str, Any] = field(default_factory=dict)
    unfinished: str = ""
    levels: tuple[int, ...] = ()

    def to_properties(self) -> dict[str, str]:
        """Key and text of every property but the digest, in a fixed order."""
        ours = {f.name: getattr(self, f.name) for f in fields(self)}
        ours = {name: value for name, value in ours.items() if OPTIONAL.get(name) != value}
        by_label = {str(label): name for label, name in enumerate(self.class_names)}
        names = {NAMES: _json(by_label, sort=False)} if by_label else {}
        return {PREFIX + k: _json(v) for k, v in ours.items()} | names | IMAGE_PROPERTIES

    @classmethod
    def from_properties(cls, properties: Mapping[str, str], where: str) -> ModelMetadata:
        """The metadata of a file; `where` names it in errors.

        Raises:
            DataError: not ours, of a newer schema, or a field that is missing or cannot be.
        """
        if PREFIX + "schema" not in properties:
            raise DataError("the ONNX file was not written by simclr-engine", saw=where, fix=EXPORT_AGAIN)
        values: dict[str, Any] = {}
        hints = typing.get_type_hints(cls)
        for each in fields(cls):
            since, before = ADDED_LATER.get(each.name, (1, None))
            if values.get("schema", SCHEMA) < since:
                values[each.name] = before
                continue
            if each.name in OPTIONAL and PREFIX + each.name not in properties:
                values[each.name] = OPTIONAL[each.name]
                continue
            values[each.name] = _read_field(each.name, hints[each.name], properties, where)
            if each.name == "schema" and values["schema"] < 1:
                raise _field_error(where, PREFIX + "schema", values["schema"], f"1 to {SCHEMA}")
            if each.name == "schema" and values["schema"] > SCHEMA:
                raise DataError(
                    "the ONNX file was written by a newer simclr-engine",
                    saw=f"{where}: metadata schema {values['schema']}; this version reads up to {SCHEMA}",
                    fix="update simclr-engine",
                )
        for key, expected in IMAGE_PROPERTIES.items():
            if properties.get(key) != expected:
                raise _field_error(where, key, properties.get(key), expected)
        if values["precision"] not in PRECISIONS:
            raise _field_error(where, PREFIX + "precision", values["precision"], " or ".join(PRECISIONS))
        for name, most in (("image_size", MAX_SIZE), ("feature_dim", MOST_FEATURES)):
            if not 1 <= values[name] <= most:
                raise _field_error(where, PREFIX + name, values[name], f"1 to {most:,}")
        if values["levels"] and not are_levels(values["levels"]):
            raise _field_error(where, f"{PREFIX}levels", values["levels"], "[low, high]")
        for name in ("max_abs", "min_cosine", "images"):  # every file has them, and sentences are made of them
            if not _is_number(values["parity"].get(name)):
                raise _field_error(where, f"{PREFIX}parity", f"{name} {values['parity'].get(name)}", "a number")
        for name, value in values["parity"].items():
            if not _is_number(value) and not (isinstance(value, list) and all(map(_is_number, value))):
                raise _field_error(where, f"{PREFIX}parity", f"{name[:80]} {value}", "numbers")
        metadata = cls(**values)
        if metadata.probe and metadata.probe.get("class_names") != list(metadata.class_names):
            raise _field_error(where, PREFIX + "probe", metadata.probe.get("class_names"), list(metadata.class_names))
        return metadata

    def difference(self) -> str:
        """How far the features may lie from PyTorch's, in one sentence."""
        p = self.parity
        return (
            f"features differ from PyTorch's by at most {p['max_abs']:.0e} (cosine ≥ {p['min_cosine']:.9g}), "
            f"measured at export on {p['images']} images"
        )


@dataclass(frozen=True)
class ModelFile:
    """A file that was read and judged: `data` are the very bytes that the digest was computed over."""

    path: Path
    data: bytes
    sha256: str
    metadata: ModelMetadata

    @cached_property
    def graph(self) -> AcceptedGraph:
        """What running it takes; RefusedError or MalformedError where it may not be run."""
        return AcceptedGraph(self.data, self.metadata.image_size)


def _json(value: Any, sort: bool = True) -> str:
    """JSON with letters as they are, but `\\udce9` for halves of surrogate pairs: ONNX holds UTF-8 alone."""
    return (
        json.dumps(value, ensure_ascii=False, sort_keys=sort, allow_nan=False)
        .encode(errors="backslashreplace")
        .decode()
    )


def read_model(path: str | Path, sha256: str | None = None) -> ModelFile:
    """Reads `path` and refuses what is not a whole, unaltered, self-contained file of ours.

    The digest in the metadata covers everything else in the file, weights, graph and metadata; the sidecar
    `FILE.sha256`, where there is one, covers all of it. Both find accidents, not forgery: whoever changes the file can
    compute them anew. `sha256`, which came to the caller by another way, finds forgery too.

    Raises:
        DataError: absent, not of `sha256`, no ONNX, cut short, not ours, newer, altered, or with weights elsewhere.
        PlatformError: no permission to read it.
        UsageError: `sha256` is not 64 hexadecimal digits.
    """
    path = Path(path)
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise UsageError("a sha256 has 64 hexadecimal digits", saw=sha256, fix="as `sha256sum FILE.onnx` prints it")
    data = _read_bytes(path)
    actual = hashlib.sha256(data).hexdigest()
    if sha256 is not None and actual != sha256.lower():
        raise DataError(
            "the ONNX file is not the one that was asked for",
            saw=f"{path}: sha256 {actual}, asked for {sha256.lower()}",
            fix="fetch the file again from whom you trust; the metadata of this one may say anything",
        )
    try:
        content = scan(data, without=DIGEST)
    except MalformedError as error:
        raise _damaged(path, data, error) from error
    metadata = ModelMetadata.from_properties(content.properties, str(path))
    file = ModelFile(path, data, actual, metadata)
    refused = _refusal(file)
    stated = content.properties.get(DIGEST, "")
    if stated != json.dumps(content.digest):
        raise DataError(
            "the ONNX file was altered after its export",
            saw=f"{path}: content sha256 {content.digest[:16]}…, metadata says {stated[1:17] or 'nothing'}…",
            fix=FETCH_AGAIN,
        )
    if refused is not None:
        raise refused
    _check_sidecar(path, actual)
    return file


def _refusal(file: ModelFile) -> DataError | None:
    """The error for what onnxruntime must not open (see `acceptance`), where it is no damage."""
    try:
        file.graph.fitting(1)
    except MalformedError as error:
        raise _damaged(file.path, file.data, error) from error
    except ElsewhereError as error:
        raise DataError(
            "the ONNX file keeps weights in other files, which is refused",
            saw=f"{file.path}: {error}",
            fix="use a file that simclr-engine exported: it holds all of its weights",
        ) from error
    except RefusedError as error:
        return unneeded(file.path, error)
    return None


def unneeded(path: Path, error: RefusedError) -> DataError:
    """The error for a file that is whole, and asks for what is refused."""
    return DataError("the ONNX file holds what no encoder needs", saw=f"{path}: {error}", fix=EXPORT_AGAIN)


def _damaged(path: Path, data: bytes, error: MalformedError) -> DataError:
    whole = data[:1] == b"\x08"  # every ONNX writer begins with ir_version
    cause = "the ONNX file is truncated or damaged" if whole else "this is not an ONNX file"
    return DataError(cause, saw=f"{path}, {len(data):,} bytes: {error}", fix=FETCH_AGAIN if whole else EXPORT_AGAIN)


def read_metadata(path: str | Path) -> ModelMetadata:
    """The metadata of a file that passes every check of `read_model`."""
    return read_model(path).metadata


def opset_of(data: bytes) -> int:
    """The version of the ONNX standard's operators that the file asks for; 0 if it names none."""
    for part in fields_of(memoryview(data)):
        if part.number == OPSET_IMPORT:
            imported = {each.number: each for each in fields_of(part.message)}
            domain, number = imported.get(1), imported.get(2)
            if number is not None and isinstance(number.value, int) and (domain is None or not domain.text):
                return number.value
    return 0


def sidecar_path(path: Path) -> Path:
    """Where the checksum of `path` lies: `encoder.onnx.sha256`, in the format of `sha256sum`."""
    return path.with_name(path.name + ".sha256")


def require(path: Path, metadata: ModelMetadata, facts: Mapping[str, object]) -> None:
    """Compares fields of the metadata with what the graph or the data says.

    Raises:
        DataError: names the first field that differs, its value and the other one.
    """
    for name, actual in facts.items():
        stated = getattr(metadata, name)
        if stated != actual:
            raise _field_error(str(path), PREFIX + name, stated, actual)


def _field_error(where: str, key: str, stated: object, expected: object) -> DataError:
    return DataError(
        f"the ONNX file's metadata does not fit: {key}",
        saw=f"{where}: {key} = {str(stated)[:200]}, expected {str(expected)[:200]}",
        fix=EXPORT_AGAIN,
    )


def _read_field(name: str, hint: Any, properties: Mapping[str, str], where: str) -> Any:
    """One field from its JSON text, its type checked."""
    text = properties.get(PREFIX + name)
    try:
        value = json.loads(text) if text is not None else None
    except (ValueError, RecursionError):  # also a number of 5,000 digits, brackets within brackets without end
        value = None
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        kinds = (int, float) if inner[0] is float else inner[0]
        if isinstance(value, list) and all(
            isinstance(v, kinds) and not isinstance(v, bool) and (kinds is str or _is_number(v)) for v in value
        ):
            return tuple(inner[0](v) for v in value)
    elif origin is not None:
        if isinstance(value, dict):
            return value
    elif type(value) is hint:
        return value
    raise _field_error(where, PREFIX + name, "absent" if text is None else text[:80], _type_name(hint))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def _type_name(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is tuple:
        return f"a list of {typing.get_args(hint)[0].__name__}"
    return "an object" if origin is not None else f"a JSON {hint.__name__}"


def _read_bytes(path: Path) -> bytes:
    try:
        return read_bytes(path, LARGEST_MODEL)
    except FileNotFoundError as error:
        raise DataError("no such file", saw=path, fix="check the path, or export one: simclr-engine export") from error
    except UnfitError as error:
        saw = f"{path}: {error.strerror}"
        raise DataError("this cannot be an ONNX file", saw=saw, fix="name the exported file") from error
    except IsADirectoryError as error:
        raise DataError(
            "an ONNX file was expected, this is a directory", saw=path, fix="name the file itself"
        ) from error
    except OSError as error:
        raise PlatformError(
            "the ONNX file cannot be read", saw=f"{path}: {error.strerror}", fix="check its permissions"
        ) from error


def _check_sidecar(path: Path, sha256: str) -> None:
    """Compares the file's sha256 with the sidecar's; a file without one rests on its own digest."""
    sidecar = sidecar_path(path)
    try:
        stated = read_bytes(sidecar, LARGEST_MARK).decode("utf-8", errors="replace").split()
    except FileNotFoundError:
        return
    except OSError as error:
        raise PlatformError(
            "the checksum cannot be read", saw=f"{sidecar}: {error.strerror}", fix="check its permissions"
        ) from error
    if stated[:1] != [sha256]:
        raise DataError(
            "the ONNX file and its checksum disagree",
            saw=f"{path}: sha256 {sha256[:16]}…, {sidecar.name} says {(stated or ['nothing'])[0][:16]}…",
            fix=FETCH_AGAIN,
        )


@dataclass(frozen=True)
class Content:
    """What `scan` found.

    Attributes:
        properties: the file's metadata_props, as they stand.
        digest: sha256 (64 hex digits) of every byte of the file but those of the property `without`.
    """

    properties: dict[str, str]
    digest: str


def scan(data: bytes, without: str) -> Content:
    """Walks the whole file once.

    Args:
        data: the file.
        without: key of the metadata property that is left out of the digest, since it holds the digest.

    Raises:
        MalformedError: cut short, not a protobuf message, or no model with a graph.
    """
    properties: dict[str, str] = {}
    digest, numbers = hashlib.sha256(), set()
    for part in fields_of(memoryview(data)):
        numbers.add(part.number)
        if part.number == METADATA:
            key, value = _entry(part)
            if key in properties:
                raise MalformedError(f"metadata property {key!r} occurs twice")
            properties[key] = value
            if key == without:
                continue
        digest.update(part.raw)
    if IR_VERSION not in numbers or GRAPH not in numbers:
        raise MalformedError("no ONNX model: it has no graph")
    return Content(properties, digest.hexdigest())


def _entry(field: Field) -> tuple[str, str]:
    """Key and value of a StringStringEntryProto."""
    texts = {1: "", 2: ""}
    if len(field.message) > LARGEST_PROPERTY:
        raise MalformedError(f"a metadata property of {len(field.message):,} bytes")
    for part in fields_of(field.message):
        texts[part.number] = part.text
    return texts[1], texts[2]
