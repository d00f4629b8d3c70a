"""The Triton augmentation on a CUDA device: values against float64, and what can only be seen there."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fixtures import ROOT
from fixtures import pictures as on_host
from simclr_engine.kernels import AugmentSpec, augment, draw_params, pick_augment
from simclr_engine.kernels.augmentation import fused as backend
from simclr_engine.kernels.augmentation import params
from simclr_engine.kernels.augmentation import table as columns
from simclr_engine.recipe import Recipe

NEEDED = (7, 5)
SERVED = torch.cuda.is_available() and torch.cuda.get_device_capability() >= NEEDED
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not SERVED, reason="needs a CUDA device of compute capability 7.5 or more"),
]

TOLERANCE = 1e-5  # in float32, on values before normalisation's scaling (mean 0, std 1)
RECIPES = sorted((ROOT / "engine" / "recipes").glob("*.toml"))
STRONG: dict[str, Any] = {
    "crop_scale": (0.08, 1.0), "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.5, "gray": 0.3,
    "mean": (0, 0, 0), "std": (1, 1, 1),
}  # fmt: skip


def pictures(count: int, size: int) -> Tensor:
    return on_host.pictures(count, size).cuda()


def drawn(spec: AugmentSpec, count: int, views: int = 2, epoch: int = 1) -> Tensor:
    return draw_params(spec, seed=3, epoch=epoch, sample_ids=torch.arange(count, device="cuda"), views=views)


def error(views: Tensor, images: Tensor, table: Tensor, spec: AugmentSpec, size: int) -> float:
    """The largest, against the PyTorch backend in float64, some thousands of pixels' worth of views at a time."""
    rows = torch.arange(len(table), device=table.device)
    worst = 0.0
    for some in rows.split(max(1, 2**24 // (3 * max(size, spec.image_size) ** 2))):
        exact = augment(images[some % len(images)], table[some], spec, size, torch.float64, backend="torch")
        worst = max(worst, float((views[some].double() - exact).abs().max()))
    return worst


# (image, size): equal; progressive; odd; windows; heavy shrinking; small images enlarged.
SIZES = [
    (32, 32), (32, 24), (32, 16), (24, 24), (33, 17), (28, 28), (40, 40), (8, 40), (64, 64), (96, 64), (96, 96),
    (96, 32), (32, 70), (224, 224), (224, 128), (224, 96), (224, 32), (224, 7),
]  # fmt: skip


@pytest.mark.parametrize(
    ("image", "size", "kernel"),
    # The paper's 23 pixels at 224, at less than it reaches, and where it needs wide margins.
    [*((*sizes, kernel) for sizes in SIZES for kernel in (0, 3)), (224, 224, 23), (32, 32, 23), (32, 70, 23)],
)
def test_views_equal_float64(image: int, size: int, kernel: int) -> None:
    spec = AugmentSpec(**{**STRONG, "image_size": image, "blur": 0.5 * (kernel > 0), "blur_kernel": kernel or 3})
    images, table = pictures(28, image), drawn(spec, 28)
    views = augment(images, table, spec, size, backend="triton")
    assert views.shape == (56, 3, size, size) and views.is_contiguous(memory_format=torch.channels_last)
    assert error(views, images, table, spec, size) <= TOLERANCE


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_views_equal_float64(recipe: Path) -> None:
    spec = replace(Recipe.load(recipe).augment, image_size=32)
    images, table = pictures(500, 32), drawn(spec, 500)
    views = augment(images, table, spec, backend="triton")
    assert error(views, images, table, spec, 32) <= TOLERANCE / min(spec.std)


@pytest.mark.parametrize("size", [9, 70])
def test_each_of_the_24_orders_equals_float64(size: int) -> None:
    spec = AugmentSpec(image_size=9, **STRONG)
    table = drawn(spec, 24, views=1)
    table[:, columns.JITTER_ON] = 1
    table[:, columns.ORDER] = torch.arange(24, device="cuda")
    images = pictures(1, 9).expand(24, -1, -1, -1)
    assert error(augment(images, table, spec, size, backend="triton"), images, table, spec, size) <= TOLERANCE


def test_a_hundred_thousand_views_equal_float64() -> None:
    spec = AugmentSpec(**STRONG, blur=0.5)
    images, table = pictures(5_000, 32).repeat(10, 1, 1, 1), drawn(spec, 50_000)
    assert error(augment(images, table, spec, backend="triton"), images, table, spec, 32) <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("image", "size"), [(32, 32), (32, 24), (96, 96), (224, 224)])
def test_half_precision_is_float32s_result_rounded_once(image: int, size: int, dtype: torch.dtype) -> None:
    spec = AugmentSpec(image_size=image, blur=0.5)
    images, table = pictures(28, image), drawn(spec, 28)
    half = augment(images, table, spec, size, dtype, backend="triton")
    assert half.dtype == dtype and half.is_contiguous(memory_format=torch.channels_last)
    exact = augment(images, table, spec, size, torch.float64, backend="torch")
    rounding = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(half.double(), exact, rtol=rounding, atol=TOLERANCE / min(spec.std))


def test_the_same_arguments_give_the_same_bits() -> None:
    for image, size in ((32, 32), (224, 224)):
        spec = AugmentSpec(image_size=image, blur=0.5)
        images, table = pictures(280, image), drawn(spec, 280)
        first = augment(images, table, spec, size, backend="triton")
        for _ in range(5):
            assert torch.equal(augment(images, table, spec, size, backend="triton"), first)


SPECS = [
    AugmentSpec(flip=0.3, jitter=0.6, saturation=1.5, hue=0.2, gray=0.25, blur=0.5),
    AugmentSpec(image_size=32, crop_scale=(0.8, 1.0), crop_ratio=(0.3, 3.0)),
    AugmentSpec(image_size=224, crop_scale=(0.08, 1.0), brightness=0.37, blur=1.0, blur_sigma=(0.13, 1.9)),
    AugmentSpec(image_size=11, crop_scale=(0.01, 1.0), crop_ratio=(0.01, 100.0)),
    AugmentSpec(image_size=20, crop_scale=(1.0, 1.0), crop_ratio=(0.4, 0.5)),
]


@pytest.mark.parametrize("spec", SPECS)
def test_the_table_drawn_here_is_the_cpus_bit_for_bit(spec: AugmentSpec) -> None:
    ids = torch.cat((torch.arange(50_000), torch.tensor([2**31, 2**32 - 1, 2**32, 2**63 - 1, -1])))
    for seed, epoch in ((0, 0), (2**63 + 11, 2**32 - 1)):
        ours = draw_params(spec, seed, epoch, ids.cuda(), views=2)
        assert ours.is_cuda and torch.equal(ours.cpu(), draw_params(spec, seed, epoch, ids, views=2))
        assert torch.equal(ours, params._drawn_by_torch(spec, seed, epoch, ids.cuda(), 2))


def test_nothing_waits_for_the_device() -> None:
    spec = AugmentSpec(blur=0.5)
    images, ids = pictures(64, 32), torch.arange(64, device="cuda")
    # The first calls compile and load.
    augment(images, draw_params(spec, 0, 0, ids, 2), spec, backend="triton")
    torch.cuda.set_sync_debug_mode("error")
    try:
        views = augment(images, draw_params(spec, 0, 1, ids, 2), spec, backend="triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert bool(views.isfinite().all())


def test_nothing_is_allocated_but_the_views() -> None:
    for image, size in ((32, 32), (96, 96)):
        spec = AugmentSpec(image_size=image, blur=0.5)
        images, table = pictures(512, image), drawn(spec, 512)
        augment(images, table, spec, size, backend="triton")
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        views = augment(images, table, spec, size, backend="triton")
        assert torch.cuda.max_memory_allocated() - before <= views.nbytes + 512  # the allocator's granularity


@pytest.mark.parametrize(("image", "size"), [(32, 32), (32, 24), (96, 96)])
def test_drawing_and_applying_are_captured_in_a_graph(image: int, size: int) -> None:
    spec = AugmentSpec(image_size=image, blur=0.5)
    images, ids = pictures(64, image), torch.arange(64, device="cuda")

    def step() -> tuple[Tensor, Tensor]:
        table = draw_params(spec, 0, 0, ids, 2)
        return table, augment(images, table, spec, size, torch.bfloat16, backend="triton")

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        table, views = step()
    for shift in (100, 7):  # other ids, other images, in the same memory
        ids += shift
        images.copy_(images.roll(1, 0))
        graph.replay()
        expected_table, expected = step()
        assert torch.equal(table, expected_table) and torch.equal(views, expected)


def test_a_smaller_last_batch_and_another_epoch_compile_nothing() -> None:
    from simclr_engine.kernels.augmentation.fused_apply import apply
    from simclr_engine.kernels.augmentation.fused_draw import draw

    def compiled() -> tuple[int, ...]:
        device = torch.cuda.current_device()
        return tuple(len(kernel.device_caches[device][0]) for kernel in (apply, draw))

    spec = AugmentSpec(image_size=16)
    images, ids = pictures(64, 16), torch.arange(65, device="cuda")
    augment(images, draw_params(spec, 0, 0, ids[:64], 2), spec, backend="triton")
    before = compiled()
    assert min(before) > 0
    # Odd, one, and at addresses that no 16 divides; seeds and epochs of 32 and 64 bits.
    for count, seed, epoch in ((63, 1, 1), (1, 2**40, 2**31), (17, -1, 16)):
        table = draw_params(spec, seed, epoch, ids[1 : count + 1], 3)
        augment(images[1 : count + 1], table, spec, backend="triton")
    assert compiled() == before


def test_auto_picks_triton_and_applies_it() -> None:
    assert pick_augment("auto", "cuda")[0] == "triton"
    spec = AugmentSpec(image_size=16)
    images, table = pictures(8, 16), drawn(spec, 8)
    assert torch.equal(augment(images, table, spec), backend.augment(images, table, spec, 16, torch.float32))


def test_autocast_changes_nothing() -> None:
    spec = AugmentSpec(image_size=16)
    images, table = pictures(8, 16), drawn(spec, 8)
    with torch.autocast("cuda", torch.float16):
        inside = augment(images, table, spec)
    assert inside.dtype == torch.float32 and torch.equal(inside, augment(images, table, spec))


def test_more_numbers_than_31_bits_count_land_where_they_belong() -> None:
    spec = AugmentSpec(image_size=32)
    count = 2**31 // (3 * 32 * 32) // 2 + 1000  # two views each
    if torch.cuda.mem_get_info()[0] < 2 * count * 3 * 32 * 32 * 4:
        pytest.skip("needs 9 GB of device memory")
    images = pictures(1000, 32).repeat(count // 1000 + 1, 1, 1, 1)[:count]
    table = drawn(spec, count)
    views = augment(images, table, spec, dtype=torch.bfloat16, backend="triton")
    assert views.numel() > 2**31
    for rows in (slice(0, 500), slice(count - 250, count + 250), slice(2 * count - 500, 2 * count)):
        index = torch.arange(2 * count, device="cuda")[rows]
        alone = augment(images[index % count], table[index], spec, dtype=torch.bfloat16, backend="triton")
        assert torch.equal(views[index], alone)


def test_every_pixel_of_a_window_and_beside_it_is_written() -> None:
    # Memory that the allocator hands out again holds what was there before: every number must be replaced.
    for (image, size), kernel in product(((32, 32), (24, 24), (32, 70), (224, 224)), (0, 5)):
        spec = AugmentSpec(image_size=image, blur=float(kernel > 0), blur_kernel=kernel or 3)
        images, table = pictures(16, image), drawn(spec, 16)
        dirt = torch.full((32, 3, size, size), float("nan"), device="cuda")
        del dirt
        assert bool(augment(images, table, spec, size, backend="triton").isfinite().all())
