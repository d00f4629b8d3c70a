"""What the tables of a report say: methods beside published figures, folds, classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fixtures.html_page import Page
from fixtures.saved_results import page_of, page_with, saved
from fixtures.synthetic_run import (
    fold_scores,
    history,
    random_confusion,
    result,
    write_evaluation,
    write_metrics,
    write_run,
    write_training,
)
from simclr_engine.evaluation.records import save_result
from simclr_engine.evaluation.result import FoldScores, compare
from simclr_engine.report.content import load_content
from simclr_engine.report.page import render_page
from simclr_engine.report.tables import exported_section, folds_section, methods_section


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of a run with a log and two methods, without its pictures."""
    run = write_run(tmp_path_factory.mktemp("runs") / "full")
    write_metrics(run)
    write_evaluation(run)
    return page_of(run)


def test_the_published_figure_stands_beside_ours_only_for_the_same_method(evaluated: Page) -> None:
    ours = 100 * random_confusion(3, 300, 0.7).trace() / 300
    apart = f"{ours - 79.65:+.1f}".replace("-", "−")
    text = evaluated.section("beside-published-figures").text
    assert f"linear probe pretrained 79.65 % {ours:.1f} % {apart}" in text
    assert "head pretrained 79.53 % not run —" in text


def test_further_published_scores_stand_below_the_accuracy(evaluated: Page) -> None:
    shown = compare([result(random_confusion(3, 300, 0.7))])[0].shown
    text = evaluated.section("beside-published-figures").text
    for words, published, ours in (("macro F1", 0.7960, shown.f1_macro), ("mean IoU", 0.6726, shown.mean_iou)):
        apart = f"{ours - published:+.4f}".replace("-", "−")
        assert f"{words} {published:.4f} {ours:.4f} {apart}" in text


def few_labels(directory: Path, fraction: float, folds: int) -> Page:
    """A run of the recipe whose author publishes fine-tuning on 30 % of the labels in 5 folds."""
    run = write_run(directory, recipe="few-labels-50")
    for init, right in (("pretrained", 0.8), ("scratch", 0.4)):
        saved(
            run,
            right,
            method="finetune",
            init=init,
            label_fraction=fraction,
            folds=fold_scores(folds, right),
            history=history(6, right, folds),
            loss=1 - right,
        )
    return page_of(run).section("beside-published-figures")


def test_published_figures_match_the_same_share_of_labels_and_folds(tmp_path: Path) -> None:
    text = few_labels(tmp_path / "same", 0.3, 5).text
    mean, sd = 100 * (0.8 - 0.03), 100 * np.std([0.01, 0.02, 0.03, 0.04, 0.05], ddof=1)
    assert "fine-tuning 30 % of the labels, 5 folds" in text
    assert f"pretrained 82.00 % {mean:.1f} ± {sd:.1f} % −5.0" in text
    assert "loss (nats) 0.22 0.20 −0.02" in text
    assert "epochs to the baseline 6 3 −3" in text
    assert f"random 76.00 % {mean - 40:.1f} ± {sd:.1f} % −39.0" in text
    assert "not run" not in text


@pytest.mark.parametrize(("fraction", "folds"), [(1.0, 5), (0.3, 3), (0.1, 5), (0.3, 0)])
def test_published_figures_do_not_match_another_part_or_other_folds(
    tmp_path: Path, fraction: float, folds: int
) -> None:
    text = few_labels(tmp_path / "other", fraction, folds).text
    assert text.count("not run —") == 2
    assert "loss (nats) 0.22 — —" in text


@pytest.mark.parametrize("shape", ["rows", "table"])
def test_published_scores_of_each_class_stand_beside_ours(tmp_path: Path, shape: str) -> None:
    run = write_run(tmp_path / "classes")
    rows = [{"name": "Bee", "accuracy": 0.9, "f1": 0.8, "iou": 0.7}, {"name": "dog", "accuracy": 0.1}]
    table = {str(row["name"]): {key: value for key, value in row.items() if key != "name"} for row in rows}
    run.recipe.published["per_class"] = rows if shape == "rows" else table
    saved(run)
    ours = result(random_confusion(3, 300, 0.7)).per_class[1]
    text = Page(render_page(load_content(run), [])).section("beside-published-figures").text
    assert f"Bee 90.0 % {100 * ours.accuracy:.1f} % 0.8000 {ours.f1:.4f} 0.7000 {ours.iou:.4f}" in text
    assert "dog 10.0 % — — — — —" in text
    run.recipe.published["per_class"] = [{"name": "horse", "accuracy": 0.5}]
    assert "horse" not in Page(render_page(load_content(run), [])).section("beside-published-figures").text


def test_methods_that_train_the_encoder_are_a_group_of_their_own(tmp_path: Path) -> None:
    run = write_run(tmp_path / "groups")
    write_evaluation(run)
    write_training(run)
    text = page_of(run).section("methods").text
    order = ("Frozen encoder", "linear probe", "kNN", "linear head", "Encoder trained with the labels", "fine-tuning")
    assert [text.index(words) for words in order] == sorted(text.index(words) for words in order)
    assert (
        "fine-tuning, 30 % of labels, 3 folds 600 / 300" not in text
    )  # all have the same images: not said in each row
    assert "78.0 ± 1.0 % 38.0 ± 1.0 % 38.3 % +40.0" in text
    assert "0.200 3 of 6 2.5 s" in text  # loss, epochs to the baseline, time
    assert "In linear probe, kNN and linear head the encoder is frozen: a hash" in text


def test_the_encoder_is_called_frozen_only_where_it_is() -> None:
    confusion = random_confusion(3, 300, 0.7)
    knn, tuned = (page_with(methods_section(compare([result(confusion, method=m)]))) for m in ("knn", "finetune"))
    assert "The encoder is frozen: a hash" in knn.text
    assert "frozen" not in tuned.text.lower()


def test_a_baseline_that_is_never_reached_is_said_so() -> None:
    confusion = random_confusion(3, 300, 0.7)
    pair = [
        result(confusion, method="finetune", init=i, history=history(6, end))
        for i, end in (("pretrained", 0.4), ("scratch", 0.8))
    ]
    assert "not in 6" in page_with(methods_section(compare(pair))).text
    assert "epochs" not in page_with(methods_section(compare(pair[:1]))).text


def test_the_columns_of_old_results_are_those_they_can_fill(evaluated: Page) -> None:
    head = evaluated.section("methods").text.split("linear probe")[0]
    assert "calibration error time" in head


def test_the_table_of_folds_has_each_fold_and_their_mean_and_deviation(tmp_path: Path) -> None:
    folds = [FoldScores(1, 0.5, 1.25, 0.52, 80, 20), FoldScores(2, 0.6, 1.5, 0.58, 80, 21)]
    page = page_with(
        folds_section(compare([result(random_confusion(3, 300, 0.5), method="finetune", folds=tuple(folds))]))
    )
    assert "1 80 20 50.0 % 1.2500 52.0 %" in page.text
    assert "2 80 21 60.0 % 1.5000 58.0 %" in page.text
    assert "mean ± sd 55.0 ± 7.1 % 1.3750 ± 0.1768 55.0 ± 4.2 %" in page.text
    assert folds_section(compare([result(random_confusion(3, 300, 0.5))])) is None


def test_the_table_of_classes_has_the_numbers_of_the_headline(evaluated: Page) -> None:
    row = compare([result(random_confusion(3, 300, 0.7))])[0].shown.per_class[1]
    assert f"bee {row.support} {100 * row.accuracy:.1f} %" in evaluated.text
    assert f"{row.precision:.4f} {row.f1:.4f} {row.iou:.4f}" in evaluated.text


def test_data_sets_are_told_apart_and_the_runs_own_comes_first(tmp_path: Path) -> None:
    run = write_run(tmp_path / "two", data="photos")
    for data, right in (("/data/others", 0.9), ("photos", 0.4)):
        saved(run, right, data=data)
    page = page_of(run)
    assert f"{100 * random_confusion(3, 300, 0.4).trace() / 300:.1f} % linear probe, pretrained" in page.text
    assert "others, 600 / 300 images" in page.text


EXPORTED = {
    "file": "out/encoder.onnx",
    "bytes": 44 << 20,
    "precision": "fp32",
    "input": "images uint8 [batch, 32, 32, 3]",
    "sha256": "12" * 32,
    "parity": {"max_abs": 3.1e-6, "label_agreement": 1.0, "images": 74, "image_source": "training images of photos"},
    "probe": {"id": "photos-linear-pretrained", "accuracy": 0.6, "test_images": 1, "class_names": ["ant", "bee"]},
    "variants": [
        {
            "file": "out/encoder.int8.onnx",
            "bytes": 11 << 20,
            "precision": "int8",
            "sha256": "34" * 32,
            "parity": {"max_abs": 0.1},
            "agreement": {"accuracy": 0.59, "accuracy_fp32": 0.6, "agreement": 0.97, "images": 400},
        }
    ],
    "card": {
        "device": "A Processor",
        "threads": 2,
        "rows": [{"name": "PyTorch eager", "images_per_second": {"1": {"median": 25.4}}, "start_up_seconds": 5.5}],
    },
}


def test_an_export_is_told_in_words_and_tables() -> None:
    text = page_with(exported_section(EXPORTED)).text
    assert "encoder.int8.onnx int8 11.0 MiB 1.0e-01 97.0 % 59.0 % 60.0 %" in text
    assert "encoder.onnx fp32 44.0 MiB 3.1e-06 100.0 % — —" in text
    assert "photos-linear-pretrained: 60.00 % of 1 test image " in text
    assert "encoder.onnx: checked on 74 images (training images of photos)." in text
    assert "PyTorch eager 25 — — 5.50 s" in text and "A Processor, 2 threads" in text
    assert "34" * 32 in text and not set("{}'") & set(text.split("sha256")[0])


@pytest.mark.parametrize(
    "odd",
    [{"file": 1, "variants": 3, "card": [], "probe": "x"}, {"parity": [{}], "bytes": 10**400, "card": {"rows": 1}}],
)
def test_an_export_record_of_any_shape_has_a_section(odd: dict[str, object]) -> None:
    assert "Exported file" in page_with(exported_section(odd)).text


def test_published_figures_stand_only_beside_the_same_images(tmp_path: Path) -> None:
    cifar = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    photos, cifar10, archive = (write_run(tmp_path / name, data=name) for name in ("photos", "cifar10", "jpegs"))
    for run in (photos, cifar10, archive):
        del run.recipe.published["data"]  # as the named recipes have it
    assert not load_content(photos).published
    assert len(load_content(cifar10).published) == 3
    archive.environment["data"]["class_names"] = list(reversed(cifar))
    assert len(load_content(archive).published) == 3
    saved(photos)
    save_result(photos.directory / "evaluation", result(random_confusion(10, 300, 0.7), cifar, data="jpegs"))
    assert {one.ours.data for one in load_content(photos).published if one.ours} == {"jpegs"}
