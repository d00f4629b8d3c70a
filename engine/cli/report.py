"""`simclr-engine report`."""

from __future__ import annotations

import click


@click.command(name="report")
@click.argument("run", metavar="RUN")
def command(run: str) -> None:
    """Draw a run's pictures again and write its report.html; prints where.

    \b
    simclr-engine report runs/cifar10
    """
    from ..report import write_report
    from ..run import Run

    click.echo(str(write_report(Run.open(run))))
