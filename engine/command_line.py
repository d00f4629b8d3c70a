"""Commands that are printed for the user to paste, quoted for a shell. Imports no torch."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import UsageError

PROGRAM = "simclr-engine"


def shell_command(*words: object) -> str:
    """`simclr-engine WORDS…`, quoted, for documents that are read on other machines."""
    return _quoted(PROGRAM, *words)


def command_here(*words: object) -> str:
    """`shell_command` for this terminal: a program that a shell would not find is named as this process was started."""
    return _quoted(*([PROGRAM] if _found_by_a_shell() else [sys.executable, "-m", "simclr_engine"]), *words)


def resume_command(directory: Path, options: Sequence[str] = ()) -> str:
    """The command that resumes the run in `directory`, with the launcher that started this process.

    Args:
        directory: relative to the working directory, or absolute.
        options: further options of `pretrain`.
    """
    words: list[object] = ["pretrain", "--resume", directory, *options]
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return command_here(*words)
    local = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if any(word.split("=")[0] == "--gpus" for word in sys.argv[1:]):  # `--gpus` started torchrun
        return command_here(*words, "--gpus", local)
    again = _torchrun(local, words)
    machines = os.environ.get("GROUP_WORLD_SIZE", "1")
    # Only the original command says how the machines find each other.
    return again if machines == "1" else f"{again}    (with the --nnodes and --rdzv options of this launch)"


def launcher_number(name: str, default: int) -> int:
    """A number that a launcher such as torchrun put into the environment.

    Raises:
        UsageError: the variable is not a whole number of at least 0.
    """
    text = os.environ.get(name, str(default))
    if not re.fullmatch("[0-9]{1,9}", text):
        fix = f"unset {name}, or start with torchrun, which sets it"
        raise UsageError("a variable of the launcher is not a number", saw=f"{name}={text}", fix=fix)
    return int(text)


def launch_command(processes: int) -> str:
    """The command of this process for that many processes on the CPU, without its `--gpus` and `--device`."""
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
    """Quotes the words; a path that begins with a dash gets `./` in front, or it would be read as an option."""
    dashed = (isinstance(word, Path) and str(word).startswith("-") for word in words)
    return shlex.join(f"./{word}" if dash else str(word) for word, dash in zip(words, dashed, strict=True))


def _found_by_a_shell() -> bool:
    """True also if this process is another program, such as a notebook: then no better name is known."""
    started = Path(sys.argv[0])
    ours = started.name == PROGRAM or started == Path(__file__).with_name("__main__.py")
    return not ours or shutil.which(PROGRAM) is not None
