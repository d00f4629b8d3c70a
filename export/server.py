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
from typing import Any, NamedTuple

from simclr_engine.documents import to_json
from simclr_engine.errors import PlatformError, UsageError

from .workers import BUSY, MAX_BYTES, Workers

CONNECTIONS = 256  # at a time; beyond it the oldest that has not asked for anything yet is closed
HEAD_SECONDS = 10  # from the connection to the end of the request's header
BODY_SECONDS = 20  # to the end of the upload
CONNECTION_SECONDS = 60  # to the end of the answer
LOOPBACK = ("127.0.0.1", "localhost", "::1")
INSTALL = "pip install 'simclr-engine[serve]' (in a checkout: pip install '.[serve]')"
HEADERS = {
    # The browser itself refuses whatever would be asked for elsewhere.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
    "connection": "close",  # each request has a connection, whose bounds are its own
}


class Page(NamedTuple):
    """A page that is being served: its address, and what to say of it first."""

    address: str
    notes: tuple[str, ...]


def require_server() -> Any:
    """The module uvicorn; PlatformError with the line that installs what the page needs."""
    try:
        import starlette.applications  # noqa: F401
        import uvicorn
    except ImportError as error:
        cause = f"the page needs {error.name}, which is not installed"
        raise PlatformError(cause, saw=str(error), fix=INSTALL) from error
    return uvicorn


@contextmanager
def start_page(
    target: str | Path,
    index: str | Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    sha256: str | None = None,
) -> Iterator[Page]:
    """Serves the page while the context lasts. Nothing is left behind, however the process ends.

    Args:
        target: an .onnx file, or a run (imports torch, in the worker processes).
        index: NAME.npy that `embed` wrote; None takes the one beside the file, if there is one.
        host: name or address to listen on.
        port: TCP port, 1 to 65535.
        sha256: that the file must have.

    Raises:
        PlatformError: uvicorn or starlette is missing, or the page cannot be served there.
        UsageError: a port that cannot be, or there would be nothing to show.
        DataError: encoder or index cannot be used.
    """
    require_server()
    if not 0 < port < 1 << 16:
        raise UsageError("a port is 1 to 65535", saw=port, fix="--port 7860")
    settings = {"target": str(target), "index": index and str(index), "sha256": sha256}
    started: Future[tuple[Any, dict[str, Any]]] = Future()
    with _listening(host, port) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(_serve(settings, listener, host, started)), daemon=True)
        thread.start()
        server, about = started.result()
        try:
            yield Page(f"http://{f'[{host}]' if ':' in host else host}:{port}/", tuple(about["notes"]))
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family, backlog=CONNECTIONS)
    except (OSError, UnicodeError) as error:
        raise PlatformError(
            "the page cannot be served there", saw=f"{host}:{port}: {error}", fix="choose another with --port or --host"
        ) from error
    with listener:
        yield listener


async def _serve(settings: Mapping[str, Any], listener: socket.socket, host: str, started: Future[Any]) -> None:
    """Runs workers and server until `should_exit` of the server is set; `started` takes it and what the workers say."""
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: Any = None) -> None:
            for each in self.servers:
                each.close()
            await asyncio.sleep(0.05)  # those that were accepted just now are among the connections then
            for connection in list(self.server_state.connections):
                connection.transport.abort()
            await super().shutdown(sockets)

    workers = Workers(settings)
    try:
        about = await workers.start()
        server = Server(
            uvicorn.Config(
                _application(workers, about, host),
                http=_bounded_protocol(),
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
        started.set_result((server, about))
        await server.serve(sockets=[listener])
    except BaseException as error:
        if started.done():
            raise
        started.set_exception(error)
    finally:
        await workers.stop()


def _bounded_protocol() -> type[asyncio.Protocol]:
    """uvicorn's protocol with bounds on the number of connections and on their time."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Bounded(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            self.began = self.loop.time()
            others: set[Any] = self.connections
            if len(others) >= CONNECTIONS:
                idle = [one for one in others if one.cycle is None or one.cycle.more_body]
                (min(idle, key=lambda one: one.began).transport if idle else transport).abort()
            super().connection_made(transport)
            self.ends = (
                self.loop.call_later(HEAD_SECONDS, lambda: self.cycle is None and transport.abort()),
                self.loop.call_later(CONNECTION_SECONDS, transport.abort),
            )

        def connection_lost(self, error: Exception | None) -> None:
            for end in self.ends:
                end.cancel()
            super().connection_lost(error)

    return Bounded


class OwnPageOnly:
    """Lets in requests under a name of this machine, and uploads from the page itself; adds `HEADERS` (ASGI).

    A page of another origin may send requests here, and its name may even lead here (DNS rebinding): the first lacks
    the token and says where it comes from, the second comes under a foreign name. An address is nobody's name.
    """

    def __init__(self, app: Any, names: frozenset[str], token: str) -> None:
        self._app, self._names, self._token = app, names, token

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.responses import PlainTextResponse

        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        app = self._app
        if not self._is_here(headers.get("host", "").lower()):
            app = PlainTextResponse("this machine has no such name", 400)
        elif scope["method"] not in ("GET", "HEAD") and not self._is_own(headers):
            app = PlainTextResponse("only the page itself may send pictures: load it again", 403)

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                ours = [(key.encode(), value.encode()) for key, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *ours]
            await send(message)

        await app(scope, receive, with_headers)

    def _is_here(self, host: str) -> bool:
        found = re.fullmatch(r"(?:\[([0-9a-fA-F:.%]+)\]|([^:\[\]]+))(?::\d*)?", host)
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


def _application(workers: Workers, about: Mapping[str, Any], host: str) -> Any:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response
    from starlette.routing import Route

    async def classify(request: Request) -> Response:
        if int(request.headers.get("content-length", "0")) > MAX_BYTES:
            return Response("the file is too large", 413)
        with workers.uploading() as upload:
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    await workers.receive(request.stream(), upload)
            except TimeoutError:
                return Response("the upload takes too long", 408)
            except ClientDisconnect:
                return Response()
            gone = asyncio.ensure_future(request.receive())
            await asyncio.wait((upload.answer, gone), return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            said = upload.answer.result() if upload.answer.done() else {}
        return Response(to_json(said), 503 if said.get("refused") == BUSY else 200, media_type="application/json")

    def constant(path: str, content: str, media_type: str) -> Route:
        async def answer(request: Request) -> Response:
            return Response(content, media_type=media_type)

        return Route(path, answer)

    here, token = Path(__file__).parent, secrets.token_urlsafe(32)
    hidden = "" if about["classes"] else "hidden"
    html = Template((here / "serve.html").read_text("utf-8")).substitute(
        about, token=token, limit=MAX_BYTES, hidden=hidden
    )
    style = "\n".join((here / name).read_text("utf-8") for name in ("page/page.css", "serve.css"))
    routes = [
        constant("/", html, "text/html"),
        constant("/serve.css", style, "text/css"),
        constant("/serve.js", (here / "serve.js").read_text("utf-8"), "text/javascript"),
        Route("/classify", classify, methods=["POST"]),
    ]
    own = socket.gethostname().lower()
    names = frozenset({"localhost", host.lower(), own, f"{own}.local"})
    return Starlette(routes=routes, middleware=[Middleware(OwnPageOnly, names=names, token=token)])
