"""The card says what was measured, of the process it was measured in, and of the file it is about."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fixtures.tiny_model import TINY
from fixtures.tiny_probe import write_tiny_probe
from fixtures.untrained_run import write_untrained_run
from simclr_engine import timing
from simclr_engine.bench import card as subject
from simclr_engine.bench.card import Card, CardRow, Fresh, Rate, StatedDifference, fresh_process, make_card, show_card
from simclr_engine.errors import DataError
from simclr_engine.evaluation.features import extract_features
from simclr_engine.run import Run
from simclr_engine.timing import Timing

INT8 = {"accuracy": 0.725, "accuracy_fp32": 0.75, "agreement": 0.96, "images_compared": 400}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An fp32 file with its probe, and one that says that it is int8."""
    home = tmp_path_factory.mktemp("pair")
    small = write_tiny_probe(home / "encoder.int8.onnx", precision="int8", parity={**TINY.parity, **INT8})
    return write_tiny_probe(home / "encoder.onnx"), small


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_untrained_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def made(pair: tuple[Path, Path]) -> Card:
    return make_card(pair[0], None, [pair[1]], seconds=0.1)


def test_every_file_has_a_row_with_all_its_figures(made: Card, pair: tuple[Path, Path]) -> None:
    document = made.to_json()
    assert json.loads(json.dumps(document)) == document
    assert [row["name"] for row in document["rows"]] == ["ONNX Runtime fp32", "ONNX Runtime int8"]
    for row, path in zip(document["rows"], pair, strict=True):
        assert row["file"] == str(path) and row["file_bytes"] == path.stat().st_size and row["note"] == ""
        assert set(row["images_per_second"]) == {"1", "64"}
        for rate in row["images_per_second"].values():
            assert 0 < rate["p20"] <= rate["median"] <= rate["p80"]
        assert 0 < row["start_up_seconds"] < 60
        if sys.platform == "linux":
            assert 10e6 < row["resident_bytes"] <= row["peak_bytes"] < 2e9
    assert document["image_size"] == 4 and document["threads"] >= 1 and document["device"]
    assert "onnxruntime" in document["versions"] and "torch" not in document["versions"]


def test_accuracy_is_said_once_and_int8_by_what_it_lost_on_the_same_images(made: Card) -> None:
    fp32, int8 = made.to_json()["rows"]
    assert fp32["accuracy"] == 0.75 and fp32["accuracy_difference"] is None
    assert int8["accuracy"] is None and int8["accuracy_difference"] == pytest.approx(-0.025)
    assert int8["difference"] == {"max_abs": 1e-5, "accuracy": pytest.approx(-0.025), "agreement": 0.96, "images": 400}


def test_the_table_is_readable_and_foreign_text_stays_text(made: Card, capsys: pytest.CaptureFixture[str]) -> None:
    show_card(replace(made, rows=(*made.rows, CardRow("[bold]x[/nothing]", "fp32", None, None, note="[red]why"))))
    said = capsys.readouterr().out
    assert "75.00 %" in said and "−2.5 points" in said
    assert "[bold]x[/nothing]" in said and "[red]why" in said
    assert all(len(line) <= 110 for line in said.splitlines())


def test_the_card_says_of_int8_alone_that_it_differs_elsewhere(made: Card, capsys: pytest.CaptureFixture[str]) -> None:
    for rows, expected in ((made.rows, True), (made.rows[:1], False)):
        show_card(replace(made, rows=rows))
        assert ("may get another label" in " ".join(capsys.readouterr().out.split())) == expected


@pytest.mark.parametrize(
    ("difference", "accuracy", "text"),
    [
        (None, 0.6055, "60.55 %"),
        (None, None, "–"),
        (StatedDifference(1e-5), None, "features ±1e-05"),
        (StatedDifference(1e-5), 0.6055, "60.55 %"),
        (StatedDifference(0.1, -0.002, 0.98, 2000), None, "−0.2 points"),
        (StatedDifference(0.1, 0.004, 0.98, 2000), None, "+0.4 points"),
        (StatedDifference(0.1, 0.0, 0.98, 2000), None, "±0 points"),
        (StatedDifference(0.1, None, 0.98, 2000), None, "98.0 % same label"),
    ],
)
def test_the_accuracy_column(difference: StatedDifference | None, accuracy: float | None, text: str) -> None:
    row = CardRow("a", "fp32", "a.onnx", 1, accuracy=accuracy, difference=difference)
    assert subject._accuracy_text(row) == text


def test_rates_are_images_of_a_round_over_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def timed(calls: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1) -> dict[str, Timing]:
        asked.append(repeats)
        for call in calls.values():
            call()
        return dict.fromkeys(calls, Timing(0.5, 0.4, 0.8, repeats))

    monkeypatch.setattr(timing, "interleave", timed)
    seen: list[int] = []
    images = np.zeros((64, 4, 4, 3), np.uint8)
    rates, rounds = subject._rates({"a": lambda x: seen.append(len(x))}, images, seconds=4)
    assert rates == {"a": Rate(64 / 0.5, 64 / 0.8, 64 / 0.4)} and rounds == 7 and asked == [1, 7]
    rates, rounds = subject._rates({"a": lambda x: seen.append(len(x))}, images[:1], seconds=0.1)
    assert rates["a"].median == 10 / 0.5 and rounds == 3  # ten calls of one image
    assert subject._rates({"a": len}, images, seconds=1000)[1] == 15
    assert seen == [64] * 2 + [1] * 20


def test_files_of_different_image_sizes_have_no_common_card(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="different sizes"):
        make_card(pair[0], None, [write_tiny_probe(tmp_path / "other.onnx", image_size=8)])


def test_a_fresh_process_that_fails_costs_its_figures_only(tmp_path: Path) -> None:
    row = CardRow("a", "fp32", "a.onnx", 1)
    failed = subject._with_fresh(row, "import sys; sys.exit('no such thing')", tmp_path, 1)
    assert failed == replace(row, note="memory and start-up not measured: no such thing")
    silent = subject._with_fresh(row, "print('not json')", tmp_path, 1)
    assert silent.fresh is None and silent.note


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_memory_is_the_child_s_own_now_and_at_its_peak() -> None:
    ballast = np.ones(400 << 17)  # 400 MiB in the process that starts the others
    script = """
import json, sys
import numpy as np
held = np.ones({held} << 17)
gone = np.ones({gone} << 17)
del gone
from simclr_engine.bench.card import memory
print(json.dumps({{"start_up": 0.0, **memory()}}))
"""
    small, large, spike = (
        fresh_process(script.format(held=held, gone=gone), Path(), 1) for held, gone in ((1, 1), (64, 1), (1, 128))
    )
    assert isinstance(small, Fresh) and ballast[0] == 1
    assert small.resident_bytes and small.peak_bytes and large.resident_bytes and spike.resident_bytes
    assert small.peak_bytes < 200 << 20
    assert large.resident_bytes - small.resident_bytes == pytest.approx(63 << 20, rel=0.1)
    assert spike.resident_bytes == pytest.approx(small.resident_bytes, rel=0.1)
    assert spike.peak_bytes and spike.peak_bytes - small.peak_bytes == pytest.approx(127 << 20, rel=0.1)


def test_a_fresh_process_is_timed_from_its_imports_to_first_features() -> None:
    for script, heavy in ((subject.ONNX_SCRIPT, "OnnxEncoder"), (subject.TORCH_SCRIPT, "import torch")):
        order = [script.index(part) for part in ("begin =", "import numpy", heavy, "embed(images[:1])", "start_up =")]
        assert order == sorted(order)


def test_eager_pytorch_gives_the_features_that_evaluation_takes(run: Run) -> None:
    spec = run.recipe.augment
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    expected = extract_features(run.encoder(), images, spec.mean, spec.std)
    np.testing.assert_allclose(np.asarray(subject.torch_eager(run)(images)), expected, atol=1e-5)


def test_pytorch_has_its_row_and_gets_its_threads_back(
    pair: tuple[Path, Path], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "torch_eager", lambda run: lambda images: used.append(torch.get_num_threads()))
    monkeypatch.setattr(subject, "fresh_process", lambda script, target, threads: Fresh(float(threads), None, None))
    used: list[int] = []
    before = torch.get_num_threads()
    monkeypatch.setattr("simclr_engine.export.runtime.available_threads", lambda: before + 1)
    first, second = make_card(pair[0], run, seconds=0.01).to_json()["rows"]
    assert set(used) == {before + 1} and torch.get_num_threads() == before
    assert (first["name"], first["file"], first["difference"]) == ("PyTorch eager", None, None)
    assert first["file_bytes"] == (run.directory / "encoder.safetensors").stat().st_size
    assert first["accuracy"] == 0.75 and second["accuracy"] is None and second["difference"]["max_abs"] == 1e-5
    assert first["start_up_seconds"] == before + 1


def test_without_a_run_torch_is_not_imported(pair: tuple[Path, Path]) -> None:
    script = """
import sys
from pathlib import Path
from simclr_engine.bench import card
card.fresh_process = lambda *_: card.Fresh(1.0, None, None)
card.show_card(card.make_card(Path(sys.argv[1]), None, seconds=0.01))
print(sorted({"torch", "onnx"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script, str(pair[0])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]" and "ONNX Runtime fp32" in done.stdout
