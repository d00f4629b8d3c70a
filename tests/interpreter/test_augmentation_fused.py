"""The Triton augmentation, run by Triton's interpreter, against the float64 reference: values before normalisation's
scaling (mean 0, std 1 unless a test is about it), to well under the promised 1e-5."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fixtures import ROOT
from fixtures.pictures import pictures
from simclr_engine.kernels import AugmentSpec, augment, draw_params
from simclr_engine.kernels.augmentation import eager
from simclr_engine.kernels.augmentation import fused as backend
from simclr_engine.kernels.augmentation.table import COLUMNS
from simclr_engine.recipe import Recipe

# A few roundings of numbers up to 1, enlarged by factors up to 1.8 or 2.5 per operation.
TOLERANCE = 2e-6
RECIPES = sorted((ROOT / "engine" / "recipes").glob("*.toml"))
NO_COLOUR: dict[str, Any] = {"jitter": 0, "gray": 0, "mean": (0, 0, 0), "std": (1, 1, 1)}
STRONG: dict[str, Any] = {
    "crop_scale": (0.08, 1.0), "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.5, "gray": 0.3,
    "mean": (0, 0, 0), "std": (1, 1, 1),
}  # fmt: skip


def rows(count: int, image_size: int, **columns: object) -> Tensor:
    """A table that leaves `count` images alone but for the columns given."""
    neutral = {"h": image_size, "w": image_size, "brightness": 1, "contrast": 1, "saturation": 1}
    table = torch.zeros(count, len(COLUMNS))
    for name, value in {**neutral, **columns}.items():
        table[:, COLUMNS.index(name)] = torch.as_tensor(value, dtype=torch.float32)
    return table


def drawn(spec: AugmentSpec, count: int, views: int) -> Tensor:
    return draw_params(spec, seed=3, epoch=1, sample_ids=torch.arange(count), views=views)


def check(images: Tensor, table: Tensor, spec: AugmentSpec, size: int, tolerance: float = TOLERANCE) -> Tensor:
    """The kernel's views are the reference's; returns them."""
    ours = augment(images, table, spec, size, backend="triton")
    exact = augment(images, table, spec, size, torch.float64, backend="torch")
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=tolerance)
    return ours


@pytest.mark.parametrize(
    ("image", "size"),
    # Equal, growing, shrinking; not powers of two; one pixel; the progressive sizes of CIFAR.
    [(32, 32), (8, 28), (16, 40), (32, 24), (32, 16), (33, 17), (40, 5), (5, 1), (1, 4)],
)
def test_crop_resize_and_flip_equal_the_reference(image: int, size: int) -> None:
    spec = AugmentSpec(image_size=image, crop_scale=(0.05, 1.0), **NO_COLOUR)
    check(pictures(3, image), drawn(spec, 3, views=2), spec, size)


@pytest.mark.parametrize(("image", "size"), [(16, 16), (16, 12), (9, 20)])
def test_crops_of_one_pixel_line_or_the_whole_image_equal_the_reference(image: int, size: int) -> None:
    end = image - 1
    boxes = torch.tensor(
        [(0, 0, 1, 1), (end, end, 1, 1), (0, end, 1, 1), (3, 0, 1, image), (0, 5, image, 1), (0, 0, image, image)]
    ).T
    table = rows(12, image, **{name: column.repeat(2) for name, column in zip("yxhw", boxes, strict=True)})
    table[6:, COLUMNS.index("flip")] = 1
    spec = AugmentSpec(image_size=image, **NO_COLOUR)
    check(pictures(3, image), table, spec, size)


@pytest.mark.parametrize(("image", "size"), [(224, 224), (224, 96)])
def test_positions_far_from_the_origin_are_as_exact_as_near_it(image: int, size: int) -> None:
    # In float32, a position near 200 is a multiple of 1.5e-5, and so would the weights be.
    spec = AugmentSpec(image_size=image, **NO_COLOUR)
    table = rows(1, image, y=1, x=2, h=image - 1, w=image - 5, flip=1)
    check(pictures(1, image), table, spec, size, tolerance=8e-7)


def test_each_colour_operation_alone_equals_the_reference() -> None:
    spec = AugmentSpec(image_size=8, **{**STRONG, "gray": 0.0})
    for column, factors in {
        "brightness": (0.0, 0.6, 1.4, 2.5),
        "contrast": (0.0, 0.6, 1.4, 2.5),
        "saturation": (0.0, 0.6, 1.4, 2.5),
        "hue": (-0.5, -0.1, 1 / 6, 0.37, 0.5),  # 1/6 lands on the corners of the sectors
    }.items():
        table = rows(6 * len(factors), 8, jitter_on=1, order=23)
        table[:, COLUMNS.index(column)] = torch.tensor(factors).repeat_interleave(6)
        check(pictures(6, 8), table, spec, 8)


def test_hue_equals_the_reference_on_every_corner_of_the_colour_cube() -> None:
    # Ties between channels decide the sector: all 5³ combinations of few levels hold every kind of tie.
    levels = torch.linspace(0, 255, 5).round()
    image = torch.zeros(1, 12, 12, 3)
    image.view(-1, 3)[:125] = torch.cartesian_prod(levels, levels, levels)
    turns = torch.linspace(-0.5, 0.5, 13)
    check(image.to(torch.uint8), rows(13, 12, jitter_on=1, hue=turns), AugmentSpec(image_size=12, **STRONG), 12)


@pytest.mark.parametrize("windowed", [False, True])
def test_each_of_the_24_orders_equals_the_reference(windowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # The mean gray that contrast pivots on is that of the view as the operations before it left it.
    if windowed:
        monkeypatch.setattr(backend, "tiling", lambda *_: backend.Tiling(5, 5, 32, 1, None))
    factors = {"brightness": 1.6, "contrast": 0.5, "saturation": 1.9, "hue": 0.2}
    table = rows(24, 9, jitter_on=1, order=torch.arange(24), **factors)
    views = check(pictures(1, 9), table, AugmentSpec(image_size=9, **STRONG), 9)
    assert len(views.unique(dim=0)) == 24


def test_views_without_jitter_ignore_its_columns() -> None:
    table = rows(4, 9, jitter_on=torch.tensor([0, 1, 0, 1]), brightness=0.1, hue=0.4, order=5)
    check(pictures(4, 9), table, AugmentSpec(image_size=9, **STRONG), 9)


def test_gray_equals_the_reference_and_is_each_views_own() -> None:
    table = rows(6, 9, gray=torch.arange(6) % 2)
    views = check(pictures(6, 9), table, AugmentSpec(image_size=9, **STRONG), 9)
    assert torch.equal(views[1, 0], views[1, 2]) and not torch.equal(views[0, 0], views[0, 2])


@pytest.mark.parametrize(("size", "kernel"), [(32, 3), (10, 5), (24, 23), (12, 23), (3, 3), (4, 1)])
def test_blur_equals_the_reference(size: int, kernel: int) -> None:
    spec = AugmentSpec(image_size=size, blur=1, blur_kernel=kernel, **NO_COLOUR)
    table = rows(6, size, sigma=torch.tensor([0.1, 0, 0.5, 2.0, 0.01, 5.0]))
    check(pictures(3, size), table, spec, size)


@pytest.mark.parametrize(
    ("size", "reach", "window", "inner", "block"),
    # Windows that fit exactly and that do not; that the blur needs more of than is kept; of the kernel's own choice.
    [(12, 0, 4, 4, 16), (13, 0, 5, 5, 32), (13, 1, 7, 5, 64), (13, 4, 11, 3, 128), (70, 1, 0, 0, 0)],
)
def test_a_view_in_windows_is_the_view_at_once(
    size: int, reach: int, window: int, inner: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if window:
        monkeypatch.setattr(backend, "tiling", lambda *_: backend.Tiling(window, inner, block, 1, None))
    spec = AugmentSpec(**{**STRONG, "image_size": 16, "blur": float(reach > 0), "blur_kernel": 2 * reach + 1})
    table = drawn(spec, 2, views=2)
    table[:, COLUMNS.index("jitter_on")] = torch.tensor([1.0, 1, 1, 0])
    table[:, COLUMNS.index("order")] = torch.tensor([8.0, 17, 23, 0])  # contrast first, third, last
    if size > 64:
        table = table[1:2]
    check(pictures(2, 16)[: len(table)], table, spec, size)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_augmentations_equal_the_reference(recipe: Path) -> None:
    spec = replace(Recipe.load(recipe).augment, image_size=32)
    check(pictures(2, 32), drawn(spec, 2, views=2), spec, 32, tolerance=TOLERANCE / min(spec.std))


@pytest.mark.parametrize(
    ("image", "size", "kernel", "views"), [(32, 24, 3, 3), (33, 17, 5, 1), (20, 28, 3, 4), (32, 16, 3, 2)]
)
def test_everything_together_equals_the_reference(image: int, size: int, kernel: int, views: int) -> None:
    normalised = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
    spec = AugmentSpec(**{**STRONG, **normalised, "image_size": image, "blur": 0.7, "blur_kernel": kernel})
    check(pictures(3, image), drawn(spec, 3, views), spec, size, tolerance=TOLERANCE / 0.2)


def test_row_v_times_batch_plus_i_is_view_v_of_image_i() -> None:
    spec = AugmentSpec(image_size=4, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0, **NO_COLOUR)
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 4, 4, 3)  # not contiguous either
    views = augment(images, drawn(spec, 5, views=3), spec, backend="triton")
    assert torch.equal((views[:, 0, 0, 0] * 255).round(), torch.arange(5.0).repeat(3))


def test_float16_is_the_float32_view_rounded_once() -> None:
    spec = AugmentSpec(image_size=16, blur=0.5)
    images, table = pictures(3, 16), drawn(spec, 3, views=2)
    half, single = (augment(images, table, spec, dtype=t, backend="triton") for t in (torch.float16, torch.float32))
    assert half.dtype == torch.float16 and half.is_contiguous(memory_format=torch.channels_last)
    assert half.shape == (6, 3, 16, 16) and torch.equal(half, single.half())


def test_the_same_arguments_give_the_same_bits_and_are_left_alone() -> None:
    spec = AugmentSpec(image_size=16, blur=0.5)
    images, table = pictures(4, 16), drawn(spec, 4, views=1)
    kept = images.clone(), table.clone()
    first, second = (augment(images, table, spec, 12, backend="triton") for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(images, kept[0]) and torch.equal(table, kept[1])


def test_images_and_tables_of_any_layout_and_precision_serve() -> None:
    spec = AugmentSpec(image_size=8)
    images, table = pictures(6, 8), drawn(spec, 3, views=2)
    expected = augment(images[::2].contiguous(), table, spec, backend="triton")
    assert torch.equal(augment(images[::2], table.double(), spec, backend="triton"), expected)
    wide = torch.cat((table, table), dim=1)[:, : len(COLUMNS)]
    assert torch.equal(augment(images[::2], wide, spec, backend="triton"), expected)


@pytest.mark.parametrize(("size", "kernel", "dtype"), [(8, 3, torch.float64), (70, 31, torch.float32)])
def test_what_the_kernel_does_not_serve_the_reference_does(size: int, kernel: int, dtype: torch.dtype) -> None:
    spec = AugmentSpec(image_size=8, blur=0.5, blur_kernel=kernel)
    images, table = pictures(2, 8), drawn(spec, 2, views=1)
    assert torch.equal(
        augment(images, table, spec, size, dtype, backend="triton"),
        eager.augment(images, table, spec, size, dtype),
    )
