"""`simclr-engine predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from .options import print_json

if TYPE_CHECKING:
    from simclr_engine.export.embedder import Embedder
    from simclr_engine.export.predict import ImagePrediction, Predicted

SHOWN = 50  # rows of the table; --csv and --json have all
SHOWN_NEIGHBOURS = 3


@click.command(name="predict")
@click.argument("target", metavar="RUN|FILE.onnx")
@click.argument("images", metavar="[IMAGES]...", nargs=-1)
@click.option("--data", metavar="NAME|PATH", help="Take random test images of this data set instead.")
@click.option("--n", "count", type=click.IntRange(min=1), default=16, show_default=True, help="How many of them.")
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Which of them.")
@click.option("--neighbours", type=click.IntRange(min=1), metavar="K", help="Show the K nearest images of the index.")
@click.option("--index", "index_path", metavar="NAME.npy", help="What `embed` wrote.  [default: FILE.index.npy]")
@click.option("--save", type=click.Path(path_type=Path), metavar="FILE.png", help="The images with their classes.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), metavar="FILE", help="One line per image.")
@click.option("--overwrite", is_flag=True, help="Replace files of these names that `predict` did not write.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout; it holds the latency too.")
def command(
    target: str,
    images: tuple[str, ...],
    data: str | None,
    count: int,
    seed: int,
    neighbours: int | None,
    index_path: str | None,
    save: Path | None,
    csv_path: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Name the classes of images, with confidence: image files, folders, or test images of a data set.

    \b
    simclr-engine predict encoder.onnx cat.png photos/
    simclr-engine predict encoder.onnx --data cifar10 --n 16 --seed 1 --save sheet.png
    simclr-engine predict encoder.onnx cat.png --neighbours 5 --index encoder.index.npy
    """
    if bool(images) == (data is not None):
        raise UsageError("name either images or --data", saw=data or "neither", fix="one of the two")
    from simclr_engine.data.stream import find_images
    from simclr_engine.export import predict as of
    from simclr_engine.export.embedder import open_embedder

    from ..progress import progress_bar, say

    of.check_outputs(csv_path, save, overwrite)
    embedder = open_embedder(target)
    if embedder.predict is None and (not neighbours or save):
        raise of.no_probe(embedder)
    index = of.open_index(embedder, index_path) if neighbours else None
    if data is not None:
        parts = [of.sample_test_images(embedder, data, count, seed, progress=True)]
    else:
        parts = find_images(embedder, images, progress=True)
    total = sum(len(part) for part in parts)
    with progress_bar("predicting", total, "images", show=total > of.BATCH) as advance:
        predicted = of.predict_pictures(
            embedder, parts, index=index, neighbours=neighbours or 0, with_truth=data is not None, advance=advance
        )
    if csv_path is not None:
        of.write_csv(csv_path, predicted)
    if save is not None:
        of.write_gallery(save, embedder, predicted)
    if as_json:
        print_json(_document(target, embedder, predicted) | {"latency": of.latency(embedder, predicted.images)})
    else:
        _print(embedder, predicted)
    for path, reason in predicted.skipped:
        say(f"left out: {path}: {reason}")
    for written in (csv_path, save):
        if written is not None:
            say(f"written  {written}")


def _document(target: str, embedder: Embedder, predicted: Predicted) -> dict[str, Any]:
    return {
        "target": target,
        "probe": embedder.probe or None,
        "class_names": list(embedder.class_names) if embedder.probe else [],
        "images": [p.to_json() for p in predicted.predictions],
        "accuracy": predicted.accuracy,
        "skipped": [{"path": path, "reason": reason} for path, reason in predicted.skipped],
    }


def _print(embedder: Embedder, predicted: Predicted) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=140)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("image", overflow="fold")
    judged = predicted.accuracy is not None
    for name in _columns(embedder, predicted, judged):
        table.add_column(name, justify="right" if name == "confidence" else "left")
    for prediction in predicted.predictions[:SHOWN]:
        table.add_row(*_row(embedder, prediction, judged, predicted))
    console.print(table)
    if len(predicted.predictions) > SHOWN:
        click.echo(f"… {len(predicted.predictions) - SHOWN:,} more (--csv and --json have all)")
    if judged:
        right = sum(p.right is True for p in predicted.predictions)
        click.echo(f"{right} of {len(predicted.predictions)} right")


def _columns(embedder: Embedder, predicted: Predicted, judged: bool) -> list[str]:
    names = ["class", "confidence", "then"] if embedder.probe else []
    names += ["truth"] if judged else []
    return names + (["nearest"] if predicted.predictions[0].neighbours else [])


def _row(embedder: Embedder, prediction: ImagePrediction, judged: bool, predicted: Predicted) -> list[Any]:
    """Text objects, so that nothing in a name is taken for markup."""
    from rich.text import Text

    cells = [Text(_plain(prediction.path))]
    if embedder.probe:
        style = {True: "green", False: "red", None: ""}[prediction.right]
        name, confidence = prediction.top[0]
        then = ", ".join(f"{_plain(other)} {100 * p:.1f} %" for other, p in prediction.top[1:])
        cells += [Text(_plain(name), style=style), Text(f"{100 * confidence:.1f} %"), Text(then, style="dim")]
    if judged:
        cells.append(Text("✓" if prediction.right else f"✗ {_plain(prediction.truth or '')}"))
    if prediction.neighbours:
        near = [f"{_plain(n.name or n.path)} {n.cosine:.3f}" for n in prediction.neighbours[:SHOWN_NEIGHBOURS]]
        more = (
            f" … {len(prediction.neighbours) - SHOWN_NEIGHBOURS} more"
            if len(prediction.neighbours) > SHOWN_NEIGHBOURS
            else ""
        )
        cells.append(Text(", ".join(near) + more))
    return cells


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
