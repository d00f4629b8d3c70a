"""serve: this machine's own page alone, within bounds of size, time, memory and connections; nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from fixtures.image_files import encode
from fixtures.serving import classify, fetch, free_port, needs_server, token_of
from fixtures.tiny_probe import write_tiny_probe
from serve_load import run, transparent_png
from simclr_engine.cli.serve import command
from simclr_engine.errors import DataError
from simclr_engine.export import answering, server, workers
from simclr_engine.export.embedder import open_embedder
from simclr_engine.export.serve import Service, headline
from simclr_engine.export.server import start_page
from simclr_engine.export.workers import BUSY, LARGE, MAX_BYTES, Upload, Worker, Workers

PICTURE = encode(np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8))
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_probe(tmp_path_factory.mktemp("model") / "e.onnx", image_size=8)


@pytest.fixture(scope="module")
def page(model: Path) -> Iterator[str]:
    with start_page(model, port=free_port()) as (address, _):
        yield address


def _settings(model: Path, **more: Any) -> dict[str, Any]:
    return {"target": str(model), "index": None, "sha256": None, "patient": True, **more}


def test_the_name_of_the_file_becomes_no_markup(tmp_path: Path) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    shown = headline(open_embedder(write_tiny_probe(tmp_path / f"{hostile}.onnx", image_size=8)), None)
    assert "&lt;img src=x onerror=alert(1)&gt;.onnx" in shown and "<img" not in shown


@needs_server
def test_only_the_page_itself_may_send_pictures(page: str) -> None:
    token, own = token_of(page), page.rstrip("/")
    assert len(token) >= 32
    others = [
        {},
        {"X_Token": "x" * len(token)},
        {"X_Token": token, "Origin": "http://evil.example"},
        {"X_Token": token, "Origin": "null"},
        {"X_Token": token, "Origin": own.replace("127.0.0.1", "localhost")},
        {"X_Token": token, "Referer": "http://evil.example/page"},
        {"X_Token": token, "Sec_Fetch_Site": "cross-site"},
        {"X_Token": token, "Sec_Fetch_Site": "same-site", "Origin": own},
    ]
    for headers in others:
        assert fetch(f"{page}classify", PICTURE, **headers)[0] == 403, headers
    status, said, answered = fetch(f"{page}classify", PICTURE, X_Token=token, Origin=own, Sec_Fetch_Site="same-origin")
    assert status == 200 and json.loads(said)["classes"]
    assert not {name for name in answered if name.startswith("access-control")}
    assert fetch(f"{page}classify", PICTURE, X_Token=token, Referer=page)[0] == 200


@needs_server
def test_each_start_has_a_token_of_its_own(page: str, model: Path) -> None:
    with start_page(model, port=free_port()) as (address, _):
        assert token_of(address) != token_of(page)
        assert fetch(f"{address}classify", PICTURE, X_Token=token_of(page))[0] == 403


@needs_server
def test_names_that_are_not_this_machine_s_are_not_answered(page: str) -> None:
    port = re.findall(r":(\d+)", page)[0]
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "[::1].evil.example", ""):
        assert fetch(page, Host=host)[0] == 400, host
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", socket.gethostname()):
        assert fetch(page, Host=host)[0] == 200, host


@needs_server
def test_a_body_above_the_limit_is_not_taken(page: str) -> None:
    token = token_of(page)
    assert classify(page, PICTURE + bytes(MAX_BYTES - len(PICTURE)))["classes"]
    # The answer may be lost when the connection is cut under a client that goes on sending.
    assert fetch(f"{page}classify", bytes(MAX_BYTES + 1), X_Token=token)[0] in (413, 0)
    assert fetch(f"{page}classify", iter([bytes(1 << 20)] * 300), X_Token=token)[0] in (411, 0)  # of no stated length
    assert classify(page, b"")["refused"] == "The file is empty."


def test_of_the_uploads_that_are_held_the_largest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "HELD_BYTES", 1000)

    async def chunks(*sizes: int) -> AsyncIterator[bytes]:
        for size in sizes:
            yield bytes(size)

    async def run() -> list[bool]:
        pool = Workers({})
        with pool.uploading() as slow, pool.uploading() as large, pool.uploading() as small:
            await pool.receive(chunks(300, 300), slow)
            await pool.receive(chunks(350, 350), large)
            await pool.receive(chunks(100), small)
            assert large.answer.result() == {"refused": BUSY} and not large.body
            return [slow.answer.done(), small.answer.done()]

    assert asyncio.run(run()) == [False, False]


def test_cheap_pictures_go_first_and_the_dearest_is_refused() -> None:
    async def run() -> None:
        worker, uploads = Worker({}, 1, most=3), [Upload() for _ in range(4)]
        for upload, cost in zip(uploads, (5, 9, 1, 5), strict=True):
            upload.cost = cost
            worker.put(upload)
        assert [one.answer.done() for one in uploads] == [False, True, False, False]
        assert uploads[1].answer.result() == {"refused": BUSY}
        assert [uploads.index(await worker.next()) for _ in range(3)] == [2, 0, 3]

    asyncio.run(run())


def test_the_quick_worker_hands_on_large_pictures_unread(model: Path) -> None:
    service = Service(open_embedder(model), None)
    side = int(workers.QUICK_PIXELS**0.5)
    assert answering.reply(service, transparent_png(side + 1, side), patient=False) == {"later": (side + 1) * side}
    assert answering.reply(service, transparent_png(side, side), patient=False)["classes"]
    assert answering.reply(service, transparent_png(side + 1, side), patient=True)["classes"]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded on Linux alone")
def test_a_picture_that_takes_too_much_memory_is_refused(model: Path) -> None:
    bomb = transparent_png(9400, 9400)
    assert len(bomb) < 400_000

    async def run() -> None:
        worker = Worker(_settings(model), 60)
        await worker.start()
        assert worker._process is not None
        before = worker._process.pid
        for _ in range(3):
            assert await worker.answer(bomb) == {"refused": LARGE}
        assert (await worker.answer(PICTURE))["classes"]
        used = dict(re.findall(r"(VmHWM|VmData):\s+(\d+) kB", Path(f"/proc/{before}/status").read_text()))
        assert int(used["VmHWM"]) < 450 << 10
        await worker.stop()

    asyncio.run(run())


def test_a_worker_that_is_slow_or_dies_is_replaced(model: Path) -> None:
    async def run() -> None:
        worker = Worker(_settings(model), 60)
        about = await worker.start()
        worker._seconds = 0.001
        with pytest.raises(TimeoutError):
            await worker.answer(transparent_png(1000, 1000))
        worker._seconds = 60
        assert (await worker.answer(PICTURE))["classes"]
        assert worker._process is not None
        worker._process.kill()
        with pytest.raises((EOFError, OSError)):
            await worker.answer(PICTURE)
        model.with_name("other.onnx").write_bytes(model.read_bytes())
        worker.settings["target"] = str(write_tiny_probe(model.with_name("other.onnx"), image_size=8, recipe="other"))
        with pytest.raises(DataError, match="replaced by another"):
            await worker.answer(PICTURE)
        assert about["identity"] == worker.settings["identity"]
        await worker.stop()

    asyncio.run(run())


@needs_server
def test_a_slow_picture_is_refused_and_the_page_goes_on(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PATIENT_SECONDS", 0.001)
    with start_page(model, port=free_port()) as (address, _):
        assert "takes longer" in classify(address, transparent_png(1500, 1500))["refused"]
        assert classify(address, PICTURE)["classes"]


def _send(page: str, data: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(re.findall(r":(\d+)", page)[0])), timeout=30)
    connection.sendall(data)
    return connection


def _rest(connection: socket.socket) -> bytes:
    """What comes until the server ends the connection."""
    with connection:
        try:
            return connection.makefile("rb").read()
        except ConnectionError:
            return b""


@needs_server
def test_half_open_connections_make_room_for_others(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS", 4)
    monkeypatch.setattr(server, "HEAD_SECONDS", 600)
    silent = [_send(page, b"") for _ in range(3)] + [_send(page, b"POST /classify HTTP/1.1\r\nHo") for _ in range(3)]
    assert _rest(silent[0]) == _rest(silent[1]) == b""
    assert fetch(page)[0] == 200
    for connection in silent[2:]:
        connection.close()


@needs_server
def test_slow_senders_are_cut_off(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.05)
    monkeypatch.setattr(server, "BODY_SECONDS", 0.05)
    assert _rest(_send(page, b"POST /classify HTTP/1.1\r\nHost: 127.0.0.1\r\nX-")) == b""
    head = f"POST /classify HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Token: {token_of(page)}\r\nContent-Length: 9\r\n\r\nabc"
    assert _rest(_send(page, head.encode())).startswith(b"HTTP/1.1 408 ")
    monkeypatch.setattr(server, "BODY_SECONDS", 60)
    monkeypatch.setattr(server, "CONNECTION_SECONDS", 0.05)
    assert _rest(_send(page, head.encode())) == b""


@needs_server
def test_the_policy_lets_the_page_reach_and_be_framed_by_nothing_else(page: str) -> None:
    status, html, headers = fetch(page)
    rules = dict(rule.split(maxsplit=1) for rule in headers["content-security-policy"].split(";"))
    assert {word for rule in rules.values() for word in rule.split()} <= {"'self'", "'none'", "data:", "blob:"}
    assert rules["script-src"] == rules["connect-src"] == "'self'"
    assert rules["default-src"] == rules["form-action"] == rules["frame-ancestors"] == "'none'"
    assert status == 200 and not re.findall(r"<script(?![^>]+src=)|\son\w+=|\sstyle=", html)


@needs_server
def test_the_page_listens_on_one_address_of_this_machine_alone(page: str) -> None:
    port = int(re.findall(r":(\d+)", page)[0])
    socket.create_connection(("127.0.0.1", port), timeout=10).close()
    with pytest.raises(OSError):  # another address of the same machine, which a socket on all addresses answers
        socket.create_connection(("127.0.0.2", port), timeout=10)


@needs_server
def test_the_page_can_listen_on_the_loopback_address_of_ipv6(model: Path) -> None:
    try:
        port = free_port("::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    with start_page(model, host="::1", port=port) as (address, _):
        assert address == f"http://[::1]:{port}/"
        assert classify(address, PICTURE)["classes"]


def test_the_command_listens_on_the_loopback_address_unless_told_otherwise(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    @contextmanager
    def start(*_: object, host: str, **__: object) -> Iterator[tuple[str, list[str]]]:
        asked.append(host)
        raise KeyboardInterrupt
        yield "", []

    monkeypatch.setattr(server, "start_page", start)
    told = [CliRunner().invoke(command, [str(model), *more]).output for more in ([], ["--host", "0.0.0.0"])]
    assert asked == ["127.0.0.1", "0.0.0.0"]
    assert ["anyone who can reach this machine" in text for text in told] == [False, True]


@needs_server
def test_what_is_wrong_with_the_file_is_said_as_everywhere(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not the one that was asked for"), start_page(model, sha256="0" * 64):
        pass
    with pytest.raises(DataError) as caught, start_page(model, tmp_path / "none.npy"):
        pass
    assert str(tmp_path / "none.npy") in str(caught.value) and caught.value.fix


def _take_every_signal() -> None:
    """A shell lets commands in the background, such as half of the suite, ignore SIGINT, and so do their children."""
    for number in SIGNALS:
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)


@needs_server
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of POSIX")
def test_nothing_is_left_however_the_process_ends(model: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    served = []
    for _ in SIGNALS:
        call = [sys.executable, "-m", "simclr_engine", "serve", str(model), "--port", str(free_port())]
        served.append(
            subprocess.Popen(
                call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, preexec_fn=_take_every_signal
            )
        )
        request.addfinalizer(served[-1].kill)
    for number, process in zip(SIGNALS, served, strict=True):
        assert process.stdout is not None
        address = process.stdout.readline().decode().split()[0]
        assert classify(address, PICTURE)["classes"]
        half = _send(
            address, f"POST /classify HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Token: {token_of(address)}\r\n".encode()
        )
        half.sendall(b"Content-Length: 1000000\r\n\r\n" + bytes(500_000))
        assert list(temporary.iterdir()) == []
        children = Path(f"/proc/{process.pid}/task").glob("*/children") if sys.platform == "linux" else ()
        ours = [int(child) for file in children for child in file.read_text().split()]
        process.send_signal(number)
        assert process.wait(30) == {signal.SIGINT: 130, signal.SIGKILL: -9}.get(number, 128 + number)
        assert process.stderr is not None and b"Traceback" not in process.stderr.read()
        _rest(half)
        end = time.monotonic() + 30
        while any(Path(f"/proc/{child}").exists() for child in ours):  # they end by themselves
            assert time.monotonic() < end, "a worker outlives its server"
    assert list(temporary.iterdir()) == []


@needs_server
@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded on Linux alone")
def test_among_hostile_connections_every_honest_one_is_answered(model: Path) -> None:
    _, memory, wrong = run(connections=20, seconds=1, model=model, pause=0.1, side=64)
    assert wrong == [] and memory < 1 << 30
