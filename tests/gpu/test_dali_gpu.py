"""The DALI graph on a CUDA device: equal to the CPU's, and to the reference where DALI's formulas play no part."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from simclr_engine.kernels import AugmentSpec, augment, draw_params
from simclr_engine.kernels.augmentation import dali
from simclr_engine.kernels.augmentation.table import HUE, JITTER_ORDERS, ORDER

NEEDED = (
    "no CUDA device here"
    if not torch.cuda.is_available()
    else "nvidia-dali-cuda130 is not installed: DALI on CUDA is not tested"
    if "is not installed" in dali.why_not(torch.device("cuda"))
    else ""
)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(NEEDED), reason=NEEDED)]

STRONG = AugmentSpec(
    image_size=32, crop_scale=(0.08, 1.0), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, gray=0.3, blur=0.5,
    mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3),
)  # fmt: skip
# Both devices compute in float32 but not in the same order; on the scale where white is 1, after division by std.
ATOL = 5e-5 / 0.2
SIZES = [(32, 32, 2), (32, 24, 2), (32, 16, 4), (24, 32, 1), (32, 64, 2), (96, 32, 1), (96, 96, 2)]


def batch(image: int, views: int, count: int = 50) -> tuple[Tensor, Tensor, AugmentSpec]:
    spec = replace(STRONG, image_size=image)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, image, image, 3), generator=generator).to(torch.uint8)
    images[::2] = images[::2] // 4 + 100
    return images, draw_params(spec, seed=3, epoch=1, sample_ids=torch.arange(count), views=views), spec


def test_nothing_keeps_dali_from_serving_cuda() -> None:
    assert dali.why_not(torch.device("cuda")) == ""


@pytest.mark.parametrize(("image", "size", "views"), SIZES)
def test_views_equal_those_of_the_graph_on_the_cpu(image: int, size: int, views: int) -> None:
    images, drawn, spec = batch(image, views)
    ours = augment(images.cuda(), drawn.cuda(), spec, size, backend="dali")
    assert ours.is_cuda and ours.is_contiguous(memory_format=torch.channels_last)
    expected = augment(images, drawn, spec, size, backend="dali")
    torch.testing.assert_close(ours.cpu(), expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize(("image", "size", "views"), SIZES)
def test_without_hue_and_in_dalis_order_views_equal_the_reference(image: int, size: int, views: int) -> None:
    images, drawn, spec = batch(image, views)
    drawn[:, ORDER], drawn[:, HUE] = JITTER_ORDERS.index((0, 1, 2, 3)), 0
    ours = augment(images.cuda(), drawn.cuda(), spec, size, backend="dali")
    expected = augment(images, drawn, spec, size, torch.float64, backend="torch")
    torch.testing.assert_close(ours.cpu().double(), expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)])
def test_views_have_the_asked_precision(dtype: torch.dtype, atol: float) -> None:
    images, drawn, spec = batch(32, 2)
    ours = augment(images.cuda(), drawn.cuda(), spec, 32, dtype, backend="dali")
    assert ours.dtype == dtype
    expected = augment(images, drawn, spec, 32, backend="dali")
    torch.testing.assert_close(ours.cpu().float(), expected, rtol=0, atol=ATOL + atol)


def test_images_still_being_written_are_waited_for() -> None:
    images, drawn, spec = batch(32, 1)
    table, expected = drawn.cuda(), augment(images, drawn, spec, 32, backend="dali")
    stored = images.cuda()
    augment(stored, table, spec, 32, backend="dali")  # the graph is built, so that the next call comes at once
    target = torch.zeros_like(stored)
    torch.cuda.synchronize()
    work = torch.randn(4096, 4096, device="cuda")
    for _ in range(30):
        work = work @ work * 1e-4
    target.copy_(stored)  # enqueued behind the products
    ours = augment(target, table, spec, 32, backend="dali")
    torch.testing.assert_close(ours.cpu(), expected, rtol=0, atol=ATOL)


def test_views_of_many_calls_in_a_row_are_each_their_own_on_any_stream() -> None:
    spec = STRONG
    images, _, _ = batch(32, 2)
    stored, made, expected = images.cuda(), [], []
    streams = [torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    for epoch in range(12):
        drawn = draw_params(spec, 0, epoch, torch.arange(len(images)), 2)
        with torch.cuda.stream(streams[epoch % 3]):
            views = augment(stored, drawn.cuda(), spec, 32, backend="dali")
            made.append(views + 0)  # read at once on this stream, without waiting for the host
        expected.append(augment(images, drawn, spec, 32, backend="dali"))
    torch.cuda.synchronize()
    for views, truth in zip(made, expected, strict=True):
        torch.testing.assert_close(views.cpu(), truth, rtol=0, atol=ATOL)


def test_the_same_table_gives_the_same_bits() -> None:
    images, drawn, spec = batch(32, 2)
    first, second = (augment(images.cuda(), drawn.cuda(), spec, 32, backend="dali") for _ in range(2))
    assert torch.equal(first, second)
