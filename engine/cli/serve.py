"""`simclr-engine serve`."""

from __future__ import annotations

import click

from ..errors import PlatformError
from ..terminal import say, tell
from .options import sha256_option

LOOPBACK = ("127.0.0.1", "localhost", "::1")
INSTALL = "pip install 'simclr-engine[serve]' (in a checkout: pip install '.[serve]')"


@click.command(name="serve")
@click.argument("file", metavar="FILE.onnx")
@click.option("--index", "index_path", metavar="NAME.npy", help="Index that `embed` wrote.  [default: FILE.index.npy]")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=7860, show_default=True, metavar="N", help="TCP port to listen on."
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address to listen on. The default is reachable from this machine only.",
)
@sha256_option
def command(file: str, index_path: str | None, port: int, host: str, sha256: str | None) -> None:
    """Open a local page that shows the class and neighbours of an image.

    Prints the address of the page and runs until Ctrl-C. Needs `pip install 'simclr-engine[serve]'`.

    \b
    simclr-engine serve encoder.onnx
    simclr-engine serve encoder.onnx --index encoder.index.npy --port 8000
    """
    import threading

    try:
        from simclr_engine.export.server import start_page
    except ImportError as error:
        cause = f"the page needs {error.name}, which is not installed"
        raise PlatformError(cause, saw=str(error), fix=INSTALL) from error

    if host not in LOOPBACK:
        say(f"listening on {host}: anyone who can reach this machine can use the page")
    with start_page(file, index_path, host=host, port=port, sha256=sha256) as (address, notes):
        for note in notes:
            say(note)
        tell(f"{address}  (press Ctrl-C to stop)")
        threading.Event().wait()
