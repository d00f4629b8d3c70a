"""Everything that only a CUDA device can say, in one command: `make gpu`, or `python -m simclr_engine.bench.gpu`.

Tests marked `gpu` → the benches → a short pretraining with kNN, each in a process of its own with a limit of time; the
failure of one does not stop the next. Leaves gpu.json, gpu.md and each part's log. With `--dry` the same lines run on
the CPU at tiny sizes, to be right the first time they meet a device.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from simclr_engine.errors import EngineError, PlatformError, UsageError, nearest
from simclr_engine.terminal import prepare_streams, say, say_error, tell

CLI = [sys.executable, "-c", "from simclr_engine.cli.main import main; main()"]
SECONDS = 540  # for everything: a part gets at most what the others have left


@dataclass(frozen=True)
class Part:
    """One process: what it runs, how many seconds it may take, and which file of its own holds its figures."""

    command: list[str]
    seconds: int
    document: Path | None = None


def parts(out: Path, data: str, tests: Path, dry: bool) -> dict[str, Part]:
    """Name → part, in the order of worth. On a device all limits together are less than nine minutes."""
    small = ["--small", "--repeats", "1"] if dry else []
    pytest = [sys.executable, "-m", "pytest", "-q", "-ra", "-m", "gpu", str(tests)]
    found = {"tests": Part([*pytest, "--collect-only"] if dry else pytest, 150)}
    limits = {"augment": 50, "nt-xent": 70, "optimizer": 20, "epoch": 110}
    for name, seconds in limits.items():
        file = out / f"bench-{name}.json"
        pictures = ["--plot", str(out / f"bench-{name}.png")]
        if name == "augment":
            pictures += ["--sheet", str(out / "backends.png")]
        limit = 3 * seconds if dry else seconds  # without a device it runs beside other tests, on what they leave
        found[f"bench {name}"] = Part([*CLI, "bench", name, *small, "--out", str(file), *pictures], limit, file)
    run = out / "run"
    short = ["--epochs", "1", "--limit", "128", "--batch-size", "64"] if dry else ["--max-minutes", "0.8"]
    options = ["--recipe", "cifar10-sgd", "--data", data, "--out", str(run), "--fused", "--overwrite", "--json", *short]
    found["pretrain"] = Part([*CLI, "pretrain", *options], 90)
    few = ["--limit", "64"] if dry else []
    found["evaluate"] = Part([*CLI, "evaluate", str(run), "--data", data, "--method", "knn", "--json", *few], 45)
    return found


def run_part(part: Part, log: Path, left: float) -> dict[str, Any]:
    """Runs it to its end, to its limit, or as long as there is time `left`; what it printed goes to `log`, its figures
    into the answer."""
    start, limit = time.perf_counter(), min(part.seconds, round(left))
    if limit <= 0:
        return {"status": f"not run: the {SECONDS} s were over", "seconds": 0.0, "log": None}
    if "pytest" in part.command and find_spec("pytest") is None:
        return {"status": "absent: pytest is not installed", "seconds": 0.0, "log": None}
    with log.open("w") as errors:
        # A session of its own, so that what it started (compilers, workers) ends with it.
        process = subprocess.Popen(
            part.command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
        try:
            printed, _ = process.communicate(timeout=limit)
            status = "done" if process.returncode == 0 else f"failed (exit {process.returncode})"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            printed, _ = process.communicate()
            status = f"stopped after {limit} s"
    with log.open("a") as whole:
        whole.write(printed)
    found: dict[str, Any] = {"status": status, "seconds": round(time.perf_counter() - start, 1), "log": log.name}
    if part.document is not None and part.document.is_file():
        found["rows"] = json.loads(part.document.read_text())["rows"]
    elif "--json" in part.command and printed.strip().startswith("{"):
        found["result"] = json.loads(printed)
    elif printed.strip():
        found["summary"] = printed.strip().splitlines()[-1]
    return found


def about() -> dict[str, Any]:
    """Device, versions and commit."""
    import platform
    from importlib import metadata

    import torch

    cuda = torch.cuda.is_available()
    versions = {"python": platform.python_version()}
    for package in ("torch", "triton", "numpy", "nvidia-dali-cuda130", "kornia", "onnxruntime"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "device": torch.cuda.get_device_name() if cuda else "no CUDA device",
        "capability": ".".join(map(str, torch.cuda.get_device_capability())) if cuda else None,
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory if cuda else None,
        "cuda": torch.version.cuda,
        "versions": versions,
        "commit": commit or None,
    }


def table(document: dict[str, Any]) -> str:
    """The document as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    lines = [f"# {document['device']}", "", f"{versions}; commit {document['commit']}", ""]
    if document["dry"]:
        lines += ["**A dry run at tiny sizes: no figure here means anything.**", ""]
    lines += ["| part | status | seconds | |", "|---|---|---|---|"]
    for name, part in document["parts"].items():
        said = part.get("summary", "")
        result = part.get("result", {})
        if "images_per_second" in result:
            said = (
                f"{result['epochs']:.3g} epochs, {result['images_per_second']:,.0f} images/s, loss {result['loss']:.3f}"
            )
        elif "results" in result:
            said = ", ".join(f"{r['method']} {r['init']} {100 * r['accuracy']:.2f} %" for r in result["results"])
        lines.append(f"| {name} | {part['status']} | {part['seconds']} | {said} |")
    for name, part in document["parts"].items():
        if "rows" in part:
            lines += ["", f"## {name}", "", "| measured | contender | median | p20 | p80 | unit | also |"]
            lines += ["|---|---|---|---|---|---|---|", *(_line(row) for row in part["rows"])]
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any]) -> str:
    if row["median"] is None:
        return f"| {row['name']} | {row['contender']} | not measured | | | | {row.get('note', '')} |"
    known = ("name", "contender", "median", "p20", "p80", "unit", "repeats", "rows", "dtype", "views", "size")
    also = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if k not in known)
    figures = " | ".join(f"{row[k]:,.4g}" for k in ("median", "p20", "p80"))
    return f"| {row['name']} | {row['contender']} | {figures} | {row['unit']} | {also} |"


@click.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("build/gpu"),
    show_default=True,
    metavar="DIR",
    help="Directory for the figures and logs.",
)
@click.option("--data", metavar="NAME|PATH", help="Images to pretrain on.  [default: glyphs; digits with --dry]")
@click.option(
    "--tests",
    type=click.Path(path_type=Path),
    default=Path("tests/gpu"),
    show_default=True,
    metavar="PATH",
    help="Tests that need a device.",
)
@click.option("--only", multiple=True, metavar="PART", help="This part alone; may be repeated.")
@click.option("--dry", is_flag=True, help="Tiny sizes, on the CPU if need be.")
def main(out: Path, data: str | None, tests: Path, only: tuple[str, ...], dry: bool) -> None:
    """Measure a CUDA device from end to end in less than nine minutes."""
    import torch

    if not dry and not torch.cuda.is_available():
        raise PlatformError(
            "there is no CUDA device", fix="to see every line of this run at tiny sizes: make gpu DRY=1"
        )
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    known = parts(out, data or ("digits" if dry else "glyphs"), tests, dry)
    if unknown := [name for name in only if name not in known]:
        raise UsageError("there is no such part", saw=unknown[0], fix=nearest(unknown[0], known))
    document: dict[str, Any] = {**about(), "dry": dry, "parts": {}}
    for name, part in known.items():
        if only and name not in only:
            continue
        say(f"{name} …")
        document["parts"][name] = found = run_part(
            part, out / f"{name.replace(' ', '-')}.log", SECONDS - (time.perf_counter() - started)
        )
        say(f"{name}: {found['status']}, {found['seconds']} s")
        (out / "gpu.json").write_text(json.dumps(document, indent=2) + "\n")  # whatever happens to the next part
        (out / "gpu.md").write_text(table(document))
    tell(*(out / "gpu.md").read_text().rstrip("\n").split("\n"))
    if any(part["status"] != "done" and not part["status"].startswith("absent") for part in document["parts"].values()):
        sys.exit(1)


if __name__ == "__main__":
    prepare_streams()
    try:
        main.main(standalone_mode=False)
    except click.ClickException as error:
        say(f"error: {error.format_message()}")
        sys.exit(error.exit_code)
    except EngineError as error:
        say_error(error)
        sys.exit(error.exit_code)
