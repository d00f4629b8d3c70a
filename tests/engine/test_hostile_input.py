"""Files made to exhaust, to hang or to mislead their reader: each is refused with an error of ours, at little cost.

What other files test of the same kind: archives (`test_data_hostile_archives.py`), images (`test_data_decode.py`), the
cache (`test_data_cache.py`), checkpoints with code (`test_checkpoint.py`, `test_foreign.py`), ONNX files
(`tests/export`), markup in reports (`test_report_page.py`). Much of what is below was found by `tests/fuzz`.
"""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
import threading
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fuzz.seeds import Seed, onnx_seeds, quantised, result_seeds
from reference.image_files import class_tree, encode, noise, tar_bytes
from reference.synthetic_run import random_confusion, result
from simclr_engine import checkpoint
from simclr_engine.checkpoint import FOOTER, load_checkpoint, load_encoder, save_checkpoint
from simclr_engine.data import archive, cache, decode, decode_image, load_data
from simclr_engine.data.archive import ArchiveSource
from simclr_engine.errors import DataError, EngineError, UsageError
from simclr_engine.evaluation.records import load_embeddings, load_neighbours, load_predictions, load_results
from simclr_engine.evaluation.result import EvaluationResult
from simclr_engine.export.metadata import PREFIX, read_model
from simclr_engine.foreign import load_foreign
from simclr_engine.recipe import LARGEST_FILE, Recipe

LONG = "9" * 5000  # more digits than Python turns into a number
DEEP = "[" * 100_000


@contextmanager
def little_memory(limit: int) -> Iterator[None]:
    """Fails where more than `limit` bytes were taken at once."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit, f"{peak:,} bytes"


def whole_and_short(error: EngineError) -> None:
    """An error that a terminal can show: printable, a few lines."""
    assert len(str(error)) < 3000 and all(c.isprintable() or c == "\n" for c in str(error))


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

    def slow(image: Any) -> Any:
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
    with little_memory(LARGEST_FILE), pytest.raises(UsageError, match="too large"):
        Recipe.load(tmp_path / "mine.toml")


def test_published_figures_under_any_names_survive_toml(tmp_path: Path) -> None:
    figures = '"a b" = 1\n"" = "x"\n"a.b" = [{"c d" = 1.5}]\n["published"."<e>\\u001b"]\nf = true\n"g\\n" = -1\n'
    (tmp_path / "mine.toml").write_text(f'base = "cifar10"\n[published]\n{figures}')
    recipe = Recipe.load(tmp_path / "mine.toml")
    assert recipe.published["<e>\x1b"] == {"f": True, "g\n": -1}
    assert Recipe.from_toml(recipe.to_toml()) == recipe


class Calls:
    """Unpickled, this would run the function; the file says which."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call


def footed(body: bytes) -> bytes:
    """A checkpoint of ours around any bytes: the footer is no secret."""
    import hashlib

    return body + FOOTER + hashlib.sha256(body).digest()


def torch_zip(state: object, method: int) -> bytes:
    """torch.save's archive with its members packed."""
    plain, packed = io.BytesIO(), io.BytesIO()
    torch.save(state, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", method) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return packed.getvalue()


def test_a_checkpoint_that_unpacks_to_more_than_it_is_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    raw = torch_zip({"a": torch.zeros(32 << 18)}, zipfile.ZIP_DEFLATED)  # 32 MB of zeros
    assert len(raw) < 1 << 20
    (tmp_path / "ours.pt").write_bytes(footed(raw))
    (tmp_path / "theirs.pt").write_bytes(raw)
    for read, name in ((load_checkpoint, "ours.pt"), (load_foreign, "theirs.pt"), (load_foreign, "ours.pt")):
        with pytest.raises(DataError, match="more than the file has"):
            read(tmp_path / name)
    (tmp_path / "plain.pt").write_bytes(footed(torch_zip({"a": torch.ones(3)}, zipfile.ZIP_STORED)))
    assert torch.equal(load_checkpoint(tmp_path / "plain.pt")["a"], torch.ones(3))


def test_a_checkpoint_whose_directory_is_damaged_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"PK\x03\x04" + bytes(500))
    with pytest.raises(DataError, match="damaged"):
        load_foreign(tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(footed(b"PK\x03\x04" + bytes(500)))
    with pytest.raises(DataError, match="damaged"):
        load_checkpoint(tmp_path / "b.pt")


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02}q\x00h\x05.",  # a memo that is not there: KeyError
        b"\x80\x02}(K\x01u.",  # half an entry: IndexError
        b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.",  # TypeError
        b"\x80\x02cbuiltins\nbytearray\n\x8a\x07\xff\xff\xff\xff\xff\xff\x7f\x85R.",  # MemoryError
        b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",  # UnicodeDecodeError
    ],
)
def test_a_pickle_that_fails_in_any_way_is_a_data_error(tmp_path: Path, pickled: bytes) -> None:
    buffer = io.BytesIO()
    torch.save({}, buffer)
    packed = io.BytesIO()
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(packed, "w") as target:
        for name in source.namelist():
            target.writestr(name, pickled if name.endswith("data.pkl") else source.read(name))
    (tmp_path / "ours.pt").write_bytes(footed(packed.getvalue()))
    (tmp_path / "theirs.pt").write_bytes(packed.getvalue())
    for read, name in ((load_checkpoint, "ours.pt"), (load_foreign, "theirs.pt")):
        with pytest.raises(DataError) as caught:
            read(tmp_path / name)
        whole_and_short(caught.value)


def two_encoders(one: torch.Tensor, other: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"a.layer1.0.conv1.weight": one, "b.layer1.0.conv1.weight": other}


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(1).expand(10**5, 10**5, 1000),  # 40 TB of one value: comparing two took hours
        torch.empty(3, device="meta"),
        torch.eye(3).to_sparse(),
        quantised(),
    ],
    ids=["expanded", "meta", "sparse", "quantised"],
)
@pytest.mark.filterwarnings("ignore")
def test_two_encoders_of_strange_tensors_are_compared_without_pain(tmp_path: Path, tensor: torch.Tensor) -> None:
    torch.save(two_encoders(tensor, tensor.clone() if tensor.numel() < 10 else tensor), tmp_path / "a.pt")
    with pytest.raises(DataError):
        load_foreign(tmp_path / "a.pt")


@pytest.mark.parametrize("model", [None, [1], {1: torch.ones(2)}, {"encoder.conv1.weight": 3}])
def test_a_run_whose_checkpoint_holds_no_model_is_refused(
    tmp_path: Path, model: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "build_encoder", lambda *_: torch.nn.Conv2d(3, 2, 1))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "recipe.toml").write_text(Recipe.load("demo").to_toml())
    (tmp_path / "environment.json").write_text("{}")
    save_checkpoint(tmp_path / "checkpoints" / "last.pt", {"step": 1} if model is None else {"model": model})
    with pytest.raises(DataError, match=r"no model|do not fit"):
        load_encoder(tmp_path)


def test_an_encoder_file_without_its_stem_is_refused(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.ones(2)}, tmp_path / "encoder.safetensors", {"arch": "resnet18"})
    with pytest.raises(DataError, match="do not fit"):
        load_encoder(tmp_path / "encoder.safetensors")


def test_what_a_safetensors_file_says_of_its_damage_is_cut_short(tmp_path: Path) -> None:
    header = b'{"a": {"dtype": "' + b"x" * 60_000 + b'"}}'
    (tmp_path / "encoder.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    for read in (load_encoder, load_foreign):
        with pytest.raises(DataError) as caught:
            read(tmp_path / "encoder.safetensors")
        whole_and_short(caught.value)


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


def changed(**fields: object) -> str:
    return json.dumps(result(random_confusion(2, 20, 0.5), ("a", "b")).to_dict() | fields)


@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        LONG,
        changed(f1_micro=float("nan")),
        changed(also={"x": float("inf")}),
        changed(also={"x": "y"}),
        changed(also=3),
        changed(method=["linear"]),
        changed(data=3),
        changed(limit="5"),
        changed(train_images=1.5),
        changed(history=[{"epoch": "x"}]),
        changed(per_class=[{"name": 1, "support": 1, "accuracy": 1, "precision": 1, "f1": 1, "iou": 1}] * 2),
        changed(confusion=[["x" * 50_000]]),
        changed(confusion=[[10**30, 1], [1, 1]]),
        changed(folds=[{"fold": 1}]),
    ],
)
def test_an_evaluation_that_cannot_be_one_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError) as caught:
        EvaluationResult.from_json(text)
    whole_and_short(caught.value)
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError) as caught:
        load_results(tmp_path)
    whole_and_short(caught.value)


LOADERS: dict[str, Callable[[Path, str], object]] = {
    "predictions": load_predictions,
    "neighbours": load_neighbours,
    "embeddings": load_embeddings,
}


def stored(folder: Path, kind: str, **replaced: Any) -> object:
    """What the loader of a kind makes of a good file, some of its arrays replaced."""
    rows, images = np.arange(2), np.zeros((2, 8, 8, 3), np.uint8)
    arrays: dict[str, Any] = {
        "predictions": {"truth": rows, "predicted": rows, "confidence": np.ones(2, np.float32), "rows": rows},
        "neighbours": {
            "queries": images,
            "query_labels": rows,
            "labels": rows[:, None],
            "class_names": np.array(["a", "b"]),
        },
        "embeddings": {"labels": rows, "class_names": np.array(["a", "b"]), "data": np.str_("x")},
    }[kind]
    arrays |= {"predictions": {"images": images}, "neighbours": {"images": images[:, None]}}.get(kind, {})
    arrays |= {"cosines": np.ones((2, 1), np.float32)} if kind == "neighbours" else {}
    np.save(folder / "x.npy", replaced.pop("features", np.ones((2, 3), np.float32)), allow_pickle=True)
    np.savez_compressed(folder / ("x_labels.npz" if kind == "embeddings" else "x.npz"), **arrays | replaced)
    return LOADERS[kind](folder, "x")


@pytest.mark.parametrize("kind", LOADERS)
def test_no_array_of_an_evaluation_is_unpickled(tmp_path: Path, kind: str) -> None:
    assert stored(tmp_path, kind) is not None
    evil = np.empty(2, dtype=object)
    evil[:] = [Calls(os.mkdir, str(tmp_path / "owned")), 1]
    for name in ("labels", "class_names", "truth", "rows", "queries", "features"):
        stored(tmp_path, kind, **{name: evil})
    assert not (tmp_path / "owned").exists()
    name = {"predictions": "truth", "neighbours": "labels", "embeddings": "labels"}[kind]
    assert stored(tmp_path, kind, **{name: evil}) is None
    assert kind != "embeddings" or stored(tmp_path, kind, features=evil) is None


@pytest.mark.parametrize(
    ("kind", "replaced"),
    [
        ("predictions", {"rows": np.array([0, -1])}),
        ("predictions", {"rows": np.array([0, 2])}),
        ("predictions", {"truth": np.array(["a", "b"])}),
        ("predictions", {"truth": np.array(1)}),
        ("predictions", {"predicted": np.array([0, -1])}),
        ("predictions", {"confidence": np.array([1 + 1j, 1])}),
        ("neighbours", {"labels": np.array([[0], [2]])}),
        ("neighbours", {"labels": np.array([[0], [-1]])}),
        ("neighbours", {"labels": np.ones((2, 1))}),
        ("neighbours", {"class_names": np.array("a")}),
        ("neighbours", {"class_names": np.array([1, 2])}),
        ("neighbours", {"cosines": np.array([["a"], ["b"]])}),
        ("embeddings", {"labels": np.array([0, 2])}),
        ("embeddings", {"labels": np.array([0, -1])}),
        ("embeddings", {"labels": np.array(["0", "1"])}),
        ("embeddings", {"class_names": np.array("a")}),
        ("embeddings", {"features": np.array([["a"], ["b"]])}),
    ],
)
def test_arrays_that_do_not_belong_together_are_not_taken(tmp_path: Path, kind: str, replaced: dict[str, Any]) -> None:
    assert stored(tmp_path, kind) is not None
    assert stored(tmp_path, kind, **replaced) is None


@pytest.mark.parametrize("kind", LOADERS)
def test_arrays_that_unpack_to_more_than_is_ever_kept_are_not_unpacked(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simclr_engine.evaluation.records.LARGEST", 16 << 20)
    big = np.zeros((6, 1 << 20, 3, 1), np.uint8)
    with little_memory(40 << 20):
        assert stored(tmp_path, kind, images=big, more=np.zeros(1)) is None if kind != "embeddings" else True
    assert stored(tmp_path, kind, extra=np.zeros(24 << 20, np.uint8)) is None


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
