"""A torchvision whose own operators do not load still gives its data sets and networks."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.image_files import write_tree
from simclr_engine.torchvision_shim import import_torchvision


def in_process_with(tmp_path: Path, source: str, script: str) -> str:
    """Runs `script` where `torchvision` is a package of this source; returns its output."""
    package = {"torchvision/__init__.py": source.encode(), "torchvision/part.py": b"loaded = True\n"}
    write_tree(tmp_path / "fake", package)
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'fake')!r})\n{script}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_torchvision_without_operators_loads_once_they_are_declared(tmp_path: Path) -> None:
    source = (
        "import torch\nimport torchvision.part\n"
        "@torch.library.register_fake('torchvision::nms')\ndef nms(dets, scores, iou_threshold):\n    return dets\n"
        "torch.ops.torchvision.qnms\n"
    )
    script = (
        "from simclr_engine.torchvision_shim import import_torchvision, is_shimmed\n"
        "try:\n    import torchvision\n    print('no error')\nexcept RuntimeError as error:\n    print(error)\n"
        "print(is_shimmed())\nmodule = import_torchvision()\nimport gc; gc.collect()\n"
        "print(is_shimmed(), module.part.loaded, import_torchvision() is module)"
    )
    assert in_process_with(tmp_path, source, script).splitlines() == [
        "operator torchvision::nms does not exist",
        "False",
        "True True True",
    ]


def test_a_torchvision_that_loads_is_left_alone(tmp_path: Path) -> None:
    script = (
        "from simclr_engine.torchvision_shim import import_torchvision, is_shimmed\n"
        "print(import_torchvision().part.loaded, is_shimmed(), 'torch' in sys.modules)"
    )
    assert in_process_with(tmp_path, "import torchvision.part\n", script) == "True False False\n"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise RuntimeError('built for another machine')", "does not fit"),
        ("raise ImportError('no such library')", "cannot be imported"),
        ("raise RuntimeError('operator torchvision::nms does not exist')", "does not fit"),  # also after the cure
    ],
)
def test_a_torchvision_broken_in_another_way_is_a_platform_error(tmp_path: Path, source: str, words: str) -> None:
    script = (
        "from simclr_engine.errors import PlatformError\n"
        "from simclr_engine.torchvision_shim import import_torchvision, is_shimmed\n"
        "try:\n    import_torchvision()\nexcept PlatformError as error:\n    print(error.cause, is_shimmed())"
    )
    output = in_process_with(tmp_path, source, script)
    assert words in output and output.endswith(f"{'nms' in source}\n")


def test_the_real_torchvision_gives_networks_and_datasets_here() -> None:
    module = import_torchvision()
    assert sum(p.numel() for p in module.models.resnet18().parameters()) == 11_689_512
    with contextlib.suppress(RuntimeError):
        module.datasets.CIFAR10("nowhere", download=False)
