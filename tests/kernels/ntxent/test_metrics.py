"""p_pos and top-1 against row-by-row loops in float64, and at the ends of their scales."""

from __future__ import annotations

import math

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from reference import ntxent_truth as truth
from simclr_engine.kernels import contrastive_metrics, nt_xent
from simclr_engine.kernels.ntxent import chunked


def projections(rows: int, seed: int = 0) -> torch.Tensor:
    shared = torch.randn(rows, 16, generator=torch.Generator().manual_seed(seed))
    return shared + 0.7 * shared.roll(rows // 2, 0)


@pytest.mark.parametrize(("batch", "views"), [(1, 3), (2, 2), (20, 2), (13, 3), (9, 4)])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_both_equal_loops_over_rows(batch: int, views: int, temperature: float) -> None:
    z = projections(batch * views)
    p_pos, top1 = contrastive_metrics(z, views, temperature)
    assert float(p_pos) == pytest.approx(truth.p_pos(z, views, temperature), rel=1e-4)
    assert float(top1) == pytest.approx(truth.top1(z, views), abs=1e-6)


def test_strips_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    z = projections(40)
    whole = contrastive_metrics(z, 2, 0.2)
    monkeypatch.setitem(chunked.STRIP_BYTES, "cpu", 3 * 40 * 4)
    torch.testing.assert_close(contrastive_metrics(z, 2, 0.2), whole)


def test_for_one_sample_of_two_views_p_pos_is_one_and_the_loss_says_so() -> None:
    z = torch.randn(2, 8)
    p_pos, top1 = contrastive_metrics(z, 2, 0.5)
    assert float(p_pos) == 1 and float(top1) == 1
    assert math.exp(-float(nt_xent(z, 2, 0.5))) == pytest.approx(1)


def test_aligned_views_of_different_samples_score_one() -> None:
    p_pos, top1 = contrastive_metrics(torch.eye(8).repeat(2, 1), 2, 0.05)
    assert float(p_pos) > 0.999 and float(top1) == 1


def test_collapsed_vectors_are_at_chance_and_find_nothing() -> None:
    p_pos, top1 = contrastive_metrics(torch.ones(32, 8), 2, 0.5)
    assert float(p_pos) == pytest.approx(1 / 31) and float(top1) == 0


def test_what_is_not_finite_is_not_hidden() -> None:
    z = projections(16)
    z[0, 0] = float("nan")
    assert math.isnan(float(contrastive_metrics(z, 2, 0.5)[0]))


def test_nothing_is_kept_for_backward_and_no_value_is_read() -> None:
    z = projections(16).requires_grad_()
    assert not any(t.requires_grad for t in contrastive_metrics(z, 2, 0.5))
    with FakeTensorMode():  # its tensors have no values: reading one raises
        figures = contrastive_metrics(torch.empty(16, 8), 2, 0.5)
        assert [t.shape for t in figures] == [(), ()]
        with pytest.raises(DataDependentOutputException):
            figures[0].item()


@pytest.mark.parametrize("bad", [{"views": 1}, {"temperature": 0.0}, {"views": 3}])
def test_what_the_loss_refuses_is_refused_here(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"views|temperature"):
        contrastive_metrics(torch.zeros(16, 8), **bad)
