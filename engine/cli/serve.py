"""`simclr-engine serve`."""

from __future__ import annotations

import click

from ..terminal import say, tell


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
def command(file: str, index_path: str | None, port: int, host: str) -> None:
    """Open a local page that shows the class and neighbours of an image.

    Prints the address of the page and runs until Ctrl-C. Needs `pip install 'simclr-engine[serve]'`.

    \b
    simclr-engine serve encoder.onnx
    simclr-engine serve encoder.onnx --index encoder.index.npy --port 8000
    """
    import threading

    from simclr_engine.export.embedder import open_embedder
    from simclr_engine.export.index import default_index
    from simclr_engine.export.predict import open_index
    from simclr_engine.export.serve import LOOPBACK, Service, require_gradio, start_page

    from ..run import unfinished_notes

    require_gradio()
    embedder = open_embedder(file)
    for note in unfinished_notes(embedder.unfinished):
        say(f"note: {note}")
    wanted = index_path is not None or default_index(embedder.path).exists()
    index = open_index(embedder, index_path) if wanted else None
    if index is None:
        say(f"there is no index ({default_index(embedder.path).name}) next to the file: only classes are shown")
    elif index.images is None:
        say("the index holds no pictures: neighbours are named but not shown (`embed --images` stores them)")
    service = Service(embedder, index)
    if host not in LOOPBACK:
        say(f"listening on {host}: anyone who can reach this machine can use the page")
    with start_page(service, host, port) as address:
        tell(f"{address}  (press Ctrl-C to stop)")
        threading.Event().wait()
