"""The exported file in programs that nobody here wrote, and the code of docs/export.md that runs it there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fixtures import ROOT
from fixtures.browser import needs_browser, severe, start_browser, wait_for
from fixtures.untrained_run import write_untrained_run
from simclr_engine.bench.clients import Client, Unavailable, clients, compare, npm_folder, our_outputs
from simclr_engine.bench.rows import Row
from simclr_engine.data import load_data
from simclr_engine.data.decode import decode_image
from simclr_engine.export import OnnxEncoder, export_onnx
from simclr_engine.export.metadata import LIMIT
from simclr_engine.export.samples import natural_images
from simclr_engine.export.writer import ExportResult
from simclr_engine.run import Run
from simclr_engine.torchvision_shim import import_torchvision

PAGE = (ROOT / "docs" / "export.md").read_text("utf-8")
CLIENTS = {client.name: client for client in clients()}
KNOW_QDQ = sorted(CLIENTS.keys() - {"onnx2torch"})


def _installed(name: str) -> Client:
    try:
        CLIENTS[name].version()
    except Unavailable as reason:
        pytest.skip(f"{name}: {reason}")
    return CLIENTS[name]


def _row(name: str, file: Path, images: np.ndarray) -> Row:
    encoder = OnnxEncoder(file)
    row = compare(_installed(name), encoder, images, our_outputs(encoder, images))
    assert row["median"] is not None, row
    return row


@pytest.mark.parametrize("name", sorted(CLIENTS))
def test_a_resnet18_gives_our_features_elsewhere(shared_export: ExportResult, name: str) -> None:
    row = _row(name, shared_export.file, natural_images(3, 32, seed=4))
    assert row["images"] == 3 and (row["median"] <= LIMIT or name == "OpenVINO as it comes")


@pytest.mark.parametrize("name", sorted(CLIENTS))
def test_the_probe_gives_our_labels_elsewhere(little_digits: Run, tmp_path: Path, name: str) -> None:
    _installed(name)
    file = export_onnx(little_digits, tmp_path / "encoder.onnx", probe=True).file
    row = _row(name, file, load_data("digits").images[:8])
    assert row["label_agreement"] == 1 and (row["median"] <= LIMIT or name == "OpenVINO as it comes")


@pytest.mark.parametrize("name", KNOW_QDQ)
def test_int8_runs_elsewhere(little_digits: Run, fast_int8: None, tmp_path: Path, name: str) -> None:
    _installed(name)
    made = export_onnx(little_digits, tmp_path / "encoder.onnx", probe=True, precision="int8")
    row = _row(name, made.variants[0].file, load_data("digits").images[:40])
    assert row["label_agreement"] >= 0.8 and row["median"] < 0.1


def _snippet(beginning: str) -> str:
    """The one code block of the page that begins so."""
    found = [b for b in re.findall(r"^```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) if b.startswith(beginning)]
    assert len(found) == 1, f"docs/export.md has {len(found)} code blocks that begin with {beginning!r}"
    return found[0]


@pytest.fixture
def classified(little_digits: Run, tmp_path: Path) -> dict[str, tuple[str, float]]:
    """Pictures in a folder beside the file and its description: name → class and confidence, as `predict` gives them.
    One needs no resizing; the other is wider than high and larger."""
    encoder = OnnxEncoder(export_onnx(little_digits, tmp_path / "encoder.onnx", probe=True).file)
    digit = np.asarray(load_data("digits").images[3])
    Image.fromarray(digit).save(tmp_path / "square.png")
    smooth = Image.fromarray(digit).resize((96, 96), Image.Resampling.BICUBIC)
    wide = Image.new("RGB", (131, 96), "black")
    wide.paste(smooth, (17, 0))
    wide.save(tmp_path / "wide.png")
    found = {}
    for name in ("square.png", "wide.png"):
        probabilities, label = encoder.predict(decode_image(tmp_path / name, encoder.image_size)[None])
        found[name] = encoder.class_names[label[0]], 100 * float(probabilities.max())
    return found


def _check(shown: str, expected: tuple[str, float], off: float) -> None:
    name, confidence = shown.split()
    assert name == expected[0] and abs(float(confidence.removesuffix("%")) - expected[1]) < off, (shown, expected)


@pytest.mark.parametrize(
    ("beginning", "needs", "off"),
    [
        ("# classify.py PICTURE\n", "", {"square.png": 0.06, "wide.png": 0.06}),
        ("# classify_cv.py PICTURE\n", "OpenCV DNN", {"square.png": 0.06, "wide.png": 5}),
        ("// classify.js PICTURE\n", "onnxruntime-node", {"square.png": 0.06, "wide.png": 5}),
    ],
)
def test_the_program_on_the_page_gives_the_class_of_predict(
    classified: dict[str, tuple[str, float]], tmp_path: Path, beginning: str, needs: str, off: dict[str, float]
) -> None:
    if needs:
        _installed(needs)
    is_node = beginning.startswith("//")
    if is_node:
        _npm("sharp")
    program = tmp_path / beginning.split()[1]
    program.write_text(_snippet(beginning), "utf-8")
    for name, expected in classified.items():
        command = ["node" if is_node else sys.executable, program.name, name]
        done = subprocess.run(command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        _check(done.stdout, expected, off[name])


def _npm(package: str) -> Path:
    try:
        return npm_folder(package)
    except Unavailable as reason:
        pytest.skip(f"{package}: {reason}")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address at which the folder is served."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=tmp_path))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@needs_browser
def test_the_page_on_the_page_gives_the_class_of_predict(
    classified: dict[str, tuple[str, float]], served: str, tmp_path: Path
) -> None:
    dist = _npm("onnxruntime-web") / "dist"
    for name in ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"):
        shutil.copy(dist / name, tmp_path)
    (tmp_path / "index.html").write_text(_snippet("<!doctype html>"), "utf-8")
    driver = start_browser(tmp_path)
    try:
        for name, expected in classified.items():
            driver.get(served)
            driver.find_element("css selector", "input").send_keys(str(tmp_path / name))
            shown = wait_for(lambda: driver.find_element("css selector", "output").text)
            _check(shown, expected, 0.06 if name == "square.png" else 10)
        assert [row for row in severe(driver) if "favicon" not in row["message"]] == []
    finally:
        driver.quit()


@pytest.mark.parametrize(
    ("library", "arch", "stem"),
    [
        ("torchvision", "resnet18", "small"),
        ("torchvision", "resnet34", "imagenet"),
        ("timm", "resnet18", "small"),
        ("timm", "resnet50", "imagenet"),
    ],
)
def test_three_lines_load_the_weights_elsewhere(tmp_path: Path, library: str, arch: str, stem: str) -> None:
    names: dict[str, Any] = {"nn": torch.nn, "torchvision": import_torchvision()}  # timm imports it too
    names["timm"] = pytest.importorskip("timm", reason="timm is not installed") if library == "timm" else None
    names["safetensors"] = __import__("safetensors.torch")
    run = write_untrained_run(tmp_path / "run", arch, stem)
    code = _snippet(f"model = {library}.").replace("runs/demo", str(run.directory)).replace("resnet18", arch)
    assert len(code.splitlines()) == 3
    if stem == "imagenet":  # as the page says below the lines
        code = re.sub(r"^model\.conv1.*$", "model.fc = nn.Identity()", code, flags=re.MULTILINE)
    exec(code, names)
    images = torch.from_numpy(natural_images(2, 32, seed=2)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        torch.testing.assert_close(names["model"].eval()(images), run.encoder()(images), rtol=0, atol=1e-5)


def test_the_page_names_the_clients_that_the_command_knows() -> None:
    table = re.findall(r"^\| ([^|(]+?)(?: \(\d+ images\))? \| [\d.]+ \| ", PAGE, re.MULTILINE)
    assert table == [client.name for client in clients()]
