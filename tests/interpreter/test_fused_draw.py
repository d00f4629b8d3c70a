"""The table drawn by one Triton launch is the table that torch draws, bit for bit (Triton's interpreter)."""

from __future__ import annotations

import pytest
import torch

from simclr_engine.kernels import AugmentSpec
from simclr_engine.kernels.augmentation import fused_draw, params

# The defaults with everything on; often failing attempts, down to the tenth and beyond; an image of another size and
# ranges that are no round numbers; never fitting, wide and narrow (the fallback alone); one pixel;
# sides exactly between two pixels.
SPECS = {
    "everything": AugmentSpec(flip=0.3, jitter=0.6, saturation=1.5, hue=0.2, gray=0.25, blur=0.5),
    "failing": AugmentSpec(image_size=32, crop_scale=(0.8, 1.0), crop_ratio=(0.3, 3.0)),
    "large": AugmentSpec(image_size=224, crop_scale=(0.08, 1.0), brightness=0.37, blur=1.0, blur_sigma=(0.13, 1.9)),
    "oblong": AugmentSpec(image_size=11, crop_scale=(0.01, 1.0), crop_ratio=(0.01, 100.0)),
    "wide": AugmentSpec(image_size=20, crop_scale=(1.0, 1.0), crop_ratio=(2.0, 2.5)),
    "narrow": AugmentSpec(image_size=20, crop_scale=(1.0, 1.0), crop_ratio=(0.4, 0.5)),
    "one pixel": AugmentSpec(image_size=1),
    "halves": AugmentSpec(image_size=5, crop_scale=(0.25, 0.25), crop_ratio=(1.0, 1.0)),  # 2.5 pixels: rounds to 2
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_thousands_of_rows_equal_torchs_bit_for_bit(spec: AugmentSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_draw, "ROWS_PER_PROGRAM", 1024)  # the interpreter's time is per program
    ids = torch.arange(1500)
    ours, theirs = (draw(spec, 7, 3, ids, 2) for draw in (fused_draw.draw_in_one_launch, params._drawn_by_torch))
    assert ours.dtype == torch.float32 and torch.equal(ours, theirs)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 + 5, 2**63 - 1, 2**63 + 11, 2**64 - 1, -1])
@pytest.mark.parametrize("epoch", [0, 1, 2**31, 2**32 - 1])
def test_every_bit_of_seed_epoch_and_id_counts(seed: int, epoch: int) -> None:
    ids = torch.tensor([0, 1, 2**31, 2**32 - 1, 2**32, 2**40 + 3, 2**63 - 1, -1])
    spec = SPECS["everything"]
    ours, theirs = (draw(spec, seed, epoch, ids, 3) for draw in (fused_draw.draw_in_one_launch, params._drawn_by_torch))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("seed", [0, 2**32 + 5, 2**63 - 1, -1])
def test_a_seed_and_an_epoch_on_the_device_are_followed(seed: int) -> None:
    ids, spec = torch.arange(40), SPECS["everything"]
    seeds, epochs = torch.tensor(seed), torch.tensor(0)
    for epoch in (0, 3, 2**32 - 1):
        epochs.fill_(epoch)
        expected = params._drawn_by_torch(spec, seed, epoch, ids, 2)
        assert torch.equal(fused_draw.draw_in_one_launch(spec, seeds, epochs, ids, 2), expected)
        assert torch.equal(fused_draw.draw_in_one_launch(spec, seed, epochs, ids, 2), expected)


@pytest.mark.parametrize(("count", "views"), [(0, 2), (1, 1), (1, 200), (63, 1), (65, 1), (33, 3)])
def test_any_number_of_samples_and_views_is_served(count: int, views: int) -> None:
    ids = torch.arange(2 * count)[::2]  # not contiguous
    spec = SPECS["everything"]
    ours, theirs = (draw(spec, 5, 0, ids, views) for draw in (fused_draw.draw_in_one_launch, params._drawn_by_torch))
    assert ours.shape == (views * count, len(params.COLUMNS)) and torch.equal(ours, theirs)


def test_the_specs_reach_the_tenth_attempt_and_the_fallback() -> None:
    # What the first test rests on: rows without a crop, and rows whose only fit is among the last attempts.
    spec = SPECS["failing"]
    words = params._words(7, 3, torch.arange(1500), 2)
    chance = params.uniform(words, torch.float64)[params._WORD_ATTEMPTS :]
    _, _, found = params._crop_sides(spec, chance)
    early = chance.clone()
    early[:18] = 1.0  # the widest crop of the largest area: does not fit
    _, _, at_last = params._crop_sides(spec, early)
    assert 0 < int(found.sum()) < len(found) and int(at_last.sum()) > 0
    for name in ("wide", "narrow"):
        assert not params._crop_sides(SPECS[name], chance)[2].any()
