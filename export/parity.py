"""The gates of a file. Does it give PyTorch's features, on images, at several batch sizes, and where not, from which
node on? Does the smaller file give the labels of the fp32 file, and is it faster?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from simclr_engine.data.store import ImageStore, Pixels
from simclr_engine.errors import CheckFailed, DataError, counted
from simclr_engine.evaluation.linear import LinearProbe
from simclr_engine.timing import Timing, interleave

from .graph import Traced, traced_values
from .metadata import LIMIT
from .probe import ChosenProbe, saved_probes
from .runtime import INPUT, OUTPUT, batches, open_session
from .samples import Samples

BATCHES = (1, 2, 7, 64)
# float32 through some twenty convolutions differs by about 1e-6 of the largest value between implementations.
RELATIVE_LIMIT = 1e-5  # of one image's features; counts where they are so large that float32 cannot keep LIMIT
COSINE_LIMIT = 1e-6  # what a cosine may lack of 1; counts where they are so small that LIMIT says nothing
PROBABILITY_LIMIT = 1e-4  # of one class, absolute
NODE_LIMIT = 1e-5  # of one value inside the graph, relative to the largest beside it
LOSS_LIMIT = 0.01  # of accuracy: one point; below a hundred images, one image
MEAN_COSINE_LIMIT = 0.99  # of the mean cosine to the fp32 features, where no labels are known
SPEED_UP = 1.2  # int8 against fp32, images per second
FEWEST_COMPARED, MOST_COMPARED = 256, 2000
ROUNDS = 5


@dataclass(frozen=True)
class Limits:
    """What a file may differ by.

    Attributes:
        absolute: of one feature; or else
        relative: of one image's features, ‖Δ‖ / ‖reference‖.
        cosine: what a cosine may lack of 1; holds in either case.
        probability: of one class.
        node: of one value inside the graph, relative to the largest beside it.
    """

    absolute: float
    relative: float
    cosine: float
    probability: float
    node: float


FP32 = Limits(LIMIT, RELATIVE_LIMIT, COSINE_LIMIT, PROBABILITY_LIMIT, NODE_LIMIT)
# fp16 keeps 11 bits, so each weight and each stored value loses up to 2⁻¹¹, 3e-4 in the mean square. Some hundred such
# losses one after another, each with its own sign, come to √100 · 3e-4 = 3e-3 of a vector's length, and to half the
# square of that in the cosine. (Seen for a ResNet-18: 6e-4.) What half precision loses goes with the size of the
# features, so there is no absolute limit.
FP16 = Limits(0.0, 3e-3, 5e-6, 1e-2, 1e-2)

Embed = Callable[[NDArray[np.uint8]], Sequence[NDArray[Any]]]


def row_cosines(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Cosines of the rows of two `[N, D]`, computed in float64.

    A vector of zeros has no direction: two of them agree, one beside a non-zero one does not.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    norm_a, norm_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    norms = norm_a * norm_b
    return np.where(norms > 0, (a * b).sum(1) / np.where(norms > 0, norms, 1), np.where(norm_a == norm_b, 1.0, 0.0))


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
        norm = np.linalg.norm(r, axis=1)
        relative = np.linalg.norm(r - f, axis=1) / np.where(norm > 0, norm, 1)
        return cls(float(np.abs(r - f).max()), float(relative.max()), float(row_cosines(r, f).min()))

    def holds(self, limits: Limits = FP32) -> bool:
        """Whether it is within the limits; NaN is not."""
        close = self.max_abs <= limits.absolute or self.max_relative <= limits.relative
        return close and self.min_cosine >= 1 - limits.cosine


@dataclass(frozen=True)
class Parity(Difference):
    """The difference between PyTorch and onnxruntime, and what it was measured on.

    Attributes:
        label_agreement: fraction of images that get the same label from both.
        label_source: how a label was had from features.
        images: number of images.
        image_source: where they came from.
        batches: the batch sizes, together all images.
        max_probability: largest |Δ| of one class's probability; None without a probe.
        wrong_labels: images whose output `label` is not the most probable class: of the file's own probabilities, or
            of PyTorch's by a margin that the limit of a probability does not explain.
    """

    label_agreement: float
    label_source: str
    images: int
    image_source: str
    batches: tuple[int, ...] = BATCHES
    max_probability: float | None = None
    wrong_labels: int = 0

    def holds(self, limits: Limits = FP32) -> bool:
        """Whether features, probabilities and labels are all within the limits."""
        probable = self.max_probability is None or self.max_probability <= limits.probability
        return super().holds(limits) and probable and self.wrong_labels == 0

    def bounds(self) -> dict[str, Any]:
        """What goes into the file: differences rounded up to a power of ten, nothing of how labels were had.

        The last digits of a difference depend on the number of threads, and a probe may be trained between two exports
        of a run; both must give the same file.
        """
        probe = {} if self.max_probability is None else {"max_probability": _power_of_ten(self.max_probability)}
        return probe | {
            "max_abs": _power_of_ten(self.max_abs),
            "max_relative": _power_of_ten(self.max_relative),
            "min_cosine": 1 - _power_of_ten(1 - self.min_cosine),
            "images": self.images,
            "batches": list(self.batches),
        }


def measure(
    reference: NDArray[np.float32],
    candidate: Embed,
    by: Labeller,
    samples: Samples,
    probabilities: NDArray[np.float32] | None = None,
    limits: Limits = FP32,
) -> Parity:
    """Runs an encoder over images in batches of `BATCHES` and compares it with known features.

    Args:
        reference: features of the images, float32 `[sum(BATCHES), D]`.
        candidate: uint8 `[B, S, S, 3]` → float32 `[B, D]`; with a probe also float32 `[B, C]` and int64 `[B]`.
        by: how features are labelled.
        samples: the images, uint8 `[sum(BATCHES), S, S, 3]`.
        probabilities: of the probe for `reference`, float32 `[N, C]`; None without a probe.
        limits: say by what margin a label must be the most probable one.
    """
    cuts = np.cumsum((0, *BATCHES))
    outputs = [candidate(samples.images[a:b]) for a, b in itertools.pairwise(cuts)]
    found, *of_probe = (np.concatenate(parts) for parts in zip(*outputs, strict=True))
    about: dict[str, Any] = {}
    if probabilities is not None:
        given, labels = of_probe
        about["max_probability"] = float(np.abs(given.astype(np.float64) - probabilities).max())
        about["wrong_labels"] = _wrong_labels(probabilities, given, labels, limits)
    return Parity(
        **asdict(Difference.between(reference, found)),
        label_agreement=float((by.label(reference) == by.label(found)).mean()),
        label_source=by.source,
        images=len(samples.images),
        image_source=samples.source,
        **about,
    )


def _wrong_labels(
    reference: NDArray[np.float32], given: NDArray[np.float32], labels: NDArray[np.int64], limits: Limits
) -> int:
    """Number of labels that are not the most probable class of `given`, or fall short of it in `reference`."""
    rows = np.arange(len(labels))
    inside = (labels >= 0) & (labels < reference.shape[1])
    short = reference.max(1) - reference[rows, np.where(inside, labels, 0)] > 2 * limits.probability
    return int((~inside | (labels != given.argmax(1)) | short).sum())


def check(parity: Parity, traced: Traced, images: NDArray[np.uint8], limits: Limits = FP32) -> None:
    """The gate.

    Raises:
        CheckFailed: the difference exceeds the limits; names the first node from which on it does.
    """
    if parity.holds(limits):
        return
    where = first_divergence(traced, images[: BATCHES[2]], limits)
    probe = ""
    if parity.max_probability is not None:
        probe = f", of a probability {parity.max_probability:.2g} (limit {limits.probability:g})"
        probe += f", {parity.wrong_labels} wrong labels"
    raise CheckFailed(
        "the ONNX graph does not give PyTorch's features; it was not written",
        saw=f"max |Δ| {parity.max_abs:.2g} (limit {limits.absolute:g}), relative {parity.max_relative:.2g} "
        f"(or {limits.relative:g}), min cosine {parity.min_cosine:.6f} (limit 1 − {limits.cosine:g}){probe}; {where}",
        fix="try another --opset, or update onnxscript and onnxruntime; then report it with the line above",
    )


def first_divergence(traced: Traced, images: NDArray[np.uint8], limits: Limits = FP32) -> str:
    """Names the first node of the ONNX graph whose output is not what the torch program has under the same name.

    Every intermediate value is made an output, so the comparison is node by node in execution order.
    `torch.onnx.verification` does not serve: it gives no scale beside a difference, and knows neither the probe nor the
    smaller files.
    """
    exposed = onnx.ModelProto()
    exposed.CopyFrom(traced.model)
    known = {o.name for o in exposed.graph.output}
    names = [n for node in exposed.graph.node for n in node.output if n]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in known)
    values = open_session(exposed.SerializeToString()).run(names, {INPUT: images})
    found = dict(zip(names, values, strict=True))
    truth = traced_values(traced, torch.from_numpy(images))
    total = len(exposed.graph.node)
    for position, node in enumerate(exposed.graph.node, 1):
        for name in node.output:
            if name not in truth:
                continue  # a constant, or a value that the translation made up
            expected = truth[name].astype(np.float64)
            if expected.shape != found[name].shape:
                difference = f"shape {list(found[name].shape)} instead of {list(expected.shape)}"
            else:
                stated = ~np.isnan(expected)
                scale = float(np.abs(expected[stated]).max(initial=0))
                error = float(np.abs(expected - found[name])[stated].max(initial=0))
                if error <= limits.node * scale:
                    continue
                difference = f"off by {error:.2g} where values reach {scale:.2g}"
            weights = [i for i in node.input if any(i == w.name for w in exposed.graph.initializer)]
            of = f" with {', '.join(weights)}" if weights else ""
            return f"first divergent node: {node.name} ({node.op_type}{of}), {position} of {total}, {difference}"
    return "no node diverges on its own: the traced program, or a fusion in onnxruntime, differs from the encoder"


def _power_of_ten(value: float) -> float:
    """The smallest power of ten ≥ `value`, at least 1e-9 (below that it is rounding of the measurement)."""
    return float(f"1e{max(-9, math.ceil(math.log10(max(value, 1e-9)) - 1e-12))}")


@dataclass(frozen=True)
class Labeller:
    """`label` takes features float32 `[N, D]` to int64 `[N]`; `source` says how, for people."""

    label: Callable[[NDArray[np.float32]], NDArray[np.int64]]
    source: str


def labeller(run_directory: Path, feature_dim: int, truth: NDArray[np.int64] | None) -> Labeller:
    """The run's newest linear probe of the pretrained encoder, one fitted on all images before one fitted on some;
    without any, the nearest neighbour among the images.

    Args:
        run_directory: probes lie in `evaluation/*-linear-pretrained.safetensors`.
        feature_dim: D; a probe for another width is passed over.
        truth: labels of the images that will be labelled, int64 `[N]`; None makes each image a class of its own.
    """
    for name, path in saved_probes(run_directory):
        try:
            probe = LinearProbe.load(path)
        except DataError:
            continue
        if probe.coef.shape[1] == feature_dim:
            return Labeller(partial(_by_probe, probe), f"linear probe {name}")
    return nearest_neighbour(truth)


def nearest_neighbour(truth: NDArray[np.int64] | None) -> Labeller:
    """The label of the nearest other image; without labels each image is a class of its own."""
    return Labeller(partial(_nearest, truth), "nearest neighbour (cosine) among these images")


def _by_probe(probe: LinearProbe, features: NDArray[np.float32]) -> NDArray[np.int64]:
    return probe.predict_proba(features).argmax(1)


def _nearest(truth: NDArray[np.int64] | None, features: NDArray[np.float32]) -> NDArray[np.int64]:
    """The label, or else the index, of the other row with the largest cosine."""
    f = features.astype(np.float64)
    f /= np.maximum(np.linalg.norm(f, axis=1, keepdims=True), 1e-12)
    similarity = f @ f.T
    np.fill_diagonal(similarity, -np.inf)
    neighbour: NDArray[np.int64] = similarity.argmax(1)
    return neighbour if truth is None else truth[neighbour]


@dataclass(frozen=True)
class Agreement:
    """The smaller file beside the fp32 one, on the same images.

    Attributes:
        accuracy, accuracy_fp32: fraction of labels that are right; None where the images have none.
        agreement: fraction of images that get the same label from both.
        mean_cosine, min_cosine: of the two features of an image.
        images: number of images.
        label_source: how a label was had from features.
        image_source: where the images came from.
    """

    accuracy: float | None
    accuracy_fp32: float | None
    agreement: float
    mean_cosine: float
    min_cosine: float
    images: int
    label_source: str
    image_source: str

    def bounds(self) -> dict[str, Any]:
        """What goes into the file: figures rounded, so that a second export gives the same bytes."""
        known = {"accuracy": self.accuracy, "accuracy_fp32": self.accuracy_fp32, "agreement": self.agreement}
        return {k: round(v, 3) for k, v in known.items() if v is not None} | {"images_compared": self.images}


@dataclass(frozen=True)
class SpeedUp:
    """Seconds per batch of the fp32 file and of the smaller one, timed in turn; `ratio` above 1 is faster."""

    batch: int
    fp32: Timing
    smaller: Timing

    @property
    def ratio(self) -> float:
        """Of the medians."""
        return self.fp32.median / self.smaller.median

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"ratio": round(self.ratio, 3)}


def compared_images(size: int) -> int:
    """How many images of this size a smaller file is compared on: 2,000 of 32 px, fewer of larger ones, 256 at
    least."""
    return max(FEWEST_COMPARED, min(MOST_COMPARED, MOST_COMPARED * 32**2 // size**2))


def compare_files(
    fp32: onnxruntime.InferenceSession, smaller: onnxruntime.InferenceSession, store: ImageStore, by: Labeller
) -> Agreement:
    """Both files on every image of `store`.

    Args:
        fp32, smaller: sessions with the input `images` and the output `features`.
        store: images of their size.
        by: how features are labelled; see `fair_labeller`.
    """
    ours, theirs = (_features(session, store.images) for session in (fp32, smaller))
    labels, others = by.label(ours), by.label(theirs)
    scored = store.labels is not None
    cosines = row_cosines(ours, theirs)
    return Agreement(
        accuracy=float((others == store.labels).mean()) if scored else None,
        accuracy_fp32=float((labels == store.labels).mean()) if scored else None,
        agreement=float((labels == others).mean()),
        mean_cosine=float(np.mean(cosines)),
        min_cosine=float(np.min(cosines)),
        images=len(store),
        label_source=by.source,
        image_source=store.split,
    )


def fair_labeller(store: ImageStore, probe: ChosenProbe | None) -> Labeller:
    """The probe, where it knows the classes of `store` or `store` knows none; else the nearest neighbour."""
    if probe is not None and (store.labels is None or probe.class_names == store.class_names):
        return Labeller(lambda features: probe.probabilities(features).argmax(1), f"linear probe {probe.id}")
    return nearest_neighbour(store.labels)


def _features(session: onnxruntime.InferenceSession, images: Pixels) -> NDArray[np.float32]:
    return np.concatenate([session.run([OUTPUT], {INPUT: batch})[0] for batch in batches(images)])


def check_agreement(agreement: Agreement, precision: str) -> None:
    """The gate of accuracy.

    Raises:
        CheckFailed: more than a point is lost; or, without labels, the features point elsewhere.
    """
    where = f"on {counted(agreement.images, 'image')} ({agreement.image_source}), label by {agreement.label_source}"
    fix = f"calibrate on more, or other, images with --data; or export without --{precision}"
    if agreement.accuracy is None or agreement.accuracy_fp32 is None:
        if not agreement.mean_cosine >= MEAN_COSINE_LIMIT:
            raise CheckFailed(
                f"the {precision} file's features point elsewhere than those in fp32; it was not written",
                saw=f"mean cosine {agreement.mean_cosine:.4f} (limit {MEAN_COSINE_LIMIT:g}) {where}",
                fix=fix,
            )
        return
    lost = agreement.accuracy_fp32 - agreement.accuracy
    if not lost <= max(LOSS_LIMIT, 1 / agreement.images) + 1e-9:
        raise CheckFailed(
            f"the {precision} file loses more than {100 * LOSS_LIMIT:g} point of accuracy; it was not written",
            saw=f"{agreement.accuracy:.2%} against {agreement.accuracy_fp32:.2%} in fp32 {where}",
            fix=fix,
        )


def measure_speed(
    fp32: onnxruntime.InferenceSession, smaller: onnxruntime.InferenceSession, images: NDArray[np.uint8]
) -> SpeedUp:
    """Both files in turn on one batch: 64 images of 32 px, fewer of larger ones."""
    batch = next(batches(images))
    calls = {
        "fp32": lambda: fp32.run([OUTPUT], {INPUT: batch}),
        "smaller": lambda: smaller.run([OUTPUT], {INPUT: batch}),
    }
    timed = interleave(calls, ROUNDS)
    return SpeedUp(len(batch), timed["fp32"], timed["smaller"])


def check_speed(speed: SpeedUp, vnni: bool) -> None:
    """The gate of speed.

    Raises:
        CheckFailed: int8 is not `SPEED_UP` times as fast as fp32; says whether the processor has what int8 needs.
    """
    if speed.ratio >= SPEED_UP:
        return
    why = "" if vnni else "; this processor has no VNNI, the instructions that make int8 fast"
    raise CheckFailed(
        "the int8 file is not faster than the fp32 one; it was not written",
        saw=f"{speed.ratio:.2f} × in batches of {speed.batch} (limit {SPEED_UP:g} ×){why}",
        fix="export on a machine with VNNI, or without --int8" if not vnni else "try again on a quiet machine",
    )
