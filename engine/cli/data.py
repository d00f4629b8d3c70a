"""`simclr-engine data`: list, info and pack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError, counted
from ..terminal import tell
from .options import print_json, selected, selection_options

if TYPE_CHECKING:
    from ..data import Selection

SHOWN_SKIPPED = 10
SHOWN_FOLDERS = 24  # of each split


@click.group(name="data")
def command() -> None:
    """List, inspect and pack image sources.

    A source is a name from `data list`, a folder, or an archive of a folder (.tar, .tar.gz, .tar.xz, .tar.zst or .zip).
    A folder holds train/CLASS/* and test/CLASS/*, or CLASS/*, or images without classes. Images are known by their
    bytes: PNG, JPEG, WebP, BMP, TIFF, GIF, AVIF, JPEG 2000, and HEIC with pillow-heif.
    """


@command.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout instead of text.")
def list_sources(as_json: bool) -> None:
    """List the data sets that have a name."""
    from ..data import source_names

    names = source_names()
    if as_json:
        print_json({"sources": [{"name": name, "description": text} for name, text in names.items()]})
        return
    for name, text in names.items():
        tell(f"{name:<9} {text}")
    tell("PATH      a folder of images, or an archive of such a folder")


@command.command(name="info")
@click.argument("source", metavar="NAME|PATH", required=False)
@selection_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout instead of text.")
def info(source: str | None, labels: str | None, files: str | None, as_json: bool) -> None:
    """Show what would be trained and evaluated on: the splits, classes and folders of a source, and what is left out.

    Nothing is downloaded or packed.

    \b
    simclr-engine data info cifar10
    simclr-engine data info photos.tar.xz --json
    """
    from ..data.sources import overview

    row = overview(_named(source, labels, files))
    if as_json:
        print_json(row)
    else:
        _show(row)


@command.command(name="pack")
@click.argument("source", metavar="NAME|PATH", required=False)
@selection_options
@click.option(
    "--size",
    type=int,
    metavar="N",
    help="Side of the packed images in pixels, 8 to 1024.  [default: that of the images, or one chosen for them]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout instead of text.")
def pack(source: str | None, labels: str | None, files: str | None, size: int | None, as_json: bool) -> None:
    """Decode a source into the cache, and download it first if necessary.

    Other commands do this when they first use a source.

    \b
    simclr-engine data pack cifar10
    simclr-engine data pack photos/ --size 64
    """
    import time

    from ..data.sources import overview, pack_source

    began = time.perf_counter()
    images = _named(source, labels, files)
    pack_source(images, size, progress=True)
    row = overview(images, size) | {"seconds": round(time.perf_counter() - began, 3)}
    if as_json:
        print_json(row)
    else:
        _show(row)


def _named(source: str | None, labels: str | None, files: str | None) -> str | Selection:
    images = selected(source, labels, files)
    if images is None:
        raise UsageError("which images?", fix="name a data set, a folder or an archive, --labels or --list")
    return images


def _show(row: dict[str, Any]) -> None:
    """Prints the rows of `info` and `pack`."""
    side = row["image_size"]
    state = f"packed at {side} × {side}" if row["packed"] else "not packed yet"
    tell(f"{row['source']}: {row['kind']}, {state}")
    if "description" in row:
        tell(f"  {row['description']}")
    for name, split in (row["splits"] or {}).items():
        labels = "labelled" if split["labelled"] else "no labels"
        fingerprint = f"  fingerprint {split['fingerprint'][:12]}" if "fingerprint" in split else ""
        tell(f"  {name:<10} {counted(split['images'], 'image'):>16}, {labels}{fingerprint}")
        _show_folders([part for part in row.get("tree", ()) if part[0] == name])
    names = row["class_names"]
    if names:
        more = f" … {names[-1]}" if len(names) > 12 else ""
        tell(f"  {len(names):,} {'class' if len(names) == 1 else 'classes'}: {', '.join(names[:12])}{more}")
    for alike in row.get("look_alikes", ())[:SHOWN_SKIPPED]:
        tell(f"  classes that look alike: {', '.join(ascii(name) for name in alike)}")
    if "levels" in row:
        from ..data.levels import narrow_levels

        low, high = row["levels"]
        tell(f"  16-bit gray images: values {low:,} to {high:,}")
        if note := narrow_levels((low, high), row["source"]):
            tell(f"  note: {note}")
    if "pretraining" in row:
        pool = row["pretraining"]
        tell(f"  pretraining takes {pool['images']:,} images ({' + '.join(pool['splits']) or 'none'})")
        tell(f"  evaluation {row['evaluation']}")
    _show_left_out(row)
    if row["packed"]:
        took = f", {row['seconds']:.1f} s" if "seconds" in row else ""
        tell(f"  {row['bytes'] / 2**20:,.1f} MiB in {row['cache']}{took}")


def _show_folders(parts: list[list[Any]]) -> None:
    """The folders of a split with the number of their images."""
    rows = parts if len(parts) <= SHOWN_FOLDERS else parts[: SHOWN_FOLDERS - 1]
    for at, (_, folder, name, count) in enumerate(rows):
        branch = "└─" if at == len(parts) - 1 else "├─"
        is_class = f"class {name}" if name and name != folder.rpartition("/")[2] else ""
        tell(f"    {branch} {folder + '/' if folder else '(beside the folders)':<30} {count:>9,} {is_class}")
    if len(rows) < len(parts):
        rest = parts[len(rows) :]
        tell(f"    └─ {f'{len(rest):,} more folders':<30} {sum(part[3] for part in rest):>9,}")


def _show_left_out(row: dict[str, Any]) -> None:
    """What is left out, by folder and ending, and the first of the files."""
    for folder in row.get("runs", ())[:SHOWN_SKIPPED]:
        tell(f"  left out: {folder}/, which holds a run")
    skipped = row["skipped"]
    if not skipped:
        return
    tell(f"  {counted(len(skipped), 'file')} skipped:")
    for path, reason in skipped[:SHOWN_SKIPPED]:
        tell(f"    {path}: {reason}")
    if len(skipped) > SHOWN_SKIPPED:
        tell(f"    … {len(skipped) - SHOWN_SKIPPED:,} more (--json lists them); in all:")
        for kind in row["left_out"][:SHOWN_SKIPPED]:
            where = f"{kind['folder'] or '.'}/*{kind['ending']}"
            tell(f"    {kind['files']:>9,} {where}: {kind['reason']}")
