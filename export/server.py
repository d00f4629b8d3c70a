"""The local page of `serve`: an address on this machine that takes pictures from the page itself and from nobody else.

Needs Starlette and uvicorn (extra `[serve]`). Uploads are held in memory, within the bounds of `workers.py`, and never
on disk. The page asks for nothing outside its own address.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import secrets
import socket
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from string import Template
from typing import Any

import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from simclr_engine.errors import PlatformError, UsageError

from .workers import BUSY, MAX_BYTES, Workers

CONNECTIONS = 256  # at a time; beyond it the oldest that has not asked for anything yet is closed
HEAD_SECONDS = 10  # from the connection to the end of the request's header
BODY_SECONDS = 20  # to the end of the upload
CONNECTION_SECONDS = 60  # to the end of the answer
HEADERS = {
    # The browser itself refuses whatever would be asked for elsewhere.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
    "connection": "close",  # each request has a connection, whose bounds are its own
}


@contextmanager
def start_page(
    target: str | Path,
    index: str | Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    sha256: str | None = None,
) -> Iterator[tuple[str, list[str]]]:
    """Serves the page while the context lasts; gives its address, and notes about encoder and index. Nothing is left
    behind, however the process ends.

    Args:
        target: an .onnx file, or a run (imports torch, in the worker processes).
        index: NAME.npy that `embed` wrote; None takes the one beside the file, if there is one.
        host: name or address to listen on.
        port: TCP port, 1 to 65535.
        sha256: that the file must have.

    Raises:
        PlatformError: the page cannot be served there.
        UsageError: a port that cannot be, or there would be nothing to show.
        DataError: encoder or index cannot be used.
    """
    if not 0 < port < 1 << 16:
        raise UsageError("a port is 1 to 65535", saw=port, fix="--port 7860")
    settings = {"target": str(target), "index": index and str(index), "sha256": sha256}
    started: Future[tuple[uvicorn.Server, list[str]]] = Future()
    try:
        family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server((host, port), family=family, backlog=CONNECTIONS)
    except (OSError, UnicodeError) as error:
        fix = "choose another with --port or --host"
        raise PlatformError("the page cannot be served there", saw=f"{host}:{port}: {error}", fix=fix) from error
    with listener:
        thread = threading.Thread(target=lambda: asyncio.run(_serve(settings, listener, host, started)), daemon=True)
        thread.start()
        server, notes = started.result()
        try:
            yield f"http://{f'[{host}]' if ':' in host else host}:{port}/", notes
        finally:
            server.should_exit = True
            thread.join()


async def _serve(settings: Mapping[str, Any], listener: socket.socket, host: str, started: Future[Any]) -> None:
    """Runs workers and server until `should_exit` of the server is set; `started` takes it and the workers' notes."""
    workers = Workers(settings)
    try:
        about = await workers.start()
        server = Server(
            uvicorn.Config(
                Application(workers, about, host),
                http=BoundedProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",
                proxy_headers=False,
                server_header=False,
                h11_max_incomplete_event_size=16 << 10,
                timeout_graceful_shutdown=1,
            )
        )
        started.set_result((server, about["notes"]))
        await server.serve(sockets=[listener])
    except BaseException as error:
        if started.done():
            raise
        started.set_exception(error)
    finally:
        await workers.stop()


class Server(uvicorn.Server):
    """uvicorn's server, which waits for no client at its end."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for each in self.servers:
            each.close()
        await asyncio.sleep(0.05)  # those that were accepted just now are among the connections then
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await super().shutdown(sockets)


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol with bounds on the number of connections and on their time."""

    def connection_made(self, transport: Any) -> None:
        self.began = self.loop.time()
        others: set[Any] = self.connections
        if len(others) >= CONNECTIONS:
            idle = [one for one in others if one.cycle is None or one.cycle.more_body] or [self]
            oldest = min(idle, key=lambda one: one.began)
            others.discard(oldest)
            (transport if oldest is self else oldest.transport).abort()
        super().connection_made(transport)
        self.ends = (
            self.loop.call_later(HEAD_SECONDS, lambda: self.cycle is None and transport.abort()),
            self.loop.call_later(CONNECTION_SECONDS, transport.abort),
        )

    def connection_lost(self, error: Exception | None) -> None:
        for end in self.ends:
            end.cancel()
        super().connection_lost(error)


class Application:
    """Gives the page to whoever asks under a name of this machine, and takes uploads from the page itself (ASGI).

    A page of another origin may send requests here, and its name may even lead here (DNS rebinding): the first lacks
    the token and says where it comes from, the second comes under a foreign name. An address is nobody's name.
    """

    def __init__(self, workers: Workers, about: Mapping[str, Any], host: str) -> None:
        self._workers, self._token = workers, secrets.token_urlsafe(32)
        own = socket.gethostname().lower()
        self._names = {"localhost", host.lower(), own, f"{own}.local"}
        texts = {
            name: Path(__file__).parent.joinpath(name).read_text("utf-8")
            for name in ("serve.html", "serve.js", "serve.css", "page/page.css")
        }
        hidden = "" if about["classes"] else "hidden"
        html = Template(texts["serve.html"]).substitute(about, token=self._token, limit=MAX_BYTES, hidden=hidden)
        self._files = {
            "/": (html, "text/html"),
            "/serve.js": (texts["serve.js"], "text/javascript"),
            "/serve.css": (texts["page/page.css"] + texts["serve.css"], "text/css"),
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        response = await self._respond(Request(scope, receive))
        response.headers.update(HEADERS)
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        if not self._is_here(request.headers.get("host", "").lower()):
            return PlainTextResponse("this machine has no such name: use its address", 400)
        path = request.scope["path"]
        if request.method in ("GET", "HEAD") and path in self._files:
            content, kind = self._files[path]
            return Response(content, media_type=kind)
        if (request.method, path) != ("POST", "/classify"):
            return PlainTextResponse("there is no such page", 404)
        if not self._is_own(request.headers):
            return PlainTextResponse("only the page itself may send pictures: load it again", 403)
        length = request.headers.get("content-length")
        if length is None or int(length) > MAX_BYTES:
            return PlainTextResponse("the file is too large, or of no stated length", 411 if length is None else 413)
        return await self._classify(request)

    async def _classify(self, request: Request) -> Response:
        with self._workers.uploading() as upload:
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    await self._workers.receive(request.stream(), upload)
            except TimeoutError:
                return PlainTextResponse("the upload takes too long", 408)
            except ClientDisconnect:
                return Response()
            gone = asyncio.ensure_future(request.receive())
            await asyncio.wait((upload.answer, gone), return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            said = upload.answer.result() if upload.answer.done() else {}
        return JSONResponse(said, 503 if said.get("refused") == BUSY else 200)

    def _is_here(self, host: str) -> bool:
        found = re.fullmatch(r"(?:\[([0-9a-f:.%]+)\]|([^:\[\]]+))(?::\d*)?", host)
        name = found and (found[1] or found[2])
        try:
            return name in self._names or bool(ipaddress.ip_address(name or ""))
        except ValueError:
            return False

    def _is_own(self, headers: Mapping[str, str]) -> bool:
        origin = headers.get("origin", headers.get("referer"))
        return (
            headers.get("sec-fetch-site", "same-origin") == "same-origin"
            and (origin is None or origin.split("/")[2:3] == [headers["host"]])
            and secrets.compare_digest(headers.get("x-token", "").encode(), self._token.encode())
        )
