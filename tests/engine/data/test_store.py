"""Images in memory-mapped files: the same as in memory, and no more of them in memory than is used."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from simclr_engine.bounds import MAX_SIZE
from simclr_engine.data.store import ImageStore, ShardedImages, copy_numbers
from simclr_engine.errors import DataError, UsageError

COUNT, PER_SHARD, SIDE = 70, 16, 4
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, 3), dtype=np.uint8)


def mapped(folder: Path, pixels: NDArray[np.uint8] = PIXELS) -> ShardedImages:
    parts = []
    for number, start in enumerate(range(0, len(pixels), PER_SHARD)):
        np.save(folder / f"{number}.npy", pixels[start : start + PER_SHARD])
        parts.append(np.load(folder / f"{number}.npy", mmap_mode="r"))
    return ShardedImages(parts)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ShardedImages:
    return mapped(tmp_path_factory.mktemp("shards"))


def test_they_look_like_the_array(images: ShardedImages) -> None:
    assert (len(images), images.shape, images.ndim, images.dtype, images.nbytes) == (
        *(COUNT, PIXELS.shape, 4, np.uint8),
        PIXELS.nbytes,
    )
    np.testing.assert_array_equal(np.asarray(images), PIXELS)
    np.testing.assert_array_equal(np.stack(list(images)), PIXELS)
    assert np.array(images, dtype=np.float32).dtype == np.float32


@given(start=st.integers(-80, 80), stop=st.integers(-80, 80), step=st.sampled_from([1, 2, 7, -1, -3]))
@settings(max_examples=200, deadline=None)
def test_slices_are_those_of_the_array(images: ShardedImages, start: int, stop: int, step: int) -> None:
    np.testing.assert_array_equal(images[start:stop:step], PIXELS[start:stop:step])


@given(st.lists(st.integers(-COUNT, COUNT - 1), max_size=40))
@settings(max_examples=200, deadline=None)
def test_indices_are_those_of_the_array_also_into_a_selection(images: ShardedImages, rows: list[int]) -> None:
    at = np.array(rows, dtype=np.int64)
    np.testing.assert_array_equal(images[at], PIXELS[at])
    np.testing.assert_array_equal(images[at.astype(np.int32)], PIXELS[at])
    selected = images.select(at % COUNT)
    np.testing.assert_array_equal(np.asarray(selected), PIXELS[at])
    back = np.arange(len(at))[::-1]
    np.testing.assert_array_equal(selected.select(back)[:], PIXELS[at][::-1])
    for row in rows[:3]:
        np.testing.assert_array_equal(images[row], PIXELS[row])


def test_what_is_read_is_a_copy_also_into_a_buffer_and_by_a_mask(images: ShardedImages) -> None:
    images[0:3][:] = 0
    images[np.array([5])][:] = 0
    np.testing.assert_array_equal(np.asarray(images), PIXELS)
    out = np.zeros((4, SIDE, SIDE, 3), dtype=np.uint8)
    assert images.take(np.array([0, 69, 1, 2]), out) is out
    np.testing.assert_array_equal(out, PIXELS[[0, 69, 1, 2]])
    at, rows = np.array([3, 0, 2]), np.array([40, -1, 7])
    images.take(rows, out, at)
    np.testing.assert_array_equal(out, PIXELS[[-1, 69, 7, 40]])
    mask = np.arange(COUNT) % 5 == 0
    np.testing.assert_array_equal(images[mask], PIXELS[mask])


@pytest.mark.parametrize(
    "key", [COUNT, -COUNT - 1, np.array([0, COUNT]), np.array([[0]]), np.ones(COUNT + 1, dtype=bool)], ids=str
)
def test_what_is_outside_is_an_error(images: ShardedImages, key: object) -> None:
    with pytest.raises(IndexError):
        images[key]


def test_shards_of_any_length_read_as_one_array() -> None:
    whole = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), dtype=np.uint8)
    images = ShardedImages([whole[:2], whole[2:2], whole[2:7], whole[7:]])
    rows = np.array([8, 0, -1, 6, 2, 7, 2])
    np.testing.assert_array_equal(images[rows], whole[rows])
    np.testing.assert_array_equal(images[:], whole)
    chosen = images.select(np.array([7, 1])).followed_by(ShardedImages([whole[3:5]]))
    np.testing.assert_array_equal(chosen[:], whole[[7, 1, 3, 4]])


def test_a_store_over_files_has_the_fingerprint_of_the_array(
    images: ShardedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.arange(COUNT) % 3
    ours, truth = (ImageStore.from_arrays(pixels, labels) for pixels in (images, PIXELS))
    assert ours.fingerprint == truth.fingerprint
    with pytest.raises(UsageError, match="at least one"):
        ours.limit(0)
    small = ours.limit(40)
    assert isinstance(small.images, np.ndarray) and small.fingerprint == truth.limit(40).fingerprint
    monkeypatch.setattr("simclr_engine.data.store.MAPPED_BYTES", 1)
    large = ours.limit(40)
    assert isinstance(large.images, ShardedImages) and large.fingerprint == small.fingerprint
    np.testing.assert_array_equal(large.images, small.images)


def test_threads_read_the_same_while_pages_are_given_back(images: ShardedImages) -> None:
    def read(seed: int) -> bool:
        at = np.random.default_rng(seed).integers(0, COUNT, 50)
        return bool((images[at] == PIXELS[at]).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(200)))


WHOLE_PASS = """
import json, resource, sys
import numpy as np
from simclr_engine.data import store
from simclr_engine.data.store import ShardedImages

def resident() -> int:
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

images = ShardedImages([np.load(path, mmap_mode="r") for path in sys.argv[2:]])
if sys.argv[1] == "keep":
    store._give_back = lambda shard: None
order = np.random.default_rng(0).permutation(len(images))
images[:8]
before, most, total = resident(), 0, 0
for start in range(0, len(images), 512):
    total += int(images[order[start : start + 512]].sum())
    most = max(most, resident())
for start in range(0, len(images), 512):
    total += int(images[start : start + 512].sum())
    most = max(most, resident())
print(json.dumps({"grown": most - before, "total": total}))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc to read the resident memory from")
def test_passes_over_all_of_it_keep_little_in_memory(tmp_path: Path) -> None:
    rng, files, total = np.random.default_rng(1), [], 0
    for number in range(4):  # 150 MB
        pixels = rng.integers(0, 256, (12_500, 32, 32, 3), dtype=np.uint8)
        total += 2 * int(pixels.sum())
        files.append(str(tmp_path / f"{number}.npy"))
        np.save(files[-1], pixels)
    grown = {}
    for what in ("give back", "keep"):
        command = [sys.executable, "-c", WHOLE_PASS, what, *files]
        said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        assert said["total"] == total
        grown[what] = said["grown"]
    print({what: f"{nbytes / 2**20:.0f} MiB" for what, nbytes in grown.items()})
    assert grown["give back"] < 30 << 20  # some batches
    assert grown["keep"] > 120 << 20  # otherwise nearly all of it


@pytest.mark.parametrize("checksums", [1 << 32, 50])
def test_copies_have_one_number_also_where_checksums_coincide(checksums: int, monkeypatch: pytest.MonkeyPatch) -> None:
    crc32 = zlib.crc32
    monkeypatch.setattr(zlib, "crc32", lambda image: crc32(image) % checksums)
    images = np.random.default_rng(0).integers(0, 256, (300, 4, 4, 3), dtype=np.uint8)
    assert copy_numbers(images) is None
    images[290], images[7] = images[3], images[3]
    found = copy_numbers(images)
    assert found is not None and found.dtype == np.int64
    assert found.tolist() == [*range(7), 3, *range(7, 289), 3, *range(289, 298)]


def test_images_larger_than_a_run_may_say_are_refused_before_any_work() -> None:
    images = np.broadcast_to(np.uint8(0), (1, MAX_SIZE + 1, MAX_SIZE + 1, 3))
    with pytest.raises(DataError, match="at most 1,024 pixels") as caught:
        ImageStore(images, None, (), "0" * 64, "arrays", "all")
    assert caught.value.saw == "1,025 × 1,025"
    assert len(ImageStore(images[:, 1:, 1:], None, (), "0" * 64, "arrays", "all")) == 1
