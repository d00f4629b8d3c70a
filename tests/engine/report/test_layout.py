"""In a browser the pages are cut nowhere, their letters can be read on a phone, and their contents follow."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fixtures.synthetic_run import (
    write_evaluation,
    write_metrics,
    write_neighbours,
    write_predictions,
    write_run,
    write_training,
)
from simclr_engine.report import style, write_report
from simclr_engine.report.compare import write_comparison
from simclr_engine.report.comparison import open_runs

CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
FLAGS = "--headless=new --no-sandbox --disable-dev-shm-usage --disable-gpu --force-color-profile=srgb"
SMALLEST = """
const own = e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim());
return [...document.querySelectorAll('main *, nav *')].filter(e => own(e) && e.getClientRects().length)
  .map(e => parseFloat(getComputedStyle(e).fontSize)).reduce((a, b) => Math.min(a, b));
"""
CUT = """
const out = e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1;
return [...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, pre') && out(e))
  .map(e => e.outerHTML.slice(0, 80));
"""
# The width of each row of figures that stand beside each other, and of the grid.
ROWS = """
return [...document.querySelectorAll('.pictures, .sheets')].map(grid => {
  const rows = {};
  for (const figure of grid.children) {
    const box = figure.getBoundingClientRect(), top = Math.round(box.top);
    rows[top] = Math.max(rows[top] || 0, box.right);
  }
  return [grid.getBoundingClientRect().right, ...Object.values(rows)];
});
"""
CHARTS = "return [...document.querySelectorAll('figure > img')].filter(i => i.offsetWidth).map(i => i.offsetWidth)"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="chromium and chromedriver are not installed"),
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report with every part, and a comparison."""
    root = tmp_path_factory.mktemp("pages")
    names = ("airplane", "automobile", "a class whose name is long")
    first, second = write_run(root / "first", class_names=names), write_run(root / "second", recipe="few-labels-50")
    for run in (first, second):
        write_metrics(run)
    write_evaluation(first, names)
    write_predictions(first)
    write_training(first, names)
    write_neighbours(first, names)
    rng = np.random.default_rng(0)
    views = {"originals": rng.integers(0, 256, (1, 16, 16, 3), np.uint8)}
    np.savez(first.directory / "views.npz", **views, views=rng.integers(0, 256, (1, 16, 16, 16, 3), np.uint8))
    export = {
        "file": "encoder.onnx",
        "bytes": 44 << 20,
        "sha256": "12" * 32,
        "input": "images uint8 [batch, 16, 16, 3]",
    }
    (first.directory / "export.json").write_text(json.dumps(export), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", 30)  # a picture's size on the page does not depend on it
        report = write_report(first)
        comparison = write_comparison(open_runs([first.directory, second.directory]), root / "compare.html")
    return {"report": report, "comparison": comparison}


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield browser
    browser.quit()


def shown(driver: Any, page: Path, width: int) -> Any:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get(page.as_uri())
    return driver


@pytest.mark.parametrize("width", [1280, 800, 390])
@pytest.mark.parametrize("name", ["report", "comparison"])
def test_a_page_is_cut_nowhere_and_its_letters_are_large_enough(
    driver: Any, pages: dict[str, Path], name: str, width: int
) -> None:
    browser = shown(driver, pages[name], width)
    wide, seen = browser.execute_script("const e = document.documentElement; return [e.scrollWidth, e.clientWidth]")
    assert wide == seen
    assert browser.execute_script(CUT) == []
    assert browser.execute_script(SMALLEST) >= 11
    charts = browser.execute_script(CHARTS)
    assert len(charts) >= 5 and min(charts) / (72 * style.WIDTH) * style.SMALL >= (11 if width == 390 else 10)
    for edge, *rows in browser.execute_script(ROWS):
        assert rows and rows == pytest.approx([edge] * len(rows), abs=1.5)


@pytest.mark.parametrize("width", [1280, 390])
def test_the_contents_stay_in_sight_when_the_page_is_scrolled(driver: Any, pages: dict[str, Path], width: int) -> None:
    browser = shown(driver, pages["report"], width)
    browser.execute_script("scrollTo(0, 3000)")
    top, bottom = browser.execute_script(
        "const box = document.querySelector('.contents').getBoundingClientRect(); return [box.top, box.bottom]"
    )
    assert top >= 0 and bottom <= 800 and browser.execute_script("return scrollY") == 3000
