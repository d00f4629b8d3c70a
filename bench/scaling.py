"""Views per second of the data path in one process and in several.

The network is timed first (forward, loss, backward, update), then replaced by a sleep: what is left of a step is what
every process does for itself (picking images, drawing, augmenting) and what it tells the others. Each process has the
same number of images and of threads, alone or not; ideal is as many times the rate as there are processes.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp

from simclr_engine.data.store import ImageStore
from simclr_engine.device import choose_platform
from simclr_engine.distributed import World, start_world
from simclr_engine.timing import summarize
from simclr_engine.training import Trainer

from .rows import Floor, Row, rate_row
from .trainer import bench_recipe, bench_trainer, noise

NAME, UNIT, ALONE = "data path over processes", "views/s", "ours, 1 process"
EFFICIENCY = 0.9  # of ideal
STEPS_PER_CALL = 5


def floors(processes: int = 2) -> tuple[Floor, ...]:
    """What must hold on this machine, if it has a core for each process."""
    return (Floor(NAME, f"ours, {processes} processes", least=EFFICIENCY * processes, of=ALONE),)


def rows(
    repeats: int = 7, images: int = 32, size: int = 32, processes: int = 2, sleep: float | None = None
) -> list[Row]:
    """One process and `processes` of them, in turns. Rows also hold `sleep_seconds`, and `efficiency` (1 is ideal).

    Args:
        repeats: timed calls of each, of five steps.
        images: of one process in a step; two views of each.
        size: side of images and views, pixels.
        processes: at least two.
        sleep: seconds in place of the network; None times it.
    """
    with TemporaryDirectory() as folder:
        mp.spawn(_rank, (processes, _free_port(), repeats, images, size, sleep, folder), nprocs=processes)
        measured: dict[str, Any] = torch.load(Path(folder) / "measured.pt")
    alone, together = (summarize(measured[key]) for key in ("alone", "together"))
    per_call, asleep = 2 * images * STEPS_PER_CALL, {"sleep_seconds": measured["sleep"]}
    efficiency = alone.median / together.median
    return [
        rate_row(NAME, ALONE, per_call, alone, UNIT, efficiency=1.0, **asleep),
        rate_row(
            NAME, f"ours, {processes} processes", processes * per_call, together, UNIT, efficiency=efficiency, **asleep
        ),
    ]


def _rank(
    rank: int, processes: int, port: int, repeats: int, images: int, size: int, sleep: float | None, folder: str
) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with start_world("cpu") as world:
        shared = _trainer(images * processes, size, world)
        single = _trainer(images, size, World()) if world.main else None
        timed = _network_seconds(_trainer(images, size, World())) if world.main and sleep is None else 0.0
        pause = world.same(timed if sleep is None else sleep)
        alone: list[float] = []
        together: list[float] = []
        for turn in range(repeats + 1):  # the first is not counted
            world.any(False)
            if single is not None:
                alone.append(_seconds(single, pause, World()))
            world.any(False)
            together.append(_seconds(shared, pause, world))
            if turn == 0:
                alone.clear()
                together.clear()
        if world.main:
            torch.save({"alone": alone, "together": together, "sleep": pause}, Path(folder) / "measured.pt")


def _trainer(batch: int, size: int, world: World) -> Trainer:
    platform = replace(choose_platform("cpu"), compile=False)
    store = ImageStore.from_arrays(noise(4 * batch, size), name="noise")
    return bench_trainer(bench_recipe(batch), platform, store, nt_xent="torch", world=world)


def _network_seconds(trainer: Trainer) -> float:
    """Median seconds of a step beyond its views."""
    whole, views = [], []
    for step in range(4):
        start = time.perf_counter()
        trainer.train_step(step % trainer.plan.steps_per_epoch)
        middle = time.perf_counter()
        _views(trainer, step)
        whole.append(middle - start)
        views.append(time.perf_counter() - middle)
    return float(max(0.0, np.median(whole[1:]) - np.median(views[1:])))


def _views(trainer: Trainer, step: int) -> torch.Tensor:
    epoch, _ = divmod(step, trainer.plan.steps_per_epoch)
    return trainer.views(trainer.sample_ids(step), epoch, trainer.plan.view_size(step))


def _seconds(trainer: Trainer, pause: float, world: World) -> float:
    """Seconds of some steps, each followed by the exchange between ranks that ends a step of the training loop."""
    start = time.perf_counter()
    for step in range(STEPS_PER_CALL):
        _views(trainer, step)
        time.sleep(pause)
        world.any(False)
    return time.perf_counter() - start


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
