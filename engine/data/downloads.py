"""The public data sets, through torchvision's dataset classes; the only module here that imports torch."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import PlatformError
from ..files import make_folder
from ..terminal import say
from ..torchvision_shim import import_torchvision
from .cache import cache_root, unusable

# name: (torchvision class, {our split: arguments of the class})
DATASETS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "cifar10": ("CIFAR10", {"train": {"train": True}, "test": {"train": False}}),
    "cifar100": ("CIFAR100", {"train": {"train": True}, "test": {"train": False}}),
    "stl10": ("STL10", {split: {"split": split} for split in ("train", "test", "unlabeled")}),
    "svhn": ("SVHN", {"train": {"split": "train"}, "test": {"split": "test"}}),
}
_TIMEOUT_SECONDS = 30.0


def download_roots(name: str) -> list[Path]:
    """Where a data set is looked for, in order: our own downloads, and `data` in the working folder, where
    torchvision's examples put theirs. The first is where it is downloaded to."""
    return [cache_root() / "downloads" / name, Path("data")]


def load_download(name: str) -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.int64] | None, tuple[str, ...]]]:
    """The splits of a public data set, downloaded if they are not there yet.

    torchvision verifies every file's MD5 before it is read; a file that is partial or wrong is fetched again, one that
    is complete is not.

    Yields:
        (split, uint8 `[N, H, W, 3]`, possibly a strided view, int64 labels `[N]` or None, class names), one split in
        memory at a time.

    Raises:
        PlatformError: the data cannot be downloaded, the cache cannot be written, or torchvision cannot be imported.
    """
    import_torchvision()
    from torchvision import datasets

    class_name, splits = DATASETS[name]
    for split, arguments in splits.items():
        dataset = _open(getattr(datasets, class_name), name, arguments)
        images = np.asarray(dataset.data)
        if images.shape[-1] != 3:  # STL10 and SVHN keep the channels first
            images = images.transpose(0, 2, 3, 1)
        numbers = getattr(dataset, "targets", None)
        labels: NDArray[np.int64] | None = np.asarray(dataset.labels if numbers is None else numbers, dtype=np.int64)
        if labels is not None and (labels < 0).all():
            labels = None
        classes = getattr(dataset, "classes", None) or [str(label) for label in range(10)]
        yield split, images, labels, tuple(str(label) for label in classes)


def _open(dataset: Any, name: str, arguments: dict[str, Any]) -> Any:
    """The dataset from the first place that has it whole, else downloaded."""
    roots = download_roots(name)
    # torchvision prints on stdout, where a --json document may be under way.
    with contextlib.redirect_stdout(sys.stderr):
        for root in roots:
            try:
                return dataset(root, download=False, **arguments)
            except (RuntimeError, OSError):
                continue
        try:
            make_folder(roots[0])
        except OSError as error:
            raise unusable(error) from error
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(_TIMEOUT_SECONDS)  # torchvision sets none: a silent network would hang for ever
        say(f"downloading {name} to {roots[0]}")
        try:
            return dataset(roots[0], download=True, **arguments)
        except Exception as error:  # urllib, ssl, socket, tarfile and torchvision's RuntimeError for a wrong checksum
            raise PlatformError(
                f"{name} cannot be downloaded",
                saw=" ".join(str(error).split()) or type(error).__name__,
                fix=f"run again to fetch what is missing; or use images you have (--data FOLDER), or images that need "
                f"no download (--data glyphs); files of your own go to {roots[0]}",
            ) from error
        finally:
            socket.setdefaulttimeout(before)
