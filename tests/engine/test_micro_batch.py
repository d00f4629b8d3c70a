"""Micro-batches: the gradient of the whole batch from parts of it, in the memory of a part."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fixtures import training_ranks as ranks_of
from fixtures.training_ranks import BATCH, Case, recipe_of
from simclr_engine import training
from simclr_engine.bench.rows import peak_extra_bytes
from simclr_engine.data.store import ImageStore
from simclr_engine.device import Platform
from simclr_engine.errors import UsageError
from simclr_engine.kernels import nt_xent
from simclr_engine.model import SimCLR
from simclr_engine.recipe import Recipe, recipe_names
from simclr_engine.training import Backends, Plan, Trainer


@pytest.fixture(autouse=True)
def _own_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SimCLR", ranks_of.SmallNetwork)


def flat_gradient(trainer: Trainer) -> torch.Tensor:
    found = [p.grad for p in trainer.model.parameters()]
    assert all(g is not None for g in found)
    return torch.cat([g.flatten() for g in found if g is not None])


def relative(ours: torch.Tensor, truth: torch.Tensor) -> float:
    return float((ours - truth).norm() / truth.norm())


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("fp64", 1e-12)])
@pytest.mark.parametrize("micro", [1, 4, 8])
@pytest.mark.parametrize("views", [2, 3])
def test_loss_and_gradient_are_those_of_the_whole_batch_where_batch_norm_is_frozen(
    views: int, micro: int, precision: str, tolerance: float
) -> None:
    more = {"train.views": views}
    whole = ranks_of.trainer_of(Case(precision, frozen=True, more=more))
    parts = ranks_of.trainer_of(Case(precision, frozen=True, micro_batch=micro, more=more))
    assert parts.two_passes and not whole.two_passes
    for step in (0, 3):
        expected, z = whole.gradients(step)
        loss, ours = parts.gradients(step)
        assert float(loss) == pytest.approx(float(expected), rel=tolerance)
        assert relative(ours, z) < tolerance
        assert relative(flat_gradient(parts), flat_gradient(whole)) < tolerance
        for trainer in (whole, parts):
            trainer.optimizer.zero_grad()


def plain_gradient(trainer: Trainer, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient with every micro-batch's graph kept: one backward pass through all of them."""
    ids, epoch = trainer.sample_ids(step), step // trainer.plan.steps_per_epoch
    views, micro = trainer.recipe.train.views, trainer.micro_batch
    rows = [trainer.model(trainer.views(ids[at : at + micro], epoch, 8)) for at in range(0, len(ids), micro)]
    z = torch.cat([torch.cat([part[v * micro : (v + 1) * micro] for part in rows]) for v in range(views)])
    loss = nt_xent(z, views=views, temperature=trainer.recipe.loss.temperature)
    loss.backward()
    return loss.detach(), flat_gradient(trainer)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_both_passes_take_the_statistics_of_the_micro_batch_and_the_same_dropout_masks(dropout: float) -> None:
    case = Case(micro_batch=4, more={"train.views": 3, "head.dropout": dropout})
    truth, ours = ranks_of.trainer_of(case), ranks_of.trainer_of(case)
    torch.manual_seed(3)
    expected, gradient = plain_gradient(truth, 0)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    loss, _ = ours.gradients(0)
    assert float(loss) == pytest.approx(float(expected), rel=1e-12)
    assert relative(flat_gradient(ours), gradient) < 1e-12
    assert torch.equal(torch.get_rng_state(), after)  # as if the batch had gone through once
    other = ranks_of.trainer_of(Case(more=case.more))
    torch.manual_seed(3)
    other.gradients(0)
    assert relative(flat_gradient(other), gradient) > 1e-3  # statistics of the whole batch are others


def test_running_statistics_follow_the_second_pass_alone() -> None:
    case = Case(micro_batch=4)
    truth, ours = ranks_of.trainer_of(case), ranks_of.trainer_of(case)
    plain_gradient(truth, 0)
    ours.gradients(0)
    for (name, expected), found in zip(truth.model.named_buffers(), ours.model.buffers(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, msg=name)
    counts = [int(b) for name, b in ours.model.named_buffers() if name.endswith("num_batches_tracked")]
    assert counts == [BATCH // 4] * len(counts) and counts


def test_a_micro_batch_of_the_whole_batch_is_the_plain_step() -> None:
    plain, same = ranks_of.trainer_of(Case("fp32")), ranks_of.trainer_of(Case("fp32", micro_batch=BATCH))
    assert not same.two_passes
    for step in range(3):
        assert torch.equal(plain.train_step(step)[0], same.train_step(step)[0])
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), same.model.parameters(), strict=True))


def test_the_scale_of_fp16_goes_through_both_passes() -> None:
    trainer = ranks_of.trainer_of(Case("fp32", micro_batch=4))
    trainer.gradients(0)
    expected = flat_gradient(trainer)
    trainer.optimizer.zero_grad()
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    trainer.gradients(0)
    assert relative(flat_gradient(trainer), 256 * expected) < 1e-6


def test_resnet_differs_from_the_whole_batch_by_no_more_than_rounding_in_any_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The real network: its small convolutions, autocast, channels_last. Frozen batch norm, as above.
    monkeypatch.setattr(training, "SimCLR", SimCLR)
    found = {}
    for precision in ("fp64", "fp32", "bf16"):
        for micro in (0, 8):
            recipe = recipe_of(**{"train.batch_size": 32, "train.micro_batch": micro})
            store, platform = ranks_of.blobs(32), Platform(torch.device("cpu"), precision, True, False)
            trainer = Trainer(Plan.of(recipe, store), platform, store, Backends("torch", "torch"))
            trainer.model.train()
            for module in trainer.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
            trainer.gradients(0)
            found[precision, micro] = flat_gradient(trainer).double()
    truth = found["fp64", 0]
    assert relative(found["fp64", 8], truth) < 1e-12
    # Of four images and fewer, oneDNN takes other kernels, and the two lie 1.4e-6 apart.
    assert relative(found["fp32", 8], found["fp32", 0]) < 1e-6
    for precision in ("fp32", "bf16"):  # products round differently in batches of another size
        whole, parts = (relative(found[precision, micro], truth) for micro in (0, 8))
        print(f"{precision}: {whole:.2e} from float64 with the whole batch, {parts:.2e} in parts")
        assert parts < 1.5 * whole


def test_a_step_of_two_passes_reads_nothing_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    # As for the plain step: meta tensors raise on whatever would make the host wait for a value.
    from contextlib import nullcontext

    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
    recipe, store = recipe_of(**{"train.micro_batch": 4}), ranks_of.blobs()
    meta = Platform(torch.device("meta"), "fp32", channels_last=True, compile=False)
    trainer = Trainer(Plan.of(recipe, store), meta, store, Backends("torch", "torch"))
    trainer.model.train()
    loss, z = trainer.train_step(0)
    assert (loss.device.type, tuple(z.shape)) == ("meta", (2 * BATCH, 8))


def peak_of_a_step(batch: int, micro: int) -> int:
    """Bytes that ResNet-18 with its head allocates in a step on images of 8 px, update included."""
    rng = np.random.default_rng(0)
    store = ImageStore.from_arrays(rng.integers(0, 256, (batch, 8, 8, 3), dtype=np.uint8))
    settings = {"train.batch_size": batch, "train.micro_batch": micro, "train.precision": "fp32", "short_runs": []}
    recipe = Recipe.load("cifar10-sgd", overrides=settings)
    platform = Platform(torch.device("cpu"), "fp32", channels_last=True, compile=False)
    trainer = Trainer(Plan.of(recipe, store), platform, store, Backends("torch", "torch"))
    trainer.model.train()
    for p in trainer.model.parameters():  # they stay, and are no part of a step
        trainer.optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return peak_extra_bytes(lambda: trainer.train_step(0), torch.device("cpu"))


@pytest.mark.slow
def test_a_batch_sixteen_times_as_large_takes_the_memory_of_the_gradients_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are kept from part to part; in one step of one part they take the place of what is freed."""
    monkeypatch.setattr(training, "SimCLR", SimCLR)
    batch, micro = 4096, 256
    small, large = peak_of_a_step(micro, 0), peak_of_a_step(batch, micro)
    print(f"peak of a step: {small / 2**20:.1f} MiB at {micro}, {large / 2**20:.1f} MiB at {batch} in parts of {micro}")
    recipe = Recipe.load("cifar10-sgd")
    gradients = 4 * sum(p.numel() for p in SimCLR(recipe.model, recipe.head).parameters())
    assert large - small <= 1.1 * gradients


def test_every_recipe_says_its_micro_batch_and_older_runs_had_none() -> None:
    assert {Recipe.load(name).train.micro_batch for name in recipe_names()} == {0}
    recipe = Recipe.load("cifar10", overrides={"train.micro_batch": "256"})
    assert recipe.train.micro_batch == 256
    text = Recipe.load("cifar10").to_toml()
    assert Recipe.from_toml(text.replace("micro_batch = 0\n", "")) == Recipe.load("cifar10")


@pytest.mark.parametrize("micro", [-1, 300, 1024])
def test_a_micro_batch_that_does_not_divide_the_batch_is_refused(micro: int) -> None:
    with pytest.raises(UsageError, match=r"train\.micro_batch must be 0 .* divisor of train\.batch_size = 512"):
        Recipe.load("cifar10", overrides={"train.micro_batch": micro})
