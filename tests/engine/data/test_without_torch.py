"""Reading images imports no torch: the light evaluator depends on it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fixtures.image_files import class_tree, tar_bytes, write_tree

NO_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision"):
            raise ImportError(f"{name} must not be imported")

sys.meta_path.insert(0, Refuse())
"""


def run(script: str, *args: str | Path) -> str:
    command = [sys.executable, "-c", NO_TORCH + script, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


LOAD = """
from simclr_engine.data import load_splits
for source in sys.argv[1:]:
    train, test = load_splits(source)
    print(len(train), len(test))
assert not {name for name in sys.modules if name.split(".")[0] in ("torch", "torchvision")}
"""


def test_digits_folders_and_archives_are_read_without_torch(tmp_path: Path) -> None:
    files = class_tree(each=5)
    folder = write_tree(tmp_path / "folder", files)
    (tmp_path / "set.tar.xz").write_bytes(tar_bytes(files, "w:xz"))
    assert run(LOAD, "digits", folder, tmp_path / "set.tar.xz").split() == ["1438", "359", "8", "2", "8", "2"]


def test_the_real_archive_is_read_where_torch_cannot_be_imported(shared_data: Path) -> None:
    assert run(LOAD, shared_data / "cifar10-jpeg-mini.tar.xz") == "2000 1000\n"


def test_modules_but_downloads_and_loader_load_without_torch() -> None:
    script = """
import importlib, pkgutil
import simclr_engine.data as package
names = [m.name for m in pkgutil.iter_modules(package.__path__) if m.name not in ("downloads", "loader")]
for name in names:
    importlib.import_module(f"simclr_engine.data.{name}")
importlib.import_module("simclr_engine.cli.data")
print(*names)
"""
    known = {"archive", "cache", "datasets", "decode", "folder", "glyphs", "listing", "pack", "sources", "store"}
    assert known <= set(run(script).split())


def test_importing_the_package_loads_neither_numpy_nor_pillow() -> None:
    script = """
import simclr_engine.data
assert not {"numpy", "PIL", "sklearn"} & set(sys.modules), sorted(sys.modules)
from simclr_engine.data import ImageStore, decode_image, load_data, load_splits, source_names
assert callable(load_data) and ImageStore.__name__ == "ImageStore"
try:
    simclr_engine.data.nonsense
except AttributeError as error:
    print(error)
"""
    assert "nonsense" in run(script)
