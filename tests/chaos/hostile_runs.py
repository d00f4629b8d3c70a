"""Hostile run directories: links, pipes, devices, huge files, names that lead outside, and documents of any content.

    PYTHONPATH=tests python -m chaos.hostile_runs

What must hold of every command: not one byte changes outside the run, the cache and the named output; it ends in time,
with a documented exit code and no traceback.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # a forked process has none of its parent's threads

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

from fixtures.image_files import class_tree, write_tree

from .commands import preload, run_command
from .memory import PRETRAIN
from .training import narrow_encoder

COMMANDS = {
    "report": ["report", "run"],
    "evaluate": ["evaluate", "run", "--method", "linear", "--init", "pretrained"],
    "export": ["export", "out/e.onnx", "--run", "run", "--no-card", "--probe"],
    "compare": ["compare", "run", "good", "--out", "out/compare.html"],
    "resume": ["pretrain", "--resume", "run", "--epochs", "2"],
}
DOCUMENTED = (0, 1, 2, 3, 4)
SECONDS = 120
TEXTS = ("recipe.toml", "environment.json", "metrics.jsonl", "export.json", ".simclr-engine-run", ".lock")
RESULT = "photos-linear-pretrained"
OF_RESULTS = tuple(f"evaluation/{RESULT}.{ending}" for ending in ("json", "npz", "safetensors"))
ARRAYS = ("views.npz", "embeddings/test.npy", "embeddings/test_labels.npz", "embeddings/neighbours.npz")
WEIGHTS = ("encoder.safetensors", "model.safetensors", "checkpoints/last.pt", "checkpoints/previous.pt")
FOLDERS = ("checkpoints", "evaluation", "embeddings", "figures", "tensorboard")
EVERYTHING = (*TEXTS, *OF_RESULTS, *ARRAYS, *WEIGHTS, "report.html")

Change = Callable[[Path, Path], None]  # of the run; the second folder is outside


def _replaced(*names: str, by: Callable[[Path, Path], None]) -> Change:
    """Each of these is moved out of the run, and `by(old place, new place)` puts something there."""

    def change(run: Path, outside: Path) -> None:
        for name in names:
            if (run / name).exists():
                there = outside / name.replace("/", "-")
                (run / name).rename(there)
                by(run / name, there)

    return change


def _link(path: Path, there: Path) -> None:
    path.symlink_to(there)


def _hard_link(path: Path, there: Path) -> None:
    path.hardlink_to(there)


def _pipe(path: Path, there: Path) -> None:
    os.mkfifo(path)


def _device(path: Path, there: Path) -> None:
    path.symlink_to("/dev/zero")


def _huge(path: Path, there: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def _huge_with_its_end(path: Path, there: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 31)
        file.seek(0, os.SEEK_END)
        file.write(there.read_bytes()[-48:])


def _swapped(path: Path, there: Path) -> None:
    path.mkdir() if there.is_file() else path.write_text("a file")


def _edited(name: str, **entries: object) -> Change:
    """Entries of a JSON document; those of `data` are merged into its own."""

    def change(run: Path, outside: Path) -> None:
        about = json.loads((run / name).read_text())
        data = {**about["data"], **entries["data"]} if isinstance(entries.get("data"), dict) else None
        (run / name).write_text(json.dumps(about | entries | ({"data": data} if data else {})))

    return change


def _written(name: str, text: str) -> Change:
    return lambda run, outside: (run / name).write_text(text)  # type: ignore[return-value]  # nobody reads it


def _recipe(old: str, new: str) -> Change:
    def change(run: Path, outside: Path) -> None:
        text = (run / "recipe.toml").read_text()
        assert old in text, old
        (run / "recipe.toml").write_text(text.replace(old, new, 1))

    return change


def _wrong_kinds(value: object) -> Change:
    def change(run: Path, outside: Path) -> None:
        about = json.loads((run / "environment.json").read_text())
        wrong = {key: value for key in about if key != "data"}
        wrong |= {"data": dict.fromkeys(about["data"], value), "finished": True}
        (run / "environment.json").write_text(json.dumps(wrong))

    return change


def _strange_names(run: Path, outside: Path) -> None:
    for folder in ("", "evaluation", "figures", "checkpoints"):
        (run / folder).mkdir(exist_ok=True)
        for name in ("..", "...", "..key", "x" * 255, "\x1b[2J\n.json", "-rf", "..\\..\\key.json", b"\xff\xfe.json"):
            path = Path(os.fsdecode(os.fsencode(run / folder) + b"/" + os.fsencode(name)))
            if not path.exists():
                path.write_text("{}")


def _swapped_checkpoints(run: Path, outside: Path) -> None:
    (run / "checkpoints" / "previous.pt").rename(outside / "p")
    (run / "checkpoints" / "last.pt").rename(run / "checkpoints" / "previous.pt")
    (outside / "p").rename(run / "checkpoints" / "last.pt")


def _foreign_checkpoint(run: Path, outside: Path) -> None:
    import torch

    from simclr_engine.checkpoint import load_checkpoint, save_checkpoint

    for name in ("last.pt", "previous.pt"):
        path = run / "checkpoints" / name
        state = load_checkpoint(path)
        state["model"] = {key: torch.zeros(3, 5) for key in state["model"]}
        save_checkpoint(path, state | {"rng": "no generator", "optimizer": 7, "total_steps": 10**12, "step": -4})


def _hostile_result(run: Path, outside: Path) -> None:
    path = run / OF_RESULTS[0]
    about = json.loads(path.read_text())
    about |= {"data": "../../outside/key", "method": "../../outside/key", "init": "../x", "protocol": "\x1b[2J"}
    about["per_class"][0]["name"] = "../../../outside/<script>"
    path.write_text(json.dumps(about))


_METRICS = '{"event": "train", "step": %s, "epoch": %s, "loss": %s, "chance": %s, "images_per_second": %s, "lr": %s}\n'
CASES: dict[str, Change] = {
    "links in place of files": _replaced(*EVERYTHING, by=_link),
    "links in place of folders": _replaced(*FOLDERS, by=_link),
    "hard links": _replaced(*EVERYTHING, by=_hard_link),
    "a link in place of checkpoints alone": _replaced("checkpoints", by=_link),
    "a link in place of evaluation alone": _replaced("evaluation", by=_link),
    "a link in place of figures alone": _replaced("figures", by=_link),
    "a hard link of the lock": _replaced(".lock", "metrics.jsonl", by=_hard_link),
    "pipes in place of documents": _replaced(*TEXTS, *OF_RESULTS[:1], by=_pipe),
    "a pipe in place of metrics": _replaced("metrics.jsonl", "export.json", ".lock", by=_pipe),
    "pipes in place of arrays and weights": _replaced(*ARRAYS, *OF_RESULTS[1:], *WEIGHTS[:2], by=_pipe),
    "a pipe in place of a checkpoint": _replaced("checkpoints/last.pt", by=_pipe),
    "devices in place of documents": _replaced(*TEXTS[:-1], *OF_RESULTS[:1], by=_device),
    "devices in place of arrays and weights": _replaced(*ARRAYS, *OF_RESULTS[1:], *WEIGHTS, by=_device),
    "huge documents": _replaced(*TEXTS, *OF_RESULTS[:1], by=_huge),
    "huge arrays and weights": _replaced(*ARRAYS, *OF_RESULTS[1:], *WEIGHTS, by=_huge),
    "a huge checkpoint with the end of one": _replaced("checkpoints/last.pt", by=_huge_with_its_end),
    "files and folders swapped": _replaced(*TEXTS[2:], *ARRAYS, "evaluation", "figures", "report.html", by=_swapped),
    "an environment of text": _wrong_kinds("../../outside/key"),
    "an environment of lists": _wrong_kinds([["x"]]),
    "an environment of objects": _wrong_kinds({"a": {"b": "../key"}}),
    "an environment of great numbers": _wrong_kinds(10**18),
    "an environment of negative numbers": _wrong_kinds(-1e300),
    "an environment of nothing": _wrong_kinds(None),
    "images in a device": _edited("environment.json", data={"path": "/dev/zero"}),
    "images in a name that leads outside": _edited("environment.json", data={"name": "../../outside/key"}),
    "a command that ends a line": _edited("environment.json", command="rm -rf ~\n\x1b[2J", notes=["</script>", 7]),
    "a result with names that lead outside": _hostile_result,
    "rows of any kind": _written(
        "metrics.jsonl",
        "".join(_METRICS % ((value,) * 6) for value in ("1", '"x"', "null", "[1]", "1e999", "-5", "NaN", "{}"))
        + '{"event": 7, "step": 3}\n{"step": 2}\n[1]\n"train"\n' + "[" * 100_000,
    ),
    "a recipe with the name of a path": _recipe('name = "cifar10-sgd"', 'name = "../../outside/key"'),
    "a recipe of another structure": _recipe("[train]", "[train]\nepochs = [7]\n[other]"),
    "strange names": _strange_names,
    "swapped checkpoints": _swapped_checkpoints,
    "a checkpoint of another structure": _foreign_checkpoint,
}  # fmt: skip


@contextmanager
def narrow() -> Iterator[None]:
    """An encoder of which nothing is asked, in every module that makes one."""
    with ExitStack() as stack:
        for module in ("model", "checkpoint", "weights", "evaluation.features"):
            stack.enter_context(mock.patch(f"simclr_engine.{module}.build_encoder", narrow_encoder))
        yield


def prepare(base: Path) -> None:
    """A finished run with results, a report and an export, and another one beside it."""
    write_tree(base / "photos", class_tree(("ant", "bee"), each=12))
    for name in ("out", "outside"):
        (base / name).mkdir()
    (base / "outside" / "key").write_text("secret")
    for words in (PRETRAIN, ["evaluate", "run"], ["export", "out/e.onnx", "--run", "run", "--no-card"]):
        ended = run_command(words, base)
        if ended.code:
            raise RuntimeError(f"{words}: exit code {ended.code}: {ended.err}")
    shutil.copy(base / "run/checkpoints/last.pt", base / "run/checkpoints/previous.pt")
    shutil.copytree(base / "run", base / "good")


def examine(name: str, base: Path, folder: Path, commands: dict[str, list[str]]) -> tuple[Counter[int], list[str]]:
    """One hostile run and every command, each on a copy of its own: the exit codes, and what was wrong."""
    codes, wrong = Counter[int](), []
    for command, words in commands.items():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base, folder)
        CASES[name](folder / "run", folder / "outside")
        before = _state(folder)
        ended = run_command(words, folder, seconds=SECONDS)
        codes[ended.code] += 1
        last = (ended.err.strip().splitlines() or [""])[-1][:200]
        if ended.code not in DOCUMENTED or "Traceback" in ended.err:
            wrong.append(f"{name}, {command}: exit code {ended.code}: {last}")
        wrong += [f"{name}, {command}: changed {path}" for path in sorted(before ^ _state(folder))]
    return codes, wrong


def _state(folder: Path) -> set[tuple[str, int, int, str]]:
    """Every file outside the run, the cache and the output: path, mode, time of its last change, content."""
    found = set()
    for path in folder.rglob("*"):
        place = path.relative_to(folder)
        if place.parts[0] in ("run", "cache", "out", "tmp"):
            continue
        status = path.lstat()
        whole = path.is_file() and not path.is_symlink()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if whole else ""
        found.add((str(place), status.st_mode, 0 if path.is_dir() else status.st_mtime_ns, content))
    return found


def run(names: list[str], commands: list[str], folder: Path) -> tuple[Counter[int], list[str]]:
    """The campaign over some cases and commands."""
    codes, wrong = Counter[int](), list[str]()
    preload()
    with narrow():
        (folder / "base").mkdir()
        prepare(folder / "base")
        for name in names:
            found = examine(name, folder / "base", folder / "here", {one: COMMANDS[one] for one in commands})
            codes += found[0]
            wrong += found[1]
    return codes, wrong


def main() -> int:
    """Runs the campaign and prints its counts; exit code 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m chaos.hostile_runs", description="Gives commands hostile runs.")
    parser.add_argument("--only", action="append", choices=list(CASES))
    parser.add_argument("--command", action="append", choices=list(COMMANDS))
    options = parser.parse_args()
    names, commands = options.only or list(CASES), options.command or list(COMMANDS)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        codes, wrong = run(names, commands, Path(folder).resolve())
    ends = ", ".join(f"{count} × {code}" for code, count in sorted(codes.items()))
    print(f"{len(names)} hostile run directories, {codes.total()} commands; exit codes: {ends}")
    print("\n".join(f"WRONG {row}" for row in wrong) or "0 bytes written outside, 0 tracebacks")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
