"""A whole training step on a CUDA device: it waits for nothing, compiled and eager agree, and it resumes.

What these tests show, once a device runs them: no host synchronisation in bf16 SGD, bf16 LARS, fp16 LARS and fp16 Muon;
compiled bf16 beside eager bf16 and fp32 over fifty steps; one graph for each view size; a run that is resumed goes on
as it would have; images in pinned buffers train as resident ones; the advice when memory runs out; a captured draw
follows its tensors; two ranks over NCCL, where there are two devices, equal one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from simclr_engine import memory
from simclr_engine.data import loader
from simclr_engine.data.store import ImageStore
from simclr_engine.device import Platform, choose_platform
from simclr_engine.errors import PlatformError
from simclr_engine.kernels import AugmentSpec, draw_params, pick_augment, pick_nt_xent
from simclr_engine.monitor import OnlineMonitor
from simclr_engine.pretraining import pretrain
from simclr_engine.recipe import Recipe
from simclr_engine.training import Backends, Plan, Trainer

pytestmark = pytest.mark.gpu

BATCH, SIZE = 64, 32


def store(count: int = 4 * BATCH) -> ImageStore:
    rng = np.random.default_rng(0)
    images = rng.normal(rng.integers(30, 220, (count, 1, 1, 3)), 25, (count, SIZE, SIZE, 3))
    return ImageStore.from_arrays(np.clip(images, 0, 255).astype(np.uint8), np.arange(count) % 4, name="blobs")


def trainer(optimizer: str = "sgd", precision: str = "bf16", compile: bool = False, **more: Any) -> Trainer:
    settings = {"train.batch_size": BATCH, "train.epochs": 20, "short_runs": [], "optimizer.name": optimizer} | more
    recipe = Recipe.load("cifar10-sgd", overrides=settings)
    chosen = choose_platform("cuda", precision)
    platform = Platform(chosen.device, precision, channels_last=True, compile=compile)
    loss, _ = pick_nt_xent("auto", platform.device, recipe.head.dimension, recipe.loss.temperature)
    backends = Backends(pick_augment("auto", platform.device)[0], loss)
    made = Trainer(Plan.of(recipe, store()), platform, store(), backends)
    made.model.train()
    return made


@pytest.fixture
def _no_waiting() -> Any:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(
    ("precision", "optimizer"), [("bf16", "sgd"), ("bf16", "lars"), ("fp16", "lars"), ("fp16", "muon"), ("fp16", "sgd")]
)
def test_a_step_waits_for_nothing(precision: str, optimizer: str, compile: bool, _no_waiting: None) -> None:
    made = trainer(optimizer, precision, compile)
    for step in range(5):  # compilation, plans of cuDNN, the optimizer's state and the order of an epoch may wait
        made.train_step(step)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    for step in range(5, 8):  # the rest of the second epoch
        loss, z = made.train_step(step)
    torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite() and z.isfinite().all()


def test_the_monitor_waits_once(_no_waiting: None) -> None:
    made = trainer()
    monitor = OnlineMonitor(made.store, made.recipe.augment, 200, made.platform)
    monitor(made.model)
    torch.cuda.set_sync_debug_mode("error")
    features = monitor._features(made.model)
    assert monitor._labels is not None
    monitor._accuracy(features, monitor._labels)
    torch.cuda.set_sync_debug_mode("default")
    assert features.is_cuda and features.shape[0] == 200


def losses(made: Trainer, steps: int = 50) -> list[float]:
    return torch.stack([made.train_step(step)[0] for step in range(steps)]).tolist()


def test_fifty_compiled_steps_follow_eager_ones_and_fp32() -> None:
    torch.compiler.reset()
    compiled, eager = losses(trainer(compile=True)), losses(trainer())
    exact = losses(trainer(precision="fp32"))
    assert exact[-1] < exact[0] - 0.3
    assert compiled[0] == pytest.approx(eager[0], rel=2e-3)
    for ours in (compiled, eager):
        assert np.mean(ours[-10:]) == pytest.approx(np.mean(exact[-10:]), rel=0.05)


def test_there_is_one_graph_for_each_view_size() -> None:
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    made = trainer(compile=True)
    for size in (32, 16, 32, 16):
        made.train_step(0, size)
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]


def test_a_resumed_run_goes_on_as_it_would_have() -> None:
    whole, first, second = trainer("lars"), trainer("lars"), trainer("lars")
    expected = losses(whole, 10)
    assert losses(first, 5) == pytest.approx(expected[:5], rel=1e-3)
    second.load_state_dict(first.state_dict())
    after = [float(second.train_step(step)[0]) for step in range(5, 10)]
    assert after == pytest.approx(expected[5:], rel=1e-2)


def test_images_in_pinned_buffers_train_as_resident_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    resident = trainer()
    monkeypatch.setattr("simclr_engine.training.stays_in_files", lambda *_: True)
    streamed = trainer()
    assert isinstance(streamed._loader, loader.Prefetched)
    for step in range(2 * resident.plan.steps_per_epoch):
        ours, theirs = (
            made._loader.images(made.sample_ids(step)) if made is resident else made._loader.batch(step).images
            for made in (resident, streamed)
        )
        assert torch.equal(ours, theirs.to(ours.device))


def test_too_large_a_batch_ends_in_advice_that_fits() -> None:
    made = trainer()
    _, total = torch.cuda.mem_get_info()
    with pytest.raises(PlatformError, match="not enough memory") as caught, memory.memory_errors(made):
        torch.empty(2 * total, dtype=torch.uint8, device="cuda")
    assert "train.micro_batch=" in str(caught.value) or "--batch-size" in str(caught.value)


def test_a_captured_draw_follows_its_tensors() -> None:
    spec, ids = AugmentSpec(), torch.arange(256, device="cuda")
    seed, epoch = torch.tensor(5, device="cuda"), torch.tensor(0, device="cuda")
    draw_params(spec, seed, epoch, ids, 2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        table = draw_params(spec, seed, epoch, ids, 2)
    for number in (1, 7):
        epoch.fill_(number)
        graph.replay()
        expected = draw_params(spec, 5, number, ids.cpu(), 2)
        assert torch.equal(table.cpu(), expected)


def test_a_run_leaves_finite_weights_and_a_rising_knn(tmp_path: Path) -> None:
    settings = {"train.batch_size": BATCH, "train.epochs": 6, "monitor.knn_epochs": 3, "monitor.knn_images": 200}
    run = pretrain("cifar10-sgd", store(), tmp_path / "run", overrides=settings, device="cuda", quiet=True)
    assert run.environment["finished"] and run.environment["device"].startswith("cuda")
    rows = [row for row in run.metrics if row["event"] == "knn"]
    assert len(rows) == 2 and all(0 <= row["accuracy"] <= 1 for row in rows)


def _of_a_rank(rank: int, folder: str, port: int) -> None:
    import os

    from simclr_engine.distributed import start_world

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with start_world("cuda") as world:
        recipe = Recipe.load("cifar10-sgd", overrides={"train.batch_size": BATCH, "short_runs": []})
        platform = Platform(torch.device(world.device), "fp32", channels_last=True, compile=False)
        made = Trainer(Plan.of(recipe, store()), platform, store(), Backends("triton", "triton"), world)
        made.model.train()
        loss: Tensor = made.train_step(0)[0]
        torch.save(loss.cpu(), Path(folder) / f"{rank}.pt")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are fewer than two CUDA devices")
def test_two_ranks_over_nccl_have_the_loss_of_one_process(tmp_path: Path) -> None:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = int(s.getsockname()[1])
    torch.multiprocessing.spawn(_of_a_rank, (str(tmp_path), port), nprocs=2)
    alone = float(trainer(precision="fp32").train_step(0)[0])
    for rank in range(2):
        assert float(torch.load(tmp_path / f"{rank}.pt")) == pytest.approx(alone, rel=1e-3)
