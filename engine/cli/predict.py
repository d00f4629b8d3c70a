"""`simclr-engine predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError, plain
from ..terminal import add, say, show, styled, table, tell
from .options import print_json, selected, selection_options, sha256_option

if TYPE_CHECKING:
    from rich.text import Text

    from simclr_engine.export.embedder import Embedder
    from simclr_engine.export.predict import ImagePrediction, Neighbour, Predicted

SHOWN = 50  # rows of the table; --csv and --json have all
SHOWN_NEIGHBOURS = 3


@click.command(name="predict")
@click.argument("target", metavar="RUN|FILE.onnx")
@click.argument("images", metavar="[IMAGES]...", nargs=-1)
@click.option(
    "--data",
    metavar="NAME|PATH",
    help="Predict random test images of this data set, folder or archive instead of IMAGES.",
)
@selection_options
@click.option(
    "--n",
    "count",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    metavar="N",
    help="Number of test images, with --data.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    metavar="N",
    help="Seed for the choice of test images, with --data.",
)
@click.option(
    "--neighbours",
    type=click.IntRange(min=1),
    metavar="N",
    help="Show the N nearest images of the index.  [default: none]",
)
@click.option("--index", "index_path", metavar="NAME.npy", help="Index that `embed` wrote.  [default: FILE.index.npy]")
@click.option(
    "--save",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Draw the images with their classes, or with --neighbours each with its nearest, as a PNG file.",
)
@click.option(
    "--csv",
    "csv_path",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Write one line per image to this CSV file.",
)
@click.option("--overwrite", is_flag=True, help="Replace files of these names even if `predict` did not write them.")
@sha256_option
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON document to stdout instead of text; it includes the latency.",
)
def command(
    target: str,
    images: tuple[str, ...],
    data: str | None,
    labels: str | None,
    files: str | None,
    count: int,
    seed: int,
    neighbours: int | None,
    index_path: str | None,
    save: Path | None,
    csv_path: Path | None,
    overwrite: bool,
    sha256: str | None,
    as_json: bool,
) -> None:
    """Predict the classes of images and find their nearest neighbours.

    IMAGES are image files, folders and archives. Prints the class of each image with its confidence, which needs a
    linear probe: in the run, or in a file that was exported with --probe. With --neighbours, prints the nearest images
    in an index that `embed` wrote.

    \b
    simclr-engine predict encoder.onnx cat.png photos/
    simclr-engine predict encoder.onnx --data cifar10 --n 16 --seed 1 --save sheet.png
    simclr-engine predict encoder.onnx cat.png --neighbours 5 --index encoder.index.npy
    """
    if bool(images) == (data is not None) and not (files and not images):
        raise UsageError("name either images or --data", saw=data or "neither", fix="give one of the two")
    from simclr_engine.data import Selection
    from simclr_engine.data.stream import find_images
    from simclr_engine.export import predict as of
    from simclr_engine.export.embedder import open_embedder

    from ..outputs import check_outputs
    from ..progress import progress_bar
    from ..run import unfinished_notes

    check_outputs(*of.outputs(csv_path, save), overwrite=overwrite)
    embedder = open_embedder(target, sha256)
    for note in unfinished_notes(embedder.unfinished):
        say(f"note: {note}")
    if embedder.predict is None and not neighbours:
        raise of.no_probe(embedder)
    index = of.open_index(embedder, index_path) if neighbours else None
    if save is not None and embedder.predict is None and (index is None or index.images is None):
        raise of.no_probe(embedder, of.WITH_PICTURES)
    if data is not None:
        chosen = selected(data, labels, files) or data
        parts = [of.sample_test_images(embedder, chosen, count, seed, progress=True)]
    else:
        listed = [] if files is None else [Selection(None, None, files)]
        parts = find_images(embedder, [*images, *listed], progress=True)
    total = sum(len(part) for part in parts)
    with progress_bar("predicting", total, "images", show=total > of.BATCH) as advance:
        predicted = of.predict_pictures(
            embedder, parts, index=index, neighbours=neighbours or 0, with_truth=data is not None, advance=advance
        )
    if csv_path is not None:
        of.write_csv(csv_path, predicted)
    if save is not None:
        of.write_gallery(save, embedder, predicted, index)
    if as_json:
        print_json(_document(target, embedder, predicted) | {"latency": of.latency(embedder, predicted.images)})
    else:
        _print(embedder, predicted)
    for path, reason in predicted.skipped:
        say(f"skipped: {path}: {reason}")
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
        **({"unfinished": embedder.unfinished} if embedder.unfinished else {}),
    }


def _print(embedder: Embedder, predicted: Predicted) -> None:
    judged = predicted.accuracy is not None
    made = table("image", *_columns(embedder, predicted, judged))
    for prediction in predicted.predictions[:SHOWN]:
        add(made, *_row(embedder, prediction, judged))
    show(made, width=140)
    if len(predicted.predictions) > SHOWN:
        tell(f"… {len(predicted.predictions) - SHOWN:,} more (--csv and --json have all)")
    if judged:
        right = sum(p.right is True for p in predicted.predictions)
        tell(f"{right} of {len(predicted.predictions)} right")


def _columns(embedder: Embedder, predicted: Predicted, judged: bool) -> list[str]:
    names = ["class", "#confidence", "then"] if embedder.probe else []
    names += ["truth"] if judged else []
    return names + (["nearest"] if predicted.predictions[0].neighbours else [])


def _row(embedder: Embedder, prediction: ImagePrediction, judged: bool) -> list[str | Text]:
    cells: list[str | Text] = [prediction.path]
    if embedder.probe:
        style = {True: "green", False: "red", None: ""}[prediction.right]
        name, confidence = prediction.top[0]
        then = ", ".join(f"{other} {100 * p:.1f} %" for other, p in prediction.top[1:])
        cells += [styled(plain(name), style), f"{100 * confidence:.1f} %", styled(plain(then), "dim")]
    if judged:
        cells.append("✓" if prediction.right else f"✗ {prediction.truth or ''}")
    if prediction.neighbours:

        def named(n: Neighbour) -> str:
            return f"{n.name} ({Path(n.path).name})" if n.name else n.path

        near = [f"{named(n)} {n.cosine:.3f}" for n in prediction.neighbours[:SHOWN_NEIGHBOURS]]
        left = len(prediction.neighbours) - SHOWN_NEIGHBOURS
        cells.append(", ".join(near) + (f" … {left} more" if left > 0 else ""))
    return cells
