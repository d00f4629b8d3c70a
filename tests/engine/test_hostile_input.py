"""Files made to exhaust, to hang or to mislead their reader: each is refused with an error of ours, at little cost.

What other files test of the same kind: archives (`data/test_archive.py`), images (`data/test_decode.py`), the
cache (`data/test_cache.py`), checkpoints (`test_hostile_checkpoints.py`, `test_checkpoint.py`), weights from elsewhere
(`test_foreign_refused.py`), a run's own files (`test_hostile_run_files.py`, `test_hostile_results.py`), ONNX files
(`tests/export`), markup in reports (`test_report_page.py`). Much of what is below was found by `tests/fuzz`.
"""

from __future__ import annotations

import io
import json
import struct
import tarfile
import threading
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fixtures.hostile import DEEP, LONG, little_memory, whole_and_short
from fixtures.image_files import class_tree, encode, noise, tar_bytes
from fuzz.seeds import Seed, onnx_seeds, result_seeds
from simclr_engine.data import archive, cache, decode, decode_image, load_data
from simclr_engine.data.archive import ArchiveSource
from simclr_engine.errors import DataError, UsageError
from simclr_engine.export.metadata import PREFIX, read_model
from simclr_engine.recipe import Recipe


def test_ten_gigabytes_of_zeros_are_given_up_without_being_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "GROWTH_FREE_BYTES", 64 << 20)  # 4 GB would take seconds; the file is one of 10 GB
    zstandard = pytest.importorskip("zstandard", reason="zstandard is not installed; it packs the zeros")
    frame = zstandard.ZstdCompressor(level=1).compress(bytes(64 << 20))
    first = tarfile.TarInfo("ant/zeros.txt")
    first.size = 10 << 30
    path = tmp_path / "set.tar.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(first.tobuf()) + frame * 160)
    with little_memory(24 << 20), pytest.raises(DataError, match="far more than images do"):
        load_data(path)
    assert [file.name for file in tmp_path.iterdir()] == ["set.tar.zst"]


@pytest.mark.parametrize("size", [2**63 - 1, 2**80, 8**11 - 1])
def test_a_tar_member_that_claims_to_be_endless_does_not_hang_its_reader(tmp_path: Path, size: int) -> None:
    member = tarfile.TarInfo("ant/readme.txt")
    member.size = size
    raw = tar_bytes(class_tree(("ant",), each=2))[:-10240] + member.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    (tmp_path / "set.tar").write_bytes(raw)
    begin = time.process_time()
    with pytest.raises(DataError, match="damaged"):
        list(ArchiveSource(tmp_path / "set.tar", "set").blobs())
    assert time.process_time() - begin < 5  # tarfile alone would take years


def test_a_zip_member_that_holds_more_than_it_says_costs_only_what_it_says(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("ant/0.png", encode(noise(1)))
        file.writestr("ant/1.bmp", bytes(64 << 20))
    raw = bytearray(buffer.getvalue())
    for at in (raw.rindex(b"PK\x03\x04") + 22, raw.rindex(b"PK\x01\x02") + 24):
        raw[at : at + 4] = struct.pack("<I", 1000)
    (tmp_path / "set.zip").write_bytes(raw)
    with little_memory(8 << 20):
        store = load_data(tmp_path / "set.zip")
    assert len(store) == 1 and store.skipped[0][0] == "ant/1.bmp" and "damaged" in store.skipped[0][1]


def test_names_in_an_archive_are_made_visible_in_the_error_about_it(tmp_path: Path) -> None:
    name = "../<b>\x1b]0;x\x07\r\n\u202e.png"
    (tmp_path / "set.tar").write_bytes(tar_bytes({name: encode(noise(1))}))
    with pytest.raises(DataError, match="no images") as caught:
        load_data(tmp_path / "set.tar")
    whole_and_short(caught.value)
    assert "\\x1b]0;x\\x07\\r\\n\\u202e.png" in str(caught.value) and len(caught.value.lines()) == 3


def claiming(form: str, width: int, height: int) -> bytes:
    """An image of 16 × 16 whose header says otherwise."""
    raw = bytearray(encode(noise(1), form))
    if form == "PNG":
        raw[16:24] = struct.pack(">II", width, height)
        raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    else:
        raw[18:26] = struct.pack("<ii", width, height)
    return bytes(raw)


@pytest.mark.parametrize(("width", "height"), [(16, 17), (17, 16), (5000, 5000), (16, 9000)])
@pytest.mark.parametrize("form", ["PNG", "BMP"])
def test_an_image_that_claims_more_pixels_than_it_has_gives_none_that_are_not_its_own(
    form: str, width: int, height: int
) -> None:
    raw = claiming(form, width, height)
    if form == "PNG" and width == 16:  # its compressed rows end whole, but early: to Pillow the missing ones are black
        rows = np.concatenate([noise(1), np.zeros((height - 16, 16, 3), np.uint8)])
        np.testing.assert_array_equal(decode_image(raw, 16), decode_image(encode(rows), 16))
    else:
        with pytest.raises(DataError, match="not a readable"):
            decode_image(raw, 16)


@pytest.mark.parametrize(("large", "together"), [(255, 1), (256, 4)])
def test_large_images_are_decoded_one_at_a_time_and_others_together(
    large: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "LARGE_PIXELS", large)
    inside, most, meeting = set(), [], threading.Barrier(together)

    def slow(image: Any, *levels: Any) -> Any:
        inside.add(threading.get_ident())
        meeting.wait(30)  # for as many as may be here at once
        most.append(len(inside))
        inside.remove(threading.get_ident())
        return image.convert("RGB")

    monkeypatch.setattr(decode, "_rgb", slow)
    raw = encode(noise(1))  # 256 pixels
    with ThreadPoolExecutor(4) as pool:
        decoded = list(pool.map(lambda _: decode_image(raw, 16), range(4)))
    assert max(most) == together and all((one == noise(1)).all() for one in decoded)


@pytest.mark.parametrize(
    "text",
    [
        f'base = "cifar10"\n[train]\nepochs = {LONG}\n',
        f'base = "cifar10"\n[train]\nepochs = {"9" * 4000}\n',
        f'base = "cifar10"\n[optimizer]\nlr = {"9" * 4000}\n',
        f'base = "cifar10"\n[train]\nepochs = 0x{"f" * 6000}\n',
        f'base = "cifar10"\n[train]\nepochs = "{"x" * 50_000}"\n',
        f'base = "cifar10"\n[train]\n{"x" * 50_000} = 1\n',
        f'base = "cifar10"\nnotes = {DEEP}\n',
        f'base = "{"x" * 50_000}"\n',
        'base = "cifar10"\ntrain = 3\n"train.epochs" = 4\n',
        'base = "cifar10"\nname = "x"\n"name.first" = 4\n',
        'base = "cifar10"\nshort_runs = 0.5\n"train.epochs" = 4\n',
        'base = "cifar10"\n[published]\nwhen = 1979-05-27\n',
        'base = "cifar10"\n[published]\nresults = [{at = 07:32:00}]\n',
        f'base = "cifar10"\n[published]\nn = {"9" * 400}\n',
        f'base = "cifar10"\n[monitor]\nlog_steps = {"9" * 400}\n',
        'base = "cifar10"\n[train]\nepochs = nan\n',
        'base = "cifar10"\n[optimizer]\nlr = inf\n',
        'base = "cifar10"\n"\\u001b[31m" = 1\n',
        'base = ["cifar10"]\n',
    ],
)
def test_a_recipe_that_cannot_be_meant_is_a_usage_error_that_can_be_shown(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        Recipe.load(tmp_path / "mine.toml")
    whole_and_short(caught.value)


@pytest.mark.parametrize("value", [LONG, DEEP, "9" * 400, "x" * 50_000, "\x1b[31m"])
def test_a_value_of_set_that_cannot_be_meant_is_refused(value: str) -> None:
    for key in ("train.epochs", "optimizer.lr", "head.hidden", "model.arch"):
        with pytest.raises(UsageError) as caught:
            Recipe.load("cifar10", {key: value})
        whole_and_short(caught.value)


def test_a_recipe_file_of_absurd_length_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "mine.toml").open("wb") as file:
        file.truncate(4 << 30)  # sparse
    with little_memory(1 << 20), pytest.raises(UsageError, match="cannot be a recipe"):
        Recipe.load(tmp_path / "mine.toml")


@pytest.mark.parametrize(
    "text",
    [
        "a" + ".a" * 300_000 + " = 1\n",
        "a" + ".a" * 30_000 + " = 1\n",
        "a" + ' . "a"' * 9000 + " = 1\n",
        "[" + "'a'." * 12_000 + "a]\n",
        "notes = " + "[" * 40 + "]" * 40,
        "notes = " + "{a = " * 40 + "1" + "}" * 40,
        'notes = "' + "x" * (64 << 10) + '"',
    ],
    ids=lambda text: text[:12],
)
def test_a_recipe_that_takes_long_to_parse_is_refused_at_once(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.toml").write_text('base = "cifar10"\n' + text)
    begin = time.process_time()
    for read in (lambda: Recipe.load(tmp_path / "mine.toml"), lambda: Recipe.from_toml(text)):
        with pytest.raises(UsageError, match=r"cannot be a recipe|not valid TOML") as caught:
            read()
        whole_and_short(caught.value)
    assert time.process_time() - begin < 2  # tomllib alone: minutes


def test_published_figures_under_any_names_survive_toml(tmp_path: Path) -> None:
    figures = '"a b" = 1\n"" = "x"\n"a.b" = [{"c d" = 1.5}]\n["published"."<e>\\u001b"]\nf = true\n"g\\n" = -1\n'
    (tmp_path / "mine.toml").write_text(f'base = "cifar10"\n[published]\n{figures}')
    recipe = Recipe.load(tmp_path / "mine.toml")
    assert recipe.published["<e>\x1b"] == {"f": True, "g\n": -1}
    assert Recipe.from_toml(recipe.to_toml()) == recipe


def sealed(name: str, value: str) -> bytes:
    """An ONNX file with one field of its metadata replaced and the digest mended."""
    from fuzz.mutation import message, parsed

    seed: Seed = onnx_seeds()[0]
    fields = parsed(seed.data)
    assert fields is not None
    key = message([(1, f"{PREFIX}{name}".encode())])
    kept = [(n, v) for n, v in fields if not (isinstance(v, bytes) and v.startswith(key))]
    return seed.seal(message([*kept, (14, key + message([(2, value.encode())]))]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("parity", DEEP),
        ("image_size", LONG),
        ("mean", f"[{'9' * 400}, 0, 0]"),
        ("std", "[NaN, 1, 1]"),
        ("mean", "[Infinity, 1, 1]"),
        ("parity", "{}"),
        ("parity", '{"max_abs": "x", "min_cosine": 1, "images": 1}'),
        ("parity", '{"max_abs": NaN, "min_cosine": 1, "images": 1}'),
        ("parity", '{"max_abs": 1, "min_cosine": [1], "images": 1}'),
        ("parity", '{"max_abs": 1, "min_cosine": 1, "images": 1, "accuracy": "<b>"}'),
        ("class_names", f'["{"x" * 50_000}", 1]'),
        ("precision", f'"{"x" * 50_000}"'),
        ("recipe", "1"),
        ("schema", "0"),
        ("schema", "-1"),
    ],
)
def test_metadata_of_an_onnx_file_that_cannot_be_used_are_refused_by_name(
    tmp_path: Path, name: str, value: str
) -> None:
    (tmp_path / "a.onnx").write_bytes(sealed(name, value))
    with pytest.raises(DataError, match=name) as caught:
        read_model(tmp_path / "a.onnx")
    whole_and_short(caught.value)


def test_the_same_onnx_file_unchanged_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(sealed("recipe", '"other"'))
    metadata = read_model(tmp_path / "a.onnx").metadata
    assert metadata.recipe == "other" and "on 74 images" in metadata.difference()


def cache_entry(folder: Path, **changes: object) -> Path:
    """A packed source whose description says something else."""
    from fuzz.seeds import PART

    seed = next(seed for seed in result_seeds() if seed.suffix == ".cache")
    meta, images, labels = seed.seal(seed.data).split(PART)
    folder.mkdir()
    (folder / "meta.json").write_text(json.dumps(json.loads(meta) | changes))
    (folder / "images-all.npy").write_bytes(images)
    (folder / "labels-all.npy").write_bytes(labels)
    return folder


def test_the_cache_reads_no_file_outside_its_entry(tmp_path: Path) -> None:
    good = cache_entry(tmp_path / "good")
    meta = cache.read_meta(good)
    assert meta is not None and len(cache.read_split(good, meta, "all", "s")) == 2
    split = json.loads((good / "meta.json").read_text())["splits"]["all"]
    for name in ("../good/images-all", "a/b", "", "ALL", "all\n"):
        with pytest.raises(cache.DamagedError):
            cache.read_meta(cache_entry(tmp_path / f"x{abs(hash(name))}", splits={name: split}))


@pytest.mark.parametrize("text", [DEEP, LONG, "null", "[]", '{"splits": []}', '{"splits": {"all": 3}}'])
def test_a_description_in_the_cache_that_is_nonsense_is_damaged(tmp_path: Path, text: str) -> None:
    (cache_entry(tmp_path / "entry") / "meta.json").write_text(text)
    with pytest.raises(cache.DamagedError):
        cache.read_meta(tmp_path / "entry")


@pytest.mark.parametrize("header", ["(10000000000000,)", "(-1,)", "(2, 8, 8, 3), ((((", "(99999999999999999999,)"])
def test_packed_images_whose_header_lies_are_damaged(tmp_path: Path, header: str) -> None:
    entry = cache_entry(tmp_path / "entry")
    raw = (entry / "images-all.npy").read_bytes()
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {header}, }}".encode().ljust(117) + b"\n"
    (entry / "images-all.npy").write_bytes(raw[:10] + text[: len(raw) - 10])
    meta = cache.read_meta(entry)
    assert meta is not None
    with pytest.raises(cache.DamagedError):
        cache.read_split(entry, meta, "all", "s")
