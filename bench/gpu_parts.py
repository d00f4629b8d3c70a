"""What `make gpu` measures, part by part. A part writes each row to its file as soon as it has it.

A part is a function of a `Setting`. `gpu` runs each in a process of its own: `python -m simclr_engine.bench.gpu_parts
NAME`. With `dry` everything runs at tiny sizes, on the CPU if need be.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import nn

from simclr_engine.data.store import ImageStore
from simclr_engine.device import Platform, choose_platform
from simclr_engine.model import SimCLR
from simclr_engine.optim import build_optimizer
from simclr_engine.recipe import Recipe
from simclr_engine.terminal import tell
from simclr_engine.timing import Timing, interleave
from simclr_engine.training import Trainer

from . import augment, epoch, nt_xent, optimizer
from .baselines import plain_step, with_plain_convolutions
from .row_file import RowFile
from .rows import first_line, missing_row, rate_row, row, single_row
from .trainer import bench_recipe, bench_trainer, noise

STEP, VIEWS_PER_SECOND = "training step", "views/s"
# On CUDA torch multiplies float32 in TF32 as we set it: a plain loop gets that too.
PLAIN = "plain eager TF32 NCHW"
TRANSPOSES = re.compile(r"nchwToNhwc|nhwcToNchw|transpose", re.IGNORECASE)


@dataclass(frozen=True)
class Setting:
    """Where rows go, and how large everything is.

    Attributes:
        rows: the part's file.
        dry: tiny sizes, a compiler that only traces.
        data: what is pretrained on.
        out: folder of runs and compile caches.
        tests: folder of the tests marked `gpu`.
    """

    rows: RowFile
    dry: bool
    data: str
    out: Path
    tests: Path

    @property
    def views(self) -> int:
        return 8 if self.dry else 1024

    @property
    def size(self) -> int:
        return 8 if self.dry else 32

    def platform(self, **changes: Any) -> Platform:
        return replace(choose_platform(compile=False), **changes)


def _trainer(s: Setting, views: int, size: int, platform: Platform, recipe: Recipe | None = None) -> Trainer:
    """A trainer whose steps have `views` views. A dry run compiles nothing; `graphs` traces there."""
    recipe = recipe or bench_recipe(max(2, views // 2))
    store = ImageStore.from_arrays(noise(4 * recipe.train.batch_size, size), name="noise")
    return bench_trainer(recipe, replace(platform, compile=platform.compile and not s.dry), store)


def _time(
    s: Setting, name: str, contender: str, build: Callable[[], Callable[[], object]], views: int, **more: Any
) -> None:
    """Writes views per second of ten steps at a time, `first_call_seconds` and `peak_bytes`, or why there are none."""
    if s.rows.has(name, contender):
        return
    cuda = torch.cuda.is_available()
    try:
        step = build()
        start = time.perf_counter()
        step()
        _wait()
        first = time.perf_counter() - start
        if cuda:
            torch.cuda.reset_peak_memory_stats()

        def ten() -> None:
            for _ in range(1 if s.dry else 10):
                step()

        timing = interleave({"ten": ten}, 1 if s.dry else 7, warmup=1, synchronize=_wait)["ten"]
    except Exception as error:  # out of memory above all: the next row is another size
        s.rows.add(missing_row(name, contender, VIEWS_PER_SECOND, first_line(error)))
        return
    peak = torch.cuda.max_memory_allocated() if cuda else 0
    count = views * (1 if s.dry else 10)
    found = rate_row(name, contender, count, timing, VIEWS_PER_SECOND, views=views, first_call_seconds=first)
    s.rows.add(found | {"peak_bytes": peak} | more)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _built(build: Callable[[], Trainer]) -> Callable[[], object]:
    trainer = build()
    return lambda: trainer.train_step(0)


def _same(step: Callable[[], object]) -> Callable[[], object]:
    return step


def core(s: Setting, contender: str) -> None:
    """Our step, compiled or not, in the device's precision; or what one would write without this project."""
    if contender == PLAIN:
        _time(s, STEP, contender, partial(_plain, s), s.views)
        return
    platform = s.platform(compile="compiled" in contender)
    _time(s, STEP, contender, partial(_built, partial(_trainer, s, s.views, s.size, platform)), s.views)


def _plain(s: Setting) -> Callable[[], object]:
    recipe, device = bench_recipe(s.views // 2), s.platform().device
    model = with_plain_convolutions(SimCLR(recipe.model, recipe.head)).to(device).train()
    update = build_optimizer(model, recipe.optimizer, 0.01)
    eager = s.platform(precision="fp32", channels_last=False)
    made, tau = _trainer(s, s.views, s.size, eager), recipe.loss.temperature
    return lambda: plain_step(model, update, made.views(made.sample_ids(0), 0, s.size), tau)


def profile(s: Setting) -> None:
    """Ten compiled steps: the kernels by their time, how busy the device is, and how many kernels change a layout."""
    trainer = _trainer(s, s.views, s.size, s.platform(compile=True))
    for _ in range(1 if s.dry else 5):
        trainer.train_step(0)
    _wait()
    steps, activities = (1 if s.dry else 10), [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiled:
        start = time.perf_counter()
        for _ in range(steps):
            trainer.train_step(0)
        _wait()
        wall = time.perf_counter() - start
    cuda = torch.cuda.is_available()
    seconds, calls = Counter[str](), Counter[str]()
    for event in profiled.key_averages():
        spent = event.self_device_time_total if cuda else event.self_cpu_time_total
        if spent > 0:
            seconds[event.key] += spent / 1e6
            calls[event.key] += event.count
    name, busy = f"profile of {steps} steps", sum(seconds.values())
    s.rows.add(single_row(name, "device busy", 100 * busy / wall, "% of the time"))
    s.rows.add(single_row(name, "launches of a step", sum(calls.values()) / steps, "kernels"))
    copies = sum(count for kernel, count in calls.items() if TRANSPOSES.search(kernel))
    s.rows.add(single_row(name, "layout changes of a step", copies / steps, "kernels"))
    for kernel, spent in seconds.most_common(40):
        share = 100 * spent / max(busy, 1e-12)
        s.rows.add(
            single_row(name, kernel[:160], 1e3 * spent / steps, "ms a step", share=share, calls=calls[kernel] / steps)
        )


def graphs(s: Setting) -> None:
    """Graphs, breaks and recompilations over two view sizes, and where compilation spends its time."""
    from torch._dynamo.utils import compilation_time_metrics, counters

    torch.compiler.reset()
    counters.clear()
    trainer = _trainer(s, s.views, s.size, s.platform(compile=True))
    if s.dry:
        trainer.forward = torch.compile(trainer.model, dynamic=False, backend="eager")
    for size in (s.size, s.size // 2, s.size):
        trainer.train_step(0, size)
    _wait()
    breaks = sum(counters["graph_break"].values())
    name = "compilation of two view sizes"
    s.rows.add(single_row(name, "graphs", counters["stats"]["unique_graphs"], "graphs"))
    s.rows.add(single_row(name, "graph breaks", breaks, "breaks"))
    s.rows.add(single_row(name, "recompilations refused", sum(counters["recompile_limit"].values()), "times"))
    for phase, spent in sorted(compilation_time_metrics.items(), key=lambda pair: -sum(pair[1]))[:12]:
        s.rows.add(single_row(name, phase, sum(spent), "s", calls=len(spent)))


def device(s: Setting) -> None:
    """Bandwidth of a copy, TFLOP/s of matrix products, clocks, power and temperature under load."""
    where = s.platform().device
    numbers = 2**16 if s.dry else 2**29
    a = torch.empty(numbers, dtype=torch.bfloat16, device=where)
    b = torch.empty_like(a)
    timing = interleave({"copy": lambda: a.copy_(b)}, 5, warmup=2, synchronize=_wait)["copy"]
    gigabytes = 2 * a.nbytes / 1e9
    rates = Timing(gigabytes / timing.median, gigabytes / timing.p80, gigabytes / timing.p20, timing.repeats)
    s.rows.add(row("the device", "copy", rates, "GB/s"))
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        side = 128 if s.dry else 8192
        x = torch.randn(side, side, device=where, dtype=dtype)
        timing = interleave({"product": partial(torch.matmul, x, x)}, 5, warmup=2, synchronize=_wait)["product"]
        named = str(dtype).removeprefix("torch.")
        s.rows.add(single_row("the device", f"product of {named}", 2 * side**3 / timing.median / 1e12, "TFLOP/s"))
    asked = {"clocks.sm": "MHz", "clocks.mem": "MHz", "power.draw": "W", "temperature.gpu": "°C"}
    if not shutil.which("nvidia-smi"):
        s.rows.add(missing_row("the device", "clocks and power", "", "there is no nvidia-smi"))
        return
    query = ["nvidia-smi", f"--query-gpu={','.join(asked)}", "--format=csv,noheader,nounits"]
    said = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.splitlines()
    for (what, unit), value in zip(asked.items(), (said or [""])[0].split(","), strict=False):
        if re.fullmatch(r"[\d.]+", value.strip()):
            s.rows.add(single_row("the device", what, float(value), unit))


def sweep_views(s: Setting) -> None:
    for views in (4, 8) if s.dry else (512, 1024, 2048, 4096, 8192):
        build = partial(_trainer, s, views, s.size, s.platform(compile=True))
        _time(s, "views in a step", f"{views} views", partial(_built, build), views)


def sweep_size(s: Setting) -> None:
    for size in (4, 8) if s.dry else (32, 24, 16):
        build = partial(_trainer, s, s.views, size, s.platform(compile=True))
        _time(s, "size of the views", f"{size} px", partial(_built, build), s.views)


def sweep_views_per_image(s: Setting) -> None:
    for views in (2, 4, 8):
        recipe = bench_recipe(max(2, s.views // views)).replace(train__views=views)
        build = partial(_trainer, s, s.views, s.size, s.platform(compile=True), recipe)
        _time(s, "views of an image", f"V = {views}", partial(_built, build), s.views)


def sweep_recipes(s: Setting) -> None:
    for name in ("cifar10", "cifar10-sgd"):
        build = partial(_trainer, s, s.views, s.size, s.platform(compile=True), bench_recipe(s.views // 2, name))
        _time(s, "recipes", name, partial(_built, build), s.views)


def plans(s: Setting) -> None:
    """cuDNN's plans: chosen among ten or among all; bf16 against fp16. Eager, so that nothing is fused around them."""
    before = torch.backends.cudnn.benchmark_limit
    for precision in ("bf16", "fp16"):
        for limit in (10, 0):
            torch.backends.cudnn.benchmark_limit = limit
            platform = s.platform(precision=precision)
            tried = f"{precision}, {'all' if limit == 0 else limit} plans tried"
            _time(s, "cuDNN plans", tried, partial(_built, partial(_trainer, s, s.views, s.size, platform)), s.views)
    torch.backends.cudnn.benchmark_limit = before


def stem(s: Setting) -> None:
    """The first convolution, forward and backward, with the images' 3 channels and with 8, five of them zeros."""
    platform = s.platform()
    for channels in (3, 8):
        layer = nn.Conv2d(channels, 64, 3, padding=1, bias=False).to(platform.device, platform.dtype)
        layer = layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's hints
        x = torch.randn(s.views, channels, s.size, s.size, device=platform.device, dtype=platform.dtype)
        x = x.contiguous(memory_format=torch.channels_last)

        def step(layer: nn.Module = layer, x: torch.Tensor = x) -> None:
            layer(x).sum().backward()

        _time(s, "stem", f"{channels} channels", partial(_same, step), s.views)


def loss(s: Setting, contender: str) -> None:
    for found in nt_xent.each_row(1 if s.dry else 7, (64, 128) if s.dry else None, contender):
        s.rows.add(found)


def views(s: Setting, contender: str) -> None:
    sizes = {"views": 32, "size": 16} if s.dry else {}
    for found in augment.rows(1 if s.dry else 7, only=contender, **sizes):
        s.rows.add(found)


def updates(s: Setting) -> None:
    for found in optimizer.rows(1, (2, 16, 48), narrow=True) if s.dry else optimizer.rows():
        s.rows.add(found)


def steps(s: Setting) -> None:
    """`bench epoch`: each part of ours switched off in turn, interleaved."""
    for found in epoch.rows(1, views=4, size=8, monitored=20) if s.dry else epoch.rows():
        s.rows.add(found)


def epochs(s: Setting) -> None:
    """Real epochs of 50,000 images of 32 px through `pretrain`, with its log and kNN."""
    from simclr_engine.pretraining import pretrain

    count, size, batch, length = (20, 8, 10, 2) if s.dry else (50_000, 32, 512, 4)
    store = ImageStore.from_arrays(noise(count, size), np.arange(count) % 10, name="noise")
    settings = {"train.epochs": length, "train.batch_size": batch, "short_runs": [], "monitor.knn_epochs": 1}
    if s.dry:
        settings["monitor.knn_images"] = 20
    run = pretrain(
        "cifar10-sgd", store, s.out / "epochs", overrides=settings, compile=not s.dry, overwrite=True, quiet=True
    )
    per_epoch: dict[int, list[float]] = {}
    for logged in run.metrics:
        if logged["event"] == "train":
            per_epoch.setdefault(int(np.ceil(logged["epoch"])), []).append(logged["views_per_second"])
    for number, rates in sorted(per_epoch.items()):
        rate = float(np.median(rates))
        more = {"seconds_per_epoch": 2 * count / rate}
        s.rows.add(single_row("epochs through `pretrain`", f"epoch {number}", rate, VIEWS_PER_SECOND, **more))


def race(s: Setting, state: str) -> None:
    """kNN accuracy against time; cold: nothing is compiled yet, warm: what the cold race compiled is there."""
    from simclr_engine.pretraining import pretrain

    settings: dict[str, Any] = {"monitor.knn_epochs": 1, "train.epochs": 1 if s.dry else 20}
    if s.dry:
        settings |= {"train.batch_size": 10, "short_runs": [], "monitor.knn_images": 20, "train.resolution": []}
    run = pretrain(
        "cifar10-sgd", s.data, s.out / f"race-{state}", overrides=settings, compile=not s.dry, overwrite=True,
        limit=20 if s.dry else None, quiet=True,
    )  # fmt: skip
    for logged in run.metrics:
        if logged["event"] == "knn":
            at = {"seconds": logged.get("seconds"), "accuracy": logged.get("accuracy")}
            s.rows.add(
                single_row(f"race, {state}", f"epoch {logged['epoch']:g}", 100 * logged["accuracy"], "% kNN", **at)
            )
    s.rows.add(single_row(f"race, {state}", "whole run", run.environment["seconds"], "s"))


def tests(s: Setting, file: str) -> None:
    """One file of the tests marked `gpu`, a line for each test while it runs; without a device it is collected."""
    import pytest

    arguments = ["-q" if s.dry else "-v", "-ra", "-m", "gpu", str(s.tests / file), "-p", "no:cacheprovider"]
    outcome = pytest.main([*arguments, *(["--collect-only"] if s.dry else [])])
    if outcome:
        raise SystemExit(int(outcome))


Measure = Callable[[Setting], None]


def parts(folder: Path) -> dict[str, tuple[Measure, int]]:
    """Name → (what it does, seconds that it may take), in the order of worth; the files of `folder` are the tests."""
    found: dict[str, tuple[Measure, int]] = {}
    for contender, seconds in (("ours, compiled", 60), ("ours, not compiled", 30), (PLAIN, 30)):
        found[f"core: {contender}"] = partial(core, contender=contender), seconds
    found |= {
        "profile": (profile, 60),
        "graphs": (graphs, 90),
        "device": (device, 30),
        "epochs": (epochs, 120),
        "cuDNN plans": (plans, 120),
        "stem": (stem, 30),
    }
    for contender in nt_xent.CONTENDERS:
        found[f"nt-xent: {contender}"] = partial(loss, contender=contender), 90
    for contender in ("triton", "torch", "dali", "native", "peers"):
        found[f"augment: {contender}"] = partial(views, contender=contender), 60
    found |= {
        "optimizer": (updates, 45),
        "sweep: size": (sweep_size, 150),
        "sweep: views of an image": (sweep_views_per_image, 150),
        "sweep: recipes": (sweep_recipes, 100),
        "sweep: views": (sweep_views, 240),
        "race: cold": (partial(race, state="cold"), 180),
        "race: warm": (partial(race, state="warm"), 180),
        "parts switched off": (steps, 240),
    }
    for file in sorted(folder.glob("test_*.py")):
        found[f"tests: {file.stem.removeprefix('test_')}"] = partial(tests, file=file.name), 240
    return found


@contextmanager
def compile_cache(folder: Path, fresh: bool) -> Iterator[None]:
    """A context in which what is compiled is kept in `folder`, empty at first if `fresh`."""
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    names = {"TORCHINDUCTOR_CACHE_DIR": folder / "inductor", "TRITON_CACHE_DIR": folder / "triton"}
    before = {name: os.environ.get(name) for name in names}
    os.environ |= {name: str(path) for name, path in names.items()}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def measure(name: str, s: Setting) -> None:
    """Runs a part in this process."""
    part, _ = parts(s.tests)[name]
    with compile_cache(s.out / "compiled", fresh=name == "race: cold"):
        part(s)


@click.command()
@click.argument("name")
@click.option("--rows", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--tests", type=click.Path(path_type=Path), required=True)
@click.option("--data", required=True)
@click.option("--dry", is_flag=True)
def main(name: str, rows: Path, out: Path, tests: Path, data: str, dry: bool) -> None:
    """Measure one part."""
    measure(name, Setting(RowFile(rows), dry, data, out, tests))
    tell(json.dumps({"rows": len(RowFile(rows).read())}))


if __name__ == "__main__":
    main()
