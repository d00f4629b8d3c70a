"""Files whose properties were changed and whose digest fits all the same."""

from __future__ import annotations

import json
from pathlib import Path

import onnx

from simclr_engine.export.metadata import DIGEST, PREFIX
from simclr_engine.export.wire import scan


def rewrite(path: Path, **properties: str | None) -> None:
    """Changes properties of a file and makes its digest fit again, as a forger or another writer would."""
    model = onnx.load(path)
    values = {p.key: p.value for p in model.metadata_props if p.key != DIGEST}
    for key, value in properties.items():
        key = key.replace("__", ".") if "__" in key else PREFIX + key
        values.pop(key) if value is None else values.__setitem__(key, value)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, values)
    digest = scan(model.SerializeToString(deterministic=True), without=DIGEST).digest
    model.metadata_props.add(key=DIGEST, value=json.dumps(digest))
    path.write_bytes(model.SerializeToString(deterministic=True))
