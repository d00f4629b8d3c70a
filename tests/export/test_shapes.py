"""What operators make of shapes is what onnxruntime makes of them, for random attributes, sides and ranks."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from simclr_engine.export.acceptance import AcceptedGraph
from simclr_engine.export.runtime import open_session

TRIALS = 300
Made = tuple[list[onnx.NodeProto], dict[str, Any]]


def _sides(rng: Random, most: int = 4, rank: int | None = None) -> list[int]:
    return [rng.choice((0, 1, 1, 2, 3, 4, 5)) for _ in range(rng.randint(0, most) if rank is None else rank)]


def _some(rng: Random, low: int, high: int, count: int | None = None) -> list[int]:
    return [rng.randint(low, high) for _ in range(rng.randint(0, 4) if count is None else count)]


def _sometimes(rng: Random, **attributes: Any) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if rng.random() < 0.4}


def _random_node(kind: str, rng: Random) -> Made:
    """A node `y` of this kind and its inputs, often such as do not fit together."""
    node, x = helper.make_node, np.ones(_sides(rng), np.float32)
    image = np.ones([rng.randint(1, 2), 2, rng.randint(1, 9), rng.randint(1, 9)], np.float32)
    window = {"strides": _some(rng, 1, 3, 2), "dilations": _some(rng, 1, 2, 2), "pads": _some(rng, 0, 2, 4)}
    match kind:
        case "Reshape":
            extra = _sometimes(rng, allowzero=1)
            return [node(kind, ["x", "s"], ["y"], **extra)], {
                "x": x,
                "s": rng.sample([*x.shape, -1, 0, 1], x.ndim or 1),
            }
        case "Flatten" | "ArgMax":
            extra = _sometimes(rng, axis=rng.randint(-4, 4), **({"keepdims": 0} if kind == "ArgMax" else {}))
            return [node(kind, ["x"], ["y"], **extra)], {"x": x}
        case "Transpose":
            extra = _sometimes(rng, perm=rng.sample(range(x.ndim), x.ndim)) if x.ndim else {}
            return [node(kind, ["x"], ["y"], **extra)], {"x": x}
        case "Squeeze" | "Unsqueeze" | "ReduceMean" | "ReduceL2":
            extra = _sometimes(rng, keepdims=0, noop_with_empty_axes=1) if kind.startswith("Reduce") else {}
            given = ["x", "s"] if kind == "Unsqueeze" or rng.random() < 0.8 else ["x"]
            return [node(kind, given, ["y"], **extra)], {"x": x, "s": _some(rng, -4, 4, rng.randint(0, 2))}
        case "Slice":
            x = np.ones(_some(rng, 1, 5, rng.randint(2, 3)), np.float32)
            n = rng.randint(1, 2)
            ends = [rng.choice((-(1 << 40), -3, -1, 0, 1, 2, 5, 1 << 40)) for _ in range(n)]
            numbers = {
                "a": [rng.choice((-9, -3, -1, 0, 1, 2, 9)) for _ in range(n)],
                "b": ends,
                "c": rng.sample(range(-2, 2), n),
            }
            numbers["d"] = [rng.choice((-3, -1, 1, 1, 2)) for _ in range(n)]
            given = ["x", "a", "b", *(["c", "d"] if rng.random() < 0.8 else [])]
            return [node(kind, given, ["y"])], {"x": x, **numbers}
        case "Expand":
            return [node(kind, ["x", "s"], ["y"])], {
                "x": x,
                "s": rng.sample([*x.shape, 1, 3], rng.randint(0, x.ndim + 1)),
            }
        case "Add" | "Mean" | "Where" | "PRelu":
            inputs = {"x": x, "w": np.ones(_sides(rng), np.float32)}
            if kind == "Where":
                inputs = {"m": np.ones(_sides(rng), bool), **inputs}
            return [node(kind, list(inputs), ["y"])], inputs
        case "Conv":
            weight = np.ones([4, rng.choice((1, 2)), *_some(rng, 1, 3, 2)], np.float32)
            extra = _sometimes(rng, group=2, **window)
            return [node(kind, ["x", "w"], ["y"], **extra)], {"x": image, "w": weight}
        case "MaxPool" | "AveragePool":
            extra = _sometimes(rng, ceil_mode=1, auto_pad=rng.choice(("SAME_UPPER", "VALID", "NOTSET")), **window)
            return [node(kind, ["x"], ["y"], kernel_shape=_some(rng, 1, 3, 2), **extra)], {"x": image}
        case "GlobalAveragePool":
            return [node(kind, ["x"], ["y"])], {"x": image}
        case "MatMul":
            w = np.ones([*_sides(rng, 2), *rng.sample([*x.shape, 2], min(2, x.ndim))], np.float32)
            return [node(kind, ["x", "w"], ["y"])], {"x": x, "w": w}
        case "Gemm":
            a, b = (np.ones(_sides(rng, rank=2), np.float32) for _ in "ab")
            return [node(kind, ["x", "w"], ["y"], **_sometimes(rng, transA=1, transB=1))], {"x": a, "w": b}
        case "Concat":
            w = np.ones([side if rng.random() < 0.8 else 3 for side in x.shape], np.float32)
            return [node(kind, ["x", "w"], ["y"], axis=rng.randint(-4, 3))], {"x": x, "w": w}
        case "Split":
            names = ["y", "v", "u"][: rng.randint(1, 3)]
            if rng.random() < 0.5:
                return [node(kind, ["x"], names, axis=rng.randint(-3, 3), num_outputs=len(names))], {"x": x}
            return [node(kind, ["x", "s"], names, axis=rng.randint(-3, 3))], {"x": x, "s": _some(rng, 0, 3, len(names))}
        case "Gather" | "GatherND":
            extra = _sometimes(rng, axis=rng.randint(-3, 3)) if kind == "Gather" else _sometimes(rng, batch_dims=1)
            return [node(kind, ["x", "i"], ["y"], **extra)], {"x": x, "i": np.zeros(_sides(rng, 3), np.int64)}
        case "Pad":
            return [node(kind, ["x", "s"], ["y"])], {"x": x, "s": _some(rng, -2, 2, 2 * x.ndim)}
        case "Range":
            return [node(kind, ["a", "b", "c"], ["y"])], dict(zip("abc", np.array(_some(rng, -9, 9, 3)), strict=True))
    return [node(kind, ["x"], ["y"], **_sometimes(rng, axis=rng.randint(-3, 3)))], {"x": x}


def _random_shape(rng: Random) -> Made:
    """A shape that was taken apart and put together, and a value of it."""
    node, extra = helper.make_node, _sometimes(rng, start=rng.randint(-5, 5), end=rng.randint(-5, 5))
    inputs = {"x": np.ones(_some(rng, 1, 5), np.float32), "i": _some(rng, -4, 3), "one": [1], "zero": [0]}
    inputs |= {
        "a": [rng.choice((-9, -9, -2, 0, 1))],
        "b": [rng.choice((-9, -9, -1, 2, 9))],
        "d": [rng.choice((-2, -1, 1, 2))],
    }
    cut = node("Slice", ["s", "a", "b", "zero", "d"], ["t"])
    way = rng.choice(([cut], [node("Gather", ["s", "i"], ["t"])], [node("Concat", ["s", "one"], ["t"], axis=0)]))
    return [node("Shape", ["x"], ["s"], **extra), *way, node("ConstantOfShape", ["t"], ["y"])], inputs


SHAPED = (
    *("Reshape", "Flatten", "ArgMax", "Transpose", "Squeeze", "Unsqueeze", "ReduceMean", "ReduceL2", "Slice", "Expand"),
    *("Add", "Mean", "Where", "PRelu", "Conv", "MaxPool", "AveragePool", "GlobalAveragePool", "MatMul", "Gemm"),
    *("Concat", "Split", "Gather", "GatherND", "Pad", "Range", "Shape", "Softmax", "Relu", "Identity", "Shape of"),
)


@pytest.mark.parametrize("kind", SHAPED)
def test_shapes_are_followed_as_onnxruntime_makes_them(kind: str) -> None:
    compared = 0
    for seed in range(TRIALS):
        rng = Random(f"{kind} {seed}")
        nodes, inputs = _random_shape(rng) if kind == "Shape of" else _random_node(kind, rng)
        arrays = {name: np.asarray(value, getattr(value, "dtype", np.int64)) for name, value in inputs.items()}
        made = [name for node in nodes for name in node.output]
        fixed = [numpy_helper.from_array(a, name) for name, a in arrays.items()]
        graph = helper.make_graph(nodes, "one", [], [onnx.ValueInfoProto(name=name) for name in made], fixed)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        data = model.SerializeToString()
        try:
            theirs = open_session(data, threads=1).run(made, {})
            ours = AcceptedGraph(data, 4).shapes(1)
        except Exception:  # one of them refuses it
            continue
        assert [ours[name] for name in made] == [array.shape for array in theirs], (seed, nodes, arrays)
        compared += 1
    assert compared > TRIALS // 20
