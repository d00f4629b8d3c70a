"""What an error of the system or of a library means to a user: cause, value seen, fix and exit code.

The command line passes every error through `engine_error`. Errors are told by their number, by the module that raised
them or by their words, so that no library is imported for it.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from .errors import DataError, EngineError, PlatformError, UsageError, cut

_FREE = "free space, or choose another path"
_MEMORY = "there is not enough memory"
_LESS = "end other programs, or use fewer or smaller images"
_CHECK = "check the file, or make it again"
# Numbers of OSError → kind, cause, fix. Others are faults of the machine.
_SYSTEM: tuple[tuple[tuple[int, ...], type[EngineError], str, str], ...] = (
    ((errno.ENOSPC, errno.EDQUOT), PlatformError, "the disk is full", _FREE),
    ((errno.EFBIG,), PlatformError, "a file would be larger than the system allows", "raise the limit: ulimit -f"),
    (
        (errno.EACCES, errno.EPERM, errno.EROFS),
        PlatformError,
        "there is no permission",
        "correct the permissions, or choose another path",
    ),
    ((errno.EMFILE, errno.ENFILE), PlatformError, "too many files are open", "raise the limit: ulimit -n 4096"),
    ((errno.ENOMEM,), PlatformError, _MEMORY, _LESS),
    ((errno.EIO,), PlatformError, "the disk or its connection failed", "check the disk, then run the command again"),
    (
        (errno.ECONNREFUSED, errno.ECONNRESET, errno.ETIMEDOUT, errno.ENETUNREACH, errno.EHOSTUNREACH),
        PlatformError,
        "the network does not answer",
        "check the connection, then run the command again",
    ),
    ((errno.ENAMETOOLONG,), DataError, "a name is too long for the file system", "use a shorter name"),
    ((errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP), DataError, "a file cannot be opened", "check the path"),
)
_FAULTS = (errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.ESTALE)
_OUT_OF_MEMORY = (
    *("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "alloc_failed"),
    *("bad_alloc", "bad allocation", "failed to allocate memory", "unable to allocate", "create a primitive"),
)
# Words of errors that have neither a number nor a kind of their own.
_WORDED: tuple[tuple[str, type[EngineError], str, str], ...] = (
    # numpy's tofile, and torch's writer, where a write was cut short
    (r"\d+ requested and \d+ written|PytorchStreamWriter failed|unexpected pos \d+", *_SYSTEM[0][1:]),
    ("PytorchStreamReader", DataError, "a file that PyTorch wrote cannot be read", _CHECK),
    ("home directory", PlatformError, "the home folder is not known", "set HOME, or SIMCLR_ENGINE_CACHE to a folder"),
    ("can't start new thread", PlatformError, "the system starts no more threads", "raise the limit: ulimit -u"),
    ("CUDA (error|driver)|cuDNN error", PlatformError, "the device failed", "run again, or use --device cpu"),
    ("embedded null", UsageError, "a path holds a zero byte", "correct the path"),
)
# Modules → what their errors say of the input; the longest prefix counts.
_IMAGE, _ARCHIVE, _ONNX = "an image cannot be read", "an archive cannot be read", "an ONNX file cannot be used"
_TEXT, _WORKER = "a file cannot be understood", "a process that was started has failed"
_LIBRARIES: dict[str, tuple[type[EngineError], str]] = {
    **dict.fromkeys(("PIL", "pillow_heif"), (DataError, _IMAGE)),
    **dict.fromkeys(("zipfile", "tarfile", "gzip", "zlib", "bz2", "lzma", "_lzma"), (DataError, _ARCHIVE)),
    **dict.fromkeys(("zstandard", "backports.zstd", "compression"), (DataError, _ARCHIVE)),
    **dict.fromkeys(("onnx", "onnxruntime", "google.protobuf"), (DataError, _ONNX)),
    **dict.fromkeys(("safetensors", "safetensors_rust"), (DataError, "a file of weights cannot be used")),
    **dict.fromkeys(("json", "tomllib", "csv", "_csv", "pickle", "_pickle", "struct"), (DataError, _TEXT)),
    **dict.fromkeys(("numpy.lib", "numpy.linalg", "binascii"), (DataError, _TEXT)),
    **dict.fromkeys(("concurrent.futures", "multiprocessing", "subprocess"), (PlatformError, _WORKER)),
    "sklearn": (DataError, "scikit-learn cannot compute this"),
    "sqlite3": (PlatformError, "a database cannot be used"),
}
_GENERAL: tuple[tuple[type[Exception], str], ...] = (
    (UnicodeError, "a name or a text is not UTF-8"),
    (EOFError, "a file is cut short"),
    (RecursionError, "the input is nested too deeply"),
)
# Builtin errors that a library raises about its input. Others (TypeError, KeyError, …) are mistakes of ours.
_ABOUT_INPUT = (OSError, ValueError, RuntimeError, EOFError, ArithmeticError)


def engine_error(error: BaseException) -> EngineError | None:
    """The error as a user sees it; None for one that only a mistake of ours explains.

    The file is named as far as the error, or a frame that it passed, knows it.
    """
    if isinstance(error, EngineError):
        return error
    if isinstance(error, RuntimeError) and isinstance(error.__context__, MemoryError | OSError):
        error = error.__context__  # a library tells that it failed, and this is why
    text = cut(" ".join(str(error).split())) or type(error).__name__
    if is_out_of_memory(error):
        return PlatformError(_MEMORY, saw=text, fix=_LESS)
    if number := _number(error):
        kind, cause, fix = meaning(number)
        text = getattr(error, "strerror", None) or os.strerror(number)
    elif not (found := _kind(error, text)):
        return None
    else:
        kind, cause, fix = found
    place = _place(error)
    return kind(cause, saw=f"{place}: {text}" if place and place not in text else text, fix=fix)


def raise_fault(error: BaseException) -> None:
    """Raises the error of a machine that failed, in a place that leaves out files which cannot be read.

    The file may be read the next time: without it, the result would be another one and would not say why.
    """
    if isinstance(error, PlatformError):
        raise error
    if is_out_of_memory(error) or getattr(error, "errno", None) in _FAULTS:
        ours = engine_error(error)
        assert ours is not None
        raise ours from error


def meaning(number: int | None) -> tuple[type[EngineError], str, str]:
    """Kind, cause and fix of an OSError of this number."""
    known = (row[1:] for row in _SYSTEM if number in row[0])
    return next(known, (PlatformError, "the system cannot do this", "check the path, then run the command again"))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. On the CPU, and in cuBLAS and onnxruntime, this is an error like others."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    told = isinstance(error, RuntimeError) or type(error).__module__.startswith("onnxruntime")
    return told and any(said in str(error).lower() for said in _OUT_OF_MEMORY)


def _number(error: BaseException) -> int | None:
    """The number of the system's error, which libraries in other languages put into their words."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)|system error number (\d+)", str(error))
    return int(found[1] or found[2]) if found else None


def _kind(error: BaseException, text: str) -> tuple[type[EngineError], str, str] | None:
    if isinstance(error, OSError | RuntimeError | ValueError):
        for words, kind, cause, fix in _WORDED:
            if re.search(words, text):
                return kind, cause, fix
    modules = [type(error).__module__]
    if isinstance(error, _ABOUT_INPUT):
        modules += [str(frame.f_globals.get("__name__")) for frame in list(_frames(error))[:1]]
    for module in modules:
        while module:
            if row := _LIBRARIES.get(module):
                return *row, _CHECK
            module = module.rpartition(".")[0]
    for general, says in _GENERAL:
        if isinstance(error, general):
            return DataError, says, _CHECK
    return meaning(None) if isinstance(error, OSError) else None


def _frames(error: BaseException) -> Iterator[FrameType]:
    """The frames that the error passed, the one that raised it first."""
    frames, trace = list[FrameType](), error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    yield from reversed(frames)


def _place(error: BaseException) -> str:
    """The file that an error is about: the one it names, else the innermost file or path on its way; "" for none."""
    named = [getattr(error, "filename", None), getattr(error, "filename2", None)]
    if paths := [os.fsdecode(name) for name in named if isinstance(name, str | bytes | os.PathLike)]:
        return " → ".join(paths)
    for frame in _frames(error):
        for value in frame.f_locals.values():
            name = value if isinstance(value, Path) else getattr(value, "name", None) if _is_file(value) else None
            if isinstance(name, str | Path):
                return str(name)
    return ""


def _is_file(value: object) -> bool:
    return hasattr(type(value), "readinto") or hasattr(type(value), "writelines")
