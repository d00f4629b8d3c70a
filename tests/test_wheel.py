"""The wheel, built with and without a C++ compiler, holds all that it must and works beside what it asks for.

Nothing is downloaded: the build runs without isolation, and the environment is linked from the running one.
`make wheel-check` does the same with isolation, and with packages from the index.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from fixtures import ROOT
from fixtures.environments import closure, linked_environment, requirements, run_in, site_packages, succeeded

FOLDERS = {"engine": "simclr_engine", **{name: f"simclr_engine/{name}" for name in ("kernels", "export", "bench")}}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
TINY = ("--data", "digits", "--recipe", "quick-10", "--limit", "32", "--batch-size", "32", "--epochs", "1")


def build(out: Path, compiler: bool) -> Path:
    """The wheel of a copy of the checkout, so that no earlier build is in it."""
    tree = out / "tree"
    left_out = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tree / name, ignore=left_out)
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    env = dict(os.environ) if compiler else os.environ | {"CC": "/no/compiler", "CXX": "/no/compiler"}
    done = subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=tree, env=env, capture_output=True, text=True)
    if "No module named 'setuptools'" in done.stderr or "invalid pyproject.toml" in done.stderr:
        pytest.skip("setuptools 77 or newer is not installed: the extra `dev` has it")
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def plain_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("plain"), compiler=False)


@pytest.fixture(scope="module")
def compiled_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None:
        pytest.skip("there is no C++ compiler")
    return build(tmp_path_factory.mktemp("compiled"), compiler=True)


def asked_for(wheel: Path) -> list[Requirement]:
    """What the metadata of the wheel require."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return [Requirement(r) for r in Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist", [])]


@pytest.fixture(scope="module")
def environment(plain_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with what the wheel requires and nothing else; its Python."""
    return linked_environment(tmp_path_factory.mktemp("clean"), asked_for(plain_wheel))


def install(wheel: Path, python: Path) -> None:
    site = site_packages(python.parents[1])
    shutil.rmtree(site / "simclr_engine", ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)


def expected_files() -> set[str]:
    """Every file of the packages but the sources of the compiled module, as the wheel names it."""
    return {
        f"{package}/{file.relative_to(ROOT / folder).as_posix()}"
        for folder, package in FOLDERS.items()
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and not {"__pycache__", "native"} & set(file.parts) and file.suffix not in (".so", ".pyd")
    }


def test_without_a_compiler_the_wheel_holds_every_file_of_the_packages(plain_wheel: Path) -> None:
    with zipfile.ZipFile(plain_wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected_files() and "simclr_engine/report/templates/style.css" in held


def test_nothing_of_nvidia_is_required_but_by_the_extra_for_dali(plain_wheel: Path) -> None:
    required = asked_for(plain_wheel)
    nvidia = [str(one) for one in required if one.name.startswith("nvidia")]
    assert len(nvidia) == 1 and 'extra == "dali"' in nvidia[0]
    heavy = {name for name in closure(required) if name.startswith(("nvidia", "cuda"))}
    assert heavy <= set(closure([Requirement("torch"), Requirement("triton; sys_platform == 'linux'")]))


def test_without_a_compiler_a_run_trains_with_views_by_pytorch(
    plain_wheel: Path, environment: Path, tmp_path: Path
) -> None:
    install(plain_wheel, environment)
    engine = (environment, "-m", "simclr_engine")
    out = succeeded(run_in(*engine, "pretrain", *TINY, "--device", "cpu", "--out", "run", "--json", cwd=tmp_path))
    assert json.loads(out)["backends"]["augment"] == "torch"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="DALI is for Linux")
def test_dali_is_an_extra_and_its_option_says_so(plain_wheel: Path, environment: Path, tmp_path: Path) -> None:
    install(plain_wheel, environment)
    done = run_in(environment, "-m", "simclr_engine", "pretrain", *TINY, "--augment", "dali", cwd=tmp_path)
    assert done.returncode == 3 and "pip install '.[dali]'" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_with_a_compiler_the_wheel_has_the_compiled_module_and_uses_it(
    compiled_wheel: Path, environment: Path, tmp_path: Path
) -> None:
    install(compiled_wheel, environment)
    said = succeeded(run_in(environment, "-m", "simclr_engine", "doctor", "--json", cwd=tmp_path))
    details = {one["name"].strip(): one["detail"] for one in json.loads(said)["findings"]}
    assert details["native"] == "--augment native works on cpu"


def test_the_extra_for_developers_has_what_the_build_requires() -> None:
    dev = {str(Requirement(one)) for one in PROJECT["project"]["optional-dependencies"]["dev"]}
    assert dev >= {str(Requirement(one)) for one in PROJECT["build-system"]["requires"]}


def test_constraints_pin_all_that_make_install_takes() -> None:
    extras = re.search(r"^EXTRAS := \[([\w,]+)\]$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert extras is not None and extras[1] == "dev,serve,dali"
    project, optional = PROJECT["project"]["dependencies"], PROJECT["project"]["optional-dependencies"]
    asked = map(Requirement, chain(project, *(optional[name] for name in extras[1].split(","))))
    assert set(closure(asked)) <= set(requirements(ROOT / "constraints.txt"))
