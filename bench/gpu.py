"""Everything that only a CUDA device can say, in one command: `make gpu`, or `python -m simclr_engine.bench.gpu`.

Each part of `gpu_parts` runs in a process of its own with a limit of time: our compiled step first, the tests last, all
their files at once. A part is asked to stop (SIGINT) before it is killed; its rows are on disk one by one, and the
report is written after each part, so whatever ends this leaves what was measured. Started again with the same folder,
it goes on with what is missing. With `--dry` the same parts run on the CPU at tiny sizes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from simclr_engine.documents import to_json
from simclr_engine.errors import EngineError, PlatformError, UsageError, counted, nearest
from simclr_engine.terminal import prepare_streams, say, say_error, tell

from .gpu_report import report

GRACE = 10  # seconds between SIGINT and SIGKILL
AT_ONCE = 4  # files of tests: most of their time is compilation on the host
DONE = "done"
_running: set[subprocess.Popen[str]] = set()  # to be stopped if this process is


@dataclass(frozen=True)
class Part:
    """One process: what it runs, how many seconds it may take, and the file of its rows."""

    name: str
    command: list[str]
    seconds: float
    rows: Path

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.rows.with_suffix(".log")


def run_part(
    part: Part, left: float, say: Callable[[str], object] = lambda line: None, grace: float = GRACE
) -> dict[str, Any]:
    """Runs a part to its end, to its limit, or as long as there is time `left` (seconds).

    Args:
        part: what to run. What it prints goes to its log, and line by line to `say`.
        left: seconds until everything has to end.
        say: called with each line.
        grace: seconds that it has after SIGINT.

    Returns:
        `status` (`done`, or why not), `seconds` and `rows`: all rows that it finished, whatever its end.
    """
    from .row_file import RowFile

    start, limit = time.perf_counter(), min(part.seconds, left)
    if limit <= 0:
        return {"status": "not run: the time was over", "seconds": 0.0, "rows": RowFile(part.rows).read()}
    # A session of its own, so that what it started (compilers, workers) ends with it.
    process = subprocess.Popen(
        part.command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    _running.add(process)
    listener = threading.Thread(target=_listen, args=(process, part.log, say), daemon=True)
    listener.start()
    try:
        code = process.wait(limit)
        status = (
            DONE if code == 0 else f"failed (exit {code})" if code > 0 else f"killed by {signal.Signals(-code).name}"
        )
    except subprocess.TimeoutExpired:
        asked = _stop(process, grace)
        status = f"stopped after {limit:.3g} s" + ("" if asked else ", killed: SIGINT did not end it")
    except BaseException:
        _stop(process, grace)
        raise
    finally:
        _running.discard(process)
    listener.join(timeout=grace)
    return {"status": status, "seconds": round(time.perf_counter() - start, 1), "rows": RowFile(part.rows).read()}


def _listen(process: subprocess.Popen[str], log: Path, say: Callable[[str], object]) -> None:
    assert process.stdout is not None
    with log.open("w") as file:
        for line in process.stdout:
            file.write(line)
            file.flush()
            say(line.rstrip("\n"))


def _stop(process: subprocess.Popen[str], grace: float) -> bool:
    """Ends a process and all that it started; returns whether SIGINT was enough."""
    for number, wait in ((signal.SIGINT, grace), (signal.SIGKILL, None)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(wait)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what is left of its group
            return number == signal.SIGINT
    return False


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
    if cuda:
        versions["cudnn"] = str(torch.backends.cudnn.version())
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "device": torch.cuda.get_device_name() if cuda else "no CUDA device",
        "capability": ".".join(map(str, torch.cuda.get_device_capability())) if cuda else None,
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory if cuda else None,
        "cuda": torch.version.cuda,
        "versions": versions,
        "commit": commit or None,
    }


class Session:
    """A folder with the document of what was measured so far; parts that were done there are not repeated."""

    def __init__(self, out: Path, dry: bool) -> None:
        self.out = out
        out.mkdir(parents=True, exist_ok=True)
        self.document: dict[str, Any] = {**about(), "dry": dry, "parts": {}}
        with suppress(OSError, ValueError):
            before = json.loads((out / "gpu.json").read_text())
            if all(before.get(key) == self.document[key] for key in ("device", "commit", "dry")):
                self.document["parts"] = before["parts"]
            else:
                for file in out.glob("*.rows"):
                    file.unlink()  # of another device, commit or size

    def open(self, name: str) -> bool:
        """Whether this part is still to be run."""
        found: dict[str, Any] = self.document["parts"].get(name, {})
        return found.get("status") != DONE

    def note(self, name: str, found: dict[str, Any]) -> None:
        """Writes document and report with what a part gave."""
        self.document["parts"][name] = found
        for file, text in (("gpu.json", to_json(self.document, indent=2)), ("gpu.md", report(self.document))):
            fresh = self.out / f".{file}"
            fresh.write_text(text + "\n")
            fresh.replace(self.out / file)


def batches(names: list[str]) -> Iterator[list[str]]:
    """One part at a time; files of tests all at once, at the end."""
    files = [name for name in names if name.startswith("tests: ")]
    yield from ([name] for name in names if name not in files)
    if files:
        yield files


def run_all(run: Callable[[str], None], names: list[str], at_once: int) -> None:
    """Runs parts, some at once. If this process is interrupted, what runs is stopped, and noted with its rows."""
    pool = ThreadPoolExecutor(at_once)
    try:
        for future in [pool.submit(run, name) for name in names]:
            future.result()
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(_running):
            _stop(process, GRACE)
        raise
    finally:
        pool.shutdown()


@click.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("build/gpu"),
    show_default=True,
    metavar="DIR",
    help="Directory for the figures and logs.",
)
@click.option("--data", metavar="NAME|PATH", help="What is raced on.  [default: glyphs; digits with --dry]")
@click.option(
    "--tests",
    type=click.Path(path_type=Path),
    default=Path("tests/gpu"),
    show_default=True,
    metavar="PATH",
    help="Tests that need a device.",
)
@click.option("--only", multiple=True, metavar="PART", help="Parts whose name begins so; may be repeated.")
@click.option(
    "--minutes", type=float, default=30.0, show_default=True, metavar="M", help="No part is started after this time."
)
@click.option("--dry", is_flag=True, help="Tiny sizes, on the CPU if need be.")
@click.option("--together", is_flag=True, help="All parts in this process: quicker, but none can be stopped.")
def main(
    out: Path, data: str | None, tests: Path, only: tuple[str, ...], minutes: float, dry: bool, together: bool
) -> None:
    """Measure a CUDA device from end to end. Started again, it goes on with what is missing."""
    import torch

    from . import gpu_parts

    if not dry and not torch.cuda.is_available():
        raise PlatformError(
            "there is no CUDA device", fix="to see every line of this run at tiny sizes: make gpu DRY=1"
        )
    # In the background of a shell SIGINT is ignored, and the parts would inherit that.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    known = gpu_parts.parts(tests)
    if unknown := [name for name in only if not any(one.startswith(name) for one in known)]:
        raise UsageError("there is no such part", saw=unknown[0], fix=nearest(unknown[0], known))
    started, session = time.perf_counter(), Session(out, dry)
    data = data or ("digits" if dry else "glyphs")

    def part(name: str) -> Part:
        rows = out / f"{''.join(c if c.isalnum() else '-' for c in name)}.rows"
        options = ["--rows", rows, "--out", out, "--tests", tests, "--data", data, *(["--dry"] if dry else [])]
        command = [sys.executable, "-m", "simclr_engine.bench.gpu_parts", name, *map(str, options)]
        return Part(name, command, known[name][1] * (3 if dry else 1), rows)

    def run(name: str) -> None:
        aloud = (lambda line: say(f"  {name}: {line}")) if name.startswith("tests") else (lambda line: None)
        left = 60 * minutes - (time.perf_counter() - started)
        one = part(name)
        found = _here(gpu_parts, one, data, out, tests, dry) if together else run_part(one, left, aloud)
        session.note(name, found)
        say(f"{name}: {found['status']}, {found['seconds']} s, {counted(len(found['rows']), 'row')}")

    wanted = [n for n in known if session.open(n) and (not only or any(n.startswith(o) for o in only))]
    for names in batches(wanted):
        run_all(run, names, 1 if together else AT_ONCE)
    tell(*(out / "gpu.md").read_text().rstrip("\n").split("\n"))
    if any(found["status"] != DONE for found in session.document["parts"].values()):
        sys.exit(1)


def _here(gpu_parts: Any, part: Part, data: str, out: Path, tests: Path, dry: bool) -> dict[str, Any]:
    """As `run_part`, in this process."""
    from .row_file import RowFile
    from .rows import first_line

    start, rows = time.perf_counter(), RowFile(part.rows)
    try:
        gpu_parts.measure(part.name, gpu_parts.Setting(rows, dry, data, out, tests))
        status = DONE
    except SystemExit as ended:
        status = f"failed (exit {ended.code})"
    except Exception as error:
        status = f"failed: {first_line(error)}"
    return {"status": status, "seconds": round(time.perf_counter() - start, 1), "rows": rows.read()}


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
