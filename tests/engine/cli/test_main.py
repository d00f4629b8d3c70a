"""The command line: fast help, light imports, errors in three lines, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import click
import pytest

import simclr_engine
from fixtures.synthetic_run import write_run
from simclr_engine.cli.main import COMMANDS, main
from simclr_engine.recipe import recipe_names


def run(*args: str, cwd: Path | None = None, code: str | None = None) -> subprocess.CompletedProcess[str]:
    """The console script in a process of its own; `code` runs instead where given."""
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "simclr_engine", *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """The console script in this process, which has imported what takes seconds; a traceback fails the test."""

    def called(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["simclr-engine", *args])
        monkeypatch.chdir(cwd or Path.cwd())
        code = 0
        try:
            main()
        except SystemExit as stop:
            assert isinstance(stop.code, int | None)
            code = stop.code or 0
        shown = capsys.readouterr()
        return subprocess.CompletedProcess(args, code, shown.out, shown.err)

    return called


FIRST = """
import os, sys, types
import numpy, onnx, onnxruntime, sklearn, torch  # the order is asked of our own modules; these take seconds
for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        assert not [module for module in sys.modules if module.startswith("simclr_engine")]
        exec(f"from simclr_engine import {name} as found")
        assert not isinstance(found, types.ModuleType), name
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
    print(name)
"""


def test_every_public_name_can_be_imported_first() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FIRST, *simclr_engine.__all__], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(simclr_engine.__all__)


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['simclr-engine', '--help']\nfrom simclr_engine.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'rich', 'matplotlib', 'onnxruntime', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = run(code=code)
    assert done.returncode == 0, done.stderr
    for command in ("pretrain", "evaluate", "export", "report", "recipes", "data", "bench", "demo", "doctor"):
        assert f"  {command} " in done.stdout


def test_a_misspelt_command_names_the_nearest() -> None:
    done = run("pretrian")
    assert done.returncode == 2
    assert "pretrain" in done.stderr


@pytest.mark.parametrize(
    "command", ["pretrain", "evaluate", "export", "report", "recipes", "data", "bench", "demo", "doctor"]
)
def test_every_command_has_help(command: str, call: Call) -> None:
    done = call(command, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout


def test_recipes_are_listed_and_shown() -> None:
    listed = json.loads(run("recipes", "--json").stdout)["recipes"]
    assert [r["name"] for r in listed] == recipe_names()
    assert "temperature = 0.07" in run("recipes", "quick-10").stdout
    assert "79.65" in run("recipes").stdout


@pytest.mark.parametrize(
    ("args", "exit_code", "says"),
    [
        (["pretrain", "--set", "train.epohcs=2", "--data", "digits"], 2, "train.epochs"),
        (["pretrain", "--set", "loss.temperature=0", "--data", "digits"], 2, "loss.temperature"),
        (["pretrain", "--set", "optimizer.lr=nan", "--data", "digits"], 2, "optimizer.lr"),
        (["pretrain", "--epochs", "0", "--data", "digits"], 2, "train.epochs"),
        (["pretrain", "--batch-size", "1", "--data", "digits"], 2, "two images"),
        (["pretrain", "--recipe", "cifar01", "--data", "digits"], 2, "cifar10"),
        (["pretrain", "--resume", "--overwrite"], 2, "cannot be used together"),
        (["pretrain", "--set", "nonsense", "--data", "digits"], 2, "KEY=VALUE"),
        (["pretrain", "--data", "no/such/folder"], 4, "no/such/folder"),
        (["pretrain", "--data", "digits", "--batch-size", "50000"], 4, "larger than the data"),
        (["pretrain", "--data", "digits", "--limit", "1"], 4, "at least two images"),
        (["pretrain", "--data", "digits", "--device", "cuda:99"], 3, "device"),
        (["pretrain", "--data", "digits", "--out", "fresh", "--resume"], 4, "nothing to resume"),
        (["report", "no/such/run"], 4, "no/such/run"),
    ],
)
def test_an_error_has_cause_value_and_fix_and_its_exit_code(
    args: list[str], exit_code: int, says: str, tmp_path: Path, call: Call
) -> None:
    done = call(*args, cwd=tmp_path)
    assert done.returncode == exit_code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    assert not (tmp_path / "runs").exists()  # nothing is left behind by a run that never began


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="DALI is for Linux")
@pytest.mark.parametrize("extra", [[], ["--dry-run"]])
def test_dali_that_is_not_installed_is_said_before_images_are_read(
    extra: list[str], tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    done = call("pretrain", "--data", "no/such/folder", "--device", "cpu", "--augment", "dali", *extra, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "pip install '.[dali]'" in done.stderr and "Traceback" not in done.stderr


def test_an_existing_directory_is_refused_and_left_alone(tmp_path: Path, call: Call) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    for extra, says in ([], "--overwrite"), (["--overwrite"], "not a run"):
        done = call(
            *("pretrain", "--data", "digits", "--recipe", "quick-10", "--batch-size", "8", "--out", "out"),
            *extra,
            cwd=tmp_path,
        )
        assert done.returncode == 2
        assert says in done.stderr
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_an_output_that_cannot_be_made_is_a_fault_of_the_environment(tmp_path: Path, call: Call) -> None:
    (tmp_path / "file").write_text("")
    done = call(
        *("pretrain", "--data", "digits", "--recipe", "quick-10", "--batch-size", "8", "--out", "file/run"),
        cwd=tmp_path,
    )
    assert done.returncode == 3, done.stderr
    assert "file/run" in done.stderr and "--out" in done.stderr


def test_doctor_reports_what_works() -> None:
    done = run("doctor", "--json")
    document = json.loads(done.stdout)
    assert done.returncode == (3 if document["broken"] else 0)
    assert {f["name"] for f in document["findings"]} >= {
        "python",
        "torch",
        "device",
        "precision",
        "augmentation",
        "cache",
        "onnxruntime",
    }


def test_debug_shows_the_traceback_and_without_it_there_is_none() -> None:
    assert "Traceback" in run("recipes", "nope", "--debug").stderr
    plain = run("recipes", "nope")
    assert plain.returncode == 2 and plain.stderr.startswith("error: ") and "Traceback" not in plain.stderr


BROKEN = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "pydantic"):
            raise {kind}("no " + name, name=name)
sys.meta_path.insert(0, Missing())
sys.argv[0] = "simclr-engine"
from simclr_engine.cli.main import COMMANDS, main
main()
"""


@pytest.mark.parametrize("kind", ["ModuleNotFoundError", "ImportError"])
def test_a_package_that_is_absent_or_broken_is_named_with_its_install_line(kind: str) -> None:
    command = [sys.executable, "-c", BROKEN.format(kind=kind), "recipes"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert "pydantic" in done.stderr and "pip install pydantic, or all that the commands need" in done.stderr


def broken_packages(folder: Path, monkeypatch: pytest.MonkeyPatch, **raised: str) -> None:
    """Puts packages before the installed ones that raise an error while they are imported."""
    for name, error in raised.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise {error}\n")
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)


@pytest.mark.parametrize("error", ["AttributeError('no such part')", "RuntimeError('no such part')"])
def test_a_package_that_breaks_while_it_is_imported_is_named(
    error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_packages(tmp_path / "fake", monkeypatch, matplotlib=error)
    done = run("report", str(write_run(tmp_path / "run").directory))
    assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
    assert "matplotlib: " in done.stderr and "no such part" in done.stderr and "pip install matplotlib" in done.stderr


def test_doctor_names_every_broken_package_and_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {"onnxruntime": "OSError('no such library')", "matplotlib": "AttributeError('no such part')"}
    broken |= {"torchvision": "AttributeError('no such part')", "sklearn": "ImportError('no such part')"}
    broken |= {"onnx": "RuntimeError('no such part\\nmore')", "safetensors": "ModuleNotFoundError(name='safetensors')"}
    broken_packages(tmp_path / "fake", monkeypatch, **broken, nvidia="RuntimeError('no such part')")
    monkeypatch.setenv("SIMCLR_ENGINE_CACHE", str(tmp_path / "fake" / "onnx" / "__init__.py" / "cache"))
    done = run("doctor", "--json")
    document = json.loads(done.stdout)
    details = {one["name"].strip(): one["detail"] for one in document["findings"]}
    assert done.returncode == 3
    assert set(document["broken"]) >= {*(broken.keys() - {"sklearn"}), "scikit-learn", "cache"}
    assert {"python", "numpy", "torch", "pillow", "augmentation"}.isdisjoint(document["broken"])
    assert "no such library" in details["onnxruntime"] and "pip install matplotlib" in details["matplotlib"]
    assert details["safetensors"] == "safetensors is not installed: pip install safetensors"
    assert "does not load (no such part)" in details["dali"] and "SIMCLR_ENGINE_CACHE" in details["cache"]


def test_doctor_outlives_a_broken_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_packages(tmp_path, monkeypatch, torch="OSError('no such library')")
    done = run("doctor")
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert "FAIL torch " in done.stdout and "no such library" in done.stdout and "ok   numpy" in done.stdout


@pytest.mark.parametrize("at", ["file", "file/below", "/dev/full", "/proc/nope"])
def test_doctor_writes_to_the_cache_to_know_that_it_can(
    at: str, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simclr_engine.cli import doctor

    monkeypatch.setattr(doctor, "PACKAGES", {})
    monkeypatch.setattr(doctor, "_kernel_findings", list)
    for cache, code in ((tmp_path / "new" / "folder", 0), (tmp_path / at, 3)):
        (tmp_path / "file").touch()
        monkeypatch.setenv("SIMCLR_ENGINE_CACHE", str(cache))
        done = call("doctor")
        assert done.returncode == code and f"{'FAIL' if code else 'ok  '} cache" in done.stdout
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
    monkeypatch.delenv("SIMCLR_ENGINE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("simclr_engine.data.cache.expanded", lambda path: Path(path))
    done = call("doctor")
    assert done.returncode == 3 and "FAIL cache" in done.stdout and "set HOME" in done.stdout


def test_a_command_that_exits_with_a_code_gives_it_to_the_shell(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from simclr_engine.cli import doctor

    monkeypatch.setattr(doctor, "_device_findings", lambda: [("device", False, "broken")])
    assert call("doctor", "--json").returncode == 3


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("simclr-engine pre", ["plain,pretrain", "plain,predict"]),
        ("simclr-engine bench ep", ["plain,epoch"]),
        ("simclr-engine pretrain --augment na", ["plain,native"]),
        ("simclr-engine pretrain --max-m", ["plain,--max-minutes"]),
        ("simclr-engine pretrain --data ph", ["file,ph"]),
        ("simclr-engine pretrain --resume ru", ["file,ru"]),
        ("simclr-engine evaluate ru", ["file,ru"]),
        ("simclr-engine predict encoder.onnx ca", ["file,ca"]),
        ("simclr-engine bench race --out bu", ["file,bu"]),
        ("simclr-engine pretrain --epochs 1", []),
    ],
)
def test_the_shell_completes_commands_options_choices_and_files(
    words: str, offered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_SIMCLR_ENGINE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    code = "import sys; sys.argv = ['simclr-engine']; from simclr_engine.cli.main import main; main()"
    assert run(code=code).stdout.split() == offered


def test_without_a_command_the_help_is_shown_and_no_error(call: Call) -> None:
    done = call()
    assert done.returncode == 2 and done.stderr.startswith("Usage: ") and "\n  pretrain " in done.stderr


METAVARS = {"N", "FRACTION", "MINUTES", "ADDRESS", "KEY=VALUE", "NAME|PATH", "NAME.npy", "PATH", "DIR", "RUN"}
METAVARS |= {"[RUN]", "[ID]", "auto|cuda|mps|cpu", "RUN|PATH", "PFLOP", "HEX"}


def test_every_option_says_what_it_takes_in_the_same_words_everywhere() -> None:
    odd, commands = [], []
    for name in COMMANDS:
        command = import_module(f"simclr_engine.cli.{name}").command
        commands += list(command.commands.values()) if isinstance(command, click.Group) else [command]
    for command in commands:
        for option in command.params:
            if not isinstance(option, click.Option):
                continue
            takes = option.is_flag or isinstance(option.type, click.Choice) or option.metavar in METAVARS
            if not (
                takes and option.help and option.help[0].isupper() | option.help.startswith(("--", "export", "aug"))
            ):
                odd.append(f"{command.name} {option.opts[0]}")
            if option.help and not option.help.rstrip().endswith((".", "]")):
                odd.append(f"{command.name} {option.opts[0]}: no full stop")
    assert odd == []
