"""`simclr-engine embed`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ..errors import UsageError, counted
from ..terminal import say, tell
from .options import print_json, selected, selection_options, sha256_option

if TYPE_CHECKING:
    from simclr_engine.data import Selection
    from simclr_engine.export.embed import EmbedResult

SHOWN_SKIPPED = 10


@click.command(name="embed")
@click.argument("target", metavar="RUN|FILE.onnx")
@click.argument("sources", metavar="NAME|PATH...", nargs=-1)
@selection_options
@click.option(
    "--out",
    required=True,
    metavar="NAME.npy",
    help="File to write the vectors to. Paths and classes are written to NAME.csv.",
)
@click.option(
    "--split",
    type=click.Choice(["train", "test", "val", "unlabeled", "all"]),
    default="all",
    show_default=True,
    help="Split to embed, for folders and data sets that have splits.",
)
@click.option(
    "--images/--no-images",
    default=False,
    show_default=True,
    help="Also store the pictures, so that `predict` and `serve` can show them.",
)
@click.option("--overwrite", is_flag=True, help="Replace NAME.npy if it is another index or another file.")
@sha256_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout instead of text.")
def command(
    target: str,
    sources: tuple[str, ...],
    labels: str | None,
    files: str | None,
    out: str,
    split: str,
    images: bool,
    overwrite: bool,
    sha256: str | None,
    as_json: bool,
) -> None:
    """Compute the features of images and write them as a searchable index.

    Images come from data sets, folders, archives, image files and .npy arrays. Writes float32 vectors to NAME.npy, and
    the row, path and class of each image to NAME.csv. If the command is interrupted, running it again continues where
    it stopped. Unreadable files are reported and skipped.

    \b
    simclr-engine embed encoder.onnx photos/ --out photos.npy
    simclr-engine embed encoder.onnx cifar10 --split train --images --out encoder.index.npy
    """
    from simclr_engine.data.stream import find_images
    from simclr_engine.export.embed import embed_to_index
    from simclr_engine.export.embedder import open_embedder

    from ..progress import progress_bar
    from ..run import unfinished_notes

    embedder = open_embedder(target, sha256)
    for note in unfinished_notes(embedder.unfinished):
        say(f"note: {note}")
    parts = find_images(embedder, _named(sources, labels, files), split, progress=True)
    total = sum(len(part) for part in parts)
    done = 0
    try:
        with progress_bar("embedding", total, "images", show=True) as show:

            def advance(count: int) -> None:
                nonlocal done
                done += count
                show(count)

            result = embed_to_index(embedder, parts, out, pictures=images, overwrite=overwrite, advance=advance)
    except KeyboardInterrupt:
        say(f"stopped after {done:,} of {counted(total, 'image')}; run the same command again to continue")
        raise
    if as_json:
        print_json(result.to_json())
    else:
        _show(result, total)


def _named(sources: tuple[str, ...], labels: str | None, files: str | None) -> Sequence[str | Selection]:
    if labels is None and files is None:
        return sources
    if len(sources) > 1:
        raise UsageError("--labels and --list belong to one source", saw=", ".join(sources), fix="name one")
    chosen = selected(sources[0] if sources else None, labels, files)
    assert chosen is not None
    return [chosen]


def _show(result: EmbedResult, total: int) -> None:
    went_on = f" (continued after {result.images - result.embedded:,})" if 0 < result.embedded < result.images else ""
    if result.embedded:
        rate = result.embedded / result.seconds
        tell(f"{counted(result.embedded, 'image')} in {result.seconds:.1f} s, {rate:,.0f} images/s{went_on}")
    else:
        tell("the images are already embedded, nothing to do; --overwrite embeds them again")
    tell(f"{result.out}  float32 [{result.images:,}, {result.dim}]")
    tell(f"{result.csv}  row, path, class")
    for path, reason in result.skipped[:SHOWN_SKIPPED]:
        say(f"skipped: {path}: {reason}")
    if len(result.skipped) > SHOWN_SKIPPED:
        say(f"… {len(result.skipped) - SHOWN_SKIPPED:,} more (--json lists them)")
