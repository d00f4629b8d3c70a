"""Pictures of features: maps by PCA and t-SNE, nearest neighbours, the spectrum that shows a collapse.

Imports no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from ..errors import PlatformError, counted
from ..evaluation.metrics import feature_statistics, one_thread
from ..evaluation.records import Embeddings, load_embeddings, load_neighbours
from ..evaluation.result import Comparison
from ..files import Folder, read_arrays
from ..sealing import NewerError
from .content import ReportContent, short_name
from .style import (
    DOTTED,
    FEATURES,
    LIGHT,
    MARKERS,
    SCRATCH_DASHES,
    SMALL,
    WIDTH,
    Picture,
    Sheet,
    Theme,
    Tile,
    broken,
    label,
    labels,
    legend_below,
    mark_image,
    new_figure,
    new_grid,
    set_title,
    shortened,
    show_image,
    titled,
    unnamed,
)

MOST_CLASSES = 20  # of a map; with more, the largest are coloured and the rest stays grey
LAYERS = 8  # classes are drawn in so many rounds, so that the last does not cover the others
# van der Maaten & Hinton 2008 (JMLR 9) reduce by PCA first and find any perplexity between 5 and 50 good; 50 components
# and 30 are what scikit-learn suggests.
TSNE_DIMENSIONS = 50
TSNE_PERPLEXITY = 30.0
TSNE_IMAGES = 5_000
ONE_THREAD = 1_000  # up to so many points
QUERIES = 6  # rows of the nearest-neighbour sheet
NEIGHBOUR_ARRAYS = ("queries", "query_labels", "images", "labels", "cosines")
LONGEST = 12  # columns of a class name that fit under an image
MOST_BARS = 20  # classes; with more, the shares are sorted and summed up to a curve
TSNE_NOTE = (
    f"t-SNE (perplexity {TSNE_PERPLEXITY:g}): who is next to whom can be trusted, distances and sizes of groups cannot."
)
NEIGHBOURS_NOTE = "Neighbours: a test image, framed, then the train images with the largest cosine to it."
FLOOR = 1e-6  # of the largest singular value: below lies rounding
ENCODERS = ("pretrained", "random")

Map = tuple[NDArray[np.float32], NDArray[np.int64]]  # coordinates [n, 2], and which rows of the features they are
T = TypeVar("T")


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


def tsne(features: NDArray[np.float32], limit: int = TSNE_IMAGES, seed: int = 0) -> Map:
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

    deviation = float(reduced[:, 0].std())
    start: NDArray[np.float32] | str = "random"
    if deviation > 0 and reduced.shape[1] > 1:  # from the principal components, so that the map keeps the large shape
        start = (reduced[:, :2] * (1e-4 / deviation)).astype(np.float32)
    perplexity = min(TSNE_PERPLEXITY, (len(rows) - 1) / 3)
    # Beside other work, threads that meet a thousand times for a small map only wait for each other (see one_thread).
    with one_thread() if len(rows) <= ONE_THREAD else nullcontext():
        drawn = TSNE(2, init=start, perplexity=perplexity, random_state=seed).fit_transform(reduced)
    return np.asarray(drawn, dtype=np.float32), rows


def cached_tsne(features: NDArray[np.float32], directory: Path, limit: int = TSNE_IMAGES, seed: int = 0) -> Map:
    """`tsne`, kept as `tsne-HASH.npz` in `directory` under the bytes of the features, so that it is computed once.

    A file that is not whole is computed and written again; where it cannot be written, the map is only returned.
    """
    key = hashlib.sha256(f"{features.shape} {features.dtype} {limit} {seed}".encode())
    key.update(np.ascontiguousarray(features).data)
    path = directory / f"tsne-{key.hexdigest()[:16]}.npz"
    stored = _read_map(path, len(features), limit)
    if stored is not None:
        return stored
    coordinates, rows = tsne(features, limit, seed)
    with suppress(PlatformError, NewerError), _opened(directory).sealing(path.name) as file:
        np.savez(file, coordinates=coordinates, rows=rows)
    return coordinates, rows


def _opened(directory: Path) -> Folder:
    """The directory of a run, which is not made; a link in its place is refused."""
    return Folder.open(directory.parent).folder(directory.name, make=False)


def _read_map(path: Path, total: int, limit: int) -> Map | None:
    arrays = read_arrays(path, "it is computed again", "coordinates", "rows", needed=True)
    if arrays is None:
        return None
    coordinates, rows = arrays
    whole = coordinates.shape == (min(total, limit), 2) and rows.shape == coordinates.shape[:1]
    whole = whole and coordinates.dtype == np.float32 and rows.dtype == np.int64
    whole = whole and bool(np.isfinite(coordinates).all()) and rows.min() >= 0 and rows.max() < total
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
        points = f"n = {len(coordinates):,}" + (f" of {total:,}" if total > len(coordinates) else "")
        figure, axes = new_figure(f"{title} ({points})", 3.2)
        rest = ~np.isin(labels, shown)
        size, faint = (float(np.clip(7_000 / max(1, n), 2, 16)) for n in ((~rest).sum(), len(coordinates)))
        if rest.any():
            others = f"the other {len(np.unique(labels[rest])):,} classes"
            _scatter(axes, coordinates[rest], s=faint, c=theme.scratch, alpha=0.25, label=others)
        layers = LAYERS if len(coordinates) > 1_000 else 1
        for layer in range(layers):
            for k, index in enumerate(shown):
                cycle = k // len(theme.categories)
                look: dict[str, Any] = {"c": theme.categories[k % len(theme.categories)]}
                look["marker"] = MARKERS[(cycle + k) % len(MARKERS)]
                name = label(class_names[index], int(index)) if layer == 0 else None
                _scatter(axes, coordinates[labels == index][layer::layers], s=size, alpha=0.65, label=name, **look)
        axes.set(xlabel=axis_names[0], ylabel=axis_names[1])
        axes.margins(0.03)
        legend = legend_below(figure, 5, handlelength=1.0, handletextpad=0.3)
        for handle in legend.legend_handles:
            if isinstance(handle, PathCollection):
                handle.set(alpha=1.0, sizes=[20.0])
        return figure


def _scatter(axes: Axes, points: NDArray[np.float32], **look: Any) -> None:
    axes.scatter(points[:, 0], points[:, 1], linewidths=0, rasterized=True, **look)


def neighbours_figure(
    queries: NDArray[np.uint8],
    query_labels: NDArray[np.int64],
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    cosines: NDArray[np.floating],
    class_names: Sequence[str],
    *,
    title: str = "",
    theme: Theme = LIGHT,
) -> Figure:
    """One row per query: the query, framed, then its k neighbours with their class and cosine, nearest first.

    Args:
        queries: uint8 `[q, S, S, 3]`, q ≥ 1; `query_labels` int64 `[q]`.
        query_labels: their classes, in 0..C-1.
        images: uint8 `[q, k, S, S, 3]`, k ≥ 1.
        labels: int64 `[q, k]`; a neighbour of the query's class has a tick and a solid frame, another one a cross and
            a dashed frame of another colour.
        cosines: `[q, k]`, in -1..1.
        class_names: C names.
        title: first words of the title.

    Raises:
        ValueError: the arrays do not belong together.
    """
    count, k = labels.shape if labels.ndim == 2 else (0, 0)
    together = len(queries) == len(query_labels) == count and images.shape[:2] == cosines.shape == labels.shape
    if not together or 0 in (count, k) or images.ndim != 5 or queries.ndim != 4:
        raise ValueError(
            "need queries [q, S, S, 3], neighbours [q, k, S, S, 3] and their labels and cosines [q, k], saw "
            f"{queries.shape}, {images.shape}, {labels.shape}, {cosines.shape}"
        )
    same = labels == query_labels[:, None]
    text = f"{int(same.sum())} of {same.size} neighbours are of the query's class"
    below: dict[str, Any] = {"fontsize": 6.8, "color": theme.text, "labelpad": 3.0, "linespacing": 1.1}
    with theme.applied(class_names):
        figure, grid = new_grid(count, 1 + k, 0.72, 0.42, titled(title, text))
        for row in range(count):
            own = int(query_labels[row])
            show_image(grid[row, 0], queries[row], theme.text)
            grid[row, 0].set_xlabel(f"{label(class_names[own], own, LONGEST)}\nquery", **below)
            for column in range(k):
                axes, other, hit = grid[row, 1 + column], int(labels[row, column]), bool(same[row, column])
                show_image(axes, images[row, column], theme.second if hit else theme.chance, dashed=not hit)
                mark_image(axes, hit, theme)
                words = f"{label(class_names[other], other, LONGEST)}\n{_cosine(cosines[row, column])}"
                axes.set_xlabel(words, **below)
        return figure


def _cosine(value: float) -> str:
    """`0.91`, `−0.25`; never `−0.00`."""
    return f"{round(float(value), 2) + 0.0:.2f}".replace("-", "−")


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of a feature matrix, largest first, float64 `[D]`, and their effective rank (RankMe), 1..D."""

    values: NDArray[np.float64]
    effective_rank: float


def spectrum(features: NDArray[np.float32]) -> Spectrum:
    """Of finite features float32 `[N, D]`, not centred, as RankMe is defined (arXiv 2210.02885, equations 2 and 3)."""
    rows = features.astype(np.float64)
    with one_thread():
        values = np.sqrt(np.linalg.eigvalsh(rows.T @ rows).clip(0.0))[::-1]
    return Spectrum(values, feature_statistics(features).effective_rank)


def collapse_figure(
    trained: Spectrum | None,
    scratch: Spectrum | None,
    *,
    class_names: Sequence[str] = (),
    trained_counts: NDArray[np.int64] | None = None,
    scratch_counts: NDArray[np.int64] | None = None,
    support: NDArray[np.int64] | None = None,
    images: int = 0,
    title: str = "",
    theme: Theme = LIGHT,
) -> Figure:
    """How many directions the features use, and which share of the images each class is named for; both in one figure,
    or what was given of the two. A collapsed encoder has one large singular value, and a classifier on it names one
    class for all.

    Args:
        trained, scratch: spectra of the trained and of the random encoder; either may be missing.
        class_names: C names.
        trained_counts, scratch_counts: int64 `[C]`, images that each class was predicted for.
        support: int64 `[C]`, images that are of each class.
        images: images that the spectra are of, for the axis; 0 if unknown.
        title: the method that predicted, for the lower title.

    Above 20 classes the shares are summed up, the most often named class first, one curve per encoder.
    """
    spectra, counts = _encoders(trained, scratch, theme), _encoders(trained_counts, scratch_counts, theme)
    bars = bool(counts) and len(class_names) <= MOST_BARS
    heights = [3.2] * bool(spectra) + [max(3.2, 1.2 + 0.2 * len(class_names)) if bars else 3.2] * bool(counts)
    titles = ["Directions that the features use" + (f" (n = {images:,})" if images else "")] * bool(spectra)
    titles += [titled(title, f"predicted classes (n = {int(part.sum()):,})") for part, *_ in counts[:1]]
    with theme.applied(class_names):
        figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
        set_title(figure, titles[0])
        panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        if spectra:
            _spectra(panels[0], spectra)
        if counts:
            (_share_bars if bars else _share_curves)(panels[-1], counts, support, class_names, theme)
            panels[-1].set_title("" if len(titles) == 1 else broken(titles[1]))
        return figure


def _encoders(trained: T | None, scratch: T | None, theme: Theme) -> list[tuple[T, str, str]]:
    """What there is of the two encoders, each with its name and colour."""
    both = zip((trained, scratch), ENCODERS, (theme.trained, theme.scratch), strict=True)
    return [(part, name, colour) for part, name, colour in both if part is not None]


def _spectra(axes: Axes, spectra: Sequence[tuple[Spectrum, str, str]]) -> None:
    smallest = 1.0
    for part, name, colour in spectra:
        share = part.values / max(float(part.values[0]), 1e-300)
        smallest = min(smallest, float(share[-1]))
        text = f"{name}: effective rank {part.effective_rank:.1f} of {len(share)}"
        dashes = "solid" if name == "pretrained" else SCRATCH_DASHES
        axes.plot(np.arange(1, len(share) + 1), share.clip(FLOOR / 10), color=colour, linestyle=dashes, label=text)
    axes.set_yscale("log")
    axes.set_ylim(max(FLOOR, min(0.5 * smallest, 0.1)), 2.0)
    axes.set(xlabel="direction, largest first", ylabel="singular value (largest = 1)")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.tick_params(which="minor", length=0)
    axes.legend(fontsize=SMALL, handlelength=2.2)


def _share_bars(
    axes: Axes,
    counted: Sequence[tuple[NDArray[np.int64], str, str]],
    support: NDArray[np.int64] | None,
    class_names: Sequence[str],
    theme: Theme,
) -> None:
    height = 0.8 / len(counted)
    for k, (counts, name, colour) in enumerate(counted):
        at = np.arange(len(counts)) + (k - (len(counted) - 1) / 2) * height
        axes.barh(at, counts / max(1, counts.sum()), height=0.92 * height, color=colour, label=f"named, {name}")
    if support is not None:
        for row, share in enumerate(support / max(1, support.sum())):
            once = "true share" if row == 0 else None
            axes.plot([share, share], [row - 0.42, row + 0.42], color=theme.text, linewidth=1.6, label=once)
    axes.set_yticks(range(len(class_names)), labels(class_names, LONGEST))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="share of the test images", xlim=(0.0, None))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    figure = axes.figure
    assert isinstance(figure, Figure)
    legend_below(figure, handles=axes.get_legend_handles_labels()[0])


def _share_curves(
    axes: Axes,
    counted: Sequence[tuple[NDArray[np.int64], str, str]],
    support: NDArray[np.int64] | None,
    class_names: Sequence[str],
    theme: Theme,
) -> None:
    curves = [(counts, f"named, {name}", colour) for counts, name, colour in counted]
    curves += [(support, "true share", theme.text)] if support is not None else []
    for (counts, name, colour), dashes in zip(curves, ("solid", SCRATCH_DASHES, DOTTED), strict=False):
        share = np.cumsum(np.sort(counts)[::-1]) / max(1, counts.sum())
        axes.plot(np.arange(1, len(share) + 1), share, color=colour, linestyle=dashes, label=name)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.tick_params(which="minor", length=0)
    classes = f"of {len(class_names):,} classes, most often named first"
    axes.set(xlabel=classes, ylabel="share of the test images", ylim=(0.0, 1.04))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure = axes.figure
    assert isinstance(figure, Figure)
    legend_below(figure, handles=axes.get_legend_handles_labels()[0], handlelength=2.2)


def feature_pictures(content: ReportContent) -> list[Picture]:
    """The test features of the trained encoder and of the random one: maps, neighbours, spectrum."""
    directory = content.run.directory / "embeddings"
    stored = [_finite(directory, split) for split in ("test", "test_scratch")]
    both = [(features, encoder) for features, encoder in zip(stored, ENCODERS, strict=True) if features is not None]
    spectra = _spectrum(stored, content.headline)
    pictures = []
    for k, (features, encoder) in enumerate(both):  # on the page a row for each encoder
        pictures += [_components(features, encoder), _tsne(features, encoder, directory), *spectra[k : k + 1]]
    pictures += spectra[len(both) :]
    for name, encoder in zip(("neighbours", "neighbours_scratch"), ENCODERS, strict=True):
        pictures += _neighbours(directory, name, encoder)
    return pictures


def _finite(directory: Path, split: str) -> Embeddings | None:
    """Embeddings that can be mapped: at least two rows and columns, no NaN."""
    stored = load_embeddings(directory, split)
    if stored is None or stored.features.shape[1] < 2 or len(stored.features) < 2 or stored.labels.min() < 0:
        return None
    return stored if np.isfinite(stored.features).all() else None


def _map_picture(kind: str, stored: Embeddings, caption: str, draw: partial[Figure], note: str) -> Picture:
    classes = len(stored.class_names)
    if classes > MOST_CLASSES:
        caption += f" Of {classes:,} classes the {MOST_CLASSES} with the most images are coloured."
    return Picture(f"embedding-{kind}", FEATURES, caption + unnamed(stored.class_names), draw, note)


def _components(stored: Embeddings, encoder: str) -> Picture:
    coordinates, share = principal_components(np.asarray(stored.features))
    axis_names = (f"component 1 ({100 * share[0]:.1f} % of the variance)", f"component 2 ({100 * share[1]:.1f} %)")
    words: dict[str, Any] = {"axis_names": axis_names, "title": f"PCA, {encoder} encoder"}
    caption = (
        f"All {counted(len(coordinates), 'test image')} of {short_name(stored.data)} along the two directions of "
        f"largest variance ({100 * sum(share):.0f} % of it)."
    )
    draw = partial(embedding_figure, coordinates, stored.labels, stored.class_names, **words)
    return _map_picture(f"pca-{encoder}", stored, caption, draw, "")


def _tsne(stored: Embeddings, encoder: str, directory: Path) -> Picture:
    total = len(stored.features)
    coordinates, rows = cached_tsne(np.asarray(stored.features), directory)
    words: dict[str, Any] = {"axis_names": ("t-SNE 1 (no unit)", "t-SNE 2 (no unit)")}
    words["title"] = f"t-SNE, {encoder} encoder"
    which = f"all {total:,}"
    if len(rows) < total:
        which = f"{len(rows):,} of the {total:,}, at even distances along the file,"
    kept = min(TSNE_DIMENSIONS, stored.features.shape[1])
    caption = f"The same test images ({which} through {kept} principal components)."
    draw = partial(embedding_figure, coordinates, stored.labels[rows], stored.class_names, total=total, **words)
    return _map_picture(f"tsne-{encoder}", stored, caption, draw, TSNE_NOTE)


def _neighbours(directory: Path, name: str, encoder: str) -> list[Picture]:
    stored = load_neighbours(directory, name)
    if stored is None or 0 in stored.labels.shape:
        return []
    same = float((stored.labels == stored.query_labels[:, None]).mean())
    shown, names = min(QUERIES, len(stored.queries)), stored.class_names
    first: dict[str, Any] = {name: getattr(stored, name)[:shown] for name in NEIGHBOUR_ARRAYS}
    part = f"; {shown} of them are shown" if shown < len(stored.queries) else ""
    k = stored.labels.shape[1]
    caption = (
        f"{100 * same:.0f} % of the {k} train images nearest to {counted(len(stored.queries), 'test image')} are of "
        f"the same class{part}."
    )
    draw = partial(neighbours_figure, **first, class_names=names, title=f"{encoder} encoder")
    sheet = Sheet(f"Neighbours, {encoder} encoder", _tiles(**first, class_names=names), 1 + k, -(-(1 + k) // 2))
    return [Picture(f"neighbours-{encoder}", FEATURES, caption + unnamed(names), draw, NEIGHBOURS_NOTE, sheet)]


def _tiles(
    queries: NDArray[np.uint8],
    query_labels: NDArray[np.int64],
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    cosines: NDArray[np.floating],
    class_names: Sequence[str],
) -> list[Tile]:
    """The arguments of `neighbours_figure` as the page shows them."""
    tiles = []
    for query, own, *near in zip(queries, query_labels, images, labels, cosines, strict=True):
        name = class_names[own]
        tiles.append(Tile(query, f"a test image of class {name}", "query", shortened(name, LONGEST)))
        for image, other, cosine in zip(*near, strict=True):
            name, value, kind = class_names[other], _cosine(cosine), "right" if other == own else "wrong"
            words = f"a train image of class {name}, cosine {value}"
            tiles.append(Tile(image, words, kind, shortened(name, LONGEST), value))
    return tiles


def _spectrum(both: Sequence[Embeddings | None], headline: Comparison | None) -> list[Picture]:
    """Collapse, or its absence: singular values, and what the headline's classifiers name."""
    spectra = [spectrum(np.asarray(stored.features)) if stored is not None else None for stored in both]
    if not any(spectra):
        return []
    ranks = " and ".join(
        f"{part.effective_rank:.1f} of {len(part.values)} ({encoder})"
        for part, encoder in zip(spectra, ENCODERS, strict=True)
        if part is not None
    )
    images = next(len(stored.features) for stored in both if stored is not None)
    caption = f"Singular values of the test features: a collapsed encoder has one. Effective rank (RankMe): {ranks}."
    pictures = [Picture("spectrum", FEATURES, caption, partial(collapse_figure, *spectra, images=images))]
    if headline is None:
        return pictures
    shown, counts = headline.shown, [result.confusion.sum(0) if result else None for result in headline.both]
    named = ", ".join(
        f"{int((count > 0).sum()):,} of {len(count):,} on the {encoder} encoder (one for "
        f"{100 * count.max() / max(1, count.sum()):.0f} % of the images)"
        for count, encoder in zip(counts, ENCODERS, strict=True)
        if count is not None
    )
    options: dict[str, Any] = {"class_names": shown.class_names, "support": shown.confusion.sum(1)}
    options |= {"trained_counts": counts[0], "scratch_counts": counts[1], "title": headline.name}
    draw = partial(collapse_figure, None, None, **options)
    caption = f"Classes that are named at all: {named}.{unnamed(shown.class_names)}"
    return [*pictures, Picture("named-classes", FEATURES, caption, draw)]
