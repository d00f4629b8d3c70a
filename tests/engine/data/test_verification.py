"""Large packed images are compared with their hashes while they are used, and nothing is reported before."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fixtures.disturbed_runs import RECIPE, narrow
from fixtures.image_files import class_tree, tar_bytes
from simclr_engine.data import cache, load_data, pack, sources, verification
from simclr_engine.data.store import ShardedImages
from simclr_engine.errors import DataError
from simclr_engine.pretraining import pretrain
from simclr_engine.sealing import AlteredError

FILES = ("images-all.npy", "images-all.1.npy", "images-all.2.npy", "labels-all.npy")


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own; images stay in their files, four in each."""
    monkeypatch.setenv("SIMCLR_ENGINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "MAPPED_BYTES", 1000)
    monkeypatch.setattr(pack, "SHARD_BYTES", 4 * 16 * 16 * 3)
    return tmp_path / "cache"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (tmp_path / "set.tar").write_bytes(tar_bytes(class_tree(("ant", "bee"), each=6)))
    return tmp_path / "set.tar"


def entry(root: Path) -> Path:
    (found,) = (root / "data").iterdir()
    return found


def damage(file: Path) -> None:
    """One bit, size and times as they were."""
    times, raw = file.stat(), bytearray(file.read_bytes())
    raw[-4] ^= 1
    file.write_bytes(raw)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_next_start_packs_again(
    archive: Path, root: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = load_data(archive)
    images = good.images[:]
    damage(entry(root) / name)
    store = load_data(archive, verify=False)
    assert isinstance(store.images, ShardedImages)
    with pytest.raises(AlteredError) as caught:
        store.verify()
    assert str(entry(root) / name) in str(caught.value.saw) and "packed again" in str(caught.value.fix)
    assert capsys.readouterr().err == ""
    again = load_data(archive, verify=False)
    assert "is damaged" in capsys.readouterr().err
    again.verify()
    np.testing.assert_array_equal(again.images, images)
    np.testing.assert_array_equal(again.labels, good.labels)


def test_images_are_usable_while_they_are_verified(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, real, may_end = load_data(archive), verification.running_hashes, threading.Event()

    def slow(*args: Any) -> Iterator[str]:
        may_end.wait()
        yield from real(*args)

    monkeypatch.setattr(cache, "running_hashes", slow)
    store = load_data(archive, verify=False)
    store.verify(wait=False)
    np.testing.assert_array_equal(store.images[3:9], good.images[3:9])
    assert [thread.name for thread in threading.enumerate()].count("verification") == 1
    may_end.set()
    store.verify()
    assert "verification" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("what", ["some of them", "features"])
def test_nothing_that_is_kept_comes_from_damaged_images(archive: Path, root: Path, what: str) -> None:
    load_data(archive)
    damage(entry(root) / FILES[2])
    store = load_data(archive, verify=False)
    with pytest.raises(AlteredError, match=r"images-all\.2\.npy"):
        if what == "features":
            cache.cached_features("key", store, lambda _: np.ones((12, 2), np.float32))
        else:
            store.limit(4)
    assert not (root / "features").exists()


def test_a_run_on_damaged_images_ends_before_it_has_a_result(archive: Path, root: Path, tmp_path: Path) -> None:
    load_data(archive)
    damage(entry(root) / FILES[1])
    recipe = RECIPE.override({"train.batch_size": 6, "train.epochs": 1})
    with narrow(), pytest.raises(DataError, match=r"images-all\.1\.npy"):
        pretrain(recipe, archive, tmp_path / "run", device="cpu", fused=False, quiet=True)
    assert not (tmp_path / "run" / "encoder.safetensors").exists()
    assert not json.loads((tmp_path / "run" / "environment.json").read_text())["finished"]


def test_a_copy_without_hashes_of_its_files_is_verified_as_a_whole(archive: Path, root: Path) -> None:
    """As earlier versions packed: neither hashes nor a seal."""
    load_data(archive)
    meta = json.loads((entry(root) / "meta.json").read_text())
    del meta["seal"], meta["splits"]["all"]["hashes"]
    (entry(root) / "meta.json").write_text(json.dumps(meta))
    load_data(archive).verify()
    damage(entry(root) / FILES[1])
    with pytest.raises(AlteredError) as caught:
        load_data(archive, verify=False).verify()
    assert str(caught.value.saw).startswith(f"{entry(root)}: ")


def test_a_disk_that_cannot_be_read_verifies_nothing(archive: Path, root: Path) -> None:
    load_data(archive)
    store = load_data(archive, verify=False)
    (entry(root) / FILES[1]).unlink()
    with pytest.raises(AlteredError, match=r"images-all\.1\.npy: No such file"):
        store.verify()


def test_packing_verifies_every_split(archive: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources.pack_source(archive)
    damage(entry(root) / FILES[0])
    sources.pack_source(archive)
    assert "images-all.npy" in capsys.readouterr().err
    load_data(archive)
    assert capsys.readouterr().err == ""
