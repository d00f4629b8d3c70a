"""Training: equal to a plain step, equal after any stop, honest when it fails, silent towards the host."""

from __future__ import annotations

import gc
import json
import math
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fixtures import TESTS
from fixtures.disturbed_runs import narrow
from fixtures.launches import NoWaiting, WaitsForTheDevice
from simclr_engine import load_encoder, planning, recording
from simclr_engine.budget import cost_after, steps_within
from simclr_engine.calibration import calibrate
from simclr_engine.checkpoint import newest_checkpoint
from simclr_engine.data.store import ImageStore
from simclr_engine.device import Platform
from simclr_engine.errors import CheckFailed, DataError, PlatformError, UsageError
from simclr_engine.kernels import pick_augment
from simclr_engine.kernels.augmentation import native
from simclr_engine.model import SimCLR
from simclr_engine.optim import build_optimizer
from simclr_engine.planning import RunOptions, describe, prepare
from simclr_engine.pretraining import Interrupted, pretrain
from simclr_engine.recipe import Recipe
from simclr_engine.resuming import trained_on
from simclr_engine.run import Run
from simclr_engine.training import Backends, Meter, Plan, Trainer, epoch_order

FP32 = Platform(torch.device("cpu"), "fp32", channels_last=True, compile=False)


def tiny_store(n: int = 48, size: int = 12, seed: int = 0) -> ImageStore:
    """Blobs of two kinds: enough structure for a loss to fall."""
    rng = np.random.default_rng(seed)
    images = np.clip(rng.normal(rng.integers(30, 220, (n, 1, 1, 3)), 25, (n, size, size, 3)), 0, 255).astype(np.uint8)
    return ImageStore.from_arrays(images, np.arange(n) % 2, ("even", "odd"), name="tiny", split="train")


def tiny_recipe(**overrides: Any) -> Recipe:
    """Small enough for a step in milliseconds; dropout, so that the generator's state matters too."""
    base = {
        "train.batch_size": 16,
        "train.epochs": 3,
        "train.precision": "fp32",
        "head.hidden": [16],
        "head.dimension": 8,
        "head.dropout": 0.2,
        "monitor.log_steps": 2,
        "monitor.knn_epochs": 1,
        "monitor.knn_images": 40,
        "train.checkpoint_epochs": 1,
        "optimizer.lr": 0.06,
        "short_runs": [],
    }
    return Recipe.load("cifar10-sgd", overrides=base | overrides)


def trainer_for(recipe: Recipe, store: ImageStore) -> Trainer:
    trainer = Trainer(Plan.of(recipe, store), FP32, store, Backends("torch", "torch"))
    trainer.model.train()
    return trainer


def weights(directory: Path) -> dict[str, torch.Tensor]:
    state, _, _ = newest_checkpoint(directory / "checkpoints")
    model: dict[str, torch.Tensor] = state["model"]
    return model


def assert_equal_weights(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    different = [k for k in first if not torch.equal(first[k], second[k])]
    assert different == []


@pytest.fixture
def _narrow() -> Iterator[None]:
    """For what is said of plans and records, not of the network."""
    with narrow():
        yield


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    pretrain(tiny_recipe(), tiny_store(), out, device="cpu", quiet=True)
    return out


def test_one_step_equals_a_plain_one_with_the_full_matrix() -> None:
    recipe, store = tiny_recipe(**{"head.dropout": 0.0}), tiny_store()
    trainer = trainer_for(recipe, store)
    torch.manual_seed(recipe.train.seed)
    plain = SimCLR(recipe.model, recipe.head).train()
    optimizer = build_optimizer(plain, recipe.optimizer, trainer.plan.lr(0))
    views = trainer.views(trainer.sample_ids(0), 0, 12)
    z = torch.nn.functional.normalize(plain(views), dim=1)
    logits = (z @ z.T / recipe.loss.temperature).fill_diagonal_(-math.inf)
    loss = torch.nn.functional.cross_entropy(logits, (torch.arange(32) + 16) % 32)
    loss.backward()
    optimizer.step()
    ours, _ = trainer.train_step(0)
    assert float(ours) == pytest.approx(float(loss.detach()), rel=1e-5)
    for (name, p), q in zip(trainer.model.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-4, atol=1e-6), name


def test_the_loss_falls_below_chance() -> None:
    adam = {
        "optimizer.name": "adam",
        "optimizer.lr": 1e-3,
        "optimizer.lr_per_256": False,
    }
    recipe = tiny_recipe(**{"train.epochs": 10, "loss.temperature": 0.2, "head.dropout": 0.0, **adam})
    trainer = trainer_for(recipe, tiny_store())
    rows: list[dict[str, float]] = []
    meter = Meter(trainer)
    for step in trainer.remaining():
        if row := meter.row(*trainer.train_step(step)):
            rows.append(row)
    assert rows[0]["chance"] == pytest.approx(math.log(31))
    assert rows[-1]["loss"] < rows[0]["chance"] - 0.5, [row["loss"] for row in rows]
    assert rows[-1]["top1"] > 2 / 31


@pytest.mark.parametrize("optimizer", ["lars", "sgd", "adam", "adamw", "muon"])
def test_a_step_reads_nothing_from_the_device(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Meta tensors take the paths of an accelerator and have shapes but no values: whatever would make the host wait
    # for a value of the device, or for a shape that depends on one, raises on them.
    monkeypatch.setattr(
        torch, "autocast", lambda *args, **kwargs: nullcontext()
    )  # which knows no meta; all is fp32 here
    recipe, store = tiny_recipe(**{"optimizer.name": optimizer, "augment.blur": 0.5}), tiny_store()
    meta = Platform(torch.device("meta"), "fp32", channels_last=True, compile=False)
    trainer = Trainer(Plan.of(recipe, store), meta, store, Backends("torch", "torch"))
    trainer.model.train()
    for step in range(2):
        loss, z = trainer.train_step(step)
    assert (loss.device.type, tuple(z.shape)) == ("meta", (32, 8))
    with pytest.raises(RuntimeError):
        loss.item()  # so the check can fail
    with pytest.raises(RuntimeError):
        z.nonzero()


@pytest.mark.parametrize(
    ("precision", "optimizer"), [("bf16", "sgd"), ("bf16", "lars"), ("fp16", "lars"), ("fp16", "muon")]
)
def test_a_step_in_low_precision_waits_for_nothing(precision: str, optimizer: str) -> None:
    recipe = tiny_recipe(**{"optimizer.name": optimizer, "head.dropout": 0.0})
    platform = Platform(torch.device("cpu"), precision, channels_last=True, compile=False)
    trainer = Trainer(Plan.of(recipe, tiny_store()), platform, tiny_store(), Backends("native", "torch"))
    trainer.model.train()
    before = [p.detach().clone() for p in trainer.model.parameters()]
    with NoWaiting():
        for step in range(3):
            loss, z = trainer.train_step(step)
        with pytest.raises(WaitsForTheDevice):
            loss.item()  # so the check can fail
    assert z.isfinite().all() and all(p.isfinite().all() for p in trainer.model.parameters())
    assert not all(torch.equal(p, q) for p, q in zip(trainer.model.parameters(), before, strict=True))


def test_an_overflow_in_fp16_changes_neither_weights_nor_momentum() -> None:
    recipe = tiny_recipe(**{"optimizer.name": "lars"})
    platform = Platform(torch.device("cpu"), "fp16", channels_last=True, compile=False)
    trainer = Trainer(Plan.of(recipe, tiny_store()), platform, tiny_store(), Backends("torch", "torch"))
    trainer.model.train()

    def held() -> list[torch.Tensor]:
        momentum = [s["momentum_buffer"] for s in trainer.optimizer.state.values()]
        return [t.detach().clone() for t in (*trainer.model.parameters(), *momentum)]

    trainer.train_step(0)
    before = held()
    trainer.scaler.update(2.0**120)  # float32 gradients of fp16 products become infinite
    trainer.train_step(1)
    assert all(torch.equal(p, q) for p, q in zip(held(), before, strict=True))
    trainer.scaler.update(2.0**10)
    trainer.train_step(2)
    assert not torch.equal(held()[0], before[0])


@pytest.mark.parametrize("optimizer", ["lars", "muon"])
def test_numbers_kept_on_the_device_are_those_of_the_host(optimizer: str) -> None:
    recipe = tiny_recipe(**{"optimizer.name": optimizer, "train.seed": 2**62 + 3, "head.dropout": 0.0})
    plain, kept = trainer_for(recipe, tiny_store()), trainer_for(recipe, tiny_store())
    kept._keep_numbers_on(torch.device("cpu"))
    for step in range(5):  # into the second epoch
        losses = [trainer.train_step(step)[0] for trainer in (plain, kept)]
        assert torch.equal(*losses) or step > 0  # the rate is a float32 there
    for p, q in zip(plain.model.parameters(), kept.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    ids = torch.arange(16)
    assert torch.equal(plain.views(ids, 7, 12), kept.views(ids, 7, 12))
    assert not torch.equal(plain.views(ids, 7, 12), kept.views(ids, 8, 12))
    first, second = (trainer.state_dict()["optimizer"]["param_groups"] for trainer in (plain, kept))
    assert [group["lr"] for group in first] == [group["lr"] for group in second]
    assert all(type(group["lr"]) is float for group in second)


def test_a_warm_up_that_is_cut_is_said() -> None:
    recipe = tiny_recipe(**{"schedule.warmup_epochs": 2.0})
    assert Plan.of(recipe, tiny_store(), 30).notes() == ["the warm-up is cut from 2 to 1 epochs, 10 % of the run"]
    assert Plan.of(recipe, tiny_store(), 60).notes() == []
    _, estimate = prepare(recipe, tiny_store(), RunOptions(device="cpu", fused=False))
    trainer, _ = prepare(recipe, tiny_store(), RunOptions(device="cpu", fused=False))
    assert "note     the warm-up is cut from 2 to 0 epochs, 10 % of the run" in describe(trainer, estimate)


def test_an_epoch_shows_each_image_once_and_the_next_in_another_order() -> None:
    recipe, store = tiny_recipe(), tiny_store()
    trainer = trainer_for(recipe, store)
    first = torch.cat([trainer.sample_ids(s) for s in range(3)])
    second = torch.cat([trainer.sample_ids(s) for s in range(3, 6)])
    assert torch.equal(first.sort().values, torch.arange(48))
    assert torch.equal(second.sort().values, torch.arange(48))
    assert not torch.equal(first, second)
    assert torch.equal(trainer.sample_ids(0), epoch_order(48, 0, 0)[:16])  # going back gives the same again


@pytest.mark.usefixtures("_narrow")
def test_resuming_a_run_with_muon_is_bitwise_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, store = tiny_recipe(**{"optimizer.name": "muon", "monitor.knn_epochs": 0}), tiny_store()
    pretrain(recipe, store, tmp_path / "whole", device="cpu", quiet=True)
    _stop_after(monkeypatch, 4)
    with pytest.raises(Interrupted):
        pretrain(recipe, store, tmp_path / "stopped", device="cpu", quiet=True)
    monkeypatch.undo()
    pretrain(recipe, store, tmp_path / "stopped", device="cpu", resume=True, quiet=True)
    whole, stopped = (newest_checkpoint(tmp_path / run / "checkpoints")[0] for run in ("whole", "stopped"))
    assert_equal_weights(tmp_path / "whole", tmp_path / "stopped")
    assert whole["step"] == stopped["step"] == 9
    for key, held in whole["optimizer"]["state"].items():
        assert torch.equal(held["momentum_buffer"], stopped["optimizer"]["state"][key]["momentum_buffer"])
    rates = [group["lr"] * group["lr_scale"] for group in stopped["optimizer"]["param_groups"]]
    assert rates[1:] == pytest.approx([rates[0] * recipe.optimizer.rest_lr / recipe.optimizer.lr] * 2)


def test_resuming_at_the_end_of_an_epoch_is_bitwise_the_same(
    whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stop_after(monkeypatch, 3)
    with pytest.raises(Interrupted):
        pretrain(tiny_recipe(), tiny_store(), tmp_path / "run", device="cpu", quiet=True)
    monkeypatch.undo()
    pretrain(tiny_recipe(), tiny_store(), tmp_path / "run", device="cpu", resume=True, quiet=True)
    assert_equal_weights(whole_run, tmp_path / "run")


def test_resuming_in_the_middle_of_an_epoch_is_bitwise_the_same(
    whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stop_after(monkeypatch, 4)
    with pytest.raises(Interrupted) as caught:
        pretrain(tiny_recipe(), tiny_store(), tmp_path / "run", device="cpu", quiet=True)
    assert caught.value.exit_code == 130
    assert not Run.open(tmp_path / "run").environment["finished"]
    monkeypatch.undo()
    run = pretrain(tiny_recipe(), tiny_store(), tmp_path / "run", device="cpu", resume=True, quiet=True)
    assert_equal_weights(whole_run, tmp_path / "run")
    steps = [r["step"] for r in run.metrics if r["event"] == "train"]
    assert steps == sorted(set(steps))
    assert steps[-1] == 9
    assert run.environment["finished"]


def _stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """As if a signal came during `step`."""
    real = Trainer.train_step

    def train_step(self: Trainer, number: int, size: int | None = None) -> Any:
        if number + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, number, size)

    monkeypatch.setattr(Trainer, "train_step", train_step)


SCRIPT = """
import sys, time
sys.path[:0] = {paths!r}
from test_training import tiny_recipe, tiny_store
from simclr_engine.pretraining import pretrain
from simclr_engine.training import Trainer
real = Trainer.train_step
def slow(self, step, size=None):
    time.sleep(0.15)
    return real(self, step, size)
Trainer.train_step = slow
pretrain(tiny_recipe(), tiny_store(), {out!r}, device="cpu", quiet=True)
"""


@pytest.mark.parametrize(
    ("number", "leaves"), [(signal.SIGKILL, "epoch_0001.pt"), (signal.SIGTERM, "last.pt"), (signal.SIGINT, "last.pt")]
)
def test_a_killed_process_is_resumed_to_the_same_weights(
    whole_run: Path, tmp_path: Path, number: signal.Signals, leaves: str
) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(paths=[str(Path(__file__).parent), str(TESTS)], out=str(out))]
    )
    deadline = time.monotonic() + 90
    while not (out / "checkpoints" / "epoch_0001.pt").exists():
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(timeout=30) != 0
    assert (out / "checkpoints" / leaves).exists()
    assert not (out / "encoder.safetensors").exists()
    run = pretrain(tiny_recipe(), tiny_store(), out, device="cpu", resume=True, quiet=True)
    assert_equal_weights(whole_run, out)
    assert run.environment["finished"]


def test_a_run_leaves_what_the_design_promises(whole_run: Path) -> None:
    run = Run.open(whole_run)
    for name in (
        "recipe.toml",
        "environment.json",
        "metrics.jsonl",
        "encoder.safetensors",
        "model.safetensors",
        "views.npz",
    ):
        assert (whole_run / name).is_file(), name
    assert list((whole_run / "tensorboard").iterdir())
    assert sorted(p.name for p in (whole_run / "checkpoints").glob("epoch_*")) == [
        f"epoch_000{i}.pt" for i in (1, 2, 3)
    ]
    assert (
        run.environment["backends"] == {"augment": "torch", "nt_xent": "torch"}
        or run.environment["backends"]["nt_xent"]
    )
    assert run.environment["data"]["image_size"] == run.image_size == 12
    events = {row["event"] for row in run.metrics}
    assert events == {"train", "knn"}
    knn = [row for row in run.metrics if row["event"] == "knn"]
    assert [row["step"] for row in knn] == [3, 6, 9]
    assert all(0 <= row["accuracy"] <= 1 and row["rankme"] >= 1 for row in knn)
    assert run.recipe == trained_on(tiny_recipe(), "tiny", 12)


def test_the_saved_encoder_is_the_trained_one(whole_run: Path) -> None:
    state = weights(whole_run)
    encoder = load_encoder(whole_run)
    assert not encoder.training
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, state[f"encoder.{name}"]), name
    alone = load_encoder(whole_run / "encoder.safetensors")
    x = torch.randn(2, 3, 12, 12)
    assert torch.equal(alone(x), encoder(x))


def test_views_npz_holds_the_images_and_sixteen_views(whole_run: Path) -> None:
    with np.load(whole_run / "views.npz", allow_pickle=False) as file:
        assert np.array_equal(file["originals"], tiny_store().images[:4])
        assert file["views"].shape == (4, 16, 12, 12, 3)
        assert file["views"].std() > 5


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Trainer.train_step

    def poisoned(self: Trainer, step: int, size: int | None = None) -> Any:
        if step == 4:
            with torch.no_grad():
                next(self.model.parameters()).fill_(math.nan)
        return real(self, step, size)

    monkeypatch.setattr(Trainer, "train_step", poisoned)
    with pytest.raises(CheckFailed, match="diverged") as caught:
        pretrain(tiny_recipe(), tiny_store(), tmp_path / "run", device="cpu", quiet=True)
    assert "metrics.jsonl" in str(caught.value)
    state, _, _ = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert state["step"] == 3
    assert all(torch.isfinite(t).all() for t in state["model"].values())


def test_a_state_that_is_not_finite_is_never_saved() -> None:
    trainer = trainer_for(tiny_recipe(), tiny_store())
    trainer.state_dict()
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(math.inf)
    with pytest.raises(CheckFailed, match="no longer finite"):
        trainer.state_dict()


def test_a_full_disk_while_saving_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    real, calls = recording.save_last, []

    def full(folder: Path, state: dict[str, Any]) -> None:
        calls.append(state["step"])
        if len(calls) == 2:
            monkeypatch.setattr("simclr_engine.checkpoint.os.fsync", _no_space)
        real(folder, state)

    monkeypatch.setattr(recording, "save_last", full)
    with pytest.raises(PlatformError, match="No space"):
        pretrain(tiny_recipe(), tiny_store(), out, device="cpu", quiet=True)
    assert newest_checkpoint(out / "checkpoints")[0]["step"] == calls[0] == 3


def _no_space(_: int) -> None:
    raise OSError(28, "No space left on device")


def test_resuming_on_other_data_or_with_another_recipe_is_refused(whole_run: Path) -> None:
    with pytest.raises(DataError, match="not what the run was started on"):
        pretrain(tiny_recipe(), tiny_store(seed=1), whole_run, device="cpu", resume=True, quiet=True)
    with pytest.raises(UsageError, match=r"loss\.temperature"):
        pretrain(
            tiny_recipe(**{"loss.temperature": 0.3}), tiny_store(), whole_run, device="cpu", resume=True, quiet=True
        )


def test_bad_sizes_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(DataError, match="larger than the data"):
        pretrain(tiny_recipe(**{"train.batch_size": 64}), tiny_store(), out, device="cpu", quiet=True)
    with pytest.raises(DataError, match="at least two images"):
        pretrain(tiny_recipe(), tiny_store(1), out, device="cpu", quiet=True)
    assert not out.exists()


def test_unlabelled_images_train_and_the_monitor_says_what_it_can(tmp_path: Path) -> None:
    labelled = tiny_store()
    store = ImageStore.from_arrays(labelled.images, name="mine", split="all")
    run = pretrain(tiny_recipe(**{"train.epochs": 1}), store, tmp_path / "run", device="cpu", quiet=True)
    knn = [row for row in run.metrics if row["event"] == "knn"]
    assert knn and "accuracy" not in knn[0] and knn[0]["rankme"] >= 1


def test_labels_do_not_reach_the_training(whole_run: Path, tmp_path: Path) -> None:
    store = tiny_store()
    shuffled = ImageStore(store.images, 1 - store.labels, store.class_names, store.fingerprint, "tiny", "train")
    pretrain(tiny_recipe(), shuffled, tmp_path / "run", device="cpu", quiet=True)
    assert_equal_weights(whole_run, tmp_path / "run")


def test_progressive_resolution_follows_the_recipe() -> None:
    recipe, store = tiny_recipe(**{"train.resolution": [[0.5, 8], [1.0, 12]]}), tiny_store()
    plan = Plan.of(recipe, store)
    assert [plan.view_size(s) for s in range(9)] == [8] * 4 + [12] * 5
    assert cost_after(plan, 0, {8: 1.0, 12: 10.0}) == 54.0
    trainer = trainer_for(recipe, store)
    assert trainer.views(trainer.sample_ids(0), 0, plan.view_size(0)).shape == (32, 3, 8, 8)


@pytest.mark.parametrize("stepped", [False, True])
def test_a_trainer_and_its_weights_are_freed_when_it_is_dropped(stepped: bool) -> None:
    trainer = trainer_for(tiny_recipe(), tiny_store())
    if stepped:
        trainer.train_step(0)
    kept = [weakref.ref(trainer), *map(weakref.ref, trainer.model.parameters())]
    gc.collect()
    gc.disable()  # what only the collector finds stays in the device's memory while another trainer is made
    try:
        del trainer
        assert [ref() for ref in kept] == [None] * len(kept)
    finally:
        gc.enable()


def test_four_views_train() -> None:
    trainer = trainer_for(tiny_recipe(**{"train.views": 4}), tiny_store())
    loss, z = trainer.train_step(0)
    assert z.shape == (64, 8)
    assert abs(float(loss) - math.log(63)) < 1.0


@pytest.mark.usefixtures("_narrow")
def test_a_time_budget_becomes_a_number_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan.of(tiny_recipe(**{"train.resolution": [[0.8, 16], [1.0, 32]]}), tiny_store())
    assert steps_within(plan, 100.0, {16: 0.25, 32: 1.0}) == int(100 / (0.8 * 0.25 + 0.2 * 1.0))
    with pytest.raises(UsageError, match="too short"):
        steps_within(plan, 0.1, {16: 0.25, 32: 1.0})
    monkeypatch.setattr(planning, "calibrate", lambda *_: {12: 60.0})
    run = pretrain(tiny_recipe(), tiny_store(), tmp_path / "run", device="cpu", max_minutes=8, quiet=True)
    plan = run.environment["plan"]
    assert (plan["total_steps"], plan["max_minutes"], plan["estimated_seconds"]) == (7, 8, 420.0)  # 96 % of 480 s
    rows = [r for r in run.metrics if r["event"] == "train"]
    assert rows[-1]["step"] == 7
    assert rows[-1]["lr"] == pytest.approx(
        plan["peak_lr"] * (1 + math.cos(math.pi * 6 / 7)) / 2
    )  # the decay fits the run


@pytest.mark.usefixtures("_narrow")
def test_a_run_that_the_budget_makes_short_takes_the_settings_for_short_runs_and_resumes_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = [{"epochs": 2, "settings": {"train.views": 3, "train.resolution": [[0.5, 8], [1.0, 0]]}}]
    recipe = tiny_recipe(short_runs=short)
    monkeypatch.setattr(
        planning,
        "calibrate",
        lambda trainer, *_: {s: 30.0 * trainer.recipe.train.views for _, s in trainer.plan.phases()},
    )
    long = pretrain(recipe, tiny_store(), tmp_path / "long", device="cpu", quiet=True)
    assert long.recipe.train.views == 2 and long.recipe.short_runs == ()
    # 96 % of 400 s are 6 steps of 60 s, two epochs; with three views a step takes 90 s, and 4 steps remain.
    run = pretrain(recipe, tiny_store(), tmp_path / "run", device="cpu", max_minutes=400 / 60, quiet=True)
    assert run.environment["plan"]["total_steps"] == 4
    assert (run.recipe.train.views, run.recipe.train.resolution) == (3, ((0.5, 8), (1.0, 0)))
    assert [r["view_size"] for r in run.metrics if r["event"] == "train"][-1] == 12
    assert any("train.views = 3" in note for note in run.environment["notes"])
    again = pretrain(recipe, tiny_store(), tmp_path / "run", device="cpu", resume=True, quiet=True)
    assert again.recipe == run.recipe and again.environment["plan"]["total_steps"] == 4
    with pytest.raises(UsageError, match=r"saw: train\.views = 2, the run has 3\n"):
        other = recipe.replace(train__views=2)
        pretrain(other, tiny_store(), tmp_path / "run", device="cpu", resume=True, quiet=True)


@pytest.mark.usefixtures("_narrow")
def test_kernels_are_chosen_by_the_flags_and_what_ran_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backends(**flags: Any) -> tuple[dict[str, str], str]:
        recipe = tiny_recipe(**{"train.epochs": 1})
        run = pretrain(recipe, tiny_store(), tmp_path / "run", device="cpu", quiet=True, overwrite=True, **flags)
        return run.environment["backends"], "\n".join(run.environment["notes"])

    monkeypatch.setattr(native, "why_not", lambda device: "there was no compiler")
    assert backends() == (
        {"augment": "torch", "nt_xent": "torch"},
        "augmentation by torch: the fastest for cpu; no native: there was no compiler",
    )
    assert backends(fused=False) == ({"augment": "torch", "nt_xent": "torch"}, "")
    monkeypatch.undo()
    if why_not := native.why_not(torch.device("cpu")):
        pytest.skip(why_not)
    assert backends() == ({"augment": "native", "nt_xent": "torch"}, "")
    assert backends(fused=False, augment="native")[0]["augment"] == "native"
    chosen, said = backends(fused=True)
    assert chosen["augment"] == "native" and "NT-Xent by torch: the fastest for cpu" in said
    with pytest.raises(PlatformError, match="cannot serve cpu here"):
        backends(augment="triton")
    with pytest.raises(UsageError, match="no augmentation backend 'cudnn'"):
        backends(augment="cudnn")


@pytest.mark.usefixtures("_narrow")
def test_kernels_are_chosen_for_what_a_short_run_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def pick(backend: str, device: torch.device, dimension: int, temperature: float) -> tuple[str, str]:
        asked.append(temperature)
        return "torch", "the only one"

    monkeypatch.setattr(planning, "pick_nt_xent", pick)
    recipe = tiny_recipe(short_runs=[{"epochs": 5, "settings": {"loss.temperature": 0.01}}])
    trainer, _ = planning.prepare(recipe, tiny_store(), planning.RunOptions(device="cpu"))
    assert trainer.recipe.loss.temperature == 0.01 and asked[-1] == 0.01


def test_training_sees_the_same_views_from_every_backend() -> None:
    recipe, store = tiny_recipe(), tiny_store()
    plan = Plan.of(recipe, store)
    by_torch = Trainer(plan, FP32, store, Backends("torch", "torch")).views(torch.arange(16), 1, 12)
    for backend in ("native", "dali"):
        try:
            pick_augment(backend, "cpu")
        except ValueError:
            continue
        views = Trainer(plan, FP32, store, Backends(backend, "torch")).views(torch.arange(16), 1, 12)
        assert views.shape == by_torch.shape and views.is_contiguous(memory_format=torch.channels_last)
        difference = (views - by_torch).abs()
        assert difference.max() <= 1e-5 if backend == "native" else difference.mean() < 0.3


def test_calibration_times_every_view_size() -> None:
    recipe, store = tiny_recipe(**{"train.resolution": [[0.5, 8], [1.0, 12]]}), tiny_store()
    seconds = calibrate(trainer_for(recipe, store))
    assert sorted(seconds) == [8, 12]
    assert all(s > 0 for s in seconds.values())


def test_bfloat16_and_float32_agree_to_its_precision() -> None:
    recipe, store = tiny_recipe(**{"head.dropout": 0.0}), tiny_store()
    low = Trainer(
        Plan.of(recipe, store),
        Platform(torch.device("cpu"), "bf16", True, False),
        store,
        Backends("torch", "torch"),
    )
    low.model.train()
    expected, _ = trainer_for(recipe, store).train_step(0)
    got, _ = low.train_step(0)
    assert float(got) == pytest.approx(float(expected), rel=2e-2)
    assert float(got) != float(expected)  # so bf16 was really used
    assert all(p.dtype == torch.float32 for p in low.model.parameters())


def test_dry_run_estimates_and_writes_nothing(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "simclr_engine",
        "pretrain",
        "--data",
        "digits",
        "--recipe",
        "quick-10",
        "--batch-size",
        "8",
        "--dry-run",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["estimated_seconds"] > 0
    assert document["steps"] == 10 * (document["steps"] // 10) > 0
    assert list(tmp_path.iterdir()) == []
