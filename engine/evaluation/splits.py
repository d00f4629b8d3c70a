"""What a method learns from and what it must predict, and what no honest evaluation can use. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..data.arrangement import look_alike
from ..data.store import ImageStore, copy_numbers, image_hashes
from ..errors import CheckFailed, DataError, UsageError, shown
from ..run import public_name

if TYPE_CHECKING:
    from ..run import Run

REFUSED_OVERLAP = 0.01  # of the test images
OVERLAPS = "allowed by --allow-overlap: the score is in part a memory test"
SEED = 0  # of every draw of an evaluation: both encoders get the same splits, layers and crops


@dataclass(frozen=True, eq=False)
class Split:
    """One training set and the images to predict. No method is given the labels of the latter.

    Attributes:
        train, test: the splits.
        rows: int64 `[n]`, rows of `train` whose labels may be learnt from.
        held_out: int64 `[m]`, rows of `train` that are scored in place of the test split; empty without folds.
        fold: 1-based; 0 without folds.
    """

    train: ImageStore
    test: ImageStore
    rows: NDArray[np.int64]
    held_out: NDArray[np.int64]
    fold: int = 0

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return len(self.test.class_names)

    @property
    def labels(self) -> NDArray[np.int64]:
        """int64 `[n]`, the labels of `rows`."""
        assert self.train.labels is not None
        return self.train.labels[self.rows]

    @property
    def queries(self) -> list[tuple[ImageStore, NDArray[np.int64]]]:
        """What to predict, in order: the held-out fold where there is one, then the test split."""
        fold = [(self.train, self.held_out)] if self.fold else []
        return [*fold, (self.test, np.arange(len(self.test)))]

    @property
    def scored(self) -> int:
        """How many of the first queries count: the held-out fold, or the test split."""
        return len(self.held_out) if self.fold else len(self.test)

    def of_queries(self, train: NDArray[np.float32], test: NDArray[np.float32]) -> NDArray[np.float32]:
        """The rows `[Q, ...]` of the queries, from values of all images of both splits."""
        return np.concatenate([train[self.held_out], test]) if self.fold else test


def make_splits(
    train: ImageStore, test: ImageStore, fraction: float = 1.0, folds: int = 0, seed: int = SEED
) -> list[Split]:
    """The split of an evaluation, or one per fold.

    Args:
        train, test: splits with labels.
        fraction: share of the train labels, in (0, 1]; stratified, and the smaller shares lie within the larger.
        folds: K ≥ 2 to cross-validate on the labelled images, each fold held out once, stratified; 0 for none. Copies
            of an image are in one fold.
        seed: of both draws.

    Raises:
        UsageError: a fraction or a number of folds that cannot be.
        DataError: a class left without images, or with fewer than folds.
    """
    if not 0 < fraction <= 1:
        raise UsageError("the share of the labels must be above 0 and at most 1", saw=fraction, fix="0.1 is a tenth")
    if folds and folds < 2:
        raise UsageError("a cross-validation needs at least two folds", saw=folds, fix="--folds 5")
    assert train.labels is not None
    rows = labelled_rows(train.labels, fraction, train.class_names, seed)
    none = np.empty(0, dtype=np.int64)
    if not folds:
        return [Split(train, test, rows, none)]
    images = train.images if len(rows) == len(train) else train.images[rows]
    fold_of = _fold_numbers(train.labels[rows], folds, train.class_names, copy_numbers(images), seed)
    return [Split(train, test, rows[fold_of != k], rows[fold_of == k], k + 1) for k in range(folds)]


def labelled_rows(
    labels: NDArray[np.int64], fraction: float, class_names: Sequence[str], seed: int = SEED
) -> NDArray[np.int64]:
    """Rows int64 `[n]`, ascending: the share `fraction` of each class, rounded to whole images.

    Raises:
        DataError: a class that has images would be left without one.
    """
    if fraction == 1:
        return np.arange(len(labels))
    rng = np.random.default_rng(seed)
    taken = []
    for label in np.unique(labels):
        at = rng.permutation(np.flatnonzero(labels == label))
        count = int(np.floor(fraction * len(at) + 0.5))
        if not count:
            least = f"{0.5 / len(at):.2g}"
            raise DataError(
                "so small a share of the labels leaves a class without images",
                saw=f"{fraction:g} of the {len(at)} images of {class_names[label]!r}",
                fix=f"--label-fraction {least} or more",
            )
        taken.append(at[:count])
    return np.sort(np.concatenate(taken))


def _fold_numbers(
    labels: NDArray[np.int64],
    folds: int,
    class_names: Sequence[str],
    copies: NDArray[np.int64] | None,
    seed: int,
) -> NDArray[np.int64]:
    """int64 `[n]` in 0..folds-1, every class spread evenly, images of one number in `copies` together."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    apart = labels if copies is None else np.unique(np.stack([labels, copies]), axis=1)[0]
    classes, counts = np.unique(apart, return_counts=True)
    if min(counts) < folds:
        smallest = int(np.argmin(counts))
        no_copy = "" if copies is None else " that is no copy"
        raise DataError(
            "a class has fewer images than there are folds",
            saw=f"{int(counts[smallest])} of {class_names[classes[smallest]]!r}{no_copy}, {folds} folds",
            fix="fewer --folds, a larger --label-fraction, or more images of that class",
        )
    numbers = np.empty(len(labels), dtype=np.int64)
    kind = StratifiedKFold if copies is None else StratifiedGroupKFold
    split = kind(folds, shuffle=True, random_state=seed).split(np.zeros(len(labels)), labels, copies)
    for k, (_, held_out) in enumerate(split):
        numbers[held_out] = k
    return numbers


def overlapping_images(train: ImageStore, test: ImageStore) -> int:
    """How many test images are, pixel for pixel, in train too."""
    known = set(image_hashes(train.images))
    return sum(h in known for h in image_hashes(test.images))


def copies_in_folds(splits: Sequence[Split]) -> tuple[str, ...]:
    """A note on the copies that a cross-validation keeps in one fold; none without folds or copies."""
    if not splits[0].fold:
        return ()
    train, rows = splits[0].train, np.concatenate([split.held_out for split in splits])
    copies = copy_numbers(train.images[rows])
    if copies is None:
        return ()
    count = len(rows) - len(np.unique(copies))
    return (f"{count:,} of {len(rows):,} images are copies of others; copies are in one fold",)


def check_splits(train: ImageStore, test: ImageStore, allow_overlap: bool = False) -> tuple[str, ...]:
    """Refuses splits that no honest probe can use; otherwise what a reader should know about them.

    Public data sets hold a handful of true duplicates between their splits, so up to 1 % of the test images may be in
    train and their number is noted; more than that is a mistake in the data, which `allow_overlap` notes as well.

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
    if train.image_size != test.image_size:
        raise DataError(
            "train and test images have different sizes",
            saw=f"{train.image_size} and {test.image_size} px",
            fix="load both splits with one size",
        )
    notes = _check_classes(train, test)
    shared = overlapping_images(train, test)
    if not shared:
        return notes
    overlap = f"{shared:,} of {len(test):,} test images are in train too, pixel for pixel"
    if shared > REFUSED_OVERLAP * len(test):
        if not allow_overlap:
            raise DataError(
                "test images are in the train split: the score would be a memory test",
                saw=f"{shared:,} of {len(test):,} test images are in train, pixel for pixel",
                fix="separate the splits, or mark the result with --allow-overlap",
            )
        overlap += f" ({OVERLAPS})"
    return (*notes, overlap)


def _check_classes(train: ImageStore, test: ImageStore) -> tuple[str, ...]:
    """Refuses classes that cannot be those of one task, and notes the classes that only the test split has."""
    if train.class_names != test.class_names:
        odd = sorted(set(train.class_names) ^ set(test.class_names))[:5]
        raise DataError(
            "train and test have different classes",
            saw=", ".join(odd) or "the same names in another order",
            fix="use one set of class folders in both splits",
        )
    learnt, asked = _present(train), _present(test)
    if len(learnt) < 2:
        raise DataError(
            "a probe needs at least two classes",
            saw=f"{len(learnt)} in {train.name}",
            fix="name data with two class folders or more",
        )
    known = {look_alike(name): name for name in learnt}
    alike = [(known[key], name) for name in asked if name not in learnt and (key := look_alike(name)) in known]
    if alike or not set(learnt) & set(asked):
        pairs = ", ".join(f"{shown(a)} in train, {shown(b)} in {test.split}" for a, b in alike[:5])
        cause = "train and test have classes whose names look alike" if alike else "train and test share no class"
        raise DataError(
            cause,
            saw=pairs or f"{', '.join(learnt[:5])} in train, {', '.join(asked[:5])} in {test.split}",
            fix="give the folders of one class one name (case, spaces and Unicode form count), or name the classes in "
            "a table: --labels FILE.csv",
        )
    strange = [name for name in asked if name not in learnt]
    if not strange:
        return ()
    assert test.labels is not None
    images = int(np.isin(test.labels, [test.class_names.index(name) for name in strange]).sum())
    named = ", ".join(strange[:5]) + (f" and {len(strange) - 5} more" if len(strange) > 5 else "")
    return (f"{images:,} test images are of classes that train lacks, so none of them can be right: {named}",)


def _present(store: ImageStore) -> list[str]:
    """The classes that have images."""
    assert store.labels is not None
    return [store.class_names[label] for label in np.unique(store.labels)]


def check_pretraining(was: str, run: Run | None, test: ImageStore, of_the_run: ImageStore | None) -> tuple[str, ...]:
    """Refuses an encoder pretrained on this very split; otherwise what is known of the images that it was trained on.

    Fingerprints are compared, for names tell nothing: another folder may have the name, and a folder other pictures.

    Args:
        was: fingerprint of the images that the encoder was pretrained on, "" if unknown.
        run: the run that pretrained it; None of a file, of which no more is known.
        test: the test split.
        of_the_run: what pretraining the run would take of the source of `test`; None where only splits are known.

    Raises:
        DataError: the test split is what it was pretrained on.
    """
    if was and was == test.fingerprint:
        raise DataError(
            "the encoder was pretrained on this very test split",
            saw=f"{test.name}, split {test.split}, fingerprint {test.fingerprint[:12]}…",
            fix="pretrain on the train split",
        )
    if run is None:
        return ()
    about, everything = run.data, str(run.data.get("split")).startswith("all")
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
