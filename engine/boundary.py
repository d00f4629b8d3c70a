"""What an error of the system or of a library means to a user: cause, value seen, fix and exit code.

The command line passes every error through `engine_error`. Errors are told by their number, by the module that raised
them or by their words, so that no library is imported for it.
"""

from __future__ import annotations

import errno
import os
import re
import traceback
from pathlib import Path
from types import FrameType

from .errors import DataError, EngineError, PlatformError, UsageError, cut

_LESS, _CHECK = "end other programs, or use fewer or smaller images", "check the file, or make it again"
_FULL = (PlatformError, "the disk is full", "free space, or choose another path")
_NO_MEMORY = (PlatformError, "there is not enough memory", _LESS)
_BROKE = (PlatformError, "a compiled library failed, as some do where memory ends", _LESS)
_AGAIN, _PATHS = "then run the command again", "correct the permissions, or choose another path"
Row = tuple[type[EngineError], str, str]  # kind, cause, fix
# Names of the numbers of OSError. Others are faults of the machine.
_SYSTEM: dict[str, Row] = {
    "ENOSPC EDQUOT": _FULL,
    "EFBIG": (PlatformError, "a file would be larger than the system allows", "raise the limit: ulimit -f"),
    "EACCES EPERM EROFS": (PlatformError, "there is no permission", _PATHS),
    "EMFILE ENFILE": (PlatformError, "too many files are open", "raise the limit: ulimit -n 4096"),
    "ENOMEM": _NO_MEMORY,
    "EIO ESTALE": (PlatformError, "the disk or its connection failed", f"check the disk, {_AGAIN}"),
    "ECONNREFUSED ECONNRESET ETIMEDOUT ENETUNREACH EHOSTUNREACH": (
        *(PlatformError, "the network does not answer"),
        f"check the connection, {_AGAIN}",
    ),
    "ENAMETOOLONG": (DataError, "a name is too long for the file system", "use a shorter name"),
    "ENOENT ENOTDIR EISDIR ELOOP": (DataError, "a file cannot be opened", "check the path"),
}
# Of the machine; another try may not meet them.
_FAULTS = frozenset(("ENOSPC", "EDQUOT", "EMFILE", "ENFILE", "ENOMEM", "EIO", "ESTALE"))
_OUT_OF_MEMORY = re.compile(
    "out of memory|(can't|cannot|unable to|failed to) allocate|not enough memory|alloc_failed|bad.alloc"
    "|create a primitive"  # oneDNN's word for it
    "|failed to serialize proto"  # protobuf's
    "|failed to map segment",  # the loader's, for a compiled module
    re.IGNORECASE,
)
_TELL = ("onnxruntime", "google.protobuf")  # modules whose errors say so in words
# Words of errors that have neither a number nor a kind of their own.
_WORDED: dict[str, Row] = {
    # numpy's tofile, and torch's writer, where a write was cut short
    r"\d+ requested and \d+ written|PytorchStreamWriter failed|unexpected pos \d+": _FULL,
    "PytorchStreamReader": (DataError, "a file that PyTorch wrote cannot be read", _CHECK),
    "home directory": (PlatformError, "the home folder is not known", "set HOME, or SIMCLR_ENGINE_CACHE to a folder"),
    "can't start new thread": (PlatformError, "the system starts no more threads", "raise the limit: ulimit -u"),
    "CUDA (error|driver)|cuDNN error": (PlatformError, "the device failed", "run again, or use --device cpu"),
    "embedded null": (UsageError, "a path holds a zero byte", "correct the path"),
}
# Modules whose errors, and the ValueErrors they raise, are about their input.
_LIBRARIES: dict[str, tuple[type[EngineError], str]] = {
    "PIL pillow_heif": (DataError, "an image cannot be read"),
    "zipfile tarfile gzip zlib bz2 lzma _lzma zstandard compression": (DataError, "an archive cannot be read"),
    "onnx onnxruntime google.protobuf": (DataError, "an ONNX file cannot be used"),
    "safetensors safetensors_rust": (DataError, "a file of weights cannot be used"),
    "json tomllib csv _csv pickle _pickle struct binascii numpy.lib": (DataError, "a file cannot be understood"),
    "concurrent.futures multiprocessing subprocess": (PlatformError, "a process that was started has failed"),
    "sklearn": (DataError, "scikit-learn cannot compute this"),
    "sqlite3": (PlatformError, "a database cannot be used"),
}
_GENERAL: dict[type[Exception], str] = {
    UnicodeError: "a name or a text is not UTF-8",
    EOFError: "a file is cut short",
    RecursionError: "the input is nested too deeply",
}
CANNOT_IMPORT = "a package cannot be imported"
# Module → the name under which it is installed, where they differ.
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "nvidia": "nvidia-dali-cuda130"}
# Builtin errors that a library raises about its input. Others (TypeError, KeyError, …) are mistakes of ours.
_ABOUT_INPUT = (OSError, ValueError, RuntimeError, EOFError, ArithmeticError)


def engine_error(error: BaseException) -> EngineError | None:
    """The error as a user sees it; None for one that only a mistake of ours explains.

    The file is named as far as the error, or a frame that it passed, knows it.
    """
    if isinstance(error, EngineError):
        return error
    error = _why(error)
    text = cut(" ".join(str(error).split())) or type(error).__name__
    number, package = _number(error), "" if isinstance(error, ImportError) else broken_package(error)
    if is_out_of_memory(error):
        row: Row | None = _NO_MEMORY
    elif _broke(error):
        row = _BROKE
    elif package and not _is_fault(error):
        fix = f"install it again: pip install {DISTRIBUTIONS.get(package, package)}"
        row, text, number = (PlatformError, CANNOT_IMPORT, fix), f"{package}: {text}", None
    elif number:
        row, text = meaning(number), getattr(error, "strerror", None) or os.strerror(number)
    else:
        row = _kind(error, text)
    if row is None:
        return None
    kind, cause, fix = row
    place = "" if package or (row is _NO_MEMORY and not number) else _place(error)
    return kind(cause, saw=f"{place}: {text}" if place and place not in text else text, fix=fix)


def broken_package(error: BaseException) -> str:
    """The package that raised this while it was imported, the innermost of several; "" if none did."""
    found = broken_package(error.__cause__) if error.__cause__ is not None else ""
    if found:
        return found
    imported = (frame.f_globals for frame in _frames(error) if frame.f_code.co_name == "<module>")
    names = (str(module.get("__name__")).partition(".")[0] for module in imported)
    return next((name for name in names if name not in ("simclr_engine", "__main__")), "")


def raise_fault(error: BaseException) -> None:
    """Raises the error of a machine that failed, in a place that leaves out files which cannot be read.

    The file may be read the next time: what is kept without it would be wrong.
    """
    error = _why(error)
    if isinstance(error, PlatformError) or _is_fault(error):
        raise engine_error(error) or error from error


def meaning(number: int | None) -> Row:
    """Kind, cause and fix of an OSError of this number."""
    named = errno.errorcode.get(number or 0)
    known = (row for names, row in _SYSTEM.items() if named in names.split())
    return next(known, (PlatformError, "the system cannot do this", f"check the path, {_AGAIN}"))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. On the CPU, and in many libraries, this is an error like others."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    told = isinstance(error, RuntimeError | ImportError) or type(error).__module__.startswith(_TELL)
    return told and bool(_OUT_OF_MEMORY.search(str(error)))


def _why(error: BaseException) -> BaseException:
    """The failure of the machine that a library met, where its own error tells only that it failed."""
    runtime = isinstance(error, RuntimeError)
    if isinstance(error, EngineError) or not (runtime or type(error).__module__ != "builtins"):
        return error  # ours say what they mean; others of Python's own are mistakes
    follows = error.__cause__ or error.__context__
    if runtime and isinstance(follows, OSError) and follows.errno:
        return follows
    while follows is not None and not _is_fault(follows):
        follows = follows.__cause__ or follows.__context__
    return error if follows is None else follows


def _is_fault(error: BaseException) -> bool:
    """Whether the machine failed; another try may not meet it."""
    named = errno.errorcode.get(error.errno or 0) if isinstance(error, OSError) else None
    return named in _FAULTS or is_out_of_memory(error) or _broke(error)


def _broke(error: BaseException) -> bool:
    """Whether a module in C, or one in Rust, met what it had not checked."""
    return isinstance(error, SystemError) or type(error).__name__ == "PanicException"


def _number(error: BaseException) -> int | None:
    """The number of the system's error, which libraries in other languages put into their words."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)|system error number (\d+)", str(error))
    return int(found[1] or found[2]) if found else None


def _kind(error: BaseException, text: str) -> Row | None:
    if isinstance(error, OSError | RuntimeError | ValueError):
        for words, row in _WORDED.items():
            if re.search(words, text):
                return row
    modules = [type(error).__module__]
    if isinstance(error, _ABOUT_INPUT):
        modules += [str(frame.f_globals.get("__name__")) for frame in _frames(error)[:1]]
    for names, (kind, cause) in _LIBRARIES.items():
        if any(f"{module}.".startswith(f"{name}.") for name in names.split() for module in modules):
            return kind, cause, _CHECK
    for general, cause in _GENERAL.items():
        if isinstance(error, general):
            return DataError, cause, _CHECK
    return meaning(None) if isinstance(error, OSError) else None


def _place(error: BaseException) -> str:
    """The file that an error is about: the one it names, else the innermost file or path on its way; "" for none."""
    named = [getattr(error, name, None) for name in ("filename", "filename2")]
    if paths := [os.fsdecode(name) for name in named if isinstance(name, str | bytes | os.PathLike)]:
        return " → ".join(paths)
    for value in (value for frame in _frames(error) for value in frame.f_locals.values()):
        name = getattr(value, "name", None) if hasattr(type(value), "writelines") else value
        if isinstance(value, Path) or (isinstance(name, str) and name is not value):
            return str(value if isinstance(value, Path) else name)
    return ""


def _frames(error: BaseException) -> list[FrameType]:
    """The frames that the error passed, the one that raised it first."""
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)][::-1]
