"""The page without a server: what the folder holds, what it may replace, and what a real browser shows of pictures."""

from __future__ import annotations

import functools
import http.server
import io
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from fixtures.browser import drop_file, needs_browser, requested, set_width, severe, start_browser, wait_for
from fixtures.html_page import Page
from fixtures.image_files import encode
from fixtures.tiny_model import tiny_features
from fixtures.tiny_probe import CLASSES, tiny_probabilities, write_tiny_probe
from simclr_engine.cli.export import command
from simclr_engine.data.decode import decode_image
from simclr_engine.errors import CheckFailed, PlatformError, UsageError
from simclr_engine.export import export_web, web, writer
from simclr_engine.export.metadata import read_model
from simclr_engine.export.samples import natural_images
from simclr_engine.export.web import RUNTIME, check_folder, read_runtime, write_page
from simclr_engine.run import Run

SIZE = 8
REPOSITORY = Path(__file__).resolve().parents[2]
NODE = shutil.which("node")
PLACES = [REPOSITORY, *(Path(part) for part in os.environ.get("NODE_PATH", "").split(os.pathsep) if part)]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder like the npm package, with little in its files."""
    made = tmp_path / "node_modules" / "onnxruntime-web"
    (made / "dist").mkdir(parents=True)
    (made / "dist" / "ort.wasm.bundle.min.mjs").write_bytes(b"/*!\n * ONNX Runtime Web v9.8.7\n */\nexport {};\n")
    (made / "dist" / "ort-wasm-simd-threaded.wasm").write_bytes(b"\0asm of no use")
    (made / "dist" / "ort.all.min.mjs").write_bytes(b"of other builds")
    return made


def held(folder: Path) -> dict[str, bytes]:
    """All that lies in a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_page_holds_model_description_runtime_and_nothing_else(
    little_digits: Run, package: Path, tmp_path: Path
) -> None:
    before = held(little_digits.directory)
    page = export_web(little_digits, tmp_path / "page", package, int8=False)
    files = held(tmp_path / "page")
    own = {"index.html", "page.css", "page.js", "pixels.js"}
    assert set(files) == own | {"encoder.onnx", "encoder.json", "checksums.json", *RUNTIME.values()}
    for name, to in RUNTIME.items():
        assert files[to] == (package / "dist" / name).read_bytes()
    about, model = json.loads(files["encoder.json"]), read_model(tmp_path / "page" / "encoder.onnx")
    assert (about["file"], about["sha256"], about["bytes"]) == ("encoder.onnx", model.sha256, len(model.data))
    assert about["class_names"] == list("0123456789") and about["probe"]["images"] == 300
    assert page.runtime == "9.8.7" and page.exported.file == tmp_path / "page" / "encoder.onnx"
    assert page.model_bytes == len(model.data) and page.runtime_bytes == sum(map(len, map(files.get, RUNTIME.values())))
    assert page.page_bytes + page.model_bytes + page.runtime_bytes == sum(map(len, files.values()))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert held(little_digits.directory) == before  # a page is no export that the run's report would tell of


@pytest.mark.usefixtures("fast_int8")
def test_the_model_of_the_page_is_int8_where_its_gates_pass(little_digits: Run, package: Path, tmp_path: Path) -> None:
    page = export_web(little_digits, tmp_path / "page", package)
    assert page.exported.metadata.precision == "int8" and page.note == ""
    assert read_model(tmp_path / "page" / "encoder.int8.onnx").metadata.precision == "int8"
    assert not (tmp_path / "page" / "encoder.onnx").exists()


@pytest.mark.usefixtures("fast_int8")
def test_the_page_says_why_its_model_is_not_int8(
    little_digits: Run, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise CheckFailed("int8 is too slow", saw="0.9 × fp32")

    monkeypatch.setattr(writer, "check_speed", fail)
    page = export_web(little_digits, tmp_path / "page", package)
    assert page.exported.metadata.precision == "fp32" and "int8 is too slow (saw 0.9 × fp32)" in page.note
    before = held(tmp_path)
    with pytest.raises(CheckFailed, match="int8 is too slow"):  # what was asked for is not exchanged
        export_web(little_digits, tmp_path / "page", package, int8=True)
    assert held(tmp_path) == before


def test_an_earlier_page_is_replaced_whole(little_digits: Run, package: Path, tmp_path: Path) -> None:
    folder = tmp_path / "page"
    export_web(little_digits, folder, package, int8=False)
    first = held(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    probe = read_model(write_tiny_probe(tmp_path / "encoder.int8.onnx"))
    write_page(folder, probe, read_runtime(package))
    assert held(folder).keys() != first.keys()
    export_web(little_digits, folder, package, int8=False)
    assert held(folder) == first
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_page_that_was_changed_is_not_replaced(package: Path, tmp_path: Path) -> None:
    page = tmp_path / "page"
    page.mkdir()
    write_page(page, read_model(write_tiny_probe(tmp_path / "encoder.onnx")), read_runtime(package))
    before = held(page)
    changes: dict[str, bytes | None] = {"index.html": b"<h1>mine</h1>", "page.css": b"", "checksums.json": b"[1]"}
    for name, content in changes.items():
        (page / name).write_bytes(content or before[name] + b"\n")
        with pytest.raises(UsageError, match="changed since") as caught:
            check_folder(page)
        assert name in str(caught.value)
        (page / name).write_bytes(before[name])
        assert check_folder(page) == page


def test_a_killed_export_leaves_nothing_behind_for_good(package: Path, tmp_path: Path) -> None:
    left = tmp_path / ".page.partial-x"
    for name in ("model", "partial", "before"):
        (left / name).mkdir(parents=True)
        (left / name / "file").write_bytes(b"1")
    (left / "lock").write_bytes(b"")
    with web._prepared(tmp_path / "page") as room:
        assert room != left and held(left) == {"before/file": b"1"}  # the user's page stays
        write_page(room / "partial", read_model(write_tiny_probe(room / "encoder.onnx")), read_runtime(package))
    assert check_folder(tmp_path / "page").is_dir() and not room.exists()


def test_a_page_that_cannot_be_finished_leaves_the_earlier_one(
    little_digits: Run, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "page"
    export_web(little_digits, folder, package, int8=False)
    monkeypatch.setattr(web, "_names_exchanged", lambda one, other: False)
    before = held(tmp_path)
    rename = Path.rename

    def refused(path: Path, to: Path) -> Path:
        if path.name.endswith("partial"):
            raise PermissionError(13, "Permission denied")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(PlatformError, match="the page cannot be written"):
        export_web(little_digits, folder, package, int8=False)
    assert held(tmp_path) == before


def test_a_folder_with_files_of_others_is_not_replaced(package: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"mine")
    (tmp_path / "photos" / "index.html").write_bytes(b"<p>mine</p>")
    with pytest.raises(UsageError, match="did not write") as caught:
        check_folder(tmp_path / "photos")
    assert "cat.jpg" in str(caught.value)
    page = tmp_path / "page"
    page.mkdir()
    assert check_folder(page) == page  # an empty one is free
    write_page(page, read_model(write_tiny_probe(tmp_path / "encoder.onnx")), read_runtime(package))
    assert check_folder(page) == page
    (page / "runtime" / "notes.txt").write_bytes(b"mine")
    with pytest.raises(UsageError, match="did not write") as caught:
        check_folder(page)
    assert "runtime/notes.txt" in str(caught.value)


def test_a_file_a_link_or_the_working_directory_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "real" / "below").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "other")
    monkeypatch.chdir(tmp_path / "real" / "below")
    for given in (tmp_path / "file", tmp_path / "link", ".", "..", tmp_path / "real", ""):
        with pytest.raises(UsageError):
            check_folder(given)


def test_the_runtime_is_found_in_the_package_and_in_the_folders_around_it(package: Path, tmp_path: Path) -> None:
    for folder in (package, package / "dist", package.parent, tmp_path):
        found = read_runtime(folder)
        assert found == {to: (package / "dist" / name).read_bytes() for name, to in RUNTIME.items()}


def test_a_runtime_that_is_not_there_is_named_with_its_installation(package: Path, tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match="not in the folder") as caught:
        read_runtime(tmp_path / "elsewhere")
    assert "npm install onnxruntime-web" in str(caught.value) and str(tmp_path / "elsewhere") in str(caught.value)
    (package / "dist" / "ort-wasm-simd-threaded.wasm").unlink()
    with pytest.raises(PlatformError, match="not all") as caught:
        read_runtime(package)
    assert "no ort-wasm-simd-threaded.wasm" in str(caught.value) and ".mjs" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["encoder.onnx", "--runtime", "x"], "--runtime is for --web alone"),
        (["page", "--web", "--fp16"], "--fp16"),
        (["page", "--web", "--overwrite"], "--overwrite"),
        (["encoder.onnx", "--web"], "--web writes a folder"),
    ],
)
def test_an_option_that_says_nothing_of_the_page_is_refused(arguments: list[str], cause: str) -> None:
    outcome = CliRunner().invoke(command, arguments)
    assert isinstance(outcome.exception, UsageError) and cause in outcome.exception.cause


def test_the_command_prints_the_sizes_and_what_the_page_lacks(
    little_run: Run, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # whose node_modules is found without --runtime
    arguments = ["--web", "--no-int8", "--run", str(little_run.directory)]
    outcome = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert "onnxruntime-web 9.8.7" in outcome.stdout and "http.server --directory page" in outcome.stdout
    assert "compares pictures and names no classes" in outcome.stderr
    outcome = CliRunner().invoke(command, [*arguments, "--json", "--no-probe"], catch_exceptions=False)
    document = json.loads(outcome.stdout)
    assert document["bytes"]["model"] == document["model"]["bytes"] == (tmp_path / "page/encoder.onnx").stat().st_size
    assert document["model"]["file"] == "page/encoder.onnx" and document["model"]["description"] == "page/encoder.json"
    assert "names no classes" not in outcome.stderr


def test_the_page_closes_its_tags_and_names_files_of_its_folder_alone() -> None:
    page = Page((web.PAGE / "index.html").read_text("utf-8"))
    named = {str(a.get("src") or a.get("href")) for tag, a in page.tags if tag in ("script", "link")}
    assert named == {"data:,", "page.css", "page.js", "pixels.js"}
    for label in page.all("label"):
        assert label["for"] in {field["id"] for field in page.all("input")}
    for path in web.PAGE.iterdir():
        assert "https:" not in path.read_text("utf-8")
    script = (web.PAGE / "page.js").read_text("utf-8")
    assert "innerHTML" not in script and all(to in script for to in RUNTIME.values())


SQUARES = """
const fs = require("fs");
require(process.argv[1]);
for (const { name, width, height, size, jpeg } of JSON.parse(fs.readFileSync("cases.json"))) {
  const rgba = fs.readFileSync(`${name}.rgba`);
  const read = (y, rows) => rgba.subarray(y * width * 4, (y + rows) * width * 4);
  fs.writeFileSync(`${name}.square`, pixels.square(width, height, size, jpeg, read));
}
"""


def squares(folder: Path, pictures: list[tuple[Image.Image, int, bool]]) -> list[NDArray[np.uint8]]:
    """What `pixels.js` makes of decoded pictures: each with the size that is wanted, and whether it was a JPEG."""
    if NODE is None:
        pytest.skip("node is not installed")
    cases = []
    for i, (picture, size, jpeg) in enumerate(pictures):
        (folder / f"{i}.rgba").write_bytes(picture.convert("RGBA").tobytes())
        cases.append({"name": i, "width": picture.width, "height": picture.height, "size": size, "jpeg": jpeg})
    (folder / "cases.json").write_text(json.dumps(cases), "utf-8")
    subprocess.run([NODE, "-e", SQUARES, str(web.PAGE / "pixels.js")], cwd=folder, check=True, timeout=120)
    found = [np.fromfile(folder / f"{i}.square", dtype=np.uint8) for i in range(len(pictures))]
    return [pixels.reshape(size, size, 3) for pixels, (_, size, _) in zip(found, pictures, strict=True)]


def test_the_browser_resizes_to_the_bytes_that_decode_image_gives(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    # Smaller, equal and larger than the square; wide, high and one pixel wide; several strips of rows.
    shapes = [(20, 26, 8), (32, 32, 32), (31, 57, 32), (57, 31, 32), (7, 3, 32), (1, 900, 16), (1500, 1100, 96)]
    pictures = [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h, _ in shapes]
    found = squares(tmp_path, [(p, size, False) for p, (_, _, size) in zip(pictures, shapes, strict=True)])
    for picture, (_, _, size), pixels in zip(pictures, shapes, found, strict=True):
        np.testing.assert_array_equal(pixels, decode_image(encode(np.asarray(picture)), size))


def test_a_large_jpeg_in_the_browser_is_close_to_decode_image(tmp_path: Path) -> None:
    picture = Image.fromarray(natural_images(1, 611, seed=3)[0]).crop((0, 0, 611, 420))
    stored = io.BytesIO()
    picture.save(stored, "JPEG", quality=90)
    decoded = Image.open(io.BytesIO(stored.getvalue())).convert("RGB")
    sizes = (16, 32, 64)  # decoded at an eighth, a quarter and half of its size by `decode_image`
    for size, pixels in zip(sizes, squares(tmp_path, [(decoded, size, True) for size in sizes]), strict=True):
        difference = np.abs(pixels.astype(int) - decode_image(stored.getvalue(), size))
        assert difference.mean() < 0.5 and difference.max() <= 4


@pytest.fixture
def installed() -> dict[str, bytes]:
    """The files of the npm package where it is installed: `npm install onnxruntime-web` here, or NODE_PATH."""
    for place in PLACES:
        try:
            return read_runtime(place)
        except PlatformError:
            continue
    pytest.skip("onnxruntime-web is not installed: see CONTRIBUTING.md")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def static_server(folder: Path) -> Iterator[str]:
    """The address of a plain web server for a folder."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def photo(colour: tuple[int, int, int], size: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    random = np.random.default_rng(seed)
    return random.normal(colour, 15, (size[1], size[0], 3)).clip(0, 255).astype(np.uint8)


def pictures_of_kinds() -> dict[str, bytes]:
    """Pictures that a browser could read otherwise than `predict` does."""
    turned, clear = io.BytesIO(), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    wide = photo((60, 200, 60), (120, 40), 1)
    wide[:, :40], wide[:, 80:] = 0, 255
    Image.fromarray(wide).save(turned, "JPEG", exif=exif, quality=95, subsampling=0)
    alpha = np.dstack([photo((200, 30, 30), (30, 20), 2), np.full((20, 30, 1), 90, dtype=np.uint8)])
    Image.fromarray(alpha).save(clear, "PNG")
    plain = encode(photo((40, 60, 220), (26, 20), 3))
    return {"plain.png": plain, "turned.jpg": turned.getvalue(), "clear.png": clear.getvalue()}


def write_pages(folder: Path, runtime: dict[str, bytes]) -> None:
    """One page with a probe, one without, one whose model was cut short, below a path with a space."""
    tiny = read_model(write_tiny_probe(folder / "tiny.onnx", image_size=SIZE))
    bare = read_model(write_tiny_probe(folder / "bare.onnx", image_size=SIZE, probe={}))
    for name, model in (("classes", tiny), ("features", bare), ("cut", tiny)):
        (folder / "on the host" / name).mkdir(parents=True)
        write_page(folder / "on the host" / name, model, runtime)
    (folder / "on the host" / "cut" / "tiny.onnx").write_bytes(tiny.data[:100])


class Shown:
    """The page in the browser, as its reader uses it."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver = driver
        driver.get(address)

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def text(self, selector: str) -> str:
        return "\n".join(one.text for one in self.all(selector))

    def drop(self, name: str, data: bytes) -> list[str]:
        """The lines of the picture's card, when the page has done with it."""
        wait_for(self.all("#zone")[0].is_displayed)
        drop_file(self.driver, self.all("#zone")[0], name, data)
        return self.first_card()

    def choose(self, path: Path) -> list[str]:
        """The same of a file that is chosen in the picker."""
        self.all("#files")[0].send_keys(str(path))
        return self.first_card()

    def first_card(self) -> list[str]:
        wait_for(lambda: "1 of 1 pictures done" in self.text("#state"))
        return self.text("#results li:first-child").splitlines()

    def clear(self) -> None:
        self.all("#clear")[0].click()
        wait_for(lambda: not self.all("#results li"))


def check_classes(shown: Shown) -> None:
    """Class and confidence of every picture are those of `decode_image` and the model."""
    for name, data in pictures_of_kinds().items():
        expected = tiny_probabilities(decode_image(data, SIZE)[None])[0]
        lines = shown.drop(name, data)
        assert lines[0] == CLASSES[expected.argmax()] and name in lines
        numbers = [float(line.removesuffix(" %")) for line in lines if line.endswith(" %")]
        np.testing.assert_allclose(numbers, 100 * np.sort(expected)[::-1], atol=0.3)
        assert any(" ms" in line for line in lines)
        shown.clear()
    assert "cannot decode" in shown.drop("broken.png", b"no picture")[1]
    shown.clear()


def check_neighbours(shown: Shown) -> None:
    """Without a probe each picture has its nearest by the cosine of their features."""
    pictures = pictures_of_kinds()
    for name, data in pictures.items():
        lines = shown.drop(name, data)
    first, *others = [tiny_features(decode_image(data, SIZE)[None])[0] for data in reversed(pictures.values())]
    cosines = [first @ other / np.linalg.norm(first) / np.linalg.norm(other) for other in others]
    names = [*reversed(pictures)][1:]
    assert lines[0] == [*pictures][-1] and lines[1] == names[int(np.argmax(cosines))]
    assert abs(float(lines[2]) - max(cosines)) < 2e-3


@needs_browser
@pytest.mark.slow
def test_a_browser_classifies_pictures_as_predict_does(installed: dict[str, bytes], tmp_path: Path) -> None:
    write_pages(tmp_path, installed)
    stored = tmp_path / "chosen.png"
    stored.write_bytes(encode(photo((60, 200, 60), (26, 20), 4)))
    expected = tiny_probabilities(decode_image(stored, SIZE)[None])[0]
    driver = start_browser(tmp_path)
    try:
        with static_server(tmp_path) as host:
            root = host + quote("on the host/")
            for width in (1280, 390):
                set_width(driver, width)
                shown = Shown(driver, root + "classes/")
                check_classes(shown)
                assert shown.choose(stored)[0] == CLASSES[expected.argmax()]
                assert driver.execute_script("return document.documentElement.scrollWidth") <= width
            shown = Shown(driver, root + "features/")
            wait_for(shown.all("#zone")[0].is_displayed)
            driver.switch_to.active_element.send_keys("\ue004")  # the tab key
            assert driver.switch_to.active_element.get_attribute("id") == "files"
            check_neighbours(shown)
            assert {url for url in requested(driver) if not url.startswith((root, "data:", "chrome:"))} == set()
            assert severe(driver) == []
            cut = Shown(driver, root + "cut/")
            wait_for(lambda: "tiny.onnx has 100 bytes, and should have" in cut.text("#problem"))
        opened = Shown(driver, (tmp_path / "on the host/classes/index.html").as_uri())
        wait_for(lambda: "Serve this folder over http" in opened.text("#problem"))
    finally:
        driver.quit()
