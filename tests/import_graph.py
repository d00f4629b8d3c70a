"""The import graph of the packages, and the sizes of files and functions: what `test_import_graph` holds to its limits.

    python tests/import_graph.py [ROOT]

prints nodes, edges and circles, files and lines, the longest files, functions over 60 lines and parameters relayed.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "engine": "simclr_engine",
    "kernels": "simclr_engine.kernels",
    "export": "simclr_engine.export",
    "bench": "simclr_engine.bench",
}
LONGEST = 60  # lines of a function
MOST_RELAYED = 6  # parameters that a function hands to another as they came


@dataclass(frozen=True)
class Module:
    """A source file: its dotted name, its path and its syntax tree."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        """What relative imports start from."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]


def read_modules(root: Path = ROOT) -> dict[str, Module]:
    """Every module of the packages under `root`, by dotted name."""
    modules = {}
    for folder, package in PACKAGES.items():
        for path in sorted((root / folder).rglob("*.py*")):
            if path.suffix not in (".py", ".pyi"):  # a stub stands for a compiled module
                continue
            parts = path.relative_to(root / folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            modules[name] = Module(name, path, ast.parse(path.read_text(encoding="utf-8")))
    return modules


def imports(module: Module, modules: Mapping[str, Module], only_when_loaded: bool = False) -> set[str]:
    """The modules that `module` imports, inside functions too, but not for type checkers alone.

    Strings that name a module count in files that load by name (`import_module`, a package's lazy `__getattr__`).

    Args:
        module: the importing one.
        modules: all of them; other imports are left out.
        only_when_loaded: leave out what is imported by functions, and by name.
    """
    found: set[str] = set()
    nodes = list(_runtime_nodes(module.tree, into_functions=not only_when_loaded))
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {_home(alias.name, modules) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = module.package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(part for part in (above, node.module) if part)
            found |= {_home(f"{base}.{alias.name}", modules) for alias in node.names}
    if not only_when_loaded and any(isinstance(node, ast.Name) and node.id == "import_module" for node in nodes):
        texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        found |= {name for text in texts for name in (text, f"{module.package}.{text}") if name in modules}
    return found - {"", module.name}


def _runtime_nodes(tree: ast.AST, into_functions: bool) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker sees."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not into_functions:
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _runtime_nodes(node, into_functions)


def _home(name: str, modules: Mapping[str, Module]) -> str:
    """`simclr_engine.run` for `simclr_engine.run.Run`; "" for what is not ours."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one node (Tarjan, 1972), each sorted."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = lowest[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
            if other in stack:
                lowest[node] = min(lowest[node], lowest[other])
        if lowest[node] == index[node]:
            start = stack.index(node)
            component = sorted(stack[start:])
            del stack[start:]
            if len(component) > 1:
                found.append(component)

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return sorted(found)


def _functions(module: Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Functions and methods with their qualified names. Not those that only the command line or Triton calls."""

    def walk(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        for node in ast.iter_child_nodes(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                decorators = " ".join(ast.unparse(decorator) for decorator in node.decorator_list)
                if not any(word in decorators for word in (".command", "triton.jit")):
                    yield prefix + node.name, node
            name = getattr(node, "name", "") if isinstance(node, ast.ClassDef | ast.FunctionDef) else ""
            yield from walk(node, f"{prefix}{name}." if name else prefix)

    yield from walk(module.tree, f"{module.name.removeprefix('simclr_engine.')}:")


def long_functions(modules: Mapping[str, Module]) -> dict[str, int]:
    """`module:function` → lines, of those with more than LONGEST.

    A public function's signature and docstring do not count: they are its documentation.
    """
    found = {}
    for module in modules.values():
        for name, node in _functions(module):
            first = node.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and len(node.body) > 1
            start = node.lineno
            if not node.name.startswith("_"):
                start = node.body[1].lineno if documented else first.lineno
            length = (node.end_lineno or start) - start + 1
            if length > LONGEST:
                found[name] = length
    return found


def relayed_parameters(modules: Mapping[str, Module]) -> dict[str, int]:
    """`module:function` → how many parameters it hands to one function of ours unchanged, where over MOST_RELAYED."""
    ours = {
        node.name
        for module in modules.values()
        for node in ast.walk(module.tree)
        # A dataclass packs what it is given: after that nothing is relayed.
        if isinstance(node, ast.FunctionDef) or (isinstance(node, ast.ClassDef) and not node.decorator_list)
    }
    found = {}
    for module in modules.values():
        for name, node in _functions(module):
            named = {argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}
            most = 0
            for call in (inner for inner in ast.walk(node) if isinstance(inner, ast.Call)):
                if ast.unparse(call.func).rpartition(".")[2] not in ours:
                    continue
                values = [*call.args, *(keyword.value for keyword in call.keywords)]
                relayed = [value for value in values if isinstance(value, ast.Name) and value.id in named - {"self"}]
                most = max(most, len(relayed))
            if most > MOST_RELAYED:
                found[name] = most
    return found


def lines_of(paths: list[Path]) -> int:
    """How many lines these files have together."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def main(root: Path) -> None:
    """Prints everything."""
    modules = read_modules(root)
    graph = {name: imports(module, modules) for name, module in modules.items()}
    sources = [module.path for module in modules.values() if module.path.suffix == ".py"]
    tests = sorted((root / "tests").rglob("*.py"))
    print(f"nodes    {len(graph)}, edges {sum(map(len, graph.values()))}")
    print(f"sources  {len(sources)} files, {lines_of(sources):,} lines; tests {len(tests)}, {lines_of(tests):,}")
    for folder in PACKAGES:
        paths = [path for path in sources if path.is_relative_to(root / folder)]
        print(f"  {folder:<8} {len(paths):>3} files, {lines_of(paths):>6,} lines")
    print("circles ", *(circles(graph) or ["none"]), sep="\n  ")
    print("longest files")
    for path in sorted(sources, key=lambda path: -lines_of([path]))[:10]:
        print(f"  {lines_of([path]):>4} {path.relative_to(root)}")
    for title, table in (
        (f"functions over {LONGEST} lines", long_functions(modules)),
        (f"more than {MOST_RELAYED} parameters relayed", relayed_parameters(modules)),
    ):
        print(f"{title}: {len(table)}", *(f"  {number:>4} {name}" for name, number in sorted(table.items())), sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
