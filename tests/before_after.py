"""Two checkouts against each other: same weights, documents, files and names, so that a refactoring is seen to be one.

    python tests/before_after.py OLD NEW --data cifar10-jpeg-mini.tar.xz

OLD and NEW are checkouts with an environment in `.venv` each (`make install`). Each trains two recipes with two seeds
for 30 steps in a folder of its own, evaluates, exports, embeds, predicts and reports; then NEW opens what OLD left.
Prints a line for each comparison; the exit code is 1 if one differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RECIPES, SEEDS, LENGTH = ("demo", "cifar10-sgd"), (0, 1), ("--batch-size", "64", "--limit", "640", "--epochs", "3")
# What differs between two runs of one checkout: clocks, memory, machine load, the number of the process.
VOLATILE = re.compile(
    r"seconds|per_second|_at$|ended|peak|bytes_so_far|^id$|started|^version$|commit|launch|sha256|^max_abs|resident|latency|^cache$|_ms$"
)
WRONG = (
    ("pretrain", "--recipe", "nowhere"),
    ("pretrain", "--set", "train.epoch=3"),
    ("pretrain", "--data", "./nowhere"),
    ("pretrain", "--recipe", "demo", "--out", "demo-0", "--data", "digits"),
    ("pretrain", "--resume", "--overwrite"),
    ("evaluate", "nowhere"),
    ("export", "encoder.txt", "--run", "demo-0"),
    ("export", "other.onnx", "--run", "nowhere"),
    ("predict", "encoder.onnx", "nowhere.png"),
    ("recipes", "cifar1"),
    ("data", "info", "./nowhere"),
    ("compare", "nowhere"),
    ("bogus",),
)


class Side:
    """One checkout, the folder in which its commands run, and its cache."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        self.checkout, self.folder = checkout, folder
        self.environment = os.environ | {
            "SIMCLR_ENGINE_CACHE": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "120",
            "NO_COLOR": "1",
        }
        (folder / "work").mkdir(parents=True)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`simclr-engine ARGUMENTS` of this checkout."""
        program = self.checkout / ".venv" / "bin" / "simclr-engine"
        return subprocess.run(
            [program, *arguments], cwd=self.folder / "work", env=self.environment, capture_output=True, text=True
        )

    def document(self, *arguments: str) -> Any:
        """What the command prints with `--json`, without what differs between two runs of one checkout."""
        done = self.run(*arguments, "--json")
        if done.returncode:
            raise SystemExit(f"{self.checkout}: {' '.join(arguments)} ended with {done.returncode}\n{done.stderr}")
        return without_volatile(json.loads(done.stdout))

    def python(self, script: str) -> str:
        """What a script prints in this checkout's environment."""
        interpreter = self.checkout / ".venv" / "bin" / "python"
        command = [interpreter, "-c", script]
        done = subprocess.run(command, cwd=self.folder / "work", env=self.environment, capture_output=True, text=True)
        return done.stdout if done.returncode == 0 else done.stderr

    def digest(self, name: str) -> str:
        """The sha256 of a file below the working folder."""
        return hashlib.sha256((self.folder / "work" / name).read_bytes()).hexdigest()


def without_volatile(value: Any) -> Any:
    """The document with numbers in place of clocks and sizes of memory."""
    if isinstance(value, dict):
        return {k: "…" if VOLATILE.search(k) else without_volatile(v) for k, v in value.items()}
    return [without_volatile(v) for v in value] if isinstance(value, list) else value


WEIGHTS = """
import hashlib, sys, torch
from safetensors.torch import load_file
for name in {names}:
    digest = hashlib.sha256()
    for file in ("model.safetensors", "encoder.safetensors"):
        for key, tensor in sorted(load_file(f"{{name}}/{{file}}").items()):
            digest.update(key.encode() + tensor.numpy().tobytes())
    state = torch.load(f"{{name}}/checkpoints/last.pt", weights_only=True)
    for key in sorted(state["model"]):
        digest.update(key.encode() + state["model"][key].numpy().tobytes())
    print(name, digest.hexdigest())
"""
NAMES = """
import importlib
for package in ("", ".data", ".evaluation", ".report", ".export", ".kernels"):
    module = importlib.import_module("simclr_engine" + package)
    print(package, *sorted(module.__all__))
    for name in module.__all__:
        getattr(module, name)
"""
HASHES = """
from simclr_engine import Recipe
from simclr_engine.recipe import recipe_names
for name in recipe_names():
    recipe = Recipe.load(name)
    print(name, recipe.hash(), Recipe.from_toml(recipe.to_toml()) == recipe)
"""


def files_of(run: Path) -> list[str]:
    """The names in a run directory; those with a clock in them without it."""
    # A checkpoint before the last is there where a slow machine saved by the clock.
    names = (
        path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file() and path.name != "previous.pt"
    )
    return sorted(re.sub(r"tfevents\..*", "tfevents", name) for name in names)


def observe(side: Side, data: str) -> dict[str, Any]:
    """Everything that must not change, by what it is called."""
    seen: dict[str, Any] = {}
    runs = [f"{recipe}-{seed}" for recipe in RECIPES for seed in SEEDS]
    for recipe in RECIPES:
        for seed in SEEDS:
            out = f"{recipe}-{seed}"
            arguments = ("pretrain", "--recipe", recipe, "--data", data, "--seed", str(seed), "--out", out, *LENGTH)
            seen[f"pretrain {out} --json"] = side.document(*arguments)
    seen["weights"] = side.python(WEIGHTS.format(names=runs)).splitlines()
    run = runs[0]
    evaluated = side.document("evaluate", run, "--data", data, "--method", "linear", "--method", "knn")
    seen["evaluate RUN --json"] = evaluated
    seen["export --json"] = side.document("export", "encoder.onnx", "--run", run, "--probe", "--data", data)
    seen["the ONNX file"] = side.digest("encoder.onnx")
    seen["evaluate FILE.onnx --json"] = side.document("evaluate", "encoder.onnx", "--data", data, "--method", "linear")
    seen["embed --json"] = side.document("embed", "encoder.onnx", data, "--out", "vectors.npy", "--split", "test")
    seen["the vectors"] = side.digest("vectors.npy")
    seen["predict --json"] = side.document("predict", "encoder.onnx", "--data", data, "--n", "4")
    seen["report"] = side.run("report", run).returncode
    seen["compare --json"] = side.document("compare", *runs[:2])
    for name in runs[:3]:
        seen[f"files of {name}"] = files_of(side.folder / "work" / name)
    for arguments in WRONG:
        seen[f"exit code of {' '.join(arguments)}"] = side.run(*arguments).returncode
    seen["data info --json"] = side.document("data", "info", data)
    seen["public names"] = side.python(NAMES).splitlines()
    seen["recipe hashes"] = side.python(HASHES).splitlines()
    return seen


def opens_what_was_left(new: Side, old: Side, data: str) -> dict[str, Any]:
    """What NEW makes of the runs and the cache of OLD: exit codes, and whether anything was packed again."""
    old.checkout = new.checkout
    packed = sorted(path.name for path in (old.folder / "cache" / "data").iterdir())
    codes = {
        "resume": old.run(
            "pretrain", "--recipe", "demo", "--data", data, "--seed", "1", "--out", "demo-1", *LENGTH, "--resume"
        ),
        "evaluate": old.run("evaluate", "demo-0", "--data", data, "--method", "knn"),
        "report": old.run("report", "demo-0"),
        "evaluate FILE.onnx": old.run("evaluate", "encoder.onnx", "--data", data, "--method", "knn"),
        "export": old.run("export", "again.onnx", "--run", "demo-1", "--data", data),
    }
    left: dict[str, Any] = {f"{name} of what OLD left": done.returncode for name, done in codes.items()}
    left["cache of OLD used"] = packed == sorted(path.name for path in (old.folder / "cache" / "data").iterdir())
    return left


def first_difference(before: Any, after: Any, where: str = "") -> str:
    """Where two documents part, and what stands there."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key):
                return first_difference(before.get(key), after.get(key), f"{where}.{key}")
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (a, b) in enumerate(zip(before, after, strict=True)):
            if a != b:
                return first_difference(a, b, f"{where}[{number}]")
    return f"{where}: {before!r} → {after!r}"


def main() -> int:
    """Prints the comparisons; 1 if any differs."""
    parser = argparse.ArgumentParser(description="Two checkouts against each other.")
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--data", required=True, help="an archive of labelled images with a test split")
    options = parser.parse_args()
    data, differing = str(Path(options.data).resolve()), 0
    with tempfile.TemporaryDirectory(prefix="before-after-") as folder:
        sides = [Side(getattr(options, name).resolve(), Path(folder) / name) for name in ("old", "new")]
        before, after = (observe(side, data) for side in sides)
        for name in before | after:
            same = before.get(name) == after.get(name)
            differing += not same
            print(f"{'same  ' if same else 'DIFFERS'} {name}")
            if not same:
                print("        " + first_difference(before.get(name), after.get(name))[:600])
        for name, outcome in opens_what_was_left(sides[1], sides[0], data).items():
            differing += outcome not in (0, True) or (outcome is False)
            print(f"{name}: {outcome}")
    print(f"{len(before)} comparisons, {differing} differ")
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
