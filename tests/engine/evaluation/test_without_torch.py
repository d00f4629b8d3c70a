"""Metrics, probes and the report need no torch: the light evaluator depends on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from fixtures import TESTS

NO_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "onnx"):
            raise ImportError(f"{name} must not be imported")

sys.meta_path.insert(0, Refuse())
"""


def run(script: str, *args: str | Path) -> str:
    command = [sys.executable, "-c", NO_TORCH + script, *map(str, args)]
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_is_reported_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    script = """
from pathlib import Path

from fixtures import TESTS
from fixtures.synthetic_run import write_evaluation, write_metrics, write_run
run = write_run(Path(sys.argv[1]) / "run")
write_metrics(run)
write_evaluation(run)
from simclr_engine.report import style
style.DPI = 30
sys.argv = ["simclr-engine", "report", str(run.directory)]
from simclr_engine.cli.main import main
main()
"""
    assert run(script, tmp_path).strip() == str(tmp_path / "run" / "report.html")
    assert (tmp_path / "run" / "figures" / "loss.png").is_file()


def test_probes_and_metrics_work_where_torch_cannot_be_imported() -> None:
    script = """
import numpy as np
from simclr_engine.data.store import ImageStore
from simclr_engine.evaluation.encoders import ScratchEncoder
from simclr_engine.evaluation.methods import Training
from simclr_engine.evaluation.metrics import confusion_matrix, feature_statistics, score
from simclr_engine.evaluation.protocol import METHODS
from simclr_engine.evaluation.splits import make_splits
from simclr_engine.recipe import Recipe
rng = np.random.default_rng(0)
labels = np.arange(90) % 3
features = (np.eye(3)[labels] + 0.01 * rng.normal(size=(90, 3))).astype(np.float32)
store = ImageStore.from_arrays(np.zeros((90, 8, 8, 3), np.uint8), labels, "abc")
grey = (0.5, 0.5, 0.5)
class Given(ScratchEncoder):
    def features(self, store, progress=False):
        return features

encoder = Given("resnet18", "small", grey, grey)
training = Training(lambda: Recipe.load("cifar10"), 0.0, False)
for name in ("linear", "knn"):
    for split in make_splits(store, store):
        found = METHODS[name](encoder, split, training).classes
        print(score(confusion_matrix(labels, found, 3), "abc").accuracy)
print(feature_statistics(features).dim)
"""
    assert run(script).split() == ["1.0", "1.0", "3"]


def test_every_module_but_those_that_run_the_network_loads_without_torch() -> None:
    script = """
import importlib, pkgutil
for room in ("evaluation", "report"):
    package = importlib.import_module(f"simclr_engine.{room}")
    for module in pkgutil.iter_modules(package.__path__):
        if module.name not in ("features", "finetune"):
            importlib.import_module(f"simclr_engine.{room}.{module.name}")
            print(module.name)
from simclr_engine import EvaluationResult, evaluate
import simclr_engine.cli.evaluate, simclr_engine.cli.report
"""
    assert {"linear", "knn", "metrics", "page", "protocol"} <= set(run(script).split())


def test_the_packages_themselves_load_neither_matplotlib_nor_scikit_learn() -> None:
    script = """
import simclr_engine.evaluation, simclr_engine.report, simclr_engine.cli.evaluate, simclr_engine.cli.report
print([name for name in ("numpy", "matplotlib", "sklearn", "rich") if name in sys.modules])
"""
    assert run(script).strip() == "[]"
