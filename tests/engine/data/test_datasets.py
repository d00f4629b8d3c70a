"""Data sets known by name: the bundled one and the drawn one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fixtures.image_files import noise
from simclr_engine.data import datasets, load_data, load_splits, source_names
from simclr_engine.data.datasets import DESCRIPTIONS, NATIVE_SIZES


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own."""
    monkeypatch.setenv("SIMCLR_ENGINE_CACHE", str(tmp_path / "cache"))


def test_every_name_has_a_description_and_a_size() -> None:
    assert source_names() == DESCRIPTIONS and set(DESCRIPTIONS) == set(NATIVE_SIZES)
    assert set(DESCRIPTIONS) == {"cifar10", "cifar100", "stl10", "svhn", "digits", "glyphs"}


def test_digits_are_scikit_learns_images_split_once_and_for_all() -> None:
    from sklearn.datasets import load_digits

    train, test = load_splits("digits", size=8)
    assert (len(train), len(test), train.image_size) == (1438, 359, 8)
    bundled = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    both = np.concatenate([train.images, test.images])
    assert (both[..., 0] == both[..., 1]).all() and (both[..., 0] == both[..., 2]).all()
    assert sorted(image.tobytes() for image in both[..., 0]) == sorted(image.tobytes() for image in bundled)
    assert train.labels is not None and test.labels is not None
    share = np.bincount(test.labels) / (np.bincount(test.labels) + np.bincount(train.labels))
    np.testing.assert_allclose(share, 0.2, atol=0.003)
    assert train.class_names == tuple("0123456789") and (train.split, test.split) == ("train", "test")
    first = load_digits().target[[(bundled[i] == train.images[0, ..., 0]).all() for i in range(1797)]]
    assert set(first.tolist()) == {int(train.labels[0])}


def test_digits_are_enlarged_to_32_unless_told_otherwise() -> None:
    assert load_data("digits").images.shape == (1438, 32, 32, 3)


def test_glyphs_are_packed_as_they_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    from simclr_engine.data import glyphs

    drawn = {
        split: (np.stack([noise(seed, 24, 24) for seed in seeds]), np.arange(len(seeds)), ("A", "B", "C"))
        for split, seeds in (("train", range(3)), ("test", range(5, 7)))
    }
    monkeypatch.setattr(glyphs, "make_glyphs", lambda split: drawn[split])
    train, test = load_splits("glyphs")
    np.testing.assert_array_equal(train.images, drawn["train"][0])
    np.testing.assert_array_equal(test.images, drawn["test"][0])
    assert train.class_names == ("A", "B", "C") and test.labels is not None and test.labels.tolist() == [0, 1]
    assert NATIVE_SIZES["glyphs"] == glyphs.IMAGE_SIZE


def test_drawn_images_are_drawn_again_when_what_draws_them_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = datasets.NamedSource("digits").content()
    with monkeypatch.context() as patch:
        patch.setattr(datasets.inspect, "getsource", lambda _: "other code")
        assert datasets.NamedSource("digits").content() != digits
    before = datasets.NamedSource("glyphs").content()
    assert before == datasets.NamedSource("glyphs").content() != datasets.NamedSource("digits").content()
    real = datasets.metadata.version
    for changed in ("matplotlib", "pillow"):
        monkeypatch.setattr(
            datasets.metadata, "version", lambda name, changed=changed: "0" if name == changed else real(name)
        )
        assert datasets.NamedSource("glyphs").content() != before
