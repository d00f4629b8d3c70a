"""report.html says what the run's files say, needs nothing beside it, and lets no foreign text become markup."""

from __future__ import annotations

import base64
import io
import json
import re
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from fixtures import ROOT
from fixtures.html_page import Page
from fixtures.saved_results import page_of, page_with, saved
from fixtures.synthetic_run import fold_scores, random_confusion, result, write_evaluation, write_metrics, write_run
from simclr_engine.cli.report import command
from simclr_engine.errors import DataError, PlatformError
from simclr_engine.evaluation.records import save_result
from simclr_engine.evaluation.result import compare
from simclr_engine.report import style, write_report
from simclr_engine.report.content import load_content
from simclr_engine.report.page import DrawnPicture, run_pictures, with_pictures, write_pictures
from simclr_engine.report.style import Picture, new_figure
from simclr_engine.report.tables import Section
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


def test_the_page_needs_nothing_beside_it(full: tuple[Run, Page]) -> None:
    full[1].check()
    assert not re.search(r"https?://", full[1].html)


def test_the_first_sentence_says_how_long_on_how_many_images(full: tuple[Run, Page]) -> None:
    assert re.search(r"pretrained without labels for 10 epochs on [\d,]+ images of photos", full[1].text)


def test_every_picture_is_a_png_in_both_themes_and_a_file_of_the_run(full: tuple[Run, Page]) -> None:
    run, page = full
    light, dark = ([a["src"] for a in page.all("img") if a["class"] == name] for name in ("light", "dark"))
    sheets = page.html.count('<div class="tiles"')
    assert len(light) == len(dark) == len(list((run.directory / "figures").iterdir())) - sheets >= 12
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
    charts = [attributes for attributes in page.all("img") if attributes["class"] == "light"]
    assert len(page.all("figcaption")) == len(page.all("figure")) == len(charts) + page.html.count('class="tiles"')
    for attributes in page.all("img"):
        picture = Image.open(io.BytesIO(base64.b64decode(str(attributes["src"]).split(",")[1])))
        assert (attributes["width"], attributes["height"]) == tuple(map(str, picture.size))


def test_a_sheet_is_laid_out_by_the_page(full: tuple[Run, Page]) -> None:
    run, page = full
    with np.load(run.directory / "views.npz") as stored:
        expected = [image for i in range(2) for image in (stored["originals"][i], *stored["views"][i])]
    tiles = [a for a in page.section("pretraining").all("img") if a["class"] == "tile"]
    for tile, image in zip(tiles, expected, strict=True):
        png = base64.b64decode(str(tile["src"]).split(",")[1])
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), image)
    assert [a["class"] for a in page.section("pretraining").all("div") if a.get("class") == "origin"] == ["origin"] * 2


def test_what_pictures_have_in_common_is_said_once() -> None:
    def drawn(note: str) -> DrawnPicture:
        file = io.BytesIO()
        Image.new("RGB", (90, 60)).save(file, "PNG")
        picture = Picture("x", "s", "a caption that says what is seen", new_figure, note)
        return DrawnPicture(picture, dict.fromkeys(("light", "dark"), file.getvalue()))

    page = page_with(with_pictures(Section("s"), [drawn(note) for note in ("One.", "", "Two.", "One.")]))
    assert page.text.count("One. Two.") == page.text.count("One.") == 1


def test_the_contents_lead_to_every_part_also_to_two_of_one_name(full: tuple[Run, Page]) -> None:
    page = full[1]
    sections = [a["id"] for a in page.all("section") if "id" in a]
    assert [str(a["href"])[1:] for a in page.all("a")] == sections
    assert {"methods", "beside-published-figures", "pretraining", "what-was-run", "reproduce"} <= set(sections)
    twice = page_with(Section("A & b", text="1"), Section("A <b>", text="2"), None, Section("é", text="3"))
    twice.check()
    assert [a["href"] for a in twice.all("a")] == ["#a-b", "#a-b-1", "#part"]


def test_the_headline_is_the_linear_probe_beside_the_random_encoder(full: tuple[Run, Page]) -> None:
    trained, scratch = (random_confusion(3, 300, right).trace() / 300 for right in (0.7, 0.2))
    assert f"{100 * trained:.1f} % linear probe, pretrained encoder" in full[1].text
    assert f"random encoder {100 * scratch:.1f} %: +{100 * (trained - scratch):.1f} points" in full[1].text


def test_an_encoder_alone_is_shown_as_what_it_is(tmp_path: Path) -> None:
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
        "largest difference",
        "a note of the platform",
        "3.00 GiB",
        "321 images/s at the end",
        "c0ffeec0ffee",
        "ended 1970-01-01 00:00 UTC",
    ],
)
def test_the_page_says_what_was_run(full: tuple[Run, Page], words: str) -> None:
    assert words in full[1].text


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


def test_a_place_that_cannot_be_written_is_an_error_of_the_platform(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(PlatformError, match="cannot write the pictures"):
        write_pictures(compare([result(random_confusion(3, 90, 0.5))])[0], tmp_path / "taken")


def test_the_command_chooses_the_images_of_the_galleries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def record(run: Run, **options: int) -> Path:
        asked.update(options)
        return run.directory / "report.html"

    monkeypatch.setattr("simclr_engine.report.page.write_report", record)
    run = write_run(tmp_path / "run")
    done = CliRunner().invoke(command, [str(run.directory), "--n", "60", "--seed", "3"])
    assert done.output.strip() == str(run.directory / "report.html")
    assert asked == {"gallery": 60, "seed": 3}
    assert CliRunner().invoke(command, [str(run.directory), "--n", "101"]).exit_code == 2


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
    assert re.search(r"<td[^>]*><bdi>קוף</bdi></td>", html)


def test_a_path_that_is_no_text_still_has_a_page(tmp_path: Path) -> None:
    """Half of a surrogate pair is how Python holds a byte of a file name that is no UTF-8."""
    run = write_run(tmp_path / "photos\udcff")
    assert "photos\\udcff" in Page(write_report(run).read_text("utf-8")).text


def test_a_run_that_has_logged_and_evaluated_nothing_still_has_a_page(tmp_path: Path) -> None:
    page = Page(write_report(write_run(tmp_path / "bare", finished=False)).read_text("utf-8"))
    page.check()
    assert "not finished: 0 of" in page.text and "for 0 of" in page.text
    assert "Not evaluated yet" in page.text
    assert f"simclr-engine evaluate {tmp_path / 'bare'}" in page.text
    assert not page.all("img")
    assert page.section("beside-published-figures").text.count("not run") == 3


def test_environment_without_optional_entries_still_has_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "old")
    data = {"name": "photos", "fingerprint": "ab", "images": 5, "image_size": 16, "class_names": []}
    (run.directory / "environment.json").write_text(json.dumps({"finished": True, "data": data, "notes": [3, "% 4 %"]}))
    assert "photos" in Page(write_report(Run.open(run.directory)).read_text("utf-8")).text


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
    with pytest.warns(UserWarning, match=r"no augmentation sheet: .*views\.npz is damaged"):
        names = {picture.name for picture in run_pictures(load_content(run))}
    assert "confusion-photos-linear-pretrained" in names
    assert not [name for name in names if name.startswith(("embedding", "augmentation"))]


def test_the_templates_and_the_style_sheet_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[str, Any] = {}
    monkeypatch.setattr("setuptools.setup", said.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    folder = Path(style.__file__).parent
    installed = {f for pattern in said["package_data"]["simclr_engine.report"] for f in folder.glob(pattern)}
    assert installed == {f for f in (folder / "templates").rglob("*") if f.is_file()}
    assert len(installed) >= 5
