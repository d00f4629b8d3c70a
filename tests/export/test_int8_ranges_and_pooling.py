"""int8: a range is that of all batches in whatever order they come, and what is pooled stays in float."""

from __future__ import annotations

import numpy as np
import onnx

from simclr_engine.export import quantize
from simclr_engine.export.graph import Traced
from simclr_engine.export.samples import natural_images


def test_a_range_does_not_depend_on_the_order_of_the_batches(little_trace: Traced) -> None:
    dark, bright = np.zeros((64, 32, 32, 3), np.uint8), np.full((64, 32, 32, 3), 255, np.uint8)  # a batch each
    name = next(node.input[0] for node in little_trace.model.graph.node if node.op_type == "Conv")
    one, other = (
        quantize.activation_ranges(little_trace.model, np.concatenate(parts))[name]
        for parts in ((dark, bright), (bright, dark))
    )
    assert one == other and one[0] < 0 < one[1]


def test_nothing_is_quantized_between_the_pooling_and_the_features(little_trace: Traced) -> None:
    model = quantize.quantize(little_trace.model, natural_images(32, 32, seed=3), reduce_range=False)
    made = {name: node for node in model.graph.node for name in node.output}
    chain: list[onnx.NodeProto] = [made["features"]]
    while chain[-1].op_type != "ReduceMean":
        chain.append(made[chain[-1].input[0]])
    kinds = [node.op_type for node in chain]
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(kinds), kinds
    assert made[chain[-1].input[0]].op_type == "DequantizeLinear"  # of the last convolution
