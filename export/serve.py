"""What the page of `serve` shows of an image: its classes, its nearest neighbours and its place among them.

`Service` answers, and the functions below lay its answers out as HTML. The processes of `answering.py` call them, so
that the server itself decodes nothing. Imports no torch.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from simclr_engine.command_line import command_here
from simclr_engine.data.decode import decode_image
from simclr_engine.errors import counted, plain
from simclr_engine.evaluation.metrics import one_thread
from simclr_engine.run import unfinished_notes

from .embedder import Embedder
from .index import NO_CLASS, EmbeddingIndex, default_index, without_itself
from .predict import no_probe
from .workers import MAX_BYTES

SHOWN_CLASSES = 5
NEIGHBOURS = 8
THUMBNAIL = 96  # pixels of a neighbour's picture, at most
MAP_POINTS = 2_000
MAP_CLASSES = 20  # with more, the largest are coloured and the rest stays grey
COLOURS = 10  # of serve.css; further classes have them again, in larger and fainter dots
MAP_WIDTH, MAP_HEIGHT, MAP_MARGIN = 640.0, 420.0, 16.0
FORMATS = "PNG, JPEG, WebP or BMP"


@dataclass(frozen=True, eq=False)
class Answer:
    """What the page shows of one image.

    Attributes:
        seen: uint8 `[S, S, 3]`, the pixels that the encoder gets.
        classes: the most probable ones with their probabilities, best first; empty without a probe.
        neighbours: pictures uint8 `[S, S, 3]` with captions, nearest first; empty without an index.
        place: position on the map; None without an index.
        itself: path of this very picture in the index; "" where it is not there.
    """

    seen: NDArray[np.uint8]
    classes: Mapping[str, float]
    neighbours: tuple[tuple[NDArray[np.uint8], str], ...]
    place: tuple[float, float] | None
    itself: str = ""


@dataclass(frozen=True, eq=False)
class EmbeddingMap:
    """The index along the two directions in which a sample of it varies most (PCA).

    Attributes:
        points: float64 `[n, 2]`, n at most `MAP_POINTS`; `labels` int64 `[n]`.
        mean, directions: float64 `[D]` and `[D, 2]`: a vector's place is `(vector − mean) · directions`.
        share: of the variance that the two directions hold, 0..1.
    """

    points: NDArray[np.float64]
    labels: NDArray[np.int64]
    mean: NDArray[np.float64]
    directions: NDArray[np.float64]
    share: float

    @classmethod
    def of(cls, index: EmbeddingIndex) -> EmbeddingMap:
        """The map of an index, from a random sample that is always the same."""
        rows = np.sort(np.random.default_rng(0).permutation(len(index))[:MAP_POINTS])
        sample = np.asarray(index.vectors[rows], dtype=np.float64)
        mean = sample.mean(0)
        with one_thread():
            values, vectors = np.linalg.eigh((sample - mean).T @ (sample - mean))
        directions = np.zeros((index.dim, 2))
        top = vectors[:, ::-1][:, :2]
        directions[:, : top.shape[1]] = top
        share = float(values[::-1][:2].sum() / max(float(values.sum()), 1e-300))
        return cls((sample - mean) @ directions, index.labels[rows], mean, directions, min(1.0, max(0.0, share)))

    def place(self, vector: NDArray[np.float32]) -> tuple[float, float]:
        """Where a vector float32 `[D]` falls."""
        x, y = (vector.astype(np.float64) - self.mean) @ self.directions
        return float(x), float(y)


class Service:
    """Answers for one image at a time.

    Raises:
        UsageError: the encoder has no probe and there is no index: there would be nothing to show.
    """

    def __init__(self, embedder: Embedder, index: EmbeddingIndex | None) -> None:
        if embedder.predict is None and index is None:
            where = default_index(embedder.path)
            raise no_probe(
                embedder, f"make an index first: {command_here('embed', embedder.path, 'DATA', '--out', where)}"
            )
        self.embedder, self.index = embedder, index
        self.map = EmbeddingMap.of(index) if index is not None else None

    def answer(self, source: bytes | Path) -> Answer:
        """What is said of an encoded image; DataError if it cannot be read."""
        return self.answer_pixels(decode_image(source, self.embedder.image_size, self.embedder.levels))

    def answer_pixels(self, pixels: NDArray[np.uint8]) -> Answer:
        """What is said of an image uint8 `[S, S, 3]`."""
        classes: dict[str, float] = {}
        if self.embedder.predict is not None:
            row = self.embedder.predict(pixels[None])[0]
            best = np.argsort(-row, kind="stable")[:SHOWN_CLASSES]
            classes = {plain(self.embedder.class_names[i]): float(row[i]) for i in best}
        if self.index is None or self.map is None:
            return Answer(pixels, classes, (), None)
        vector = self.embedder.embed(pixels[None])
        cosines, rows = self.index.search(vector, NEIGHBOURS + 1)
        stored = self.index.images
        equal = None if stored is None else [np.array_equal(stored[row], pixels) for row in rows[0]]
        near, at, itself = without_itself(cosines[0], rows[0], NEIGHBOURS, equal)
        shown = [(self._picture(r), self._caption(r, c)) for r, c in zip(at.tolist(), near.tolist(), strict=True)]
        path = "" if itself is None else self.index.paths[itself]
        return Answer(pixels, classes, tuple(shown), self.map.place(vector[0]), path)

    def _picture(self, row: int) -> NDArray[np.uint8]:
        """The picture of a row; a grey square where the index was made without pictures."""
        assert self.index is not None
        if self.index.images is None:
            return np.full((8, 8, 3), 128, dtype=np.uint8)
        return np.asarray(self.index.images[row])

    def _caption(self, row: int, cosine: float) -> str:
        assert self.index is not None
        name, file = self.index.class_of(row), Path(self.index.paths[row]).name
        return f"{name + ', ' if name else ''}{file} · {cosine:.3f}"

    def draw_map(self, place: tuple[float, float] | None = None) -> str:
        """The map as SVG, in colours that the page's theme decides; `place` is marked. "" without an index."""
        return "" if self.map is None or self.index is None else _svg(self.map, self.index.class_names, place)


def _svg(chart: EmbeddingMap, names: tuple[str, ...], place: tuple[float, float] | None) -> str:
    every = chart.points if place is None else np.vstack([chart.points, place])
    low, high = every.min(0), every.max(0)
    spread = np.where(high > low, high - low, 1.0)
    room = np.array([MAP_WIDTH, MAP_HEIGHT]) - 2 * MAP_MARGIN

    def at(points: NDArray[np.float64]) -> NDArray[np.float64]:
        xy = (points - low) / spread * room + MAP_MARGIN
        return np.stack([xy[..., 0], MAP_HEIGHT - xy[..., 1]], axis=-1)

    counts = np.bincount(chart.labels[chart.labels != NO_CLASS], minlength=len(names))
    coloured = sorted(np.argsort(-counts, kind="stable")[:MAP_CLASSES].tolist()) if names else []
    rest = ~np.isin(chart.labels, coloured)
    parts, legend = [_dots(at(chart.points[rest]), "dots rest")] if rest.any() else [], []
    for k, label in enumerate(i for i in coloured if counts[i]):
        parts.append(
            _dots(at(chart.points[chart.labels == label]), f"dots c{k % COLOURS}{' ring' if k >= COLOURS else ''}")
        )
        mark = f'<i class="c{k % COLOURS}{" ring" if k >= COLOURS else ""}"></i>'
        legend.append(f"<span>{mark}{_text(names[label])}</span>")
    if place is not None:
        x, y = at(np.array(place)).round(1).tolist()
        rings = "".join(f'<path class="{css}" d="M{x} {y}l0 0"/>' for css in ("rim", "gap", "core"))
        parts.append(f'<g class="you">{rings}</g>')
        legend.insert(0, '<span><i class="mark"></i><b>your image</b></span>')
    said = f"{counted(len(chart.points), 'image')} of the index, {100 * chart.share:.0f} % of their variance"
    return (
        f'<figure class="map"><svg viewBox="0 0 {MAP_WIDTH:g} {MAP_HEIGHT:g}" preserveAspectRatio="none" role="img" '
        f'aria-label="map of the index">{"".join(parts)}</svg>'
        f'<figcaption><div class="legend">{"".join(legend)}</div><p>{said} (PCA)</p></figcaption></figure>'
    )


def _dots(points: NDArray[np.float64], css: str) -> str:
    """Points as one path of strokes without length, which round caps make dots: ten bytes each."""
    steps = "".join(f"M{x:.0f} {y:.0f}h0" for x, y in points)
    return f'<path class="{css}" d="{steps}"/>'


def parts(service: Service, answer: Answer) -> dict[str, Any]:
    """What `serve.js` puts into the page for an answer: text for `classes`, HTML for the rest."""
    return {
        "classes": list(answer.classes.items()),
        "near": gallery(answer.neighbours, answer.itself),
        "map": service.draw_map(answer.place),
    }


def _text(words: str) -> str:
    """Text from outside as HTML."""
    return escape(plain(words))


def gallery(neighbours: tuple[tuple[NDArray[np.uint8], str], ...], itself: str = "") -> str:
    """Pictures with their captions, as HTML, and where `itself`, the picture that was asked about, is in the index."""
    cells = [
        f'<figure><img src="{_data_address(image)}" alt=""><figcaption>{_text(caption)}</figcaption></figure>'
        for image, caption in neighbours
    ]
    said = f"<p>The index holds this very picture: {_text(itself)}</p>" if itself else ""
    return said + (f'<h2>Nearest in the index, by cosine</h2><div class="near">{"".join(cells)}</div>' if cells else "")


def _data_address(image: NDArray[np.uint8]) -> str:
    picture, buffer = Image.fromarray(image), io.BytesIO()
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def headline(embedder: Embedder, index: EmbeddingIndex | None) -> str:
    """What the page says of itself, as HTML."""
    facts = []
    if embedder.about is not None:
        m = embedder.about
        facts.append(f"{m.architecture}, {m.image_size} × {m.image_size} pixels, {m.precision}")
    if embedder.predict is not None:
        facts.append(f"{len(embedder.class_names):,} classes" + _stated_accuracy(embedder))
    if index is not None:
        facts.append(f"an index of {counted(len(index), 'image')}")
    facts += unfinished_notes(embedder.unfinished)
    return (
        f"<header><h1>{_text(embedder.path.name)}</h1><p>{escape(' · '.join(facts))}</p>"
        f"<p>Drop a {FORMATS} of up to {MAX_BYTES >> 20} MiB. It stays on this machine.</p></header>"
    )


def _stated_accuracy(embedder: Embedder) -> str:
    probe = embedder.about.probe if embedder.about is not None else {}
    accuracy = probe.get("accuracy")
    return f", {100 * accuracy:.1f}\u00a0% right on its test images" if isinstance(accuracy, float) else ""
