"""A process that answers for `serve`: reads an upload from stdin, writes what is said of it to stdout, and so on.

Its memory is bounded when encoder and index are open, and it ends itself if it takes far too long, so that none is left
behind by a server that was killed. Each message begins with its length in four bytes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import IO, Any

import numpy as np

from simclr_engine.data.decode import image_dimensions
from simclr_engine.documents import to_json
from simclr_engine.errors import DataError, EngineError, plain
from simclr_engine.run import unfinished_notes
from simclr_engine.terminal import prepare_streams

from .embedder import open_embedder
from .index import default_index
from .predict import open_index
from .serve import Service, headline, parts
from .workers import LARGE, PATIENT_SECONDS, QUICK_PIXELS

ROOM = 256 << 20  # bytes that a picture may take on its way to the answer


def main() -> None:
    """Serves until stdin ends. The first message is the settings, as JSON:

    target, index: paths; for `index` null, the one beside the encoder, if there is one.
    sha256: that the file must have; null for any.
    identity: that the encoder must have (`Embedder.identity`); absent for any.
    patient: whether this process answers pictures of any size, at a lower priority.
    """
    asked, said = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the answers
    prepare_streams()
    settings = json.loads(_next(asked) or sys.exit())
    try:
        service, about = _open(settings)
    except EngineError as error:
        saw = None if error.saw is None else str(error.saw)
        _send(said, {"error": type(error).__name__, "cause": error.cause, "saw": saw, "fix": error.fix})
        return
    if settings["patient"] and hasattr(os, "nice"):
        os.nice(10)
    alarm = getattr(signal, "alarm", lambda seconds: None)  # Windows has none
    service.answer_pixels(np.zeros((service.embedder.image_size,) * 2 + (3,), np.uint8))  # the first one takes longest
    _bound_memory()
    _send(said, about)
    while body := _next(asked):
        alarm(int(PATIENT_SECONDS) + 5)  # the system ends the process then, whatever it does
        _send(said, reply(service, body, settings["patient"]))
        alarm(0)


def _open(settings: dict[str, Any]) -> tuple[Service, dict[str, Any]]:
    embedder = open_embedder(settings["target"], settings["sha256"], threads=1)
    if settings.get("identity") not in (None, embedder.identity):
        raise DataError("the encoder was replaced by another", saw=embedder.path, fix="start `serve` again")
    notes = [f"note: {note}" for note in unfinished_notes(embedder.unfinished)]
    beside = default_index(embedder.path)
    index = open_index(embedder, settings["index"]) if settings["index"] or beside.exists() else None
    if index is None:
        notes.append(f"there is no index ({beside.name}) next to the file: only classes are shown")
    elif index.images is None:
        notes.append("the index holds no pictures: neighbours are named but not shown (`embed --images` stores them)")
    service = Service(embedder, index)
    head, map_html = headline(embedder, index), service.draw_map()
    classes = embedder.predict is not None
    return service, {"identity": embedder.identity, "notes": notes, "head": head, "map": map_html, "classes": classes}


def reply(service: Service, body: bytes, patient: bool) -> dict[str, Any]:
    """What is said of an upload: the parts of the page, or `later` with its pixels, or `refused` with the reason."""
    try:
        width, height = image_dimensions(body)
        if width * height > QUICK_PIXELS and not patient:
            return {"later": width * height}
        return parts(service, service.answer(body))
    except EngineError as error:
        if isinstance(error.__cause__, MemoryError):
            return {"refused": LARGE}
        return {"refused": plain(f"{error.cause[:1].upper()}{error.cause[1:]}.")}
    except MemoryError:
        return {"refused": LARGE}


def _bound_memory() -> None:
    """Lets the process allocate `ROOM` bytes more than it has; where the system is not Linux, nothing is bounded."""
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    except (ImportError, OSError):
        return
    resource.setrlimit(resource.RLIMIT_DATA, (used + ROOM, used + ROOM))


def _next(stream: IO[bytes]) -> bytes:
    """The next message; empty at the end."""
    return stream.read(int.from_bytes(stream.read(4), "big"))


def _send(stream: IO[bytes], document: dict[str, Any]) -> None:
    data = to_json(document).encode()
    try:
        stream.write(len(data).to_bytes(4, "big") + data)
        stream.flush()
    except BrokenPipeError:
        os._exit(0)  # the server has ended, and nobody is left to be told


if __name__ == "__main__":
    main()
