"""16-bit gray images: their range is measured and said, and used on request, wherever images are read."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fixtures.image_files import encode, noise, tar_bytes, write_tree
from fixtures.mean_colour import METADATA
from simclr_engine.cli.main import main
from simclr_engine.data import load_data, load_splits
from simclr_engine.data.decode import decode_image
from simclr_engine.data.levels import FULL_LEVELS, Levels, narrow_levels
from simclr_engine.data.sources import overview
from simclr_engine.data.stream import find_images
from simclr_engine.errors import UsageError
from simclr_engine.export.metadata import ModelMetadata
from simclr_engine.recipe import Recipe

OWN = (200, 4000)


def deep(seed: int, low: int = OWN[0], high: int = OWN[1]) -> np.ndarray:
    """uint16 `[16, 16]` with both ends of a range."""
    values = np.random.default_rng(seed).integers(low, high + 1, (16, 16)).astype(np.uint16)
    values[0, :2] = low, high
    return values


def png(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "png")
    return file.getvalue()


def spread(values: np.ndarray, levels: Levels) -> np.ndarray:
    """What they become, in float64."""
    low, high = levels
    share = (np.clip(values.astype(np.float64), low, high) - low) / (high - low)
    return np.repeat(np.floor(share * 255 + 0.5).astype(np.uint8)[..., None], 3, axis=2)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Twelve scans of 12 bits in two classes, one 8-bit image among them."""
    tree = {f"{name}/{n}.png": png(deep(n + 10 * k)) for k, name in enumerate(("a", "b")) for n in range(6)}
    return write_tree(tmp_path / "scans", tree | {"b/plain.png": encode(noise(3))})


@pytest.mark.parametrize("levels", [FULL_LEVELS, OWN, (1000, 1001), (0, 4095)])
def test_levels_become_black_and_white(levels: Levels) -> None:
    values, measured = deep(0), list[Levels]()
    np.testing.assert_array_equal(decode_image(png(values), 16, levels, measured), spread(values, levels))
    assert measured == [OWN]


def test_levels_leave_8_bit_images_as_they_are() -> None:
    measured = list[Levels]()
    np.testing.assert_array_equal(decode_image(encode(noise(0)), 16, OWN, measured), noise(0))
    assert measured == []


def test_a_narrow_range_is_noted_with_what_would_use_it(scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (note,) = load_data(scans).notes
    assert "values from 200 to 4,000, which become 16 of 256 gray levels" in note
    assert "--set 'data.levels=[200, 4000]'" in note
    assert overview(scans)["levels"] == [200, 4000]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["simclr-engine", "data", "info", str(scans)])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0
    assert "16-bit gray images: values 200 to 4,000" in capsys.readouterr().out
    assert narrow_levels((0, 65_000), "x") == narrow_levels((7, 7), "x") == ""


def test_the_asked_levels_are_packed_beside_the_full_ones(scans: Path, tmp_path: Path) -> None:
    full, asked = load_data(scans), load_data(scans, levels=OWN)
    np.testing.assert_array_equal(full.images[0], spread(deep(0), FULL_LEVELS))
    np.testing.assert_array_equal(asked.images[0], spread(deep(0), OWN))
    np.testing.assert_array_equal(asked.images[-1], noise(3))
    assert asked.notes == () and full.fingerprint != asked.fingerprint
    assert len(np.unique(full.images[0])) < 20 < len(np.unique(asked.images[0]))
    files = {str(p.relative_to(scans)): p.read_bytes() for p in scans.rglob("*.png")}
    (tmp_path / "scans.tar").write_bytes(tar_bytes(files, "w"))
    archive = load_data(tmp_path / "scans.tar", levels=OWN)
    np.testing.assert_array_equal(archive.images, asked.images)
    train, test = load_splits(scans, levels=OWN)
    assert {image.tobytes() for part in (train, test) for image in part.images} == {i.tobytes() for i in asked.images}


@dataclass(frozen=True)
class Sixteen:
    """What `find_images` asks of an encoder."""

    levels: Levels
    image_size: int = 16

    def check(self, images: object) -> None:
        """Takes anything."""


def test_an_encoder_s_levels_reach_files_folders_and_archives(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "scans.tar").write_bytes(tar_bytes({"a.png": png(deep(0))}, "w"))
    sources = [str(scans / "a" / "0.png"), str(scans), str(tmp_path / "scans.tar")]
    asked, full = (find_images(Sixteen(levels), sources) for levels in (OWN, FULL_LEVELS))
    for part, other in zip(asked, full, strict=True):
        np.testing.assert_array_equal(part.pixels(0), spread(deep(0), OWN))
        np.testing.assert_array_equal(other.pixels(0), spread(deep(0), FULL_LEVELS))
        assert part.identity != other.identity


def test_an_exported_file_names_levels_only_where_there_are_some() -> None:
    plain = METADATA.to_properties()
    assert "simclr_engine.levels" not in plain and ModelMetadata.from_properties(plain, "x").levels == ()
    deep_file = ModelMetadata(**{**METADATA.__dict__, "levels": OWN}).to_properties()
    assert ModelMetadata.from_properties(deep_file, "x").levels == OWN
    with pytest.raises(Exception, match="levels"):
        ModelMetadata.from_properties(deep_file | {"simclr_engine.levels": "[9, 3]"}, "x")


def test_a_recipe_has_levels_only_where_they_are_set() -> None:
    recipe = Recipe.load("cifar10")
    assert "levels" not in recipe.to_toml() and recipe.data.levels == ()
    deep_recipe = Recipe.load("cifar10", {"data.levels": "[200, 4000]"})
    assert Recipe.from_toml(deep_recipe.to_toml()).data.levels == OWN
    for wrong in ([4000, 200], [1], [0, 70_000], [-1, 5]):
        with pytest.raises(UsageError, match="low < high"):
            Recipe.load("cifar10", {"data.levels": wrong})
