"""`simclr-engine serve`."""

from __future__ import annotations

import click


@click.command(name="serve")
@click.argument("file", metavar="FILE.onnx")
@click.option("--index", "index_path", metavar="NAME.npy", help="What `embed` wrote.  [default: FILE.index.npy]")
@click.option("--port", type=click.IntRange(1, 65535), default=7860, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; this machine alone.")
def command(file: str, index_path: str | None, port: int, host: str) -> None:
    """Open a page on this machine: drop an image, see its class, its neighbours and its place among them.

    \b
    simclr-engine serve encoder.onnx
    simclr-engine serve encoder.onnx --index encoder.index.npy --port 8000
    """
    import threading

    from simclr_engine.export.embedder import open_embedder
    from simclr_engine.export.index import default_index
    from simclr_engine.export.predict import open_index
    from simclr_engine.export.serve import LOOPBACK, Service, require_gradio, start_page

    from ..progress import say

    require_gradio()
    embedder = open_embedder(file)
    wanted = index_path is not None or default_index(embedder.path).exists()
    index = open_index(embedder, index_path) if wanted else None
    if index is None:
        say(f"no index beside the file ({default_index(embedder.path).name}): classes only")
    elif index.images is None:
        say("the index holds no pictures: neighbours are named, not shown (`embed --images` keeps them)")
    service = Service(embedder, index)
    if host not in LOOPBACK:
        say(f"listening on {host}: whoever reaches this machine can use the page")
    with start_page(service, host, port) as address:
        click.echo(f"{address}  (Ctrl-C ends it)")
        threading.Event().wait()
