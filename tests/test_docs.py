"""What README and docs name exists: links, headings, files, commands with their options, make targets, Python names.
Accuracies and speeds in a table below a link to rows are those of the rows."""

from __future__ import annotations

import ast
import fnmatch
import importlib
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from fixtures import ROOT
from simclr_engine.bench.rows import table_line
from simclr_engine.cli.main import COMMANDS
from simclr_engine.layout import is_our_folder, is_ours

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
TEXTS = [page.read_text("utf-8") for page in PAGES]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(text: str, language: str = "") -> list[str]:
    """The contents of the fenced blocks of a language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for of, block in found if of == language]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@each_page
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_every_page_of_docs_is_linked_from_another() -> None:
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page, text in zip(PAGES, TEXTS, strict=True)
        for target in re.findall(r"\]\(([^)\s]+)\)", text)
    }
    wanted = {*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*.ipynb"), *(ROOT / "docs" / "pictures").iterdir()}
    assert wanted <= linked


@each_page
def test_every_file_of_the_checkout_that_is_named_exists(page: Path) -> None:
    folders = "engine|kernels|export|bench|tests|docs"
    for name in re.findall(rf"`((?:{folders})/[\w./*-]+|requirements-\w+\.txt)`", page.read_text("utf-8")):
        assert list(ROOT.glob(name.rstrip("/"))), name


def command_lines(text: str) -> Iterator[list[str]]:
    """The words of each command of ours in the fenced blocks, without comments, continued over `&&` and pipes."""
    for block in blocks(text):
        for line in block.splitlines():
            words = (
                shlex.split(line.replace("…", "x"), comments=True)
                if re.search(r"(^|&& |\| )simclr-engine ", line)
                else []
            )
            command: list[str] = []
            for word in [*words, "&&"]:
                if word not in ("&&", "|"):
                    command.append(word)
                    continue
                if command[:1] == ["simclr-engine"]:
                    yield command[1:]
                command = []


def parse(words: list[str]) -> None:
    """Parses a command as the shell would pass it, and runs nothing; click's UsageError where it does not exist."""
    assert words[0] in COMMANDS, words[0]
    command = importlib.import_module(f"simclr_engine.cli.{words[0]}").command
    rest = words[1:]
    while isinstance(command, click.Group) and rest and rest[0] in command.commands:
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context(words[0], list(rest))


@each_page
def test_every_command_that_is_shown_has_the_options_that_it_shows(page: Path) -> None:
    for words in command_lines(page.read_text("utf-8")):
        if not {"-h", "--help", "--version"} & set(words):
            parse(words)


def test_the_commands_of_the_readme_are_seen_by_the_test_above() -> None:
    found = list(command_lines((ROOT / "README.md").read_text("utf-8")))
    assert len(found) > 10 and {words[0] for words in found} > {"pretrain", "evaluate", "export", "predict", "serve"}
    with pytest.raises(click.UsageError):
        parse(["pretrain", "--no-such-option"])


@each_page
def test_every_option_in_the_prose_is_one_of_our_commands(page: Path) -> None:
    known = {"--help", "--version", "--debug"}
    commands = [importlib.import_module(f"simclr_engine.cli.{name}").command for name in COMMANDS]
    for command in commands:
        below = command.commands.values() if isinstance(command, click.Group) else [command]
        known |= {word for one in below for option in one.params for word in (*option.opts, *option.secondary_opts)}
    prose = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`([^`\n]*)`", prose):
        if not code.startswith(("pip ", "npm ", "python ", "torchrun", "tensorboard", "--rdzv")):
            assert set(re.findall(r"(?:^|\s)(--[a-z][a-z0-9-]+)", code)) <= known, code


@each_page
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    text = page.read_text("utf-8")
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)) <= targets


def _promised_tests(page: Path) -> Iterator[tuple[str, str]]:
    """File and name of each test in the tables of promises; `::name` and `…::name` are in the file named before."""
    for row in page.read_text("utf-8").splitlines():
        file = ""
        for named, test in re.findall(r"(tests/[\w/]+\.py)?…?::(test_\w+)", row):
            file = named or file
            yield file, test


def test_every_promise_names_tests_that_exist() -> None:
    promised = list(_promised_tests(ROOT / "docs" / "robustness.md"))
    assert len(promised) > 60
    sources = {file: (ROOT / file).read_text("utf-8") for file, _ in promised}
    assert [f"{file}::{test}" for file, test in promised if f"def {test}(" not in sources[file]] == []


@each_page
def test_every_extra_that_is_named_exists(page: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert set(re.findall(r"'\.\[(\w+)\]'", page.read_text("utf-8"))) <= set(extras)


@each_page
def test_python_that_is_shown_compiles_and_imports_names_that_exist(page: Path) -> None:
    for block in blocks(page.read_text("utf-8"), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("simclr_engine"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)


def test_the_published_systems_are_named_only_where_they_are_explained() -> None:
    for page, text in zip(PAGES, TEXTS, strict=True):
        if re.search(r"\bsystems? [A-E]\b", text):
            assert page.name == "recipes.md" or "recipes.md) says which projects these are" in text, page.name


def test_a_run_writes_the_files_that_its_page_lists() -> None:
    page = (ROOT / "docs" / "run-folder.md").read_text("utf-8")
    rows = [line.split("|")[1] for line in page.partition("## The log")[0].splitlines() if line.startswith("| `")]
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert len(names) > 20
    for name in names:
        folder, _, file = name.rpartition("/")
        assert is_ours(folder, file) if file else is_our_folder(folder), name


def test_the_picture_of_the_readme_is_small() -> None:
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", (ROOT / "README.md").read_text("utf-8"))
    assert len(pictures) == 1 and (ROOT / pictures[0]).stat().st_size <= 200_000
    assert fnmatch.fnmatch(pictures[0], "docs/pictures/*")


def numbers(value: Any) -> Iterator[float]:
    """All numbers in a JSON document."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from numbers(inner)
    elif isinstance(value, int | float):
        yield value


def tables(page: Path) -> Iterator[tuple[str, Any, list[str]]]:
    """Tables below a link to rows: the link, the document behind it, and the lines."""
    for part in re.split(r"^#+ ", page.read_text("utf-8"), flags=re.MULTILINE):
        for name, table in re.findall(r"\(([^()\s]+\.json)\)[^|]*?\n\n((?:\|.*\n)+)", part):
            yield name, json.loads((page.parent / name).read_text("utf-8")), table.splitlines()


@each_page
def test_accuracies_are_those_of_the_rows_that_are_linked(page: Path) -> None:
    checked = 0
    for name, document, lines in tables(page):
        kept = list(numbers(document))
        for figure in re.findall(r"(\d+\.\d+) %", "\n".join(lines)):
            digits = len(figure.partition(".")[2])
            assert any(abs(float(figure) - value) <= 0.51 * 10**-digits for value in kept), (name, figure)
            checked += 1
    assert checked >= 40 or page.name != "results.md"


@each_page
def test_speeds_are_those_of_the_rows_that_are_linked(page: Path) -> None:
    checked = 0
    for name, document, lines in tables(page):
        if lines[0].startswith("| measured | contender |"):
            kept = {table_line(row) for row in document["rows"]}
            assert not [line for line in lines[2:] if line.replace("**", "") not in kept], name
            checked += len(lines) - 2
    assert checked >= 40 or page.name != "results.md"
