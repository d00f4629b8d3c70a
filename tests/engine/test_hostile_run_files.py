"""The files of a run, damaged or made to mislead: its description, log, probes, feature cache, maps and views.

A run that cannot be read is a DataError that can be shown; what can be computed again is; a picture that is missing is
said. Results under `evaluation/` are in `test_hostile_results.py`.
"""

from __future__ import annotations

import json
import os
import warnings
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from fixtures.hostile import DEEP, LONG, whole_and_short
from fixtures.synthetic_run import write_metrics, write_run
from simclr_engine import files
from simclr_engine.data.cache import cache_root, cached_features
from simclr_engine.data.store import ImageStore
from simclr_engine.errors import LONGEST, DataError
from simclr_engine.evaluation.linear import LinearProbe
from simclr_engine.event_log import RunLog
from simclr_engine.report import feature_figures
from simclr_engine.report.content import load_content
from simclr_engine.report.page import run_pictures
from simclr_engine.run import Run, read_log, read_rows

NO_OBJECT = {
    "a number of 5,000 digits": f'{{"ended": {LONG}}}',
    "a number of 400 digits": f'{{"ended": {"9" * 400}}}',
    "a negative one": f'{{"ended": -{"9" * 400}}}',
    "deep": DEEP,
    "deep inside": f'{{"a": {DEEP}',
    "a list": "[1]",
    "a number": "3",
    "a word": '"finished"',
    "null": "null",
    "nothing": "",
    "cut": '{"finished": tr',
    "long and no json": "{" + "\x1b[31m" * 20_000,
}


@pytest.mark.parametrize("how", NO_OBJECT)
def test_a_description_that_is_no_json_object_is_a_data_error_and_never_the_newest_run(
    tmp_path: Path, how: str
) -> None:
    write_run(tmp_path / "good")
    bad = write_run(tmp_path / "bad").directory
    (bad / "environment.json").write_text(NO_OBJECT[how])
    with pytest.raises(DataError, match="no readable run") as caught:
        Run.open(bad)
    whole_and_short(caught.value)
    assert str(bad) in str(caught.value.saw)
    assert Run.newest(tmp_path).directory == tmp_path / "good"


def test_a_description_in_no_encoding_is_a_data_error_and_never_the_newest_run(tmp_path: Path) -> None:
    write_run(tmp_path / "good")
    bad = write_run(tmp_path / "bad").directory
    (bad / "environment.json").write_bytes(b'{"finished": "\xff"}')
    with pytest.raises(DataError, match="no readable run"):
        Run.open(bad)
    assert Run.newest(tmp_path).directory == tmp_path / "good"


@pytest.mark.parametrize("ended", ['"x"', "null", "[1]", "{}", "NaN", "Infinity", "1e999", "-1"])
def test_a_run_that_does_not_say_when_it_ended_is_older_than_one_that_does(tmp_path: Path, ended: str) -> None:
    write_run(tmp_path / "good")  # ended 1 s after 1970
    bad = write_run(tmp_path / "zzz").directory
    text = (bad / "environment.json").read_text().replace('"ended": 1.0', f'"ended": {ended}')
    (bad / "environment.json").write_text(text)
    assert Run.newest(tmp_path).directory == tmp_path / "good"
    (tmp_path / "good" / "environment.json").unlink()
    assert Run.newest(tmp_path).directory == bad


@pytest.mark.parametrize("data", ["{}", "3", "null", "[]", '{"image_size": "32"}', '{"image_size": 0}'])
def test_a_run_that_does_not_say_how_large_its_images_were_is_a_data_error(tmp_path: Path, data: str) -> None:
    run = write_run(tmp_path / "run")
    assert run.image_size == 16
    (run.directory / "environment.json").write_text(f'{{"finished": true, "data": {data}}}')
    with pytest.raises(DataError, match="how large its images were") as caught:
        _ = Run.open(run.directory).image_size
    whole_and_short(caught.value)
    (run.directory / "environment.json").write_text('{"finished": true}')
    with pytest.raises(DataError, match="how large its images were"):
        _ = Run.open(run.directory).image_size


def test_rows_of_the_log_that_are_none_are_left_out_and_the_others_kept(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    rows = [{"event": "train", "step": 1, "loss": 2.5}, {"event": "train", "step": 2**64 - 1}]
    odd = {"loss": float("inf"), "top1": 1e308, "chance": "x", "p_pos": [], "lr": None, "epoch": True}
    log.write_text("\n".join([json.dumps(rows[0]), *NO_OBJECT.values(), json.dumps(rows[1] | odd), '{"event": "tra']))
    assert read_log(log) == rows
    log.write_bytes(b"\xff\xfe\n" + json.dumps(rows[0]).encode() + b"\n")
    assert read_log(log) == rows[:1]
    assert read_log(tmp_path / "none.jsonl") == []


def test_a_log_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run")
    write_metrics(run)

    def refused(path: Path) -> IO[bytes]:
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr("simclr_engine.run.open_regular", refused)  # root may read everything
    with pytest.raises(DataError, match="the log cannot be read") as caught:
        _ = run.metrics
    assert f"{run.directory / 'metrics.jsonl'}: Permission denied" in str(caught.value.saw)


def test_a_log_with_steps_that_are_no_numbers_is_resumed_without_those_rows(tmp_path: Path) -> None:
    steps = ['"x"', "null", "[1]", "{}", "NaN", "1e999"]
    rows = ['{"event": "train", "step": 1}', *(f'{{"event": "train", "step": {step}}}' for step in steps)]
    rows += ['{"event": "note"}', '{"event": "train", "step": 3}', '{"event": "train", "step": 4}']
    (tmp_path / "metrics.jsonl").write_text("".join(row + "\n" for row in rows))
    log = RunLog(tmp_path, resume_step=3)
    log.write("train", 4, {"loss": 1.0})
    log.close()
    assert [row.get("step") for row in read_rows(tmp_path / "metrics.jsonl")] == [1, None, 3, 4]


# Messages


def test_a_message_of_any_length_is_shown_with_its_beginning_and_its_end() -> None:
    long = "/data/" + "x" * 10**6 + ": no such file"
    error = DataError("c" * 10**6, saw=long, fix="f" * 10**6)
    assert [len(row) for row in error.lines()] == [LONGEST, LONGEST + 5, LONGEST + 5]
    whole_and_short(error)
    assert error.lines()[1].startswith("saw: /data/xxx") and error.lines()[1].endswith("xxx: no such file")
    assert all(row.count("…") == 1 for row in error.lines())
    assert error.saw == long  # whole, for those who ask


def test_a_message_that_just_fits_is_whole() -> None:
    for length, shortened in ((LONGEST, False), (LONGEST + 1, True)):
        text = "".join(chr(ord("a") + i % 26) for i in range(length))
        row = DataError("c", saw=text).lines()[1]
        assert (row == f"saw: {text}") is not shortened
        assert len(row) == LONGEST + 5


def test_control_characters_are_visible_and_count_as_they_are_shown() -> None:
    error = DataError("a\x1b[31m\n\u202e", saw="\x00" * (2 * LONGEST + 1), fix="\ud800")
    assert error.lines()[0] == "a\\x1b[31m\\n\\u202e" and error.lines()[2] == "fix: \\ud800"
    assert len(error.lines()[1]) == LONGEST + 5 and error.lines()[1].startswith("saw: \\x00\\x00")
    whole_and_short(error)


def test_a_value_that_python_cannot_write_out_is_named_by_its_type() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for value, kind in ((10**5000, "int"), (deep, "list")):
        assert DataError("c", saw=value).lines() == ["c", f"saw: a value of type {kind} that cannot be written out"]


# A saved probe


def safetensors(header: dict[str, object], body: bytes) -> bytes:
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + body


@pytest.mark.parametrize("kind", ["BF16", "F8_E4M3", "F8_E5M2"])
def test_a_probe_of_a_type_that_numpy_has_not_is_refused(tmp_path: Path, kind: str) -> None:
    width = 2 if kind == "BF16" else 1
    header = {"coef": {"dtype": kind, "shape": [2], "data_offsets": [0, 2 * width]}}
    (tmp_path / "p.safetensors").write_bytes(safetensors(header, bytes(2 * width)))
    with pytest.raises(DataError, match="not a saved linear probe"):
        LinearProbe.load(tmp_path / "p.safetensors")


def test_what_a_library_says_of_a_damaged_probe_is_cut_short(tmp_path: Path) -> None:
    header: dict[str, object] = {"coef": {"dtype": "x" * 60_000, "shape": [1], "data_offsets": [0, 4]}}
    (tmp_path / "p.safetensors").write_bytes(safetensors(header, bytes(4)))
    with pytest.raises(DataError, match="not a saved linear probe") as caught:
        LinearProbe.load(tmp_path / "p.safetensors")
    assert len(str(caught.value.saw)) <= len(str(tmp_path / "p.safetensors: ")) + 200
    whole_and_short(caught.value)


def probe() -> dict[str, np.ndarray]:
    weights = {"coef": np.ones((2, 3), np.float32), "intercept": np.ones(2, np.float32)}
    return weights | {"mean": np.zeros(3, np.float32), "scale": np.ones(3, np.float32), "classes": np.array([0, 4])}


@pytest.mark.parametrize(
    "change",
    [
        {"coef": np.ones(2, np.float32)},
        {"coef": np.ones((3, 3), np.float32)},
        {"coef": np.ones((2, 3, 1), np.float32)},
        {"coef": np.ones((2, 3), np.int64)},
        {"coef": np.ones((0, 3), np.float32), "intercept": np.ones(0, np.float32), "classes": np.ones(0, np.int64)},
        {"intercept": np.ones(3, np.float32)},
        {"mean": np.ones(1, np.float32)},
        {"scale": np.ones((), np.float32)},
        {"scale": np.ones(3, bool)},
        {"classes": np.array([0.0, 4.0])},
        {"classes": np.array([-1, 4])},
        {"classes": np.array([4, 0])},
        {"classes": np.array([4, 4])},
        {"classes": np.array([[0, 4]])},
    ],
)
def test_a_probe_whose_parts_do_not_belong_together_is_refused(tmp_path: Path, change: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    about = {"C": "1.0", "iterations": "7", "chosen": "True"}
    save_file(probe(), tmp_path / "p.safetensors", metadata=about)
    assert LinearProbe.load(tmp_path / "p.safetensors").predict_proba(np.zeros((1, 3), np.float32)).shape == (1, 5)
    save_file(probe() | change, tmp_path / "p.safetensors", metadata=about)
    with pytest.raises(DataError, match="not a saved linear probe"):
        LinearProbe.load(tmp_path / "p.safetensors")


# Arrays that numpy wrote


def npy(shape: str) -> bytes:
    """An .npy file of float32 whose header claims this shape."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)


def write_npz(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)


def changed(path: Path, at: int, byte: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] = byte
    path.write_bytes(raw)


def break_npz(path: Path, names: tuple[str, str], how: str) -> None:
    """Damage of which numpy and zipfile each raise another kind of error, or none."""
    with np.load(path) as file:
        whole = {name: file[name] for name in names}
    if how == "packed data":  # zlib.error, before the checksum is looked at
        np.savez_compressed(path, **whole)
        start = path.read_bytes().index(names[0].encode()) + len(names[0]) + 4
        for at in range(start + 20, start + 40):
            changed(path, at, 0xFF)
    elif how == "method":  # NotImplementedError
        raw = path.read_bytes()
        for at in (8, raw.index(b"PK\x01\x02") + 10):
            changed(path, at, 99)
    elif how == "encrypted":  # RuntimeError
        raw = path.read_bytes()
        for at in (6, raw.index(b"PK\x01\x02") + 8):
            changed(path, at, 1)
    elif how == "no arrays":  # bytes instead of arrays
        write_npz(path, **dict.fromkeys(names, b"not an array"))
    elif how == "overflow":  # OverflowError
        write_npz(path, **{name: npy("(10000000000000000000000000000000, 4)") for name in names})
    elif how == "memory":  # MemoryError
        write_npz(path, **{name: npy("(100000000000000, 4)") for name in names})
    elif how == "an array alone":  # no archive at all: what numpy gives is no file to close
        path.write_bytes(npy("(4, 4)"))
    else:
        assert how == "half", how
        write_npz(path, **{names[0]: npy("(4, 4)")})


HOW = ("packed data", "method", "encrypted", "no arrays", "overflow", "memory", "an array alone", "half")


@pytest.mark.parametrize("how", HOW)
def test_a_map_that_is_damaged_in_any_way_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    calls: list[int] = []

    def drawn(features: np.ndarray, limit: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        calls.append(len(features))
        return features[:, :2].copy(), np.arange(len(features))

    monkeypatch.setattr(feature_figures, "tsne", drawn)
    features = np.arange(400, dtype=np.float32).reshape(100, 4)
    first = feature_figures.cached_tsne(features, tmp_path)[0]
    (stored,) = tmp_path.iterdir()
    break_npz(stored, ("coordinates", "rows"), how)
    np.testing.assert_array_equal(feature_figures.cached_tsne(features, tmp_path)[0], first)
    np.testing.assert_array_equal(feature_figures.cached_tsne(features, tmp_path)[0], first)
    assert calls == [100, 100]


def test_a_map_that_unpacks_to_more_than_a_map_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LARGEST_NPZ", 1000)
    monkeypatch.setattr(feature_figures, "tsne", lambda found, *_: (found[:, :2].copy(), np.arange(len(found))))
    features = np.arange(400, dtype=np.float32).reshape(100, 4)
    feature_figures.cached_tsne(features, tmp_path)
    (stored,) = tmp_path.iterdir()
    assert feature_figures._read_map(stored, 100, 100) is None
    monkeypatch.setattr(files, "LARGEST_NPZ", 2000)
    assert feature_figures._read_map(stored, 100, 100) is not None


@pytest.fixture
def with_views(tmp_path: Path) -> Run:
    """A run with an augmentation sheet."""
    run = write_run(tmp_path / "run")
    rng = np.random.default_rng(0)
    originals, views = rng.integers(0, 256, (2, 8, 8, 3), np.uint8), rng.integers(0, 256, (2, 4, 8, 8, 3), np.uint8)
    np.savez(run.directory / "views.npz", originals=originals, views=views)
    return run


def sheets(run: Run) -> list[str]:
    return [picture.name for picture in run_pictures(load_content(run)) if picture.name == "augmentation"]


@pytest.mark.parametrize("how", [*HOW, "grey", "text"])
def test_views_that_are_damaged_in_any_way_are_a_missing_picture_and_that_is_said(with_views: Run, how: str) -> None:
    path = with_views.directory / "views.npz"
    assert sheets(with_views) == ["augmentation"]
    if how == "grey":
        np.savez(path, originals=np.zeros((2, 8, 8, 2), np.uint8), views=np.zeros((2, 4, 8, 8, 2), np.uint8))
    elif how == "text":
        path.write_text("not an archive")
    else:
        break_npz(path, ("originals", "views"), how)
    with pytest.warns(UserWarning, match=r"no augmentation sheet: .*views\.npz is damaged"):
        assert sheets(with_views) == []


def test_views_that_unpack_to_more_than_views_do_are_not_unpacked(
    with_views: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LARGEST_NPZ", 1000)
    with pytest.warns(UserWarning, match="no augmentation sheet"):
        assert sheets(with_views) == []


def test_a_run_without_views_has_no_sheet_and_nothing_is_said(with_views: Run) -> None:
    (with_views.directory / "views.npz").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sheets(with_views) == []


def rewritten(path: Path, how: str) -> None:
    """A damaged file of cached features."""
    if how == "an archive":
        with path.open("wb") as file:
            np.savez(file, features=np.zeros((3, 2), np.float32))
    elif how == "half an archive":
        path.write_bytes(b"PK\x03\x04" + bytes(40))
    elif how == "pickled":
        np.save(path, np.array([{}, []], dtype=object), allow_pickle=True)
    else:
        path.write_bytes(npy(how))


@pytest.mark.parametrize(
    "how",
    ["an archive", "half an archive", "pickled", "(10000000000000000000000000000000, 4)", "(100000000000000, 4)",
     "(-3, 2)", "{}", "(3, 2", "(3, 'x')", "(3, 2.5)"],
)  # fmt: skip
def test_features_in_a_damaged_cache_are_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("SIMCLR_ENGINE_CACHE", str(tmp_path))
    store, calls = ImageStore.from_arrays(np.zeros((3, 8, 8, 3), np.uint8)), list[int]()

    def compute(images: ImageStore) -> np.ndarray:
        calls.append(len(images))
        return np.arange(6, dtype=np.float32).reshape(3, 2)

    first = cached_features("key", store, compute)
    (path,) = (cache_root() / "features").iterdir()
    rewritten(path, how)
    np.testing.assert_array_equal(cached_features("key", store, compute), first)
    assert calls == [3, 3]
    np.testing.assert_array_equal(cached_features("key", store, compute), first)
    assert calls == [3, 3]  # it was written again
