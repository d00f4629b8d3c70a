"""What a graph that lies in no file gives."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from simclr_engine.export.runtime import open_session


def graph_features(model: onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Features of uint8 `[N, S, S, 3]` by a session of the graph's own."""
    features: NDArray[np.float32] = open_session(model.SerializeToString()).run(["features"], {"images": images})[0]
    return features
