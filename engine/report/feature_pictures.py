"""Which pictures the stored features of a run give: maps, nearest neighbours, spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..evaluation.records import Embeddings, load_embeddings, load_neighbours
from ..evaluation.result import Comparison
from . import collapse, embedding, neighbours
from .content import ReportContent, short_name
from .picture import FEATURES, Picture, unnamed
from .style import Theme

QUERIES = 8  # rows of the nearest-neighbour sheet


def feature_pictures(content: ReportContent) -> list[Picture]:
    """The test features of the trained encoder and of the random one: maps, neighbours, spectrum."""
    directory = content.run.directory / "embeddings"
    both = [_finite(directory, split) for split in ("test", "test_scratch")]
    encoders = ("pretrained", "random")
    found = [
        picture
        for draw in (_components, _tsne)
        for one, encoder in zip(both, encoders, strict=True)
        if one is not None
        for picture in draw(one, encoder, directory)
    ]
    found += [
        p
        for name, e in zip(("neighbours", "neighbours_scratch"), encoders, strict=True)
        for p in _neighbours(directory, name, e)
    ]
    return found + _spectrum(both, content.headline)


def _finite(directory: Path, split: str) -> Embeddings | None:
    """Embeddings that can be mapped: at least two rows and columns, no NaN."""
    found = load_embeddings(directory, split)
    if found is None or found.features.shape[1] < 2 or len(found.features) < 2 or found.labels.min() < 0:
        return None
    return found if np.isfinite(found.features).all() else None


def _components(found: Embeddings, encoder: str, directory: Path) -> list[Picture]:
    coordinates, share = embedding.principal_components(np.asarray(found.features))
    axis_names = (f"component 1 ({100 * share[0]:.1f} % of the variance)", f"component 2 ({100 * share[1]:.1f} %)")

    def draw(theme: Theme) -> Figure:
        return embedding.embedding_figure(
            coordinates,
            found.labels,
            found.class_names,
            axis_names=axis_names,
            title=f"PCA, {encoder} encoder",
            theme=theme,
        )

    caption = (
        f"All {len(coordinates):,} test images of {short_name(found.data)} as the {encoder} encoder sees them, "
        f"along the two directions of largest variance ({100 * sum(share):.0f} % of it)."
    )
    return [
        Picture(f"embedding-pca-{encoder}", FEATURES, caption + _uncoloured(found) + unnamed(found.class_names), draw)
    ]


def _tsne(found: Embeddings, encoder: str, directory: Path) -> list[Picture]:
    total = len(found.features)
    coordinates, rows = embedding.cached_tsne(np.asarray(found.features), directory)
    labels = found.labels[rows]

    def draw(theme: Theme) -> Figure:
        return embedding.embedding_figure(
            coordinates,
            labels,
            found.class_names,
            axis_names=("t-SNE 1 (no unit)", "t-SNE 2 (no unit)"),
            total=total,
            title=f"t-SNE, {encoder} encoder",
            theme=theme,
        )

    which = (
        f"{len(rows):,} of the {total:,}, at even distances along the file," if len(rows) < total else f"all {total:,}"
    )
    kept = min(embedding.TSNE_DIMENSIONS, found.features.shape[1])
    caption = (
        f"The same test images of {short_name(found.data)} ({which} through {kept} principal components) by t-SNE, "
        f"perplexity {embedding.TSNE_PERPLEXITY:g}: who is next to whom can be trusted, distances and sizes of groups "
        "cannot."
    )
    return [
        Picture(f"embedding-tsne-{encoder}", FEATURES, caption + _uncoloured(found) + unnamed(found.class_names), draw)
    ]


def _uncoloured(found: Embeddings) -> str:
    classes = len(found.class_names)
    most = embedding.MOST_CLASSES
    return f" Of {classes:,} classes the {most} with the most images are coloured." if classes > most else ""


def _neighbours(directory: Path, name: str, encoder: str) -> list[Picture]:
    found = load_neighbours(directory, name)
    if found is None or 0 in found.labels.shape:
        return []
    same = float((found.labels == found.query_labels[:, None]).mean())
    shown, names = min(QUERIES, len(found.queries)), [str(one) for one in found.class_names]
    part = f"; {shown} of them are shown" if shown < len(found.queries) else ""

    def draw(theme: Theme) -> Figure:
        return neighbours.neighbours_figure(
            found.queries[:shown],
            found.query_labels[:shown],
            found.images[:shown],
            found.labels[:shown],
            found.cosines[:shown],
            names,
            title=f"{encoder} encoder",
            theme=theme,
        )

    caption = (
        f"{len(found.queries)} test images and, for each, the {found.labels.shape[1]} train images that the {encoder} "
        f"encoder puts nearest (cosine){part}. {100 * same:.0f} % of the neighbours are of the query's class."
    )
    return [Picture(f"neighbours-{encoder}", FEATURES, caption + unnamed(names), draw)]


def _spectrum(both: Sequence[Embeddings | None], headline: Comparison | None) -> list[Picture]:
    """Collapse, or its absence: singular values, and what the headline's classifiers name."""
    spectra = [collapse.spectrum(np.asarray(one.features)) if one is not None else None for one in both]
    if not any(spectra):
        return []
    counts = [result.confusion.sum(0) if result else None for result in headline.both] if headline else [None, None]
    shown = headline.shown if headline else None
    images = next(len(one.features) for one in both if one is not None)

    def draw(theme: Theme) -> Figure:
        return collapse.collapse_figure(
            spectra[0],
            spectra[1],
            class_names=shown.class_names if shown else (),
            trained_counts=counts[0],
            scratch_counts=counts[1],
            support=shown.confusion.sum(1) if shown else None,
            images=images,
            title=headline.name if headline else "",
            theme=theme,
        )

    ranks = " and ".join(
        f"{one.effective_rank:.1f} of {len(one.values)} ({encoder})"
        for one, encoder in zip(spectra, ("pretrained", "random"), strict=True)
        if one is not None
    )
    named = ""
    for count, encoder in zip(counts, ("pretrained", "random"), strict=True):
        if count is not None:
            named += (
                f" On the {encoder} encoder, {int((count > 0).sum()):,} of {len(count):,} classes are named at all, "
            )
            named += f"the most frequent for {100 * count.max() / max(1, count.sum()):.0f} % of the images."
    caption = (
        f"Singular values of the test features: a collapsed encoder has one. Effective rank (RankMe): {ranks}.{named}"
    )
    return [Picture("spectrum", FEATURES, caption + (unnamed(shown.class_names) if shown else ""), draw)]
