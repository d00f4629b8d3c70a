"""The page: what it answers, what it gives away, and what a real browser shows of a dropped image."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from fixtures.browser import drop_file, needs_browser, requested, set_width, severe, start_browser, wait_for
from fixtures.image_files import encode
from fixtures.serving import classify, fetch, free_port, needs_server
from fixtures.tiny_model import tiny_features
from fixtures.tiny_probe import CLASSES, tiny_probabilities, write_tiny_probe
from simclr_engine.cli.serve import command
from simclr_engine.data.decode import decode_image
from simclr_engine.errors import DataError, PlatformError, UsageError
from simclr_engine.export import serve
from simclr_engine.export import serve as module
from simclr_engine.export.embedder import Embedder, open_embedder
from simclr_engine.export.index import EmbeddingIndex
from simclr_engine.export.serve import EmbeddingMap, Service, gallery, headline
from simclr_engine.export.server import start_page
from simclr_engine.export.workers import MAX_BYTES

SIZE = 8


def picture(colour: tuple[int, int, int], seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).normal(colour, 15, (20, 26, 3)).clip(0, 255).astype(np.uint8)
    return encode(pixels)


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return open_embedder(write_tiny_probe(tmp_path_factory.mktemp("model") / "encoder.onnx", image_size=SIZE))


def make_index(embedder: Embedder, names: tuple[str, ...] = CLASSES, count: int = 12) -> EmbeddingIndex:
    colours = [(220, 60, 40), (60, 200, 60), (40, 60, 220)]
    images = np.stack([decode_image(picture(colours[i % 3], i), SIZE) for i in range(count)])
    classes = [names[i % len(names)] for i in range(count)]
    paths = [f"photos/{i}.png" for i in range(count)]
    return EmbeddingIndex.build(embedder.embed(images), paths, classes, names, images, embedder.identity)


@pytest.fixture(scope="module")
def service(embedder: Embedder) -> Service:
    return Service(embedder, make_index(embedder))


def test_an_answer_has_the_file_s_probabilities_and_the_index_s_nearest(service: Service) -> None:
    data = picture((60, 200, 60), seed=1)
    answer = service.answer(data)
    pixels = decode_image(data, SIZE)
    np.testing.assert_array_equal(answer.seen, pixels)
    expected = tiny_probabilities(pixels[None])[0]
    assert list(answer.classes) == [CLASSES[i] for i in np.argsort(-expected)]
    np.testing.assert_allclose(list(answer.classes.values()), np.sort(expected)[::-1], atol=1e-5)
    index = service.index
    assert index is not None and index.images is not None
    bank, query = tiny_features(index.images), tiny_features(pixels[None])[0]
    cosines = bank @ query / np.linalg.norm(bank, axis=1) / np.linalg.norm(query)
    # The picture itself is the index's row 1, which is not among its neighbours. Two features: nearly ties.
    rows = index.search(service.embedder.embed(pixels[None]), module.NEIGHBOURS + 1)[1][0]
    rows = rows[rows != 1]
    assert answer.itself == "photos/1.png" and len(rows) == module.NEIGHBOURS
    captions = [f"{CLASSES[i % 3]}, {i}.png · {cosines[i]:.3f}" for i in rows]
    assert [caption for _, caption in answer.neighbours] == captions
    np.testing.assert_array_equal(np.stack([shown for shown, _ in answer.neighbours]), index.images[rows])
    assert "photos/1.png" in gallery(answer.neighbours, answer.itself)


def test_the_map_is_the_pca_of_the_index_and_places_a_vector_likewise(embedder: Embedder) -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32) * [9, 5, 1, 1, 1, 1]
    index = EmbeddingIndex.build(vectors.astype(np.float32), [str(i) for i in range(40)])
    chart = EmbeddingMap.of(index)
    centred = vectors - vectors.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    expected = left[:, :2] * values[:2]
    np.testing.assert_allclose(np.abs(chart.points), np.abs(expected), atol=1e-4)
    assert chart.share == pytest.approx((values[:2] ** 2).sum() / (values**2).sum(), rel=1e-5)
    np.testing.assert_allclose(chart.place(index.vectors[7]), chart.points[7], atol=1e-4)


def test_the_map_draws_every_point_once_and_marks_the_image(service: Service) -> None:
    svg = service.draw_map((0.0, 0.0))
    assert svg.count("h0") == 12 and svg.count('class="you"') == 1
    assert "you" not in service.draw_map()
    numbers = [float(n) for pair in re.findall(r"M(-?[\d.]+) (-?[\d.]+)h0", svg) for n in pair]
    assert min(numbers) >= 0 and max(numbers) <= 640
    far = service.draw_map((1e6, -1e6))
    x, y = map(float, re.findall(r'class="core" d="M([\d.]+) ([\d.]+)l0 0"', far)[0])
    assert 0 <= x <= 640 and 0 <= y <= 420


def test_an_index_of_one_image_without_class_or_picture_can_be_served(embedder: Embedder) -> None:
    one = EmbeddingIndex.build(np.array([[1, 2]], np.float32), ["photos/only.png"])
    answer = Service(embedder, one).answer(picture((10, 20, 30)))
    assert [caption.split()[0] for _, caption in answer.neighbours] == ["only.png"]
    assert Service(embedder, one).draw_map(answer.place).count("h0") == 1


def test_names_from_the_data_never_become_markup(embedder: Embedder) -> None:
    names = ("<img src=x onerror=alert(1)>", "${alert(2)}", "{{7*7}}")
    service = Service(embedder, make_index(embedder, names))
    answer = service.answer(picture((220, 60, 40)))  # near the images of the first class
    for html in (service.draw_map(), gallery(answer.neighbours), headline(embedder, service.index)):
        assert "<img src=x" not in html
    assert "&lt;img src=x" in service.draw_map() and "&lt;img src=x" in gallery(answer.neighbours)


def test_names_that_are_not_utf8_or_hold_escapes_are_shown(embedder: Embedder) -> None:
    names = ("caf\udce9", "\x1b[31m", "c")
    service = Service(embedder, make_index(embedder, names))
    answer = service.answer(picture((220, 60, 40)))
    page = service.draw_map() + gallery(answer.neighbours) + headline(embedder, service.index)
    assert page.encode() and "caf\\udce9" in page and "\x1b" not in page


def test_the_gallery_holds_the_pictures_themselves(service: Service) -> None:
    answer = service.answer(picture((60, 200, 60)))
    first = re.findall(r'src="data:image/png;base64,([^"]+)"', gallery(answer.neighbours))[0]
    with Image.open(io.BytesIO(base64.b64decode(first))) as shown:
        np.testing.assert_array_equal(np.asarray(shown), answer.neighbours[0][0])


def test_uploads_that_cannot_be_read_are_refused_in_words(service: Service) -> None:
    with pytest.raises(DataError, match="not a readable"):
        service.answer(b"text")


def test_without_probe_and_index_there_is_nothing_to_show(tmp_path: Path) -> None:
    plain = open_embedder(write_tiny_probe(tmp_path / "plain.onnx", image_size=SIZE, probe={}))
    with pytest.raises(UsageError, match="no probe") as caught:
        Service(plain, None)
    assert "--neighbours" not in str(caught.value.fix) and "embed" in str(caught.value.fix)  # serve has no such option
    answer = Service(plain, make_index(plain)).answer(picture((1, 2, 3)))
    assert answer.classes == {} and len(answer.neighbours) == module.NEIGHBOURS


@pytest.mark.parametrize("absent", ["uvicorn", "starlette.requests"])
def test_without_the_extra_the_error_has_the_line_that_installs_it(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch, absent: str
) -> None:
    monkeypatch.delitem(sys.modules, "simclr_engine.export.server")
    monkeypatch.setitem(sys.modules, absent, None)
    error = CliRunner().invoke(command, [str(embedder.path)]).exception
    assert isinstance(error, PlatformError) and "pip install" in (error.fix or "")


@pytest.fixture(scope="module")
def page(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[Any]]]:
    """The address of a running page, and every address that this process connected to meanwhile."""
    reached: list[Any] = []
    assert service.index is not None
    index = service.index.save(tmp_path_factory.mktemp("index") / "v.npy")
    with pytest.MonkeyPatch.context() as patch:
        real: Callable[..., Any] = socket.socket.connect

        def connect(self: socket.socket, address: Any) -> Any:
            reached.append(address)
            return real(self, address)

        patch.setattr(socket.socket, "connect", connect)
        with start_page(service.embedder.path, index, port=free_port()) as (address, _):
            yield address, reached


@needs_server
def test_the_page_is_told_what_the_service_answers(page: tuple[str, list[Any]], service: Service) -> None:
    data = picture((60, 200, 60), seed=1)
    answer, said = service.answer(data), classify(page[0], data)
    assert [name for name, _ in said["classes"]] == list(answer.classes)
    np.testing.assert_allclose([share for _, share in said["classes"]], list(answer.classes.values()), atol=1e-6)
    assert said["near"] == gallery(answer.neighbours, answer.itself) and said["map"] == service.draw_map(answer.place)


@needs_server
def test_the_page_reads_no_file_and_no_address_but_uploads(page: tuple[str, list[Any]], embedder: Embedder) -> None:
    address, _ = page
    secret = embedder.path.with_name("secret.png")
    secret.write_bytes(picture((1, 2, 3)))
    for path in ("/etc/passwd", "../../etc/passwd", "..%2F..%2Fetc%2Fpasswd", "serve.html", str(secret), "docs"):
        assert fetch(f"{address}{path}")[0] == 404
    for named in (str(secret), secret.as_uri(), f"{address}serve.css", json.dumps({"path": str(secret)})):
        assert "Not a readable" in classify(address, named.encode())["refused"]


@needs_server
def test_the_page_answers_this_machine_only_and_asks_for_nothing_elsewhere(page: tuple[str, list[Any]]) -> None:
    address, reached = page
    status, html, headers = fetch(address)
    assert status == 200 and "default-src 'none'" in headers["content-security-policy"]
    assert fetch(address, Host="evil.example")[0] == 400
    assert not re.findall(r"""(?:<script[^>]+src|<link[^>]+href)=["'](?:https?:)?//(?!127\.0\.0\.1)[^"']+""", html)
    assert {a[0] for a in reached if isinstance(a, tuple)} <= {"127.0.0.1", "::1"}


@needs_server
def test_a_port_that_is_taken_is_a_platform_error(page: tuple[str, list[Any]], service: Service) -> None:
    port = int(page[0].rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(PlatformError, match="cannot be served"), start_page(service.embedder.path, port=port):
        pass


@needs_server
@pytest.mark.slow
@needs_browser
def test_a_browser_shows_the_class_of_a_dropped_image(
    page: tuple[str, list[Any]], service: Service, tmp_path: Path
) -> None:
    from selenium.webdriver.common.by import By

    driver = start_browser(tmp_path)

    def text(part: str) -> str:
        return " ".join(one.text for one in driver.find_elements(By.ID, part))

    def drop(data: bytes) -> None:
        drop_file(driver, driver.find_element(By.ID, "zone"), "dropped.png", data)

    try:
        driver.get(page[0])
        data = picture((60, 200, 60), seed=1)
        answer = service.answer(data)
        name, confidence = next(iter(answer.classes.items()))
        drop(data)
        wait_for(lambda: "%" in text("classes"))
        lines = text("classes").splitlines()
        assert lines[lines.index("Class") + 1] == name and f"{100 * confidence:.0f}%" in lines
        assert answer.neighbours[0][1] in text("near") and "your image" in text("map")
        assert len(driver.find_elements(By.CSS_SELECTOR, "#near img")) == module.NEIGHBOURS
        assert driver.execute_script("return document.getElementById('picture').naturalWidth") == 26
        driver.find_element(By.ID, "remove").click()
        wait_for(lambda: "%" not in text("classes") and "your image" not in text("map"))
        drop(b"no image at all")
        wait_for(lambda: "Not a readable PNG" in text("said"))
        assert "%" not in text("classes")
        drop(data)  # and the page goes on
        wait_for(lambda: "%" in text("classes") and "Not a readable" not in text("said"))
        drop(bytes(MAX_BYTES + 1))
        wait_for(lambda: "more than 10 MiB" in text("said") and "%" not in text("classes"))
        for width in (1280, 390):
            set_width(driver, width)
            assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        asked = requested(driver)
        assert page[0] + "classify" in asked
        assert {url for url in asked if not url.startswith((page[0], "data:", "blob:", "chrome:"))} == set()
        assert severe(driver) == []
    finally:
        driver.quit()


def test_the_features_of_the_tiny_model_are_what_the_index_holds(service: Service) -> None:
    assert service.index is not None and service.index.images is not None
    np.testing.assert_allclose(service.index.vectors, tiny_features(service.index.images), rtol=1e-6, atol=1e-4)


def _index(counts: dict[str, int], unknown: int = 0) -> EmbeddingIndex:
    """So many vectors of each class, the classes in turns and far apart, and some without a class."""
    random = np.random.default_rng(0)
    classes = [name for i in range(max(counts.values())) for name, n in counts.items() if i < n] + [""] * unknown
    place = {name: 10.0 * (i + 1) for i, name in enumerate(counts)} | {"": -10.0}
    vectors = np.array([[place[name], 0] for name in classes]) + random.uniform(-1, 1, (len(classes), 2))
    paths = [f"{i}.png" for i in range(len(classes))]
    return EmbeddingIndex.build(vectors.astype(np.float32), paths, classes, tuple(counts))


def _drawn(index: EmbeddingIndex, tmp_path: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Dots by the class of their path, and class names of the legend by the same."""
    service = Service(open_embedder(write_tiny_probe(tmp_path / "e.onnx", image_size=8)), index)
    html = service.draw_map()
    dots = {css: steps.count("h0") for css, steps in re.findall(r'<path class="dots ([^"]+)" d="([^"]*)"', html)}
    return dots, dict(re.findall(r'<i class="([^"]+)"></i>([^<]*)</span>', html))


def test_a_sampled_map_keeps_each_point_with_its_own_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "MAP_POINTS", 20)
    index = _index({"ant": 40, "bee": 20, "cat": 10})
    chart = EmbeddingMap.of(index)
    assert len(chart.points) == len(chart.labels) == 20
    places = np.array([chart.place(vector) for vector in index.vectors])
    rows = np.linalg.norm(chart.points[:, None] - places[None], axis=2).argmin(1)
    np.testing.assert_allclose(places[rows], chart.points, atol=1e-6)
    np.testing.assert_array_equal(chart.labels, index.labels[rows])
    assert len(set(rows.tolist())) == 20 and rows.max() > 20  # of all the index, not its first images


def test_a_class_without_images_takes_no_colour_from_the_others(tmp_path: Path) -> None:
    dots, names = _drawn(_index({"ant": 0, "bee": 3, "cat": 5}, unknown=2), tmp_path)
    assert {names[css]: n for css, n in dots.items() if css != "rest"} == {"bee": 3, "cat": 5}
    assert dots["rest"] == 2 and "ant" not in names.values()


def test_of_more_classes_than_colours_the_smaller_ones_are_grey(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "MAP_CLASSES", 2)
    dots, names = _drawn(_index({"ant": 1, "bee": 4, "cat": 2, "dog": 3}), tmp_path)
    assert {names[css]: n for css, n in dots.items() if css != "rest"} == {"bee": 4, "dog": 3}
    assert dots["rest"] == 3
