"""An exported file in programs that nobody here wrote, beside our own runtime: features and labels of the same images.

A client that is not installed is a row that says so, and one that fails is a row with its first line of error.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import packages_distributions, version
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simclr_engine.data import load_data
from simclr_engine.errors import CheckFailed, DataError
from simclr_engine.export.metadata import LIMIT
from simclr_engine.export.runtime import INPUT, LABEL, OUTPUT, OnnxEncoder
from simclr_engine.export.samples import even_rows
from simclr_engine.torchvision_shim import import_torchvision

from .rows import Row, first_line, missing_row, single_row

Outputs = Mapping[str, NDArray[Any]]
Run = Callable[[NDArray[np.uint8]], Outputs]
UNIT = "largest difference of a feature"
NODE_SECONDS = 300
AS_IT_COMES = "OpenVINO as it comes"

# CommonJS, since only its `require` looks into NODE_PATH.
NODE_SCRIPT = """
const fs = require("fs"), [library, file, input, shape, outputs, result] = process.argv.slice(1);
const ort = require(library);
(async () => {
  const session = await ort.InferenceSession.create(new Uint8Array(fs.readFileSync(file))), found = {};
  const images = new ort.Tensor("uint8", new Uint8Array(fs.readFileSync(input)), JSON.parse(shape));
  const given = await session.run({ [session.inputNames[0]]: images });
  for (const name of JSON.parse(outputs)) found[name] = Array.from(given[name].data, Number);
  fs.writeFileSync(result, JSON.stringify(found));
})().catch((error) => { console.error(String(error.message ?? error)); process.exit(1); });
"""


class Unavailable(Exception):
    """A client cannot run here; the message says why."""


@dataclass(frozen=True)
class Client:
    """A program that reads ONNX files.

    Attributes:
        name: what is shown.
        open: a file and the names of its outputs → a call from uint8 `[N, S, S, 3]` to these outputs.
        version: its version; raises `Unavailable` where it is not installed.
        most: images that it gets; fewer for one that takes seconds for each.
    """

    name: str
    open: Callable[[Path, Sequence[str]], Run]
    version: Callable[[], str]
    most: int = 1000


def clients(node_modules: Path | None = None) -> tuple[Client, ...]:
    """Every client that this module knows; those of npm are looked for in `node_modules`, else where Node looks."""

    def node(package: str) -> Client:
        opener = partial(_node, package, node_modules)
        return Client(package, opener, partial(_npm_version, package, node_modules))

    openvino = partial(_pip_version, "openvino", "openvino")
    return (
        Client("simclr-engine", _ours, partial(version, "simclr-engine")),
        node("onnxruntime-node"),
        node("onnxruntime-web"),
        Client("OpenVINO, f32", partial(_openvino, "f32"), openvino),
        Client(AS_IT_COMES, partial(_openvino, None), openvino),
        Client("OpenCV DNN", _opencv, partial(_pip_version, "cv2", "opencv-python-headless")),
        Client("tract", _tract, partial(_pip_version, "tract", "tract")),
        Client("onnx reference", _reference, partial(_pip_version, "onnx", "onnx"), most=8),
        Client("onnx2torch", _onnx2torch, partial(_pip_version, "onnx2torch", "onnx2torch")),
    )


def rows(files: Sequence[Path], data: str = "glyphs", images: int = 100, node_modules: Path | None = None) -> list[Row]:
    """A row for each client and file.

    Args:
        files: exported files, at most one of each precision, fp32 first.
        data: labelled or not, as `load_data` takes it; its test split, else its only one.
        images: how many of them.
        node_modules: a folder with packages of npm, and its name.

    Returns:
        Rows named by precision, with the largest difference of a feature to our runtime on the same file, `images`,
        `client_version` where it is installed, and where it ran `label_agreement`, and of a smaller file
        `fp32_agreement` with our labels for the fp32 file (None where the files have no probe).

    Raises:
        DataError: a file that `OnnxEncoder` refuses.
    """
    found: list[Row] = []
    fp32: NDArray[np.int64] | None = None
    for file in files:
        encoder = OnnxEncoder(file)
        pixels = _images(encoder, data, images)
        expected = our_outputs(encoder, pixels)
        if encoder.metadata.precision == "fp32":
            fp32 = expected.get(LABEL)
        found += [compare(client, encoder, pixels, expected, fp32) for client in clients(node_modules)]
    return found


def our_outputs(encoder: OnnxEncoder, images: NDArray[np.uint8]) -> Outputs:
    """Features of uint8 `[N, S, S, 3]`, and labels where the file has its probe."""
    features = encoder.embed(images)
    return {OUTPUT: features, LABEL: encoder.predict(images)[1]} if encoder.has_probe else {OUTPUT: features}


def _images(encoder: OnnxEncoder, data: str, count: int) -> NDArray[np.uint8]:
    """Some of the data's test images, evenly spread; of its only split where it has no other."""
    try:
        store = load_data(data, "test", encoder.image_size, levels=encoder.levels)
    except DataError:
        store = load_data(data, "train", encoder.image_size, levels=encoder.levels)
    return np.asarray(store.subset(even_rows(len(store), min(count, len(store)))).images)


def compare(
    client: Client,
    encoder: OnnxEncoder,
    images: NDArray[np.uint8],
    expected: Outputs,
    fp32: NDArray[np.int64] | None = None,
) -> Row:
    """The row of one client; `expected` is what we give for the images, `fp32` our labels for the fp32 file."""
    images, precision = images[: client.most], encoder.metadata.precision
    about: dict[str, Any] = {"images": len(images)}
    try:
        about["client_version"] = client.version()
        run = client.open(encoder.path, [*expected])
        parts = [run(some) for some in (images[:1], images[1:]) if len(some)]  # one and several: the batch is dynamic
        given = {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in expected}
        about["label_agreement"] = _same_labels(expected.get(LABEL), given)
        if precision != "fp32":
            about["fp32_agreement"] = _same_labels(fp32, given)
        return single_row(precision, client.name, _difference(expected, given), UNIT, **about)
    except Unavailable as reason:
        return missing_row(precision, client.name, UNIT, str(reason)) | about
    except Exception as error:  # of libraries of other makers: any kind
        return missing_row(precision, client.name, UNIT, first_line(error)[:200]) | about


def _difference(expected: Outputs, given: Outputs) -> float:
    """The largest difference of a feature.

    Raises:
        DataError: features of another shape, or not finite.
    """
    features = given[OUTPUT]
    reference = expected[OUTPUT][: len(features)]
    if features.shape != reference.shape or not np.isfinite(features).all():
        raise DataError("the features are not finite or not of the right shape", saw=list(features.shape))
    return float(np.abs(features.astype(np.float64) - reference).max())


def _same_labels(expected: NDArray[np.int64] | None, given: Outputs) -> float | None:
    if expected is None or LABEL not in given:
        return None
    labels = given[LABEL].ravel().astype(np.int64)
    return float((labels == expected[: len(labels)]).mean())


def check(measured: Sequence[Row]) -> None:
    """Holds the clients that are installed: fp32 gives our features to `LIMIT` and our labels; int8 runs in those that
    know its operators. OpenVINO as it comes may compute in bf16 and must only run.

    Raises:
        CheckFailed: names those that do not.
    """
    missed = [f"{row['contender']}, {row['name']}: {cell(row)}" for row in measured if not _holds(row)]
    if missed:
        raise CheckFailed(
            "a client does not give what the file gives here",
            saw="; ".join(missed),
            fix="compare with another version of it, then report it with the line above",
        )


def _holds(row: Row) -> bool:
    if row["median"] is None:
        unknown = row["name"] == "int8" and row["note"].startswith(NotImplementedError.__name__)
        return "client_version" not in row or unknown
    exact = row["name"] == "fp32" and row["contender"] != AS_IT_COMES
    return not exact or (row["median"] <= LIMIT and row["label_agreement"] in (1, None))


def markdown(measured: Sequence[Row]) -> str:
    """The rows as a Markdown table, a line for each client and a column for each precision."""
    formats, most = list(dict.fromkeys(row["name"] for row in measured)), max(row["images"] for row in measured)
    lines = [f"| client | version | {' | '.join(formats)} |", "|---|---|" + "---|" * len(formats)]
    for name in dict.fromkeys(row["contender"] for row in measured):
        of_client = {row["name"]: row for row in measured if row["contender"] == name}
        images = min(row["images"] for row in of_client.values())
        shown = name if images == most else f"{name} ({images} images)"
        versions = [row["client_version"] for row in of_client.values() if "client_version" in row]
        cells = [cell(of_client[each]) if each in of_client else "" for each in formats]
        lines.append(f"| {shown} | {versions[0] if versions else '–'} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(row: Row) -> str:
    """Difference and labels of one row in words."""
    if row["median"] is None:
        return str(row["note"]).partition("(")[0].strip()
    labels, fp32 = row["label_agreement"], row.get("fp32_agreement")
    words = f"{row['median']:.1e}" + ("" if labels is None else f", {labels:.0%} of labels")
    return words + ("" if fp32 is None else f"; {fp32:.0%} of fp32's")


def _ours(file: Path, _: Sequence[str]) -> Run:
    return partial(our_outputs, OnnxEncoder(file))


def _pip_version(module: str, package: str) -> str:
    """The version of what gives `module`: cv2 comes in several packages."""
    installed = packages_distributions().get(module)
    if not installed:
        raise Unavailable(f"not installed: pip install {package}")
    return version(installed[0])


def _openvino(hint: str | None, file: Path, outputs: Sequence[str]) -> Run:
    import openvino

    settings = {} if hint is None else {"INFERENCE_PRECISION_HINT": hint}
    request = openvino.Core().compile_model(str(file), "CPU", settings).create_infer_request()

    def run(images: NDArray[np.uint8]) -> Outputs:
        found = request.infer({INPUT: images})
        return {name: np.array(found[name]) for name in outputs}

    return run


def _opencv(file: Path, _: Sequence[str]) -> Run:
    import cv2

    net = cv2.dnn.readNetFromONNX(str(file))

    def run(images: NDArray[np.uint8]) -> Outputs:
        net.setInput(images, INPUT)
        names = net.getUnconnectedOutLayersNames()  # OpenCV 5 gives all of them or one
        return dict(zip(names, net.forward(names), strict=True))

    return run


def _tract(file: Path, _: Sequence[str]) -> Run:
    import onnx
    import tract

    names = [output.name for output in onnx.load(file).graph.output]  # it gives all of them, by names of its own
    model = tract.onnx().load(file).into_model().into_runnable()

    def run(images: NDArray[np.uint8]) -> Outputs:
        return {name: value.to_numpy() for name, value in zip(names, model.run([images]), strict=True)}

    return run


def _reference(file: Path, outputs: Sequence[str]) -> Run:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(file))
    return lambda images: dict(zip(outputs, evaluator.run(list(outputs), {INPUT: images}), strict=True))


def _onnx2torch(file: Path, outputs: Sequence[str]) -> Run:
    import_torchvision()  # which onnx2torch imports
    import onnx
    import onnx2torch
    import torch

    model = onnx.load(file)
    names = [output.name for output in model.graph.output]  # it gives all of them
    module = onnx2torch.convert(model).eval()

    def run(images: NDArray[np.uint8]) -> Outputs:
        with torch.no_grad():
            found = module(torch.from_numpy(images))
        found = found if isinstance(found, list | tuple) else [found]
        return {name: value.numpy() for name, value in zip(names, found, strict=True) if name in outputs}

    return run


def _node_environment(node_modules: Path | None) -> dict[str, str]:
    # From 1.29 on onnxruntime reports to its makers.
    more = {"NODE_PATH": str(node_modules.resolve())} if node_modules is not None else {}
    return {**os.environ, "ORT_DISABLE_TELEMETRY": "1", **more}


def npm_folder(package: str, node_modules: Path | None = None) -> Path:
    """Where Node finds a package.

    Raises:
        Unavailable: there is no Node, or it does not find it.
    """
    node = which("node")
    if node is None:
        raise Unavailable("there is no Node")
    command = [node, "-p", "require.resolve(process.argv[1])", package]
    done = subprocess.run(command, env=_node_environment(node_modules), capture_output=True, text=True)
    above = [path for path in Path(done.stdout.strip()).parents if path.parent.name == "node_modules"]
    if done.returncode != 0 or not above:
        raise Unavailable(f"not found: npm install {package}, then --node node_modules")
    return above[0]


def _npm_version(package: str, node_modules: Path | None) -> str:
    return str(json.loads((npm_folder(package, node_modules) / "package.json").read_text("utf-8"))["version"])


def _node(package: str, node_modules: Path | None, file: Path, outputs: Sequence[str]) -> Run:
    """A file in a process of Node for each batch."""

    def run(images: NDArray[np.uint8]) -> Outputs:
        with tempfile.TemporaryDirectory(prefix="simclr-engine-") as folder:
            pixels, result = Path(folder) / "images.bin", Path(folder) / "outputs.json"
            pixels.write_bytes(images.tobytes())
            shape, names = json.dumps(list(images.shape)), json.dumps(list(outputs))
            command = ["node", "-e", NODE_SCRIPT, package, str(file), str(pixels), shape, names, str(result)]
            environment = _node_environment(node_modules)
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=NODE_SECONDS)
            if done.returncode != 0:
                raise DataError((done.stderr.strip() or "Node failed").splitlines()[-1])
            found = json.loads(result.read_text("utf-8"))
        return {name: np.array(found[name]).reshape(len(images), *([-1] if name == OUTPUT else [])) for name in outputs}

    return run
