"""fp16: weights and activations of the convolutions in half precision, for half the size and for GPU providers."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from simclr_engine.errors import CheckFailed

HALVED = ("Conv", "Add", "Relu", "MaxPool")
LARGEST = float(np.finfo(np.float16).max)


def halve(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its convolutions, and what stands between them, in fp16.

    Normalisation, pooling (a sum of many values) and probe stay in fp32, and so do the types of inputs and outputs.

    Raises:
        CheckFailed: a weight is too large for fp16.
    """
    halved = onnx.ModelProto()
    halved.CopyFrom(model)
    graph = halved.graph
    del graph.value_info[:]  # of tensors that are now of another type
    inside = [node for node in graph.node if node.op_type in HALVED]
    made = {name for node in inside for name in node.output}
    weights = {name for node in inside for name in node.input} & {tensor.name for tensor in graph.initializer}
    for tensor in graph.initializer:
        if tensor.name in weights:
            _halve_tensor(tensor)
    nodes: list[onnx.NodeProto] = []
    cast: set[str] = set()
    for node in graph.node:
        half = node.op_type in HALVED
        for at, name in enumerate(node.input):
            if name in weights or (name in made) == half:
                continue
            other = f"{name}/{'fp16' if half else 'fp32'}"
            if other not in cast:
                cast.add(other)
                to = TensorProto.FLOAT16 if half else TensorProto.FLOAT
                nodes.append(helper.make_node("Cast", [name], [other], other, to=to))
            node.input[at] = other
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return halved


def _halve_tensor(tensor: TensorProto) -> None:
    values = numpy_helper.to_array(tensor)
    if values.size and float(np.abs(values).max()) > LARGEST:
        raise CheckFailed(
            "a weight is too large for fp16",
            saw=f"{tensor.name}: {np.abs(values).max():.3g}, fp16 ends at {LARGEST:g}",
            fix="export without --fp16",
        )
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), tensor.name))
