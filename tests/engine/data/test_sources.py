"""Folders and archives become the same ImageStore, and every bad input says what is wrong."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fixtures.image_files import class_tree, encode, noise, tar_bytes, write_tree, zip_bytes
from simclr_engine.bounds import MAX_DEPTH
from simclr_engine.data import ImageStore, load_data, load_splits, source_names, sources
from simclr_engine.data.sources import overview
from simclr_engine.data.store import fingerprint
from simclr_engine.errors import DataError, PlatformError, UsageError
from simclr_engine.files import MARKER
from simclr_engine.report.style import new_figure, to_png
from simclr_engine.terminal import say_once

TREE = class_tree(prefix="train/", each=4) | class_tree(prefix="test/", each=2, seed=5000)


def expected_train() -> np.ndarray:
    """The 16 × 16 training images of TREE in path order: ant (second of the tree's classes) before bee."""
    return np.stack([noise(100 + n) for n in range(4)] + [noise(n) for n in range(4)])


def check_tree(train: ImageStore, test: ImageStore) -> None:
    np.testing.assert_array_equal(train.images, expected_train())
    np.testing.assert_array_equal(test.images[0], noise(5100))
    assert train.labels is not None and train.labels.tolist() == [0] * 4 + [1] * 4
    assert test.labels is not None and test.labels.tolist() == [0, 0, 1, 1]
    assert train.class_names == test.class_names == ("ant", "bee")
    assert (train.split, test.split, train.skipped) == ("train", "test", ())
    assert train.fingerprint == fingerprint(train.images, train.labels) != test.fingerprint


def archive_bytes(kind: str) -> bytes:
    if kind == "zip":
        return zip_bytes(TREE)
    return tar_bytes(TREE, {"tar": "w", "tar.gz": "w:gz", "tgz": "w:gz", "tar.xz": "w:xz"}[kind])


def test_a_folder_becomes_a_store_sorted_by_path(tmp_path: Path) -> None:
    write_tree(tmp_path, TREE)
    check_tree(*load_splits(tmp_path))
    assert load_data(str(tmp_path)).name == str(tmp_path)


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tgz", "tar.xz", "zip"])
def test_every_archive_kind_gives_the_same_store_as_the_folder(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"images.{kind}").write_bytes(archive_bytes(kind))
    check_tree(*load_splits(tmp_path / f"images.{kind}"))
    assert list(tmp_path.iterdir()) == [tmp_path / f"images.{kind}"]  # nothing was extracted


def test_an_archive_is_told_by_its_content_not_its_suffix(tmp_path: Path) -> None:
    (tmp_path / "images.tar").write_bytes(archive_bytes("tar.xz"))
    (tmp_path / "other.zip").write_bytes(archive_bytes("tar.gz"))
    check_tree(*load_splits(tmp_path / "images.tar"))
    check_tree(*load_splits(tmp_path / "other.zip"))


def zstd_bytes(data: bytes) -> bytes | None:
    try:
        from compression import zstd

        return zstd.compress(data)
    except ModuleNotFoundError:
        pass
    try:
        import zstandard

        return zstandard.ZstdCompressor().compress(data)
    except ModuleNotFoundError:
        return None


def test_a_zstd_archive_is_read_or_the_missing_package_named(tmp_path: Path) -> None:
    packed = zstd_bytes(tar_bytes(TREE))
    path = tmp_path / "images.tar.zst"
    path.write_bytes(packed or b"\x28\xb5\x2f\xfd" + bytes(100))
    if packed is not None:
        check_tree(*load_splits(path))
        half = zstd_bytes(tar_bytes(TREE)[:3000])
        assert half is not None
        path.write_bytes(half)
        with pytest.raises(DataError, match="damaged"):
            load_data(path)
    else:
        with pytest.raises(PlatformError, match="zstd") as caught:
            load_data(path)
        assert caught.value.fix is not None and "pip install zstandard" in caught.value.fix


def test_the_order_of_an_archive_and_dot_slash_change_nothing(tmp_path: Path) -> None:
    backwards = {f"./{path}": TREE[path] for path in reversed(TREE)}
    (tmp_path / "images.tar").write_bytes(tar_bytes(backwards))
    check_tree(*load_splits(tmp_path / "images.tar"))


def test_a_folder_around_everything_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "images.tar").write_bytes(tar_bytes({f"set-1.0/{path}": data for path, data in TREE.items()}))
    check_tree(*load_splits(tmp_path / "images.tar"))


def test_hidden_files_other_files_and_odd_extensions_are_handled(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            "ant/A.PNG": encode(noise(0)),
            "ant/b.JpG": encode(noise(1), "JPEG"),
            "ant/._A.PNG": b"resource fork",
            "ant/notes.txt": b"text",
            "bee/c.Bmp": encode(noise(2), "BMP"),
            "bee/d.WEBP": encode(noise(3), "WEBP"),
            ".git/e.png": encode(noise(4)),
            "__MACOSX/ant/f.png": encode(noise(5)),
        },
    )
    store = load_data(tmp_path)
    assert len(store) == 4 and store.class_names == ("ant", "bee") and store.split == "all" and store.skipped == ()
    np.testing.assert_array_equal(store.images[0], noise(0))
    np.testing.assert_array_equal(store.images[2], noise(2))


def test_links_are_followed_and_their_loops_are_harmless(tmp_path: Path) -> None:
    write_tree(tmp_path / "elsewhere", {"1.png": encode(noise(0))})
    write_tree(tmp_path / "set", {"ant/2.png": encode(noise(1))})
    (tmp_path / "set/bee").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/ant/loop").symlink_to(tmp_path / "set")
    (tmp_path / "set/ant/broken.png").symlink_to("nowhere.png")
    (tmp_path / "set/ant/self.png").symlink_to("self.png")
    store = load_data(tmp_path / "set")
    assert store.class_names == ("ant", "bee") and len(store) == 2  # the loop brings no image a second time
    np.testing.assert_array_equal(store.images, [noise(1), noise(0)])
    assert {path for path, _ in store.skipped} == {"ant/broken.png", "ant/self.png"}


def test_a_pipe_named_like_an_image_is_reported_not_waited_for(tmp_path: Path) -> None:
    write_tree(tmp_path, class_tree(each=1))
    os.mkfifo(tmp_path / "bee/9.png")
    store = load_data(tmp_path)
    assert len(store) == 2 and store.skipped == (("bee/9.png", "not a regular file"),)


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_an_unreadable_file_is_skipped_reported_and_shifts_no_label(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = class_tree(("ant", "bee", "cow"), each=5)
    files["ant/1.png"] = files["ant/1.png"][:80]
    files["bee/0.png"] = b""
    files["cow/4.png"] = b"not an image"
    path = tmp_path / "set"
    if kind == "folder":
        write_tree(path, files)
    else:
        path = tmp_path / f"set.{kind}"
        path.write_bytes(tar_bytes(files) if kind == "tar" else zip_bytes(files))
    store = load_data(path)
    kept = [(c, n) for c in range(3) for n in range(5) if (c, n) not in ((0, 1), (1, 0), (2, 4))]
    np.testing.assert_array_equal(store.images, [noise(100 * c + n) for c, n in kept])
    assert store.labels is not None and store.labels.tolist() == [c for c, _ in kept]
    assert [p for p, _ in store.skipped] == ["ant/1.png", "bee/0.png", "cow/4.png"]
    assert all("not a readable" in reason for _, reason in store.skipped)
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "3 of 15 files skipped" in captured.err and captured.out == ""
    again = load_data(path)
    assert again.skipped == store.skipped and again.fingerprint == store.fingerprint
    assert capsys.readouterr().err == ""  # said once in a process, and in the next one too
    say_once.cache_clear()
    load_data(path)
    assert capsys.readouterr().err == captured.err


@pytest.mark.parametrize("size", [None, 32])
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_nothing_readable_at_all_is_a_data_error(tmp_path: Path, size: int | None, kind: str) -> None:
    files = {"ant/1.png": b"x", "bee/2.jpg": b"y"}
    path = write_tree(tmp_path / "set", files)
    if kind == "tar":
        path = tmp_path / "set.tar"
        path.write_bytes(tar_bytes(files))
    with pytest.raises(DataError, match="none of the"):
        load_data(path, size=size)


def test_a_split_of_which_nothing_is_readable_is_absent_and_said(tmp_path: Path) -> None:
    write_tree(tmp_path, class_tree(prefix="train/") | {"test/ant/1.png": b"x"})
    assert len(load_data(tmp_path)) == 6
    with pytest.raises(DataError, match="no split 'test'"):
        load_data(tmp_path, split="test")


@pytest.mark.parametrize(
    ("files", "saw"), [({}, "0 other files"), ({"a.xyz": b"x", "deep/b.txt": b"y"}, "2 other files")]
)
def test_an_empty_folder_names_what_would_be_read(tmp_path: Path, files: dict[str, bytes], saw: str) -> None:
    write_tree(tmp_path, files)
    with pytest.raises(DataError, match="no images in the folder") as caught:
        load_data(tmp_path)
    assert caught.value.saw == saw and "train/CLASS/*" in str(caught.value.fix)


@pytest.mark.parametrize("suffix", ["tar", "zip"])
def test_an_archive_without_images_says_so(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"set.{suffix}"
    for files in ({}, {"readme.txt": b"x"}):
        path.write_bytes(tar_bytes(files) if suffix == "tar" else zip_bytes(files))
        with pytest.raises(DataError, match="no images in the archive"):
            load_data(path)


def test_one_image_is_a_store(tmp_path: Path) -> None:
    write_tree(tmp_path, {"only.png": encode(noise(3))})
    store = load_data(tmp_path)
    assert store.images.shape == (1, 16, 16, 3) and store.labels is None and store.class_names == ()


def test_different_sizes_and_modes_become_one_said_size_for_all_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tree(
        tmp_path,
        {
            "train/ant/1.png": encode(noise(0, 40, 50)),
            "train/ant/2.jpg": encode(noise(1, 60, 30)[..., 0], "JPEG"),
            "train/bee/3.webp": encode(np.dstack([noise(2, 20, 24), noise(3, 20, 24)[..., :1]]), "WEBP"),
            "test/bee/4.bmp": encode(noise(4, 90, 90), "BMP"),
            "test/ant/5.png": encode(noise(5, 34, 36)[..., 0].astype(np.uint16) * 257),
        },
    )
    train, test = load_splits(tmp_path)
    assert train.image_size == test.image_size == 34  # the median of 20 30 34 40 90
    assert len(train) == 3 and len(test) == 2 and train.skipped == ()
    said = capsys.readouterr().err
    assert "resized to 34 × 34" in said and "shorter sides 20 to 90" in said and said.count("\n") == 1
    assert load_data(tmp_path, size=48).image_size == 48
    assert load_data(tmp_path).image_size == 34 and capsys.readouterr().err == ""


def test_a_size_is_applied_and_kept_apart_from_other_sizes(tmp_path: Path) -> None:
    write_tree(tmp_path, {"1.png": encode(np.full((16, 16, 3), 90, dtype=np.uint8))})
    assert [load_data(tmp_path, size=size).images.shape[1] for size in (None, 24, 16, 8)] == [16, 24, 16, 8]
    assert (load_data(tmp_path, size=24).images == 90).all()


@pytest.mark.parametrize("size", [-1, 0, 7, 1025, 10**9])
def test_an_impossible_size_is_a_usage_error(tmp_path: Path, size: int) -> None:
    with pytest.raises(UsageError, match="out of range") as caught:
        load_data(write_tree(tmp_path, {"1.png": encode(noise(0))}), size=size)
    assert caught.value.saw == size and caught.value.exit_code == 2


def test_tiny_images_are_refused_unless_enlarged(tmp_path: Path) -> None:
    write_tree(tmp_path, {"1.png": encode(noise(0, 4, 4))})
    with pytest.raises(DataError, match="at least 8 pixels"):
        load_data(tmp_path)
    assert load_data(tmp_path, size=16).image_size == 16


def test_classes_without_splits_hold_out_a_fixed_fifth_of_each(tmp_path: Path) -> None:
    write_tree(tmp_path, class_tree(("ant", "bee"), each=10))
    train, test = load_splits(tmp_path)
    assert train.labels is not None and np.bincount(train.labels).tolist() == [8, 8]
    assert test.labels is not None and np.bincount(test.labels).tolist() == [2, 2]
    assert (train.split, test.split) == ("train (80 %)", "held-out 20 %")
    whole = load_data(tmp_path)
    both = np.concatenate([train.images, test.images])
    assert {image.tobytes() for image in both} == {image.tobytes() for image in whole.images} and len(both) == 20
    again = load_splits(tmp_path)
    assert (again[0].fingerprint, again[1].fingerprint) == (train.fingerprint, test.fingerprint)
    assert len(load_data(tmp_path, split="all")) == 20


def test_a_val_split_serves_where_there_is_no_test_split(tmp_path: Path) -> None:
    write_tree(tmp_path, class_tree(prefix="train/") | class_tree(prefix="val/", each=2))
    train, test = load_splits(tmp_path)
    assert (train.split, test.split, len(test)) == ("train", "val", 4)
    shutil.rmtree(tmp_path / "train")
    assert overview(tmp_path)["evaluation"] == "needs images to learn from: a folder `train` beside the others"


@pytest.mark.parametrize(
    "files",
    [
        {"1.png": encode(noise(0)), "2.png": encode(noise(1))},
        {"train/1.png": encode(noise(0)), "test/2.png": encode(noise(1))},
        class_tree(prefix="test/") | {"train/2.png": encode(noise(1))},
    ],
    ids=["flat", "unlabelled splits", "only the train split unlabelled"],
)
def test_missing_labels_are_named_where_labels_are_needed(tmp_path: Path, files: dict[str, bytes]) -> None:
    write_tree(tmp_path, files)
    assert len(load_data(tmp_path)) >= 1
    with pytest.raises(DataError, match="have no labels"):
        load_splits(tmp_path)


def test_labelled_val_images_serve_where_test_has_no_labels(tmp_path: Path) -> None:
    files = class_tree(prefix="train/") | class_tree(prefix="val/", seed=900) | {"test/1.png": encode(noise(7))}
    train, test = load_splits(write_tree(tmp_path, files))
    assert (train.split, test.split, len(test)) == ("train", "val", 6)
    assert test.notes == ("the images of test have no labels; those of val serve instead",)


def test_held_out_images_serve_where_only_train_has_labels(tmp_path: Path) -> None:
    files = class_tree(prefix="train/", each=10) | {"test/1.png": encode(noise(7))}
    train, test = load_splits(write_tree(tmp_path, files))
    assert (len(train), len(test), test.split) == (16, 4, "held-out 20 %")
    assert test.notes == ("the images of test have no labels; a fifth of the training images is held out instead",)


def test_copies_are_on_one_side_of_the_held_out_split_and_counted(tmp_path: Path) -> None:
    files = class_tree(each=20)
    files |= {f"bee/copy {n}.png": files[f"bee/{n}.png"] for n in range(8)}
    files |= {f"ant/bee {n}.png": files[f"bee/{n}.png"] for n in range(8, 12)}  # a picture in two classes
    train, test = load_splits(write_tree(tmp_path, files))
    assert len(train) + len(test) == 52 and len(test) >= 8
    assert not {image.tobytes() for image in train.images} & {image.tobytes() for image in test.images}
    assert test.notes == ("12 of 52 images are copies of others; copies are on one side of the split",)


def test_pretraining_takes_all_that_is_held_out_nowhere(tmp_path: Path) -> None:
    files = class_tree(prefix="train/") | class_tree(prefix="test/", seed=500) | class_tree(prefix="val/", seed=700)
    files |= {f"unlabeled/{n}.png": encode(noise(900 + n)) for n in range(4)} | {"cover.png": encode(noise(999))}
    write_tree(tmp_path, files)
    pool, train = load_data(tmp_path, "pretraining"), load_data(tmp_path)
    assert len(pool) == 6 + 5 and pool.split == "train + unlabeled"
    np.testing.assert_array_equal(pool.images[:6], train.images)
    np.testing.assert_array_equal(pool.images[6:], np.stack([noise(n) for n in (999, 900, 901, 902, 903)]))
    assert pool.labels is not None and pool.labels.tolist() == [0, 0, 0, 1, 1, 1, -1, -1, -1, -1, -1]
    assert pool.fingerprint == fingerprint(pool.images, pool.labels) == load_data(tmp_path, "pretraining").fingerprint


def test_unlabeled_copies_of_held_out_images_are_not_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = class_tree(prefix="set/train/") | class_tree(prefix="set/test/", seed=500)
    files |= {"sample_images/1.png": files["set/test/ant/0.png"], "sample_images/2.png": encode(noise(900))}
    write_tree(tmp_path, files)
    for _ in range(2):
        pool = load_data(tmp_path, "pretraining")
        assert len(pool) == 7 and (pool.images[6] == noise(900)).all()
        assert "among the unlabeled ones, not trained on: 1" in capsys.readouterr().err


def test_where_nothing_is_unlabeled_pretraining_takes_the_train_split_itself(tmp_path: Path) -> None:
    write_tree(tmp_path, TREE)
    pool, train = load_data(tmp_path, "pretraining"), load_data(tmp_path)
    assert (pool.fingerprint, pool.split) == (train.fingerprint, "train")
    write_tree(tmp_path / "only", class_tree(prefix="test/"))
    with pytest.raises(DataError, match="all belong to a test or validation split"):
        load_data(tmp_path / "only", "pretraining")


ODD_ENDINGS = ("a.jfif", "b.JPE", "c.tif", "d.TIFF", "e.gif", "f.avif", "g.jp2", "h", "i.dat", "j.PNG")
FORMATS = ("JPEG", "JPEG", "TIFF", "TIFF", "GIF", "AVIF", "JPEG2000", "PNG", "WEBP", "PNG")


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_images_are_known_by_their_bytes_whatever_their_ending(tmp_path: Path, kind: str) -> None:
    flat = np.full((16, 16, 3), 128, dtype=np.uint8)
    files = {f"set/{name}": encode(flat, form) for name, form in zip(ODD_ENDINGS, FORMATS, strict=True)}
    files |= {"set/notes.txt": b"BMW", "set/table": b"II", "set/data.bin": bytes(100), "set/x.pdf": b"%PDF-1.4"}
    path = write_tree(tmp_path / "folder", files)
    if kind != "folder":
        path = tmp_path / f"set.{kind}"
        path.write_bytes(tar_bytes(files) if kind == "tar" else zip_bytes(files))
    for _ in range(2):  # packed, and from the cache
        store = load_data(path)
        assert len(store) == len(ODD_ENDINGS) and store.skipped == ()
        assert abs(store.images.astype(int) - 128).max() <= 2


def test_heic_photos_are_read_whatever_their_ending(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    photo = np.full((64, 64, 3), 40, dtype=np.uint8)
    photo[32:] = 220
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(photo)).save(buffer, quality=95)
    store = load_data(write_tree(tmp_path, {"a/IMG_1.HEIC": buffer.getvalue(), "b/renamed.jpg": buffer.getvalue()}))
    assert store.images.shape == (2, 64, 64, 3) and store.skipped == ()
    assert abs(store.images.astype(int) - photo).max() <= 12


def test_a_run_among_the_images_is_left_out_and_costs_no_packing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tree(tmp_path / "set", class_tree())
    before = load_data(folder)
    write_tree(folder / "runs/first", {MARKER: b"{}", "figures/1.png": encode(noise(77))})
    monkeypatch.setattr(sources, "pack_files", lambda *args: pytest.fail("packed again"))
    assert load_data(folder).fingerprint == before.fingerprint
    assert overview(folder)["runs"] == ["runs/first"]


def test_a_run_in_an_archive_is_left_out(tmp_path: Path) -> None:
    run = {f"runs/first/{MARKER}": b"{}", "runs/first/figures/1.png": encode(noise(77))}
    for name, files in (("before.tar", run | class_tree()), ("after.tar", class_tree() | run)):
        (tmp_path / name).write_bytes(tar_bytes(files))
        store = load_data(tmp_path / name)
        assert len(store) == 6 and store.skipped == (("runs/first", "holds a run of simclr-engine"),)


def test_plots_that_this_package_drew_are_no_images_of_the_data(tmp_path: Path) -> None:
    drawn = to_png(new_figure()[0])
    store = load_data(write_tree(tmp_path, class_tree() | {"plots/a.png": drawn}))
    assert len(store) == 6 and store.image_size == 16
    assert store.skipped == (("plots/a.png", "a picture that simclr-engine drew"),)


@pytest.mark.parametrize("name", ["photo.NEF", "drawing.svg", "inner.zip", "inner.tar.gz", "shot.psd"])
@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_pictures_that_are_not_read_are_named(tmp_path: Path, name: str, kind: str) -> None:
    files = class_tree() | {name: b"II*\0 something"}
    path = write_tree(tmp_path / "folder", files)
    if kind != "folder":
        path = tmp_path / f"set.{kind}"
        path.write_bytes(tar_bytes(files) if kind == "tar" else zip_bytes(files))
    ((left_out, reason),) = load_data(path).skipped
    assert left_out == name and "not" in reason


def test_a_shard_of_a_webdataset_has_the_labels_in_it(tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    for n in range(12):
        files |= {f"{n:03}.png": encode(noise(n)), f"{n:03}.cls": b"%d\n" % (n % 11), f"{n:03}.json": b"{}"}
    (tmp_path / "shard.tar").write_bytes(tar_bytes(files))
    folder = write_tree(tmp_path / "folder", files)
    for path in (tmp_path / "shard.tar", folder):
        store = load_data(path)
        assert store.labels is not None and store.labels.tolist() == [n % 11 for n in range(12)]
        assert store.class_names == tuple(str(n) for n in range(11))


@pytest.mark.parametrize(
    ("array", "shape"),
    [
        (np.stack([noise(n) for n in range(4)]), (4, 16, 16, 3)),
        (np.stack([noise(n, 20, 32) for n in range(4)]), (4, 20, 20, 3)),
        (np.stack([noise(n)[..., 0] for n in range(4)]), (4, 16, 16, 3)),
    ],
    ids=["rgb", "not square", "gray"],
)
def test_an_array_is_taken_as_data(array: np.ndarray, shape: tuple[int, ...]) -> None:
    store = load_data(array)
    assert store.images.shape == shape and store.labels is None
    labelled = load_data((array, [7, 7, 30, 7]))
    assert labelled.labels is not None and labelled.labels.tolist() == [0, 0, 1, 0]
    assert labelled.class_names == ("7", "30") and len(load_data(array, size=8)) == 4
    train, test = load_splits((np.repeat(array, 3, axis=0), np.arange(12) % 2))
    assert len(train) + len(test) == 12 and "copies" in test.notes[0]


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 3, 16, 16), dtype=np.uint8),
        np.zeros((4, 16, 16, 3), dtype=np.float32),
        np.zeros((0, 16, 16, 3), dtype=np.uint8),
        (np.zeros((4, 16, 16, 3), dtype=np.uint8), np.zeros(3, dtype=np.int64)),
        (np.zeros((4, 16, 16, 3), dtype=np.uint8), np.zeros(4)),
        [1, 2],
    ],
    ids=["channels first", "floats", "empty", "too few labels", "labels of floats", "no array"],
)
def test_an_array_that_is_no_images_says_what_it_should_be(bad: object) -> None:
    with pytest.raises(DataError, match="in an array must be") as caught:
        load_data(bad)  # type: ignore[arg-type]  # that is the test
    assert caught.value.saw is not None and caught.value.fix is not None


def test_nothing_to_hold_out_is_a_data_error(tmp_path: Path) -> None:
    write_tree(tmp_path, class_tree(each=1))
    with pytest.raises(DataError, match="too few images to hold any out"):
        load_splits(tmp_path)


def test_an_absent_split_names_those_there_are(tmp_path: Path) -> None:
    write_tree(tmp_path, TREE)
    with pytest.raises(DataError, match="no split 'unlabeled'") as caught:
        load_data(tmp_path, split="unlabeled")
    assert caught.value.saw == "splits train, test"
    with pytest.raises(DataError, match="no split 'all'"):
        load_data(tmp_path, split="all")
    write_tree(tmp_path / "only", class_tree(prefix="test/"))
    for load in (load_data, load_splits):
        with pytest.raises(DataError, match="no split 'train'"):
            load(tmp_path / "only")


@pytest.mark.parametrize(("name", "nearest"), [("cifra10", "cifar10"), ("CIFAR100", "cifar100"), ("glyph", "glyphs")])
def test_an_unknown_name_is_a_usage_error_with_the_nearest_one(name: str, nearest: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean {nearest}") as caught:
        load_data(name)
    assert all(known in str(caught.value.fix) for known in source_names())


@pytest.mark.parametrize(
    "path", ["./nothing", "no/such/folder", "missing.tar.xz", "~/no-such-folder-here", Path("nothing")]
)
def test_a_path_to_nothing_is_a_data_error(path: str | Path) -> None:
    with pytest.raises(DataError, match="no such folder or archive"):
        load_data(path)


def test_an_empty_name_does_not_mean_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_tree(tmp_path, TREE))
    with pytest.raises(UsageError, match="no data set named ''"):
        load_data("")


def test_a_file_that_is_no_archive_names_the_kinds(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(encode(noise(0)))
    with pytest.raises(DataError, match="neither a folder nor an archive") as caught:
        load_data(tmp_path / "x.png")
    assert ".tar.zst" in str(caught.value.fix)


def test_a_name_wins_over_a_folder_and_dot_slash_means_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tree(tmp_path / "digits", class_tree(each=1))
    assert len(load_data("digits")) > 1000
    assert len(load_data("./digits")) == 2


def test_foreign_names_cannot_forge_lines_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path, {"a\n\x1b[31merror: forged.png": b"x", "b.png": encode(noise(0))})
    store = load_data(tmp_path)
    assert len(store.skipped) == 1
    said = capsys.readouterr().err
    assert "\x1b" not in said and said.count("\n") == 1


def test_the_real_images_are_all_there(shared_data: Path) -> None:
    train, test = load_splits(shared_data / "cifar10-jpeg-mini.tar.xz")
    assert train.images.shape == (2000, 32, 32, 3) and test.images.shape == (1000, 32, 32, 3)
    assert train.labels is not None and np.bincount(train.labels).tolist() == [200] * 10
    assert test.labels is not None and np.bincount(test.labels).tolist() == [100] * 10
    assert train.class_names[0] == "airplane" and train.class_names[9] == "truck" and train.skipped == ()
    assert 100 < train.images.mean() < 140 and train.images.std() > 50


def test_a_size_is_chosen_up_to_the_largest_that_suits_a_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tree(tmp_path, {f"{n}.png": encode(noise(n, 160, 160)) for n in range(3)})
    assert load_data(tmp_path, largest=128).image_size == 128
    assert "taken at 128 × 128, which suits this device (--set data.size=160" in capsys.readouterr().err
    assert load_data(tmp_path).image_size == 160 and load_data(tmp_path, size=144, largest=128).image_size == 144
    assert capsys.readouterr().err == "" and load_data(tmp_path, largest=128).image_size == 128


def test_folders_that_lie_too_deep_are_named(tmp_path: Path) -> None:
    deep = "/".join(["d"] * MAX_DEPTH)
    write_tree(tmp_path / "set", {f"{deep}/1.png": encode(noise(1)), f"{deep}/d/2.png": encode(noise(2))})
    store = load_data(tmp_path / "set")
    assert len(store) == 1 and store.skipped == ((f"{deep}/d", "lies more than 256 folders deep"),)
