"""Builds the wheel as a stranger does and tries it in clean environments: `make wheel-check`.

    python tests/wheel_check.py [3.12 …]

For Python 3.11, 3.12 and 3.13, where they are on this machine: the wheel with and without a C++ compiler, built in
isolation from a source distribution, and the light installation of requirements-onnx.txt. For the Python that runs
this, whose PyTorch is at hand, the whole installation too, of both wheels. Fetches packages from the index of pip.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("3.11", "3.12", "3.13")
NO_COMPILER = {"CC": "/no/compiler", "CXX": "/no/compiler", "PATH": "/nowhere"}
LINE = "pip install '.[dali]'"
# NVIDIA's packages in this environment that neither torch nor triton asks for.
FOREIGN = """
import importlib.metadata as found, re
plain = lambda name: re.sub("[-_.]+", "-", re.match("[A-Za-z0-9._-]+", name)[0]).lower()
known, waiting = set(), ["torch", "triton"]
while waiting:
    name = waiting.pop()
    if name not in known:
        known.add(name)
        try:
            waiting += map(plain, found.requires(name) or ())
        except found.PackageNotFoundError:
            pass
here = {plain(one.name) for one in found.distributions()}
print(*sorted(name for name in here - known if name.startswith(("nvidia", "cuda"))))
"""


class Failed(Exception):
    """A step that did not do what it must."""


def call(*command: str | Path, cwd: Path, expect: int = 0, **env: str) -> str:
    """What a command printed to stdout; to both streams where another exit code than 0 is expected."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=clean | env, capture_output=True, text=True)
    if done.returncode != expect:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])
        raise Failed(f"{' '.join(map(str, command))}: exit code {done.returncode}, not {expect}\n{tail}")
    return done.stdout if expect == 0 else done.stdout + done.stderr


def find_python(version: str) -> Path | None:
    """A Python of this version that starts: the running one, one on PATH, or one of pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    here = sys._base_executable if sys.version_info[:2] == tuple(map(int, version.split("."))) else None  # type: ignore[attr-defined]
    for found in (here, shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True)):
        if found and subprocess.run([found, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0:
            return Path(found)
    return None


def environment(python: Path, home: Path, *install: str | Path) -> Path:
    """The Python of a new virtual environment with what pip installs by these arguments."""
    call(python, "-m", "venv", home, cwd=home.parent)
    made = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    if install:
        pip(made, *install, cwd=home)
    return made


def pip(python: Path, *install: str | Path, cwd: Path) -> None:
    constraints = ("--constraint", ROOT / "constraints.txt")
    call(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *constraints, *install, cwd=cwd)


def build_sdist(python: Path, work: Path) -> Path:
    builder = environment(python, work / "builder", "build")
    call(builder, "-m", "build", "--sdist", "--outdir", work, ROOT, cwd=work)
    return next(work.glob("*.tar.gz"))


def build_wheel(python: Path, sdist: Path, out: Path, compiler: bool) -> Path:
    """The wheel from the source distribution, built in isolation; checks whether it holds the compiled module."""
    out.mkdir()
    quiet = ("--quiet", "--disable-pip-version-check")
    env = {} if compiler else NO_COMPILER
    call(python, "-m", "pip", "wheel", *quiet, "--no-deps", "--wheel-dir", out, sdist, cwd=out, **env)
    wheel = next(out.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        compiled = any("/_native." in name and not name.endswith(".pyi") for name in archive.namelist())
    if compiled != compiler:
        raise Failed(f"{wheel.name} built {'with' if compiler else 'without'} a compiler, compiled module: {compiled}")
    return wheel


def check_light(python: Path, wheel: Path, work: Path) -> str:
    """`--no-deps` and requirements-onnx.txt: the class of a picture, from a file with its probe."""
    home = work / f"light-{wheel.parent.name}"
    light = environment(python, home, "--requirement", ROOT / "requirements-onnx.txt")
    pip(light, "--no-deps", wheel, cwd=home)
    shown = call(light, "-m", "simclr_engine", "predict", work / "probe.onnx", work / "cat.png", "--json", cwd=home)
    return str(json.loads(shown)["images"][0]["class"])


def install_whole(python: Path, home: Path, wheel: Path) -> Path:
    """The Python of an environment with all that the wheel asks for; another wheel takes the place of the first."""
    if not home.exists():
        return environment(python, home, wheel)
    whole = environment(python, home)
    pip(whole, "--force-reinstall", "--no-deps", wheel, cwd=home)
    return whole


def check_whole(whole: Path, home: Path, compiled: bool) -> None:
    """A tiny run from images to the evaluated file, which kernels it took, and what `--augment dali` says."""
    engine = (whole, "-m", "simclr_engine")
    call(*engine, "doctor", cwd=home)
    tiny = ("--data", "digits", "--recipe", "quick-10", "--limit", "64", "--batch-size", "32", "--epochs", "1")
    device = ("--device", "cpu")
    run = json.loads(call(*engine, "pretrain", *tiny, *device, "--out", "run", "--overwrite", "--json", cwd=home))
    expected = "native" if compiled else "torch"
    if run["backends"]["augment"] != expected:
        raise Failed(f"augmentation by {run['backends']['augment']}, not {expected}")
    call(*engine, "export", "encoder.onnx", "--run", "run", cwd=home)
    call(*engine, "evaluate", "encoder.onnx", "--data", "digits", "--limit", "100", cwd=home)
    said = call(*engine, "pretrain", *tiny, *device, "--out", "other", "--augment", "dali", cwd=home, expect=3)
    if sys.platform.startswith("linux") and LINE not in said:
        raise Failed(f"--augment dali does not say {LINE}:\n{said}")
    if foreign := call(whole, "-c", FOREIGN, cwd=home).strip():
        raise Failed(f"NVIDIA packages that neither torch nor triton asks for: {foreign}")


def write_probe(work: Path) -> None:
    """`probe.onnx` and `cat.png`, as the tests make them."""
    script = (
        "import sys, numpy as np; from pathlib import Path; from fixtures.tiny_probe import write_tiny_probe\n"
        "from fixtures.image_files import encode; out = Path(sys.argv[1])\n"
        "write_tiny_probe(out / 'probe.onnx', image_size=8)\n"
        "(out / 'cat.png').write_bytes(encode(np.full((8, 8, 3), 200, np.uint8)))"
    )
    call(sys.executable, "-c", script, work, cwd=ROOT / "tests")


class Checks:
    """Runs the steps, prints a line for each, and counts those that failed."""

    failed = 0

    def step(self, what: str, do: Callable[..., Path | str | None], *args: Any) -> Path | None:
        """The path that a step made; None where it failed or made none."""
        try:
            found = do(*args)
        except Failed as reason:
            self.failed += 1
            print(f"FAIL {what}: {reason}", flush=True)
            return None
        print(f"ok   {what}{f': {found}' if isinstance(found, str) else ''}", flush=True)
        return found if isinstance(found, Path) else None


def check_version(checks: Checks, version: str, sdist: Path, work: Path) -> None:
    python = find_python(version)
    if python is None:
        print(f"skip Python {version}: not on this machine", flush=True)
        return
    for compiler in (True, False):
        name, what = (
            f"{version}{'' if compiler else '-plain'}",
            f"Python {version}, with{'' if compiler else 'out'} compiler",
        )
        wheel = checks.step(f"{what}: wheel", build_wheel, python, sdist, work / name, compiler)
        if wheel is None:
            continue
        checks.step(f"{what}: light installation, class of a picture", check_light, python, wheel, work)
        if version == f"{sys.version_info.major}.{sys.version_info.minor}":
            home = work / "whole"
            whole = checks.step(f"{what}: whole installation", install_whole, python, home, wheel)
            if whole is not None:
                checks.step(f"{what}: run, file, evaluation, no DALI", check_whole, whole, home, compiler)


def main() -> None:
    checks = Checks()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_probe(work)
        sdist = checks.step("source distribution", build_sdist, Path(sys.executable), work)
        if sdist is not None:
            for version in sys.argv[1:] or VERSIONS:
                check_version(checks, version, sdist, work)
    sys.exit(1 if checks.failed else 0)


if __name__ == "__main__":
    main()
