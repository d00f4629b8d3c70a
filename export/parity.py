"""Does the ONNX file give PyTorch's features? Measured on images, at several batch sizes, and where not, from which
node on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from simclr_engine.errors import CheckFailed

from .graph import Traced, traced_values
from .runtime import INPUT, open_session

BATCHES = (1, 2, 7, 64)
# float32 through some twenty convolutions differs by about 1e-6 of the largest value between implementations.
LIMIT = 1e-4  # of one feature, absolute
RELATIVE_LIMIT = 1e-5  # of one image's features; counts where they are so large that float32 cannot keep LIMIT
COSINE_LIMIT = 1e-6  # what a cosine may lack of 1; counts where they are so small that LIMIT says nothing
NODE_LIMIT = 1e-5  # of one value inside the graph, relative to the largest beside it

Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
Label = Callable[[NDArray[np.float32]], NDArray[np.int64]]


@dataclass(frozen=True)
class Difference:
    """How far two sets of features of the same images lie apart.

    Attributes:
        max_abs: largest |Δ| of one feature.
        max_relative: largest ‖Δ‖ / ‖reference‖ of one image.
        min_cosine: smallest cosine between the two vectors of one image.
    """

    max_abs: float
    max_relative: float
    min_cosine: float

    @classmethod
    def between(cls, reference: NDArray[np.float32], found: NDArray[np.float32]) -> Difference:
        """The difference of features `[N, D]`, computed in float64."""
        r, f = reference.astype(np.float64), found.astype(np.float64)
        norm_r, norm_f = np.linalg.norm(r, axis=1), np.linalg.norm(f, axis=1)
        dot, norms = (r * f).sum(1), norm_r * norm_f
        # A vector of zeros has no direction: two of them agree, one beside a non-zero one does not.
        cosine = np.where(norms > 0, dot / np.where(norms > 0, norms, 1), np.where(norm_r == norm_f, 1.0, 0.0))
        relative = np.linalg.norm(r - f, axis=1) / np.where(norm_r > 0, norm_r, 1)
        return cls(float(np.abs(r - f).max()), float(relative.max()), float(cosine.min()))

    def holds(self) -> bool:
        """Whether it is within the limits; NaN is not."""
        close = self.max_abs <= LIMIT or self.max_relative <= RELATIVE_LIMIT
        return close and self.min_cosine >= 1 - COSINE_LIMIT


@dataclass(frozen=True)
class Parity(Difference):
    """The difference between PyTorch and onnxruntime, and what it was measured on.

    Attributes:
        label_agreement: fraction of images that get the same label from both.
        label_source: how a label was had from features.
        images: number of images.
        image_source: where they came from.
        batches: the batch sizes, together all images.
    """

    label_agreement: float
    label_source: str
    images: int
    image_source: str
    batches: tuple[int, ...] = BATCHES

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
    return Parity(
        **asdict(Difference.between(reference, found)),
        label_agreement=float((label(reference) == label(found)).mean()),
        label_source=label_source,
        images=len(images),
        image_source=image_source,
    )


def check(parity: Parity, traced: Traced, images: NDArray[np.uint8]) -> None:
    """The gate.

    Raises:
        CheckFailed: the difference exceeds the limits; names the first node from which on it does.
    """
    if parity.holds():
        return
    where = first_divergence(traced, images[: BATCHES[2]])
    raise CheckFailed(
        "the ONNX graph does not give PyTorch's features; no file was written",
        saw=f"max |Δ| {parity.max_abs:.2g} (limit {LIMIT:g}), relative {parity.max_relative:.2g}, "
        f"min cosine {parity.min_cosine:.6f}; {where}",
        fix="try --opset 20, or update onnxscript and onnxruntime; then report it with the line above",
    )


def first_divergence(traced: Traced, images: NDArray[np.uint8]) -> str:
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
                scale = float(np.abs(expected).max(initial=0))
                error = float(np.abs(expected - found[name]).max(initial=0))
                if error <= NODE_LIMIT * scale:
                    continue
                difference = f"off by {error:.2g} where values reach {scale:.2g}"
            weights = [i for i in node.input if any(i == w.name for w in exposed.graph.initializer)]
            of = f" with {', '.join(weights)}" if weights else ""
            return f"first divergent node: {node.name} ({node.op_type}{of}), {position} of {total}, {difference}"
    return "no node diverges on its own: the traced program, or a fusion in onnxruntime, differs from the encoder"


def _power_of_ten(value: float) -> float:
    """The smallest power of ten ≥ `value`, at least 1e-9 (below that it is rounding of the measurement)."""
    return float(f"1e{max(-9, math.ceil(math.log10(max(value, 1e-9)) - 1e-12))}")
