"""Linear head, fine-tuning, supervised training: they learn, keep to their protocol, and the frozen stay frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fixtures.coloured import NAMES, coloured
from fixtures.synthetic_run import write_run
from simclr_engine import evaluate
from simclr_engine.checkpoint import encoder_metadata, save_weights
from simclr_engine.data.store import ImageStore
from simclr_engine.errors import CheckFailed, UsageError
from simclr_engine.evaluation import evaluate_all, finetune
from simclr_engine.evaluation.features import encoder_hash
from simclr_engine.evaluation.methods import Training
from simclr_engine.evaluation.records import load_predictions, load_results, load_steps
from simclr_engine.evaluation.result import compare
from simclr_engine.evaluation.splits import make_splits
from simclr_engine.model import build_encoder
from simclr_engine.optim import lr_factor
from simclr_engine.run import Run

SHORT: Mapping[str, Any] = {
    "evaluation.head.epochs": 3,
    "evaluation.head.batch_size": 16,
    "evaluation.head.lr": 0.01,
    "evaluation.finetune.epochs": 2,
    "evaluation.finetune.batch_size": 24,
    "evaluation.supervised.epochs": 2,
    "evaluation.supervised.batch_size": 24,
}


@pytest.fixture(scope="module")
def splits() -> tuple[ImageStore, ImageStore]:
    return coloured(120, 0, "train"), coloured(60, 1, "test")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = write_run(tmp_path / "run", class_names=NAMES, data="colours", image_size=8, recipe="two-protocols")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        encoder = build_encoder("resnet18", "small")
    save_weights(run.directory / "encoder.safetensors", encoder, encoder_metadata(run.recipe, 8))
    return run


def test_the_linear_head_learns_and_says_how(run: Run, splits: tuple[ImageStore, ImageStore]) -> None:
    result = evaluate(run, splits, "head", overrides=SHORT)
    assert result.accuracy > 0.9
    assert "linear head (torch, frozen encoder, standardised, features computed once; adam, lr 0.01" in result.protocol
    assert "3 epochs of batch 16" in result.protocol and "120 train / 60 test images" in result.protocol
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    assert [row["step"] for row in result.history] == [7, 14, 21]  # ⌊120 / 16⌋ = 7 steps; what remains is left out
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    # The last row of the curve is the reported figure: the last epoch counts, never the best one.
    assert result.history[-1]["test_accuracy"] == pytest.approx(result.accuracy, abs=1e-6)
    assert result.history[-1]["test_loss"] == pytest.approx(result.loss, rel=1e-4)


def test_a_head_on_augmented_images_differs_and_leaves_the_encoder_alone(
    run: Run, splits: tuple[ImageStore, ImageStore]
) -> None:
    plain = evaluate(run, splits, "head", overrides=SHORT)
    before = encoder_hash(run.encoder())
    flips = {**SHORT, "evaluation.head.flip": 0.5, "evaluation.head.crop_scale": [0.6, 1.0]}
    moved = evaluate(run, splits, "head", overrides=flips)
    assert "crops of 0.6 to 1 of the area and flips" in moved.protocol
    assert moved.history != plain.history and moved.accuracy > 0.8
    assert encoder_hash(run.encoder()) == before == moved.encoder


def test_an_unfrozen_head_is_caught_by_the_hash(
    run: Run, splits: tuple[ImageStore, ImageStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = finetune._fit

    def thaws(model: torch.nn.Module, lesson: Any, *rest: Any) -> Any:
        encode = lesson.inputs

        def inputs(indices: Any, epoch: int) -> torch.Tensor:
            trunk.train()  # as a probe does that forgets eval(): batch norm takes the statistics of its images
            features: torch.Tensor = encode(indices, epoch)
            return features

        return fit(model, replace(lesson, inputs=inputs), *rest)

    trunk = run.encoder()
    monkeypatch.setattr(Run, "encoder", lambda *_: trunk)
    monkeypatch.setattr(finetune, "_fit", thaws)
    with pytest.raises(CheckFailed, match="changed by its own evaluation"):
        evaluate(run, splits, "head", overrides={**SHORT, "evaluation.head.flip": 0.5})


def test_fine_tuning_trains_the_encoder_from_where_it_is_and_not_the_run_on_disk(
    run: Run, splits: tuple[ImageStore, ImageStore]
) -> None:
    before = (run.directory / "encoder.safetensors").read_bytes()
    results = evaluate_all(run, splits, ["finetune"], ["pretrained", "scratch"], overrides=SHORT)
    trained, scratch = results
    assert trained.accuracy > 0.6 and len(trained.history) == 2
    assert "fine-tuning (end to end; adamw, lr 0.0005, cosine, 2 epochs of batch 24" in trained.protocol
    assert trained.protocol.endswith("from the trained encoder")
    assert "random encoder of seed 0" in scratch.protocol and trained.encoder != scratch.encoder
    assert trained.history[0]["train_loss"] != scratch.history[0]["train_loss"]
    assert (run.directory / "encoder.safetensors").read_bytes() == before
    steps = load_steps(run.directory / "evaluation", "colours-finetune-pretrained")
    schedule = run.recipe.evaluation.finetune.schedule_spec()
    assert [row["lr"] for row in steps] == [0.0005 * lr_factor(schedule, i, 10, 5) for i in range(10)]
    mean = sum(row["train_loss"] for row in steps[:5]) / 5
    assert trained.history[0]["train_loss"] == pytest.approx(mean)


def test_training_with_labels_is_repeatable(run: Run, splits: tuple[ImageStore, ImageStore]) -> None:
    results = []
    with torch.random.fork_rng():
        for callers_seed in (1, 2):  # which must not matter
            torch.manual_seed(callers_seed)
            results.append(evaluate(run, splits, "finetune", overrides=SHORT))
    first, second = results
    assert first.history == second.history
    assert first.to_dict()["confusion"] == second.to_dict()["confusion"]


def test_predictions_of_methods_that_train_do_not_depend_on_the_test_labels(
    run: Run, splits: tuple[ImageStore, ImageStore]
) -> None:
    train, test = splits
    assert test.labels is not None
    shuffled = replace(test, labels=np.random.default_rng(0).permutation(test.labels))
    short = {**SHORT, "evaluation.finetune.epochs": 1}
    for method in ("head", "finetune"):
        honest = evaluate(run, (train, test), method, overrides=short)
        other = evaluate(run, (train, shuffled), method, overrides=short)
        np.testing.assert_array_equal(honest.confusion.toarray().sum(0), other.confusion.toarray().sum(0))


def test_supervised_training_starts_from_scratch_once_and_keeps_to_the_time_of_the_pretraining(
    run: Run, splits: tuple[ImageStore, ImageStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = evaluate_all(run, splits, ["supervised"], ["pretrained", "scratch"], overrides=SHORT)
    assert [(r.method, r.init) for r in results] == [("supervised", "scratch")]
    assert "2 epochs of batch 24" in results[0].protocol
    asked: list[float] = []

    def seven_steps(model: Any, lesson: Any, seconds: float) -> int:
        asked.append(seconds)
        return 7

    monkeypatch.setattr(finetune, "_steps_within", seven_steps)
    timed = evaluate(run, splits, "supervised", overrides={**SHORT, "evaluation.supervised.epochs": 0})
    assert timed.init == "scratch" and "from the random encoder of seed 0" in timed.protocol
    assert asked == [192.0]  # what the synthetic run says that it took
    assert "1.4 epochs of batch 24, the 3.2 min of the pretraining" in timed.protocol
    assert [row["step"] for row in timed.history] == [5, 7]


def lesson_of(run: Run, inputs: Any) -> finetune._Lesson:
    """Sixty images in batches of 24, of which `inputs` gives what a model takes."""
    (split,) = make_splits(coloured(60, 0, "train"), coloured(30, 1, "test"))
    spec = run.recipe.evaluation.supervised.model_copy(update={"batch_size": 24})
    training = Training(lambda: run.recipe, 0.0, False)
    platform = finetune.choose_platform("cpu", "fp32")
    return finetune._Lesson(
        split, training, spec, platform, inputs, lambda: torch.ones(1, 3), np.zeros(1, dtype=np.int64)
    )


def test_an_epoch_sees_no_image_twice_and_the_next_has_another_order(run: Run) -> None:
    seen: list[list[int]] = []

    def inputs(indices: Any, epoch: int) -> torch.Tensor:
        seen.append([epoch, *indices.tolist()])
        return torch.ones(len(indices), 12)

    updates = finetune._Updates(torch.nn.Linear(12, 3), lesson_of(run, inputs))
    for step in range(4):
        updates.step(step, 0.1)
    assert [epoch for epoch, *_ in seen] == [0, 0, 1, 1]
    first, second = (set(seen[at][1:]) | set(seen[at + 1][1:]) for at in (0, 2))
    assert len(first) == len(second) == 48 and seen[0][1:] != seen[2][1:]


def test_a_time_budget_becomes_steps_and_leaves_the_model_as_it_was(run: Run) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    before = [p.clone() for p in model.parameters()]
    lesson = lesson_of(run, lambda indices, epoch: torch.ones(len(indices), 12))
    few, many = (finetune._steps_within(model, lesson, seconds) for seconds in (0.05, 5.0))
    assert 1 <= few < many
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    with pytest.raises(UsageError, match="how long"):
        finetune._steps_within(model, lesson, 0.0)


def test_folds_score_every_labelled_image_once_and_report_each_fold(
    run: Run, splits: tuple[ImageStore, ImageStore]
) -> None:
    results = evaluate_all(
        run, splits, ["finetune", "linear"], ["pretrained", "scratch"], label_fraction=0.5, folds=3, overrides=SHORT
    )
    tuned = results[0]
    assert tuned.test_images == tuned.confusion.sum() == 60 and tuned.train_images == 40
    assert [f.fold for f in tuned.folds] == [1, 2, 3]
    mean, spread = tuned.fold_spread or (0.0, 0.0)
    assert mean == pytest.approx(tuned.accuracy) and spread == pytest.approx(
        np.std([f.accuracy for f in tuned.folds], ddof=1)
    )
    assert {row["fold"] for row in tuned.history} == {1, 2, 3} and len(tuned.history) == 6
    assert "3 stratified folds of 60 train images of colours (50 % of the labels, stratified)" in tuned.protocol
    last = [row["test_accuracy"] for row in tuned.history if row["epoch"] == 2]
    assert last == pytest.approx([f.accuracy for f in tuned.folds])
    assert tuned.also["test split, mean of the folds' models"] == pytest.approx(
        np.mean([f.test_accuracy for f in tuned.folds])
    )
    stored = load_results(run.directory / "evaluation")
    assert "colours-finetune-pretrained-50pct-3folds" in stored and "colours-linear-scratch-50pct-3folds" in stored
    predictions = load_predictions(run.directory / "evaluation", "colours-finetune-pretrained-50pct-3folds")
    assert predictions is not None and (predictions.truth == predictions.predicted).mean() == tuned.accuracy
    assert [one.name for one in compare(results)] == [
        "linear probe, 50 % of labels, 3 folds",
        "fine-tuning, 50 % of labels, 3 folds",
    ]


def test_epochs_to_the_baseline_are_those_of_the_mean_over_folds(run: Run) -> None:
    from fixtures.synthetic_run import random_confusion, result

    def trained(init: str, curves: list[list[float]]) -> Any:
        rows = [
            {"fold": fold, "epoch": epoch, "test_accuracy": value}
            for fold, curve in enumerate(curves, start=1)
            for epoch, value in enumerate(curve, start=1)
        ]
        one = result(random_confusion(3, 60, 0.5), method="finetune", init=init)
        return replace(one, history=tuple(rows))

    scratch = trained("scratch", [[0.1, 0.5, 0.9], [0.1, 0.5, 0.7]])  # 0.8 at its end
    fast = trained("pretrained", [[0.6, 0.9, 0.9], [0.5, 0.7, 0.9]])  # 0.55, 0.80, 0.90
    slow = trained("pretrained", [[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]])
    assert compare([scratch, fast])[0].epochs_to_baseline == 2
    assert compare([scratch, slow])[0].epochs_to_baseline is None
    assert compare([fast])[0].epochs_to_baseline is None


def test_diverged_training_with_labels_is_said_and_nothing_is_written(
    run: Run, splits: tuple[ImageStore, ImageStore]
) -> None:
    with pytest.raises(CheckFailed, match="diverged"):
        evaluate(
            run, splits, "head", overrides={**SHORT, "evaluation.head.lr": 1e38, "evaluation.head.optimizer": "sgd"}
        )
    assert not list((run.directory / "evaluation").glob("*"))


@pytest.mark.parametrize("key", ["train.epochs", "optimizer.lr", "evaluation.head.nope"])
def test_an_evaluation_sets_its_own_values_alone(run: Run, splits: tuple[ImageStore, ImageStore], key: str) -> None:
    with pytest.raises(UsageError):
        evaluate(run, splits, "head", overrides={key: 1})
