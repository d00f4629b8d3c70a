"""A run goes on with what it was begun with, from anywhere, and what it says to paste can be pasted."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures.disturbed_runs import at_step, interrupted, narrow, newest_step, store, train
from fixtures.image_files import class_tree, write_tree
from fixtures.synthetic_run import write_run
from simclr_engine import planning, stopping
from simclr_engine.budget import cost_after, rest_within
from simclr_engine.checkpoint import load_checkpoint, save_checkpoint
from simclr_engine.cli.main import main
from simclr_engine.command_line import launch_command, resume_command, shell_command
from simclr_engine.data import load_data
from simclr_engine.distributed import check_gpus
from simclr_engine.errors import DataError, UsageError
from simclr_engine.evaluation.encoders import open_target
from simclr_engine.export.probe import choose_probe
from simclr_engine.pretraining import Interrupted, pretrain
from simclr_engine.recipe import Recipe
from simclr_engine.report.comparison import notes, open_runs
from simclr_engine.report.content import commands, load_content
from simclr_engine.resuming import Stopped
from simclr_engine.run import Run
from simclr_engine.training import Plan, Trainer

GIVEN = ["--recipe", "cifar10-sgd", "--limit", "20", "--seed", "3", "--batch-size", "4", "--epochs", "2"]
GIVEN += ["--precision", "fp32", "--set", "head.hidden=[16]", "--set", "short_runs=[]", "--set", "monitor.knn_epochs=0"]
STEPS = 10  # 20 images, 4 a step, 2 epochs


@dataclass(frozen=True)
class Done:
    """What a command left."""

    code: int
    out: str
    err: str


Call = Callable[..., Done]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """The command line in this process, with a narrow encoder; after `stop` steps it gets SIGTERM."""

    def called(*words: object, cwd: Path, stop: int = 0) -> Done:
        code, real = 0, Trainer.train_step

        def train_step(self: Trainer, step: int, size: int | None = None) -> Any:
            if step + 1 == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(self, step, size)

        with monkeypatch.context() as patch, narrow():
            patch.chdir(cwd)
            patch.setattr(sys, "argv", ["simclr-engine", *map(str, words)])
            patch.setattr(Trainer, "train_step", train_step)
            try:
                main()
            except SystemExit as stopped:
                assert isinstance(stopped.code, int | None)
                code = stopped.code or 0
        shown = capsys.readouterr()
        return Done(code, shown.out, shown.err)

    return called


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with `photos` in it; another one beside it has others of the same names."""
    for name, seed in (("home", 0), ("elsewhere", 5000)):
        write_tree(tmp_path / name / "photos", class_tree(each=12, seed=seed))
    return tmp_path / "home"


@pytest.fixture
def stopped(home: Path, call: Call) -> Path:
    """A run on `photos`, stopped after three of its ten steps."""
    done = call("pretrain", "--data", "photos", "--out", "run", "--device", "cpu", *GIVEN, cwd=home, stop=3)
    assert done.code == 130 and newest_step(home / "run") == 3
    return home / "run"


def whole(home: Path, call: Call) -> Path:
    """The same run, never stopped."""
    done = call("pretrain", "--data", "photos", "--out", "whole", "--device", "cpu", *GIVEN, cwd=home)
    assert done.code == 0, done.err
    return home / "whole"


def tensors(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_checkpoint(run / "checkpoints" / "last.pt")["model"]
    return state


def assert_same(a: Path, b: Path) -> None:
    first, second = tensors(a), tensors(b)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert (a / "recipe.toml").read_text() == (b / "recipe.toml").read_text()


# What needs to be said, and what does not


@pytest.mark.parametrize("form", ["--out RUN --resume", "--resume RUN", "--resume=RUN", "--resume --out RUN"])
def test_a_stopped_run_goes_on_with_nothing_but_its_name(form: str, home: Path, call: Call, stopped: Path) -> None:
    done = call("pretrain", *form.replace("RUN", "run").split(), "--device", "cpu", cwd=home)
    assert done.code == 0, done.err
    assert_same(stopped, whole(home, call))
    run = Run.open(stopped)
    assert run.environment["finished"] and run.environment["plan"]["total_steps"] == STEPS
    assert run.environment["data"]["limit"] == 20 and run.recipe.train.seed == 3


def test_a_run_goes_on_from_another_folder_with_its_own_images(
    home: Path, call: Call, stopped: Path, tmp_path: Path
) -> None:
    done = call("pretrain", "--resume", stopped, "--device", "cpu", cwd=tmp_path / "elsewhere")
    assert done.code == 0, done.err
    assert_same(stopped, whole(home, call))


def test_the_command_that_began_a_run_goes_on_with_it(home: Path, call: Call, stopped: Path) -> None:
    again = ["pretrain", "--data", "photos", "--out", "run", "--device", "cpu", *GIVEN, "--resume"]
    done = call(*again, cwd=home)
    assert done.code == 0, done.err
    assert Run.open(stopped).environment["command"] == shell_command(*again[:-1])  # how it was begun


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seed", "5"], "train.seed = 5, the run has 3"),
        (["--batch-size", "8"], "train.batch_size = 8, the run has 4"),
        (["--epochs", "1"], "--epochs 1, the run has 2"),
        (["--precision", "bf16"], "train.precision = bf16, the run has fp32"),
        (["--limit", "12"], "--limit 12, the run has 20"),
        (["--set", "optimizer.lr=0.7"], "optimizer.lr = 0.7, the run has 0.03"),
        (["--set", "data.size=32"], "data.size = 32, the run has 16"),
        (["--set", "data.source=pictures"], "data.source = pictures, the run has photos"),
        (["--recipe", "quick-10"], "recipe quick-10, the run has cifar10-sgd; "),
    ],
)
def test_settings_that_differ_are_refused_with_both_values(
    options: list[str], said: str, home: Path, call: Call, stopped: Path
) -> None:
    done = call("pretrain", "--resume", "run", *options, cwd=home)
    assert done.code == 2 and said in done.err, done.err
    assert newest_step(stopped) == 3


def test_settings_that_are_the_run_s_pass(home: Path, call: Call, stopped: Path) -> None:
    assert call("pretrain", "--resume", "run", "--seed", 3, "--limit", 20, "--device", "cpu", cwd=home).code == 0
    assert newest_step(stopped) == STEPS


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--resume", ""], "--resume names no run"),
        (["--resume", "run", "--out", "other"], "--resume run, --out other"),
        (["--resume", "run", "--overwrite"], "--resume and --overwrite cannot be used together"),
        (["--resume", "run", "--dry-run"], "--resume and --dry-run cannot be used together"),
    ],
)
def test_what_names_no_single_run_is_refused(words: list[str], said: str, tmp_path: Path, call: Call) -> None:
    done = call("pretrain", *words, cwd=tmp_path)
    assert done.code == 2 and said in done.err
    assert list(tmp_path.iterdir()) == []


def test_python_resumes_without_a_recipe_and_refuses_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    interrupted(out, monkeypatch)
    with narrow():
        with pytest.raises(UsageError, match=r"loss\.temperature = 0\.3, the run has 0\.5"):
            pretrain(None, store(), out, overrides={"loss.temperature": 0.3}, device="cpu", resume=True, quiet=True)
        with pytest.raises(DataError, match="the images of the run were passed from Python"):
            pretrain(out=out, device="cpu", resume=True, quiet=True)
        run = pretrain(data=store(), out=out, device="cpu", fused=False, resume=True, quiet=True)
    assert run.environment["finished"] and run.recipe.name == "cifar10-sgd"


# More epochs


def steps_of(run: Path) -> list[tuple[int, float]]:
    """(step, learning rate) of every row of the log."""
    return [(row["step"], row["lr"]) for row in Run.open(run).metrics if row["event"] == "train"]


def test_more_epochs_go_on_and_a_later_resume_replays_them_bitwise(home: Path, call: Call) -> None:
    for name in ("once", "twice"):
        assert call("pretrain", "--data", "photos", "--out", name, "--device", "cpu", *GIVEN, cwd=home).code == 0
    more = ["--epochs", "4", "--device", "cpu"]
    done = call("pretrain", "--resume", "once", *more, cwd=home)
    assert done.code == 0, done.err
    assert call("pretrain", "--resume", "twice", *more, cwd=home, stop=13).code == 130
    twice = Run.open(home / "twice")
    assert open_target(twice).notes == ("the run of this encoder has not ended: 13 of 20 steps are done",)
    assert twice.unfinished == "13 of 20 steps" and not (home / "twice" / "encoder.safetensors").exists()
    assert call("pretrain", "--resume", "twice", "--device", "cpu", cwd=home).code == 0  # without its length again
    assert_same(home / "once", home / "twice")
    assert steps_of(home / "once") == steps_of(home / "twice")
    for name in ("once", "twice"):
        run = Run.open(home / name)
        plan = run.environment["plan"]
        assert (plan["total_steps"], plan["epochs"], run.recipe.train.epochs) == (20, 4.0, 4)
        assert plan["lengthened"] == [{"after_step": 10, "from_steps": 10}]
        assert run.environment["finished"] and run.unfinished == ""
        assert load_checkpoint(run.directory / "checkpoints" / "epoch_0002.pt")["step"] == 10
    # The schedule is that of a run of four epochs.
    run = Run.open(home / "once")
    plan = Plan.of(run.recipe, load_data(str(home / "photos"), split="train", size=16).limit(20))
    assert [(s, lr) for s, lr in steps_of(home / "once") if s > 10] == [(s, plan.lr(s - 1)) for s in (15, 20)]


def test_a_longer_plan_is_saved_before_its_first_step(home: Path, call: Call, stopped: Path) -> None:
    done = call("pretrain", "--resume", "run", "--epochs", 5, "--device", "cpu", cwd=home, stop=4)
    assert done.code == 130, done.err
    state = load_checkpoint(stopped / "checkpoints" / "previous.pt")
    assert (state["step"], state["total_steps"]) == (3, 25)
    assert Recipe.from_toml(state["recipe"]).train.epochs == 5
    again = call("pretrain", "--resume", "run", "--epochs", 5, "--device", "cpu", cwd=home, stop=6)  # the same command
    assert again.code == 130, again.err
    assert Run.open(stopped).environment["plan"]["lengthened"] == [{"after_step": 3, "from_steps": 10}]


def test_a_plan_that_minutes_have_cut_goes_on_to_its_epochs_when_they_are_named() -> None:
    recipe = Recipe.load("cifar10-sgd", {"train.batch_size": 4, "train.epochs": 100})
    environment = {"plan": {"max_minutes": 3.0, "total_steps": 46}, "seconds": 170.0}
    one = Stopped(Run(Path("run"), recipe, environment), recipe, {"total_steps": 46, "step": 46})
    asked = {"train.epochs": "100"}
    assert one.lengthened(asked, 3.0, 20) is one  # the command that it was started with
    assert one.lengthened({}, None, 20) is one
    longer = one.lengthened(asked, None, 20)
    assert longer.longer and longer.state["total_steps"] == 500 and longer.minutes_left(None) is None
    assert longer.minutes_left(3.0) == pytest.approx(3 - 170 / 60)  # of the whole run, as for any other limit
    more = one.lengthened({"train.epochs": 20}, None, 20)
    assert more.state["total_steps"] == 100 and Recipe.from_toml(more.state["recipe"]).train.epochs == 20
    with pytest.raises(UsageError, match="longer, not shorter"):
        one.lengthened({"train.epochs": 9}, None, 20)


def test_a_limit_of_compute_holds_until_more_epochs_are_named() -> None:
    recipe = Recipe.load("cifar10-sgd", {"train.batch_size": 4, "train.epochs": 100})
    environment = {"plan": {"max_minutes": None, "max_pflop": 0.1, "total_steps": 46}}
    one = Stopped(Run(Path("run"), recipe, environment), recipe, {"total_steps": 46, "step": 30})
    assert one.lengthened({"train.epochs": "100"}, None, 20) is one
    assert one.lengthened({"train.epochs": "100"}, 3.0, 20) is one  # another limit of time lifts no limit of compute
    assert one.lengthened({"train.epochs": "101"}, None, 20).state["total_steps"] == 505


# Its images


def test_images_that_were_moved_are_named_and_the_run_remembers_where(home: Path, call: Call, stopped: Path) -> None:
    (home / "photos").rename(home / "pictures")
    done = call("pretrain", "--resume", "run", cwd=home)
    assert done.code == 4 and "no longer there" in done.err and str(home / "photos") in done.err
    done = call("pretrain", "--resume", "run", "--data", "pictures", "--device", "cpu", cwd=home)
    assert done.code == 0, done.err
    run = Run.open(stopped)
    assert run.locate_data() == str(home / "pictures")
    assert run.recipe.data.source == run.data["name"] == "photos"  # what it was begun with


def test_other_images_are_refused_with_both_fingerprints(home: Path, call: Call, stopped: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "photos"
    done = call("pretrain", "--resume", "run", "--data", other, cwd=home)
    assert done.code == 4, done.err
    prints = [load_data(str(place)).limit(20).fingerprint[:12] for place in (other, home / "photos")]
    assert prints[0] != prints[1] and all(one in done.err for one in prints)
    assert str(home / "photos") in done.err and newest_step(stopped) == 3


def test_what_was_trained_on_is_what_the_recipe_says(home: Path, call: Call, stopped: Path) -> None:
    saved = Recipe.from_toml(load_checkpoint(stopped / "checkpoints" / "last.pt")["recipe"])
    for recipe in (Run.open(stopped).recipe, saved):
        assert (recipe.data.source, recipe.data.size) == ("photos", 16)
    shown = call("compare", "run", whole(home, call), "--json", cwd=home)
    assert [run["data"] for run in json.loads(shown.out)["runs"]] == ["photos", "photos"]
    assert not any(key.startswith("data.") for key in json.loads(shown.out)["differences"])


def test_an_absolute_path_stands_in_environment_json_alone(home: Path, call: Call, tmp_path: Path) -> None:
    given = ["pretrain", "--data", home / "photos", "--out", "run", "--device", "cpu", *GIVEN]
    assert call(*given, cwd=tmp_path).code == 0
    assert call("report", "run", cwd=tmp_path).code == 0
    run = Run.open(tmp_path / "run")
    assert (run.recipe.data.source, run.data["name"], run.data["path"]) == ("photos", "photos", str(home / "photos"))
    holding = [p.name for p in run.directory.rglob("*") if p.is_file() and str(home).encode() in p.read_bytes()]
    assert holding == ["environment.json"]


def test_a_run_from_before_paths_were_kept_goes_on(home: Path, call: Call, stopped: Path) -> None:
    environment = json.loads((stopped / "environment.json").read_text())
    del environment["data"]["path"]
    (stopped / "environment.json").write_text(json.dumps(environment))
    last = stopped / "checkpoints" / "last.pt"
    state = load_checkpoint(last)
    old = Recipe.from_toml(state["recipe"]).replace(data__source="cifar10", data__size=0)
    save_checkpoint(last, state | {"recipe": old.to_toml()})
    (stopped / "recipe.toml").write_text(old.to_toml())
    assert call("pretrain", "--resume", "run", "--device", "cpu", cwd=home).code == 0
    assert_same(stopped, whole(home, call))
    assert Run.open(stopped).locate_data() == str(home / "photos")


# Its minutes


def test_a_rest_is_shortened_to_fit_and_never_lengthened() -> None:
    resolution = [[0.5, 8], [1.0, 12]]
    recipe = Recipe.load("cifar10-sgd", {"train.batch_size": 4, "train.resolution": resolution, "train.epochs": 5})
    plan, per_step = Plan.of(recipe, store()), {8: 1.0, 12: 3.0}
    assert plan.total_steps == 40
    assert cost_after(plan, 0, per_step) == 20 * 1 + 20 * 3 and cost_after(plan, 30, per_step) == 30
    for step, seconds in ((0, 80.0), (10, 1000.0), (30, 30.0)):
        assert rest_within(plan, step, seconds, per_step) == plan
    short = rest_within(plan, 10, 30.0, per_step)
    assert (
        cost_after(short, 10, per_step)
        <= 30
        < cost_after(replace(short, total_steps=short.total_steps + 1), 10, per_step)
    )
    with pytest.raises(UsageError, match="too short"):
        rest_within(plan, 30, 2.9, per_step)


def test_the_minutes_of_a_run_count_what_it_has_taken(home: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[int] = []
    monkeypatch.setattr(planning, "calibrate", lambda *_: (timed.append(1), {16: 60.0})[1])
    given = ["pretrain", "--data", "photos", "--out", "run", "--device", "cpu", *GIVEN, "--max-minutes", "8.4"]
    assert call(*given, cwd=home, stop=3).code == 130
    run, file = home / "run", home / "run" / "environment.json"
    environment = json.loads(file.read_text())
    assert environment["plan"]["total_steps"] == 8  # 96 % of 8.4 minutes, less what the timing took
    packed = {"uncounted_seconds": 60.0}  # of which nothing counts
    file.write_text(json.dumps(environment | packed | {"seconds": 240.0}))
    refused = call("pretrain", "--resume", "run", "--max-minutes", "3", cwd=home)
    assert refused.code == 2 and "--max-minutes 3, 3.0 minutes so far" in refused.err
    timed.clear()
    done = call("pretrain", "--resume", "run", "--max-minutes", "8.4", "--device", "cpu", cwd=home, stop=4)
    assert done.code == 130 and timed == []  # its own minutes: its own plan
    file.write_text(json.dumps(json.loads(file.read_text()) | packed | {"seconds": 300.0}))
    done = call("pretrain", "--resume", "run", "--max-minutes", "6.2", "--device", "cpu", cwd=home)
    assert done.code == 0, done.err
    plan = Run.open(run).environment["plan"]  # 96 % of 2.2 minutes are two steps
    assert (plan["total_steps"], plan["max_minutes"], newest_step(run)) == (6, 6.2, 6)


# What is printed is pasted


@pytest.fixture
def paste(tmp_path: Path) -> Callable[[str], list[str]]:
    """A shell in which `simclr-engine` and `torchrun` tell the words they were given."""
    programs, told = tmp_path / "programs", tmp_path / "told"
    programs.mkdir()
    for name in ("simclr-engine", "torchrun"):
        (programs / name).write_text(f'#!/bin/sh\nprintf "%s\\0" {name} "$@" > {shlex.quote(str(told))}\n')
        (programs / name).chmod(0o755)

    def pasted(line: str) -> list[str]:
        environment = {"PATH": f"{programs}:{os.environ['PATH']}"}
        subprocess.run(["bash", "-c", line], check=True, env=environment, timeout=60)
        return told.read_text().split("\0")[:-1]

    return pasted


NAMES = ["plain", "two words", "it's", 'say "no"', "$HOME", "a;b & c", "*", "-dash", "ein Ü"]


@pytest.mark.parametrize("name", NAMES)
def test_a_shell_reads_a_printed_command_as_it_was_meant(name: str, paste: Callable[[str], list[str]]) -> None:
    path = f"./{name}" if name.startswith("-") else name
    assert paste(shell_command("evaluate", Path(name))) == ["simclr-engine", "evaluate", path]
    assert paste(resume_command(Path(name))) == ["simclr-engine", "pretrain", "--resume", path]


def test_the_launcher_that_began_a_run_goes_on_with_it(
    paste: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: name)
    for name, value in (("TORCHELASTIC_RUN_ID", "none"), ("LOCAL_WORLD_SIZE", "2"), ("GROUP_WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    go_on = ["pretrain", "--resume", "a b"]
    monkeypatch.setattr(sys, "argv", ["__main__.py", "pretrain"])
    by_torchrun = ["torchrun", "--nproc-per-node", "2", "-m", "simclr_engine"]
    assert paste(resume_command(Path("a b"))) == [*by_torchrun, *go_on]
    for gpus in (["--gpus", "2"], ["--gpus=2"]):
        monkeypatch.setattr(sys, "argv", ["__main__.py", "pretrain", *gpus])
        assert paste(resume_command(Path("a b"))) == ["simclr-engine", *go_on, "--gpus", "2"]
        assert paste(launch_command(2)) == [*by_torchrun, "pretrain", "--device", "cpu"]
    monkeypatch.setenv("GROUP_WORLD_SIZE", "3")
    monkeypatch.setattr(sys, "argv", ["__main__.py", "pretrain"])
    assert "--nnodes" in resume_command(Path("a b"))


def test_a_program_that_no_shell_finds_is_named_by_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["/opt/venv/bin/simclr-engine", "pretrain"])
    assert shlex.split(resume_command(Path("run")))[:4] == [sys.executable, "-m", "simclr_engine", "pretrain"]


def test_devices_that_are_not_there_are_answered_with_a_command(
    paste: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr(sys, "argv", ["simclr-engine", "pretrain", "--data", "my photos", "--gpus", "99"])
    with pytest.raises(Exception, match="fewer CUDA devices") as caught:
        check_gpus(99)
    line = str(caught.value).split("on a CPU: ")[1]
    options = ["pretrain", "--data", "my photos", "--device", "cpu"]
    assert paste(line) == ["torchrun", "--nproc-per-node", "99", "-m", "simclr_engine", *options]


def test_giving_up_says_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(os, "_exit", lambda code: None)
    for expected in ("start again with --overwrite", "continue with: simclr-engine pretrain --resume 'a b'"):
        stopping.give_up(tmp_path / "run", shell_command("pretrain", "--resume", "a b"))
        assert expected in capsys.readouterr().err
        (tmp_path / "run" / "checkpoints").mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / "checkpoints" / "last.pt").touch()


@pytest.mark.slow
def test_pasting_what_each_command_prints_takes_a_run_to_its_end(tmp_path: Path) -> None:
    # The real programs in a real shell, in folders whose names need quotes.
    here = write_tree(tmp_path / "it's here", class_tree(each=12, prefix="my photos/"))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def shell(line: str, code: int = 0) -> str:
        done = subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, cwd=here, env=environment, timeout=300
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr + done.stdout

    begin = shell_command("pretrain", "--data", "my photos", "--out", 'a "run"', "--device", "cpu", *GIVEN)
    stop = (
        "import os, signal, sys\nfrom simclr_engine.training import Trainer\nreal = Trainer.train_step\n"
        "def train_step(self, step, size=None):\n"
        "    if step == 1: os.kill(os.getpid(), signal.SIGINT)\n    return real(self, step, size)\n"
        "Trainer.train_step = train_step\nfrom simclr_engine.cli.main import main\nmain()\n"
    )
    (tmp_path / "simclr-engine").write_text(stop)
    interrupted = shell(
        begin.replace("simclr-engine", shlex.join([sys.executable, str(tmp_path / "simclr-engine")])), 130
    )
    said = shell(interrupted.split("continue with: ")[1].splitlines()[0])
    evaluate, export = (line.removeprefix("next:").strip() for line in said.splitlines()[-2:])
    assert "accuracy on the test split" in shell(evaluate)
    assert "encoder.onnx" in shell(export)
    first, *scores, report = commands(load_content(Run.open(here / 'a "run"')))
    assert first == begin
    assert scores == [shell_command("evaluate", here / 'a "run"', "--method", "linear")]
    assert "report.html" in shell(report)


def test_the_commands_of_documents_and_errors_are_read_as_they_were_meant(
    tmp_path: Path, paste: Callable[[str], list[str]]
) -> None:
    runs = [write_run(tmp_path / name) for name in ("it's", 'a "run"')]
    note = next(one for one in notes(open_runs([run.directory for run in runs])) if "it's" in one and "evaluate" in one)
    program, said = "simclr-engine", paste(note.split("has not been evaluated: ")[1])
    assert said == [program, "evaluate", str(runs[0].directory)]
    with pytest.raises(UsageError) as caught:
        choose_probe(runs[0], None, 512, "")
    assert caught.value.fix is not None
    said = paste(caught.value.fix.split("export again after: ")[1])
    assert said == [program, "evaluate", str(runs[0].directory), "--method", "linear"]
    again = commands(load_content(runs[1]))[0]
    options = [
        "--recipe",
        f"{runs[1].directory}/recipe.toml",
        "--data",
        "photos",
        "--out",
        f"{runs[1].directory}-again",
    ]
    assert paste(again) == [program, "pretrain", *options]


def test_a_run_of_arrays_says_the_call_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a run"
    at_step(monkeypatch, 5, lambda trainer: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted) as caught:
        train(out)
    assert f"pretrain(data=…, out={str(out)!r}, resume=True)" in str(caught.value)
