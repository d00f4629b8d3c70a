"""Exported files beside PyTorch, on the CPU, from the same uint8 images.

Speed of every way to run the encoder, interleaved; memory and start-up in processes of their own; sizes; seconds that
an export takes. Without a run it measures a ResNet-18 with random weights, whose speed is that of a trained one.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from simclr_engine.bench.card import (
    CALLS,
    ONNX_SCRIPT,
    TORCH_SCRIPT,
    Fresh,
    device_name,
    fresh_process,
    onnx_embed,
    torch_eager,
    torch_threads,
)
from simclr_engine.bench.card import versions as card_versions
from simclr_engine.checkpoint import encoder_metadata, load_encoder, save_weights
from simclr_engine.errors import CheckFailed
from simclr_engine.export.graph import seal
from simclr_engine.export.metadata import read_metadata
from simclr_engine.export.precision import CALIBRATION_IMAGES, check_fused, has_vnni, quantize
from simclr_engine.export.runtime import INPUT, OUTPUT, available_threads, open_session
from simclr_engine.export.samples import natural_images
from simclr_engine.export.writer import export_onnx
from simclr_engine.model import build_encoder
from simclr_engine.recipe import Recipe
from simclr_engine.run import Run
from simclr_engine.timing import interleave, summarize

from .rows import Floor, Row, first_line, missing_row, rate_row, row, single_row

EAGER = "torch eager fp32 channels_last"
BF16, COMPILED = "torch eager bf16 channels_last", "torch.compile fp32 channels_last"
FP32, INT8 = "ours, ONNX Runtime fp32", "ours, ONNX Runtime int8"
BARE = "ONNX Runtime fp32, preprocessing outside"
OPENVINO = "OpenVINO fp32"
MEMORY, SIZE, START_UP, EXPORT, ACCURACY = "memory", "file size", "start-up", "export", "probe accuracy"

Embed = Callable[[NDArray[np.uint8]], object]


def speed(batch: int) -> str:
    """Name of the rows at a batch size."""
    return f"encoder, batch {batch}"


def floors(run: str | None = None) -> tuple[Floor, ...]:
    """What must hold on this machine; the accuracy of int8 only where a trained run is measured."""
    bounds = [
        Floor(speed(64), FP32, least=1.05, of=EAGER),
        Floor(speed(1), FP32, least=1.8, of=EAGER),
        Floor(speed(64), FP32, least=1 / 1.10, of=BARE),  # preprocessing costs at most a tenth of the time
        Floor(START_UP, FP32, most=0.6),
        Floor(EXPORT, FP32, most=5),
        Floor(EXPORT, INT8, most=20),
    ]
    if has_vnni():  # without it the products of int8 take the detour over 16 bits
        bounds.append(Floor(speed(64), INT8, least=3, of=FP32))
    if run is not None:
        bounds.append(Floor(ACCURACY, INT8, most=1, field="lost_points"))
    return tuple(bounds)


def about() -> dict[str, Any]:
    """Device and versions of these rows: files run on the CPU, whatever else the machine has."""
    versions = card_versions(with_torch=True)
    with suppress(ImportError):
        import openvino

        versions["openvino"] = str(openvino.__version__)
    return {"device": f"{device_name()}, {available_threads()} threads", "versions": versions}


def rows(
    repeats: int = 7,
    size: int = 32,
    batches: tuple[int, ...] = tuple(CALLS),
    compile: bool = True,
    processes: int = 3,
    run: str | None = None,
) -> list[Row]:
    """Images per second at each batch size, memory, start-up, size and export seconds of each contender.

    Args:
        repeats: timed calls per contender.
        size: side of the images, pixels; of a given run its own.
        batches: batch sizes.
        compile: measure torch.compile too, which takes about a minute to compile.
        processes: fresh processes per contender for memory and start-up.
        run: directory of a trained run; None makes one with random weights.
    """
    threads = available_threads()
    with tempfile.TemporaryDirectory(prefix="simclr-engine-") as folder, torch_threads(threads):
        source = Run.open(run) if run is not None else random_run(Path(folder) / "run", size)
        exported = _export(source, Path(folder) / "encoder.onnx", trained=run is not None)
        measured = _speed_rows(source, exported, repeats, batches, compile, threads)
        measured += _process_rows(source, exported, processes, threads)
        measured += _size_rows(source, exported)
        measured += _export_rows(exported)
        return measured + (_accuracy_rows(exported) if run is not None else [])


def random_run(directory: Path, size: int) -> Run:
    """A run directory with a ResNet-18 whose weights are random and whose batch norm has seen images."""
    directory.mkdir(parents=True)
    recipe = Recipe.load("cifar10-sgd")
    data = {"name": "noise", "split": "train", "fingerprint": "0" * 64, "images": 0, "limit": None}
    data |= {"image_size": size, "class_names": []}
    (directory / "recipe.toml").write_text(recipe.to_toml(), "utf-8")
    (directory / "environment.json").write_text(json.dumps({"finished": True, "data": data}), "utf-8")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        encoder = build_encoder(recipe.model.arch, recipe.model.stem).train()
        images = torch.from_numpy(natural_images(16, size, seed=1)).permute(0, 3, 1, 2).float() / 64 - 2
        for _ in range(2):
            encoder(images)
    save_weights(directory / "encoder.safetensors", encoder, encoder_metadata(recipe, size))
    return Run.open(directory)


@dataclass(frozen=True)
class _Exported:
    """The two files of a run and the seconds they took; where a gate failed there is no int8 file but a reason."""

    fp32: Path
    seconds: float
    int8: Path | None
    int8_seconds: float
    reason: str = ""


def _export(run: Run, file: Path, trained: bool) -> _Exported:
    """Writes both files. Random weights have no accuracy to check, so int8 skips that gate, and are calibrated on noise
    with the spectrum of photographs."""
    probed = trained and any((run.directory / "evaluation").glob("*-linear-pretrained.safetensors"))
    fp32 = export_onnx(run, file, probe=probed or None)
    begin, int8 = time.perf_counter(), file.with_name("encoder.int8.onnx")
    try:
        if trained:
            export_onnx(run, file, probe=probed or None, precision="int8")
            seconds = time.perf_counter() - begin - fp32.seconds  # it writes fp32 once more
            return _Exported(file, fp32.seconds, int8, seconds)
        model = onnx.load(file)
        images = natural_images(CALIBRATION_IMAGES, run.image_size)
        smaller = quantize(model, images, reduce_range=not has_vnni())
        check_fused(model, smaller)
        int8.write_bytes(seal(smaller, replace(read_metadata(file), precision="int8")))
        return _Exported(file, fp32.seconds, int8, time.perf_counter() - begin)
    except CheckFailed as error:
        return _Exported(file, fp32.seconds, None, 0.0, f"{error.cause}: {error.saw}".splitlines()[0])


def _speed_rows(
    run: Run, exported: _Exported, repeats: int, batches: tuple[int, ...], compile: bool, threads: int
) -> list[Row]:
    calls: dict[str, Embed] = {}
    missing: dict[str, str] = {}
    first: dict[str, float] = {}
    images = natural_images(max(batches), run.image_size)
    for name, build in _contenders(run, exported, compile, threads).items():
        try:
            call, start = build(), time.perf_counter()
            for batch in batches:
                call(images[:batch])
            calls[name], first[name] = call, time.perf_counter() - start
        except Unavailable as reason:
            missing[name] = str(reason)
        except Exception as error:
            missing[name] = first_line(error)
    measured: list[Row] = []
    for batch in batches:
        some, per_call = np.ascontiguousarray(images[:batch]), CALLS.get(batch, 1)

        def repeated(call: Embed, some: NDArray[np.uint8] = some, times: int = per_call) -> Callable[[], object]:
            return lambda: [call(some) for _ in range(times)]

        timings = interleave({name: repeated(call) for name, call in calls.items()}, repeats)
        for name, timing in timings.items():
            more = {"batch": batch, "size": run.image_size, "threads": threads, "first_call_seconds": first[name]}
            measured.append(rate_row(speed(batch), name, batch * per_call, timing, "images/s", **more))
        measured += [missing_row(speed(batch), name, "images/s", why) for name, why in missing.items()]
    return measured


class Unavailable(Exception):
    """A contender cannot run here; the message says why."""


def _contenders(run: Run, exported: _Exported, compile: bool, threads: int) -> dict[str, Callable[[], Embed]]:
    """Name → what builds a call from uint8 `[B, S, S, 3]` to features."""
    spec = run.recipe.augment

    def compiled() -> Embed:
        if not compile:
            raise Unavailable("left out: it compiles for a minute")
        return torch_embed(torch.compile(load_encoder(run)), spec.mean, spec.std)

    def int8() -> Embed:
        if exported.int8 is None:
            raise Unavailable(exported.reason)
        return onnx_embed(exported.int8, threads)

    return {
        EAGER: lambda: torch_eager(run),
        BF16: lambda: torch_embed(load_encoder(run), spec.mean, spec.std, torch.bfloat16),
        COMPILED: compiled,
        FP32: lambda: onnx_embed(exported.fp32, threads),
        BARE: lambda: _bare(exported.fp32, threads, spec.mean, spec.std),
        INT8: int8,
        OPENVINO: lambda: _openvino(exported.fp32, threads),
    }


def torch_embed(
    encoder: Any, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype = torch.float32
) -> Embed:
    """An encoder in PyTorch, channels_last, in `dtype` from the first convolution on."""
    encoder = encoder.to(memory_format=torch.channels_last, dtype=dtype)
    deviation = torch.tensor(list(std)).view(1, 3, 1, 1)
    scale, offset = 1 / (255 * deviation), torch.tensor(list(mean)).view(1, 3, 1, 1) / deviation

    def embed(images: NDArray[np.uint8]) -> object:
        with torch.inference_mode():
            x = torch.from_numpy(images).permute(0, 3, 1, 2).float() * scale - offset
            return encoder(x.to(dtype)).float().numpy()

    return embed


def _bare(file: Path, threads: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Embed:
    """The file's graph without its preprocessing, on images that were normalised before the clock starts."""
    session = open_session(without_preprocessing(onnx.load(file)).SerializeToString(), threads=threads)
    ready: dict[int, NDArray[np.float32]] = {}

    def embed(images: NDArray[np.uint8]) -> object:
        if len(images) not in ready:
            x = (images.astype(np.float32) / 255 - np.array(mean, np.float32)) / np.array(std, np.float32)
            ready[len(images)] = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        return session.run([OUTPUT], {INPUT: ready[len(images)]})[0]

    return embed


def without_preprocessing(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph from its first convolution on: float32 `images` `[batch, 3, S, S]`, normalised, → the same outputs."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    graph = bare.graph
    start = next(node for node in graph.node if node.op_type == "Conv")
    size = graph.input[0].type.tensor_type.shape.dim[1].dim_value
    before: set[str] = {start.input[0]}
    for node in reversed(list(graph.node)):
        if before.intersection(node.output):
            before.update(node.input)
            graph.node.remove(node)
    start = next(node for node in graph.node if node.op_type == "Conv")
    start.input[0] = INPUT
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", 3, size, size]))
    return bare


def _openvino(file: Path, threads: int) -> Embed:
    if find_spec("openvino") is None:
        raise Unavailable("not installed: pip install openvino")
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(str(file), "CPU", settings).create_infer_request()

    def embed(images: NDArray[np.uint8]) -> object:
        return request.infer({INPUT: images})[OUTPUT]

    return embed


def _process_rows(run: Run, exported: _Exported, processes: int, threads: int) -> list[Row]:
    """Memory and start-up, each process started in turn."""
    targets = {EAGER: (TORCH_SCRIPT, run.directory), FP32: (ONNX_SCRIPT, exported.fp32)}
    if exported.int8 is not None:
        targets[INT8] = (ONNX_SCRIPT, exported.int8)
    seen: dict[str, list[Fresh]] = {name: [] for name in targets}
    for _ in range(processes):
        for name, (script, target) in targets.items():
            seen[name].append(fresh_process(script, target, threads))
    measured: list[Row] = []
    for name, several in seen.items():
        measured.append(row(START_UP, name, summarize([process.start_up for process in several]), "s"))
        held = [process.resident_bytes / 2**20 for process in several if process.resident_bytes is not None]
        peak = max((process.peak_bytes or 0 for process in several), default=0)
        if held:
            measured.append(row(MEMORY, name, summarize(held), "MiB", peak_bytes=peak))
        else:
            measured.append(missing_row(MEMORY, name, "MiB", "the system does not tell a process's resident memory"))
    if exported.int8 is None:
        measured += [
            missing_row(what, INT8, unit, exported.reason) for what, unit in ((START_UP, "s"), (MEMORY, "MiB"))
        ]
    return measured


def _size_rows(run: Run, exported: _Exported) -> list[Row]:
    files = {EAGER: run.directory / "encoder.safetensors", FP32: exported.fp32, INT8: exported.int8}
    return [
        single_row(SIZE, name, file.stat().st_size / 1e6, "MB")
        if file is not None and file.is_file()
        else missing_row(SIZE, name, "MB", exported.reason or "there is no such file")
        for name, file in files.items()
    ]


def _export_rows(exported: _Exported) -> list[Row]:
    """Seconds of one export, gates included."""
    fp32 = single_row(EXPORT, FP32, exported.seconds, "s")
    if exported.int8 is None:
        return [fp32, missing_row(EXPORT, INT8, "s", exported.reason)]
    return [fp32, single_row(EXPORT, INT8, exported.int8_seconds, "s")]


def _accuracy_rows(exported: _Exported) -> list[Row]:
    """What int8 loses against fp32 on the same images, as the gate of the export measured it for a trained run."""
    if exported.int8 is None:
        return [missing_row(ACCURACY, INT8, "%", exported.reason)]
    parity = read_metadata(exported.int8).parity
    if "accuracy" not in parity:
        return [missing_row(ACCURACY, INT8, "%", "the run has no linear probe or no labelled images")]
    fp32, int8, images = 100 * parity["accuracy_fp32"], 100 * parity["accuracy"], parity["images_compared"]
    return [
        single_row(ACCURACY, FP32, fp32, "%", images=images),
        single_row(ACCURACY, INT8, int8, "%", images=images, lost_points=fp32 - int8),
    ]
