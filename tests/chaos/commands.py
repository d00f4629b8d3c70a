"""A command of the product in a forked process: milliseconds where a new interpreter imports for seconds."""

from __future__ import annotations

import os
import resource
import signal
import sys
import traceback
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

IMPORTED = (
    "simclr_engine",  # first, because it keeps onnxruntime from starting a thread for its telemetry
    *("torch", "onnx", "onnxruntime", "safetensors.torch", "sklearn.linear_model", "matplotlib.backends.backend_agg"),
    *("tensorboard.compat.proto.event_pb2", "tensorboard.summary.writer.record_writer", "jinja2", "rich.table"),
    *("simclr_engine.pretraining", "simclr_engine.report", "simclr_engine.evaluation.finetune"),
    *("simclr_engine.export.writer", "simclr_engine.export.embed", "simclr_engine.export.embedder"),
    *(f"simclr_engine.cli.{name}" for name in ("main", "pretrain", "evaluate", "export", "embed", "report", "compare")),
    *("simclr_engine.cli.data", "simclr_engine.data.pack"),
)
CRASHED = 70  # an exit code that no command has


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code; negative for the signal that killed it.
        out, err: what it wrote.
        peak: bytes of address space that it had at most; 0 if it was killed.
    """

    code: int
    out: str
    err: str
    peak: int = 0


def preload() -> None:
    """Imports what the commands import. RuntimeError if that starts a thread, which a forked process would wait for."""
    for name in IMPORTED:
        import_module(name)
    if len(tasks := list(Path("/proc/self/task").iterdir())) > 1:
        raise RuntimeError(f"{len(tasks)} threads")


def address_space(field: str = "VmSize") -> int:
    """Bytes of address space of this process: now, or at most (`VmPeak`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def run_command(words: list[str], folder: Path, *, limit: int | None = None, seconds: int = 300) -> Ended:
    """Runs `simclr-engine WORDS` in `folder`, with its cache and its temporary files in `cache/` and `tmp/` there.

    Args:
        limit: bytes of address space.
        seconds: after which SIGALRM ends it.
    """
    names = [folder / name for name in ("cache", "tmp")]
    for name in names:
        name.mkdir(exist_ok=True)
    shown = [names[1].with_name(f".{stream}") for stream in ("out", "err", "peak")]
    child = os.fork()
    if child == 0:
        _live(words, folder, shown, limit, seconds)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    out, err, peak = (path.read_text("utf-8", "replace") if path.exists() else "" for path in shown)
    for path in shown:
        path.unlink(missing_ok=True)
    return Ended(code, out, err, int(peak or 0))


def _live(words: list[str], folder: Path, shown: list[Path], limit: int | None, seconds: int) -> None:
    """The child, from the fork to its end; never returns."""
    code = CRASHED
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        os.chdir(folder)
        os.environ |= {"SIMCLR_ENGINE_CACHE": str(folder / "cache"), "TMPDIR": str(folder / "tmp"), "HOME": str(folder)}
        for number, path in enumerate(shown[:2], start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        sys.argv = ["simclr-engine", *words]
        signal.alarm(seconds)
        from simclr_engine.cli.main import main

        if limit is not None:
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else CRASHED
    except BaseException:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        os.write(2, traceback.format_exc().encode())
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        sys.stdout.flush()
        sys.stderr.flush()
        shown[2].write_text(str(address_space("VmPeak")))
        os._exit(code)
