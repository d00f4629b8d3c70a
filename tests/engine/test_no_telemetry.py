"""No command looks up a name, sends to another host, or leaves a file outside its folders."""

from __future__ import annotations

import importlib.util
import ipaddress
import json
import os
import socket
import sys
from pathlib import Path

import numpy as np
import pytest

from fixtures.image_files import encode, write_tree
from fixtures.synthetic_run import write_metrics, write_run
from fixtures.watched import Event, compiler, strace_works, watch

WATCHERS = [
    pytest.param(
        True, id="strace", marks=pytest.mark.skipif(not strace_works(), reason="strace is not here, or not allowed")
    ),
    pytest.param(
        False,
        id="library",
        marks=pytest.mark.skipif(
            sys.platform != "linux" or compiler() is None, reason="a library to preload needs Linux and a C compiler"
        ),
    ),
]
# Each command in a fork of one process that has imported, through our package, what takes seconds. The folder that is
# made before a command says whose the events after it are.
COMMANDS = """
import json, os, signal, sys
from simclr_engine.cli.main import main
from simclr_engine.report import style
import matplotlib.pyplot, onnx, sklearn.linear_model, torch  # onnxruntime each for itself, so that it is blamed

style.DPI = 30  # pictures are a third of the time

for at, words in enumerate(json.loads(sys.argv[1])):
    os.mkdir(f"begins:{at} {words[0]}")
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(write, 1)
        sys.argv = ["simclr-engine", *words]
        main()
        os._exit(0)
    os.close(write)
    said = b""
    while part := os.read(read, 1 << 16):
        said += part
        if words[0] == "serve" and b"Ctrl-C" in said:
            os.kill(child, signal.SIGINT)
    os.close(read)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == (130 if words[0] == "serve" else 0), (words, code, said.decode())
"""


def _environment(folder: Path) -> dict[str, str]:
    """The user's, with a home and a temporary folder of its own, and none of the switches."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "HF_", "ORT_", "MPL", "COV_"))}
    for name in ("home", "tmp"):
        (folder / name).mkdir()
    ours = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "SIMCLR_ENGINE_CACHE": str(folder / "cache")}
    return kept | ours | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}


def _blamed(events: list[Event], folder: Path) -> list[str]:
    """The events that should not be, each with the command that was running."""
    command, blamed = "before the first command", []
    for event in events:
        path = os.path.normpath(event.what)
        if event.kind == "write" and "begins:" in path:
            command = path.rpartition("begins:")[2]
        elif not _allowed(event, path, folder):
            blamed.append(f"{command}: {event.kind} {event.what}")
    return blamed


def _allowed(event: Event, path: str, folder: Path) -> bool:
    if event.kind == "connect":
        return ipaddress.ip_address(event.what).is_loopback
    if event.kind == "lookup":
        return False
    inside = Path(path).relative_to(folder).parts if Path(path).is_relative_to(folder) else None
    if inside is None:  # a device, a semaphore of the system's; no file
        return path.startswith(("/dev/", "/proc/"))
    # matplotlib keeps a list of the fonts of this machine; it sends nothing, and finding them anew takes seconds.
    ours = {("home", ".cache"), ("home", ".config"), ("home", ".config", "matplotlib")}
    return inside[:1] != ("home",) or inside in ours or inside[:3] == ("home", ".cache", "matplotlib")


@pytest.mark.parametrize("strace", WATCHERS)
def test_the_watcher_sees_lookups_other_hosts_and_files_elsewhere(strace: bool, tmp_path: Path) -> None:
    script = """
import os, socket
for host, port in (("127.0.0.1", 53), ("192.0.2.1", 9), ("127.0.0.1", 9)):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect((host, port))  # sends nothing
os.makedirs(os.path.expanduser("~/.cache/Maker"))
open(os.path.expanduser("~/.cache/Maker/id"), "w").close()
open("mine", "w").close()
"""
    done, events = watch([sys.executable, "-S", "-c", script], tmp_path, _environment(tmp_path), strace)
    assert done.returncode == 0, done.stderr
    home = tmp_path / "home" / ".cache" / "Maker"
    assert [line.partition(": ")[2] for line in _blamed(events, tmp_path)] == [
        "lookup name server 127.0.0.1", "connect 192.0.2.1", f"write {home}", f"write {home}/id"
    ]  # fmt: skip
    assert Event("write", str(tmp_path / "mine")) in events


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """8 × 8 images of two classes."""
    rng, images = np.random.default_rng(0), dict[str, bytes]()
    for split, count in (("train", 24), ("test", 8)):
        for name, colour in (("dark", 60), ("light", 190)):
            for n in range(count):
                pixels = rng.normal(colour, 30, (8, 8, 3)).clip(0, 255).astype(np.uint8)
                images[f"{split}/{name}/{n}.png"] = encode(pixels)
    write_tree(tmp_path / "photos", images)
    return tmp_path / "photos"


@pytest.mark.parametrize("strace", [WATCHERS[0] if strace_works() else WATCHERS[1]])
def test_no_command_reports_to_anyone_or_leaves_files_elsewhere(strace: bool, tmp_path: Path, photos: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    write_metrics(write_run(tmp_path / "b"))
    commands = [
        ["doctor", "--json"],
        ["recipes", "demo"],
        ["data", "info", "photos"],
        ["pretrain", "--recipe", "demo", "--data", "photos", "--epochs", "1", "--batch-size", "24", "--out", "a"],
        ["evaluate", "a", "--method", "linear", "--init", "pretrained"],
        ["report", "a"],
        ["compare", "a", "b"],
        ["export", "e.onnx", "--run", "a", "--probe", "--no-card"],
        ["evaluate", "e.onnx", "--data", "photos"],
        ["embed", "e.onnx", "photos", "--out", "v.npy", "--images"],
        ["predict", "e.onnx", "photos", "--save", "sheet.png", "--neighbours", "2", "--index", "v.npy"],
        ["bench", "optimizer", "--small", "--repeats", "1"],
    ]
    if importlib.util.find_spec("uvicorn"):
        commands.append(["serve", "e.onnx", "--index", "v.npy", "--port", port])
    call = [sys.executable, "-c", COMMANDS, json.dumps(commands)]
    done, events = watch(call, tmp_path, _environment(tmp_path), strace)
    assert done.returncode == 0, done.stderr[-3000:]
    assert _blamed(events, tmp_path) == []
    began = [event for event in events if event.kind == "write" and "begins:" in event.what]
    assert len(began) == len(commands)
