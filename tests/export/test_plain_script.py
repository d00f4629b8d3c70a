"""The README's script with numpy, Pillow and onnxruntime alone gives the label that `predict` gives."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fixtures import ROOT
from fixtures.image_files import encode
from fixtures.tiny_probe import CLASSES, write_tiny_probe
from simclr_engine.cli.predict import command

README = ROOT / "README.md"
FIRST_LINE = "# numpy, Pillow, onnxruntime: nothing else"
ONLY = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("simclr_engine", "torch", "onnx", "sklearn", "scipy"):
            raise ImportError(f"{name} is not one of the three")
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def script() -> str:
    """The code block of the README that begins with `FIRST_LINE`."""
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    found = [block for block in blocks if block.startswith(FIRST_LINE)]
    assert len(found) == 1, f"the README has {len(found)} code blocks that begin with {FIRST_LINE!r}"
    return found[0]


def test_it_imports_the_three_and_is_as_short_as_it_claims() -> None:
    text = script()
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {n.module if isinstance(n, ast.ImportFrom) else name.name for n in found for name in n.names}
    assert imported - set(sys.stdlib_module_names) == {"numpy", "PIL", "onnxruntime"}
    lines = [line for line in text.splitlines()[1:] if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 10


@pytest.mark.parametrize("shape", [(8, 8), (30, 17), (17, 30), (9, 8)])
def test_it_gives_the_label_and_the_confidence_of_predict(tmp_path: Path, shape: tuple[int, int]) -> None:
    model = write_tiny_probe(tmp_path / "encoder.onnx", image_size=8)
    colours = np.random.default_rng(sum(shape)).integers(0, 256, 3)
    pixels = np.random.default_rng(0).normal(colours, 40, (*shape, 3)).clip(0, 255).astype(np.uint8)
    (tmp_path / "cat.png").write_bytes(encode(pixels))
    (tmp_path / "plain.py").write_text(script(), "utf-8")
    command_line = [sys.executable, "-c", ONLY, "plain.py", "encoder.onnx", "cat.png"]
    done = subprocess.run(command_line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = CliRunner().invoke(command, [str(model), str(tmp_path / "cat.png"), "--json"], catch_exceptions=False)
    image = json.loads(found.stdout)["images"][0]
    assert image["class"] in CLASSES
    assert done.stdout.split() == [image["class"], f"{image['confidence']:.1%}"]
