"""Every file that is trusted later: damaged in any way, it is found; of a newer version, it stays as it is."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from chaos.training import narrow_encoder
from fixtures.disturbed_runs import train
from fixtures.image_files import encode, noise, tar_bytes
from fixtures.synthetic_run import neighbours, predictions, random_confusion, result
from simclr_engine.checkpoint import load_checkpoint, load_encoder, read_tensors
from simclr_engine.data import cache, load_data, pack
from simclr_engine.data.store import ImageStore
from simclr_engine.errors import DataError, EngineError
from simclr_engine.evaluation import evaluate_all, records
from simclr_engine.evaluation.linear import LinearProbe
from simclr_engine.export.index import EmbeddingIndex, index_files
from simclr_engine.files import MARKER
from simclr_engine.report import feature_figures
from simclr_engine.report.pretraining_figures import _read_views
from simclr_engine.run import Run
from simclr_engine.sealing import BLANK, has_seal, read_json, sealed_json
from simclr_engine.terminal import say_once

Read = Callable[[], object]
Make = Callable[[Path, int], tuple[Path, Read]]


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own; everything may be said again."""
    monkeypatch.setenv("SIMCLR_ENGINE_CACHE", str(tmp_path / "cache"))
    say_once.cache_clear()
    return tmp_path / "cache"


def plain(value: Any) -> object:
    """Something that can be compared."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, torch.Tensor):
        return value.numpy().tolist()
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return plain(vars(value)) if hasattr(value, "__dict__") else repr(value)


def archive(folder: Path, number: int) -> Path:
    """An archive of twelve labelled images."""
    path = folder / f"set{number}.tar"
    path.write_bytes(
        tar_bytes({f"{'ant' if n < 5 + number else 'bee'}/{n}.png": encode(noise(100 * number + n)) for n in range(12)})
    )
    return path


def packed(name: str) -> Make:
    def make(folder: Path, number: int) -> tuple[Path, Read]:
        source = archive(folder, number)

        def read() -> object:
            store = load_data(source)
            return [store.images[:], store.labels, store.class_names]

        before = set((cache.cache_root() / "data").glob("*"))
        read()
        (entry,) = set((cache.cache_root() / "data").glob("*")) - before
        return entry / name, read

    return make


def note(folder: Path, number: int) -> tuple[Path, Read]:
    about = {"number": number}
    cache.remember("fact", about, {"answer": 42 + number})
    return cache._memory_path("fact", about), lambda: cache.recall("fact", about) or {"answer": 42 + number}


def features(folder: Path, number: int) -> tuple[Path, Read]:
    store = ImageStore.from_arrays(np.full((40, 8, 8, 3), number, np.uint8))
    right = np.random.default_rng(number).normal(size=(40, 6)).astype(np.float32)

    def read() -> object:
        return cache.cached_features("key", store, lambda _: right)

    before = set((cache.cache_root() / "features").glob("*"))
    read()
    (path,) = set((cache.cache_root() / "features").glob("*")) - before
    return path, read


def tsne(folder: Path, number: int) -> tuple[Path, Read]:
    (folder / "maps").mkdir(exist_ok=True)
    before = set((folder / "maps").iterdir())
    given = np.random.default_rng(number).normal(size=(12, 4)).astype(np.float32)
    feature_figures.cached_tsne(given, folder / "maps")
    (path,) = set((folder / "maps").iterdir()) - before
    return path, lambda: feature_figures.cached_tsne(given, folder / "maps")


def evaluation(kind: str) -> Make:
    def make(folder: Path, number: int) -> tuple[Path, Read]:
        at, confusion = folder / "evaluation", random_confusion(3, 60, 0.5, seed=number)
        parts = np.random.default_rng(number).normal(size=(4, 3)).astype(np.float32)
        probe = LinearProbe(parts[:3], parts[3], parts[0], np.ones(3, np.float32), np.arange(3), 1.0, 5, False)
        name = records.save_result(at, result(confusion, data=f"photos{number}"), probe)
        records.save_predictions(at, name, predictions(confusion, seed=number))
        path = at / f"{name}.{kind}"
        read = {"json": records.load_result, "safetensors": LinearProbe.load}.get(kind)
        return path, lambda: read(path) if read else records.load_predictions(at, name)

    return make


def embeddings(kind: str) -> Make:
    def make(folder: Path, number: int) -> tuple[Path, Read]:
        at, name, rng = folder / "embeddings", "test" + "_scratch" * number, np.random.default_rng(number)
        labels = rng.integers(0, 3, 50)
        store = ImageStore.from_arrays(np.zeros((50, 8, 8, 3), np.uint8), labels, ("a", "b", "c"))
        records.save_embeddings(at, name, store, rng.normal(size=(50, 4)).astype(np.float32))
        near = f"neighbours{'_scratch' * number}"
        records.save_neighbours(at, near, neighbours(("a", "b", "c"), seed=number))
        if kind == "neighbours":
            return at / f"{near}.npz", lambda: records.load_neighbours(at, near)
        return at / f"{name}{kind}", lambda: records.load_embeddings(at, name)

    return make


def index(name: str) -> Make:
    def make(folder: Path, number: int) -> tuple[Path, Read]:
        rng, path = np.random.default_rng(number), folder / f"{'vw'[number]}.npy"
        pictures = rng.integers(0, 256, (30, 4, 4, 3), dtype=np.uint8)
        classes = [("ant", "bee")[i % 2] for i in range(30)]
        paths = [f"{number}/{i}.png" for i in range(30)]
        EmbeddingIndex.build(rng.normal(size=(30, 5)).astype(np.float32), paths, classes, images=pictures).save(path)
        return getattr(index_files(path), name), lambda: EmbeddingIndex.load(path)

    return make


RUNS: dict[str, Callable[[Path], Read]] = {
    "recipe.toml": lambda run: lambda: Run.open(run).recipe.to_toml(),
    "environment.json": lambda run: lambda: Run.open(run).environment,
    "encoder.safetensors": lambda run: lambda: read_tensors(run / "encoder.safetensors", "cannot be read", "again"),
    "model.safetensors": lambda run: lambda: read_tensors(run / "model.safetensors", "cannot be read", "again"),
    "views.npz": lambda run: lambda: _read_views(run / "views.npz"),
    "checkpoints/last.pt": lambda run: lambda: load_checkpoint(run / "checkpoints" / "last.pt"),
}


def of_run(name: str, undisturbed: Path) -> Make:
    def make(folder: Path, number: int) -> tuple[Path, Read]:
        copy = Path(shutil.copytree(undisturbed, folder / f"run{number}"))
        return copy / name, RUNS[name](copy)

    return make


ARTEFACTS: dict[str, Make] = {
    **{
        f"packed {name}": packed(name) for name in ("images-all.npy", "images-all.1.npy", "labels-all.npy", "meta.json")
    },
    "note": note,
    "features": features,
    "tsne": tsne,
    **{f"evaluation {kind}": evaluation(kind) for kind in ("json", "safetensors", "npz")},
    **{f"embeddings {kind}": embeddings(kind) for kind in (".npy", "_labels.npz", "neighbours")},
    **{f"index {name}": index(name) for name in ("vectors", "table", "images", "manifest")},
}


def rolled(raw: bytes) -> bytes:
    """Everything but the header and a seal at the end, one row further."""
    middle = raw[128:-256] if len(raw) > 512 else raw[128:]
    return raw[:128] + middle[-8:] + middle[:-8] + raw[128 + len(middle) :]


def rewritten(path: Path) -> None:
    """Other values of the same shapes, written by NumPy."""
    if path.suffix == ".npy":
        np.save(path, np.roll(np.load(path), 1, axis=0))
    else:
        with np.load(path) as file:
            arrays = {name: np.roll(file[name], 1, axis=0) if file[name].ndim else file[name] for name in file}
        np.savez(path, **arrays)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "zeros": lambda raw: bytes(len(raw)),
    "zeros at the end": lambda raw: raw[: len(raw) // 2] + bytes(len(raw) - len(raw) // 2),
    "rolled": rolled,
    "cut": lambda raw: raw[:-10],
    **{
        f"a bit at {share:.0%}": lambda raw, at=share: (
            raw[: int(at * len(raw))] + bytes([raw[int(at * len(raw))] ^ 1]) + raw[int(at * len(raw)) + 1 :]
        )
        for share in (0.25, 0.6, 0.95, 0.9999)
    },
}


def spoil(path: Path, damage: str, other: Path | None) -> bool:
    """Damages a file and keeps its time, and its size where it can; False for a damage that it cannot have."""
    times = path.stat()
    if damage == "swapped":
        if other is None:
            return False
        held = path.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(held)
    elif damage == "rewritten":
        if path.suffix not in (".npy", ".npz"):
            return False
        rewritten(path)
    else:
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return True


def found(path: Path, good: object, read: Read, capsys: pytest.CaptureFixture[str]) -> None:
    """The damage is an error that names the file and the fix, or is said and gives what it gave before, or nothing; of
    text that may have been edited, it is said."""
    capsys.readouterr()
    try:
        value = read()
    except EngineError as error:
        assert path.stem in str(error) + capsys.readouterr().err and error.fix
        assert "newer version" not in str(error)
        return
    said = capsys.readouterr().err
    assert "damaged" in said or path.name in said
    assert value is None or plain(value) == good or path.name in ("recipe.toml", "environment.json")


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images stay in their files, four in each."""
    monkeypatch.setattr(cache, "MAPPED_BYTES", 1000)
    monkeypatch.setattr(pack, "SHARD_BYTES", 4 * 16 * 16 * 3)


ALL = [*DAMAGES, "swapped", "rewritten"]


@pytest.mark.parametrize("damage", ALL)
@pytest.mark.parametrize("what", ARTEFACTS)
def test_a_damaged_file_is_found_and_named(
    tmp_path: Path, large: None, capsys: pytest.CaptureFixture[str], what: str, damage: str
) -> None:
    (path, read), (other, _) = (ARTEFACTS[what](tmp_path, number) for number in (0, 1))
    good = plain(read())
    if spoil(path, damage, other):
        found(path, good, read, capsys)


@pytest.mark.parametrize("damage", [one for one in ALL if one != "swapped"])
@pytest.mark.parametrize("name", RUNS)
def test_a_damaged_file_of_a_run_is_found_and_named(
    tmp_path: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str], name: str, damage: str
) -> None:
    path, read = of_run(name, undisturbed)(tmp_path, 0)
    good = plain(read())
    if spoil(path, damage, None):
        found(path, good, read, capsys)


def make_newer(path: Path) -> None:
    """As a newer version would write it, whatever else that changes."""
    raw = path.read_bytes()
    newer = raw.replace(b"simclr-engine seal 1 ", b"simclr-engine seal 2 ").replace(
        b"simclr-engine/1 ", b"simclr-engine/2 "
    )
    if path.name == "meta.json":
        newer = raw.replace(b'"format": 2', b'"format": 3')
    assert newer != raw
    path.write_bytes(newer)


NEWER = {name: make for name, make in ARTEFACTS.items() if name.split()[-1] not in ("vectors", "table", "images")}
NEWER = {name: make for name, make in NEWER.items() if "packed" not in name or name.endswith("meta.json")}


@pytest.mark.parametrize("what", [*NEWER, *RUNS])
def test_a_file_of_a_newer_version_is_told_so_and_stays(
    tmp_path: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    path, read = (NEWER[what] if what in NEWER else of_run(what, undisturbed))(tmp_path, 0)
    good = plain(read())
    make_newer(path)
    before, said = path.read_bytes(), ""
    try:
        value = read()
        assert value is None or plain(value) == good
    except DataError as error:
        said = str(error)
    said += capsys.readouterr().err
    assert "written by a newer version of simclr-engine" in said and "damaged" not in said
    assert path.read_bytes() == before


def test_no_writer_replaces_a_file_of_a_newer_version(tmp_path: Path) -> None:
    path, _ = evaluation("json")(tmp_path, 0)
    make_newer(path)
    before = path.read_bytes()
    with pytest.raises(DataError, match="newer version of simclr-engine"):
        evaluation("json")(tmp_path, 0)
    assert path.read_bytes() == before and not list(path.parent.glob(".*"))


def test_an_older_checkpoint_does_not_take_the_place_of_a_newer_versions(tmp_path: Path, undisturbed: Path) -> None:
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    shutil.copy(run / "checkpoints" / "last.pt", run / "checkpoints" / "previous.pt")
    make_newer(run / "checkpoints" / "last.pt")
    with pytest.raises(DataError, match="newer version of simclr-engine"):
        train(run, resume=True)


# What a run, an evaluation, a report and the cache hold: a seal, or a reason why not.
WITHOUT_SEAL = re.compile(
    r".*/checkpoints/\w+\.pt"  # has the hash at its end in a form of its own
    r"|.*/(images|labels)-\w+(\.\d+)?\.npy"  # hashed in meta.json
    r"|.*/(\.lock|metrics\.jsonl|[\w-]+\.jsonl|tensorboard/.*)"  # logs, which grow, and of which a row may be missing
)


def test_every_file_that_is_kept_has_a_seal(
    tmp_path: Path, undisturbed: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("checkpoint", "evaluation.features"):
        monkeypatch.setattr(f"simclr_engine.{module}.build_encoder", narrow_encoder)
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    one, two = (ImageStore.from_arrays(part, np.arange(20) % 2, ("a", "b")) for part in (images[:20], images[20:]))
    evaluate_all(run, (one, two), ["linear", "knn"], ["pretrained", "scratch"])
    load_data(archive(tmp_path, 0))
    feature_figures.cached_tsne(images[:, 0, 0].astype(np.float32), run / "embeddings")
    files = [path for top in (run, root) for path in top.rglob("*") if path.is_file()]
    assert len(files) > 25 and {"features", "memory", "data", "embeddings", "evaluation"} <= {
        part for path in files for part in path.parts
    }
    assert [path for path in files if not has_seal(path) and not WITHOUT_SEAL.fullmatch(str(path))] == []


def test_files_of_a_run_without_seals_are_read_as_before(tmp_path: Path, undisturbed: Path) -> None:
    """An earlier version wrote none, nor had the marker one; where that has one, a file without was put there."""
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    tensors, metadata = read_tensors(run / "encoder.safetensors", "cannot be read", "again")
    good = plain(tensors)
    packed = save(tensors, metadata)
    (run / "encoder.safetensors").write_bytes(packed)
    with pytest.raises(DataError, match="has no seal"):
        load_encoder(run)
    (run / MARKER).write_text(json.dumps({"format": "simclr-engine run 1", "id": "ab" * 16}))
    again, _ = read_tensors(run / "encoder.safetensors", "cannot be read", "again")
    assert plain(again) == good


def test_a_seal_is_found_to_be_damaged_in_each_of_its_letters(tmp_path: Path) -> None:
    path = tmp_path / "fact.json"
    whole = sealed_json({"a": 1}, path.name)
    path.write_bytes(whole)
    assert read_json(path, "again", path.name, needed=True) == {"a": 1}
    for at in range(whole.index(b"simclr"), whole.index(b"simclr") + len(BLANK)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DataError):
            read_json(path, "again", path.name)
