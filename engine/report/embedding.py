"""The features as a map: two coordinates per image, by principal components or t-SNE, coloured by class."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..errors import PlatformError
from ..evaluation.metrics import one_thread
from ..evaluation.records import LARGEST
from ..files import Folder
from .style import LIGHT, MARKERS, Theme, label, new_figure

MOST_CLASSES = 20  # with more, the largest are coloured and the rest stays grey
LAYERS = 8  # classes are drawn in so many rounds, so that the last does not cover the others
# van der Maaten & Hinton 2008 (JMLR 9) reduce by PCA first and find any perplexity between 5 and 50 good; 50 components
# and 30 are what scikit-learn suggests.
TSNE_DIMENSIONS = 50
TSNE_PERPLEXITY = 30.0
TSNE_IMAGES = 5_000
ONE_THREAD = 1_000  # up to so many points


def principal_components(features: NDArray[np.float32]) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """PCA of all points to two dimensions.

    Args:
        features: float32 `[N, D]`.

    Returns:
        Coordinates float32 `[N, 2]` (the sign of a component makes its largest weight positive), and the share of the
        variance, 0..1, that each of the two explains.
    """
    coordinates, share = _projected(features, 2)
    return coordinates, (float(share[0]), float(share[1]))


def _projected(features: NDArray[np.float32], dimensions: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The leading components `[N, dimensions]`, zeros where there are no more, and their share of the variance."""
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    with one_thread():
        values, vectors = np.linalg.eigh(centred.T @ centred)
    missing = max(0, dimensions - len(values))
    top = np.pad(vectors[:, ::-1][:, :dimensions], ((0, 0), (0, missing)))
    top = top * np.sign(top[np.abs(top).argmax(0), np.arange(dimensions)] + 1e-300)
    share = np.pad(values[::-1], (0, missing))[:dimensions].clip(0.0) / max(float(values.clip(0).sum()), 1e-300)
    return (centred @ top).astype(np.float32), share


def tsne(
    features: NDArray[np.float32], limit: int = TSNE_IMAGES, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """t-SNE to two dimensions of at most `limit` points (5,000 × 512 take some 20 seconds on two cores).

    Args:
        features: float32 `[N, D]`, N ≥ 1, all finite. The first 50 principal components of all N are used.
        limit: of more points, so many are taken at even distances along the file: as many of each class as there are
            in all, also where the file is sorted by class.
        seed: of scikit-learn's TSNE. The same machine gives the same map again; another may not.

    Returns:
        Coordinates float32 `[n, 2]`, n = min(N, limit), and which rows of `features` they are, int64 `[n]`.

    Raises:
        ValueError: a value is not finite.
    """
    if not np.isfinite(features).all():
        raise ValueError("features hold values that are not finite")
    rows = np.unique(np.linspace(0, len(features) - 1, min(len(features), limit)).astype(np.int64))
    reduced = _projected(features, min(TSNE_DIMENSIONS, features.shape[1]))[0][rows]
    if len(rows) < 4:  # no perplexity above 1 is possible
        return np.pad(reduced[:, :2], ((0, 0), (0, max(0, 2 - reduced.shape[1])))), rows
    from sklearn.manifold import TSNE

    spread = float(reduced[:, 0].std())
    start: NDArray[np.float32] | str = "random"
    if spread > 0 and reduced.shape[1] > 1:  # from the principal components, so that the map keeps the large shape
        start = (reduced[:, :2] * (1e-4 / spread)).astype(np.float32)
    perplexity = min(TSNE_PERPLEXITY, (len(rows) - 1) / 3)
    # Beside other work, threads that meet a thousand times for a small map only wait for each other (see one_thread).
    with one_thread() if len(rows) <= ONE_THREAD else nullcontext():
        drawn = TSNE(2, init=start, perplexity=perplexity, random_state=seed).fit_transform(reduced)
    return np.asarray(drawn, dtype=np.float32), rows


def cached_tsne(
    features: NDArray[np.float32], directory: Path, limit: int = TSNE_IMAGES, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """`tsne`, kept as `tsne-HASH.npz` in `directory` under the bytes of the features, so that it is computed once.

    A file that is not whole is computed and written again; where it cannot be written, the map is only returned.
    """
    key = hashlib.sha256(f"{features.shape} {features.dtype} {limit} {seed}".encode())
    key.update(np.ascontiguousarray(features).data)
    path = directory / f"tsne-{key.hexdigest()[:16]}.npz"
    found = _read_map(path, len(features), limit)
    if found is None:
        at = Folder.open(directory.parent).folder(directory.name, make=False)
        found = tsne(features, limit, seed)
        with suppress(PlatformError), at.writing(path.name) as file:
            np.savez(file, coordinates=found[0], rows=found[1])
    return found


def _read_map(path: Path, total: int, limit: int) -> tuple[NDArray[np.float32], NDArray[np.int64]] | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            if sum(member.file_size for member in file.zip.infolist()) > LARGEST:
                return None
            coordinates, rows = np.asarray(file["coordinates"]), np.asarray(file["rows"])
    except Exception:  # numpy, zipfile and zlib raise a dozen kinds for damaged files; all mean the same here
        return None
    whole = coordinates.shape == (min(total, limit), 2) and rows.shape == coordinates.shape[:1]
    kinds = coordinates.dtype == np.float32 and rows.dtype == np.int64
    whole = whole and kinds and np.isfinite(coordinates).all() and rows.min() >= 0 and rows.max() < total
    return (coordinates, rows) if whole else None


def embedding_figure(
    coordinates: NDArray[np.float32],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    *,
    axis_names: tuple[str, str] = ("component 1", "component 2"),
    total: int = 0,
    title: str = "PCA",
    theme: Theme = LIGHT,
) -> Figure:
    """A scatter of points float32 `[N, 2]` with labels int64 `[N]`, a colour and a mark for each class.

    All points are drawn; `total` says of how many they are a sample, where they are one. Beyond 20 classes, only the 20
    with the most points are coloured.
    """
    counts = np.bincount(labels, minlength=len(class_names))
    shown = np.sort(np.argsort(-counts, kind="stable")[:MOST_CLASSES])
    shown = shown[counts[shown] > 0]
    with theme.applied(class_names):
        figure, axes = new_figure(5.4, 5.2)
        rest = ~np.isin(labels, shown)
        size, faint = (float(np.clip(14_000 / max(1, n), 3, 26)) for n in ((~rest).sum(), len(coordinates)))
        if rest.any():
            axes.scatter(
                coordinates[rest, 0],
                coordinates[rest, 1],
                s=faint,
                c=theme.scratch,
                alpha=0.25,
                linewidths=0,
                rasterized=True,
                label=f"the other {len(np.unique(labels[rest])):,} classes",
            )
        layers = LAYERS if len(coordinates) > 1_000 else 1
        for layer in range(layers):
            for k, index in enumerate(shown):
                colours = theme.categories
                at = coordinates[labels == index][layer::layers]
                axes.scatter(
                    at[:, 0],
                    at[:, 1],
                    s=size,
                    c=colours[k % len(colours)],
                    marker=MARKERS[(k // len(colours) + k) % len(MARKERS)],
                    alpha=0.65,
                    linewidths=0,
                    rasterized=True,
                    label=label(class_names[index], int(index)) if layer == 0 else None,
                )
        axes.set_xlabel(axis_names[0])
        axes.set_ylabel(axis_names[1])
        points = f"n = {len(coordinates):,}" + (f" of {total:,}" if total > len(coordinates) else "")
        axes.set_title(f"{title} ({points})")
        axes.margins(0.03)
        columns = 5 if len(shown) <= 10 else 4
        legend = figure.legend(
            loc="outside lower center", ncols=columns, fontsize=8, handletextpad=0.2, columnspacing=1.2
        )
        for handle in legend.legend_handles:
            if isinstance(handle, PathCollection):
                handle.set(alpha=1.0, sizes=[28.0])
        return figure
