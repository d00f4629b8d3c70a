"""Which way imports point: down, never in a circle; and how long a function may be."""

from __future__ import annotations

from pathlib import Path

import pytest

import import_graph
from import_graph import circles, imports, long_functions, read_modules, relayed_parameters

MODULES = read_modules()
GRAPH = {name: imports(module, MODULES) for name, module in MODULES.items()}

# What is still to be undone. These lists may only get shorter: what is gone has to be struck off.
CIRCLES = []
LONG_FUNCTIONS: set[str] = set()
RELAYS: set[str] = set()


def room(name: str) -> str:
    """`data` for `simclr_engine.data.cache`, `__init__` for the package itself."""
    return ([*name.split("."), "__init__"])[1]


ROOMS = {room(name) for name in MODULES}


def rooms_below(name: str) -> set[str]:
    assert name in ROOMS, f"there is no {name} any more: correct this test"
    return {room(other) for module in MODULES if room(module) == name for other in GRAPH[module]} - {name}


def test_kernels_know_nothing_of_the_engine() -> None:
    assert rooms_below("kernels") == set()


def test_data_knows_nothing_of_runs_and_recipes() -> None:
    assert rooms_below("data") == {
        *("boundary", "bounds", "errors", "files", "inputs", "locks", "package", "progress", "sealing"),
        *("terminal", "torchvision_shim"),
    }


@pytest.mark.parametrize("name", ["recipe", "run", "checkpoint", "model", "training", "planning", "pretraining"])
def test_what_trains_knows_neither_report_nor_export(name: str) -> None:
    assert not rooms_below(name) & {"report", "export"}


@pytest.mark.parametrize(("name", "known_by"), [("bench", {"cli"}), ("cli", {"__main__"})])
def test_only_the_way_in_knows_the_command_line_and_the_benchmarks(name: str, known_by: set[str]) -> None:
    assert {other for other in ROOMS - {name} if name in rooms_below(other)} == known_by


def test_no_import_goes_in_a_circle() -> None:
    assert circles(GRAPH) == CIRCLES


def test_no_module_is_loaded_in_a_circle() -> None:
    assert circles({name: imports(module, MODULES, only_when_loaded=True) for name, module in MODULES.items()}) == []


def test_no_function_is_longer_than_a_screen() -> None:
    assert set(long_functions(MODULES)) == LONG_FUNCTIONS, long_functions(MODULES)


def test_no_function_relays_more_than_six_parameters() -> None:
    assert set(relayed_parameters(MODULES)) == RELAYS, relayed_parameters(MODULES)


# A package whose imports are of every kind, as files under engine/, and what the graph must hold.
FILES = {
    "__init__.py": (
        "from importlib import import_module\n_HOMES = {'Run': 'simclr_engine.run'}\n"
        "def __getattr__(name): return getattr(import_module(_HOMES[name]), name)\n"
    ),
    "run.py": "import typing\nif typing.TYPE_CHECKING:\n    from .only_typed import T\nfrom .errors import F\n",
    "errors.py": "def why():\n    from . import run, __version__\n",
    "only_typed.py": "import numpy, simclr_engine.data.store\n",
    "data/__init__.py": "_PLACES = {'Store': 'store'}\ndef __getattr__(name): return import_module('.store')\n",
    "data/store.py": "from ..errors import Failed\nTEXT = 'store'\n",
    "long.py": "def _long(a):\n" + "    a\n" * 60 + "class C:\n    def short(self):\n" + "        self\n" * 59,
    "documented.py": 'def public(\n    a,\n):\n    """A\n' + "    line\n" * 60 + '    """\n    return a\n',
    "relay.py": "def f(a, b, c, d, e, g, h):\n    f(a, b, c, d, e, g, h=h)\n    f(a, b, 1)\n    print(a)\n",
}
EXPECTED = {
    "simclr_engine": {"simclr_engine.run"},
    "simclr_engine.run": {"simclr_engine.errors"},
    "simclr_engine.errors": {"simclr_engine", "simclr_engine.run"},
    "simclr_engine.only_typed": {"simclr_engine.data.store"},
    "simclr_engine.data": {"simclr_engine.data.store"},
    "simclr_engine.data.store": {"simclr_engine.errors"},
}


@pytest.fixture
def small(tmp_path: Path) -> dict[str, import_graph.Module]:
    for name, text in FILES.items():
        path = tmp_path / "engine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return read_modules(tmp_path)


def test_imports_of_every_kind_are_seen(small: dict[str, import_graph.Module]) -> None:
    graph = {name: imports(module, small) for name, module in small.items()}
    assert {name: targets for name, targets in graph.items() if targets} == EXPECTED
    assert circles(graph) == [["simclr_engine", "simclr_engine.errors", "simclr_engine.run"]]
    loaded = {name: imports(module, small, only_when_loaded=True) for name, module in small.items()}
    assert loaded["simclr_engine"] == loaded["simclr_engine.errors"] == set() and circles(loaded) == []


def test_long_functions_and_relayed_parameters_are_seen(small: dict[str, import_graph.Module]) -> None:
    assert long_functions(small) == {"long:_long": 61}
    assert relayed_parameters(small) == {"relay:f": 7}


def test_the_script_prints_what_the_tests_check(capsys: pytest.CaptureFixture[str]) -> None:
    import_graph.main(import_graph.ROOT)
    printed = capsys.readouterr().out
    assert f"nodes    {len(MODULES)}" in printed and "circles" in printed and "parameters relayed" in printed
    assert all(name in printed for name in (*LONG_FUNCTIONS, *RELAYS))
