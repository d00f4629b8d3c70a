"""The packed copy: found again, verified, repaired, shared between processes, and never half there."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fixtures.image_files import class_tree, encode, noise, tar_bytes, write_tree
from simclr_engine import locks
from simclr_engine.data import cache, load_data, load_splits, pack, sources
from simclr_engine.data import folder as folder_module
from simclr_engine.data.folder import FolderSource
from simclr_engine.data.pack import SplitWriter
from simclr_engine.data.sources import overview
from simclr_engine.data.store import ShardedImages
from simclr_engine.errors import DataError, PlatformError
from simclr_engine.files import Folder
from simclr_engine.locks import lock

FILES = class_tree(("ant", "bee"), each=6)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("SIMCLR_ENGINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (tmp_path / "set.tar").write_bytes(tar_bytes(FILES))
    return tmp_path / "set.tar"


def entries(root: Path) -> list[Path]:
    return sorted((root / "data").iterdir())


def forbid_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("packed again")

    monkeypatch.setattr(sources, "pack_files", refuse)
    monkeypatch.setattr(sources, "pack_arrays", refuse)
    monkeypatch.setattr(sources, "survey", refuse)


def test_the_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache.cache_root() == tmp_path / "cache"
    monkeypatch.delenv("SIMCLR_ENGINE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache.cache_root() == Path("/x/simclr_engine")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert cache.cache_root() == Path("/h/.cache/simclr_engine")


def test_a_packed_source_is_read_without_looking_at_its_images_again(
    archive: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_data(archive)
    forbid_packing(monkeypatch)
    again = load_data(archive)
    np.testing.assert_array_equal(again.images, first.images)
    np.testing.assert_array_equal(again.labels, first.labels)
    assert (again.fingerprint, again.class_names) == (first.fingerprint, first.class_names)
    assert len(load_data(archive, size=16)) == 12  # the images' own size, asked for by number, is the same copy
    (entry,) = entries(root)
    assert {file.name for file in entry.iterdir()} == {"images-all.npy", "labels-all.npy", "meta.json"}
    meta = json.loads((entry / "meta.json").read_text())
    assert meta["image_size"] == 16 and meta["class_names"] == ["ant", "bee"] and meta["kind"] == "archive"
    assert meta["splits"]["all"]["fingerprint"] == first.fingerprint and meta["skipped"] == []


def test_a_copied_archive_is_the_same_entry_a_changed_one_another(
    archive: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_data(archive)
    shutil.copy(archive, tmp_path / "copy.tar")
    with monkeypatch.context() as patch:
        forbid_packing(patch)
        assert load_data(tmp_path / "copy.tar").name == str(tmp_path / "copy.tar")
    archive.write_bytes(tar_bytes(FILES | {"ant/9.png": encode(noise(9))}))
    assert len(load_data(archive)) == 13
    assert len(entries(root)) == 2


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as old enough to be remembered as soon as they are written."""
    monkeypatch.setattr(cache, "_CLOCK_NS", 0)


def test_an_archive_is_hashed_once_until_it_changes(
    archive: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []
    real = cache.remember_digest
    monkeypatch.setattr(cache, "remember_digest", lambda *args, **times: hashed.append(1) or real(*args, **times))
    for _ in range(3):
        load_data(archive)
    assert len(hashed) == 1
    os.utime(archive, ns=(1, 1))
    load_data(archive)
    assert len(hashed) == 2


def bitmaps(folder: Path, seed: int) -> Path:
    """Four BMPs: other seeds give other pixels under the same names, sizes and times."""
    write_tree(folder, {f"{n}.bmp": encode(noise(seed + n), "BMP") for n in range(4)})
    for file in folder.iterdir():
        os.utime(file, ns=(10**18, 10**18))
    return folder


def bitmap_tar(path: Path, seed: int) -> Path:
    """The same in a tar, whose members are of 1970; overwritten in place where it is there already."""
    path.write_bytes(tar_bytes({f"{n}.bmp": encode(noise(seed + n), "BMP") for n in range(4)}))
    os.utime(path, ns=(10**18, 10**18))
    return path


def holds(source: Path, seed: int, size: int | None = None) -> bool:
    return np.array_equal(load_data(source, size=size).images, [noise(seed + n) for n in range(4)])


def test_folders_with_equal_names_sizes_and_times_keep_their_own_pixels(tmp_path: Path, settled: None) -> None:
    assert holds(bitmaps(tmp_path / "a", 0), 0)
    assert holds(bitmaps(tmp_path / "b", 50), 50)
    assert holds(tmp_path / "a", 0) and holds(tmp_path / "b", 50)


@pytest.mark.parametrize("make", [bitmaps, bitmap_tar], ids=["folder", "tar"])
def test_other_bytes_of_equal_size_and_time_in_place_are_noticed(
    tmp_path: Path, settled: None, make: Callable[[Path, int], Path]
) -> None:
    assert holds(make(tmp_path / "set.tar", 0), 0)
    assert holds(make(tmp_path / "set.tar", 50), 50)
    assert holds(tmp_path / "set.tar", 50, size=16)


@pytest.mark.parametrize("make", [bitmaps, bitmap_tar], ids=["folder", "tar"])
@pytest.mark.parametrize(("seconds_ago", "noticed"), [(0, True), (3500, True), (3700, False)])
def test_times_that_are_not_clearly_past_are_not_trusted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path, int], Path],
    seconds_ago: int,
    noticed: bool,
) -> None:
    """The file system's clock stands still, so that the second writing leaves every time as it was."""
    assert cache._CLOCK_NS >= 2 * 10**9  # an hour here, so that a busy machine cannot be too slow for it
    monkeypatch.setattr(cache, "_CLOCK_NS", 3600 * 10**9)
    changed_ns = time.time_ns() - seconds_ago * 10**9
    monkeypatch.setattr(cache, "file_state", lambda status: (1, 1, status.st_size, changed_ns, 10**18))
    assert holds(make(tmp_path / "set.tar", 0), 0)
    assert holds(make(tmp_path / "set.tar", 50), 50) == noticed


def test_a_copy_of_a_folder_elsewhere_uses_the_packed_one(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tree(tmp_path / "set", FILES)
    first = load_data(folder)
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    forbid_packing(monkeypatch)
    assert load_data(tmp_path / "copy").fingerprint == first.fingerprint
    assert len(entries(root)) == 1
    (tmp_path / "copy/bee").rename(tmp_path / "copy/cow")  # the same images in the same order, of another class
    with pytest.raises(AssertionError, match="packed again"):
        load_data(tmp_path / "copy")


SECOND_START = """
import sys
from pathlib import Path
from simclr_engine import locks
from simclr_engine.data import cache, load_data
cache._CLOCK_NS = 0
opened, source = [], sys.argv[1]
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
for _ in range(2):
    opened.clear()
    load_data(Path(source))
    print(sum(path.startswith(source) for path in opened), sum("images-all" in path for path in opened))
"""


@pytest.mark.parametrize("kind", ["folder", "tar", "without endings"])
def test_the_second_start_opens_no_picture(tmp_path: Path, archive: Path, kind: str) -> None:
    files = {name.removesuffix(".png"): data for name, data in FILES.items()} | {"notes.txt": b"text"}
    source = archive if kind == "tar" else write_tree(tmp_path / "set", files if kind == "without endings" else FILES)
    command = [sys.executable, "-c", SECOND_START, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    first, second = (tuple(map(int, line.split())) for line in done.stdout.splitlines())
    # Each picture once; the archive to hash and to read it; each file without an ending to look at it, too.
    assert first[0] == {"folder": 12, "tar": 2, "without endings": 2 * 12 + 1}[kind]
    assert second == (0, 1)


def test_an_unchanged_folder_is_recognised_in_microseconds_per_file(tmp_path: Path, settled: None) -> None:
    """60,000 files in well under a second of processor time."""
    count = 3000
    write_tree(tmp_path / "set", {f"{n % 10}/{n}.png": b"" for n in range(count)})
    content, took = FolderSource(tmp_path / "set", "set").content(), []
    for _ in range(5):
        began = time.process_time()
        assert FolderSource(tmp_path / "set", "set").content() == content
        took.append(time.process_time() - began)
    assert min(took) / count < 1 / 60_000


def test_a_copy_packed_by_name_and_time_is_packed_anew_once_and_said(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, archive = bitmaps(tmp_path / "set", 0), bitmap_tar(tmp_path / "set.tar", 0)
    (root / "data").mkdir(parents=True)
    # Where the version before put the two: its keys, and pixels of another folder under them.
    keys = {folder: "e6d95b085e6117262bce7361d080499b", archive: "49864389fe844ee7c5d76d3a411fd282"}
    bitmaps(tmp_path / "other", 50)
    load_data(tmp_path / "other")
    (other,) = entries(root)
    for source, key in keys.items():
        shutil.copytree(other, root / "data" / key)
        capsys.readouterr()
        assert holds(source, 0)
        said = capsys.readouterr().err
        assert f"the packed copy of {source} was made by an earlier version" in said and said.count("\n") == 1
        assert str(root / "data" / key) in said
        assert holds(source, 0) and capsys.readouterr().err == ""
    assert set(keys.values()) < {entry.name for entry in entries(root)}  # left for the user to delete


@pytest.mark.parametrize("kept", [True, False], ids=["read once", "read twice"])
@pytest.mark.parametrize("make", [bitmaps, bitmap_tar], ids=["folder", "tar"])
def test_a_source_that_changes_while_it_is_packed_is_refused(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path, int], Path], kept: bool
) -> None:
    if not kept:
        monkeypatch.setattr(pack, "KEEP_BYTES", 0)
        monkeypatch.setattr(folder_module, "KEEP_BYTES", 0)
    source, real = make(tmp_path / "set.tar", 0), sources.pack_files

    def after_a_change(*args: Any, **kwargs: Any) -> object:
        make(source, 50)
        return real(*args, **kwargs)

    for size in (None, 8):
        make(source, 0)
        with monkeypatch.context() as patch, pytest.raises(DataError, match="was changed while it was read"):
            patch.setattr(sources, "pack_files", after_a_change)
            load_data(source, size=size)
        assert entries(root) == []
    assert holds(source, 50)


def test_the_size_of_a_source_that_changes_meanwhile_is_not_remembered(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, real = bitmaps(tmp_path / "set", 0), sources.survey
    load_data(source, size=16)

    def before_a_change(*args: Any, **kwargs: Any) -> object:
        surveyed = real(*args, **kwargs)
        bitmaps(source, 50)
        return surveyed

    with monkeypatch.context() as patch, pytest.raises(DataError, match="was changed while it was read"):
        patch.setattr(sources, "survey", before_a_change)
        load_data(source)
    assert list((root / "memory").glob("size-*")) == []


def test_a_file_that_could_not_be_read_is_skipped_and_tried_again(
    tmp_path: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = write_tree(tmp_path / "set", FILES), os.open

    def broken(path: Any, *args: Any, **kwargs: Any) -> Any:
        if str(path).endswith("3.png"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", broken)
        store = load_data(folder)
    assert len(store) == 10
    assert store.skipped == tuple((f"{name}/3.png", "cannot be opened (Permission denied)") for name in ("ant", "bee"))
    assert len(load_data(folder)) == 12


def test_files_longer_than_one_read_are_hashed_and_packed_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "_READ_BYTES", 100)
    assert holds(bitmaps(tmp_path / "a", 0), 0)
    last_row_changed = noise(0)
    last_row_changed[0] ^= 255  # a BMP's rows are stored from the last to the first
    (tmp_path / "a/0.bmp").write_bytes(encode(last_row_changed, "BMP"))
    np.testing.assert_array_equal(load_data(tmp_path / "a").images[0], last_row_changed)


def test_what_packing_did_not_write_is_never_removed(archive: Path, root: Path) -> None:
    load_data(archive)
    (entry,) = entries(root)
    mine = write_tree(root / "data/.partial-mine", {"images-all.npy": b"x", "thesis.txt": b"x", "lock": b""})
    (entry / "meta.json").unlink()
    (entry / "thesis.txt").write_text("x")
    with pytest.raises(PlatformError, match="its folder holds other files") as caught:
        load_data(archive)
    assert caught.value.saw == entry / "thesis.txt" and (entry / "images-all.npy").exists()
    assert [file.name for file in mine.iterdir()] == ["thesis.txt"]
    (entry / "thesis.txt").rename(root / "thesis.txt")
    assert len(load_data(archive)) == 12


def test_a_folder_is_packed_again_when_a_file_is_added_removed_or_changed(tmp_path: Path, root: Path) -> None:
    folder = write_tree(tmp_path / "set", FILES)
    prints = {load_data(folder).fingerprint}
    (folder / "ant/0.png").write_bytes(encode(noise(999)))
    prints.add(load_data(folder).fingerprint)
    (folder / "ant/1.png").unlink()
    prints.add(load_data(folder).fingerprint)
    write_tree(folder, {"bee/77.png": encode(noise(7))})
    prints.add(load_data(folder).fingerprint)
    assert len(prints) == 4 == len(entries(root))


def flip_last_pixel(entry: Path) -> None:
    images = bytearray((entry / "images-all.npy").read_bytes())
    images[-1] ^= 1
    (entry / "images-all.npy").write_bytes(images)


class Trap:
    """Unpickling it raises an error that nothing catches."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemError('a pickle was executed')",)


PICKLE = np.array([Trap()], dtype=object)
DAMAGES: dict[str, Callable[[Path], object]] = {
    "nothing left": lambda entry: [file.unlink() for file in entry.iterdir()],
    "images cut": lambda entry: os.truncate(entry / "images-all.npy", 4000),
    "a pixel changed": flip_last_pixel,
    "images pickled": lambda entry: np.save(entry / "images-all.npy", PICKLE, allow_pickle=True),
    "labels pickled": lambda entry: np.save(entry / "labels-all.npy", PICKLE, allow_pickle=True),
    "labels of another type": lambda entry: np.save(entry / "labels-all.npy", np.zeros(12, dtype=np.float32)),
    "labels swapped": lambda entry: np.save(entry / "labels-all.npy", np.load(entry / "labels-all.npy")[::-1]),
    "labels missing": lambda entry: (entry / "labels-all.npy").unlink(),
    "meta cut": lambda entry: os.truncate(entry / "meta.json", 50),
    "meta of another shape": lambda entry: (entry / "meta.json").write_text(
        '{"splits": [1], "skipped": 3, "class_names": 4}'
    ),
    "meta no text": lambda entry: (entry / "meta.json").write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_copy_is_detected_said_once_and_replaced(
    archive: Path, root: Path, damage: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = load_data(archive)
    (entry,) = entries(root)
    capsys.readouterr()
    DAMAGES[damage](entry)
    repaired = load_data(archive)
    np.testing.assert_array_equal(repaired.images, good.images)
    np.testing.assert_array_equal(repaired.labels, good.labels)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "is damaged" in said and "packing it again" in said
    assert entries(root) == [entry]  # nothing half packed beside it
    forbid_packing(monkeypatch)
    assert load_data(archive).fingerprint == good.fingerprint and capsys.readouterr().err == ""


def test_large_images_are_mapped_and_checked_if_the_file_was_touched(
    archive: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = load_data(archive)
    assert isinstance(small.images, np.ndarray)
    monkeypatch.setattr(cache, "MAPPED_BYTES", 1000)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "fingerprint", lambda *_: pytest.fail("read every pixel"))
        large = load_data(archive)
    assert isinstance(large.images, ShardedImages)
    np.testing.assert_array_equal(large.images, small.images)
    (entry,) = entries(root)
    os.utime(entry / "images-all.npy", ns=(5, 5))  # copied without its time: the pixels decide
    assert load_data(archive).fingerprint == small.fingerprint and capsys.readouterr().err == ""
    flip_last_pixel(entry)
    assert load_data(archive).fingerprint == small.fingerprint
    assert "fingerprint of split all differs" in capsys.readouterr().err
    os.truncate(entry / "images-all.npy", 2000)
    np.testing.assert_array_equal(load_data(archive).images, small.images)


SCRIPT = """
import sys
from simclr_engine.data import load_splits
train, test = load_splits(sys.argv[1])
print(train.fingerprint, test.fingerprint, len(train), len(test))
"""


def test_processes_that_pack_the_same_source_at_once_all_succeed(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "big.tar"
    path.write_bytes(tar_bytes(class_tree(("ant", "bee"), each=300)))
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=600) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], outputs
    assert len({out for out, _ in outputs}) == 1 and outputs[0][0].endswith(" 480 120\n")
    assert [err for _, err in outputs] == ["", "", ""]
    assert len(entries(root)) == 1


def test_the_process_that_finishes_second_keeps_the_first_ones_entry(
    archive: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sources.pack_files
    inner: list[object] = []

    def packed_twice(*args: object, **kwargs: object) -> object:
        if not inner:
            inner.append(None)
            inner.append(load_data(archive))  # another process, in the middle of our packing
            os.utime(entries_whole(root)[0] / "meta.json", ns=(7, 7))
        return real(*args, **kwargs)

    monkeypatch.setattr(sources, "pack_files", packed_twice)
    assert len(load_data(archive)) == 12
    (entry,) = entries(root)
    assert (entry / "meta.json").stat().st_mtime_ns == 7


def entries_whole(root: Path) -> list[Path]:
    return [entry for entry in entries(root) if not entry.name.startswith(".")]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("stage", ["decode", "labels", "meta", "document"])
def test_what_keeps_images_from_being_packed_is_said_and_leaves_nothing_behind(
    archive: Path, root: Path, monkeypatch: pytest.MonkeyPatch, stage: str, number: int
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "x")

    with monkeypatch.context() as patch:
        if stage == "decode":
            patch.setattr(SplitWriter, "put", full)
        elif stage == "labels":
            patch.setattr(np, "save", full)
        elif stage == "meta":
            patch.setattr(cache, "write_meta", full)
        else:
            patch.setattr(Folder, "_create", full)
        with pytest.raises(PlatformError, match="the cache cannot be used") as caught:
            load_data(archive)
    assert os.strerror(number) in str(caught.value.saw) and "SIMCLR_ENGINE_CACHE" in str(caught.value.fix)
    assert ("free space" in str(caught.value.fix)) == (number == errno.ENOSPC)
    assert entries(root) == []
    assert len(load_data(archive)) == 12


def test_too_little_space_is_refused_before_the_work(
    archive: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 9215))
    with pytest.raises(PlatformError) as caught:
        load_data(archive)
    assert "9,216 bytes are needed, 9,215 are free" in str(caught.value.saw)
    assert entries(root) == []


def test_a_cache_that_cannot_be_written_is_named(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("SIMCLR_ENGINE_CACHE", str(tmp_path / "file"))
    assert cache.read_meta(cache.entry_path("x", 8)) is None  # nothing is there, so nothing is damaged
    assert cache.recall("size", {}) is None and capsys.readouterr().err == ""
    with pytest.raises(PlatformError, match="the cache cannot be used") as caught:
        load_data(archive)
    assert str(tmp_path / "file") in str(caught.value.saw) and caught.value.exit_code == 3


def test_a_copy_that_may_not_be_read_is_not_taken_for_a_damaged_one(
    archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def closed(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    load_data(archive)
    monkeypatch.setattr(cache, "read_json", closed)
    forbid_packing(monkeypatch)
    with pytest.raises(PlatformError, match="the cache cannot be used") as caught:
        cache.read_meta(cache.entry_path("x", 8))
    assert type(caught.value) is PlatformError and "free space" not in str(caught.value.fix)


def test_a_cache_that_vanishes_while_it_is_used_is_said(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "publish", lambda *_: None)
    with pytest.raises(PlatformError, match="removed from the cache while they were used"):
        load_data(archive)


def test_an_interrupted_packing_leaves_nothing_behind(
    archive: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SplitWriter, "put", interrupt)
        load_data(archive)
    assert entries(root) == []


def test_what_a_killed_packing_left_is_removed_whatever_its_age(archive: Path, root: Path) -> None:
    left, held, earlier = (root / "data" / f".partial-{name}" for name in ("left", "held", "earlier"))
    for folder in (left, held):
        write_tree(folder, {"images-all.npy": b"x", "lock": b""})
    write_tree(earlier, {"images-all.npy": b"x"})  # of a version without locks, which may still be packing
    for folder in (held, earlier):
        os.utime(folder, (1, 1))
    os.utime(left, ns=(10**18 * 4, 10**18 * 4))  # from the future, as after a clock was set back
    with (held / "lock").open("r+b") as file:
        assert lock(file, held / "lock")
        load_data(archive)
        assert not left.exists() and (held / "images-all.npy").exists() and (earlier / "images-all.npy").exists()
    (entry,) = (path for path in entries(root) if not path.name.startswith("."))
    assert not (entry / "lock").exists()
    (entry / "meta.json").write_text("{")
    load_data(archive)
    assert not held.exists()


def test_a_packing_that_is_taken_for_a_killed_one_begins_again(
    archive: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, rivals = tempfile.mkdtemp, ["before its lock file", "before its lock"]

    def swept(*, prefix: str, dir: Path) -> str:
        folder = Path(made(prefix=prefix, dir=dir))
        if rivals:
            if rivals.pop(0) == "before its lock file":
                locks.sweep(dir, prefix, re.compile("x"))
            else:
                monkeypatch.setattr(locks, "fcntl", Rival(folder))
        return str(folder)

    class Rival:
        LOCK_EX = LOCK_NB = 0

        def __init__(self, folder: Path) -> None:
            self.folder = folder

        def flock(self, *_: object) -> None:
            monkeypatch.setattr(locks, "fcntl", fcntl)
            shutil.rmtree(self.folder)

    monkeypatch.setattr(tempfile, "mkdtemp", swept)
    assert len(load_data(archive)) == 12 and rivals == []
    assert len(entries(root)) == 1


def test_without_locks_nothing_of_another_process_is_removed(
    archive: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = write_tree(root / "data/.partial-left", {"images-all.npy": b"x", "lock": b""})
    monkeypatch.setattr(locks, "fcntl", None)
    load_data(archive)
    assert (left / "images-all.npy").exists()


def test_notes_in_the_cache_that_are_nonsense_are_found_out_again(archive: Path, root: Path, settled: None) -> None:
    good = load_data(archive)
    notes = list((root / "memory").iterdir())
    assert len(notes) == 2  # the archive's hash and the images' size
    for text in ("{", '{"about": 1, "value": 2}', "[]", ""):
        for note in notes:
            note.write_text(text)
        assert load_data(archive).fingerprint == good.fingerprint
    for note in notes:
        for value in ("../../x", -5, True, 10**12, None, [1]):
            note.write_text(json.dumps({"about": json.loads(note.read_text())["about"], "value": value}))
            assert load_data(archive).fingerprint == good.fingerprint
    for note in notes:  # about something else
        value = json.loads(note.read_text())["value"]
        note.write_text(json.dumps({"about": {}, "value": 48 if value == 16 else value | {"digest": "0" * 64}}))
        assert load_data(archive).fingerprint == good.fingerprint
    assert len(entries(root)) == 1


@pytest.mark.parametrize(
    "change",
    [
        *({"images": n} for n in (13, -1, 12.0, True)),
        *({"bytes": n} for n in ([1, 2], [1.5], 5)),
        *({"shard_images": n} for n in (0, 3)),
        {"mtime_ns": []},
    ],
)
def test_a_description_of_files_that_cannot_be_is_damage(
    archive: Path, root: Path, change: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    good = load_data(archive)
    (entry,) = entries(root)
    meta = json.loads((entry / "meta.json").read_text())
    meta["splits"]["all"] |= change
    (entry / "meta.json").write_text(json.dumps(meta))
    assert load_data(archive).fingerprint == good.fingerprint
    assert "is damaged" in capsys.readouterr().err


def test_no_images_at_all_cost_no_broken_entry(tmp_path: Path, root: Path) -> None:
    folder = write_tree(tmp_path / "set", {"a.png": b"x"})
    with pytest.raises(DataError):
        load_splits(folder, size=32)
    assert entries(root) == []


@pytest.mark.parametrize("kind", ["folder", "tar"])
@pytest.mark.parametrize("change", ["nothing", "classes", "labels", "a split"])
def test_a_copy_that_earlier_rules_arranged_is_used_where_the_rules_agree(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, archive: Path, kind: str, change: str
) -> None:
    source = archive if kind == "tar" else write_tree(tmp_path / "set", FILES)
    first = load_data(source)
    (entry,) = entries(root)
    meta = json.loads((entry / "meta.json").read_text())
    del meta["tree"], meta["arranged"], meta["seal"]  # as versions wrote it that had other rules
    if change == "classes":
        meta["class_names"] = meta["class_names"][::-1]
    if change == "labels":
        np.save(entry / "labels-all.npy", np.load(entry / "labels-all.npy")[::-1])
    if change == "a split":
        meta["splits"]["test"] = meta["splits"]["all"]
    (entry / "meta.json").write_text(json.dumps(meta))
    if change == "nothing":
        monkeypatch.setattr(sources, "pack_files", lambda *args: pytest.fail("packed again"))
    for _ in range(2):
        again = load_data(source)
        assert (again.fingerprint, again.class_names) == (first.fingerprint, first.class_names)
    assert json.loads((entry / "meta.json").read_text())["arranged"] == 1
    assert overview(source)["tree"] == [["all", name, name, 6] for name in ("ant", "bee")]
