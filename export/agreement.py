"""What a smaller file costs and gains: its labels against those of the fp32 file, its speed; the gates of int8 and
fp16."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from simclr_engine.data.store import ImageStore, Pixels
from simclr_engine.errors import CheckFailed
from simclr_engine.timing import Timing, interleave

from .labels import Labeller, nearest_neighbour
from .parity import row_cosines
from .probe import ChosenProbe
from .runtime import INPUT, OUTPUT

LOSS_LIMIT = 0.01  # of accuracy: one point; below a hundred images, one image
COSINE_LIMIT = 0.99  # of the mean cosine to the fp32 features, where no labels are known
SPEED_UP = 1.2  # int8 against fp32, images per second
FEWEST_COMPARED, MOST_COMPARED = 256, 2000
ROUNDS = 5


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


def compared_images(size: int, precision: str) -> int:
    """How many images of this size are compared: 2,000 of 32 px, fewer of larger ones, 256 at least.

    fp16, which a CPU computes slowly and which has passed the parity gate before, is compared on 256.
    """
    if precision == "fp16":
        return FEWEST_COMPARED
    return max(FEWEST_COMPARED, min(MOST_COMPARED, MOST_COMPARED * 32**2 // size**2))


def compare(
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
    size = max(1, min(64, 64 * 32**2 // images.shape[1] ** 2))
    parts = [
        session.run([OUTPUT], {INPUT: np.ascontiguousarray(images[i : i + size])})[0]
        for i in range(0, len(images), size)
    ]
    return np.concatenate(parts)


def check_agreement(found: Agreement, precision: str) -> None:
    """The gate of accuracy.

    Raises:
        CheckFailed: more than a point is lost; or, without labels, the features point elsewhere.
    """
    where = f"on {found.images} images ({found.image_source}), label by {found.label_source}"
    fix = f"calibrate on more, or other, images with --data; or export without --{precision}"
    if found.accuracy is None or found.accuracy_fp32 is None:
        if not found.mean_cosine >= COSINE_LIMIT:
            raise CheckFailed(
                f"the {precision} file's features point elsewhere than those in fp32; it was not written",
                saw=f"mean cosine {found.mean_cosine:.4f} (limit {COSINE_LIMIT:g}) {where}",
                fix=fix,
            )
        return
    lost = found.accuracy_fp32 - found.accuracy
    if not lost <= max(LOSS_LIMIT, 1 / found.images) + 1e-9:
        raise CheckFailed(
            f"the {precision} file loses more than {100 * LOSS_LIMIT:g} point of accuracy; it was not written",
            saw=f"{found.accuracy:.2%} against {found.accuracy_fp32:.2%} in fp32 {where}",
            fix=fix,
        )


def measure_speed(
    fp32: onnxruntime.InferenceSession, smaller: onnxruntime.InferenceSession, images: NDArray[np.uint8]
) -> SpeedUp:
    """Both files in turn on one batch: 64 images of 32 px, fewer of larger ones."""
    batch = np.ascontiguousarray(images[: max(1, min(64, 64 * 32**2 // images.shape[1] ** 2))])
    calls = {
        "fp32": lambda: fp32.run([OUTPUT], {INPUT: batch}),
        "smaller": lambda: smaller.run([OUTPUT], {INPUT: batch}),
    }
    timed = interleave(calls, ROUNDS)
    return SpeedUp(len(batch), timed["fp32"], timed["smaller"])


def check_speed(found: SpeedUp, vnni: bool) -> None:
    """The gate of speed.

    Raises:
        CheckFailed: int8 is not `SPEED_UP` times as fast as fp32; says whether the processor has what int8 needs.
    """
    if found.ratio >= SPEED_UP:
        return
    why = "" if vnni else "; this processor has no VNNI, the instructions that make int8 fast"
    raise CheckFailed(
        "the int8 file is not faster than the fp32 one; it was not written",
        saw=f"{found.ratio:.2f} × in batches of {found.batch} (limit {SPEED_UP:g} ×){why}",
        fix="export on a machine with VNNI, or without --int8" if not vnni else "try again on a quiet machine",
    )
