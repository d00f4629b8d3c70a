"""serve: this machine alone, uploads alone and not too large, no foreign text as markup, nothing changed behind it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from fixtures.image_files import encode
from fixtures.tiny_probe import write_tiny_probe
from simclr_engine.cli.serve import command
from simclr_engine.errors import DataError
from simclr_engine.export import serve
from simclr_engine.export.embedder import open_embedder
from simclr_engine.export.serve import Service, headline, notice, start_page

needs_gradio = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed")
SETTINGS = {"GRADIO_ALLOWED_PATHS": "/", "GRADIO_SHARE": "True", "HF_HUB_DISABLE_TELEMETRY": "0"}
PICTURE = encode(np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Service:
    return Service(open_embedder(write_tiny_probe(tmp_path_factory.mktemp("model") / "e.onnx", image_size=8)), None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def page(service: Service) -> Iterator[str]:
    with start_page(service, port=_free_port()) as address:
        yield address


def _open(request: str | urllib.request.Request) -> tuple[int, str, dict[str, str]]:
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode("utf-8", "replace"), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode("utf-8", "replace"), dict(error.headers)


def _upload(page: str, data: bytes) -> tuple[int, str]:
    """What the page says to a file of these bytes."""
    head = b'--cut\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=cut"}
    request = urllib.request.Request(f"{page}gradio_api/upload", head + data + b"\r\n--cut--\r\n", headers)
    status, said, _ = _open(request)
    return status, said


def _classify(page: str, payload: object) -> str:
    """The events with which the page answers."""
    headers = {"Content-Type": "application/json"}
    body = json.dumps({"data": [payload]}).encode()
    _, begun, _ = _open(urllib.request.Request(f"{page}gradio_api/call/classify", body, headers))
    return _open(f"{page}gradio_api/call/classify/{json.loads(begun)['event_id']}")[1]


def test_a_file_above_the_limit_is_refused_before_it_is_read(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(PICTURE)
    os.truncate(path, serve.MAX_BYTES)  # a picture with zeros behind it
    assert service.answer(path).classes
    os.truncate(path, serve.MAX_BYTES + 1)
    with pytest.raises(DataError, match="at most 10 MiB"):
        service.answer(path)


def test_the_name_of_the_file_and_a_message_become_no_markup(tmp_path: Path) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    shown = headline(open_embedder(write_tiny_probe(tmp_path / f"{hostile}.onnx", image_size=8)), None)
    assert "&lt;img src=x onerror=alert(1)&gt;.onnx" in shown and "<img" not in shown
    assert notice(f"no class {hostile}").count("<") == 2  # its own paragraph


@needs_gradio
def test_the_page_itself_takes_no_upload_above_the_limit(page: str) -> None:
    status, said = _upload(page, PICTURE)
    assert status == 200 and json.loads(said)
    assert serve.MAX_BYTES < serve.UPLOAD_BYTES  # in between, the page itself refuses and clears its last answer
    status, _ = _upload(page, PICTURE + bytes(serve.UPLOAD_BYTES))
    assert status == 413


@needs_gradio
def test_the_box_hands_on_nothing_but_files_in_the_folder_of_uploads(tmp_path: Path) -> None:
    import gradio

    uploads = tmp_path / "uploads"
    (uploads / "inside").mkdir(parents=True)
    mine, link, secret = uploads / "inside" / "mine.png", uploads / "inside" / "link.png", tmp_path / "secret.png"
    mine.write_bytes(PICTURE), secret.write_bytes(PICTURE)
    link.symlink_to(secret)
    box = serve._upload_box(gradio, uploads)(render=False)
    assert box.preprocess(None) is None
    assert box.preprocess(SimpleNamespace(path=str(mine))) == str(mine)
    for other in (secret, link, uploads / ".." / "secret.png", uploads / "inside", uploads / "absent.png", None):
        with pytest.raises(gradio.Error, match="Only an uploaded file"):
            box.preprocess(SimpleNamespace(path=other and str(other)))


@needs_gradio
def test_an_upload_is_answered_and_an_address_in_its_place_not_fetched(page: str) -> None:
    marked = {"meta": {"_type": "gradio.FileData"}}
    (uploaded,) = json.loads(_upload(page, PICTURE)[1])
    assert "event: complete" in _classify(page, {"path": uploaded, **marked})
    for address in ("http://127.0.0.1:9/a.png", "https://localhost:9/a.png"):
        said = _classify(page, {"path": address, "url": address, **marked})
        assert "Addresses are not fetched" in said and "event: complete" not in said, said


@needs_gradio
def test_of_an_upload_that_is_no_image_the_page_says_so_and_nothing_else(page: str) -> None:
    (uploaded,) = json.loads(_upload(page, b"text")[1])
    said = _classify(page, {"path": uploaded, "meta": {"_type": "gradio.FileData"}})
    _, notice, classes, *_ = json.loads(said.partition("data: ")[2])
    assert "event: complete" in said and "Not a readable" in json.dumps(notice) and not classes


@needs_gradio
def test_the_policy_lets_the_page_reach_and_be_framed_by_nothing_else(page: str) -> None:
    policy = {k.lower(): v for k, v in _open(page)[2].items()}["content-security-policy"]
    rules = dict(rule.split(maxsplit=1) for rule in policy.split(";"))
    allowed = {"'self'", "'none'", "'unsafe-inline'", "'unsafe-eval'", "data:", "blob:"}
    assert {word for rule in rules.values() for word in rule.split()} <= allowed
    assert rules["default-src"] == rules["connect-src"] == rules["form-action"] == "'self'"
    assert rules["frame-ancestors"] == rules["object-src"] == "'none'"


@needs_gradio
def test_the_page_listens_on_one_address_of_this_machine_alone(page: str) -> None:
    port = int(re.findall(r":(\d+)", page)[0])
    socket.create_connection(("127.0.0.1", port), timeout=10).close()
    with pytest.raises(OSError):  # another address of the same machine, which a socket on all addresses answers
        socket.create_connection(("127.0.0.2", port), timeout=10)


def test_the_command_listens_on_the_loopback_address_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    @contextmanager
    def start(service: Service, host: str, port: int) -> Iterator[str]:
        asked.append(host)
        raise KeyboardInterrupt
        yield ""

    monkeypatch.setattr(serve, "start_page", start)
    monkeypatch.setattr(serve, "require_gradio", lambda: None)
    path = str(write_tiny_probe(tmp_path / "e.onnx", image_size=8))
    told = [CliRunner().invoke(command, [path, *more]).output for more in ([], ["--host", "0.0.0.0"])]
    assert asked == ["127.0.0.1", "0.0.0.0"]
    assert ["anyone who can reach this machine" in text for text in told] == [False, True]


@needs_gradio
def test_the_user_s_settings_of_gradio_do_not_count_and_come_back(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    monkeypatch.delenv("GRADIO_ANALYTICS_ENABLED", raising=False)
    before = dict(os.environ)
    with start_page(service, port=_free_port()) as address:
        inside = {k: v for k, v in os.environ.items() if k.startswith("GRADIO_")}
        uploads = Path(os.environ["GRADIO_TEMP_DIR"])
        assert not {"GRADIO_ALLOWED_PATHS", "GRADIO_SHARE"} & set(inside)
        assert inside["GRADIO_ANALYTICS_ENABLED"] == "False"
        assert os.environ["HF_HUB_DISABLE_TELEMETRY"] in ("1", "True")  # gradio writes it too
        assert _upload(address, PICTURE)[0] == 200 and any(uploads.rglob("a.png"))
    assert dict(os.environ) == before
    assert not uploads.exists()


@needs_gradio
def test_a_folder_in_place_of_an_upload_is_refused_before_gradio_sees_it(tmp_path: Path) -> None:
    import gradio

    box = serve._upload_box(gradio, tmp_path)(render=False)
    with pytest.raises(gradio.Error, match="Only an uploaded file is read"):
        asyncio.run(box.async_move_resource_to_block_cache(str(tmp_path)))
    assert not box.temp_files
