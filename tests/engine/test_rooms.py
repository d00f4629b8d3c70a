"""Which way imports point: down, never in a circle."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from fixtures import ROOT

PACKAGES = {
    "engine": "simclr_engine",
    "kernels": "simclr_engine.kernels",
    "export": "simclr_engine.export",
    "bench": "simclr_engine.bench",
}


def _modules() -> dict[str, Path]:
    found = {}
    for folder, package in PACKAGES.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


MODULES = _modules()


def _module_of(name: str) -> str:
    """`simclr_engine.run` for `simclr_engine.run.Run`."""
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def _imports(module: str, tree: ast.AST) -> set[str]:
    path, found = MODULES[module], set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in [tree] if isinstance(tree, ast.Import | ast.ImportFrom) else ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(part for part in (above, node.module) if part)
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {_module_of(name) for name in names if name.split(".")[0] == "simclr_engine"} - {module}
    return found


def imports(module: str) -> set[str]:
    """Everything of ours that the module imports, also inside functions."""
    return _imports(module, ast.parse(MODULES[module].read_text(encoding="utf-8")))


def imports_when_loaded(module: str) -> set[str]:
    """What it imports at its top level."""
    body = ast.parse(MODULES[module].read_text(encoding="utf-8")).body
    statements = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    return {name for node in statements for name in _imports(module, node)}


def room(module: str) -> str:
    """`data` for `simclr_engine.data.cache`, `__init__` for the package itself."""
    return ([*module.split("."), "__init__"])[1]


def rooms_below(name: str) -> set[str]:
    return {room(found) for module in MODULES if room(module) == name for found in imports(module)} - {name}


def test_the_imports_are_seen() -> None:
    assert len(MODULES) > 150
    assert {"simclr_engine.training", "simclr_engine.errors"} <= imports("simclr_engine.pretraining")
    assert "simclr_engine.kernels" in imports("simclr_engine.training")
    assert "simclr_engine.evaluation.features" in imports("simclr_engine.evaluation.encoders")  # within a function
    assert "simclr_engine.evaluation.features" not in imports_when_loaded("simclr_engine.evaluation.encoders")


def test_kernels_know_nothing_of_the_engine() -> None:
    assert rooms_below("kernels") == set()


def test_data_knows_nothing_but_errors() -> None:
    assert rooms_below("data") == {"errors", "torchvision_shim"}


def test_the_room_that_writes_files_knows_nothing_but_errors() -> None:
    assert rooms_below("files") == {"errors"}


@pytest.mark.parametrize(
    "name",
    [
        "recipe",
        "specs",
        "run",
        "checkpoint",
        "device",
        "model",
        "optim",
        "parallel",
        "loading",
        "training",
        "planning",
        "pretraining",
        "monitor",
        "evaluation",
        "report",
    ],
)
def test_what_trains_and_evaluates_knows_neither_the_command_line_nor_the_benchmarks(name: str) -> None:
    assert not rooms_below(name) & {"cli", "bench"}


@pytest.mark.parametrize(
    "name", ["recipe", "layout", "run", "checkpoint", "model", "training", "planning", "pretraining"]
)
def test_what_trains_knows_neither_report_nor_export(name: str) -> None:
    assert not rooms_below(name) & {"report", "export"}


def test_only_the_command_line_starts_benchmarks_and_only_main_the_command_line() -> None:
    for name, known_by in (("bench", {"cli"}), ("cli", {"__main__"})):
        assert {other for other in {room(m) for m in MODULES} - {name} if name in rooms_below(other)} == known_by


def test_no_module_is_loaded_in_a_circle() -> None:
    # `__init__` of the package imports by name when asked, and not when it is loaded.
    graph = {m: imports_when_loaded(m) - {"simclr_engine"} for m in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))
