"""compare.html puts runs side by side, and lets no foreign text become markup."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from fixtures.html_page import Page
from fixtures.saved_results import saved
from fixtures.synthetic_run import (
    fold_scores,
    history,
    random_confusion,
    result,
    write_evaluation,
    write_metrics,
    write_run,
)
from simclr_engine.cli.compare import command
from simclr_engine.errors import UsageError
from simclr_engine.evaluation.records import save_result
from simclr_engine.report import style
from simclr_engine.report.compare import render_comparison
from simclr_engine.report.comparison import ComparedRun, differing_keys, method_rows, notes, open_runs, to_document
from simclr_engine.run import Run


@pytest.fixture(scope="module", autouse=True)
def _small_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", 30)
        yield


def change(run: Run, **entries: Any) -> None:
    """Other entries in environment.json."""
    path = run.directory / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def rendered(subjects: list[ComparedRun]) -> Page:
    page = Page(render_comparison(subjects, Path("compare.html")))
    page.check()
    return page


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page, dict[str, Any]]:
    """An evaluated run, one that fine-tuned too and has another recipe, one unfinished and not evaluated."""
    root = tmp_path_factory.mktemp("three") / "runs"
    first, second = write_run(root / "first"), write_run(root / "second", recipe="few-labels-50")
    third = write_run(root / "third", finished=False)
    for run in (first, second):
        write_metrics(run)
        saved(run, 0.7)
        saved(run, 0.2, init="scratch")
    write_metrics(third, epochs=4)
    saved(second, 0.9, method="knn")
    for init, right in (("pretrained", 0.8), ("scratch", 0.4)):
        folds = {"label_fraction": 0.3, "folds": fold_scores(5, right), "history": history(6, right, 5)}
        saved(second, right, method="finetune", init=init, **folds)
    saved(first, 0.5, method="supervised", init="scratch")
    done = CliRunner().invoke(command, [*(str(root / name) for name in ("first", "second", "third")), "--json"])
    assert done.exit_code == 0, done.output
    return root, Page((root / "compare.html").read_text("utf-8")), json.loads(done.stdout)


def test_the_page_stands_beside_the_first_run_and_needs_nothing(three: tuple[Path, Page, dict[str, Any]]) -> None:
    root, page, document = three
    page.check()
    assert document["out"] == str(root / "compare.html")
    assert "http://" not in page.html and "https://" not in page.html
    assert [str(a["href"]) for a in page.all("a")] == [f"#{a['id']}" for a in page.all("section")]


def test_the_table_of_runs_says_what_each_was(three: tuple[Path, Page, dict[str, Any]]) -> None:
    text = three[1].section("runs").text
    chance = np.log(255)
    for name, recipe, epochs, batch, time, loss in (
        ("first", "lars-800", "10", "512", "3 min 12 s", chance - 1.0),
        ("second", "few-labels-50", "10", "256", "3 min 12 s", chance - 1.0),
        ("third", "lars-800", "4 of 10", "512", "3 min 12 s", chance - 0.4),
    ):
        row = f"{name} A Processor, 2 threads, bf16 {recipe} photos, 512 × 16 px {epochs} 2 {batch} {time} 321"
        assert f"{row} {loss:.3f} {chance:.3f}" in text


def test_every_method_has_the_accuracies_of_all_runs(three: tuple[Path, Page, dict[str, Any]]) -> None:
    text = three[1].section("methods").text
    trained, scratch = (100 * random_confusion(3, 300, right).trace() / 300 for right in (0.7, 0.2))
    cell = f"{trained:.1f} % +{trained - scratch:.1f} points"
    assert f"linear probe {cell} {cell} —" in text
    assert f"kNN — {100 * random_confusion(3, 300, 0.9).trace() / 300:.1f} % —" in text
    assert "fine-tuning, 30 % of labels, 5 folds — 77.0 ± 1.6 % +40.0 points —" in text
    assert f"supervised {100 * random_confusion(3, 300, 0.5).trace() / 300:.1f} % random weights — —" in text


def test_published_figures_stand_beside_all_runs(three: tuple[Path, Page, dict[str, Any]]) -> None:
    text = three[1].section("beside-published-figures").text
    trained = 100 * random_confusion(3, 300, 0.7).trace() / 300
    assert f"linear probe pretrained 79.65 % {trained:.1f} % {trained:.1f} % —" in text
    assert "fine-tuning 30 % of the labels, 5 folds pretrained 82.00 % — 77.0 ± 1.6 % —" in text
    assert "the author's own figures: CIFAR-10, ResNet-18, 800 epochs" in text


def test_only_differing_hyper_parameters_are_listed(three: tuple[Path, Page, dict[str, Any]]) -> None:
    root, page, document = three
    recipes = [Run.open(root / name).recipe for name in ("first", "second")]
    differing = document["differences"]
    assert differing["optimizer.name"] == {"first": "lars", "second": "adam", "third": "lars"}
    assert differing["train.batch_size"] == {"first": 512, "second": 256, "third": 512}
    assert set(differing) == set(recipes[0].differences(recipes[1]))
    assert "optimizer.name lars adam lars" in page.section("what-differs").text
    assert "train.views" not in page.section("what-differs").text


def test_unfinished_and_unevaluated_runs_are_named(three: tuple[Path, Page, dict[str, Any]]) -> None:
    root, page, document = three
    assert document["notes"] == [
        "third is not finished after 4 of 10 epochs.",
        f"third has not been evaluated: simclr-engine evaluate {root / 'third'}",
    ]
    for note in document["notes"]:
        assert note in page.text


def test_the_document_has_the_numbers_of_the_page(three: tuple[Path, Page, dict[str, Any]]) -> None:
    _, _, document = three
    about = {run["name"]: run for run in document["runs"]}
    assert about["third"]["epochs"] == 4.0 and about["third"]["planned_epochs"] == 10.0
    assert not about["third"]["finished"] and about["first"]["finished"]
    assert about["first"]["images_per_second"] == pytest.approx(321.0)
    methods = {row["method"]: row for row in document["methods"]}
    assert list(methods) == ["linear probe", "kNN", "supervised", "fine-tuning, 30 % of labels, 5 folds"]
    (fine,) = methods["fine-tuning, 30 % of labels, 5 folds"]["runs"]
    assert fine["run"] == "second" and fine["epochs_to_baseline"] == 3
    assert fine["pretrained"]["accuracy"] == pytest.approx(0.77)
    assert fine["pretrained"]["fold_sd"] == pytest.approx(np.std([0.01, 0.02, 0.03, 0.04, 0.05], ddof=1))
    assert document["published"][0]["results"][0]["accuracy"] == 0.7965


def test_the_pictures_have_every_curve_in_both_themes(three: tuple[Path, Page, dict[str, Any]]) -> None:
    page = three[1]
    assert len(page.section("figures").all("img")) == 2 * 5  # accuracy; loss and kNN, by epoch and by time
    assert {a["class"] for a in page.all("img")} == {"light", "dark"}


def test_the_commands_repeat_all_of_it(three: tuple[Path, Page, dict[str, Any]]) -> None:
    root, page, _ = three
    text = page.section("reproduce").text
    assert f"simclr-engine evaluate {root}/first --data photos --method linear" in text
    assert f"simclr-engine compare {root}/first {root}/second {root}/third --out {root}/compare.html" in text


def test_the_terminal_shows_the_same_table(tmp_path: Path) -> None:
    for name, right in (("a", 0.7), ("b", 0.8)):
        saved(write_run(tmp_path / name), right)
    done = CliRunner().invoke(
        command, [str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "x" / "p.html")]
    )
    assert done.exit_code == 0, done.output
    a, b = (100 * random_confusion(3, 300, right).trace() / 300 for right in (0.7, 0.8))
    words = " ".join(done.output.split())
    assert f"linear probe 600 / 300 {a:.1f} % {b:.1f} %" in words
    assert "hyper-parameter" not in words
    assert (tmp_path / "x" / "p.html").is_file()


def test_results_on_other_images_are_not_in_one_row_and_a_note_says_so(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    saved(a, 0.7)
    saved(b, 0.9, data="others")
    subjects = open_runs([a.directory, b.directory])
    assert [[bool(cell) for cell in row.cells] for row in method_rows(subjects)] == [[False, True], [True, False]]
    (note,) = notes(subjects)
    assert note.startswith("linear probe: evaluated on different images, which do not compare")
    assert "others, 600 / 300 images: b" in note and "photos, 600 / 300 images: a" in note
    assert note in rendered(subjects).text


def test_runs_with_nothing_in_them_have_a_page(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name, finished=False).directory for name in ("a", "b")]
    subjects = open_runs(paths)
    page = rendered(subjects)
    assert not page.all("img")
    assert "a is not finished and has logged nothing." in page.text
    assert "The resolved recipes have the same hyper-parameters." in page.text
    assert differing_keys(subjects) == {}
    json.dumps(to_document(subjects), allow_nan=False)


def test_two_and_a_thousand_classes_compare_nothing_but_have_a_page(tmp_path: Path) -> None:
    paths = []
    for classes in (2, 1000):
        names = tuple(f"class {i}" for i in range(classes))
        run = write_run(tmp_path / str(classes), class_names=names)
        save_result(run.directory / "evaluation", result(random_confusion(classes, 3000, 0.5), names))
        paths.append(run.directory)
    subjects = open_runs(paths)
    assert any("different protocols" in note for note in notes(subjects))
    assert len(rendered(subjects).html) < 2_000_000


def test_foreign_text_becomes_no_markup(tmp_path: Path) -> None:
    hostile = ("<script>alert(1)</script>", '"onload="x', "קוף", "\x1b[31m")
    data = "</style><img src=x onerror=alert(1)>"
    paths = []
    for name in ("<u>run<\x1b", "קוף\u202e", "$x^2$", "photos\udcff"):
        run = write_run(tmp_path / name, class_names=hostile, data=data)
        write_metrics(run)
        write_evaluation(run, hostile)
        change(run, command="simclr-engine pretrain <script>", device_name="<i>cpu</i>", version="<b>")
        paths.append(run.directory)
    page = rendered(open_runs(paths))
    for words in ("<u>run<\\x1b", "<i>cpu</i>", "$x^2$", "photos\\udcff", "pretrain <script>"):
        assert words in page.text
    assert "<bdi>קוף\\u202e</bdi>" in page.html and "run 2 in the pictures" in page.text
    shown = CliRunner().invoke(command, [*map(str, paths[:3]), "--out", str(tmp_path / "page.html")])
    assert shown.exit_code == 0, shown.output
    assert "\x1b" not in shown.output and "$x^2$" in shown.output


def test_a_file_that_compare_did_not_write_is_replaced_only_when_asked(tmp_path: Path) -> None:
    runs = [str(write_run(tmp_path / name).directory) for name in ("a", "b")]
    page = tmp_path / "compare.html"
    page.write_text("a thesis")
    refused = CliRunner().invoke(command, runs)
    assert isinstance(refused.exception, UsageError) and page.read_text() == "a thesis"
    for options in (["--overwrite"], []):  # then it is one of ours
        done = CliRunner().invoke(command, [*runs, *options])
        assert done.exit_code == 0 and "2 runs side by side" in page.read_text()
    page.write_text("#!/bin/sh\nsimclr-engine compare a b\n")  # the words of ours make it none
    assert isinstance(CliRunner().invoke(command, runs).exception, UsageError)


def test_what_all_runs_have_in_common_is_said_once(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in ("a", "b")]
    for run in runs:
        saved(run, protocol="the same of both")
        saved(run, method="knn", protocol=f"its own of {run.directory.name}")
    text = rendered(open_runs([run.directory for run in runs])).section("how-the-numbers-were-made").text
    assert text.count("the same of both") == text.count("its own of a") == text.count("its own of b") == 1
    assert text.index("its own of b") < text.index("All runs") < text.index("the same of both")
