"""Commands that are printed: quoted for a shell, so that they can be pasted. Imports no torch."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

PROGRAM = "simclr-engine"


def shell_command(*words: object) -> str:
    """`simclr-engine WORDS…`, quoted; for a document, which is read on other machines too."""
    return _quoted(PROGRAM, *words)


def command_here(*words: object) -> str:
    """`shell_command` for the terminal: it starts the program as this process was started, where a shell would not find
    `simclr-engine`."""
    return _quoted(*([PROGRAM] if _found_by_a_shell() else [sys.executable, "-m", "simclr_engine"]), *words)


def resume_command(directory: Path, options: Sequence[str] = ()) -> str:
    """What goes on with the run in `directory`, by the launcher that started this process.

    Args:
        directory: relative to the working directory, or absolute.
        options: further options of `pretrain`.
    """
    words: list[object] = ["pretrain", "--resume", directory, *options]
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return command_here(*words)
    local = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if any(word.split("=")[0] == "--gpus" for word in sys.argv[1:]):  # torchrun is ours
        return command_here(*words, "--gpus", local)
    again = _torchrun(local, words)
    machines = os.environ.get("GROUP_WORLD_SIZE", "1")
    # How these machines find each other, only the command that was given says.
    return again if machines == "1" else f"{again}    (with the --nnodes and --rdzv options of this launch)"


def launch_command(processes: int) -> str:
    """This call, in so many processes on the CPU, instead of its `--gpus` and `--device`."""
    words, given = list[str](), iter(sys.argv[1:])
    for word in given:
        if word in ("--gpus", "--device"):
            next(given, None)
        elif not word.startswith(("--gpus=", "--device=")):
            words.append(word)
    return _torchrun(processes, [*words, "--device", "cpu"])


def _torchrun(processes: object, words: Sequence[object]) -> str:
    launcher = ["torchrun"] if shutil.which("torchrun") else [sys.executable, "-m", "torch.distributed.run"]
    return _quoted(*launcher, "--nproc-per-node", processes, "-m", "simclr_engine", *words)


def _quoted(*words: object) -> str:
    """A path that begins with a dash would be an option."""
    dashed = (isinstance(word, Path) and str(word).startswith("-") for word in words)
    return shlex.join(f"./{word}" if dash else str(word) for word, dash in zip(words, dashed, strict=True))


def _found_by_a_shell() -> bool:
    """True also where this process is another program, as a notebook is: then nothing better is known."""
    started = Path(sys.argv[0])
    ours = started.name == PROGRAM or started == Path(__file__).with_name("__main__.py")
    return not ours or shutil.which(PROGRAM) is not None
