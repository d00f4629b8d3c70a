"""A model as the bytes of a file: its metadata, and a digest of all of it, as the last fields."""

from __future__ import annotations

import json
from collections.abc import Mapping

import onnx

from simclr_engine import __version__
from simclr_engine.errors import CheckFailed

from .metadata import DIGEST, ModelMetadata
from .wire import scan


def seal(model: onnx.ModelProto, metadata: ModelMetadata) -> bytes:
    """The bytes of `model` with the metadata, and with the digest of all of it as the last property.

    Raises:
        CheckFailed: it does not pass the ONNX checker.
    """
    return with_metadata(serialised(model), metadata)


def serialised(model: onnx.ModelProto) -> bytes:
    """`model` as a work of ours, still without metadata."""
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    plain.producer_name, plain.producer_version = "simclr-engine", __version__
    del plain.metadata_props[:]
    return plain.SerializeToString(deterministic=True)


def with_metadata(plain: bytes, metadata: ModelMetadata) -> bytes:
    """`seal` of a model that is serialised already: 45 MB need not be written anew, for the metadata is the last field
    that a file of ours has, and messages of protobuf are merged by putting their bytes one after the other."""
    content = plain + _properties(metadata.to_properties())
    sealed = content + _properties({DIGEST: json.dumps(scan(content, without=DIGEST).digest)})
    try:
        onnx.checker.check_model(sealed, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        fix = "update torch and onnxscript"
        raise CheckFailed("the exported graph is not valid ONNX", saw=str(error)[:300], fix=fix) from error
    return sealed


def _properties(texts: Mapping[str, str]) -> bytes:
    """The metadata fields of a model, serialised."""
    fields = onnx.ModelProto()
    onnx.helper.set_model_props(fields, dict(texts))
    return fields.SerializeToString(deterministic=True)
