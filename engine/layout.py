"""The files of a run directory, how a run is recognised, and what `--overwrite` may remove. Imports no torch."""

from __future__ import annotations

import json
import os
import re
import stat
import uuid
from contextlib import suppress
from pathlib import Path

from .bounds import LARGEST_MARK
from .errors import EngineError, UsageError
from .files import MARKER, Folder
from .inputs import read_text
from .sealing import sealed_json
from .terminal import say

LOCK = ".lock"
FORMAT = "simclr-engine run 1"

_PROTOCOL = r"[a-z]+-(pretrained|scratch)(-[0-9.e+-]+pct)?(-\d+folds)?"  # `evaluation.records.protocol_id`
_RESULT = rf"[a-z0-9-]+-{_PROTOCOL}"  # `evaluation.records.result_id`
_EVENTS = r"events\.out\.tfevents\..+"
# Folder, relative to the run → the files that a run, an evaluation, a report or an export writes there.
_LEVELS = {
    "": r"\.simclr-engine-run|\.lock|(recipe\.toml|environment\.json|metrics\.jsonl|views\.npz)"
    r"|(model|encoder)\.safetensors|export\.json|report\.html",
    "checkpoints": r"(last|previous|next|epoch_\d+)\.pt",
    "tensorboard": _EVENTS,
    f"tensorboard/{_PROTOCOL}": _EVENTS,
    rf"tensorboard/{_PROTOCOL}/fold-\d+": _EVENTS,
    "evaluation": rf"{_RESULT}\.(json|jsonl|npz|safetensors)",
    "embeddings": r"(train|test|test_scratch)(\.npy|_labels\.npz)|neighbours(_scratch)?\.npz|tsne-[0-9a-f]{16}\.npz",
    "figures": rf"((confusion|per-class|predictions|reliability|training)-{_RESULT}|labels-[a-z0-9.+-]+"
    r"|(embedding-pca|embedding-tsne|neighbours)-(pretrained|random)|methods|spectrum|named-classes|loss|contrast|learning-rate"
    r"|online-knn|feature-spread|augmentation)\.png",
}
# The temporary files that a killed process leaves; see `Folder.writing`. The second form is that of older versions.
_TORN = re.compile(r"\.(?P<name>.+)\.(\d+\.tmp|tmp\.npz)")
TORN_BY_TRAINING = re.compile(
    r"\.((recipe\.toml|environment\.json|metrics\.jsonl|views\.npz|(model|encoder)\.safetensors)|.+\.pt)\.\d+\.tmp"
)


def is_ours(folder: str, name: str) -> bool:
    """Whether a run writes a file of this name into its `folder` ("" for the run directory itself)."""
    torn = _TORN.fullmatch(name)
    name = torn["name"] if torn else name
    return any(re.fullmatch(level, folder) and re.fullmatch(names, name) for level, names in _LEVELS.items())


def is_our_folder(folder: str) -> bool:
    """Whether a run makes a folder of this name, such as `tensorboard/head-scratch`."""
    return any(re.fullmatch(level, folder) for level in _LEVELS)


def mark(at: Folder) -> None:
    """Writes the marker by which the directory is recognised as a run from the start."""
    at.write(MARKER, sealed_json({"format": FORMAT, "id": uuid.uuid4().hex}, MARKER))


def is_free(at: Folder) -> bool:
    """Whether the directory is empty, except for the lock of a process that wrote nothing else."""
    return set(at.names()) <= {LOCK}


def check_removable(at: Folder) -> None:
    """Checks that a directory is a run and nothing else, so that it may be emptied; changes nothing.

    Raises:
        UsageError: it may not be emptied; names the reason.
    """
    place = protected(at.path)
    if place:
        raise UsageError(f"--overwrite never empties {place}", saw=_full(at.path), fix="choose another --out")
    if not _is_run(at):
        cause = "--overwrite removes runs only, and this is not a run"
        raise UsageError(cause, saw=at.path, fix="choose another --out")
    _, foreign = survey(at)
    if foreign:
        more = f" and {len(foreign) - 5:,} more" if len(foreign) > 5 else ""
        raise UsageError(
            "--overwrite removes only files that a run writes, and there is something else",
            saw=f"{at.path}: {', '.join(foreign[:5])}{more}",
            fix="move it elsewhere, or choose another --out",
        )


def survey(at: Folder, inside: str = "") -> tuple[list[str], list[str]]:
    """The files that a run writes and all other entries. Folders end in `/`; links count as other entries."""
    ours, foreign = list[str](), list[str]()
    for name, kind in at.kinds().items():
        path = f"{inside}/{name}".lstrip("/")
        if stat.S_ISDIR(kind) and is_our_folder(path):
            within = survey(at.folder(name, make=False), path)
            ours += within[0]
            foreign += within[1]
        elif stat.S_ISREG(kind) and is_ours(inside, name):
            ours.append(path)
        else:
            foreign.append(path + "/" * stat.S_ISDIR(kind))
    return ours, foreign


def empty(at: Folder) -> None:
    """Removes the files that `survey` attributes to a run, except marker and lock, after listing them on stderr."""
    ours, _ = survey(at)
    going = [path for path in ours if path not in (MARKER, LOCK)]
    folders: dict[str, int] = {}
    for path in going:
        head = path.split("/")[0]
        folders[head] = folders.get(head, 0) + 1
    said = ", ".join(f"{head}/ ({n} files)" if head not in going else head for head, n in folders.items())
    say(f"removing the run in {at.path}: {said or 'no files'}")
    _empty(at, "")


def _empty(at: Folder, inside: str) -> None:
    # Checkpoints go first, so that a kill in between leaves nothing that could be resumed.
    for name, kind in sorted(at.kinds().items(), key=lambda one: one[0] != "checkpoints"):
        path = f"{inside}/{name}".lstrip("/")
        if stat.S_ISDIR(kind) and is_our_folder(path):
            _empty(at.folder(name, make=False), path)
            at.remove_folder(name)
        elif stat.S_ISREG(kind) and is_ours(inside, name) and path not in (MARKER, LOCK):
            at.remove(name)


def holds_a_lock(text: str) -> bool:
    """Whether this is the text that `RunLock` writes."""
    return re.fullmatch(r"(process \d+ on \S+\n)?", text) is not None


def protected(path: Path) -> str | None:
    """Why a directory must never be emptied, with links resolved; None if there is no such reason."""
    here, real = path.stat(), path.resolve()

    def is_or_holds(place: Path) -> bool:
        """Compares directories, not text: a file system may ignore case."""
        with suppress(OSError):
            place = place.resolve()
            return any(os.path.samestat(here, one.stat()) for one in (place, *place.parents))
        return False

    with suppress(FileNotFoundError):  # the working directory was removed
        if is_or_holds(Path.cwd()):
            return "the working directory, or one above it"
    if any(map(is_or_holds, _homes())):
        return "the home folder, or one above it"
    if real.is_mount() or str(real) in _mounts():
        return "a mount point"
    if any(os.path.lexists(real / name) for name in (".git", ".hg", ".svn")):
        return "the root of a repository"
    return None


def _homes() -> list[Path]:
    """The home folders by the environment and by the system: a process may have been started with another `HOME`."""
    homes = list[Path]()
    with suppress(RuntimeError):
        homes.append(Path.home())
    with suppress(ImportError, KeyError):  # Windows; a user without an entry
        import pwd

        homes.append(Path(pwd.getpwuid(os.getuid()).pw_dir))
    return [home for home in homes if home.is_absolute()]


def _mounts() -> set[str]:
    """The mount points in the list of Linux: `ismount` does not see those within one file system."""
    try:
        lines = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return set()
    return {re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), line.split(" ")[4]) for line in lines}


def _is_run(at: Folder) -> bool:
    """Whether it is a run, by its marker. Older runs have a recipe or, if killed early, a lock."""
    with suppress(OSError, ValueError, RecursionError):
        marker = json.loads(_read(at, MARKER))
        if isinstance(marker, dict) and marker.get("format") == FORMAT and isinstance(marker.get("id"), str):
            return True
    with suppress(OSError, ValueError, EngineError):
        from .recipe import Recipe

        Recipe.from_toml(_read(at, "recipe.toml"))
        return True
    with suppress(OSError, ValueError):
        return holds_a_lock(_read(at, LOCK))
    return False


def _read(at: Folder, name: str) -> str:
    """The text of a regular file; ValueError or OSError for a link, a device or a file that is too large."""
    if not at.is_file(name):
        raise ValueError("not a regular file")
    return read_text(at.path / name, LARGEST_MARK)


def _full(path: Path) -> str:
    real = path.resolve()
    return f"{path}" if path == real else f"{path}, which is {real}"
