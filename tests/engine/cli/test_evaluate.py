"""`simclr-engine evaluate` and `report`: one JSON document, trained beside random, files without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from fixtures.mean_colour import METADATA, mean_colour_model
from fixtures.synthetic_run import write_metrics, write_run
from simclr_engine.checkpoint import encoder_metadata, save_weights
from simclr_engine.cli.evaluate import command
from simclr_engine.cli.report import command as report_command
from simclr_engine.export.graph import seal
from simclr_engine.model import build_encoder
from simclr_engine.report import style
from simclr_engine.run import Run

COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}


@pytest.fixture(scope="module", autouse=True)
def _small_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", 30)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 × 8 PNGs, 20 train and 10 test images of each colour."""
    root, rng = tmp_path_factory.mktemp("data") / "colours", np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 10)):
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(rng.normal(colour, 25, (8, 8, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Run:
    run = write_run(
        tmp_path_factory.mktemp("runs") / "first", class_names=tuple(COLOURS), data=str(folder), image_size=8
    )
    torch.manual_seed(0)
    encoder = build_encoder("resnet18", "small")
    save_weights(run.directory / "encoder.safetensors", encoder, encoder_metadata(run.recipe, 8))
    return run


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of ours whose three features are the mean colour."""
    metadata = replace(METADATA, feature_dim=3, image_size=8, class_names=())
    path = tmp_path_factory.mktemp("export") / "encoder.onnx"
    path.write_bytes(seal(mean_colour_model(8, np.eye(3, dtype=np.float32)), metadata))
    return path


def invoke(*args: object) -> Result:
    result = CliRunner().invoke(command, [str(a) for a in args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def test_json_is_one_document_with_both_inits_of_the_runs_own_data(run: Run, folder: Path) -> None:
    document = json.loads(invoke(run.directory, "--json").stdout)
    assert (document["target"], document["data"]) == (str(run.directory), str(folder))
    assert [(r["method"], r["init"]) for r in document["results"]] == [("linear", "pretrained"), ("linear", "scratch")]
    first = document["results"][0]
    assert sum(first["confusion"]["count"]) == 30
    assert {row["name"]: row["support"] for row in first["per_class"]} == dict.fromkeys(sorted(COLOURS), 10)
    assert Path(document["report"]).is_file()


def test_the_table_shows_trained_beside_random_every_class_and_the_protocol(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simclr_engine.report.page.write_report", lambda shown: shown.directory)  # drawn above
    text = invoke(
        run.directory, "--method", "linear", "--method", "knn", "--init", "scratch", "--init", "pretrained"
    ).stdout
    header = next(line for line in text.splitlines() if line.startswith("method"))
    assert header.split() == [
        "method",
        "pretrained",
        "random",
        "largest",
        "difference",
        "±",
        "loss",
        "macro",
        "F1",
        "mean",
        "IoU",
        "ECE",
    ]
    assert all(f"\n{name} " in text for name in COLOURS)
    assert text.count("scikit-learn LogisticRegression") == 2
    assert "kNN (cosine, k=10 majority" in text
    assert "weighted k=60" in text


def test_the_report_command_draws_the_page_and_prints_where_it_is(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_metrics(run)
    result = CliRunner().invoke(report_command, [str(run.directory)], catch_exceptions=False)
    assert result.output.strip() == str(run.directory / "report.html")
    assert "<title>run — simclr-engine report</title>" in (run.directory / "report.html").read_text()


NO_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "onnx", "pydantic"):
            raise ImportError(f"{name} must not be imported")

sys.meta_path.insert(0, Refuse())
from simclr_engine.cli.main import main
main()
"""


def without_torch(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", NO_TORCH, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_an_onnx_file_is_evaluated_where_torch_cannot_be_imported(
    onnx_file: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = without_torch(
        "evaluate", onnx_file, "--data", folder, "--method", "knn", "--method", "linear", "--out", out, "--json"
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert [(r["method"], r["init"], r["accuracy"]) for r in results] == [
        ("knn", "pretrained", 1.0),
        ("linear", "pretrained", 1.0),
    ]
    assert "features by onnxruntime" in results[0]["protocol"]
    assert sorted(p.name for p in out.iterdir()) == [
        "colours-knn-pretrained.json",
        "colours-knn-pretrained.npz",
        "colours-linear-pretrained.json",
        "colours-linear-pretrained.npz",
        "colours-linear-pretrained.safetensors",
        "confusion-colours-knn-pretrained.png",
        "confusion-colours-linear-pretrained.png",
        "per-class-colours-knn-pretrained.png",
        "per-class-colours-linear-pretrained.png",
    ]


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--init", "scratch"], 2, "no random counterpart"),
        (["--data", "no-such-folder/"], 4, "no such folder"),
        (["--method", "lineer"], 2, "lineer"),
    ],
)
def test_bad_input_ends_with_its_exit_code(
    onnx_file: Path, folder: Path, args: list[str], code: int, said: str
) -> None:
    done = without_torch("evaluate", onnx_file, *([] if "--data" in args else ["--data", folder]), *args)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert said in done.stderr


def test_a_file_needs_the_data_to_be_named(onnx_file: Path) -> None:
    done = without_torch("evaluate", onnx_file)
    assert done.returncode == 2
    assert "--data NAME|PATH" in done.stderr
