"""export_web: writes a folder of static files, a page that runs the model in the browser, without a server behind it.

The folder holds the page itself (`export/page/`), the model, its description and onnxruntime-web, copied from the npm
package that the user installed. Any static web server can serve it, below any path; it contacts no other machine.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simclr_engine.data.sources import Selection
from simclr_engine.errors import CheckFailed, DataError, PlatformError, UsageError
from simclr_engine.files import named_path, occupied
from simclr_engine.locks import held_folder
from simclr_engine.run import Run

from .description import description_text
from .graph import OPSET
from .metadata import ModelFile, read_model
from .probe import is_limited, saved_probes
from .publishing import disk_errors, write
from .writer import ExportResult, export_onnx

PAGE = Path(__file__).with_name("page")
INDEX, DESCRIPTION = "index.html", "encoder.json"
GENERATOR = b'<meta name="generator" content="simclr-engine export --web">'  # stands in INDEX: how a page is recognised
NPM = "onnxruntime-web"
# Names in the package → names in the page: the build with WebAssembly alone, its loader inside. Not every web server
# sends .mjs as JavaScript, and a browser runs nothing else as a module.
RUNTIME = {
    "ort.wasm.bundle.min.mjs": "runtime/ort.wasm.bundle.min.js",
    "ort-wasm-simd-threaded.wasm": "runtime/ort-wasm-simd-threaded.wasm",
}
MODELS = ("encoder.onnx", "encoder.int8.onnx")
OURS = {*MODELS, DESCRIPTION, "runtime", *RUNTIME.values(), *(path.name for path in PAGE.iterdir())}
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
        folder: to be made; an earlier page is replaced, and so is an empty folder.
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
    with _prepared(folder) as partial:
        exported, model, note = _exported(run, int8, opset=opset, probe=probe, data=data)
        written = write_page(partial, model, files)
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


def _exported(run: Run, int8: bool | None, **options: Any) -> tuple[ExportResult, ModelFile, str]:
    """The model's result and bytes; the note says why it is not int8 where nothing was asked for and int8 failed."""
    note = ""
    with tempfile.TemporaryDirectory(prefix="simclr-engine-") as made:
        file = Path(made) / "encoder.onnx"
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
    """Checks that the folder can be made, or is empty, or holds a page of ours and nothing else.

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
        found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
        is_page = (folder / INDEX).is_file() and GENERATOR in (folder / INDEX).read_bytes()
    strange = [name for name in found if not is_page or name not in OURS]
    if strange:
        raise UsageError(
            f"the folder holds files that `export --web` did not write{', and would be replaced' * is_page}",
            saw=f"{folder}: {', '.join(strange[:3])}",
            fix="choose another name, or move them away",
        )
    return folder


@contextmanager
def _prepared(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, which takes its name at the end; if that fails, what was there stays."""
    with ExitStack() as stack:
        with disk_errors(folder, "the page"):
            room = stack.enter_context(held_folder(folder.parent, f".{folder.name[:50]}.partial-"))
            (partial := room / "partial").mkdir()
        yield partial
        with disk_errors(folder, "the page"):
            _exchange(partial, check_folder(folder), room / "before")


def _exchange(partial: Path, folder: Path, before: Path) -> None:
    """Renames `partial` to `folder`. A full folder cannot be replaced in one step: it stands aside for a moment."""
    replaced = folder.is_dir()
    if replaced:
        folder.rename(before)
    try:
        partial.rename(folder)
    except BaseException:
        if replaced:
            before.rename(folder)
        raise
