"""A run ends within its minutes: what counts, how steps are timed, and how the plan follows the machine."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures.disturbed_runs import narrow, store, trainer_of
from simclr_engine import planning
from simclr_engine.budget import CHECKPOINTS, Clock, Pace, cost_after, rest_within
from simclr_engine.checkpoint import load_checkpoint
from simclr_engine.cli.pretrain import command
from simclr_engine.device import Platform
from simclr_engine.distributed import World
from simclr_engine.errors import UsageError
from simclr_engine.flops import flops_per_step
from simclr_engine.planning import RunOptions, prepare
from simclr_engine.pretraining import Interrupted, _follow, _work, pretrain
from simclr_engine.progress import Progress
from simclr_engine.recipe import Recipe
from simclr_engine.run import Run
from simclr_engine.training import Plan, Trainer

QUIET = RunOptions(device="cpu", fused=False, quiet=True)


def recipe(**overrides: Any) -> Recipe:
    """Four steps of eight images an epoch, and an epoch as short as the recipe says."""
    base = {
        "train.batch_size": 8,
        "train.epochs": 25,
        "train.precision": "fp32",
        "train.checkpoint_epochs": 0,
        "head.hidden": [16],
        "head.dropout": 0.2,
        "monitor.knn_epochs": 0,
        "monitor.log_steps": 1,
        "short_runs": [],
    }
    return Recipe.load("cifar10-sgd", base | overrides)


def unnamed(**overrides: Any) -> Recipe:
    """The same, of which the user set neither batch nor rate."""
    made = recipe(**overrides)
    made._named = frozenset()
    return made


class Machine:
    """A machine on a clock of its own.

    Attributes:
        now: its clock, seconds.
        seconds: of a step of eight images, from its number.
        compiling: seconds that the first step of a compiled model takes besides.
        cold: seconds that the first part of a step takes besides, for each view size.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        seconds: Callable[[int], float],
        compiling: float = 0,
        extra: float = 0,
        cold: float = 0,
    ) -> None:
        self.now, self.seconds, self.compiling = 0.0, seconds, compiling
        self.steps, self.parts = 0, 0
        warm = set[int]()
        machine, step, part = self, Trainer.train_step, Trainer.run_part

        def train_step(trainer: Trainer, number: int, size: int | None = None) -> Any:
            machine.steps += 1
            machine.now += machine.seconds(number) * trainer.recipe.train.batch_size / 8
            if trainer.platform.compile:
                machine.now, machine.compiling = machine.now + machine.compiling, 0
                trainer.forward = trainer.model
            return step(trainer, number, size)

        def run_part(trainer: Trainer, images: int, size: int) -> None:
            machine.parts += 1
            machine.now += (images + extra) / 8 * machine.seconds(0) + (cold if size not in warm else 0)
            warm.add(size)
            part(trainer, images, size)

        monkeypatch.setattr(Trainer, "train_step", train_step)
        monkeypatch.setattr(Trainer, "run_part", run_part)
        monkeypatch.setattr("time.perf_counter", lambda: machine.now)


# A plan whose length changes


def plan(total: int = 100, **overrides: Any) -> Plan:
    return Plan.of(recipe(**overrides), store(), total)


@pytest.mark.parametrize("total", [60, 200])
def test_the_schedule_of_a_relaid_plan_goes_on_from_where_it_stood(total: int) -> None:
    before = plan(**{"schedule.warmup_epochs": 2.0})
    after = before.relay(40, total)
    assert [after.lr(step) for step in range(41)] == [before.lr(step) for step in range(41)]
    rates = [after.lr(step) for step in range(40, total)]
    assert rates == sorted(rates, reverse=True)
    share = 60 / (total - 40)  # of the first plan, for each step
    for step in (41, 50, total - 1):
        expected = before.peak_lr * 0.5 * (1 + math.cos(math.pi * (40 + share * (step - 40) - 8) / 92))
        assert after.lr(step) == pytest.approx(expected)
    again = after.relay(50, 55)
    assert [again.lr(step) for step in range(51)] == [after.lr(step) for step in range(51)]
    assert again.planned(54) > after.planned(54) and again.planned(55) == 100
    assert again.relaid == ((40, 100), (50, total)) and before.relay(40, 100) is before


def test_a_plan_that_was_never_relaid_has_the_rates_of_its_steps() -> None:
    before = plan(**{"schedule.warmup_epochs": 2.0})
    for step in (0, 7, 8, 33, 99):
        factor = (step + 1) / 8 if step < 8 else 0.5 * (1 + math.cos(math.pi * (step - 8) / 92))
        assert before.lr(step) == before.peak_lr * factor and before.planned(step) == step


def test_view_sizes_keep_their_share_of_a_relaid_rest_and_its_cost() -> None:
    before, per_step = plan(**{"train.resolution": [[0.5, 8], [1.0, 12]]}), {8: 1.0, 12: 3.0}
    for after in (before.relay(20, 68), before.relay(20, 180), before.relay(20, 180).relay(60, 100)):
        sizes = [after.view_size(step) for step in range(after.total_steps)]
        assert sizes == sorted(sizes)
        for begin in (60, 65, after.total_steps):
            assert cost_after(after, begin, per_step) == sum(per_step[size] for size in sizes[begin:])
    assert [before.relay(20, 68).view_size(step) for step in (37, 38)] == [8, 12]  # 3/8 of the 48 remaining steps


def test_a_rest_that_is_shortened_goes_on_with_its_rate() -> None:
    before = plan()
    short = rest_within(before, 40, 30.0, {8: 1.0})
    assert short.total_steps == 70 and short.lr(40) == before.lr(40)
    with pytest.raises(UsageError, match="too short"):
        rest_within(before, 40, 0.9, {8: 1.0})


# What steps are timed for


@pytest.mark.parametrize("seconds", [0.2, 3.0, 26.0, 49.0])
def test_timing_takes_a_tenth_of_the_minutes_at_most(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    with narrow():
        machine = Machine(monkeypatch, lambda step: seconds, extra=1)
        trainer, estimate = prepare(recipe(), store(), replace(QUIET, max_minutes=3))
    assert machine.now <= 1.05 * 18 and estimate is not None
    assert (machine.steps > 0) == (seconds < 1)
    assert 0.999 * seconds <= estimate.seconds_per_step[8] <= 1.5 * seconds
    assert trainer.plan.total_steps == min(100, int((0.96 * 180 - machine.now) / estimate.seconds_per_step[8]))


@pytest.mark.parametrize("cold", [0.0, 5.0])
def test_what_is_made_once_does_not_count_as_the_speed(cold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    with narrow():
        machine = Machine(monkeypatch, lambda step: 2.0, cold=cold)
        _, estimate = prepare(recipe(), store(), replace(QUIET, max_minutes=3))
    assert estimate is not None and estimate.seconds_per_step[8] == pytest.approx(2.0)
    assert cold < machine.now <= 18


def test_a_size_without_time_for_timing_follows_from_a_smaller_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with narrow():
        Machine(monkeypatch, lambda step: 2.0, cold=6.0)
        sizes = recipe(**{"train.resolution": [[0.5, 8], [1.0, 16]]})
        _, estimate = prepare(sizes, store(), replace(QUIET, max_minutes=3))
    assert estimate is not None and estimate.seconds_per_step == pytest.approx({8: 2.0, 16: 8.0})


def test_a_machine_too_slow_for_the_batch_gets_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "FEWEST_STEPS", 20)
    monkeypatch.setattr(planning, "SMALLEST_BATCH", 2)
    with narrow():
        machine = Machine(monkeypatch, lambda step: 26.0)
        trainer, _ = prepare(unnamed(), store(), replace(QUIET, max_minutes=3))
    assert trainer.recipe.train.batch_size == 2 and trainer.plan.total_steps >= 15
    assert trainer.plan.peak_lr == pytest.approx(0.03 * 2 / 256)
    assert any("batch 8 → 2, because" in note and "fit into the time" in note for note in trainer.platform.notes)
    assert machine.now <= 18


def test_a_batch_that_the_user_set_stays_however_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    with narrow():
        Machine(monkeypatch, lambda step: 100.0)
        trainer, _ = prepare(recipe(), store(), replace(QUIET, max_minutes=3))
        assert (trainer.recipe.train.batch_size, trainer.plan.total_steps) == (8, 1)
        Machine(monkeypatch, lambda step: 500.0)
        with pytest.raises(UsageError, match="too short for one step"):
            prepare(recipe(), store(), replace(QUIET, max_minutes=3))


def test_timing_says_how_long_it_may_take(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with narrow():
        Machine(monkeypatch, lambda step: 1.0)
        prepare(recipe(), store(), replace(QUIET, max_minutes=3, quiet=False))
        assert "timing some steps, for at most 9 s" in capsys.readouterr().err
        monkeypatch.setattr(planning, "FEWEST_STEPS", 20)
        monkeypatch.setattr(planning, "SMALLEST_BATCH", 2)
        Machine(monkeypatch, lambda step: 26.0, cold=20.0)  # the first part takes more than all time for timing
        prepare(unnamed(), store(), replace(QUIET, max_minutes=3, quiet=False))
        said = capsys.readouterr().err
        assert "timing some steps\n" in said and "at most -" not in said
        prepare(recipe(), store(), replace(QUIET, max_minutes=3))
        assert capsys.readouterr().err == ""


# Compilation


def test_compilation_is_said_and_left_out_of_the_minutes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with narrow():
        machine, clock = Machine(monkeypatch, lambda step: 1.0, compiling=46.0), Clock(1)
        options = replace(QUIET, compile=True, max_minutes=1, quiet=False)
        trainer, _ = prepare(recipe(), store(), options, clock=clock)
    assert trainer.platform.compile and clock.uncounted == 47.0
    assert clock.seconds() == machine.now - 47.0 and 45 <= trainer.plan.total_steps <= 57
    said = capsys.readouterr().err
    assert said.index("compiling the encoder for views of 8 px") < said.index("compiled in 47 s")


def test_compilation_leaves_the_trainer_as_it_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(recipe())
    before, state = {k: v.clone() for k, v in trainer.model.state_dict().items()}, torch.get_rng_state()
    with trainer.undone():
        trainer.train_step(0)
        trainer.train_step(1)
        assert not torch.equal(before["head.0.weight"], trainer.model.state_dict()["head.0.weight"])
    assert trainer.step == 0 and torch.equal(state, torch.get_rng_state()) and not trainer.optimizer.state
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.model.state_dict().items())


def test_whether_to_compile_depends_on_the_steps_of_the_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool | None, int]] = []

    def choose(device: str, precision: str, compile: bool | None = None, steps: int = 0) -> Platform:
        asked.append((compile, steps))
        return Platform(torch.device("cpu"), "fp32", channels_last=True, compile=False)

    monkeypatch.setattr(planning, "choose_platform", choose)
    with narrow():
        Machine(monkeypatch, lambda step: 1.0)
        trainer, _ = prepare(recipe(**{"train.epochs": 10_000}), store(), replace(QUIET, max_minutes=1))
    assert [steps for compile, steps in asked if compile is None] == [trainer.plan.total_steps]
    assert trainer.plan.total_steps < 60


# A machine whose speed changes


def paced(out: Path, **options: Any) -> Run:
    with narrow():
        return pretrain(recipe(), store(), out, device="cpu", fused=False, quiet=True, **options)


def state(out: Path) -> dict[str, Any]:
    return load_checkpoint(out / "checkpoints" / "last.pt")


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.0, 1.5, 3.0])
def test_a_run_ends_in_its_minutes_though_the_speed_changes(
    factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch, lambda step: 2.0 * (factor if step >= 15 else 1))
    run = paced(tmp_path / "run", max_minutes=2)
    planned = run.environment["plan"]
    assert 0.9 * 120 <= machine.now <= 1.1 * 120 or planned["total_steps"] == 100
    assert len(planned["relaid"]) <= len(CHECKPOINTS) and (planned["relaid"] == []) == (factor == 1.0)
    rows = [row for row in run.metrics if row["event"] == "train"]
    assert rows[-1]["step"] == planned["total_steps"] == state(tmp_path / "run")["step"]
    rates = [row["lr"] for row in rows]
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.05 * rates[0]
    assert {row["view_size"] for row in rows} == {8} and run.recipe.train.batch_size == 8


def test_a_faster_machine_gives_no_more_compute_than_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, lambda step: 2.0 if step < 15 else 0.4)
    limit = 60 * flops_per_step(recipe(), 8) / 1e15
    run = paced(tmp_path / "run", max_minutes=1.5, max_pflop=1.01 * limit)
    planned = run.environment["plan"]
    assert planned["relaid"] and planned["relaid"][0][1] < planned["total_steps"] == 60  # of 100
    assert planned["pflop"] == pytest.approx(limit)


def test_a_resumed_run_replays_a_relaid_plan_bitwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        Machine(patch, lambda step: 2.0 * (1.5 if step >= 10 else 1))
        whole = paced(tmp_path / "whole", max_minutes=2)
    changes = whole.environment["plan"]["relaid"]
    assert changes
    with monkeypatch.context() as patch:
        Machine(patch, lambda step: 2.0 * (1.5 if step >= 10 else 1))
        gradients = Trainer.gradients

        def stopped(trainer: Trainer, step: int, size: int | None = None) -> Any:
            if trainer.plan.relaid and len(trainer.plan.relaid) == len(changes):
                os.kill(os.getpid(), signal.SIGTERM)
            return gradients(trainer, step, size)

        patch.setattr(Trainer, "gradients", stopped)
        with pytest.raises(Interrupted):
            paced(tmp_path / "run", max_minutes=2)
    left = state(tmp_path / "run")
    assert left["relaid"] == changes and left["step"] < left["total_steps"]
    run = paced(tmp_path / "run", resume=True)  # at the speed of this machine, and of no clock's
    first, second = state(tmp_path / "whole"), state(tmp_path / "run")
    assert [name for name in first["model"] if not torch.equal(first["model"][name], second["model"][name])] == []
    assert second["relaid"] == run.environment["plan"]["relaid"] == changes
    assert run.environment["plan"]["total_steps"] == whole.environment["plan"]["total_steps"]


def test_rank_0_decides_the_length_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, lambda step: 2.0)
    trainer = trainer_of(recipe())
    trainer.world = World(rank=1, size=2)
    monkeypatch.setattr(World, "same", lambda world, value: 77)
    trainer.step = 20
    pace = Pace(Clock(1), trainer.plan, 0, {8: 1.0}, lambda plan, step: 100)
    noted: list[str] = []
    recording: Any = type("Recording", (), {"note_plan": staticmethod(noted.append)})
    with Progress(100, show=False) as bar:
        _follow(trainer, recording, bar, pace)
        assert trainer.plan.total_steps == 77 and bar.total == 77 * 8**2
    assert trainer.plan.relaid == ((20, 100),) and "100 → 77 steps" in noted[0]


def test_a_step_on_larger_views_is_more_of_the_progress() -> None:
    plan = Plan.of(recipe(**{"train.resolution": [[0.5, 8], [1.0, 0]]}), store())
    plan = replace(plan, total_steps=10, image_size=16)
    assert [_work(plan, step) for step in (0, 5, 6, 10)] == [0, 5 * 64, 5 * 64 + 256, 5 * 64 + 5 * 256]


def test_packing_is_not_counted_and_the_time_before_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, lambda step: 1.0)

    def images(*args: object) -> Any:
        machine.now += 500.0
        return store(), {}

    def limited(*args: object) -> None:
        machine.now += 10.0

    monkeypatch.setattr("simclr_engine.pretraining._images", images)
    monkeypatch.setattr("simclr_engine.pretraining._stopped", limited)
    run = paced(tmp_path / "run", max_minutes=1)
    assert run.environment["uncounted_seconds"] == 500.0
    assert 0.9 * 60 <= machine.now - 500 <= 1.1 * 60


def test_the_command_s_minutes_count_from_before_pytorch_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, told = Machine(monkeypatch, lambda step: 1.0), list[float | None]()
    made, machine.now = recipe(), 42.0

    def pretrain(*args: object, began: float | None = None, **options: object) -> None:
        told.append(began)
        raise Interrupted("enough")

    def load(*args: object, **options: object) -> Recipe:
        machine.now += 7.0  # what imports take
        return made

    monkeypatch.setattr("simclr_engine.pretraining.pretrain", pretrain)
    monkeypatch.setattr(Recipe, "load", load)
    with pytest.raises(Interrupted):
        command.main(["--max-minutes", "1"], standalone_mode=False)
    assert told == [42.0]
    assert Clock(1, 42.0).left() == 0.96 * 60 - 7.0
