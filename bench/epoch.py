"""Views per second of a training step: ours, ours with one part switched off, and a plain one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from simclr_engine.data.store import ImageStore
from simclr_engine.device import Platform, choose_platform, keep_freed_memory
from simclr_engine.flops import flops_per_step
from simclr_engine.kernels import contrastive_metrics
from simclr_engine.model import SimCLR
from simclr_engine.monitor import OnlineMonitor
from simclr_engine.optim import build_optimizer
from simclr_engine.recipe import Recipe
from simclr_engine.timing import interleave

from .baselines import plain_step, with_plain_convolutions
from .rows import Floor, Row, first_line, missing_row, peak_extra_bytes, rate_row, single_row
from .trainer import bench_recipe, bench_trainer, noise

NAME, UNIT = "training step", "views/s"
PLAIN = "plain eager fp32 NCHW"
WATCHED, SHARE = "online monitoring of `cifar10`", "% of training time"
# 1.9 was seen with bf16 instructions; without them (plain fp32 on both sides) there is no floor to hold.
FLOORS = (Floor(NAME, "ours", least=1.5, of=PLAIN), Floor(WATCHED, "log rows and kNN", most=2.0))
EPOCH_VIEWS = 2 * 50_000  # of CIFAR-10


def floors() -> tuple[Floor, ...]:
    """What must hold on this machine's device."""
    device = choose_platform().device
    return tuple(replace(floor, of=_multiplied_as(floor.of, device)) if floor.of else floor for floor in FLOORS)


def _multiplied_as(contender: str, device: torch.device) -> str:
    """On CUDA "fp32" is TF32: matrix products and convolutions of float32 are rounded to ten bits there."""
    return contender.replace("fp32", "TF32") if device.type == "cuda" else contender


def rows(repeats: int = 7, views: int | None = None, size: int = 32, monitored: int | None = None) -> list[Row]:
    """Views per second of whole steps (draw, augment, forward, loss, backward, update), contenders interleaved.

    Each row also holds `seconds_per_epoch` of CIFAR-10, `tflops` (convolutions and products, forward and backward) and
    its `share_of_peak` (of a matrix product timed in the same run in the same precision), `peak_bytes` of a step beyond
    model and data, and `first_call_seconds`, which is where compilation shows.

    Args:
        repeats: timed calls per contender.
        views: rows of a batch, V·B with V = 2; by default 64 on the CPU and 1,024 on CUDA.
        size: side of images and views, pixels.
        monitored: images of the online kNN; by default as many as the recipe says.
    """
    cuda = choose_platform().device.type == "cuda"
    best = choose_platform(compile=cuda)
    views = views or (1024 if cuda else 64)
    steps_per_call = 10 if cuda else 1  # one step is too short to be timed alone, and steps overlap in a real run
    if best.device.type == "cpu":
        keep_freed_memory()
    recipe = bench_recipe(views // 2)
    store = ImageStore.from_arrays(noise(4 * views, size), name="noise")
    calls: dict[str, Callable[[], object]] = {}
    first: dict[str, float] = {}
    missing: dict[str, str] = {}
    for plain, build in _contenders(recipe, store, best, size).items():
        name = _multiplied_as(plain, best.device)
        try:
            step = build()
            start = time.perf_counter()
            step()
            best.synchronize()
        except Exception as error:
            missing[name] = first_line(error)
            continue
        first[name] = time.perf_counter() - start

        def call(step: Callable[[], object] = step) -> None:
            for _ in range(steps_per_call):
                step()

        calls[name] = call
    timings = interleave(calls, repeats, warmup=2, synchronize=best.synchronize)
    flops, peaks = flops_per_step(recipe, size) / views, {p: matmul_tflops(best, p) for p in (best.precision, "fp32")}
    measured: list[Row] = []
    for name, timing in timings.items():
        row = rate_row(NAME, name, views * steps_per_call, timing, UNIT, views=views, size=size)
        rate, precision = row["median"], "fp32" if "fp32" in name or "TF32" in name else best.precision
        more: dict[str, Any] = {
            "precision": precision,
            "seconds_per_epoch": EPOCH_VIEWS / rate,
            "tflops": rate * flops / 1e12,
            "share_of_peak": rate * flops / 1e12 / peaks[precision],
            "peak_bytes": peak_extra_bytes(calls[name], best.device),
            "first_call_seconds": first[name],
        }
        measured.append(row | more)
    missing_rows = [missing_row(NAME, name, UNIT, note) for name, note in missing.items()]
    return measured + missing_rows + _monitoring_rows(best, views // 2, size, min(3, repeats), monitored)


def _monitoring_rows(best: Platform, batch: int, size: int, repeats: int, monitored: int | None) -> list[Row]:
    """What monitoring costs at the default recipe's intervals on CIFAR-10: a log row every few steps (`p_pos`, top-1,
    the reading of the loss) and the kNN of a sample every few epochs, each timed beside the training step of this run.

    `batch` images a step, of which the recipe has more: a log row then weighs more here than it does there.
    """
    recipe = bench_recipe(batch, "cifar10")
    if monitored is not None:
        recipe = recipe.replace(monitor__knn_images=monitored)
    watch = recipe.monitor
    count = max(watch.knn_images, batch)
    store = ImageStore.from_arrays(noise(count, size), np.arange(count) % 10, name="noise")
    eager = replace(best, compile=False)
    trainer = bench_trainer(recipe, eager, store)
    monitor = OnlineMonitor(store, recipe.augment, watch.knn_images, eager)
    z = torch.randn(2 * batch, recipe.head.dimension, device=best.device)

    def log_row() -> None:
        torch.stack(contrastive_metrics(z, views=2, temperature=recipe.loss.temperature)).tolist()

    calls: dict[str, Callable[[], object]] = {
        "step": lambda: trainer.train_step(0),
        "log": log_row,
        "kNN": lambda: monitor(trainer.model),
    }
    seconds = {k: t.median for k, t in interleave(calls, repeats, warmup=1, synchronize=best.synchronize).items()}
    steps = EPOCH_VIEWS // 2 / batch  # of an epoch of CIFAR-10
    log = seconds["log"] / watch.log_steps / seconds["step"]
    knn = seconds["kNN"] / (watch.knn_epochs * steps) / seconds["step"]
    about = {"repeats": repeats, "views": 2 * batch, "size": size, "knn_seconds": seconds["kNN"]}
    shares = {
        "log rows and kNN": log + knn,
        f"a log row every {watch.log_steps} steps": log,
        f"kNN of {watch.knn_images:,} images every {watch.knn_epochs} epochs": knn,
    }
    return [single_row(WATCHED, who, 100 * share, SHARE) | about for who, share in shares.items()]


def _contenders(recipe: Recipe, store: ImageStore, best: Platform, size: int) -> dict[str, Callable[[], Any]]:
    """Name → a function that builds a call of one step. Each part that is on is switched off in turn."""
    backends = bench_trainer(recipe, replace(best, compile=False), store).backends

    def ours(
        platform: Platform, augment: str = "auto", nt_xent: str = "auto", convolutions: bool = True
    ) -> Callable[[], Callable[[], object]]:
        def build() -> Callable[[], object]:
            trainer = bench_trainer(recipe, platform, store, augment, nt_xent)
            if not convolutions:
                with_plain_convolutions(trainer.model)
            return lambda: trainer.train_step(0)

        return build

    def plain() -> Callable[[], object]:
        torch.manual_seed(0)
        model = with_plain_convolutions(SimCLR(recipe.model, recipe.head)).to(best.device).train()
        optimizer = build_optimizer(model, recipe.optimizer, 0.01)
        eager = Platform(best.device, "fp32", channels_last=False, compile=False)
        augmenter, tau = bench_trainer(recipe, eager, store, "torch", "torch"), recipe.loss.temperature
        return lambda: plain_step(model, optimizer, augmenter.views(augmenter.sample_ids(0), 0, size), tau)

    measured = {"ours": ours(best)}
    if backends.nt_xent != "torch":
        measured["ours, loss by PyTorch"] = ours(best, nt_xent="torch")
    if backends.augment != "torch":
        measured["ours, augmentation by PyTorch"] = ours(best, augment="torch")
    if best.device.type == "cpu":
        measured["ours, all convolutions by oneDNN"] = ours(best, convolutions=False)
    measured["ours, augmentation by DALI"] = ours(best, augment="dali")
    if best.compile:
        measured["ours, not compiled"] = ours(replace(best, compile=False))
    if best.channels_last:
        measured["ours, contiguous"] = ours(replace(best, channels_last=False))
    if best.precision != "fp32":
        measured["ours, fp32"] = ours(replace(best, precision="fp32"))
    measured[PLAIN] = plain
    return measured


def matmul_tflops(platform: Platform, precision: str) -> float:
    """What a large matrix product reaches on the device, TFLOP/s: the peak that a step is compared with."""
    side = 8192 if platform.device.type == "cuda" else 2048
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    a, b = (torch.randn(side, side, device=platform.device).to(dtype) for _ in range(2))
    timing = interleave({"product": lambda: a @ b}, 5, warmup=2, synchronize=platform.synchronize)["product"]
    return 2 * side**3 / timing.median / 1e12
