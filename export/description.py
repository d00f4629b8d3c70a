"""`encoder.json` beside `encoder.onnx`: what a client must know of the file, in one JSON object.

onnxruntime gives the metadata of a file to Python and C++, but not to JavaScript; other libraries give it to nobody.
All follows from the bytes of the file, which say nothing of where it was made. Imports neither torch nor onnx.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from simclr_engine.data.levels import as_levels
from simclr_engine.documents import to_json

from .metadata import LIMIT, ModelFile, ModelMetadata, opset_of
from .runtime import INPUT, LABEL, OUTPUT, PROBABILITIES

FORMAT, SCHEMA = "simclr-engine encoder", 1
_BEGINNING = re.compile(rb'\s*\{\s*"format":\s*"%s"' % FORMAT.encode())


def description_path(model: Path) -> Path:
    """Where the description of `model` lies: `encoder.json` for `encoder.onnx`."""
    return model.with_suffix(".json")


def is_description(path: Path) -> bool:
    """Whether the file is one that `description_text` made."""
    try:
        with path.open("rb") as file:
            return _BEGINNING.match(file.read(4096)) is not None
    except OSError:
        return False


def describe(file: ModelFile) -> dict[str, Any]:
    """What a client must know, as plain values.

    Args:
        file: as `read_model` gives it; `path` gives the name only.

    Returns:
        `format`, `schema`, `file`, `sha256`, `bytes`; `input` and `outputs` with name, shape and dtype; `image_size`,
        `resize`, `mean_std`; `class_names` in label order, or None; `parity` with PyTorch (the tolerance is of fp32
        alone); `probe` on the test split, or None; `unfinished`, how far the run had come if it had not ended, or None;
        `precision`, `opset`, `architecture`, `stem`, `made_by`.
    """
    metadata = file.metadata
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "file": file.path.name,
        "sha256": file.sha256,
        "bytes": len(file.data),
        **_shapes(metadata),
        "image_size": metadata.image_size,
        "resize": _resize(metadata),
        "mean_std": "inside the file",
        "class_names": list(metadata.class_names) or None,
        "parity": {
            "largest_difference": metadata.parity["max_abs"],
            "tolerance": LIMIT if metadata.precision == "fp32" else None,
            "images": metadata.parity["images"],
        },
        "probe": {
            "accuracy": metadata.probe["accuracy"],
            "split": "test",
            "images": metadata.probe["test_images"],
            "data": metadata.probe["data"],
        }
        if metadata.probe
        else None,
        "unfinished": metadata.unfinished or None,
        "precision": metadata.precision,
        "opset": opset_of(file.data),
        "architecture": metadata.architecture,
        "stem": metadata.stem,
        "made_by": f"simclr-engine {metadata.project_version}",
    }


def description_text(file: ModelFile) -> bytes:
    """`describe` as JSON: letters as they are, but `\\udce9` for halves of surrogate pairs."""
    return (to_json(describe(file), indent=2, ascii=False) + "\n").encode(errors="backslashreplace")


def _shapes(metadata: ModelMetadata) -> dict[str, Any]:
    side = metadata.image_size
    outputs = [(OUTPUT, [metadata.feature_dim], "float32", "what the encoder says of an image")]
    if metadata.probe:
        outputs.append((PROBABILITIES, [len(metadata.class_names)], "float32", "of each class, in label order"))
        outputs.append((LABEL, [], "int64", "the most probable class"))
    return {
        "input": {
            "name": INPUT,
            "shape": ["batch", side, side, 3],
            "dtype": "uint8",
            "layout": "NHWC, RGB",
            "range": [0, 255],
        },
        "outputs": [
            {"name": name, "shape": ["batch", *shape], "dtype": dtype, "what": what}
            for name, shape, dtype, what in outputs
        ],
    }


def _resize(metadata: ModelMetadata) -> dict[str, Any]:
    """What `data.decode.decode_image` does."""
    side = metadata.image_size
    return {
        "rule": "turn the image as its EXIF orientation says, blend transparency over white, resize the shorter side "
        f"to {side} pixels (bilinear, antialiased), crop the centre",
        "short_side": side,
        "crop": side,
        "filter": "bilinear",
        "antialias": True,
        "gray16": list(as_levels(metadata.levels)),  # the values of 16-bit gray images that become 0 and 255
    }
