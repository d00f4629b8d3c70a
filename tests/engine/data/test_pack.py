"""Packing: rows in any order, files of a bounded size, and little memory on the way."""

from __future__ import annotations

import os
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fixtures.image_files import class_tree, encode, noise, tar_bytes
from simclr_engine.data import cache, load_data, pack, sources
from simclr_engine.data.pack import SplitWriter
from simclr_engine.data.store import ShardedImages, fingerprint


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("SIMCLR_ENGINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (tmp_path / "set.tar").write_bytes(tar_bytes(class_tree(("ant", "bee"), each=6)))
    return tmp_path / "set.tar"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_failed_write_is_an_error_and_closing_twice_is_harmless(tmp_path: Path) -> None:
    (tmp_path / "images-x.npy").symlink_to("/dev/full")
    writer = SplitWriter(tmp_path, "x", 4, 1024)
    with pytest.raises(OSError, match="No space left"):
        for row in range(4):
            writer.put(row, np.zeros((1024, 1024, 3), dtype=np.uint8))
        writer.finish(None)
    writer.close()
    writer.close()


@pytest.mark.parametrize("kept", [True, False])
def test_a_source_too_big_to_keep_between_the_two_readings_gives_the_same(
    archive: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    readings = []
    real = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *a, **k: readings.append(1) or real(*a, **k))
    if not kept:
        monkeypatch.setattr(pack, "KEEP_BYTES", 1000)
    store = load_data(archive)
    np.testing.assert_array_equal(store.images[:2], [noise(0), noise(1)])
    assert len(store) == 12 and len(readings) == (1 if kept else 2)


def test_packing_never_holds_all_decoded_images(tmp_path: Path) -> None:
    data = encode(np.full((64, 64, 3), 128, dtype=np.uint8))
    path = tmp_path / "flat.tar"
    path.write_bytes(tar_bytes({f"{n:04}.png": data for n in range(2500)}))
    decoded_bytes = 2500 * 64 * 64 * 3
    tracemalloc.start()
    pack_only = sources.packed(sources.open_source(path), None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pack_only[1].splits["all"].images == 2500
    assert peak < decoded_bytes / 2  # seen: a quarter, most of it buffers of fixed size


def test_packing_reads_only_so_far_ahead_of_the_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "KEEP_BYTES", 0)
    monkeypatch.setattr(pack, "workers", lambda: 1)
    data = encode(noise(0, 128, 128))
    path = tmp_path / "noise.tar"
    path.write_bytes(tar_bytes({f"{n:04}.png": data for n in range(1500)}))
    tracemalloc.start()
    sources.packed(sources.open_source(path), 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(data) * 1500 > 70 << 20 and peak < 35 << 20


def test_rows_written_in_any_order_with_gaps_are_closed_up(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (300, 8, 8, 3), dtype=np.uint8)
    written = np.sort(random.permutation(300)[:200])
    labels = np.arange(300)
    writer = SplitWriter(tmp_path, "x", 300, 8)
    for row in random.permutation(written):
        writer.put(int(row), images[row])
    said = writer.finish(labels)
    np.testing.assert_array_equal(np.load(tmp_path / "images-x.npy"), images[written])
    np.testing.assert_array_equal(np.load(tmp_path / "labels-x.npy"), written)
    assert said.images == 200 and said.bytes == ((tmp_path / "images-x.npy").stat().st_size,) == (128 + 200 * 192,)


@pytest.mark.parametrize("shuffled", [True, False])
@pytest.mark.parametrize("kept", [300, 257, 192, 65, 64, 1, 0])
def test_shards_are_filled_in_any_order_and_closed_up_across_their_borders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int, shuffled: bool
) -> None:
    monkeypatch.setattr(pack, "SHARD_BYTES", 64 * 192 + 191)
    random = np.random.default_rng(kept)
    images = random.integers(0, 256, (300, 8, 8, 3), dtype=np.uint8)
    written = np.sort(random.permutation(300)[:kept])
    writer = SplitWriter(tmp_path, "x", 300, 8)
    for row in random.permutation(written) if shuffled else written:
        writer.put(int(row), images[row])
    said = writer.finish(None)
    files = cache.images_paths(tmp_path, "x", len(said.bytes))
    assert sorted(tmp_path.iterdir()) == sorted(files) and said.shard_images == 64
    assert [len(np.load(file)) for file in files] == said.shard_lengths() and sum(said.shard_lengths()) == kept
    np.testing.assert_array_equal(np.concatenate([np.load(file) for file in files]), images[written])
    cache.write_meta(tmp_path, cache.Meta("x", "folder", 8, (), {"x": said}))
    meta = cache.read_meta(tmp_path)
    assert meta is not None and meta.splits == {"x": said}
    for limit in (0, 512 << 20):
        monkeypatch.setattr(cache, "MAPPED_BYTES", limit)
        store = cache.read_split(tmp_path, meta, "x", "x")
        assert isinstance(store.images, ShardedImages) == (limit == 0)
        np.testing.assert_array_equal(store.images, images[written])
        assert store.fingerprint == fingerprint(images[written], None)


def test_no_split_needs_more_open_files_than_there_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "SHARD_BYTES", 192)
    writer = SplitWriter(tmp_path, "x", 1000, 8)
    writer.close()
    assert len(list(tmp_path.iterdir())) == 250  # of four images each


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the names of open files are looked up in /proc")
def test_files_and_folder_are_on_the_disk_before_the_name_and_then_the_name(
    archive: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, str]] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def synchronised(file: int) -> None:
        done.append(("fsync", str(Path(f"/proc/self/fd/{file}").readlink())))
        fsync(file)

    monkeypatch.setattr(os, "fsync", synchronised)
    monkeypatch.setattr(os, "rename", lambda old, new: (done.append(("rename", str(new))), rename(old, new))[1])
    monkeypatch.setattr(
        os, "replace", lambda old, new, **how: (done.append(("rename", str(new))), replace(old, new, **how))[1]
    )
    monkeypatch.setattr(pack, "SHARD_BYTES", 4 * 16 * 16 * 3)
    load_data(archive)
    (entry,) = (root / "data").iterdir()
    published = done.index(("rename", str(entry)))
    before = {Path(path).name for what, path in done[:published] if what == "fsync"}
    files = {file.name for file in entry.iterdir()}
    assert len(files) == 5 and files - {"meta.json"} <= before
    assert any(name.startswith(".meta.json.") for name in before)  # under the name that it was written by
    last, folder = done[published - 1], done[published + 1]
    assert last[0] == "fsync" and Path(last[1]).name.startswith(".partial-")
    assert folder == ("fsync", str(entry.parent))
