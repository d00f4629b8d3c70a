"""Does the ONNX file give PyTorch's features? Measured on images, at several batch sizes, and where not, from which
node on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from simclr_engine.errors import CheckFailed

from .graph import Traced, traced_values
from .runtime import INPUT, open_session

BATCHES = (1, 2, 7, 64)
LIMIT = 1e-4  # float32 through some twenty convolutions differs by about 1e-6 between implementations

Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
Label = Callable[[NDArray[np.float32]], NDArray[np.int64]]


@dataclass(frozen=True)
class Parity:
    """The difference between two sets of features of the same images.

    Attributes:
        max_abs: largest |Δ| of one feature.
        max_relative: largest ‖Δ‖ / ‖reference‖ of one image.
        min_cosine: smallest cosine between the two vectors of one image.
        peak: largest |feature| of the reference.
        label_agreement: fraction of images that get the same label from both.
        label_source: how a label was had from features.
        images: number of images.
        image_source: where they came from.
        batches: the batch sizes, together all images.
    """

    max_abs: float
    max_relative: float
    min_cosine: float
    peak: float
    label_agreement: float
    label_source: str
    images: int
    image_source: str
    batches: tuple[int, ...] = BATCHES

    def holds(self, limit: float = LIMIT) -> bool:
        """max |Δ| ≤ `limit`, in units of the largest feature where that exceeds 1 (float32 cannot do better), and every
        cosine ≥ 1 − `limit`, which also catches features that are all small. NaN holds nowhere."""
        return self.max_abs <= self.allowed(limit) and self.min_cosine >= 1 - limit

    def allowed(self, limit: float = LIMIT) -> float:
        """The largest |Δ| that passes."""
        return limit * max(1.0, self.peak)

    def bounds(self) -> dict[str, Any]:
        """What goes into the file: differences rounded up to a power of ten, nothing of how labels were had.

        The last digits of a difference depend on the number of threads, and a probe may be trained between two exports
        of a run; both must give the same file.
        """
        return {
            "max_abs": _power_of_ten(self.max_abs),
            "max_relative": _power_of_ten(self.max_relative),
            "min_cosine": 1 - _power_of_ten(1 - self.min_cosine),
            "images": self.images,
            "batches": list(self.batches),
        }


def measure(
    reference: NDArray[np.float32],
    candidate: Embed,
    label: Label,
    images: NDArray[np.uint8],
    *,
    label_source: str,
    image_source: str,
) -> Parity:
    """Runs an encoder over `images` in batches of `BATCHES` and compares it with known features.

    Args:
        reference: features of `images`, float32 `[sum(BATCHES), D]`.
        candidate: uint8 `[B, S, S, 3]` → float32 `[B, D]`.
        label: features `[N, D]` → int64 `[N]`.
        images: uint8 `[sum(BATCHES), S, S, 3]`.
    """
    cuts = np.cumsum((0, *BATCHES))
    found = np.concatenate([candidate(images[a:b]) for a, b in itertools.pairwise(cuts)])
    r, c = reference.astype(np.float64), found.astype(np.float64)
    delta, norm_r, norm_c = np.abs(r - c), np.linalg.norm(r, axis=1), np.linalg.norm(c, axis=1)
    dot, norms = (r * c).sum(1), norm_r * norm_c
    # A vector of zeros has no direction: two of them agree, one beside a non-zero one does not.
    cosine = np.where(norms > 0, dot / np.where(norms > 0, norms, 1), np.where(norm_r == norm_c, 1.0, 0.0))
    relative = np.linalg.norm(r - c, axis=1) / np.where(norm_r > 0, norm_r, 1)
    return Parity(
        max_abs=float(delta.max()),
        max_relative=float(relative.max()),
        min_cosine=float(cosine.min()),
        peak=float(np.abs(r).max()),
        label_agreement=float((label(reference) == label(found)).mean()),
        label_source=label_source,
        images=len(r),
        image_source=image_source,
    )


def check(parity: Parity, traced: Traced, images: NDArray[np.uint8], limit: float = LIMIT) -> None:
    """The gate.

    Raises:
        CheckFailed: the difference exceeds the limit; names the first node from which on it does.
    """
    if parity.holds(limit):
        return
    where = first_divergence(traced, images[: BATCHES[2]], limit)
    raise CheckFailed(
        "the ONNX graph does not give PyTorch's features; no file was written",
        saw=f"max |Δ| {parity.max_abs:.2g} (limit {parity.allowed(limit):.2g}), "
        f"min cosine {parity.min_cosine:.6f}; {where}",
        fix="try --opset 20, or update onnxscript and onnxruntime; then report it with the line above",
    )


def first_divergence(traced: Traced, images: NDArray[np.uint8], limit: float = LIMIT) -> str:
    """Names the first node of the ONNX graph whose output is not what the torch program has under the same name.

    Every intermediate value is made an output, so the comparison is node by node in execution order.
    """
    exposed = onnx.ModelProto()
    exposed.CopyFrom(traced.model)
    known = {o.name for o in exposed.graph.output}
    names = [n for node in exposed.graph.node for n in node.output if n]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in known)
    values = open_session(exposed.SerializeToString()).run(names, {INPUT: images})
    found = dict(zip(names, values, strict=True))
    truth = traced_values(traced.program, torch.from_numpy(images))
    total = len(exposed.graph.node)
    for position, node in enumerate(exposed.graph.node, 1):
        for name in node.output:
            if name not in truth:
                continue  # a constant, or a value that the translation made up
            expected = truth[name].numpy().astype(np.float64)
            if expected.shape != found[name].shape:
                difference = f"shape {list(found[name].shape)} instead of {list(expected.shape)}"
            else:
                scale = max(1.0, float(np.abs(expected).max(initial=0)))
                error = float(np.abs(expected - found[name]).max(initial=0))
                if error <= limit * scale:
                    continue
                difference = f"off by {error:.2g} where values reach {scale:.2g}"
            weights = [i for i in node.input if any(i == w.name for w in exposed.graph.initializer)]
            of = f" with {', '.join(weights)}" if weights else ""
            return f"first divergent node: {node.name} ({node.op_type}{of}), {position} of {total}, {difference}"
    return "no node diverges on its own: the traced program, or a fusion in onnxruntime, differs from the encoder"


def _power_of_ten(value: float) -> float:
    """The smallest power of ten ≥ `value`, at least 1e-9 (below that it is rounding of the measurement)."""
    return float(f"1e{max(-9, math.ceil(math.log10(max(value, 1e-9)) - 1e-12))}")
