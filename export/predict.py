"""What a run or an exported file says of images: classes with confidence, nearest neighbours, and how fast.

Imports no torch for an exported file.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from simclr_engine.bounds import LARGEST_ROW
from simclr_engine.command_line import command_here
from simclr_engine.data.decode import FORMAT_NAMES
from simclr_engine.data.sources import Selection, load_splits
from simclr_engine.data.stream import Pictures, Window, windows
from simclr_engine.errors import DataError, UsageError
from simclr_engine.files import write_atomic
from simclr_engine.inputs import open_regular
from simclr_engine.outputs import Output, png_by

from .embedder import Embedder, naming
from .features import check_class_names
from .index import EmbeddingIndex, default_index, without_itself
from .metadata import ModelMetadata

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOP = 3
BATCH = 64
WARM_UP, TIMED = 5, 50  # calls; what the latency rests on
GALLERY = 64  # images that the picture shows
SHEET = 16  # images, and neighbours of each, that the picture of neighbours shows
SOFTWARE = "simclr-engine predict"  # stands in its PNG, so that the next one may replace it
WITH_PICTURES = "embed with --images, so that --save can draw the neighbours"


@dataclass(frozen=True)
class Neighbour:
    """One near image of the index: its row, path and class ("" for none), and the cosine."""

    row: int
    path: str
    name: str
    cosine: float

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {"row": self.row, "path": self.path, "class": self.name, "cosine": self.cosine}


@dataclass(frozen=True)
class ImagePrediction:
    """What is said of one image.

    Attributes:
        path: of the image.
        truth: its class, where that is known.
        top: the most probable classes with their probabilities, best first; empty without a probe.
        neighbours: nearest first; empty where none were asked for.
    """

    path: str
    truth: str | None
    top: tuple[tuple[str, float], ...]
    neighbours: tuple[Neighbour, ...] = ()

    @property
    def right(self) -> bool | None:
        """Whether the most probable class is the true one; None where either is unknown."""
        return self.top[0][0] == self.truth if self.top and self.truth is not None else None

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        name, confidence = self.top[0] if self.top else (None, None)
        return {
            "path": self.path,
            "class": name,
            "confidence": confidence,
            "top": [{"class": name, "confidence": p} for name, p in self.top],
            "truth": self.truth,
            "right": self.right,
            "neighbours": [neighbour.to_json() for neighbour in self.neighbours],
        }


@dataclass(frozen=True, eq=False)
class Predicted:
    """All predictions.

    Attributes:
        predictions: in the order of the images.
        skipped: `(path, reason)` of what could not be read.
        images: uint8 `[n, S, S, 3]`, the first of them, at most `GALLERY`.
        labels, confidence: of those: int64 and float32 `[n]`; empty without a probe.
    """

    predictions: tuple[ImagePrediction, ...]
    skipped: tuple[tuple[str, str], ...]
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    confidence: NDArray[np.float32]

    @property
    def accuracy(self) -> float | None:
        """Share of right ones, where the truth is known."""
        judged = [p.right for p in self.predictions if p.right is not None]
        return sum(judged) / len(judged) if judged else None


def predict_pictures(
    embedder: Embedder,
    parts: Sequence[Pictures],
    *,
    index: EmbeddingIndex | None = None,
    neighbours: int = 0,
    with_truth: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> Predicted:
    """Classes of every image where there is a probe, and its neighbours in `index` where some are asked for.

    Raises:
        UsageError: neither a probe nor neighbours.
        DataError: no image can be read, or what the encoder gives for one is not finite.
    """
    if embedder.predict is None and not neighbours:
        raise no_probe(embedder)
    predictions: list[ImagePrediction] = []
    skipped = [refusal for part in parts for refusal in part.refused]
    shown: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    confidence: list[float] = []
    for part in windows(parts, embedder.image_size, length=BATCH):
        skipped += part.skipped
        if len(part.images):
            with naming(part.paths):
                tops = _tops(embedder, part.images)
                near = _neighbours(embedder, part, index, neighbours)
            room = GALLERY - sum(len(some) for some in shown)
            shown.append(part.images[:room])
            labels += [top[0][0] for top in tops[:room] if top]
            confidence += [top[0][1] for top in tops[:room] if top]
            for path, name, top, those in zip(part.paths, part.classes, tops, near, strict=True):
                named = tuple((embedder.class_names[i], p) for i, p in top)
                predictions.append(ImagePrediction(path, (name or None) if with_truth else None, named, those))
        advance(part.stop - part.start)
    if not predictions:
        raise DataError(
            "none of the images can be read" if skipped else "there are no images to predict",
            saw=f"{skipped[0][0]}: {skipped[0][1]}" if skipped else "0 images",
            fix=f"give {FORMAT_NAMES} images",
        )
    return Predicted(
        tuple(predictions),
        tuple(skipped),
        np.concatenate(shown),
        np.array(labels, dtype=np.int64),
        np.array(confidence, dtype=np.float32),
    )


def _tops(embedder: Embedder, images: NDArray[np.uint8]) -> list[list[tuple[int, float]]]:
    """For each image the labels and probabilities of its most probable classes; ties go to the lower label."""
    if embedder.predict is None:
        return [[] for _ in images]
    probabilities = embedder.predict(images)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]
    return [[(int(i), float(row[i])) for i in best] for row, best in zip(probabilities, order, strict=True)]


def _neighbours(
    embedder: Embedder, window: Window, index: EmbeddingIndex | None, k: int
) -> list[tuple[Neighbour, ...]]:
    """The k nearest of each image; one that the index holds under its own file name is not its own neighbour."""
    if index is None or not k:
        return [() for _ in window.images]
    found = []
    for path, near, at in zip(window.paths, *index.search(embedder.embed(window.images), k + 1), strict=True):
        named = [Path(index.paths[row]).name == Path(path).name for row in at]
        cosines, rows, _ = without_itself(near, at, k, named)
        pairs = zip(rows.tolist(), cosines.tolist(), strict=True)
        found.append(tuple(Neighbour(r, index.paths[r], index.class_of(r), c) for r, c in pairs))
    return found


def no_probe(embedder: Embedder, instead: str = "ask for --neighbours 5") -> UsageError:
    """The error for an encoder that gives features only; `instead` is what the command can do without a probe."""
    first = command_here("evaluate", embedder.path, "--method", "linear")
    if embedder.about is not None:
        first = command_here("export", embedder.path, "--run", "RUN", "--probe")
    return UsageError(
        "this encoder cannot name classes: it has no probe",
        saw=embedder.path,
        fix=f"{instead}, or first: {first}",
    )


def open_index(embedder: Embedder, path: str | Path | None) -> EmbeddingIndex:
    """The encoder's index: at `path`, else where `default_index` looks.

    Raises:
        DataError: there is none (the error has the command that makes it), or it does not fit the encoder.
    """
    where = default_index(embedder.path) if path is None else Path(path)
    if not where.exists():
        raise DataError(
            "there is no index to look for neighbours in",
            saw=where,
            fix=command_here("embed", embedder.path, "DATA", "--split", "train", "--images", "--out", where),
        )
    return EmbeddingIndex.load(where, encoder=embedder.identity, dim=embedder.feature_dim)


def sample_test_images(
    embedder: Embedder, data: str | Selection, count: int, seed: int, progress: bool = False
) -> Pictures:
    """`count` random test images of a data set, the same for the same seed, with their classes.

    Raises:
        DataError: the probe knows other classes than the data has (the error names both); what `load_splits` raises.
    """
    _, test = load_splits(data, embedder.image_size, progress, embedder.levels)
    if embedder.predict is not None:
        about = embedder.about or cast(ModelMetadata, SimpleNamespace(class_names=embedder.class_names))
        check_class_names(about, test.class_names, test.name)
    assert test.labels is not None  # load_splits refuses images without
    rows = np.random.default_rng(seed).permutation(len(test))[:count]
    images = test.images
    return Pictures(
        [f"test[{row}]" for row in rows],
        [test.class_names[i] for i in test.labels[rows]],
        test.class_names,
        lambda at: np.asarray(images[rows[at]]),
        (),
        f"sample {test.fingerprint} {count} {seed}",
    )


def latency(embedder: Embedder, images: NDArray[np.uint8]) -> dict[str, Any] | None:
    """Milliseconds per image at batch 1: from decoded pixels to probabilities (features without a probe).

    None for a run: what is deployed is the exported file.
    """
    if embedder.about is None:
        return None
    call = embedder.predict or embedder.embed
    seconds = []
    for i in range(WARM_UP + TIMED):
        image = images[i % len(images)][None]
        began = time.perf_counter()
        call(image)
        seconds.append(time.perf_counter() - began)
    p50, p95 = np.percentile(np.array(seconds[WARM_UP:]) * 1000, [50, 95])
    return {
        "p50_ms": round(float(p50), 3),
        "p95_ms": round(float(p95), 3),
        "calls": TIMED,
        "warm_up": WARM_UP,
        "batch": 1,
        "what": "decoded pixels to " + ("probabilities" if embedder.predict else "features"),
    }


def outputs(csv_path: Path | None, save: Path | None) -> tuple[Output, Output]:
    """The table and the picture, for `check_outputs`."""
    return Output(csv_path, _is_table), Output(save, png_by(SOFTWARE), ".png")


def _is_table(path: Path) -> bool:
    with open_regular(path) as file:
        head = file.readline(LARGEST_ROW).decode().rstrip("\n").split(",")
    return head == _head((len(head) - len(_head(0))) // 3)


def _head(neighbours: int) -> list[str]:
    """The names of the columns of the CSV file; a table of another kind does not have just these."""
    head = ["path", "truth", "class", "confidence"]
    head += [f"{word}_{i}" for i in range(2, TOP + 1) for word in ("class", "confidence")]
    return head + [f"neighbour_{i}{word}" for i in range(1, neighbours + 1) for word in ("", "_class", "_cosine")]


def write_csv(path: Path, predicted: Predicted) -> None:
    """One line per image: path, truth, then class and confidence of the best three, then the neighbours.

    Raises:
        PlatformError: it cannot be written.
    """
    most = max(len(p.neighbours) for p in predicted.predictions)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_head(most))
    for prediction in predicted.predictions:
        classes = [cell for name, p in prediction.top for cell in (name, f"{p:.6f}")]
        classes += [""] * (2 * TOP - len(classes))
        near = [cell for n in prediction.neighbours for cell in (n.path, n.name, f"{n.cosine:.6f}")]
        writer.writerow([prediction.path, prediction.truth or "", *classes, *near])
    write_atomic(path, text.getvalue().encode(errors="surrogateescape"))


def write_gallery(path: Path, embedder: Embedder, predicted: Predicted, index: EmbeddingIndex | None = None) -> None:
    """The images with their classes as one PNG; or, where neighbours were asked for, each image with them.

    Raises:
        UsageError: neither a probe nor neighbours with pictures.
        PlatformError: it cannot be written.
    """
    from simclr_engine.report.style import to_png

    count, total = len(predicted.images), len(predicted.predictions)
    if index is not None and index.images is not None and predicted.predictions[0].neighbours:
        write_atomic(path, to_png(_neighbours_sheet(embedder, predicted, index), SOFTWARE))
        return
    if embedder.predict is None:
        raise no_probe(embedder, WITH_PICTURES)
    from simclr_engine.report import gallery_figure

    names = [p.truth for p in predicted.predictions[:count]]
    truth = None
    if all(name is not None for name in names):
        truth = np.array([embedder.class_names.index(str(name)) for name in names], dtype=np.int64)
    title = f"predictions of {embedder.path.name}" + (f", the first {count} of {total:,}" if count < total else "")
    figure = gallery_figure(
        predicted.images, embedder.class_names, predicted.labels, predicted.confidence, truth=truth, title=title
    )
    write_atomic(path, to_png(figure, SOFTWARE))


def _neighbours_sheet(embedder: Embedder, predicted: Predicted, index: EmbeddingIndex) -> Figure:
    """One row an image: the image, framed, then its neighbours with class or file name and cosine."""
    from simclr_engine.report.style import LIGHT, new_grid, printable, show_image

    shown = predicted.predictions[: min(SHEET, len(predicted.images))]
    columns = min(SHEET, max(len(p.neighbours) for p in shown))
    below: dict[str, Any] = {"fontsize": 6.8, "color": LIGHT.text, "labelpad": 3.0, "linespacing": 1.1}

    def words(name: str) -> str:
        return printable(name if len(name) <= 14 else f"{name[:13]}…")

    pictures = index.images
    assert pictures is not None
    with LIGHT.applied(index.class_names):
        title = f"nearest in the index, by {embedder.path.name}"
        figure, grid = new_grid(len(shown), 1 + columns, 0.86, 0.42, title)
        for line, prediction in enumerate(shown):
            show_image(grid[line, 0], predicted.images[line], LIGHT.text)
            top = prediction.top[0][0] if prediction.top else ""
            grid[line, 0].set_xlabel("\n".join(words(w) for w in (Path(prediction.path).name, top) if w), **below)
            for column, axes in enumerate(grid[line, 1:]):
                if column >= len(prediction.neighbours):
                    axes.axis("off")
                    continue
                near = prediction.neighbours[column]
                show_image(axes, np.asarray(pictures[near.row]), LIGHT.muted)
                axes.set_xlabel(f"{words(near.name or Path(near.path).name)}\n{near.cosine:.3f}", **below)
        return figure
