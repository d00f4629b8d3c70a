"""report.html says what the run's files say, needs nothing beside it, and lets no foreign text become markup."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from reference.html_page import Page
from reference.synthetic_run import (
    fold_scores,
    history,
    random_confusion,
    result,
    write_evaluation,
    write_metrics,
    write_run,
    write_training,
)
from simclr_engine.cli.report import command
from simclr_engine.errors import DataError, PlatformError
from simclr_engine.evaluation.comparison import compare
from simclr_engine.evaluation.records import save_result
from simclr_engine.evaluation.result import EvaluationResult, FoldScores
from simclr_engine.report import style, write_report
from simclr_engine.report.build import write_pictures
from simclr_engine.report.content import gather
from simclr_engine.report.page import DrawnPicture, document, gallery, render_page
from simclr_engine.report.pictures import run_pictures
from simclr_engine.report.provenance import commands
from simclr_engine.report.tables import fold_tables, methods_table
from simclr_engine.run import Run


@pytest.fixture(scope="module", autouse=True)
def _small_pictures() -> Iterator[None]:
    """What the page says does not depend on how finely its pictures are drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", 30)
        yield


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Page]:
    """A run with a log, two methods, features, views and an export."""
    run = write_run(tmp_path_factory.mktemp("runs") / "full")
    write_metrics(run)
    write_evaluation(run)
    rng = np.random.default_rng(0)
    views = {"originals": rng.integers(0, 256, (2, 16, 16, 3), np.uint8)}
    views["views"] = rng.integers(0, 256, (2, 8, 16, 16, 3), np.uint8)
    np.savez(run.directory / "views.npz", **views)
    export = {"file": "encoder.onnx", "bytes": 44 << 20, "sha256": "12" * 32, "parity": {"max_abs": 3.1e-6}}
    (run.directory / "export.json").write_text(json.dumps(export), "utf-8")
    page = write_report(run)
    assert page == run.directory / "report.html"
    return run, Page(page.read_text("utf-8"))


def page_of(run: Run) -> Page:
    """The page without its pictures, which take the most time."""
    return Page(render_page(gather(Run.open(run.directory)), []))


def saved(run: Run, right: float = 0.7, **rest: Any) -> EvaluationResult:
    """A result over 300 images, saved into the run; fields that `result` sets itself may be replaced."""
    plain = result(random_confusion(3, 300, right), data=run.environment["data"]["name"]).to_dict()
    plain |= {k: [vars(one) for one in v] if k == "folds" else v for k, v in rest.items()}
    one = EvaluationResult.from_dict(plain)
    save_result(run.directory / "evaluation", one)
    return one


def test_the_page_needs_nothing_beside_it(full: tuple[Run, Page]) -> None:
    full[1].check()
    assert not re.search(r"https?://", full[1].html)


def test_every_picture_is_a_png_in_both_themes_and_a_file_of_the_run(full: tuple[Run, Page]) -> None:
    run, page = full
    light, dark = ([a["src"] for a in page.all("img") if a["class"] == name] for name in ("light", "dark"))
    assert len(light) == len(dark) == len(list((run.directory / "figures").iterdir())) >= 12
    assert {p.stem for p in (run.directory / "figures").glob("*.png")} >= {
        "confusion-photos-linear-pretrained",
        "confusion-photos-knn-pretrained",
        "per-class-photos-linear-pretrained",
        "embedding-pca-pretrained",
        "embedding-pca-random",
        "loss",
        "online-knn",
        "augmentation",
    }
    for sources, bright in ((light, True), (dark, False)):
        for source in sources:
            picture = Image.open(io.BytesIO(base64.b64decode(str(source).split(",")[1]))).convert("L")
            assert (picture.getpixel((0, 0)) > 128) is bright


def test_a_picture_is_shown_once_and_the_light_one_on_paper(full: tuple[Run, Page]) -> None:
    css = full[1].html.split("<style>")[1].split("</style>")[0]
    before, dark = css.split("@media screen and (prefers-color-scheme: dark) {\n  figure", 1)
    assert "figure img.dark { display: none; }" in before
    assert dark.startswith(" img.dark { display: block; }\n  figure img.light { display: none; }")


def test_every_picture_has_a_caption_and_room_before_it_is_loaded(full: tuple[Run, Page]) -> None:
    _, page = full
    assert len(page.all("figcaption")) == len(page.all("figure")) == len(page.all("img")) / 2
    for attributes in page.all("img"):
        picture = Image.open(io.BytesIO(base64.b64decode(str(attributes["src"]).split(",")[1])))
        assert (attributes["width"], attributes["height"]) == tuple(map(str, picture.size))


def test_wide_pictures_take_both_columns() -> None:
    def drawn(inches: float) -> DrawnPicture:
        file = io.BytesIO()
        Image.new("RGB", (round(inches * style.DPI), 60)).save(file, "PNG")
        return DrawnPicture("s", "a caption that says what is seen", dict.fromkeys(("light", "dark"), file.getvalue()))

    assert [a["class"] for a in Page(gallery([drawn(5.4), drawn(9.0)])).all("figure")] == ["card", "card wide"]
    assert gallery([]) == ""


def test_the_contents_lead_to_every_part_also_to_two_of_one_name(full: tuple[Run, Page]) -> None:
    page = full[1]
    sections = [a["id"] for a in page.all("section") if "id" in a]
    assert [str(a["href"])[1:] for a in page.all("a")] == sections
    assert {"methods", "beside-published-figures", "pretraining", "what-was-run", "reproduce"} <= set(sections)
    twice = Page(document("t", [], [("A & b", "<p>1</p>"), ("A <b>", "<p>2</p>"), ("none", ""), ("é", "<p>3</p>")], ""))
    twice.check()
    assert [a["href"] for a in twice.all("a")] == ["#a-b", "#a-b-1", "#part"]


def test_the_headline_is_the_linear_probe_beside_the_random_encoder(full: tuple[Run, Page]) -> None:
    trained, scratch = (random_confusion(3, 300, right).trace() / 300 for right in (0.7, 0.2))
    assert f"{100 * trained:.1f} % linear probe, pretrained encoder" in full[1].text
    assert f"random encoder {100 * scratch:.1f} %: +{100 * (trained - scratch):.1f} points" in full[1].text


@pytest.mark.parametrize(
    "words",
    [
        "3 min 12 s",
        "A Processor, 2 threads, cpu, bf16, channels_last",
        "augment: torch, nt_xent: torch",
        "40 of 512 images × 2 views",
        "simclr-engine 0.1.0, python 3.11.7, torch 2.13.0",
        "linear by hand",
        "kNN, random encoder. knn by hand",
        "weighted k=5",
        "79.65 %",  # published for lars-800
        "the author's own figures: CIFAR-10, ResNet-18, 800 epochs",
        "44.0 MiB",
        "parity: max abs",
        "a note of the platform",
        "3.00 GiB",
        "321 images/s at the end",
        "c0ffeec0ffee",
        "ended 1970-01-01 00:00 UTC",
    ],
)
def test_the_page_says_what_was_run(full: tuple[Run, Page], words: str) -> None:
    assert words in full[1].text


def test_the_published_figure_stands_beside_ours_only_for_the_same_method(full: tuple[Run, Page]) -> None:
    ours = 100 * random_confusion(3, 300, 0.7).trace() / 300
    apart = f"{ours - 79.65:+.1f}".replace("-", "−")
    text = full[1].section("beside-published-figures").text
    assert f"linear probe pretrained 79.65 % {ours:.1f} % {apart}" in text
    assert "head pretrained 79.53 % not run —" in text


def test_further_published_scores_stand_below_the_accuracy(full: tuple[Run, Page]) -> None:
    shown = compare([result(random_confusion(3, 300, 0.7))])[0].shown
    text = full[1].section("beside-published-figures").text
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


def test_published_figures_on_a_part_of_the_labels_match_the_same_part_and_folds(tmp_path: Path) -> None:
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
    text = Page(render_page(gather(run), [])).section("beside-published-figures").text
    assert f"Bee 90.0 % {100 * ours.accuracy:.1f} % 0.8000 {ours.f1:.4f} 0.7000 {ours.iou:.4f}" in text
    assert "dog 10.0 % — — — — —" in text
    run.recipe.published["per_class"] = [{"name": "horse", "accuracy": 0.5}]
    assert "horse" not in Page(render_page(gather(run), [])).section("beside-published-figures").text


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
    assert "78.0 ± 1.0 % 38.0 ± 1.0 % +40.0" in text
    assert "0.200 3 of 6 2.5 s" in text  # loss, epochs to the baseline, time
    assert "In linear probe, kNN and linear head the encoder is frozen: a hash" in text


def test_the_encoder_is_called_frozen_only_where_it_is() -> None:
    confusion = random_confusion(3, 300, 0.7)
    assert "The encoder is frozen: a hash" in methods_table(compare([result(confusion, method="knn")]))
    assert "frozen" not in methods_table(compare([result(confusion, method="finetune")])).lower()


def test_a_baseline_that_is_never_reached_is_said_so() -> None:
    confusion = random_confusion(3, 300, 0.7)
    pair = [
        result(confusion, method="finetune", init=i, history=history(6, end))
        for i, end in (("pretrained", 0.4), ("scratch", 0.8))
    ]
    assert "not in 6" in methods_table(compare(pair))
    assert "epochs" not in methods_table(compare(pair[:1]))


def test_the_columns_of_old_results_are_those_they_can_fill(full: tuple[Run, Page]) -> None:
    head = full[1].section("methods").text.split("linear probe")[0]
    assert "calibration error time" in head


def test_the_table_of_folds_has_each_fold_and_their_mean_and_deviation(tmp_path: Path) -> None:
    folds = [FoldScores(1, 0.5, 1.25, 0.52, 80, 20), FoldScores(2, 0.6, 1.5, 0.58, 80, 21)]
    one = compare([result(random_confusion(3, 300, 0.5), method="finetune", folds=tuple(folds))])
    page = Page(fold_tables(one))
    assert "1 80 20 50.0 % 1.2500 52.0 %" in page.text
    assert "2 80 21 60.0 % 1.5000 58.0 %" in page.text
    assert "mean ± sd 55.0 ± 7.1 % 1.3750 ± 0.1768 55.0 ± 4.2 %" in page.text
    assert fold_tables(compare([result(random_confusion(3, 300, 0.5))])) == ""


def test_results_of_an_older_encoder_raise_an_alarm(tmp_path: Path) -> None:
    run = write_run(tmp_path / "older")
    saved(run, encoder="a" * 64)
    saved(run, method="knn", encoder="a" * 64)
    saved(run, init="scratch", encoder="c" * 64)
    assert "different encoders" not in page_of(run).text
    assert "Encoder sha256 aaaaaaaaaaaaaaaa…" in page_of(run).text
    saved(run, method="head", encoder="")  # of the time before results said
    assert "different encoders" not in page_of(run).text
    saved(run, method="knn", encoder="b" * 64)
    text = page_of(run).text
    assert "Results of 2 different encoders" in text
    assert "linear probe: aaaaaaaaaaaa…; kNN: bbbbbbbbbbbb…" in text


def test_notes_of_convergence_are_on_the_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "notes")
    saved(run, notes=["lbfgs did not converge in 200 iterations"])
    page = page_of(run)
    assert "lbfgs did not converge in 200 iterations" in page.section("how-the-numbers-were-made").text
    assert {"class": "warn"} in page.all("li")


def test_the_commands_that_reproduce_it_are_there(full: tuple[Run, Page]) -> None:
    where = full[0].directory
    assert f"simclr-engine pretrain --recipe {where}/recipe.toml --data photos" in full[1].text
    assert f"simclr-engine evaluate {where} --data photos --method linear --method knn" in full[1].text
    assert f"simclr-engine report {where}" in full[1].text


def test_the_commands_have_the_options_of_each_kind_of_result(tmp_path: Path) -> None:
    run = write_run(tmp_path / "my runs; rm", data="my photos/")
    for init in ("pretrained", "scratch"):
        saved(run, init=init)
        saved(run, method="finetune", init=init, label_fraction=0.3, folds=fold_scores(5, 0.5))
    saved(run, method="knn", limit=500)
    saved(run, method="supervised", init="scratch")
    where = f"'{run.directory}'"
    recipe, again = f"'{run.directory}/recipe.toml'", f"'{run.directory}-again'"
    assert commands(gather(run)) == [
        f"simclr-engine pretrain --recipe {recipe} --data 'my photos/' --out {again}",
        f"simclr-engine evaluate {where} --data 'my photos/' --method linear --method supervised",
        f"simclr-engine evaluate {where} --data 'my photos/' --method knn --limit 500 --init pretrained",
        f"simclr-engine evaluate {where} --data 'my photos/' --method finetune --label-fraction 0.3 --folds 5",
        f"simclr-engine report {where}",
    ]


def test_the_table_of_classes_has_the_numbers_of_the_headline(full: tuple[Run, Page]) -> None:
    row = compare([result(random_confusion(3, 300, 0.7))])[0].shown.per_class[1]
    assert f"bee {row.support} {100 * row.accuracy:.1f} %" in full[1].text
    assert f"{row.precision:.4f} {row.f1:.4f} {row.iou:.4f}" in full[1].text


HOSTILE = (
    "<script>alert(1)</script>",
    "a&b",
    '"onload="x',
    "קוף",
    "象",
    "../../etc/passwd",
    "\x1b[31m\x00",
    "\u202eabc",
)


def test_no_foreign_text_becomes_markup(tmp_path: Path) -> None:
    run = write_run(tmp_path / "<u>run<\x1b", class_names=HOSTILE, data="</style><img src=x onerror=alert(1)>")
    write_metrics(run)
    write_evaluation(run, HOSTILE)
    shutil.rmtree(run.directory / "embeddings")  # maps take long and spell the names as the other pictures do
    environment = json.loads((run.directory / "environment.json").read_text())
    environment |= {"command": "simclr-engine pretrain <script>", "device_name": "<i>cpu</i>", "notes": ["<u>note</u>"]}
    (run.directory / "environment.json").write_text(json.dumps(environment))
    page = Page(write_report(Run.open(run.directory)).read_text("utf-8"))
    page.check()
    for name in HOSTILE[:-2]:
        assert name in page.text
    assert "\\x1b[31m\\x00" in page.text
    assert "\\u202eabc" in page.text and "\u202e" not in page.html
    assert "<i>cpu</i>" in page.text and "<u>run<\\x1b" in page.text
    assert all(p.parent == run.directory / "figures" for p in (run.directory / "figures").rglob("*"))


def test_the_writing_direction_of_a_class_stays_with_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "names", class_names=HOSTILE)
    save_result(run.directory / "evaluation", result(random_confusion(8, 300, 0.5), HOSTILE))
    html = page_of(run).section("classes").html
    assert "<td><bdi>קוף</bdi></td>" in html


def test_a_path_that_is_no_text_still_has_a_page(tmp_path: Path) -> None:
    """Half of a surrogate pair is how Python holds a byte of a file name that is no UTF-8."""
    run = write_run(tmp_path / "photos\udcff")
    assert "photos\\udcff" in Page(write_report(run).read_text("utf-8")).text


def test_a_run_that_has_logged_and_evaluated_nothing_still_has_a_page(tmp_path: Path) -> None:
    page = Page(write_report(write_run(tmp_path / "bare", finished=False)).read_text("utf-8"))
    page.check()
    assert "not finished" in page.text
    assert "Not evaluated yet" in page.text
    assert f"simclr-engine evaluate {tmp_path / 'bare'}" in page.text
    assert not page.all("img")
    assert page.section("beside-published-figures").text.count("not run") == 3


def test_environment_without_optional_entries_still_has_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "old")
    data = {"name": "photos", "fingerprint": "ab", "images": 5, "image_size": 16, "class_names": []}
    (run.directory / "environment.json").write_text(json.dumps({"finished": True, "data": data}))
    assert "photos" in Page(write_report(Run.open(run.directory)).read_text("utf-8")).text


def test_only_the_random_encoder_or_only_the_trained_one_is_shown_as_what_it_is(tmp_path: Path) -> None:
    for init, whose in (
        ("scratch", "linear probe, random encoder"),
        ("pretrained", "linear probe, pretrained encoder"),
    ):
        run = write_run(tmp_path / init)
        saved(run, init=init)
        assert whose in page_of(run).text


def test_folds_alone_head_the_page_with_their_mean_and_deviation(tmp_path: Path) -> None:
    run = write_run(tmp_path / "folds")
    saved(run, method="finetune", folds=fold_scores(3, 0.8))
    text = page_of(run).text
    assert "78.0 % fine-tuning, 3 folds, pretrained encoder" in text
    assert "Standard deviation over the 3 folds: 1.00 points" in text
    assert "Standard error" not in text


def test_two_classes_have_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "two", class_names=("yes", "no"))
    save_result(run.directory / "evaluation", result(random_confusion(2, 90, 0.5), ("yes", "no")))
    page = page_of(run)
    assert "2 classes, linear probe, pretrained encoder" in page.section("classes").text


def test_a_thousand_classes_keep_the_page_small_and_the_table_folded(tmp_path: Path) -> None:
    names = tuple(f"class {i}" for i in range(1000))
    run = write_run(tmp_path / "many", class_names=names)
    save_result(run.directory / "evaluation", result(random_confusion(1000, 5000, 0.6), names))
    page = page_of(run)
    assert len(page.html) < 500_000
    assert all("open" not in attributes for attributes in page.all("details"))
    assert "1,000 classes" in page.text


def test_results_on_several_data_sets_are_told_apart_and_the_runs_own_comes_first(tmp_path: Path) -> None:
    run = write_run(tmp_path / "two", data="photos")
    for data, right in (("/data/others", 0.9), ("photos", 0.4)):
        saved(run, right, data=data)
    page = page_of(run)
    assert f"{100 * random_confusion(3, 300, 0.4).trace() / 300:.1f} % linear probe, pretrained" in page.text
    assert "others, 600 / 300 images" in page.text


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "damaged")
    (run.directory / "evaluation").mkdir()
    (run.directory / "evaluation" / "x.json").write_text("{")
    with pytest.raises(DataError, match="not an evaluation result") as caught:
        write_report(run)
    assert "x.json" in str(caught.value.saw)


def test_damaged_features_and_views_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "damaged")
    write_evaluation(run)
    for name in ("test", "test_scratch"):
        (run.directory / "embeddings" / f"{name}.npy").write_bytes(b"x")
    (run.directory / "views.npz").write_bytes(b"PK\x03\x04 not whole")
    names = {picture.name for picture in run_pictures(gather(run))}
    assert "confusion-photos-linear-pretrained" in names
    assert not [name for name in names if name.startswith(("embedding", "augmentation"))]


def test_a_place_that_cannot_be_written_is_an_error_of_the_platform(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(PlatformError, match="cannot write the pictures"):
        write_pictures(compare([result(random_confusion(3, 90, 0.5))])[0], tmp_path / "taken")


def test_the_command_chooses_the_images_of_the_galleries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def record(run: Run, **options: int) -> Path:
        asked.update(options)
        return run.directory / "report.html"

    monkeypatch.setattr("simclr_engine.report.build.write_report", record)
    run = write_run(tmp_path / "run")
    done = CliRunner().invoke(command, [str(run.directory), "--n", "60", "--seed", "3"])
    assert done.output.strip() == str(run.directory / "report.html")
    assert asked == {"gallery": 60, "seed": 3}
    assert CliRunner().invoke(command, [str(run.directory), "--n", "101"]).exit_code == 2
