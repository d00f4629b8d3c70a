"""The DALI backend on the CPU: torchvision's values operation by operation, and close where DALI has its own way."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fixtures.pictures import pictures
from reference import augmentation_truth as truth
from simclr_engine.kernels import AugmentSpec, augment, draw_params
from simclr_engine.kernels.augmentation import dali, eager
from simclr_engine.kernels.augmentation import table as columns

CPU = torch.device("cpu")
try:  # asked of Python, not of `why_not`, which is tested here
    import nvidia.dali  # noqa: F401 (whether it loads is the question)

    MISSING = ""
except ImportError as error:
    MISSING = f"nvidia-dali-cuda130 cannot be imported here ({error})"

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

# On the scale where white is 1. Resampling weights come from float32 coordinates (3e-6 at 96 pixels).
ATOL = 1e-5
# In this order DALI's and the reference's jitter agree, and without a turn so do their hues.
SAME_ORDER = columns.JITTER_ORDERS.index((0, 1, 2, 3))
PLAIN = AugmentSpec(image_size=16, mean=(0, 0, 0), std=(1, 1, 1))
STRONG = AugmentSpec(
    crop_scale=(0.08, 1.0), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.5, gray=0.3, blur=0.5,
    mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3),
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _no_graph_outlives_the_module() -> Iterator[None]:
    yield
    dali._graph.cache_clear()


def comparable(spec: AugmentSpec, count: int, views: int = 2) -> Tensor:
    """A drawn table in the part of its range where nothing is DALI's own: the jitter's order, and no turn of hue."""
    drawn = draw_params(spec, seed=3, epoch=1, sample_ids=torch.arange(count), views=views)
    drawn[:, columns.ORDER], drawn[:, columns.HUE] = SAME_ORDER, 0
    return drawn


def untouched(count: int, size: int) -> Tensor:
    """A table that leaves every image as it is."""
    drawn = torch.zeros(count, 13)
    drawn[:, [columns.H, columns.W]] = size
    drawn[:, [columns.BRIGHTNESS, columns.CONTRAST, columns.SATURATION]] = 1
    drawn[:, columns.ORDER] = SAME_ORDER
    return drawn


def equal(images: Tensor, drawn: Tensor, spec: AugmentSpec, size: int | None = None, atol: float = ATOL) -> None:
    size = size or spec.image_size
    views = augment(images, drawn, spec, size, backend="dali")
    assert views.dtype == torch.float32
    torch.testing.assert_close(views.double(), truth.augment(images, drawn, spec, size), rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("image", "size"),
    # Shrinking (where the edges of crops are apart), equal, growing; odd; one pixel; the sizes that recipes use.
    [(32, 32), (32, 24), (32, 16), (33, 17), (16, 32), (32, 64), (96, 32), (96, 96), (96, 24), (5, 1), (1, 4), (2, 1)],
)
def test_crop_resize_and_flip_equal_torchvision(image: int, size: int) -> None:
    spec = replace(PLAIN, image_size=image, crop_scale=(0.02, 1.0), jitter=0, gray=0)
    drawn = comparable(spec, 12)
    assert drawn[:, columns.FLIP].unique().tolist() == [0, 1]
    equal(pictures(12, image), drawn, spec, size)


@pytest.mark.parametrize("size", [1, 8, 16, 24])
def test_crops_of_one_pixel_of_one_row_and_of_one_column_equal_torchvision(size: int) -> None:
    drawn = untouched(16, 16)
    drawn[:, columns.FLIP] = torch.arange(16) % 2
    drawn[:12, [columns.H, columns.W]] = torch.tensor([[1.0, 1], [1, 16], [16, 1], [1, 1], [1, 3], [2, 1]]).repeat(2, 1)
    drawn[:12, columns.Y] = torch.tensor([0.0, 15, 0, 15, 7, 3]).repeat(2)
    drawn[:12, columns.X] = torch.tensor([0.0, 0, 15, 15, 7, 9]).repeat(2)
    equal(pictures(16, 16), drawn, replace(PLAIN, jitter=0, gray=0), size)


@pytest.mark.parametrize("column", [columns.BRIGHTNESS, columns.CONTRAST, columns.SATURATION])
def test_each_jitter_operation_equals_torchvision(column: int) -> None:
    drawn = untouched(42, 16)
    drawn[:, columns.JITTER_ON] = 1
    drawn[:, column] = torch.tensor([0.0, 0.2, 0.6, 1.0, 1.4, 1.8, 2.5]).repeat(6)
    equal(pictures(42, 16), drawn, PLAIN)


def test_gray_equals_torchvision() -> None:
    drawn = untouched(28, 16)
    drawn[:, columns.GRAY] = torch.arange(28) % 2
    equal(pictures(28, 16), drawn, PLAIN)


@pytest.mark.parametrize(("size", "kernel"), [(16, 3), (16, 5), (24, 23), (12, 23), (3, 3), (4, 1)])
def test_blur_equals_torchvision(size: int, kernel: int) -> None:
    drawn = untouched(27, 16)
    drawn[:, columns.SIGMA] = torch.tensor([0.1, 0, 0.5, 2.0, 0, 1.0, 0.3, 5.0, 0]).repeat(3)
    equal(pictures(27, 16), drawn, replace(PLAIN, blur=0.5, blur_kernel=kernel), size)


@pytest.mark.parametrize(
    ("image", "size", "views"), [(32, 32, 2), (32, 16, 4), (24, 24, 1), (32, 24, 2), (32, 64, 1), (96, 32, 2)]
)
def test_the_whole_chain_equals_torchvision(image: int, size: int, views: int) -> None:
    spec = replace(STRONG, image_size=image)
    equal(pictures(20, image), comparable(spec, 20, views), spec, size, atol=ATOL / min(spec.std))


@pytest.mark.parametrize("left_out", ["jitter", "gray", "blur"])
def test_a_chain_without_one_of_its_parts_equals_torchvision(left_out: str) -> None:
    spec = replace(STRONG, image_size=16, **{left_out: 0})
    equal(pictures(20, 16), comparable(spec, 20), spec, 12, atol=ATOL / min(spec.std))


def test_a_view_without_jitter_ignores_its_factors() -> None:
    images, drawn = pictures(20, 16), comparable(PLAIN, 20)
    drawn[:, columns.JITTER_ON] = torch.arange(40) % 2
    other = drawn.clone()
    other[::2, columns.BRIGHTNESS : columns.ORDER] = torch.tensor([0.1, 3.0, 0.0, 0.4])
    assert torch.equal(augment(images, other, PLAIN, backend="dali"), augment(images, drawn, PLAIN, backend="dali"))


# What is DALI's own: the hue's formula and the jitter's order.


def turned_in_yiq(image: Tensor, turn: float) -> Tensor:
    """`[h, w, 3]`: by the NTSC definition of YIQ; DALI's own coefficients are rounded."""
    yiq = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]).double()
    cos, sin = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
    matrix = torch.linalg.inv(yiq) @ torch.tensor([[1, 0, 0], [0, cos, sin], [0, -sin, cos]]).double() @ yiq
    return image @ matrix.T


def test_hue_turns_in_yiq_by_the_drawn_share_of_the_circle() -> None:
    images = (pictures(16, 8)[:1] // 8 + 112).repeat(9, 1, 1, 1)  # faint colours, so that nothing is clamped
    drawn = untouched(9, 8)
    drawn[:, columns.JITTER_ON], drawn[:, columns.HUE] = 1, torch.linspace(-0.5, 0.5, 9)
    views = augment(images, drawn, replace(PLAIN, image_size=8), backend="dali").permute(0, 2, 3, 1).double()
    for view, image, turn in zip(views, images.double() / 255, drawn[:, columns.HUE].tolist(), strict=True):
        torch.testing.assert_close(view, turned_in_yiq(image, turn), rtol=0, atol=4e-3)


def test_colours_are_limited_before_and_after_the_hue_turns() -> None:
    images, drawn = pictures(9, 8), untouched(9, 8)
    drawn[:, columns.JITTER_ON], drawn[:, columns.SATURATION], drawn[:, columns.HUE] = 1, 2.5, 0.2
    views = augment(images, drawn, replace(PLAIN, image_size=8), backend="dali").permute(0, 2, 3, 1).double()
    for view, image in zip(views, images.double() / 255, strict=True):
        saturated = truth.operation(2, image.permute(2, 0, 1), 2.5).permute(1, 2, 0)
        torch.testing.assert_close(view, turned_in_yiq(saturated, 0.2).clamp(0, 1), rtol=0, atol=8e-3)


def test_hue_turns_the_same_way_as_the_reference() -> None:
    red = torch.tensor([200, 60, 60], dtype=torch.uint8).expand(2, 4, 4, 3).contiguous()
    drawn = untouched(2, 4)
    drawn[:, columns.JITTER_ON], drawn[:, columns.HUE] = 1, torch.tensor([1 / 12, -1 / 12])
    for backend in ("dali", "torch"):
        orange, pink = augment(red, drawn, replace(PLAIN, image_size=4), backend=backend)[:, :, 0, 0]
        assert orange[1] > orange[2] + 0.1 and pink[2] > pink[1] + 0.1, backend


@pytest.mark.parametrize(("turn", "limit"), [(0.1, 0.0011), (0.5, 0.006)])
def test_hue_changes_grays_by_no_more_than_the_docstring_says(turn: float, limit: float) -> None:
    images = torch.tensor([64, 128, 220], dtype=torch.uint8).repeat(64)[:, None, None, None].repeat(1, 4, 4, 3)
    drawn = untouched(192, 4)
    drawn[:, columns.JITTER_ON], drawn[:, columns.HUE] = 1, torch.linspace(-turn, turn, 192)
    views = augment(images, drawn, replace(PLAIN, image_size=4), backend="dali").permute(0, 2, 3, 1)
    assert ((views * 255 / images) - 1).abs().max() < limit


def test_the_order_of_the_jitter_is_the_same_for_every_view() -> None:
    spec = replace(STRONG, image_size=16)
    drawn = comparable(spec, 24, views=1)
    views = augment(pictures(24, 16), drawn, spec, backend="dali")
    drawn[:, columns.ORDER] = torch.arange(24)
    assert torch.equal(augment(pictures(24, 16), drawn, spec, backend="dali"), views)


def colourful(count: int, size: int) -> Tensor:
    """uint8 `[count, size, size, 3]`: smooth pictures, each around a hue of its own, all hues alike."""
    generator = torch.Generator().manual_seed(0)
    coarse = (count, 4, 4)
    hue = torch.rand(count, 1, 1, generator=generator) + 0.1 * torch.randn(coarse, generator=generator)
    value = 0.25 + 0.6 * torch.rand(coarse, generator=generator)
    chroma = value * (0.3 + 0.6 * torch.rand(coarse, generator=generator))
    k = (torch.tensor([5.0, 3.0, 1.0])[:, None, None, None] + 6 * hue) % 6
    planes = (value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)).transpose(0, 1)
    smooth = torch.nn.functional.interpolate(planes, size=size, mode="bilinear")
    return (smooth * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def gray_plane(views: Tensor) -> Tensor:
    return (views * torch.tensor(eager.GRAY_WEIGHTS)[:, None, None]).sum(1)


def mean_hue(views: Tensor) -> Tensor:
    """Of each view's mean colour, in turns."""
    red, green, blue = views.mean((2, 3)).unbind(1)
    return torch.atan2(math.sqrt(3) * (green - blue), 2 * red - green - blue) / (2 * math.pi)


def jitter_statistics(backend: str, spec: AugmentSpec) -> tuple[dict[str, float], Tensor]:
    """Means and spreads of what the jitter did to 3,000 views, against the same crops without it; a hue histogram."""
    images = colourful(1500, 16)
    drawn = draw_params(spec, seed=0, epoch=0, sample_ids=torch.arange(1500), views=2)
    plain = drawn.clone()
    plain[:, columns.JITTER_ON] = 0
    plain[:, columns.GRAY] = drawn[:, columns.GRAY] = 0
    views, before = augment(images, drawn, spec, backend=backend), augment(images, plain, spec, backend="torch")
    kept = drawn[:, columns.JITTER_ON] > 0
    views, before = views[kept], before[kept]
    turn = (mean_hue(views) - mean_hue(before) + 0.5) % 1 - 0.5

    def chroma(x: Tensor) -> Tensor:
        return (x.amax(1) - x.amin(1)).mean((1, 2))

    brightness = gray_plane(views).mean((1, 2)) / gray_plane(before).mean((1, 2))
    contrast = gray_plane(views).std((1, 2)) / gray_plane(before).std((1, 2))
    measured = {
        "red": views[:, 0].mean((1, 2)),
        "green": views[:, 1].mean((1, 2)),
        "blue": views[:, 2].mean((1, 2)),
        "brightness": brightness.log(),
        "contrast": (contrast / brightness).log(),
        "saturation": (chroma(views) / chroma(before) / contrast).log(),
        "turn": turn,
    }
    spreads = {f"spread of {name}": values.std().item() for name, values in measured.items()}
    means = {
        f"mean {name}": values.mean().item() for name, values in measured.items() if name in ("red", "green", "blue")
    }
    return {**spreads, **means}, torch.histc(turn, 15, -0.25, 0.25) / len(turn)


def differences(ours: tuple[dict[str, float], Tensor], theirs: tuple[dict[str, float], Tensor]) -> dict[str, float]:
    """Relative differences of the statistics, and the total variation between the hue histograms."""
    apart = {name: abs(ours[0][name] / theirs[0][name] - 1) for name in ours[0]}
    return {**apart, "turns": ((ours[1] - theirs[1]).abs().sum() / 2).item()}


NO_TURN = replace(PLAIN, hue=0)
ORDER_ALONE = dict.fromkeys(
    ["mean red", "mean green", "mean blue"]
    + [f"spread of {name}" for name in ("red", "green", "blue", "brightness", "contrast", "saturation")],
    0.01,
)
# By colour, YIQ turns further or less far than HSV; and it keeps the luma, where HSV's turn changes its contrast.
WITH_HUE = {**dict.fromkeys(ORDER_ALONE, 0.08), "spread of contrast": 0.15, "spread of turn": 0.15, "turns": 0.1}


@pytest.mark.parametrize(("spec", "tolerance"), [(NO_TURN, ORDER_ALONE), (PLAIN, WITH_HUE)])
def test_jitter_is_distributed_as_the_reference_but_for_what_is_dalis_own(
    spec: AugmentSpec, tolerance: dict[str, float]
) -> None:
    apart = differences(jitter_statistics("dali", spec), jitter_statistics("torch", spec))
    for name, limit in tolerance.items():
        assert apart[name] < limit, (name, apart[name])


@pytest.mark.parametrize("factor", [0.75, 1.25])
@pytest.mark.parametrize(
    ("strength", "spec", "tolerance"),
    [(name, NO_TURN, ORDER_ALONE) for name in ("brightness", "contrast", "saturation")] + [("hue", PLAIN, WITH_HUE)],
)
def test_the_comparison_of_distributions_notices_a_quarter_of_a_strength(
    strength: str, spec: AugmentSpec, tolerance: dict[str, float], factor: float
) -> None:
    other = replace(spec, **{strength: factor * getattr(spec, strength)})
    apart = differences(jitter_statistics("dali", other), jitter_statistics("torch", spec))
    assert any(apart[name] >= limit for name, limit in tolerance.items())


def test_the_same_table_gives_the_same_bits_on_any_number_of_threads() -> None:
    spec = replace(STRONG, image_size=16)
    images, drawn = pictures(30, 16), draw_params(spec, 0, 0, torch.arange(30), 2)
    views = augment(images, drawn, spec, backend="dali")
    assert torch.equal(augment(images, drawn, spec, backend="dali"), views)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert torch.equal(augment(images, drawn, spec, backend="dali"), views)
    finally:
        torch.set_num_threads(threads)


def test_each_call_uses_its_own_table_images_and_batch_size() -> None:
    specs = [replace(STRONG, image_size=16), replace(STRONG, image_size=16, blur=0, mean=(0.5,) * 3)]
    images = pictures(24, 16)
    for call, count in enumerate([16, 24, 1, 7, 16, 17]):  # 7 and 16 share a graph with others, 1 and 24 do not
        spec = specs[call % 2]
        drawn = comparable(spec, 24, views=1).roll(call, 0)[:count]
        equal(images.roll(-call, 0)[:count], drawn, spec, atol=ATOL / min(spec.std))


def test_views_outlive_the_calls_and_the_graphs_that_follow() -> None:
    spec = replace(STRONG, image_size=16)
    made = []
    for epoch in range(6):
        drawn = draw_params(spec, 0, epoch, torch.arange(8), 2)
        made.append(augment(pictures(8, 16), drawn, spec, backend="dali"))
    kept = [views.clone() for views in made]
    augment(pictures(8, 16, seed=1), draw_params(spec, 0, 9, torch.arange(8), 2), spec, backend="dali")
    dali._graph.cache_clear()
    assert all(torch.equal(views, copy) for views, copy in zip(made, kept, strict=True))
    assert not torch.equal(made[0], made[1])


def test_only_a_few_graphs_are_kept() -> None:
    dali._graph.cache_clear()
    for size in (8, 9, 10, 11, 12, 13, 8):
        equal(pictures(2, 16), comparable(PLAIN, 2), PLAIN, size)
    assert dali._graph.cache_info().currsize == dali.GRAPHS_KEPT


def test_a_table_that_dali_refuses_does_not_spoil_the_calls_that_follow() -> None:
    images, drawn = pictures(4, 16), comparable(PLAIN, 4)
    outside = drawn.roll(1, 0)  # other numbers throughout: none may be left over for the next call
    outside[0, [columns.Y, columns.H]] = torch.tensor([10.0, 16.0])
    with pytest.raises(RuntimeError, match="out of bounds"):
        augment(images, outside, PLAIN, backend="dali")
    equal(images, drawn, PLAIN)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_batches_changed_in_none_or_all_of_their_views_equal_torchvision(share: float) -> None:
    spec = replace(STRONG, image_size=16)
    drawn = comparable(spec, 8)
    drawn[:, [columns.JITTER_ON, columns.GRAY, columns.SIGMA]] = share
    equal(pictures(8, 16), drawn, spec, atol=ATOL / min(spec.std))


def test_images_go_in_and_views_come_out_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    build = dali._graph

    class Watched:
        def __init__(self, graph: Any) -> None:
            self.graph = graph

        def run(self, **given: Any) -> Any:
            (seen["out"],) = self.graph.run(**given)
            seen["in"] = given["images"].ctypes.data
            return (seen["out"],)

    monkeypatch.setattr(dali, "_graph", lambda **key: Watched(build(**key)))
    images, drawn = pictures(6, 16), comparable(PLAIN, 6, views=1)
    views = dali.augment(images, drawn, PLAIN, 16, torch.float32)
    assert seen["in"] == images.data_ptr()
    assert views.data_ptr() == seen["out"].as_tensor().data_ptr()


def test_every_input_of_the_graph_is_fed_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    from nvidia.dali import fn

    fed: list[dict[str, Any]] = []
    feed = fn.external_source
    monkeypatch.setattr(fn, "external_source", lambda **how: (fed.append(how), feed(**how))[1])
    dali._graph.cache_clear()
    spec = replace(STRONG, image_size=16)
    augment(pictures(4, 16), comparable(spec, 4), spec, 12, backend="dali")
    assert len(fed) > 10 and all(how["no_copy"] is True and how["batch"] is True for how in fed)


def test_where_dali_can_be_imported_nothing_keeps_it_from_serving_the_cpu() -> None:
    assert dali.why_not(CPU) == ""
