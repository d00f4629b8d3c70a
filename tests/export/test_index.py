"""The index finds exactly the nearest, comes back from disk as it was, and refuses what does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from simclr_engine.errors import DataError, PlatformError, UsageError
from simclr_engine.export import index as module
from simclr_engine.export.index import EmbeddingIndex, default_index

NAMES = ("ant", "bee", "čáp")


def _vectors(count: int, dim: int = 5, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def _index(count: int = 7, **changes: Any) -> EmbeddingIndex:
    classes = [("", *NAMES)[i % 4] for i in range(count)]
    given: dict[str, Any] = {"classes": classes, "class_names": NAMES, "encoder": "ab" * 32} | changes
    return EmbeddingIndex.build(_vectors(count), [f"{i}.png" for i in range(count)], **given)


def _cosines(bank: NDArray[np.float32], queries: NDArray[np.float32]) -> NDArray[np.float64]:
    a, b = queries.astype(np.float64), bank.astype(np.float64)
    return (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 70), st.integers(1, 6), st.integers(0, 99))
def test_the_nearest_are_those_of_a_float64_search_for_any_size(
    count: int, dim: int, k: int, queries: int, seed: int
) -> None:
    bank = _vectors(count, dim, seed) * np.float32(10.0) ** np.random.default_rng(seed).integers(-3, 4, (count, 1))
    asked = _vectors(queries, dim, seed + 1)
    cosines, rows = EmbeddingIndex.build(bank.astype(np.float32), [""] * count).search(asked, k)
    truth = _cosines(bank.astype(np.float32), asked)
    assert rows.shape == (queries, min(k, count))
    assert all(len(set(row)) == len(row) for row in rows.tolist())
    np.testing.assert_allclose(cosines, np.take_along_axis(truth, rows, 1), atol=2e-6)
    np.testing.assert_allclose(cosines, -np.sort(-truth, axis=1)[:, :k], atol=2e-6)


def test_chunks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    index, asked = _index(40), _vectors(9, seed=3)
    whole = index.search(asked, 4)
    monkeypatch.setattr(module, "CHUNK_BYTES", 2 * 4 * 40)
    for one, other in zip(whole, index.search(asked, 4), strict=True):
        np.testing.assert_array_equal(one, other)


def test_equal_cosines_keep_the_order_and_a_zero_vector_has_cosine_0() -> None:
    bank = np.array([[0, 0], [1, 0], [2, 0], [0, 1], [0.5, 0]], dtype=np.float32)
    cosines, rows = EmbeddingIndex.build(bank, list("abcde")).search(np.array([[3, 0]], dtype=np.float32), 4)
    assert rows.tolist() == [[1, 2, 4, 0]]
    assert cosines.tolist() == [[1.0, 1.0, 1.0, 0.0]]


def test_very_long_and_very_short_vectors_have_their_cosine() -> None:
    bank = np.array([[1e30, 1e30], [1e-11, 0]], dtype=np.float32)
    cosines, _ = EmbeddingIndex.build(bank, ["a", "b"]).search(np.array([[1, 0]], dtype=np.float32), 2)
    np.testing.assert_allclose(cosines, [[1.0, np.sqrt(0.5)]], rtol=1e-5)


def test_it_comes_back_from_disk_as_it_was_with_any_path_and_memory_mapped(tmp_path: Path) -> None:
    paths = ["a,b.png", 'say "x".png', "two\nlines.png", "\udce9.png", "čáp/1.png", " .png", "=1+1.png"]
    images = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), dtype=np.uint8)
    index = EmbeddingIndex.build(_vectors(7), paths, ["ant", "", "čáp", "bee", "", "ant", "ant"], NAMES, images, "cd")
    loaded = EmbeddingIndex.load(index.save(tmp_path / "v.npy"), encoder="cd", dim=5)
    assert isinstance(loaded.vectors, np.memmap) and isinstance(loaded.images, np.memmap)
    np.testing.assert_array_equal(loaded.vectors, index.vectors)
    np.testing.assert_array_equal(loaded.images, images)
    assert loaded.paths == tuple(paths)
    assert [loaded.class_of(i) for i in range(7)] == ["ant", "", "čáp", "bee", "", "ant", "ant"]
    assert (loaded.class_names, loaded.encoder) == (NAMES, "cd")
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), index.vectors)


def test_an_index_without_pictures_replaces_one_with_them(tmp_path: Path) -> None:
    _index(images=np.zeros((7, 4, 4, 3), np.uint8)).save(tmp_path / "v.npy")
    _index().save(tmp_path / "v.npy")
    assert EmbeddingIndex.load(tmp_path / "v.npy").images is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["v.csv", "v.json", "v.npy"]


def _manifest(folder: Path, **changes: Any) -> None:
    """Without a seal, as an earlier version wrote it."""
    path = folder / "v.json"
    about = json.loads(path.read_text()) | changes
    del about["seal"]
    path.write_text(json.dumps(about))


def _broken(folder: Path, row: int) -> None:
    vectors = np.load(folder / "v.npy")
    vectors[row, 1] = np.nan if row else np.inf
    np.save(folder / "v.npy", vectors)


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no vectors": (lambda d: (d / "v.npy").unlink(), "there is no index here"),
    "no manifest": (lambda d: (d / "v.json").unlink(), "are not an index"),
    "unfinished": (lambda d: ((d / "v.json").unlink(), (d / "v.partial").mkdir()), "not finished"),
    "no table": (lambda d: (d / "v.csv").unlink(), "cannot be read"),
    "no pictures": (lambda d: (d / "v.images.npy").unlink(), "cannot be read"),
    "a row less": (lambda d: np.save(d / "v.npy", np.load(d / "v.npy")[:-1]), "do not fit"),
    "pictures of others": (lambda d: np.save(d / "v.images.npy", np.zeros((3, 4, 4, 3), np.uint8)), "do not fit"),
    "pictures of floats": (lambda d: np.save(d / "v.images.npy", np.zeros((7, 4, 4, 3))), "do not fit"),
    "table of others": (lambda d: (d / "v.csv").write_text("row,path,class\n0,a.png,ant\n"), "was altered"),
    "cut short": (lambda d: (d / "v.npy").write_bytes((d / "v.npy").read_bytes()[:-4]), "cannot be read"),
    "no array": (lambda d: (d / "v.npy").write_bytes(b"vectors"), "cannot be read"),
    "objects": (lambda d: np.save(d / "v.npy", np.array([{}] * 7)), "cannot be read"),
    "doubles": (lambda d: np.save(d / "v.npy", np.load(d / "v.npy").astype(np.float64)), "float32"),
    "not a number": (lambda d: _broken(d, 3), "not finite"),
    "infinite": (lambda d: _broken(d, 0), "not finite"),
    "newer": (lambda d: _manifest(d, format=99), "newer version of simclr-engine"),
    "not JSON": (lambda d: (d / "v.json").write_text("{"), "cannot be read"),
    "a list": (lambda d: (d / "v.json").write_text("[]"), "cannot be read"),
    "no classes": (lambda d: _manifest(d, class_names=[]), "is not among"),
    "wrong type": (lambda d: _manifest(d, class_names="ant"), "wrong type"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_what_does_not_fit_is_refused(tmp_path: Path, what: str) -> None:
    path = _index(images=np.zeros((7, 4, 4, 3), np.uint8)).save(tmp_path / "v.npy")
    EmbeddingIndex.load(path, encoder="ab" * 32, dim=5)
    spoil, says = SPOILED[what]
    spoil(tmp_path)
    with pytest.raises(DataError, match=says):
        EmbeddingIndex.load(path, encoder="ab" * 32, dim=5)


def test_an_index_of_another_encoder_is_refused_and_both_are_named(tmp_path: Path) -> None:
    path = _index().save(tmp_path / "v.npy")
    with pytest.raises(DataError, match="another encoder") as caught:
        EmbeddingIndex.load(path, encoder="ef" * 32)
    assert "abababab" in str(caught.value) and "efefefef" in str(caught.value)
    with pytest.raises(DataError, match="another width"):
        EmbeddingIndex.load(path, dim=6)


def test_parts_that_do_not_fit_are_refused_before_anything_is_written() -> None:
    with pytest.raises(DataError, match="do not fit"):
        EmbeddingIndex.build(_vectors(3), ["a", "b"])
    with pytest.raises(DataError, match="at least one"):
        EmbeddingIndex.build(_vectors(0), [])
    with pytest.raises(DataError, match=r"float32 \[N, D\]"):
        EmbeddingIndex.build(_vectors(3).astype(np.float64), ["a", "b", "c"])
    with pytest.raises(DataError, match="not finite"):
        EmbeddingIndex.build(np.array([[np.nan]], np.float32), ["a"])
    with pytest.raises(UsageError, match=r"NAME\.npy"):
        _index().save("vectors.txt")


def test_queries_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match=r"\[Q, 5\]"):
        _index().search(_vectors(2, 4), 1)
    with pytest.raises(DataError, match="not finite"):
        _index().search(np.full((1, 5), np.nan, np.float32), 1)
    with pytest.raises(ValueError, match="at least 1"):
        _index().search(_vectors(1), 0)


def test_where_nothing_can_be_written_is_a_platform_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PlatformError, match="cannot write"):
        _index().save(tmp_path / "file" / "v.npy")


def test_the_default_index_lies_beside_the_file_and_in_the_run(tmp_path: Path) -> None:
    assert default_index(tmp_path / "encoder.int8.onnx") == tmp_path / "encoder.int8.index.npy"
    assert default_index(tmp_path) == tmp_path / "index.npy"
