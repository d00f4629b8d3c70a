"""The PyTorch augmentation against torchvision, operation by operation and as a whole, in float64."""

from __future__ import annotations

import pytest
import torch
import torchvision.transforms.functional as F

from fixtures.pictures import pictures
from reference import augmentation_truth as truth
from simclr_engine.kernels import AugmentSpec, augment, draw_params
from simclr_engine.kernels.augmentation import eager
from simclr_engine.kernels.augmentation import table as columns

STRONG = AugmentSpec(
    crop_scale=(0.08, 1.0), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.5, gray=0.3, blur=0.5
)  # fmt: skip


def table(spec: AugmentSpec, count: int, views: int = 2) -> torch.Tensor:
    return draw_params(spec, seed=3, epoch=1, sample_ids=torch.arange(count), views=views)


def planes_of(images: torch.Tensor) -> torch.Tensor:
    return (images.double() / 255).permute(3, 0, 1, 2).contiguous()


@pytest.mark.parametrize(
    ("image", "size"),
    # Shrinking, equal, growing; odd; one pixel; the progressive sizes of CIFAR and the native one of STL-10.
    [(32, 32), (32, 24), (32, 16), (33, 17), (16, 32), (32, 96), (96, 32), (5, 1), (1, 4)],
)
def test_crop_resize_and_flip_equal_torchvision(image: int, size: int) -> None:
    spec = AugmentSpec(image_size=image, crop_scale=(0.05, 1.0))
    images, drawn = pictures(12, image), table(spec, 12).double()
    ours = eager.resized_crops(images.repeat(2, 1, 1, 1), drawn, size)
    assert drawn[:, columns.FLIP].unique().tolist() == [0, 1]
    for i, row in enumerate(drawn.tolist()):
        box = [int(row[c]) for c in (columns.Y, columns.X, columns.H, columns.W)]
        expected = F.resized_crop(images[i % 12].permute(2, 0, 1).double() / 255, *box, [size, size], antialias=True)
        expected = F.hflip(expected) if row[columns.FLIP] else expected
        torch.testing.assert_close(ours[:, i], expected, rtol=0, atol=1e-12)


FACTORS = [
    *[(0, f) for f in (0.0, 0.6, 1.0, 1.4, 2.5)],
    *[(1, f) for f in (0.0, 0.6, 1.0, 1.4, 2.5)],
    *[(2, f) for f in (0.0, 0.6, 1.0, 1.4, 2.5)],
    *[(3, f) for f in (-0.5, -0.1, 0.0, 1 / 6, 0.1, 0.37, 0.5)],  # 1/6 lands on the corners of the sectors
]


@pytest.mark.parametrize(("number", "factor"), FACTORS)
def test_each_colour_operation_equals_torchvision(number: int, factor: float) -> None:
    images = pictures(21, 9)
    planes = planes_of(images)
    ours = eager.OPERATIONS[number](planes.clone(), torch.full((21,), factor, dtype=torch.float64))
    expected = torch.stack([truth.operation(number, planes[:, i], factor) for i in range(21)], 1)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_hue_equals_torchvision_on_every_corner_of_the_colour_cube() -> None:
    # Ties between channels decide the sector: all 5³ combinations of few levels hold every kind of tie.
    levels = torch.linspace(0, 1, 5, dtype=torch.float64)
    planes = torch.cartesian_prod(levels, levels, levels).T.reshape(3, 1, 25, 5)
    for turn in torch.linspace(-0.5, 0.5, 25, dtype=torch.float64):
        ours = eager.hue_(planes.clone(), turn[None])
        torch.testing.assert_close(ours[:, 0], truth.adjust_hue(planes[:, 0], float(turn)), rtol=0, atol=1e-12)


def test_hue_in_float32_equals_torchvisions_own() -> None:
    planes = planes_of(pictures(21, 9)).float()
    ours = eager.hue_(planes.clone(), torch.full((21,), 0.1))
    expected = torch.stack([F.adjust_hue(planes[:, i], 0.1) for i in range(21)], 1)
    torch.testing.assert_close(ours, expected, rtol=0, atol=5e-6)


def test_each_factor_belongs_to_its_own_view() -> None:
    planes = planes_of(pictures(21, 9))
    factors = torch.linspace(-0.4, 0.5, 21, dtype=torch.float64)
    for number in range(4):
        own = factors if number == 3 else factors + 1
        ours = eager.OPERATIONS[number](planes.clone(), own)
        expected = torch.stack([truth.operation(number, planes[:, i], float(own[i])) for i in range(21)], 1)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("jitter", [eager.jitter_grouped_, eager.jitter_masked_])
def test_every_view_follows_its_own_order(jitter) -> None:
    generator = torch.Generator().manual_seed(0)
    order = torch.arange(25).repeat(2)[torch.randperm(50, generator=generator)]  # 24 orders and NO_JITTER
    planes = planes_of(pictures(50, 8))
    factors = torch.rand(50, 4, generator=generator, dtype=torch.float64) + torch.tensor([0.5, 0.5, 0.5, -0.5])
    ours = jitter(planes.clone(), factors, order)
    for i in range(50):
        expected = planes[:, i]
        for number in columns.JITTER_ORDERS[order[i]] if order[i] != columns.NO_JITTER else ():
            expected = truth.operation(number, expected, float(factors[i, number]))
        torch.testing.assert_close(ours[:, i], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize(("size", "kernel"), [(32, 3), (32, 5), (24, 23), (12, 23), (3, 3), (4, 1)])
def test_blur_equals_torchvision(size: int, kernel: int, on_host: bool) -> None:
    planes = planes_of(pictures(9, size))
    sigma = torch.tensor([0.1, 0, 0.5, 2.0, 0, 1.0, 0.01, 5.0, 0], dtype=torch.float64)
    ours = eager.blur_(planes.clone(), sigma, kernel, on_host)
    for i, s in enumerate(sigma.tolist()):
        expected = F.gaussian_blur(planes[:, i], [kernel] * 2, [s] * 2) if s else planes[:, i]
        torch.testing.assert_close(ours[:, i], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("on_host", [True, False])
def test_gray_equals_torchvision(on_host: bool) -> None:
    planes, chosen = planes_of(pictures(9, 8)), torch.arange(9) % 2 == 0
    ours = eager.drop_colour_(planes.clone(), chosen, on_host)
    for i in range(9):
        expected = F.rgb_to_grayscale(planes[:, i], 3) if chosen[i] else planes[:, i]
        torch.testing.assert_close(ours[:, i], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("image", "size", "views"), [(32, 32, 2), (32, 16, 4), (24, 24, 3), (48, 96, 1)])
def test_the_whole_chain_equals_torchvision(image: int, size: int, views: int) -> None:
    spec = AugmentSpec(**{**vars(STRONG), "image_size": image, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)})
    images, drawn = pictures(40, image), table(spec, 40, views)
    expected = truth.augment(images, drawn, spec, size)
    torch.testing.assert_close(augment(images, drawn, spec, size, torch.float64), expected, rtol=0, atol=1e-10)
    # float32's own error, divided by the smallest std
    torch.testing.assert_close(augment(images, drawn, spec, size).double(), expected, rtol=0, atol=1e-5 / 0.2)


def test_both_ways_of_skipping_give_the_same_views() -> None:
    images, drawn = pictures(30, 16), table(AugmentSpec(**{**vars(STRONG), "image_size": 16}), 30, 1).double()
    skipping, masking = (eager.view_planes(images, drawn, STRONG, 16, on_host) for on_host in (True, False))
    torch.testing.assert_close(skipping, masking, rtol=0, atol=1e-12)


def test_no_device_is_waited_for_where_rows_cannot_be_picked_for_free() -> None:
    # On the meta device there are no values: whatever would read one back (nonzero, tolist, item, an if) raises.
    spec = AugmentSpec(**{**vars(STRONG), "image_size": 16})
    ids = torch.arange(6, device="meta")
    drawn = draw_params(spec, 0, 0, ids, views=2)
    images = torch.zeros(12, 16, 16, 3, dtype=torch.uint8, device="meta")
    assert eager.view_planes(images, drawn, spec, 24, on_host=False).shape == (3, 12, 24, 24)
    with pytest.raises((NotImplementedError, RuntimeError)):
        eager.view_planes(images, drawn, spec, 24, on_host=True)


def test_block_boundaries_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    images, drawn = pictures(50, 16), table(AugmentSpec(**{**vars(STRONG), "image_size": 16}), 50)
    spec = AugmentSpec(**{**vars(STRONG), "image_size": 16})
    whole = augment(images, drawn, spec, dtype=torch.float64)
    monkeypatch.setattr(eager, "BLOCK_PIXELS", 7 * 16**2)
    torch.testing.assert_close(augment(images, drawn, spec, dtype=torch.float64), whole, rtol=0, atol=1e-13)


def test_autocast_does_not_lower_the_precision() -> None:
    images, drawn = pictures(20, 32), table(STRONG, 20)
    with torch.autocast("cpu", torch.bfloat16):
        inside = augment(images, drawn, STRONG)
    assert torch.equal(inside, augment(images, drawn, STRONG))
