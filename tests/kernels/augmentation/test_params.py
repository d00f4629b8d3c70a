"""Drawing: the right numbers, for the right reasons only, from the right distributions."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torchvision.transforms import ColorJitter, RandomResizedCrop

from reference import params_truth
from simclr_engine.kernels import AugmentSpec, draw_params
from simclr_engine.kernels.augmentation import params
from simclr_engine.kernels.augmentation import table as columns
from simclr_engine.kernels.augmentation.table import COLUMNS

ALL = AugmentSpec(
    flip=0.3, jitter=0.6, brightness=0.4, contrast=0.3, saturation=1.5, hue=0.2, gray=0.25, blur=0.5
)  # fmt: skip
# Ordinary; small and oblong enough to fail often; never fitting, from below and from above (the fallback alone).
CROPS = [
    AugmentSpec(image_size=32),
    AugmentSpec(image_size=96, crop_scale=(0.08, 1.0)),
    AugmentSpec(image_size=11, crop_scale=(0.5, 1.0), crop_ratio=(0.2, 5.0)),
    AugmentSpec(image_size=20, crop_scale=(1.0, 1.0), crop_ratio=(0.4, 0.5)),
    AugmentSpec(image_size=20, crop_scale=(1.0, 1.0), crop_ratio=(2.0, 2.5)),
    AugmentSpec(image_size=2, crop_scale=(0.01, 0.3)),
    AugmentSpec(image_size=1),
]


def draw(spec: AugmentSpec, count: int, views: int = 1, seed: int = 0, epoch: int = 0) -> torch.Tensor:
    return draw_params(spec, seed, epoch, torch.arange(count), views)


@pytest.mark.parametrize("spec", [ALL, *CROPS])
def test_every_number_equals_a_scalar_transcription(spec: AugmentSpec) -> None:
    ids = torch.tensor([0, 1, 77, 49_999, 2**32 - 1, 2**32, 2**40 + 3])
    drawn = draw_params(spec, seed=2**63 + 11, epoch=123, sample_ids=ids, views=3)
    assert drawn.dtype == torch.float32 and drawn.shape == (21, len(COLUMNS))
    expected = [params_truth.row(spec, 2**63 + 11, 123, int(i), view) for view in range(3) for i in ids]
    torch.testing.assert_close(drawn, torch.tensor(expected, dtype=torch.float64).float(), rtol=1e-6, atol=1e-6)


def test_all_ten_attempts_are_made_and_no_more() -> None:
    # An attempt fits once in five: of 500 crops some are found at the tenth, and some not at all.
    spec = AugmentSpec(image_size=32, crop_scale=(0.8, 1.0), crop_ratio=(0.3, 3.0))
    expected = [params_truth.row(spec, 0, 0, i, 0)[:4] for i in range(500)]
    assert [0, 0, 32, 32] in expected
    assert draw(spec, 500)[:, :4].tolist() == expected


def test_the_table_is_pinned() -> None:
    # These numbers may not change: they are what makes a resumed run, or another machine's, the same run.
    spec = AugmentSpec(blur=1.0)
    drawn = draw_params(spec, seed=1, epoch=2, sample_ids=torch.tensor([3]), views=2)
    expected = [
        [3.0, 3.0, 29.0, 25.0, 0.0, 1.0, 1.2262812, 0.8280283, 1.2364273, 0.0942805, 16.0, 0.0, 1.1151081],
        [12.0, 10.0, 18.0, 17.0, 0.0, 0.0, 1.2980909, 1.1225005, 0.9682439, 0.0520272, 0.0, 0.0, 1.7673182],
    ]  # fmt: skip
    torch.testing.assert_close(drawn, torch.tensor(expected), rtol=0, atol=2e-7)


def test_rows_do_not_depend_on_batch_order_or_number_of_views() -> None:
    everything = draw_params(ALL, 5, 9, torch.arange(101), views=4).view(4, 101, -1)
    shuffled = torch.randperm(101, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw_params(ALL, 5, 9, shuffled, views=2).view(2, 101, -1), everything[:2, shuffled])
    for i in (0, 50, 100):  # one at a time: no vectorised body, no tail
        assert torch.equal(draw_params(ALL, 5, 9, torch.tensor([i]), views=4), everything[:, i])


def test_seed_epoch_sample_and_view_each_change_the_row() -> None:
    base = draw_params(ALL, 5, 9, torch.tensor([7]), views=2)
    for other in (
        draw_params(ALL, 6, 9, torch.tensor([7]), views=1),
        draw_params(ALL, 5 + 2**32, 9, torch.tensor([7]), views=1),
        draw_params(ALL, 5, 10, torch.tensor([7]), views=1),
        draw_params(ALL, 5, 9, torch.tensor([8]), views=1),
        draw_params(ALL, 5, 9, torch.tensor([7 + 2**32]), views=1),
        base[1:],
    ):
        assert (other[0, columns.BRIGHTNESS : columns.ORDER] != base[0, columns.BRIGHTNESS : columns.ORDER]).all()


@pytest.mark.parametrize("spec", CROPS)
def test_crops_lie_within_the_image_and_are_whole_pixels(spec: AugmentSpec) -> None:
    drawn = draw(spec, 2000)
    y, x, h, w = drawn[:, :4].T
    assert torch.equal(drawn[:, :4], drawn[:, :4].round())
    assert (torch.stack((y, x)) >= 0).all() and (torch.stack((h, w)) >= 1).all()
    assert (y + h <= spec.image_size).all() and (x + w <= spec.image_size).all()


@pytest.mark.parametrize("spec", CROPS[:5])
def test_crops_are_distributed_as_torchvisions(spec: AugmentSpec) -> None:
    torch.manual_seed(0)
    image = torch.empty(3, spec.image_size, spec.image_size)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(image, list(spec.crop_scale), list(spec.crop_ratio)) for _ in range(3000)]
    ).double()
    ours = draw(spec, 6000)[:, :4].double()
    functions = {
        "h": lambda c: c[:, 2],
        "w": lambda c: c[:, 3],
        "area": lambda c: c[:, 2] * c[:, 3],
        "ratio": lambda c: c[:, 3] / c[:, 2],
        # Position relative to the room that the crop leaves; crops without room say nothing.
        "y": lambda c: c[c[:, 2] < spec.image_size][:, 0],
        "x": lambda c: c[c[:, 3] < spec.image_size][:, 1],
        "bottom": lambda c: c[:, 0] + c[:, 2],
        "right": lambda c: c[:, 1] + c[:, 3],
    }
    for name, function in functions.items():
        a, b = function(ours).numpy(), function(theirs).numpy()
        if len(set(b.tolist())) <= 1:
            assert set(a.tolist()) == set(b.tolist()), name
        else:
            assert stats.ks_2samp(a, b).pvalue > 1e-3, name
    assert len(ours.unique(dim=0)) <= 1 or stats.spearmanr(ours[:, 2], ours[:, 3]).statistic == pytest.approx(
        stats.spearmanr(theirs[:, 2], theirs[:, 3]).statistic, abs=0.08
    )


def test_jitter_is_distributed_as_torchvisions() -> None:
    torch.manual_seed(0)
    jitter = ColorJitter(ALL.brightness, ALL.contrast, ALL.saturation, ALL.hue)
    drawn = [
        ColorJitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) for _ in range(3000)
    ]
    ours = draw(ALL, 6000).double()
    for k, column in enumerate((columns.BRIGHTNESS, columns.CONTRAST, columns.SATURATION, columns.HUE)):
        theirs = [row[1 + k] for row in drawn]
        assert stats.ks_2samp(ours[:, column].numpy(), theirs).pvalue > 1e-3, COLUMNS[column]
    counts = torch.bincount(ours[:, columns.ORDER].long(), minlength=24)
    assert len(counts) == 24 and stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize(
    ("column", "probability"), [(columns.FLIP, ALL.flip), (columns.JITTER_ON, ALL.jitter), (columns.GRAY, ALL.gray)]
)
def test_events_happen_as_often_as_asked(column: int, probability: float) -> None:
    happened = draw(ALL, 20_000)[:, column]
    assert happened.unique().tolist() == [0, 1]
    assert stats.binomtest(int(happened.sum()), 20_000, probability).pvalue > 1e-3


def test_blur_happens_as_often_as_asked_with_uniform_sigma() -> None:
    sigma = draw(ALL, 20_000)[:, columns.SIGMA]
    assert stats.binomtest(int((sigma > 0).sum()), 20_000, ALL.blur).pvalue > 1e-3
    low, high = ALL.blur_sigma
    assert stats.kstest(sigma[sigma > 0].numpy(), stats.uniform(low, high - low).cdf).pvalue > 1e-3


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_never_and_always_mean_it(probability: float) -> None:
    spec = AugmentSpec(flip=probability, jitter=probability, gray=probability, blur=probability)
    drawn = draw(spec, 5000)
    for column in (columns.FLIP, columns.JITTER_ON, columns.GRAY):
        assert (drawn[:, column] == probability).all()
    assert ((drawn[:, columns.SIGMA] > 0) == bool(probability)).all()


def test_columns_and_views_are_independent() -> None:
    drawn = draw_params(ALL, 0, 0, torch.arange(10_000), views=2).view(2, 10_000, -1).double()
    everything = torch.cat((drawn[0], drawn[1]), dim=1)
    # A crop's place depends on its size; its sides on each other. Everything else must not be correlated.
    keep = [i for i in range(2 * len(COLUMNS)) if i % len(COLUMNS) not in (columns.Y, columns.X, columns.W)]
    correlation = torch.corrcoef(everything[:, keep].T).fill_diagonal_(0)
    assert float(correlation.abs().max()) < 4.5 / 10_000**0.5


def test_successive_epochs_are_independent() -> None:
    a, b = (draw(ALL, 10_000, epoch=e)[:, columns.BRIGHTNESS].double() for e in (0, 1))
    assert abs(float(torch.corrcoef(torch.stack((a, b)))[0, 1])) < 4.5 / 10_000**0.5


def test_the_polynomial_is_the_exponential() -> None:
    x = torch.linspace(-2.31, 2.31, 1001, dtype=torch.float64)
    torch.testing.assert_close(params._exp(x), x.exp(), rtol=1e-7, atol=0)


def test_no_samples_draw_no_rows() -> None:
    assert draw(ALL, 0, views=2).shape == (0, len(COLUMNS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample_ids": torch.zeros(3)}, r"sample_ids must be integers \[B\], not torch.float32 \[3\]"),
        ({"sample_ids": torch.zeros(3, 1).long()}, "sample_ids must be integers"),
        ({"views": 0}, "views must be at least 1, not 0"),
        ({"epoch": -1}, r"epoch must be in \[0, 2\*\*32\), not -1"),
        ({"epoch": 2**32}, "epoch must be in"),
    ],
)
def test_what_cannot_be_meant_is_refused(change: dict[str, object], message: str) -> None:
    arguments = {"seed": 0, "epoch": 0, "sample_ids": torch.arange(3), "views": 2, **change}
    with pytest.raises(ValueError, match=message):
        draw_params(ALL, **arguments)


@pytest.mark.parametrize("seed", [0, 2**32 + 5, 2**63 - 1, -7])
def test_a_seed_and_an_epoch_in_tensors_draw_as_numbers(seed: int) -> None:
    spec, ids = AugmentSpec(blur=0.5), torch.arange(20)
    for epoch in (0, 5, 2**32 - 1):
        expected = draw_params(spec, seed, epoch, ids, 2)
        assert torch.equal(draw_params(spec, torch.tensor(seed), torch.tensor(epoch), ids, 2), expected)
        by_torch = params._drawn_by_torch(spec, torch.tensor(seed), torch.tensor(epoch), ids, 2)
        assert torch.equal(by_torch, expected)
