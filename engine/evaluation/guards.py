"""Guards on the data of a probe: labels, more than one class, one size, one set of names, no test image in train."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..data.store import ImageStore, Pixels
from ..errors import CheckFailed, DataError
from ..run import public_name

if TYPE_CHECKING:
    from .target import Target

REFUSED_OVERLAP = 0.01  # of the test images


def _image_hashes(images: Pixels) -> list[bytes]:
    """A 16-byte hash of each image's pixels."""
    return [hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest() for image in images]


def overlapping_images(train: ImageStore, test: ImageStore) -> int:
    """How many test images are, pixel for pixel, in train too."""
    known = set(_image_hashes(train.images))
    return sum(h in known for h in _image_hashes(test.images))


def check_splits(train: ImageStore, test: ImageStore) -> tuple[str, ...]:
    """Refuses splits that no honest probe can use; otherwise what a reader should know about them.

    Public data sets hold a handful of true duplicates between their splits, so up to 1 % of the test images may be in
    train and their number is noted; more than that is a mistake in the data.

    Raises:
        DataError: no labels, one class, different classes or sizes, an empty split, or overlap above 1 %.
    """
    for store in (train, test):
        if store.labels is None:
            raise DataError(
                "a probe needs labels, and this data has none",
                saw=f"{store.name}, split {store.split}",
                fix="name data with one folder per class: --data FOLDER with train/CLASS/* or CLASS/*",
            )
        if len(store) == 0:
            raise DataError("a split is empty", saw=f"{store.name}, split {store.split}", fix="name data with images")
    if train.class_names != test.class_names:
        odd = sorted(set(train.class_names) ^ set(test.class_names))[:5]
        raise DataError(
            "train and test have different classes",
            saw=", ".join(odd) or "the same names in another order",
            fix="use one set of class folders in both splits",
        )
    present = 0 if train.labels is None else len(np.unique(train.labels))
    if present < 2:
        raise DataError(
            "a probe needs at least two classes",
            saw=f"{present} in {train.name}",
            fix="name data with two class folders or more",
        )
    if train.image_size != test.image_size:
        raise DataError(
            "train and test images have different sizes",
            saw=f"{train.image_size} and {test.image_size} px",
            fix="load both splits with one size",
        )
    shared = overlapping_images(train, test)
    if shared > REFUSED_OVERLAP * len(test):
        raise DataError(
            "test images are in the train split: the score would be a memory test",
            saw=f"{shared:,} of {len(test):,} test images are in train, pixel for pixel",
            fix="separate the splits",
        )
    if shared:
        return (f"{shared:,} of {len(test):,} test images are in train too, pixel for pixel",)
    return ()


def check_pretraining(subject: Target, test: ImageStore, of_the_run: ImageStore | None) -> tuple[str, ...]:
    """Refuses an encoder pretrained on this very split; otherwise what is known of the images that it was trained on.

    Fingerprints are compared, for names tell nothing: another folder may have the name, and a folder other pictures.

    Args:
        subject: a run, or a file, of which no more is known than the fingerprint of its images.
        test: the test split.
        of_the_run: what pretraining the run would take of the source of `test`; None where only splits are known.

    Raises:
        DataError: the test split is what it was pretrained on.
    """
    was, run = subject.pretrained_on, subject.run
    if was and was == test.fingerprint:
        raise DataError(
            "the encoder was pretrained on this very test split",
            saw=f"{test.name}, split {test.split}, fingerprint {test.fingerprint[:12]}…",
            fix="pretrain on the train split",
        )
    if run is None:
        return ()
    about, everything = run.data, run.data.get("split") == "all"
    name = str(about.get("name"))
    if of_the_run is None or not was:
        unknown = not was or (everything and name == test.name)
        return ("whether the encoder was trained on these images is not known",) if unknown else ()
    if of_the_run.fingerprint != was:
        return (
            "these are not the images that the run was trained on: "
            f"{public_name(of_the_run.name)} has fingerprint {of_the_run.fingerprint[:12]}…, {name} had {was[:12]}…",
        )
    if not everything:
        return ()
    saw = "all" if about.get("limit") is None else f"{len(of_the_run):,}"
    among = "are" if about.get("limit") is None else "may be"
    return (f"pretraining saw {saw} images of this source, without labels: the held-out ones {among} among them",)


def require_finite(features: NDArray[np.float32]) -> None:
    """Refuses features float32 `[N, D]` with NaN or infinity (DataError)."""
    if not np.isfinite(features).all():
        rows = int((~np.isfinite(features).all(1)).sum())
        raise DataError(
            "the features are not finite",
            saw=f"{rows:,} of {len(features):,} rows with NaN or infinity",
            fix="the encoder has diverged: pretrain again with a lower learning rate",
        )


def require_unchanged(before: str, after: str) -> None:
    """Refuses an encoder whose weights and buffers differ after a frozen protocol (CheckFailed); both sha256."""
    if after != before:
        raise CheckFailed(
            "the encoder was changed by its own evaluation: a weight or buffer differs",
            saw=f"sha256 {before[:12]}… before, {after[:12]}… after",
            fix="a frozen protocol must not train: find what writes to the encoder in eval mode",
        )
