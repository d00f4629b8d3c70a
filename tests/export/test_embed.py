"""embed: the encoder's own features of every readable image, and the same bytes however often it was stopped."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from fixtures.image_files import class_tree, encode, noise, tar_bytes, write_tree
from fixtures.odd_images import bomb, unusual_files
from fixtures.tiny_model import tiny_features
from fixtures.tiny_probe import write_tiny_probe
from simclr_engine.cli.embed import command
from simclr_engine.data import stream as module
from simclr_engine.data.datasets import NamedSource
from simclr_engine.data.decode import decode_image
from simclr_engine.data.sources import Selection
from simclr_engine.data.store import ImageStore
from simclr_engine.data.stream import Pictures, find_images
from simclr_engine.errors import DataError, EngineError, PlatformError, UsageError
from simclr_engine.evaluation.features import extract_features
from simclr_engine.export import OnnxEncoder
from simclr_engine.export.embed import EmbedResult, embed_to_index
from simclr_engine.export.embedder import Embedder, open_embedder
from simclr_engine.export.index import EmbeddingIndex
from simclr_engine.run import Run

SIZE = 8


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_probe(tmp_path / "encoder.onnx", image_size=SIZE)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve readable images of two classes, two more beside the class folders, and two files that are no images."""
    files = class_tree(each=6) | {"a loose one.png": encode(noise(50)), "zz.webp": encode(noise(51), "WEBP")}
    return write_tree(
        tmp_path / "photos", files | {"ant/broken.png": b"no image", "bee/cut.jpg": encode(noise(9))[:90]}
    )


def run(*args: object) -> Result:
    return CliRunner().invoke(command, [str(a) for a in args])


def embedded(model: Path, out: Path, *sources: object, **more: Any) -> EmbedResult:
    embedder = open_embedder(model)
    split = str(more.pop("split", "all"))
    return embed_to_index(embedder, find_images(embedder, [str(s) for s in sources], split), out, **more)


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_vectors_are_the_encoder_s_own_with_paths_classes_and_pictures(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "v.npy"
    (photos / "gone.png").symlink_to("nothing.png")
    result = embedded(model, out, photos, pictures=True, window=5)
    index = EmbeddingIndex.load(out, encoder=OnnxEncoder(model).sha256, dim=2)
    names = sorted(
        str(p.relative_to(photos)) for p in photos.rglob("*.*") if p.name not in ("broken.png", "cut.jpg", "gone.png")
    )
    assert index.paths == tuple(str(photos / name) for name in names)
    assert [index.class_of(i) for i in range(14)] == [Path(n).parts[0] if "/" in n else "" for n in names]
    pixels = np.stack([decode_image(photos / name, SIZE) for name in names])
    np.testing.assert_array_equal(index.images, pixels)
    np.testing.assert_allclose(np.load(out), tiny_features(pixels), rtol=1e-6, atol=1e-4)
    assert (result.images, result.embedded, result.dim) == (14, 14, 2)
    reasons = {"gone.png": "cannot be opened", "broken.png": "not a readable", "cut.jpg": "not a readable"}
    assert [Path(path).name for path, _ in result.skipped] == list(reasons)
    assert all(reasons[Path(path).name] in why for path, why in result.skipped)
    with out.with_name("v.csv").open(newline="") as table:
        assert [row["row"] for row in csv.DictReader(table)] == [str(row) for row in range(14)]


def test_a_split_takes_its_images_only(model: Path, tmp_path: Path) -> None:
    tree = {f"{split}/{path}": data for split in ("train", "test") for path, data in class_tree(each=2).items()}
    folder = write_tree(tmp_path / "set", tree)
    for split, count in (("train", 4), ("test", 4), ("all", 8)):
        embedded(model, tmp_path / f"{split}.npy", folder, split=split)
        index = EmbeddingIndex.load(tmp_path / f"{split}.npy")
        assert (len(index), index.class_names) == (count, ("ant", "bee"))
        assert {index.class_of(i) for i in range(count)} == {"ant", "bee"}
        assert split == "all" or all(f"/{split}/" in path for path in index.paths)
    with pytest.raises(DataError, match="no split 'val'"):
        embedded(model, tmp_path / "val.npy", folder, split="val")
    embedded(model, tmp_path / "flat.npy", folder / "train", split="train")
    assert len(EmbeddingIndex.load(tmp_path / "flat.npy")) == 4


def test_archives_arrays_and_single_files_are_taken_too(model: Path, tmp_path: Path) -> None:
    files = class_tree(each=2) | {"bee/broken.png": b"?"}
    (tmp_path / "set.tar.xz").write_bytes(tar_bytes(files, "w:xz"))
    (tmp_path / "one.bmp").write_bytes(encode(noise(7), "BMP"))
    pixels = np.stack([noise(i, SIZE, SIZE) for i in range(3)])
    np.save(tmp_path / "images.npy", pixels)
    sources = [tmp_path / name for name in ("set.tar.xz", "one.bmp", "images.npy")]
    result = embedded(model, tmp_path / "v.npy", *sources)
    index = EmbeddingIndex.load(tmp_path / "v.npy")
    members = ["ant/0.png", "ant/1.png", "bee/0.png", "bee/1.png"]
    assert index.paths[:5] == (*(f"{sources[0]}/{m}" for m in members), str(sources[1]))
    assert index.paths[5:] == tuple(f"{sources[2]}[{i}]" for i in range(3))
    assert [index.class_of(i) for i in range(5)] == ["ant", "ant", "bee", "bee", ""]
    expected = [decode_image(files[m], SIZE) for m in members] + [decode_image(sources[1], SIZE), *pixels]
    np.testing.assert_allclose(index.vectors, tiny_features(np.stack(expected)), rtol=1e-6, atol=1e-4)
    assert [path for path, _ in result.skipped] == [f"{sources[0]}/bee/broken.png"]
    embedded(model, tmp_path / "train.npy", sources[0], split="train")  # what has no splits is all `train`
    assert EmbeddingIndex.load(tmp_path / "train.npy").paths == index.paths[:4]


def test_a_member_that_is_in_an_archive_twice_keeps_its_name(model: Path, tmp_path: Path) -> None:
    twice = BytesIO()
    with tarfile.open(fileobj=twice, mode="w") as tar:
        for name, seed in (("0.png", 0), ("1.png", 1), ("0.png", 2)):
            member = tarfile.TarInfo(name)
            member.size = len(data := encode(noise(seed)))
            tar.addfile(member, BytesIO(data))
    (tmp_path / "set.tar").write_bytes(twice.getvalue())
    index = EmbeddingIndex.load(embedded(model, tmp_path / "x.npy", tmp_path / "set.tar").out)
    assert [Path(path).name for path in index.paths] == ["0.png", "1.png"]


def test_a_data_set_by_name_has_its_classes_and_a_number_for_each_image(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.stack([noise(i, SIZE, SIZE) for i in range(3)])
    stores = {
        split: ImageStore.from_arrays(pixels[rows], np.array(labels), ("ant", "bee"), name="known", split=split)
        for split, rows, labels in (("train", slice(0, 2), [1, 0]), ("test", slice(2, 3), [1]))
    }
    monkeypatch.setattr(module, "source_names", lambda: {"known": ""})
    monkeypatch.setattr(module, "open_source", lambda _: NamedSource("known"))
    monkeypatch.setattr(module, "packed", lambda *_: (None, SimpleNamespace(splits=stores)))
    monkeypatch.setattr(module, "load_data", lambda name, split, size, progress, levels: stores[split])
    embedded(model, tmp_path / "v.npy", "known")
    index = EmbeddingIndex.load(tmp_path / "v.npy")
    assert index.paths == ("known/train/0", "known/train/1", "known/test/0")
    assert [index.class_of(i) for i in range(3)] == ["bee", "ant", "bee"]
    np.testing.assert_allclose(index.vectors, tiny_features(pixels), rtol=1e-6, atol=1e-4)
    embedded(model, tmp_path / "w.npy", "known", split="test")
    selected = find_images(open_embedder(model), [Selection("known")], "test")
    assert [part.paths for part in selected] == [["known/test/0"]]
    assert EmbeddingIndex.load(tmp_path / "w.npy").paths == ("known/test/0",)


def test_16_bit_animated_and_odd_modes_are_read_and_a_bomb_is_left_out(model: Path, tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "odd", unusual_files())
    result = embedded(model, tmp_path / "v.npy", folder, pictures=True)
    assert [(Path(p).name, "pixels" in why) for p, why in result.skipped] == [("bomb.png", True)]
    index = EmbeddingIndex.load(tmp_path / "v.npy")
    assert index.images is not None and len(index) == 6
    at = {Path(path).name: image for path, image in zip(index.paths, index.images, strict=True)}
    first = decode_image(encode(noise(0, 12, 12)), SIZE)
    np.testing.assert_array_equal(at["animated.png"], first)
    np.testing.assert_array_equal(at["animated.webp"], first)
    assert at["16bit.png"].std() > 10 and at["16bit.png"].max() < 255


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((2, SIZE, SIZE, 3), np.float32), "normalisation are inside"),
        (np.zeros((2, 3, SIZE, SIZE), np.uint8), r"transpose\(0, 2, 3, 1\)"),
        (np.zeros((2, 16, 16, 3), np.uint8), "resize the images"),
        (np.zeros((0, SIZE, SIZE, 3), np.uint8), "at least one image"),
    ],
)
def test_arrays_of_another_shape_are_refused_with_the_expected_one(
    model: Path, tmp_path: Path, array: NDArray[np.generic], says: str
) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=says) as caught:
        embedded(model, tmp_path / "v.npy", tmp_path / "a.npy")
    assert f"uint8 [N, {SIZE}, {SIZE}, 3]" in str(caught.value)
    assert not (tmp_path / "v.npy").exists() and not (tmp_path / "v.partial").exists()


def test_no_image_at_all_is_an_error_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "bad", {"a.png": b"1", "b.png": bomb()})
    with pytest.raises(DataError, match=r"(?s)none of the images can be read.*bad/a\.png"):
        embedded(model, tmp_path / "out" / "v.npy", folder)
    (tmp_path / "empty").mkdir()
    for source, says in (("empty", "no images in the folder"), ("gone.png", "neither|no such"), ("gone/x", "no such")):
        with pytest.raises(EngineError, match=says):
            embedded(model, tmp_path / "out" / "v.npy", tmp_path / source)
    with pytest.raises(DataError, match="0 images"):
        embed_to_index(open_embedder(model), [], tmp_path / "out" / "v.npy")
    assert list((tmp_path / "out").iterdir()) == []


def test_where_nothing_can_be_written_is_a_platform_error(model: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PlatformError, match="cannot write"):
        embedded(model, tmp_path / "file" / "v.npy", photos)


class Killed(BaseException):
    """The process ends here."""


@contextmanager
def killed_at(step: int) -> Iterator[list[str]]:
    """Ends at the given one of all calls that change what is on disk; gives the names of those that were made."""
    calls: list[str] = []

    def counted(name: str, real: Callable[..., object]) -> object:
        def call(*args: object, **more: object) -> object:
            calls.append(name)
            if len(calls) - 1 == step:
                raise Killed
            return real(*args, **more)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", counted("fsync", lambda _: None))
        for name in ("replace", "unlink", "mkdir", "rmdir"):
            patch.setattr(os, name, counted(name, getattr(os, name)))
        yield calls


@pytest.mark.parametrize(("pictures", "other_before"), [(True, False), (False, True)])
def test_killed_at_any_step_the_same_command_ends_with_the_same_bytes(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: bool, other_before: bool
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # it is the disk's part, and slow
    (tmp_path / "once").mkdir()
    embedder = open_embedder(model)
    parts = find_images(embedder, [str(photos)])
    embed_to_index(embedder, parts, tmp_path / "once" / "v.npy", pictures=pictures, window=5)
    expected = files_of(tmp_path / "once")
    fewer = 0
    for step in range(200):
        folder = tmp_path / f"again-{step}"
        folder.mkdir()
        out = folder / "v.npy"
        if other_before:  # with pictures, so that a wrong mixture would show
            EmbeddingIndex.build(np.ones((1, 2), np.float32), ["x"], images=np.zeros((1, 8, 8, 3), np.uint8)).save(out)
        how: dict[str, Any] = {"pictures": pictures, "window": 5, "overwrite": other_before}
        with killed_at(step) as calls, suppress(Killed):
            embed_to_index(embedder, parts, out, **how)
        if len(calls) <= step:
            break
        for name in ("vectors.npy", "images.npy", "table.csv"):
            path = folder / "v.partial" / name  # half joined: no manifest says that it is whole
            if path.exists() and not (folder / "v.partial" / "manifest.json").exists():
                path.write_bytes(path.read_bytes()[:-3])
        complete = not (folder / "v.partial").exists()
        if (folder / "v.json").exists() and not complete and not other_before:
            EmbeddingIndex.load(out)  # what can be loaded is whole
        result = embed_to_index(embedder, parts, out, **how)
        assert files_of(folder) == expected, f"step {step}: {calls[-1]}"
        fewer += 0 < result.embedded < 14
    else:
        raise AssertionError("it never ended")
    assert step > 12 and fewer > 3
    assert {"fsync", "replace", "mkdir", "unlink", "rmdir"} <= set(calls)


SLOW = """
import sys, time
from simclr_engine.data import stream
from simclr_engine.export import embed, embedder
encoder = embedder.open_embedder(sys.argv[1])
parts = stream.find_images(encoder, [sys.argv[2]])
def advance(count):
    print(count, flush=True)
    time.sleep(60 if count else 0)  # until it is killed
embed.embed_to_index(encoder, parts, sys.argv[3], window=2, advance=advance)
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is a POSIX signal")
def test_a_process_that_is_really_killed_is_gone_on_with(model: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "once").mkdir(), (tmp_path / "killed").mkdir()
    embedded(model, tmp_path / "once" / "v.npy", photos, window=2)
    out = tmp_path / "killed" / "v.npy"
    command = [sys.executable, "-c", SLOW, str(model), str(photos), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [process.stdout.readline().strip() for _ in range(2)] == ["0", "2"]
        with pytest.raises(UsageError, match="another process"):
            embedded(model, out, photos, window=2)
        process.send_signal(signal.SIGKILL)
    assert not out.exists()
    result = embedded(model, out, photos, window=2)
    assert result.embedded == 12  # of 14: the first window was kept
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "once")


def test_a_finished_index_is_left_as_it_is_and_another_is_refused(model: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.npy"
    first = embedded(model, out, photos)
    again = embedded(model, out, photos)
    assert (again.embedded, again.images, again.skipped) == (0, first.images, first.skipped)
    with pytest.raises(UsageError, match="something else here already"):
        embedded(model, out, photos / "ant")
    (photos / "ant" / "new.png").write_bytes(encode(noise(77)))
    with pytest.raises(UsageError, match="--overwrite"):
        embedded(model, out, photos)
    assert embedded(model, out, photos, overwrite=True).embedded == 15
    with killed_at(6), pytest.raises(Killed):
        embedded(model, tmp_path / "w.npy", photos, window=3)
    with pytest.raises(UsageError, match="begun here and not finished"):
        embedded(model, tmp_path / "w.npy", photos / "ant")
    with pytest.raises(DataError, match="not finished"):
        EmbeddingIndex.load(tmp_path / "w.npy")
    np.save(tmp_path / "mine.npy", np.ones(3))
    with pytest.raises(UsageError, match="here already"):
        embedded(model, tmp_path / "mine.npy", photos)
    np.testing.assert_array_equal(np.load(tmp_path / "mine.npy"), np.ones(3))


def _link_to_mine(out: Path) -> None:
    out.with_name("mine.npy").write_bytes(b"mine")
    out.symlink_to("mine.npy")


def _edited_table(out: Path) -> None:
    EmbeddingIndex.build(np.ones((1, 2), np.float32), ["x"]).save(out)
    out.with_name("v.csv").write_text("row,path,class\n0,x,mine\n")


def _folder_of_mine(out: Path) -> None:
    out.with_name("v.partial").mkdir()
    out.with_name("v.partial").joinpath("notes.txt").write_text("mine")


def _link_to_my_folder(out: Path) -> None:
    _folder_of_mine(out)
    out.with_name("v.partial").rename(out.with_name("folder"))
    out.with_name("v.partial").symlink_to("folder")


NOT_OURS: dict[str, Callable[[Path], object]] = {
    "a table": lambda out: out.with_name("v.csv").write_text("row,path,class\n0,mine.png,cat\n"),
    "a JSON file": lambda out: out.with_name("v.json").write_text('{"mine": 1}'),
    "pictures": lambda out: np.save(out.with_name("v.images.npy"), np.zeros((3, 8, 8, 3), np.uint8)),
    "a table that was edited": _edited_table,
    "a folder": lambda out: out.mkdir(),
    "a link": _link_to_mine,
    "a link to nothing": lambda out: out.symlink_to("nothing.npy"),
    "a link beside": lambda out: out.with_name("v.json").symlink_to("nothing.json"),
    "a folder of the partial's name": _folder_of_mine,
    "a link to a folder": _link_to_my_folder,
    "a file of the partial's name": lambda out: out.with_name("v.partial").write_text("mine"),
}


def _tree(folder: Path) -> dict[str, bytes | str]:
    """Every file and link in it, with what it holds."""
    found = {path: path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
    return {str(p.relative_to(folder)): str(p.readlink()) if p.is_symlink() else p.read_bytes() for p in found}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("what", NOT_OURS)
def test_what_is_no_index_of_ours_is_not_replaced_or_written_through(
    model: Path, photos: Path, tmp_path: Path, what: str, overwrite: bool
) -> None:
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "v.npy"
    NOT_OURS[what](out)
    before = _tree(tmp_path / "out")
    with pytest.raises(UsageError, match=r"replace|in use|taken|not its own|something else") as caught:
        embedded(model, out, photos, overwrite=overwrite)
    assert "--out" in str(caught.value) or "another name" in str(caught.value)
    assert _tree(tmp_path / "out") == before


@pytest.mark.parametrize("name", ["a.bmp", "a.npy", "a"])
def test_other_images_of_the_same_name_size_and_time_are_noticed(model: Path, tmp_path: Path, name: str) -> None:
    source = tmp_path / "images" / name
    for number, seed in enumerate((1, 2)):
        pixels = noise(seed, SIZE, SIZE)
        written = source / "only.bmp" if name == "a" else source
        written.parent.mkdir(parents=True, exist_ok=True)
        if name == "a.npy":
            np.save(written, pixels[None])
        else:
            written.write_bytes(encode(pixels, "BMP"))
        os.utime(written, (1e9, 1e9))
        if number == 0:
            embedded(model, tmp_path / "v.npy", source)
            assert embedded(model, tmp_path / "v.npy", source).embedded == 0
    with pytest.raises(UsageError, match="something else"):
        embedded(model, tmp_path / "v.npy", source)


def test_a_finished_index_removes_its_own_leftovers_and_nothing_else(model: Path, photos: Path, tmp_path: Path) -> None:
    out = embedded(model, tmp_path / "v.npy", photos).out
    left = tmp_path / "v.partial" / "window-0000000.npz"
    left.parent.mkdir()
    left.write_bytes(b"")
    (left.parent / "notes.txt").write_text("mine")
    assert embedded(model, out, photos).embedded == 0 and len(list(left.parent.iterdir())) == 2
    (left.parent / "notes.txt").unlink()
    fcntl = pytest.importorskip("fcntl")
    with (left.parent / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # another process goes on there
        assert embedded(model, out, photos).embedded == 0 and left.exists()
    assert embedded(model, out, photos).embedded == 0 and not left.parent.exists()


def test_overwrite_replaces_any_file_that_has_the_name_of_the_vectors(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "v.npy"
    np.save(out, np.ones(3))
    with pytest.raises(UsageError, match="--overwrite"):
        embedded(model, out, photos)
    assert embedded(model, out, photos, overwrite=True).embedded == 14
    assert len(EmbeddingIndex.load(out)) == 14
    EmbeddingIndex.load(out).save(tmp_path / "w.npy")
    np.save(tmp_path / "w.npy", np.ones(3))
    with pytest.raises(UsageError, match="no index"):
        EmbeddingIndex.load(out).save(tmp_path / "w.npy")


def test_what_was_put_there_while_it_embedded_is_not_replaced(model: Path, photos: Path, tmp_path: Path) -> None:
    def advance(done: int) -> None:
        (tmp_path / "v.csv").write_text("mine")

    with pytest.raises(UsageError, match=r"not its own[^:]*\n.*v\.csv"):
        embedded(model, tmp_path / "v.npy", photos, advance=advance)
    assert (tmp_path / "v.csv").read_text() == "mine" and not (tmp_path / "v.npy").exists()
    (tmp_path / "v.csv").unlink()
    assert embedded(model, tmp_path / "v.npy", photos).embedded == 0  # all of it was there already


def test_an_index_begun_with_other_windows_is_not_gone_on_with(model: Path, photos: Path, tmp_path: Path) -> None:
    def stop(done: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embedded(model, tmp_path / "v.npy", photos, window=5, advance=stop)
    with pytest.raises(UsageError, match="something else was begun here"):
        embedded(model, tmp_path / "v.npy", photos, window=4)
    assert 0 < embedded(model, tmp_path / "v.npy", photos, window=5).embedded < 14


def test_at_most_two_windows_of_images_are_decoded_ahead(model: Path, tmp_path: Path) -> None:
    embedder, alive, most = open_embedder(model), 0, 0

    def pixels(row: int) -> NDArray[np.uint8]:
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        return noise(row, SIZE, SIZE)

    part = Pictures([str(i) for i in range(200)], [""] * 200, (), pixels, (), "many")

    def advance(count: int) -> None:
        nonlocal alive
        alive -= count

    embed_to_index(embedder, [part], tmp_path / "v.npy", window=10, advance=advance)
    assert 10 <= most <= 20


def test_a_feature_that_is_not_finite_is_not_written(model: Path, photos: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    embedder = open_embedder(model)
    broken = replace(embedder, embed=lambda images: np.full((len(images), 2), np.nan, np.float32))
    with pytest.raises(EngineError, match="not finite"):
        embed_to_index(broken, find_images(broken, [str(photos)]), tmp_path / "v.npy")
    assert not (tmp_path / "v.npy").exists()


def test_a_run_is_embedded_by_its_own_encoder(shared_run: Run, tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "photos", class_tree(each=2))
    embedder = open_embedder(shared_run.directory)
    result = embed_to_index(embedder, find_images(embedder, [str(folder)]), tmp_path / "v.npy")
    index = EmbeddingIndex.load(result.out, encoder=embedder.identity, dim=512)
    pixels = np.stack([decode_image(Path(path), 32) for path in index.paths])
    augment = shared_run.recipe.augment
    expected = extract_features(shared_run.encoder(), pixels, augment.mean, augment.std)
    np.testing.assert_allclose(index.vectors, expected, atol=1e-5)
    np.save(tmp_path / "floats.npy", np.zeros((1, 32, 32, 3), np.float32))
    with pytest.raises(DataError, match=r"uint8 \[N, 32, 32, 3\]"):
        find_images(embedder, [str(tmp_path / "floats.npy")])


def test_the_command_gives_one_document_and_names_what_was_left_out(model: Path, photos: Path, tmp_path: Path) -> None:
    done = run(model, photos, "--out", tmp_path / "v.npy", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert set(document) >= {"out", "csv", "images", "skipped", "seconds", "images_per_second", "dim"}
    assert (document["images"], document["dim"], len(document["skipped"])) == (14, 2, 2)
    assert Path(document["csv"]).read_text("utf-8").startswith("row,path,class\n0,")
    told = run(model, photos, "--out", tmp_path / "w.npy", "--images")
    assert "14 images in" in told.stdout and "broken.png: not a readable" in told.stderr
    assert (tmp_path / "w.images.npy").is_file()
    assert "nothing to do" in run(model, photos, "--out", tmp_path / "w.npy", "--images").stdout


@pytest.mark.parametrize("target", ["nothing.onnx", "photos.txt"])
def test_what_is_no_encoder_is_a_usage_error(tmp_path: Path, target: str) -> None:
    (tmp_path / "photos.txt").write_text("")
    with pytest.raises(UsageError, match=r"neither a run|no such run"):
        open_embedder(tmp_path / target)


@pytest.fixture
def embedder(tmp_path: Path) -> Embedder:
    return open_embedder(write_tiny_probe(tmp_path / "encoder.onnx", image_size=SIZE))


@pytest.fixture
def few(tmp_path: Path) -> str:
    """Four images of two classes each."""
    return str(write_tree(tmp_path / "photos", class_tree(each=4)))


@contextmanager
def _killed_at(step: int, owner: Any, name: str) -> Iterator[list[int]]:
    """Ends at the given call of `owner.name`; gives the numbers of the calls that were begun."""
    calls: list[int] = []
    real = getattr(owner, name)

    def call(*arguments: object, **more: object) -> object:
        calls.append(len(calls))
        if len(calls) > step:
            raise Killed
        return None if name == "fsync" else real(*arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, call)
        yield calls


@pytest.mark.parametrize(("before", "now"), [(False, False), (True, True), (True, False)])
def test_killed_while_it_replaces_another_there_is_one_of_the_two_or_none(
    embedder: Embedder, few: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool, now: bool
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # it is the disk's part, and slow
    other = replace(embedder, identity="b" * 64, embed=lambda images: embedder.embed(images) + 1)
    parts = find_images(embedder, [few])
    (tmp_path / "old").mkdir()
    old = EmbeddingIndex.load(embed_to_index(embedder, parts, tmp_path / "old" / "v.npy", pictures=before).out)
    vectors = {embedder.identity: np.array(old.vectors), other.identity: np.array(old.vectors) + 1}
    refused = 0
    for step in range(50):
        out = shutil.copytree(tmp_path / "old", tmp_path / f"again-{step}") / "v.npy"
        with _killed_at(step, os, "replace") as calls, suppress(Killed):
            embed_to_index(other, parts, out, overwrite=True, pictures=now, window=4)
        try:
            found = EmbeddingIndex.load(out)
        except DataError:
            refused += 1
        else:
            np.testing.assert_array_equal(found.vectors, vectors[found.encoder], err_msg=f"killed at step {step}")
        if len(calls) <= step:
            break
    assert found.encoder == other.identity and refused >= 2


@pytest.mark.parametrize("changed", ["encoder", "image size", "pictures", "window"])
def test_an_index_begun_or_finished_by_another_plan_is_not_gone_on_with(
    embedder: Embedder, few: str, tmp_path: Path, changed: str
) -> None:
    how: dict[str, Any] = {"window": 3, "pictures": False}
    with _killed_at(3, os, "fsync"), pytest.raises(Killed):
        embed_to_index(embedder, find_images(embedder, [few]), tmp_path / "begun.npy", **how)
    assert list((tmp_path / "begun.partial").glob("window-*.npz"))
    embed_to_index(embedder, find_images(embedder, [few]), tmp_path / "finished.npy", **how)
    if changed == "encoder":
        embedder = replace(embedder, identity="b" * 64)
    elif changed == "image size":
        embedder = replace(embedder, image_size=16, embed=lambda images: np.ones((len(images), 2), np.float32))
    else:
        how |= {"pictures": True} if changed == "pictures" else {"window": 4}
    for name, said in (("begun", "begun here and not finished"), ("finished", "something else here already")):
        with pytest.raises(UsageError, match=said):
            embed_to_index(embedder, find_images(embedder, [few]), tmp_path / f"{name}.npy", **how)
