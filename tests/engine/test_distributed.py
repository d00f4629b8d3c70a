"""Training over ranks (gloo, 2 and 4 processes) against one process, and what happens when a rank does not behave.

Batch norm takes its statistics from what a rank sees, so two modes are exact: frozen statistics, where no row depends
on another, and one process with micro-batches of a rank's share, which takes the same statistics in the same groups.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fixtures import training_ranks as ranks_of
from fixtures.training_ranks import BATCH, STEPS, Case, recipe_of
from simclr_engine import distributed, planning, pretraining, training
from simclr_engine.cli import pretrain as command_line
from simclr_engine.distributed import World, check_shares, start_world
from simclr_engine.errors import PlatformError, UsageError
from simclr_engine.model import SimCLR
from simclr_engine.monitor import OnlineMonitor
from simclr_engine.planning import RunOptions
from simclr_engine.pretraining import Interrupted, pretrain
from simclr_engine.run import Run
from simclr_engine.training import epoch_order

MICRO = BATCH // 4  # the share of one of four ranks
# The recipe's own rate; at eight times that, the rounding of one step is magnified by the next ones.
CALM = {"optimizer.lr": 0.06}
LARS = {"optimizer.name": "lars", "optimizer.form": "google", "optimizer.lr": 2.0}
MUON = {"optimizer.name": "muon", "optimizer.lr": 0.02, "optimizer.lr_per_256": False}
CASES = {
    "frozen, fp64": Case(frozen=True),
    "frozen, fp32": Case("fp32", frozen=True, more=CALM),
    "trained, fp64": Case(micro_batch=MICRO),
    "trained, fp32": Case("fp32", micro_batch=MICRO, more=CALM),
    "three views, LARS": Case(micro_batch=MICRO, more={"train.views": 3, **LARS}),
    "trained, fp64, Muon": Case(micro_batch=MICRO, more=MUON),
    "synchronised, fp64": Case(batch_norm="sync"),
    "smaller micro-batch": Case(micro_batch=MICRO // 2, more=CALM),
    "trained, fp32, twice the batch": Case("fp32", micro_batch=2 * MICRO, more=CALM | {"train.batch_size": 2 * BATCH}),
}
# Compared step by step at the weights that the ranks have there; the others run freely for all twenty. Small batches
# magnify the rounding of the steps before: in fp32 to 1.6e-5 with 16 images, and batch norm over the four rows of two
# images even that of float64 (2e-12 after 17 steps).
EACH_STEP = {"synchronised, fp64", "frozen, fp32", "trained, fp32", "smaller micro-batch"}
MICRO_RUN = {"train.micro_batch": MICRO}  # gives the same batch norm on 1, 2 and 4 ranks


@pytest.fixture(autouse=True)
def _own_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """In runs that `pretrain` makes too, which are in float64 as those of the ranks are."""
    monkeypatch.setattr(training, "SimCLR", ranks_of.SmallNetwork)
    monkeypatch.setattr(planning, "choose_platform", ranks_of.in_float64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def two(folder: Path) -> list[list[Any]]:
    """By rank: training, conversation, a run that is stopped, and its second half."""
    stopped = str(folder / "stopped")
    jobs = [
        ("train", list(CASES.values())),
        ("talk",),
        ("pretrain", stopped, MICRO_RUN, 7),
        ("copy", stopped, str(folder / "from two to two")),
        ("pretrain", str(folder / "from two to two"), MICRO_RUN, 0, True),
        ("pretrain", stopped, {"train.batch_size": 15}),
        ("copy", stopped, str(folder / "longer on two")),
        ("pretrain", str(folder / "longer on two"), MICRO_RUN, 0, True, -1, 12),
    ]
    return ranks_of.start(2, jobs, folder / "two")


@pytest.fixture(scope="module")
def four(folder: Path, two: list[list[Any]]) -> list[list[Any]]:
    """By rank: training, conversation, the second half of the run that two ranks began."""
    resumed = str(folder / "from two to four")
    jobs = [
        ("train", list(CASES.values())),
        ("talk",),
        ("copy", str(folder / "stopped"), resumed),
        ("pretrain", resumed, MICRO_RUN, 0, True),
    ]
    return ranks_of.start(4, jobs, folder / "four")


@pytest.fixture(params=[2, 4])
def found(request: pytest.FixtureRequest) -> list[list[Any]]:
    name = {2: "two", 4: "four"}[request.param]
    result: list[list[Any]] = request.getfixturevalue(name)
    assert [len(mine) for mine in result] == [8 if request.param == 2 else 4] * request.param
    return result


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Any]]:
    """Every case in one process."""
    return {name: ranks_of.train(case) for name, case in CASES.items()}


def relative(ours: torch.Tensor, truth: torch.Tensor) -> float:
    return float((ours - truth).norm() / truth.norm())


@pytest.mark.parametrize("name", list(CASES))
def test_losses_gradients_and_weights_of_twenty_steps_are_those_of_one_process(
    name: str, found: list[list[Any]], alone: dict[str, dict[str, Any]]
) -> None:
    case, truth, at = CASES[name], alone[name], list(CASES).index(name)
    for_loss, for_gradient = (1e-12, 1e-12) if case.precision == "fp64" else (1e-6, 1e-5)
    assert relative(truth["gradients"][-1], truth["gradients"][0]) > 0.1  # it trains
    if name in EACH_STEP:
        truth = ranks_of.train(case, follow=found[0][0][at]["weights"])
    for rank in found:
        mine = rank[0][at]
        for step in range(STEPS):
            assert float(mine["losses"][step]) == pytest.approx(float(truth["losses"][step]), rel=for_loss), step
            assert relative(mine["gradients"][step], truth["gradients"][step]) < for_gradient, step
            assert relative(mine["z"][step], truth["z"][step]) < for_gradient, step
        if name not in EACH_STEP:
            assert relative(mine["weights"][-1], truth["weights"][-1]) < for_gradient


def test_running_statistics_of_synchronised_batch_norm_are_those_of_one_process(found: list[list[Any]]) -> None:
    at = list(CASES).index("synchronised, fp64")
    truth = ranks_of.train(CASES["synchronised, fp64"], follow=found[0][0][at]["weights"])["buffers"]
    assert float(truth["encoder.1.running_mean"].abs().max()) > 0.01
    for rank in found:
        assert rank[0][at]["buffers"].keys() == truth.keys()
        for name, buffer in rank[0][at]["buffers"].items():
            torch.testing.assert_close(buffer, truth[name], rtol=1e-12, atol=1e-12)
            assert torch.equal(buffer, found[0][0][at]["buffers"][name])


def test_all_ranks_hold_the_same_bits_after_twenty_steps(found: list[list[Any]]) -> None:
    for case in range(len(CASES)):
        for rank in found[1:]:
            assert torch.equal(rank[0][case]["weights"][-1], found[0][0][case]["weights"][-1])
            assert torch.equal(rank[0][case]["gradients"][-1], found[0][0][case]["gradients"][-1])


def test_a_step_sees_the_same_images_on_any_number_of_ranks_and_none_twice(found: list[list[Any]]) -> None:
    order = torch.cat([epoch_order(40, 0, epoch)[:32] for epoch in range(STEPS // 2)])
    for step in range(STEPS):
        together = torch.cat([rank[0][0]["ids"][step] for rank in found])
        assert torch.equal(together, order[step * BATCH : (step + 1) * BATCH])
        assert len(together.unique()) == BATCH


def test_batch_norm_is_local_to_a_rank_on_the_cpu_and_that_is_said(
    two: list[list[Any]], alone: dict[str, dict[str, Any]]
) -> None:
    case = list(CASES).index("trained, fp64")
    whole = ranks_of.train(Case())  # statistics over the whole batch
    assert relative(two[0][0][case]["gradients"][0], whole["gradients"][0]) > 1e-3
    means = [rank[0][case]["buffers"]["encoder.1.running_mean"] for rank in two]
    assert not torch.equal(*means)
    trainer = ranks_of.trainer_of(Case())
    object.__setattr__(trainer, "world", World(0, 2))
    assert any("batch norm local to each rank" in line for line in pretraining.describe(trainer, None))
    assert any("8 images of each epoch" in line for line in pretraining.describe(trainer, None))


def test_ranks_agree_and_fail_together(found: list[list[Any]]) -> None:
    size = len(found)
    for rank, (_, said, *_rest) in enumerate(found):
        assert said["world"] == {"rank": rank, "size": size, "local_rank": rank, "device": "cpu"}
        assert said["any"] == (True, False, True)
        assert said["broadcast"] == [0.0, 0.0]
        assert said["same"] == {"rank": 0}
        assert said["leaders"] == rank
        for who in ("first", "leaders"):
            kind, code, message = said[f"{who} failed"]
            assert (kind, code) == ("DataError" if rank == 0 else "PeerFailed", 4)
            assert "no images here" in message
        kind, code, message = said["others failed"]
        assert (kind, code) == ("PeerFailed" if rank == 0 else "DataError", 4) and "no images here" in message
        assert "the ranks differ in the images" in said["agree"]


def test_the_monitor_shares_its_images_out_and_finds_what_one_process_finds(found: list[list[Any]]) -> None:
    network = ranks_of.SmallNetwork(None, recipe_of().head)
    network.double().load_state_dict(found[0][1]["network"])
    monitor = OnlineMonitor(ranks_of.blobs(33), recipe_of().augment, 31, ranks_of.in_float64())
    expected = monitor._features(network)
    assert expected.shape == (31, 16)
    for _, said, *_rest in found:
        np.testing.assert_allclose(said["features"], expected, rtol=1e-6, atol=1e-7)
    assert found[0][1]["row"] == pytest.approx(monitor(network))
    assert found[1][1]["row"] == {}


def losses(run: Path) -> dict[int, float]:
    rows = [row for row in Run.open(run).metrics if row["event"] == "train"]
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})  # written once
    return {row["step"]: row["loss"] for row in rows}


def test_a_run_goes_on_with_another_number_of_ranks_along_the_same_curve(
    folder: Path, two: list[list[Any]], four: list[list[Any]]
) -> None:
    assert [mine[2]["error"] for mine in two] == ["Interrupted"] * 2  # one had the signal, both stopped at one step
    assert all("step 7 of 20" in mine[2]["message"] and mine[2]["exit_code"] == 130 for mine in two)
    assert [mine[4] for mine in two] == [{"finished": True, "ranks": 2}] * 2
    assert [mine[3] for mine in four] == [{"finished": True, "ranks": 4}] * 4
    shutil.copytree(folder / "stopped", folder / "from two to one")
    for name, resume in (("from two to one", True), ("one", False)):
        pretrain(recipe_of(**MICRO_RUN), ranks_of.blobs(), folder / name, device="cpu", resume=resume, quiet=True)
    whole = losses(folder / "one")
    assert list(whole) == list(range(1, STEPS + 1))
    for name in ("from two to one", "from two to two", "from two to four"):
        assert losses(folder / name) == pytest.approx(whole, rel=1e-10), name
        knn = [row["step"] for row in Run.open(folder / name).metrics if row["event"] == "knn"]
        assert knn == [4, 8, 12, 16, 20]
    run = Run.open(folder / "from two to four")
    assert run.environment["ranks"] == 4 and run.environment["batch_norm"] == "local"


def test_a_longer_run_is_planned_alike_on_all_ranks(folder: Path, two: list[list[Any]]) -> None:
    assert [mine[7] for mine in two] == [{"finished": True, "ranks": 2}] * 2
    shutil.copytree(folder / "stopped", folder / "longer on one")
    longer = {"train.epochs": 12}
    pretrain(
        recipe_of(**MICRO_RUN), ranks_of.blobs(), folder / "longer on one", overrides=longer, device="cpu", resume=True,
        quiet=True,
    )  # fmt: skip
    one, both = losses(folder / "longer on one"), losses(folder / "longer on two")
    assert list(both) == list(range(1, 25))
    assert both == pytest.approx(one, rel=1e-10)
    plan = Run.open(folder / "longer on two").environment["plan"]
    assert (plan["total_steps"], plan["lengthened"]) == (24, [{"after_step": 7, "from_steps": 20}])


def test_figures_of_the_log_are_those_of_the_whole_batch(folder: Path, two: list[list[Any]]) -> None:
    pretrain(recipe_of(**MICRO_RUN), ranks_of.blobs(), folder / "figures", device="cpu", quiet=True)
    ours, truth = (
        [r for r in Run.open(folder / name).metrics if r["event"] == "train"] for name in ("from two to two", "figures")
    )
    for mine, expected in zip(ours, truth, strict=True):
        for key in ("p_pos", "top1", "lr", "chance", "epoch"):
            assert mine[key] == pytest.approx(expected[key], rel=1e-10), key


def test_a_batch_that_does_not_divide_is_refused_on_every_rank_with_the_nearest_sizes(two: list[list[Any]]) -> None:
    first, second = (mine[5] for mine in two)
    assert first["error"] == "UsageError" and "--batch-size 14 or 16" in first["message"]
    assert (second["error"], second["exit_code"]) == ("PeerFailed", 2)


@pytest.mark.parametrize(
    ("batch", "micro", "ranks", "says"),
    [(10, 0, 4, "--batch-size 8 or 12"), (3, 0, 4, "--batch-size 4"), (16, 8, 4, r"train\.micro_batch=2 or 4|=4")],
)
def test_shares_that_do_not_work_out_are_refused(batch: int, micro: int, ranks: int, says: str) -> None:
    train = recipe_of(**{"train.batch_size": batch, "train.micro_batch": micro}).train
    with pytest.raises(UsageError, match=says):
        check_shares(train, ranks)


def test_gradients_are_sent_in_order_in_messages_of_one_dtype_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "BUCKET_BYTES", 100)
    tensors = [torch.zeros(n) for n in (5, 20, 1, 1, 30, 2)] + [torch.zeros(3, dtype=torch.float64)]
    sent = list(distributed._buckets(tensors))
    assert [[len(t) for t in bucket] for bucket in sent] == [[5, 20], [1, 1, 30], [2], [3]]
    assert [id(t) for bucket in sent for t in bucket] == [id(t) for t in tensors]
    assert list(distributed._buckets([])) == []


def test_the_command_that_resumes_names_the_choice_of_batch_norm() -> None:
    assert RunOptions(batch_norm="sync").words() == ["--batch-norm", "sync"]
    assert RunOptions().words() == []


def test_a_world_of_one_does_nothing() -> None:
    world, tensor = World(), torch.randn(6, 2)
    assert world.main and world.group is None
    assert world.share(tensor) is not None and torch.equal(world.share(tensor), tensor)
    assert world.gather(tensor) is tensor and world.gather_views(tensor, 2) is tensor
    assert world.any(True, False) == (True, False)
    assert world.leaders_first(lambda: 3) == world.same(3) == 3
    calls: list[int] = []
    world.leaders_first(lambda: calls.append(1))  # once, whatever it gives
    assert calls == [1]
    before = tensor.clone()
    world.average_([tensor])
    world.broadcast_([tensor])
    assert torch.equal(tensor, before)
    with start_world("cpu") as found:
        assert found == World(device="cpu")


def test_a_killed_rank_or_one_that_hangs_is_an_error_of_the_others_and_no_wait(folder: Path) -> None:
    out = str(folder / "killed")
    jobs = [("hang", str(folder)), ("pretrain", out, MICRO_RUN, 0, False, 6)]
    first, second = ranks_of.start(2, jobs, folder / "faults", limit=60)
    assert "does not answer" in first[0] and first[0].startswith("PlatformError")
    assert len(second) == 1  # it was killed in the second job
    assert first[1]["error"] == "PlatformError" and "--resume" in first[1]["message"]
    assert not Run.open(out).environment["finished"]


def test_processes_without_a_launcher_or_a_device_are_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="torchrun --nproc-per-node"), start_world("cpu"):
        pass
    for name, value in {"RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="--device mps"), start_world("mps"):
        pass
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(PlatformError, match="--nproc-per-node 2"), start_world("cuda"):
        pass


@pytest.mark.parametrize(
    ("arguments", "devices", "says"),
    [
        (["--gpus", "2"], 1, "--nproc-per-node 2 -m simclr_engine"),
        (["--gpus", "0"], 1, "1 or more"),
        (["--gpus", "2", "--device", "cpu"], 2, "--nproc-per-node 2 -m simclr_engine"),
    ],
)
def test_gpus_counts_cuda_devices_that_are_there(
    arguments: list[str], devices: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    with pytest.raises((UsageError, PlatformError), match=says):
        command_line.command.main(arguments, standalone_mode=False)


def test_gpus_starts_the_same_command_once_for_each_device_and_hands_its_exit_code_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The launcher is real, its processes are not ours: what they are given is what is looked at.
    stand_in = tmp_path / "python"
    stand_in.write_text(
        f'#!/bin/sh\necho "$RANK $WORLD_SIZE $TORCHELASTIC_RESTART_COUNT $*" > {tmp_path}/$RANK\nexit 3\n'
    )
    stand_in.chmod(0o755)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    assert distributed.launch(2, ["pretrain", "--gpus", "2"]) == 3
    for rank in range(2):
        assert (tmp_path / str(rank)).read_text() == f"{rank} 2 0 -m simclr_engine pretrain --gpus 2\n"


def test_only_the_launch_that_made_a_run_resumes_it_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "ours")
    pretrain(recipe_of(**{"train.epochs": 1}), ranks_of.blobs(), out, device="cpu", quiet=True)

    def after(directory: Path, resume: bool, overwrite: bool) -> tuple[bool, bool]:
        options = pretraining._after_restart(directory, RunOptions(resume=resume, overwrite=overwrite))
        return options.resume, options.overwrite

    assert after(out, False, True) == (False, True)  # no restart: as the user said
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert after(out, False, True) == after(out, False, False) == (True, False)
    for other in ("another", "none", ""):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", other)
        assert after(out, False, False) == (False, False)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "ours")
    for file in (out / "checkpoints").iterdir():
        file.unlink()
    assert after(out, False, False) == (False, True)  # it died before it had saved anything
    assert after(tmp_path / "none", False, False) == (False, False)


FAULTY = """
import os, signal, torch
from simclr_engine import planning
from simclr_engine.cli.main import main
from simclr_engine.device import Platform
from simclr_engine.training import Trainer
real = Trainer.train_step
def train_step(self, step, size=None):
    if step == 3 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, step, size)
Trainer.train_step = train_step
planning.choose_platform = lambda *_, **__: Platform(torch.device("cpu"), "fp64", True, False)
main()
"""


@pytest.mark.slow
def test_torchrun_trains_the_command_on_two_processes_and_goes_on_after_a_rank_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # ResNet-18, the real command, one JSON document: the same run as in one process, with a fault in between.
    (tmp_path / "faulty.py").write_text(FAULTY)
    settings = {"train.checkpoint_epochs": 1, "train.micro_batch": 4, "monitor.log_steps": 1, "monitor.knn_images": 20}
    arguments = ["--recipe", "cifar10-sgd", "--data", "digits", "--limit", "16", "--epochs", "3", "--batch-size", "8"]
    arguments += [f"--set={key}={value}" for key, value in settings.items()]
    arguments += ["--set=data.size=16", "--set=short_runs=[]", "--precision=fp32", "--device=cpu", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    command = [*launcher, str(tmp_path / "faulty.py"), "pretrain", *arguments, "--out", str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 6
    run = Run.open(tmp_path / "two")
    assert run.environment["ranks"] == 2 and run.environment["finished"]
    monkeypatch.setattr(training, "SimCLR", SimCLR)
    command_line.command.main([*arguments, "--out", str(tmp_path / "one")], standalone_mode=False)
    # In float64, for this network magnifies rounding: in fp32, weights that differ by 6e-8 give losses up to 5e-4 apart
    # within six steps, and how much depends on the processor's kernels.
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-10)


def test_an_interrupted_rank_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise Interrupted("stopped; the run is saved")

    monkeypatch.setattr(pretraining, "pretrain", interrupted)
    with pytest.raises(Interrupted):
        command_line.command.main([], standalone_mode=False)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as caught:
        command_line.command.main([], standalone_mode=False)
    assert caught.value.code == 130
