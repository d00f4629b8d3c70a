"""`simclr-engine report`."""

from __future__ import annotations

import click

from ..terminal import tell


@click.command(name="report")
@click.argument("run", metavar="RUN")
@click.option(
    "--n",
    "images",
    type=click.IntRange(1, 100),
    default=24,
    show_default=True,
    metavar="N",
    help="Number of test images in each prediction gallery.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Seed for the choice of test images.",
)
def command(run: str, images: int, seed: int) -> None:
    """Draw the figures of a run again, write its report.html, and print the path of the page.

    \b
    simclr-engine report runs/cifar10
    simclr-engine report runs/cifar10 --n 60 --seed 1
    """
    from ..report import write_report
    from ..run import Run

    tell(str(write_report(Run.open(run), gallery=images, seed=seed)))
