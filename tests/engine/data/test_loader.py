"""Images of the coming steps: the same from files as from memory, read while a step runs, no more than two batches."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from simclr_engine.data import loader
from simclr_engine.data.loader import Prefetched, Resident, stays_in_files
from simclr_engine.data.store import ImageStore, ShardedImages
from simclr_engine.device import Platform
from simclr_engine.planning import describe
from simclr_engine.recipe import Recipe
from simclr_engine.training import Backends, Plan, Trainer

CPU = torch.device("cpu")
FP32 = Platform(CPU, "fp32", channels_last=True, compile=False)
COUNT, BATCH, STEPS = 40, 8, 12
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def mapped(tmp_path: Path) -> ImageStore:
    parts = []
    for start in range(0, COUNT, 16):
        np.save(tmp_path / f"{start}.npy", PIXELS[start : start + 16])
        parts.append(np.load(tmp_path / f"{start}.npy", mmap_mode="r"))
    return ImageStore.from_arrays(ShardedImages(parts))


def ids_of(step: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(step).permutation(COUNT)[:BATCH])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[cuda, pytest.mark.gpu])])
def test_batches_are_those_from_memory_in_any_order_of_steps(mapped: ImageStore, device: str) -> None:
    there = torch.device(device)
    ahead = Prefetched(mapped, there, ids_of, STEPS)
    held = Resident(ImageStore.from_arrays(PIXELS), there, lambda step: ids_of(step).to(there), STEPS)
    for step in [*range(STEPS), 3, 3, 4, 0, 11, *range(5)]:  # resumed, timed again, at the end, from the start
        ours, truth = ahead.batch(step), held.batch(step)
        assert ours.ids.device.type == ours.images.device.type == device
        assert torch.equal(ours.ids, truth.ids) and torch.equal(ours.images, truth.images)
    assert torch.equal(ahead.images(torch.tensor([39, 0])), held.images(torch.tensor([39, 0], device=there)))


def test_reading_goes_on_while_a_step_runs_and_only_one_step_ahead(
    mapped: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, read = ShardedImages.take, list[int]()

    def seen(self: ShardedImages, rows: NDArray[np.int64], *more: Any) -> NDArray[np.uint8]:
        found = real(self, rows, *more)
        read.append(len(rows))
        return found

    monkeypatch.setattr(ShardedImages, "take", seen)
    ahead = Prefetched(mapped, CPU, ids_of, STEPS)
    for step in range(STEPS):
        ahead.batch(step)
        last = step == STEPS - 1
        deadline = time.monotonic() + 30  # the step
        while sum(read) < BATCH * (step + 1 + (not last)):
            assert time.monotonic() < deadline, "nothing is read ahead"
            time.sleep(0.001)
        time.sleep(0.02)
        assert sum(read) == BATCH * (step + 1 + (not last))


def test_a_batch_stays_as_it_is_while_the_next_is_read(mapped: ImageStore) -> None:
    ahead = Prefetched(mapped, CPU, ids_of, STEPS)
    for step in range(STEPS):
        batch = ahead.batch(step)
        if ahead._coming is not None:
            ahead._coming[1].result()  # the next one is there
        np.testing.assert_array_equal(batch.images.numpy(), PIXELS[batch.ids.numpy()])


def test_an_error_of_the_reading_is_raised_by_the_step_that_needs_it(
    mapped: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = Prefetched(mapped, CPU, ids_of, STEPS)
    ahead.batch(0)
    assert ahead._coming is not None
    ahead._coming[1].result()

    def fail(*_: object) -> None:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(ShardedImages, "take", fail)
        ahead.batch(1)
        with pytest.raises(OSError, match="disk is gone"):
            ahead.batch(2)
    np.testing.assert_array_equal(ahead.batch(2).images.numpy(), PIXELS[ids_of(2).numpy()])


def trainer(store: ImageStore, **more: object) -> Trainer:
    settings = {"train.batch_size": 8, "train.epochs": 2, "short_runs": []} | more
    recipe = Recipe.load("cifar10-sgd", overrides=settings)
    made = Trainer(Plan.of(recipe, store), FP32, store, Backends("torch", "torch"))
    made.model.train()
    return made


@pytest.mark.parametrize("more", [{}, {"train.micro_batch": 4}], ids=["", "micro-batches"])
def test_a_run_from_files_is_bitwise_that_from_memory(mapped: ImageStore, more: dict[str, object]) -> None:
    ours, truth = trainer(mapped, **more), trainer(ImageStore.from_arrays(PIXELS), **more)
    assert ours.streamed and not truth.streamed
    said, unsaid = ([line for line in describe(t, None) if line.startswith("files ")] for t in (ours, truth))
    assert len(said) == 1 and "stay there, read a step ahead" in said[0] and not unsaid
    for _ in range(7):  # into the second epoch
        losses = [t.train_step(t.step)[0] for t in (ours, truth)]
        assert torch.equal(*losses)
        ours.step, truth.step = ours.step + 1, truth.step + 1
    assert all(torch.equal(a, b) for a, b in zip(ours.model.parameters(), truth.model.parameters(), strict=True))
    ids = torch.tensor([3, 30])
    assert torch.equal(ours.views(ids, 0, 8), truth.views(ids, 0, 8))


def test_images_go_to_a_device_where_they_take_a_quarter_of_what_is_free(
    mapped: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory, gpu = ImageStore.from_arrays(PIXELS), torch.device("cuda")
    for free, stays in ((4 * PIXELS.nbytes, False), (4 * PIXELS.nbytes - 4, True)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 10 * free))
        assert stays_in_files(mapped, gpu) is stays and not stays_in_files(in_memory, gpu)
    assert stays_in_files(mapped, CPU) and stays_in_files(mapped, torch.device("mps"))


def test_images_reach_a_device_in_parts(mapped: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_COPIED_BYTES", 3 * 192 + 1)
    held = Resident(mapped, CPU, ids_of, STEPS)  # of files that fit, as a GPU would hold them
    np.testing.assert_array_equal(held.images(torch.arange(COUNT)).numpy(), PIXELS)
