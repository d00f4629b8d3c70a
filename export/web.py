"""export_web: writes a folder of static files, a page that runs the model in the browser, without a server behind it.

The folder holds the page itself (`export/page/`), the model, its description, onnxruntime-web, copied from the npm
package that the user installed, and the checksums of all of them. Any static web server can serve it, below any path;
it contacts no other machine.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simclr_engine.data.sources import Selection
from simclr_engine.documents import to_json
from simclr_engine.errors import CheckFailed, DataError, PlatformError, UsageError
from simclr_engine.files import named_path
from simclr_engine.locks import held_folder, sweep
from simclr_engine.outputs import occupied
from simclr_engine.run import Run

from .description import description_text
from .graph import OPSET
from .metadata import ModelFile, read_model
from .probe import is_limited, saved_probes
from .publishing import disk_errors, write
from .writer import ExportResult, export_onnx

PAGE = Path(__file__).with_name("page")
DESCRIPTION, CHECKSUMS = "encoder.json", "checksums.json"
NPM = "onnxruntime-web"
# Names in the package → names in the page: the build with WebAssembly alone, its loader inside. Not every web server
# sends .mjs as JavaScript, and a browser runs nothing else as a module.
RUNTIME = {
    "ort.wasm.bundle.min.mjs": "runtime/ort.wasm.bundle.min.js",
    "ort-wasm-simd-threaded.wasm": "runtime/ort-wasm-simd-threaded.wasm",
}
WHERE = Path("node_modules") / NPM  # where `npm install onnxruntime-web` leaves the package


@dataclass(frozen=True)
class WebPage:
    """What was written.

    Attributes:
        folder: of the page.
        exported: the model in it, as `export_onnx` reports it.
        runtime: version of onnxruntime-web, "" where the package does not say.
        page_bytes, model_bytes, runtime_bytes: sizes; the description counts as page.
        note: why the model is fp32 although int8 is the default; "" if it is not.
    """

    folder: Path
    exported: ExportResult
    runtime: str
    page_bytes: int
    model_bytes: int
    runtime_bytes: int
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {
            "folder": str(self.folder),
            "bytes": {"page": self.page_bytes, "model": self.model_bytes, "runtime": self.runtime_bytes},
            "runtime": f"{NPM} {self.runtime}".strip(),
            **({"note": self.note} if self.note else {}),
            "model": self.exported.to_json() | {"description": str(self.folder / DESCRIPTION)},
        }


def export_web(
    run: str | Path | Run,
    folder: str | Path,
    runtime: str | Path | None = None,
    *,
    opset: int = OPSET,
    probe: bool | str | None = None,
    int8: bool | None = None,
    data: str | Path | Selection | None = None,
) -> WebPage:
    """Writes a page that runs the run's encoder in the browser: all of the folder, or nothing.

    With a probe the page names classes; without one it compares pictures with one another. The model passes the gates
    of `export_onnx`. The run's `export.json` is left as it is.

    Args:
        run: a run or its directory.
        folder: to be made; an earlier page is replaced if nobody changed it, and so is an empty folder.
        runtime: folder of the npm package onnxruntime-web, or one that holds it; None for
            `node_modules/onnxruntime-web`.
        opset, data: as `export_onnx` takes them.
        probe: True for the newest linear probe on all images, the ID of one, False for none; None for the newest where
            the run has one.
        int8: whether the model is int8 or fp32; None for int8 where its gates pass, and a note where they do not.

    Raises:
        UsageError: the folder is taken by something else, or the run has no such probe.
        PlatformError: the package is not there, no permission or no space.
        DataError, CheckFailed: as `export_onnx`.
    """
    folder = check_folder(folder)
    files = read_runtime(WHERE if runtime is None else named_path(runtime, "--runtime"))
    run = run if isinstance(run, Run) else Run.open(run)
    probe = any(not is_limited(name) for name, _ in saved_probes(run.directory)) if probe is None else probe
    with _prepared(folder) as room:
        exported, model, note = _exported(run, room / MODEL, int8, opset=opset, probe=probe, data=data)
        written = write_page(room / PARTIAL, model, files)
    size = {name: len(content) for name, content in written.items()}
    of_runtime = sum(size[name] for name in files)
    of_model = size[model.path.name]
    return WebPage(
        folder=folder,
        exported=replace(exported, file=folder / model.path.name, variants=()),
        runtime=runtime_version(files),
        page_bytes=sum(size.values()) - of_model - of_runtime,
        model_bytes=of_model,
        runtime_bytes=of_runtime,
        note=note,
    )


def _exported(run: Run, folder: Path, int8: bool | None, **options: Any) -> tuple[ExportResult, ModelFile, str]:
    """The model's result and bytes; the note says why it is not int8 where nothing was asked for and int8 failed."""
    file, note = folder / "encoder.onnx", ""
    if int8 is not False:
        try:
            result = export_onnx(run, file, precision="int8", recorded=False, **options)
        except (CheckFailed, DataError) as error:
            if int8:
                raise
            note = f"the page holds the fp32 model: {error.cause} (saw {error.saw})"
        else:
            return result.variants[0], read_model(result.variants[0].file), ""
    result = export_onnx(run, file, recorded=False, **options)
    return result, read_model(result.file), note


def write_page(folder: Path, model: ModelFile, runtime: Mapping[str, bytes]) -> dict[str, bytes]:
    """Writes a page into an existing folder.

    Args:
        folder: empty.
        model: as `read_model` gives it.
        runtime: as `read_runtime` gives it.

    Returns:
        The files by their names in the folder.

    Raises:
        PlatformError: they cannot be written.
    """
    files = {path.name: path.read_bytes() for path in sorted(PAGE.iterdir()) if path.is_file()}
    files |= {model.path.name: model.data, DESCRIPTION: description_text(model), **runtime}
    files[CHECKSUMS] = to_json({name: _checksum(content) for name, content in files.items()}, indent=2).encode()
    with disk_errors(folder):
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            write(folder / name, content)
    return files


def read_runtime(folder: Path) -> dict[str, bytes]:
    """The files of onnxruntime-web that one thread of WebAssembly needs, by their names in the page.

    Args:
        folder: the npm package, its `dist`, or a folder that holds the package or `node_modules`.

    Raises:
        PlatformError: a file is not there or cannot be read.
    """
    places = [folder / below for below in ("dist", "", f"{NPM}/dist", f"node_modules/{NPM}/dist")]
    missing = {place: [name for name in RUNTIME if not (place / name).is_file()] for place in places}
    best = min(places, key=lambda place: len(missing[place]))
    if missing[best]:
        some = len(missing[best]) < len(RUNTIME)
        raise PlatformError(
            f"the folder has not all of {NPM}" if some else f"{NPM} is not in the folder",
            saw=f"{folder}: no {' and no '.join(missing[best])}",
            fix=f"npm install {NPM}, then: --runtime {WHERE}",
        )
    try:
        return {to: (best / name).read_bytes() for name, to in RUNTIME.items()}
    except OSError as error:
        raise PlatformError(
            f"{NPM} cannot be read", saw=f"{best}: {error.strerror or error}", fix="check its permissions"
        ) from error


def runtime_version(runtime: Mapping[str, bytes]) -> str:
    """The version that stands at the beginning of the package's code, "" where there is none."""
    code = runtime[RUNTIME["ort.wasm.bundle.min.mjs"]]
    found = re.search(rb"ONNX Runtime Web v([\w.+-]+)", code[:1000])
    return found[1].decode() if found else ""


def check_folder(given: str | Path) -> Path:
    """Checks that the folder can be made, or is empty, or holds a page as it was written and nothing else.

    Raises:
        UsageError: it is a file, a link or the working directory, or it holds something else, which would be lost.
    """
    folder = named_path(given, "DIR")
    if Path.cwd().is_relative_to(folder.resolve()):
        raise UsageError("the page would replace the working directory", saw=folder, fix="name a new folder: page/")
    if folder.is_symlink() or not folder.is_dir():
        if occupied(folder):
            raise UsageError("the page is a folder, and a file has its name", saw=folder, fix="choose another name")
        return folder
    with disk_errors(folder, "the page"):
        kept = _checksums(folder)
        kept[CHECKSUMS] = _checksum((folder / CHECKSUMS).read_bytes()) if kept else ""
        strange = [name for name in _names(folder) if not _is_as_written(folder / name, kept.get(name))]
    if strange:
        raise UsageError(
            "the folder holds what `export --web` did not write, or what was changed since, and it would be lost",
            saw=f"{folder}: {', '.join(strange[:3])}",
            fix="choose another name, or move them away",
        )
    return folder


def _names(folder: Path) -> list[str]:
    """What is in the folder and below, but for folders that hold something."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir() or not any(path.iterdir())
    )


def _checksums(folder: Path) -> dict[str, str]:
    """The checksums by name that lie in a page, empty where there are none."""
    try:
        found = json.loads((folder / CHECKSUMS).read_bytes())
    except (FileNotFoundError, IsADirectoryError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_as_written(path: Path, checksum: str | None) -> bool:
    return path.is_file() and not path.is_symlink() and _checksum(path.read_bytes()) == checksum


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# In the room beside a page while it is being made: the model, the page, and the page before where names cannot be
# exchanged. The last is the user's, so `sweep` leaves it.
MODEL, PARTIAL, BEFORE = "model", "partial", "before"


@contextmanager
def _prepared(folder: Path) -> Iterator[Path]:
    """A room beside `folder` with folders for model and page; the page takes the name of `folder` at the end. If that
    fails, what was there stays. What killed exports left of theirs goes first."""
    prefix = f".{folder.name[:50]}.partial-"
    sweep(folder.parent, prefix, re.compile(f"{MODEL}|{PARTIAL}"))
    with ExitStack() as stack:
        with disk_errors(folder, "the page"):
            room = stack.enter_context(held_folder(folder.parent, prefix))
            (room / MODEL).mkdir()
            (room / PARTIAL).mkdir()
        yield room
        with disk_errors(folder, "the page"):
            _exchange(room / PARTIAL, check_folder(folder), room / BEFORE)


def _exchange(partial: Path, folder: Path, before: Path) -> None:
    """Gives `partial` the name `folder`. A folder that is there takes the name of `partial`, at once where the system
    can exchange two names (Linux); elsewhere it stands aside for a moment."""
    if not folder.is_dir():
        partial.rename(folder)
    elif not _names_exchanged(partial, folder):
        folder.rename(before)
        try:
            partial.rename(folder)
        except BaseException:
            before.rename(folder)
            raise


def _names_exchanged(one: Path, other: Path) -> bool:
    """Whether two paths have exchanged their names; False where the system or the file system cannot."""
    exchange = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    if exchange is None:
        return False
    here, flag = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    return exchange(here, os.fsencode(one), here, os.fsencode(other), flag) == 0
