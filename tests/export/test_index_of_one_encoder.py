"""embed: what lies on disk is of one encoder and one plan, also while one index replaces another and after a kill."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fixtures.image_files import class_tree, write_tree
from fixtures.tiny_probe import write_tiny_probe
from simclr_engine.errors import DataError, UsageError
from simclr_engine.export.embed import embed_to_index
from simclr_engine.export.embedder import Embedder, open_embedder
from simclr_engine.export.index import EmbeddingIndex
from simclr_engine.export.pictures import gather

SIZE = 8


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def embedder(tmp_path: Path) -> Embedder:
    return open_embedder(write_tiny_probe(tmp_path / "encoder.onnx", image_size=SIZE))


@pytest.fixture
def photos(tmp_path: Path) -> str:
    return str(write_tree(tmp_path / "photos", class_tree(each=4)))


@contextmanager
def _killed_at(step: int, owner: Any, name: str) -> Iterator[list[int]]:
    """Ends at the given call of `owner.name`; gives the numbers of the calls that were begun."""
    calls: list[int] = []
    real = getattr(owner, name)

    def call(*arguments: object) -> object:
        calls.append(len(calls))
        if len(calls) > step:
            raise Killed
        return None if name == "fsync" else real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, call)
        yield calls


@pytest.mark.parametrize(("before", "now"), [(False, False), (True, True), (True, False)])
def test_killed_while_one_index_replaces_another_there_is_one_of_the_two_or_none(
    embedder: Embedder, photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool, now: bool
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # it is the disk's part, and slow
    other = replace(embedder, identity="b" * 64, embed=lambda images: embedder.embed(images) + 1)
    parts = gather(embedder, [photos])
    (tmp_path / "old").mkdir()
    old = EmbeddingIndex.load(embed_to_index(embedder, parts, tmp_path / "old" / "v.npy", pictures=before).out)
    vectors = {embedder.identity: np.array(old.vectors), other.identity: np.array(old.vectors) + 1}
    refused = 0
    for step in range(50):
        out = shutil.copytree(tmp_path / "old", tmp_path / f"again-{step}") / "v.npy"
        with _killed_at(step, Path, "replace") as calls, suppress(Killed):
            embed_to_index(other, parts, out, overwrite=True, pictures=now, window=4)
        try:
            found = EmbeddingIndex.load(out)
        except DataError:
            refused += 1
        else:
            np.testing.assert_array_equal(found.vectors, vectors[found.encoder], err_msg=f"killed at step {step}")
        if len(calls) <= step:
            break
    assert found.encoder == other.identity and refused >= 2


@pytest.mark.parametrize("changed", ["encoder", "image size", "pictures", "window"])
def test_an_index_begun_or_finished_by_another_plan_is_not_gone_on_with(
    embedder: Embedder, photos: str, tmp_path: Path, changed: str
) -> None:
    how: dict[str, Any] = {"window": 3, "pictures": False}
    with _killed_at(6, os, "fsync"), pytest.raises(Killed):
        embed_to_index(embedder, gather(embedder, [photos]), tmp_path / "begun.npy", **how)
    assert (tmp_path / "begun.partial" / "log.jsonl").stat().st_size
    embed_to_index(embedder, gather(embedder, [photos]), tmp_path / "finished.npy", **how)
    if changed == "encoder":
        embedder = replace(embedder, identity="b" * 64)
    elif changed == "image size":
        embedder = replace(embedder, image_size=16, embed=lambda images: np.ones((len(images), 2), np.float32))
    else:
        how |= {"pictures": True} if changed == "pictures" else {"window": 4}
    for name, said in (("begun", "begun here and not finished"), ("finished", "something else here already")):
        with pytest.raises(UsageError, match=said):
            embed_to_index(embedder, gather(embedder, [photos]), tmp_path / f"{name}.npy", **how)
