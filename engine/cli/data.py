"""`simclr-engine data`: list, info and pack."""

from __future__ import annotations

from typing import Any

import click

from .options import plain, print_json

SHOWN_SKIPPED = 10


@click.group(name="data")
def command() -> None:
    """List, inspect and pack image sources.

    A source is a name from `data list`, a folder, or an archive of a folder (.tar, .tar.gz, .tar.xz, .tar.zst or .zip).
    A folder holds train/CLASS/* and test/CLASS/*, or CLASS/*, or images without classes. Images are PNG, JPEG, WebP or
    BMP.
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
        click.echo(f"{name:<9} {text}")
    click.echo("PATH      a folder of images, or an archive of such a folder")


@command.command(name="info")
@click.argument("source", metavar="NAME|PATH")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout instead of text.")
def info(source: str, as_json: bool) -> None:
    """Show the splits, classes and skipped files of a source.

    Nothing is downloaded or packed.

    \b
    simclr-engine data info cifar10
    simclr-engine data info photos.tar.xz --json
    """
    from ..data.sources import overview

    row = overview(source)
    if as_json:
        print_json(row)
    else:
        _show(row)


@command.command(name="pack")
@click.argument("source", metavar="NAME|PATH")
@click.option(
    "--size",
    type=int,
    metavar="N",
    help="Side of the packed images in pixels, 8 to 1024.  [default: that of the images, or one chosen for them]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout instead of text.")
def pack(source: str, size: int | None, as_json: bool) -> None:
    """Decode a source into the cache, and download it first if necessary.

    Other commands do this when they first use a source.

    \b
    simclr-engine data pack cifar10
    simclr-engine data pack photos/ --size 64
    """
    import time

    from ..data.sources import overview, pack_source

    began = time.perf_counter()
    pack_source(source, size, progress=True)
    row = overview(source, size) | {"seconds": round(time.perf_counter() - began, 3)}
    if as_json:
        print_json(row)
    else:
        _show(row)


def _show(row: dict[str, Any]) -> None:
    """Prints the rows of `info` and `pack`. Names from outside may hold control characters, so `plain` escapes them."""
    side = row["image_size"]
    state = f"packed at {side} × {side}" if row["packed"] else "not packed yet"
    click.echo(f"{plain(row['source'])}: {row['kind']}, {state}")
    if "description" in row:
        click.echo(f"  {row['description']}")
    for name, split in (row["splits"] or {}).items():
        labels = "labelled" if split["labelled"] else "no labels"
        fingerprint = f"  fingerprint {split['fingerprint'][:12]}" if "fingerprint" in split else ""
        click.echo(f"  {name:<10} {split['images']:>9,} images, {labels}{fingerprint}")
    names = row["class_names"]
    if names:
        more = f" … {plain(names[-1])}" if len(names) > 12 else ""
        click.echo(f"  {len(names)} classes: {', '.join(plain(name) for name in names[:12])}{more}")
    if row["skipped"]:
        click.echo(f"  {len(row['skipped']):,} files skipped:")
        for path, reason in row["skipped"][:SHOWN_SKIPPED]:
            click.echo(f"    {plain(path)}: {plain(reason)}")
        if len(row["skipped"]) > SHOWN_SKIPPED:
            click.echo(f"    … {len(row['skipped']) - SHOWN_SKIPPED:,} more (--json lists them)")
    if "levels" in row:
        from ..data.levels import narrow_levels

        low, high = row["levels"]
        click.echo(f"  16-bit gray images: values {low:,} to {high:,}")
        if note := narrow_levels((low, high), row["source"]):
            click.echo(f"  note: {plain(note)}")
    if row["packed"]:
        took = f", {row['seconds']:.1f} s" if "seconds" in row else ""
        click.echo(f"  {row['bytes'] / 2**20:,.1f} MiB in {row['cache']}{took}")
