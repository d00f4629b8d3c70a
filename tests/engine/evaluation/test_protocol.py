"""evaluate(): numbers with their protocol, written where they belong; what cannot be scored honestly is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fixtures.coloured import NAMES, coloured
from fixtures.synthetic_run import write_run
from simclr_engine import evaluate
from simclr_engine.checkpoint import encoder_metadata, save_weights
from simclr_engine.data.store import ImageStore
from simclr_engine.errors import CheckFailed, DataError, PlatformError, UsageError
from simclr_engine.evaluation import evaluate_all, protocol
from simclr_engine.evaluation.linear import LinearProbe
from simclr_engine.evaluation.metrics import confusion_matrix
from simclr_engine.evaluation.result import EvaluationResult
from simclr_engine.model import build_encoder
from simclr_engine.run import Run

KINDS = ("json", "npz")
CONTRACT = {"method", "init", "protocol", "accuracy", "per_class", "confusion"}
CONTRACT |= {"f1_micro", "f1_macro", "f1_weighted", "mean_iou"}


@pytest.fixture(scope="module")
def splits() -> tuple[ImageStore, ImageStore]:
    return coloured(120, 0, "train"), coloured(60, 1, "test")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = write_run(tmp_path / "run", class_names=NAMES, data="colours", image_size=8)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        save_weights(
            run.directory / "encoder.safetensors", build_encoder("resnet18", "small"), encoder_metadata(run.recipe, 8)
        )
    return run


def test_one_method_and_init_give_one_result_that_names_its_protocol(
    run: Run, splits: tuple[ImageStore, ImageStore]
) -> None:
    result = evaluate(run, splits)
    assert (result.method, result.init) == ("linear", "pretrained")
    assert result.accuracy > 0.9  # colour survives any encoder
    assert "120 train / 60 test images of colours, 8 px, fp32, eval BN" in result.protocol
    assert result.protocol.startswith("linear probe (scikit-learn LogisticRegression, lbfgs, C=")
    assert (result.train_images, result.test_images, result.image_size) == (120, 60, 8)
    assert result.confusion.sum() == 60
    assert set(result.to_dict()) >= CONTRACT


def test_both_inits_and_methods_are_written_into_the_run(run: Run, splits: tuple[ImageStore, ImageStore]) -> None:
    results = evaluate_all(str(run.directory), splits, ["linear", "knn"], ["pretrained", "scratch"])
    assert [(r.init, r.method) for r in results] == [
        ("pretrained", "linear"),
        ("pretrained", "knn"),
        ("scratch", "linear"),
        ("scratch", "knn"),
    ]
    assert "random encoder of seed 0" in results[2].protocol
    written = sorted(p.name for p in (run.directory / "evaluation").iterdir())
    assert written == sorted(
        [f"colours-{m}-{i}.{kind}" for m in ("linear", "knn") for i in ("pretrained", "scratch") for kind in KINDS]
        + [f"colours-linear-{i}.safetensors" for i in ("pretrained", "scratch")]
    )
    read = EvaluationResult.from_json((run.directory / "evaluation" / "colours-knn-pretrained.json").read_text())
    assert read.to_dict() == results[1].to_dict()


def test_the_saved_probe_on_the_saved_features_gives_the_reported_confusion(
    run: Run, splits: tuple[ImageStore, ImageStore]
) -> None:
    result = evaluate(run, splits)
    features = np.load(run.directory / "embeddings" / "test.npy")
    probe = LinearProbe.load(run.directory / "evaluation" / "colours-linear-pretrained.safetensors")
    guess = probe.predict_proba(features).argmax(1)
    assert splits[1].labels is not None
    assert (confusion_matrix(splits[1].labels, guess, 3) != result.confusion).nnz == 0
    assert np.load(run.directory / "embeddings" / "train.npy").shape == (120, 512)


def test_features_are_those_of_the_runs_own_encoder_and_normalisation(
    run: Run, splits: tuple[ImageStore, ImageStore]
) -> None:
    evaluate(run, splits, method="knn")
    spec = run.recipe.augment
    x = (torch.from_numpy(splits[1].images) / 255 - torch.tensor(spec.mean)) / torch.tensor(spec.std)
    with torch.no_grad():
        expected = run.encoder()(x.permute(0, 3, 1, 2))
    np.testing.assert_allclose(
        np.load(run.directory / "embeddings" / "test.npy"), expected.numpy(), atol=1e-4, rtol=1e-4
    )


def test_predictions_do_not_depend_on_the_labels_of_the_test_split(
    run: Run, splits: tuple[ImageStore, ImageStore]
) -> None:
    train, test = splits
    assert test.labels is not None
    shuffled = replace(test, labels=np.random.default_rng(0).permutation(test.labels))
    for method in ("linear", "knn"):
        honest, other = evaluate(run, (train, test), method), evaluate(run, (train, shuffled), method)
        np.testing.assert_array_equal(honest.confusion.toarray().sum(0), other.confusion.toarray().sum(0))
        assert honest.accuracy > other.accuracy


def test_a_second_evaluation_takes_the_features_from_the_cache(
    run: Run, splits: tuple[ImageStore, ImageStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate(run, splits)
    monkeypatch.setattr(
        "simclr_engine.evaluation.features.extract_features", lambda *_, **__: pytest.fail("not cached")
    )
    assert evaluate(run, splits).accuracy == first.accuracy


def test_a_probe_that_unfreezes_the_encoder_is_caught(
    run: Run, splits: tuple[ImageStore, ImageStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = run.encoder()
    encoder.register_forward_pre_hook(lambda module, _: module.train() and None)
    monkeypatch.setattr(Run, "encoder", lambda *_: encoder)
    monkeypatch.setenv("SIMCLR_ENGINE_CACHE", str(run.directory / "cache"))
    with pytest.raises(CheckFailed, match="changed by its own evaluation"):
        evaluate(run, splits)
    assert not (run.directory / "evaluation").exists()


def test_the_limit_takes_a_balanced_part_and_is_written_beside_the_whole(
    run: Run, splits: tuple[ImageStore, ImageStore]
) -> None:
    result = evaluate(run, splits, method="knn", limit=30)
    assert [row.support for row in result.per_class] == [10, 10, 10]
    assert "30 train / 30 test images" in result.protocol
    assert (run.directory / "evaluation" / "colours-n30-knn-pretrained.json").is_file()


def test_results_go_elsewhere_when_told_and_the_run_stays_as_it_was(
    run: Run, splits: tuple[ImageStore, ImageStore], tmp_path: Path
) -> None:
    evaluate(run, splits, method="knn", out=tmp_path / "there")
    assert json.loads((tmp_path / "there" / "colours-knn-pretrained.json").read_text())["method"] == "knn"
    assert not (run.directory / "evaluation").exists()
    assert not (run.directory / "embeddings").exists()


def test_an_encoder_pretrained_on_the_test_split_is_refused(
    tmp_path: Path, splits: tuple[ImageStore, ImageStore]
) -> None:
    run = write_run(tmp_path / "cheat", image_size=8, fingerprint=splits[1].fingerprint)
    with pytest.raises(DataError, match="pretrained on this very test split"):
        evaluate(run, splits)


def test_images_of_another_size_are_refused_with_the_fix(run: Run) -> None:
    with pytest.raises(DataError, match="another size") as caught:
        evaluate(run, (coloured(30, 0, "train", side=9), coloured(30, 1, "test", side=9)))
    assert "size=8" in str(caught.value.fix)


def test_a_single_set_of_images_is_refused(run: Run, splits: tuple[ImageStore, ImageStore]) -> None:
    with pytest.raises(UsageError, match="two splits"):
        evaluate(run, splits[0])


def test_copies_of_train_in_test_are_refused(run: Run, splits: tuple[ImageStore, ImageStore]) -> None:
    with pytest.raises(DataError, match="memory test"):
        evaluate(run, (splits[0], splits[0]))


def test_a_place_that_cannot_be_written_is_told_before_anything_is_opened() -> None:
    with pytest.raises(PlatformError, match="/proc/results"):
        evaluate_all("no such run", "no such data", out="/proc/results")


@pytest.mark.parametrize(
    ("argument", "value"), [("methods", ["lineer"]), ("inits", ["random"]), ("methods", []), ("inits", [])]
)
def test_an_unknown_word_is_refused_with_the_known_ones(
    run: Run, splits: tuple[ImageStore, ImageStore], argument: str, value: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        evaluate_all(run, splits, **{argument: value})
    assert "one of: " in str(caught.value.fix)


@pytest.mark.parametrize("several", [{"method": ["linear", "knn"]}, {"init": ["pretrained", "scratch"]}])
def test_evaluate_gives_one_result_and_names_what_gives_several(
    run: Run, splits: tuple[ImageStore, ImageStore], several: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="evaluate_all"):
        evaluate(run, splits, **several)


def test_what_is_neither_a_run_nor_a_file_of_ours_is_refused(tmp_path: Path) -> None:
    for name in ("weights.bin", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UsageError, match=r"neither a run, an \.onnx file nor"):
        evaluate(tmp_path / "notes.txt", "digits")
    with pytest.raises(DataError, match="not a checkpoint"):
        evaluate(tmp_path / "weights.bin", "digits")
    with pytest.raises(UsageError, match="nothing to evaluate"):
        evaluate(tmp_path / "absent.onnx", "digits")
    with pytest.raises(DataError, match="no readable run"):
        evaluate(tmp_path, "digits")


def test_results_survive_json_and_anything_else_is_refused() -> None:
    from fixtures.synthetic_run import random_confusion, result

    one = result(random_confusion(3, 50, 0.5), ("a", "Ä <b>", "象"), method="knn", notes=("n",))
    assert EvaluationResult.from_json(one.to_json()).to_dict() == one.to_dict()
    for text in ("{}", "[]", "not json", json.dumps(one.to_dict() | {"confusion": [[1]]}), "null"):
        with pytest.raises(DataError):
            EvaluationResult.from_json(text)


def test_a_device_reaches_torch_and_is_refused_for_an_exported_file() -> None:
    def target(trainable: bool) -> Any:
        return SimpleNamespace(encoders={"pretrained": SimpleNamespace(trainable=trainable)}, path=Path("e.onnx"))

    run, file = target(True), target(False)
    protocol._compute_on(run, "cuda")
    assert run.encoders["pretrained"].device == "cuda"
    protocol._compute_on(file, "cpu")
    with pytest.raises(UsageError, match="on the CPU"):
        protocol._compute_on(file, "cuda")
