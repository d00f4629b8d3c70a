"""The pictures of a pretraining run show its log and its views."""

from __future__ import annotations

import numpy as np
import pytest

from fixtures.figure_parts import texts
from simclr_engine.report import pretraining_figures


def test_the_loss_curve_draws_the_loss_and_its_chance_level() -> None:
    figure = pretraining_figures.loss_curve([1.0, 2.0, 3.0], [5.0, 4.0, 3.5], [5.5, 5.5, 5.5], images=512)
    loss, chance = figure.axes[0].lines
    np.testing.assert_array_equal(loss.get_xydata(), [[1, 5], [2, 4], [3, 3.5]])
    np.testing.assert_array_equal(chance.get_ydata(), [5.5] * 3)
    assert "NT-Xent loss (nats)" in texts(figure)
    assert "epoch (of 512 images)" in texts(figure)


def test_chance_of_finding_the_positive_is_one_in_the_number_of_candidates() -> None:
    figure = pretraining_figures.contrast_curve([1.0, 2.0], [0.1, 0.2], [0.3, 0.4], [np.log(255)] * 2)
    top1, p_pos, chance = figure.axes[0].lines
    np.testing.assert_array_equal(top1.get_ydata(), [0.3, 0.4])
    np.testing.assert_array_equal(p_pos.get_ydata(), [0.1, 0.2])
    np.testing.assert_allclose(chance.get_ydata(), 1 / 255)


def test_the_monitors_draw_their_columns_and_their_reference_lines() -> None:
    knn = pretraining_figures.knn_curve([1.0], [0.4], monitored=500, classes=10)
    assert knn.axes[0].lines[0].get_ydata() == [0.4]
    assert knn.axes[0].lines[1].get_ydata() == [0.1, 0.1]
    spread = pretraining_figures.feature_curve([1.0, 2.0], [0.03, 0.02], [40.0, 30.0], dim=256)
    assert spread.axes[0].lines[1].get_ydata() == [1 / 16, 1 / 16]
    np.testing.assert_array_equal(spread.axes[1].lines[0].get_ydata(), [40, 30])
    assert len(pretraining_figures.feature_curve([1.0], [0.03], None).axes) == 1
    rate = pretraining_figures.lr_curve([0.0, 1.0], [0.1, 0.2])
    np.testing.assert_array_equal(rate.axes[0].lines[0].get_ydata(), [0.1, 0.2])


@pytest.mark.parametrize("views", [1, 4, 16])
def test_the_augmentation_sheet_shows_the_original_and_every_view(views: int) -> None:
    rng = np.random.default_rng(0)
    original, batch = rng.integers(0, 256, (9, 9, 3), np.uint8), rng.integers(0, 256, (views, 7, 7, 3), np.uint8)
    figure = pretraining_figures.augmentation_sheet(original, batch)
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]
    assert len(shown) == 1 + views
    np.testing.assert_array_equal(shown[0], original)
    for got, expected in zip(shown[1:], batch, strict=True):
        np.testing.assert_array_equal(got, expected)
    several = pretraining_figures.augmentation_sheet(np.stack([original] * 2), np.stack([batch] * 2))
    assert sum(bool(axes.images) for axes in several.axes) == 2 * (1 + views)


def test_views_that_do_not_belong_to_the_originals_are_refused() -> None:
    with pytest.raises(ValueError, match="need originals"):
        pretraining_figures.augmentation_sheet(np.zeros((2, 8, 8, 3), np.uint8), np.zeros((3, 4, 8, 8, 3), np.uint8))
