"""Foreign text becomes no markup, and runs with much, little or damaged content still have a page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.html_page import Page
from fixtures.saved_results import page_of
from fixtures.synthetic_run import (
    random_confusion,
    result,
    write_evaluation,
    write_metrics,
    write_run,
)
from simclr_engine.errors import DataError
from simclr_engine.evaluation.records import save_result
from simclr_engine.report import style, write_report
from simclr_engine.report.content import gather
from simclr_engine.report.pictures import run_pictures
from simclr_engine.run import Run


@pytest.fixture(scope="module", autouse=True)
def _small_pictures() -> Iterator[None]:
    """What the page says does not depend on how finely its pictures are drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", 30)
        yield


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
        names = {picture.name for picture in run_pictures(gather(run))}
    assert "confusion-photos-linear-pretrained" in names
    assert not [name for name in names if name.startswith(("embedding", "augmentation"))]
