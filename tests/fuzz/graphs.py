"""Graphs of operators that are accepted, in sizes up to what is allowed: what they really cost must stay within it."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

_UNARY = (
    *("Exp", "Erf", "Sigmoid", "Tanh", "Relu", "Neg", "Floor", "Gelu", "Softplus", "HardSwish", "Abs", "Log", "Sqrt"),
    *("Elu", "Selu", "LeakyRelu", "Identity", "Sign", "Reciprocal", "Dropout"),
)
_CASTS = (
    TensorProto.FLOAT16,
    TensorProto.INT64,
    TensorProto.INT8,
    TensorProto.UINT8,
    TensorProto.BOOL,
    TensorProto.INT32,
)


class _Graph:
    """Nodes over one large value of fp32, whose shape is known at each step."""

    def __init__(self, rng: Random, size: int) -> None:
        self.rng, self.nodes, self.tensors = rng, list[NodeProto](), list[TensorProto]()
        self.shape, self.name, self.size = [1, 1, 1, 1], "v", size

    def add(self, kind: str, *inputs: Any, **attributes: Any) -> None:
        """A node over the value and these inputs: names of values, or numbers and arrays."""
        names = [self.constant(one) if not isinstance(one, str) else one for one in inputs]
        out = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [self.name, *names], [out], **attributes))
        self.name = out

    def constant(self, value: Any) -> str:
        array = np.asarray(value)
        if array.dtype.kind in "iuO" and array.dtype != np.int8:  # shapes and axes; what is too large is refused
            array = np.minimum(array, 1 << 62).astype(np.int64)
        self.tensors.append(numpy_helper.from_array(array, f"k{len(self.tensors)}"))
        return self.tensors[-1].name

    def filled(self, shape: list[int]) -> str:
        """Zeros of a shape, which are made while the file is loaded."""
        out = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node("ConstantOfShape", [self.constant(shape)], [out]))
        return out

    def factors(self, size: int, rank: int) -> list[int]:
        """A shape of about so many values: sides of one are as likely as huge ones."""
        left, sides = size, list[int]()
        for _ in range(rank - 1):
            sides.append(max(1, int(left ** self.rng.choice((0, 0, self.rng.random(), 1)))))
            left = max(1, left // sides[-1])
        return self.rng.sample([*sides, left], rank)

    def step(self) -> None:
        """One more operation."""
        rng, shape, rank = self.rng, self.shape, len(self.shape)
        at, total = rng.randrange(rank), int(np.prod(shape))
        kind = rng.choice(
            ("unary",) * 4
            + ("cast", "binary", "broadcast", "concat", "reshape", "transpose", "reduce", "softmax", "norm", "split")
            + (
                "slice",
                "pad",
                "matmul",
                "conv",
                "pool",
                "gather",
                "scatter",
                "quantize",
                "expand",
                "sum",
                "where",
                "argmax",
            )
        )
        if kind == "unary":
            self.add(rng.choice(_UNARY))
        elif kind == "cast":
            self.add("Cast", to=rng.choice(_CASTS))
            self.add("Cast", to=TensorProto.FLOAT)
        elif kind == "binary":
            self.add(rng.choice(("Add", "Mul", "Div", "Pow", "Min", "Max", "Mean")), self.name)
        elif kind == "broadcast":
            self.add(
                rng.choice(("Add", "Pow", "PRelu", "Max")),
                self.filled([side if rng.random() < 0.5 else 1 for side in shape]),
            )
        elif kind == "where":
            self.add("Cast", to=TensorProto.BOOL)
            self.add("Where", self.filled([1]), self.filled(shape))
        elif kind == "sum":
            self.add("Sum", *[self.name] * rng.randint(1, 200))
        elif kind == "concat":
            self.add("Concat", *[self.name] * (times := rng.randint(1, 3)), axis=at)
            shape[at] *= times + 1
        elif kind == "reshape":
            self.shape = self.factors(total, rng.randint(1, 6))
            self.shape[-1] = total // max(1, int(np.prod(self.shape[:-1])))
            if int(np.prod(self.shape)) != total:
                self.shape = [total]
            self.add("Reshape", self.shape)
        elif kind == "transpose":
            order = rng.sample(range(rank), rank)
            self.add("Transpose", perm=order)
            self.shape = [shape[i] for i in order]
        elif kind == "reduce":
            self.add(rng.choice(("ReduceMean", "ReduceL2", "ReduceMax")), [at])
            shape[at] = 1
        elif kind == "argmax":
            self.add("ArgMax", axis=at)
            self.add("Cast", to=TensorProto.FLOAT)
            shape[at] = 1
        elif kind == "softmax":
            self.add(rng.choice(("Softmax", "LogSoftmax")), axis=at)
        elif kind == "norm" and rank > 2:
            if rng.random() < 0.5:
                self.add("LayerNormalization", self.filled([shape[-1]]), axis=-1)
            else:
                ones = self.filled([shape[1]])
                self.add("InstanceNormalization", ones, ones)
        elif kind == "split" and shape[at] > 1:
            half = shape[at] // 2
            self.nodes.append(
                helper.make_node("Split", [self.name, self.constant([half, shape[at] - half])], ["p", "q"], axis=at)
            )
            self.name, shape[at] = "p", half
        elif kind == "slice":
            self.add("Slice", [-1], [-(1 << 40)], [at], [-1])
        elif kind == "pad":
            pads = [0] * 2 * rank
            pads[at] = rng.randint(1, 3)
            self.add("Pad", pads, mode=rng.choice(("constant", "edge")))
            shape[at] += pads[at]
        elif kind in ("matmul", "conv") and rng.random() < 0.4:  # many small products; few channels
            self.shape = (
                [total, 1, 1]
                if kind == "matmul"
                else rng.choice(([1, 1, total, 1], [total, 1, 1, 1], [1, total, 1, 1]))
            )
            self.add("Reshape", self.shape)
            if kind == "matmul":
                self.add("MatMul", self.filled([1, 1]) if rng.random() < 0.5 else self.name)
            else:
                for _ in range(2):
                    self.add("Conv", self.filled([self.shape[1], 1, 1, 1]), group=min(self.shape[1], 1 << 40))
        elif kind == "matmul" and rank > 1:
            wide = self.factors(max(1, self.size // max(1, total // shape[-1])), 1)[0]
            self.add("MatMul", self.filled([*(shape[:-2] if rng.random() < 0.5 else []), shape[-1], wide]))
            shape[-1] = wide
        elif kind == "conv" and rank == 4:
            groups = rng.choice((1, shape[1]))
            out = rng.choice((1, 4, 64)) if groups == 1 else min(groups * rng.choice((1, 2)), 1 << 40)
            kernel = [min(side, rng.choice((1, 1, 3, 7))) for side in shape[2:]]
            self.add("Conv", self.filled([out, shape[1] // groups, *kernel]), group=min(groups, 1 << 40))
            self.shape = [shape[0], out, *(side - width + 1 for side, width in zip(shape[2:], kernel, strict=True))]
        elif kind == "pool" and rank == 4:
            kernel = [min(side, rng.choice((1, 2, 7, 100))) for side in shape[2:]]
            self.add(rng.choice(("MaxPool", "AveragePool")), kernel_shape=kernel)
            self.shape = [*shape[:2], *(side - width + 1 for side, width in zip(shape[2:], kernel, strict=True))]
        elif kind == "gather":
            self.add("Gather", [0] * min(shape[at], 64), axis=at)
            shape[at] = min(shape[at], 64)
        elif kind == "scatter":
            self.add("ScatterND", [[0] * rank], np.zeros(1, np.float32))
        elif kind == "quantize":
            self.add("QuantizeLinear", np.float32(0.1), np.int8(0))
            self.add("DequantizeLinear", np.float32(0.1), np.int8(0))
        elif kind == "expand" and shape[at] == 1:
            shape[at] = max(1, self.size // total)
            self.add("Expand", shape)


def random_graph(n: int) -> bytes:
    """A sealed model whose largest value holds about 512 n numbers, and whose result depends on all of its nodes."""
    from .seeds import onnx_of

    rng = Random(n)
    graph = _Graph(rng, 512 * n)
    start = [
        helper.make_node("Cast", ["images"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f"], ["v"], keepdims=1),
    ]
    graph.shape = graph.factors(graph.size, rng.randint(1, 5))
    graph.shape = [1] * (4 - len(graph.shape)) + graph.shape
    graph.add("Expand", graph.shape)
    for _ in range(rng.randint(1, 6)):
        times, state = rng.choice((1, 1, 1, 20, 100)), rng.getstate()
        for _ in range(times):
            rng.setstate(state)
            graph.step()
    graph.add("ReduceMean")
    nodes = [node.SerializeToString() for node in (*start, *graph.nodes)]
    return onnx_of(nodes, [tensor.SerializeToString() for tensor in graph.tensors], [graph.name.encode()])
