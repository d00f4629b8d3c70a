"""What one rank does in the tests of distributed training; a process of its own, so it must be importable by it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from multiprocessing import set_forkserver_preload
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from simclr_engine import pretraining, training
from simclr_engine.data.store import ImageStore
from simclr_engine.device import Platform
from simclr_engine.errors import DataError, EngineError
from simclr_engine.model import build_head
from simclr_engine.monitor import OnlineMonitor
from simclr_engine.parallel import World, start_world
from simclr_engine.recipe import Recipe
from simclr_engine.training import Backends, Plan, Trainer

STEPS = 20
BATCH = 16


class SmallNetwork(nn.Module):
    """Stands in for `SimCLR`: convolutions, batch norm in two and in one dimension, a head, and few weights."""

    def __init__(self, model: object, head: Any) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, into, stride in ((3, 8, 1), (8, 16, 2)):
            layers += [nn.Conv2d(width, into, 3, stride, 1, bias=False), nn.BatchNorm2d(into), nn.ReLU()]
        self.encoder = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.encoder.feature_dim = 16
        self.head = build_head(16, head)

    def forward(self, views: Tensor) -> Tensor:
        result: Tensor = self.head(self.encoder(views))
        return result


@dataclass(frozen=True)
class Case:
    """A short training: `frozen` keeps batch norm at its first running statistics; `more` goes into the recipe."""

    precision: str = "fp64"
    frozen: bool = False
    micro_batch: int = 0
    more: dict[str, Any] = field(default_factory=dict)


def blobs(n: int = 40, size: int = 8, seed: int = 0) -> ImageStore:
    """Coloured noise of two kinds; 40 images leave eight of each epoch out."""
    rng = np.random.default_rng(seed)
    images = np.clip(rng.normal(rng.integers(30, 220, (n, 1, 1, 3)), 25, (n, size, size, 3)), 0, 255).astype(np.uint8)
    return ImageStore.from_arrays(images, np.arange(n) % 2, ("even", "odd"), name="blobs", split="train")


def recipe_of(**more: Any) -> Recipe:
    """A step in milliseconds, with batch norm in encoder and head."""
    settings = {
        "train.batch_size": BATCH,
        "train.epochs": 10,
        "train.precision": "fp32",
        "train.checkpoint_epochs": 0,
        "head.hidden": [16],
        "head.dimension": 8,
        "head.batch_norm": "all",
        "head.dropout": 0.0,
        "monitor.log_steps": 1,
        "monitor.knn_epochs": 2,
        "monitor.knn_images": 30,
        "optimizer.lr": 0.5,
        "short_runs": [],
    }
    return Recipe.load("cifar10-sgd", overrides=settings | more)


def trainer_of(case: Case, world: World = World()) -> Trainer:  # noqa: B008  # frozen
    """With the small network."""
    recipe = recipe_of(**{"train.micro_batch": case.micro_batch}, **case.more)
    store, platform = blobs(), Platform(torch.device("cpu"), case.precision, channels_last=True, compile=False)
    with mock.patch.object(training, "SimCLR", SmallNetwork):
        trainer = Trainer(recipe, Plan.of(recipe, store), platform, store, Backends("torch", "torch"), world)
    trainer.model.train()
    if case.frozen:
        for module in trainer.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
    return trainer


def train(
    case: Case,
    world: World = World(),  # noqa: B008  # frozen
    follow: list[Tensor] | None = None,
) -> dict[str, Any]:
    """Images, losses, projections and gradients (as the optimizer sees them) of each step, the weights before each and
    at the end, and the final buffers. With `follow`, every step starts from these weights."""
    trainer = trainer_of(case, world)
    found: dict[str, list[Any]] = {"losses": [], "gradients": [], "ids": [], "z": [], "weights": []}

    def seen(*_: Any) -> None:
        found["gradients"].append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))

    trainer.optimizer.register_step_pre_hook(seen)
    for step in range(STEPS):
        if follow is not None:
            torch.nn.utils.vector_to_parameters(follow[step], trainer.model.parameters())
        found["weights"].append(_weights(trainer))
        found["ids"].append(trainer.sample_ids(step))
        loss, z = trainer.train_step(step)
        found["losses"].append(loss)
        found["z"].append(world.gather_views(z, trainer.recipe.train.views))
    found["weights"].append(_weights(trainer))
    return found | {"buffers": dict(trainer.model.named_buffers())}


def _weights(trainer: Trainer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def start(ranks: int, jobs: list[Any], folder: Path, limit: float = 120.0) -> list[list[Any]]:
    """Every rank does the jobs `("name", *arguments)` in order; results by rank and job, [] of one that was killed."""
    # torch is imported once, not by each rank; the server finds what is installed and nothing else (Python 3.11).
    set_forkserver_preload(["simclr_engine.pretraining", "torch.multiprocessing"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs, default=asdict))
    context = mp.start_processes(
        _rank, (ranks, str(folder), _free_ports(8)), nprocs=ranks, join=False, start_method="forkserver"
    )
    deadline = time.monotonic() + limit
    for process in context.processes:
        process.join(max(0.0, deadline - time.monotonic()))
    hung = [rank for rank, process in enumerate(context.processes) if process.is_alive()]
    for rank in hung:
        context.processes[rank].kill()
    assert not hung, f"ranks {hung} still ran after {limit} s"
    files = [folder / f"{rank}.pt" for rank in range(ranks)]
    return [torch.load(file, weights_only=False) if file.exists() else [] for file in files]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _rank(rank: int, ranks: int, folder: str, ports: list[int]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    results: list[Any] = []
    for (name, *arguments), port in zip(json.loads((Path(folder) / "jobs.json").read_text()), ports, strict=False):
        os.environ["MASTER_PORT"] = str(port)
        results.append(JOBS[name](rank, *arguments))
        torch.save(results, Path(folder) / f"{rank}.pt")


def _train(rank: int, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    with start_world("cpu") as world:
        return [train(Case(**case), world) for case in cases]


def _talk(rank: int) -> dict[str, Any]:
    """What `World` offers, one thing after the other."""
    with start_world("cpu") as world:
        last = world.rank == world.size - 1
        found: dict[str, Any] = {"world": asdict(world), "any": world.any(last, False, True)}
        tensors = [torch.full((2, 3), float(rank)), torch.full((4,), rank, dtype=torch.int64)]
        world.broadcast_(tensors)
        found["broadcast"] = [float(t.float().mean()) for t in tensors]
        found["same"] = world.same({"rank": rank})
        order: list[str] = []
        found["leaders"] = world.leaders_first(lambda: order.append("worked") or rank)
        for who, work in {"first": world.first, "leaders": world.leaders_first}.items():
            try:
                work(_missing)
            except EngineError as error:
                found[f"{who} failed"] = (type(error).__name__, error.exit_code, str(error))
        try:
            world.agree({"the recipe": 1, "the images": f"of {min(rank, 1)}"})
        except EngineError as error:
            found["agree"] = str(error)
        store = blobs(33)
        network = SmallNetwork(None, recipe_of().head)
        for module in network.modules():  # each rank has running statistics of its own
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean += rank
        platform = Platform(torch.device("cpu"), "fp32", channels_last=True, compile=False)
        world.broadcast_(list(network.parameters()))
        monitor = OnlineMonitor(store, recipe_of().augment, 31, platform, world)
        found["features"] = monitor._features(network)
        found["row"] = monitor(network)
        found["network"] = network.state_dict()
        return found


def _missing() -> None:
    raise DataError("no images here", saw="nothing", fix="bring some")


def _pretrain(
    rank: int, out: str, more: dict[str, Any], stop: int = 0, resume: bool = False, killed: int = -1
) -> dict[str, Any]:
    """`pretrain`; after `stop` steps the last rank alone gets SIGTERM, or SIGKILL where it is to be `killed`."""
    training.SimCLR = SmallNetwork
    real = Trainer.steps
    last = rank == int(os.environ["WORLD_SIZE"]) - 1

    def steps(self: Trainer, log: Any) -> Any:
        for done in real(self, log):
            if last and done == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            if last and done == killed:
                os.kill(os.getpid(), signal.SIGKILL)
            yield done

    Trainer.steps = steps
    try:
        run = pretraining.pretrain(recipe_of(**more), blobs(), out, device="cpu", resume=resume, quiet=True)
    except EngineError as error:
        return {"error": type(error).__name__, "exit_code": error.exit_code, "message": str(error)}
    finally:
        Trainer.steps = real
    return {"finished": run.environment["finished"], "ranks": run.environment["ranks"]}


def _hang(rank: int, folder: str) -> str:
    """Rank 0 waits for one that does not come."""
    gave_up = Path(folder) / "gave up"
    try:
        with start_world("cpu", timeout=timedelta(seconds=3)) as world:
            if world.main:
                world.any(True)
            else:
                while not gave_up.exists():
                    time.sleep(0.02)
    except EngineError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        gave_up.touch()
    return ""


def _copy(rank: int, source: str, target: str) -> None:
    """A copy of a run directory, made by rank 0 before the others look at it."""
    with start_world("cpu") as world:
        world.first(lambda: shutil.copytree(source, target))


JOBS: dict[str, Callable[..., Any]] = {
    "train": _train,
    "talk": _talk,
    "pretrain": _pretrain,
    "hang": _hang,
    "copy": _copy,
}
