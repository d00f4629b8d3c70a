"""report.html says what the run's files say, needs nothing beside it, and lets no foreign text become markup."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reference.synthetic_run import random_confusion, result, write_evaluation, write_metrics, write_run
from simclr_engine.errors import DataError, PlatformError
from simclr_engine.evaluation.comparison import compare
from simclr_engine.evaluation.records import save_result
from simclr_engine.report import style, write_report
from simclr_engine.report.build import write_pictures
from simclr_engine.run import Run

VOID = {"meta", "img", "source", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Checks that tags close in order; collects words, sources and the attributes of every tag."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


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
    html = (full[0].directory / "report.html").read_text("utf-8")
    assert not re.search(r"https?://|@import|url\(", html)
    for tag, attributes in full[1].tags:
        assert tag not in ("script", "link", "iframe")
        for name in ("src", "srcset", "href"):
            assert (attributes.get(name) or "data:image/png;base64,").startswith("data:image/png;base64,")


def test_every_picture_is_a_png_in_both_themes_and_a_file_of_the_run(full: tuple[Run, Page]) -> None:
    run, page = full
    light = [a["src"] for tag, a in page.tags if tag == "img"]
    dark = [a["srcset"] for tag, a in page.tags if tag == "source"]
    assert len(light) == len(dark) == len(list((run.directory / "figures").iterdir())) == 12
    assert {p.stem for p in (run.directory / "figures").glob("*.png")} == {
        "confusion-photos-linear-pretrained",
        "confusion-photos-knn-pretrained",
        "per-class-photos-linear-pretrained",
        "per-class-photos-knn-pretrained",
        "embedding-pca-pretrained",
        "embedding-pca-random",
        "loss",
        "contrast",
        "learning-rate",
        "online-knn",
        "feature-spread",
        "augmentation",
    }
    for sources, bright in ((light, True), (dark, False)):
        for source in sources:
            picture = Image.open(io.BytesIO(base64.b64decode(str(source).split(",")[1]))).convert("L")
            assert (picture.getpixel((0, 0)) > 128) is bright


def test_every_picture_has_a_caption_and_an_alternative_text(full: tuple[Run, Page]) -> None:
    _, page = full
    assert all(len(str(a["alt"])) > 20 for tag, a in page.tags if tag == "img")
    assert sum(tag == "figcaption" for tag, _ in page.tags) == 12


def test_the_headline_is_the_linear_probe_beside_the_random_encoder(full: tuple[Run, Page]) -> None:
    trained, scratch = (random_confusion(3, 300, right).trace() / 300 for right in (0.7, 0.2))
    assert f"{100 * trained:.1f} % linear probe, pretrained encoder" in full[1].text
    assert f"random encoder {100 * scratch:.1f} %: +{100 * (trained - scratch):.1f} points" in full[1].text


@pytest.mark.parametrize(
    "words",
    [
        "192",  # seconds, as 3 min 12 s
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
    ],
)
def test_the_page_says_what_was_run(full: tuple[Run, Page], words: str) -> None:
    assert words.removesuffix("192") in full[1].text


def test_the_published_figure_stands_beside_ours_only_for_the_same_method(full: tuple[Run, Page]) -> None:
    ours = 100 * random_confusion(3, 300, 0.7).trace() / 300
    apart = f"{ours - 79.65:+.1f}".replace("-", "−")
    assert f"linear probe pretrained 79.65 % {ours:.1f} % {apart}" in full[1].text
    assert "head pretrained 79.53 % not run —" in full[1].text


def test_the_commands_that_reproduce_it_are_there(full: tuple[Run, Page]) -> None:
    where = full[0].directory
    assert f"simclr-engine pretrain --recipe {where}/recipe.toml --data photos" in full[1].text
    assert f"simclr-engine evaluate {where} --data photos --method linear --method knn" in full[1].text


def test_the_table_of_classes_has_the_numbers_of_the_headline(full: tuple[Run, Page]) -> None:
    row = compare([result(random_confusion(3, 300, 0.7))])[0].shown.per_class[1]
    assert f"bee {row.support} {100 * row.accuracy:.1f} %" in full[1].text
    assert f"{row.precision:.4f} {row.f1:.4f} {row.iou:.4f}" in full[1].text


HOSTILE = ("<script>alert(1)</script>", "a&b", '"onload="x', "קוף", "象", "../../etc/passwd")


def test_no_foreign_text_becomes_markup(tmp_path: Path) -> None:
    run = write_run(tmp_path / "<u>run<", class_names=HOSTILE, data="</style><img src=x onerror=alert(1)>")
    write_metrics(run)
    write_evaluation(run, HOSTILE)
    environment = json.loads((run.directory / "environment.json").read_text())
    environment |= {"command": "simclr-engine pretrain <script>", "device_name": "<i>cpu</i>", "notes": ["<u>note</u>"]}
    (run.directory / "environment.json").write_text(json.dumps(environment))
    page = Page(write_report(Run.open(run.directory)).read_text("utf-8"))
    used = {tag for tag, _ in page.tags}
    assert not used & {"script", "u"}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    for name in HOSTILE:
        assert name in page.text
    assert "<i>cpu</i>" in page.text
    assert all(p.parent == run.directory / "figures" for p in (run.directory / "figures").rglob("*"))


def test_a_run_that_has_logged_and_evaluated_nothing_still_has_a_page(tmp_path: Path) -> None:
    page = Page(write_report(write_run(tmp_path / "bare", finished=False)).read_text("utf-8"))
    assert "not finished" in page.text
    assert "Not evaluated yet" in page.text
    assert f"simclr-engine evaluate {tmp_path / 'bare'}" in page.text
    assert not any(tag == "img" for tag, _ in page.tags)


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
        save_result(run.directory / "evaluation", result(random_confusion(3, 90, 0.5), init=init))
        assert whose in Page(write_report(run).read_text("utf-8")).text


def test_a_thousand_classes_keep_the_page_small_and_the_table_folded(tmp_path: Path) -> None:
    names = tuple(f"class {i}" for i in range(1000))
    run = write_run(tmp_path / "many", class_names=names)
    save_result(run.directory / "evaluation", result(random_confusion(1000, 5000, 0.6), names))
    path = write_report(run)
    page = Page(path.read_text("utf-8"))
    assert path.stat().st_size < 2_000_000
    assert all("open" not in attributes for tag, attributes in page.tags if tag == "details")
    assert "1,000 classes" in page.text


def test_results_on_several_data_sets_are_told_apart_and_the_runs_own_comes_first(tmp_path: Path) -> None:
    run = write_run(tmp_path / "two", data="photos")
    for data, right in (("others", 0.9), ("photos", 0.4)):
        save_result(run.directory / "evaluation", result(random_confusion(3, 300, right), data=data))
    page = Page(write_report(run).read_text("utf-8"))
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
    (run.directory / "embeddings" / "test.npy").write_bytes(b"x")
    (run.directory / "views.npz").write_bytes(b"PK\x03\x04 not whole")
    write_report(run)
    names = {p.stem for p in (run.directory / "figures").iterdir()}
    assert "embedding-pca-pretrained" not in names
    assert "augmentation" not in names


def test_a_place_that_cannot_be_written_is_an_error_of_the_platform(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(PlatformError, match="cannot write the pictures"):
        write_pictures(compare([result(random_confusion(3, 90, 0.5))])[0], tmp_path / "taken")
