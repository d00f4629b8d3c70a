"""The chunked NT-Xent against the plain M × M one in float64: value, gradient, second derivative, edges, memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fixtures.ntxent_edges import FINITE, NOT_FINITE, gradient_penalty, projections
from reference import ntxent_truth as truth
from simclr_engine.kernels import nt_xent
from simclr_engine.kernels.ntxent import chunked


def ours(z: torch.Tensor, views: int, temperature: float, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = z.detach().clone().requires_grad_()
    loss = nt_xent(leaf, views, temperature)
    (loss * scale).backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


def gradient_error(gradient: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative norm; absolute, in tenths, where the gradient vanishes (it is zero for one sample of two views)."""
    return float((gradient.double() - expected).norm() / (expected.norm() if expected.norm() > 1e-9 else 0.1))


# 1: nothing to contrast with; 2: the least that there is; 17, 33: odd; 100: several tiles but no whole number of them.
@pytest.mark.parametrize("batch", [1, 2, 17, 33, 100])
@pytest.mark.parametrize("views", [2, 3, 4, 8])
def test_float32_equals_the_truth(batch: int, views: int) -> None:
    for width in (16, 64, 128, 256):
        z = projections(views * batch, width, seed=width)
        for temperature in (0.05, 0.1, 0.5, 1.0):
            loss, gradient = ours(z, views, temperature)
            expected_loss, expected = truth.loss_and_gradient(z, views, temperature)
            assert loss.dtype == torch.float32 and loss.shape == ()
            torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-6, atol=1e-6)
            assert gradient_error(gradient, expected) < 1e-5, (width, temperature)


@pytest.mark.parametrize(("views", "temperature"), [(2, 0.05), (2, 0.5), (4, 0.1)])
def test_float32_equals_the_truth_over_several_strips(
    views: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(chunked.STRIP_BYTES, "cpu", 2**20)
    z = projections(views * 513, 128)
    assert len(chunked.strips(z, len(z))) > 4
    loss, gradient = ours(z, views, temperature)
    expected_loss, expected = truth.loss_and_gradient(z, views, temperature)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-6, atol=1e-6)
    assert gradient_error(gradient, expected) < 1e-5


@pytest.mark.parametrize("strip", [1, 3, 7, 1000])
@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_float64_equals_the_truth_whatever_the_strips(
    strip: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(chunked.STRIP_BYTES, "cpu", strip * 24 * 8)
    z = projections(24, 5, dtype=torch.float64)
    loss, gradient = ours(z, 3, temperature)
    expected_loss, expected = truth.loss_and_gradient(z, 3, temperature)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.03, 0.0299, 0.02, 0.005])
def test_low_temperatures_neither_overflow_nor_underflow(temperature: float) -> None:
    # Opposite vectors: with the fixed maximum 1/τ the sum would be exp(−2/τ), which float32 cannot hold.
    z = torch.cat((projections(4, 8), -projections(4, 8)))
    loss, gradient = ours(z, 2, temperature)
    expected_loss, expected = truth.loss_and_gradient(z, 2, temperature)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-5, atol=1e-5)
    assert gradient_error(gradient, expected) < 1e-4


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.2])
def test_gradient_late_in_training_is_as_good_as_the_frameworks_own(temperature: float) -> None:
    # Positives almost aligned: the softmax is nearly certain, and the gradient a small difference of large terms.
    z = projections(128, 64).repeat(2, 1) + 0.05 * projections(256, 64, seed=1)
    loss, gradient = ours(z, 2, temperature)
    expected_loss, expected = truth.loss_and_gradient(z, 2, temperature)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-4, atol=1e-6)
    eager = z.clone().requires_grad_()
    truth.nt_xent(eager, 2, temperature).backward()
    assert eager.grad is not None
    assert gradient_error(gradient, expected) < 1.5 * gradient_error(eager.grad, expected) + 1e-6


# At τ = 0.02 and noise 0.45 the loss is 7e-6: log-softmax's gradient is off by 1e-3, sums from a fixed maximum by more.
@pytest.mark.parametrize(("temperature", "noise"), [(0.01, 0.6), (0.02, 0.45), (0.02, 0.02), (0.03, 0.3), (0.05, 0.02)])
@pytest.mark.parametrize("views", [2, 3])
def test_a_loss_of_nearly_zero_at_low_temperature_keeps_its_digits(
    views: int, temperature: float, noise: float
) -> None:
    z = projections(64, 32).repeat(views, 1) + noise * projections(64 * views, 32, seed=1)
    loss, gradient = ours(z, views, temperature)
    expected_loss, expected = truth.loss_and_gradient(z, views, temperature)
    eager = z.clone().requires_grad_()
    truth.nt_xent(eager, views, temperature).backward()
    assert eager.grad is not None
    if views == 2:
        assert expected_loss < 1e-3 and float((eager.grad - expected).norm() / expected.norm()) > 1e-5
        torch.testing.assert_close(loss.double(), expected_loss, rtol=5e-6, atol=0)
        assert float((gradient - expected).norm() / expected.norm()) < 1e-5
    else:  # positives of nearly equal weight: what is left of their difference is as good as the framework's
        assert gradient_error(gradient, expected) < 1.5 * gradient_error(eager.grad, expected) + 1e-6


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 4e-3), (torch.float16, 1e-3)])
def test_low_precision_input_is_computed_in_float32(dtype: torch.dtype, tolerance: float) -> None:
    z = projections(200, 64, dtype=dtype)
    loss, gradient = ours(z, 2, 0.1, scale=1024.0)  # scaled as a GradScaler would, or fp16 would underflow
    expected_loss, expected = truth.loss_and_gradient(z, 2, 0.1)
    assert loss.dtype == torch.float32 and gradient.dtype == dtype
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-6, atol=1e-6)
    assert gradient_error(gradient / 1024, expected) < tolerance


def test_two_views_are_the_cross_entropy_of_the_paper() -> None:
    # Written as in Chen et al.: for each of 2N rows, cross entropy over 2N − 1 others with its one positive as target.
    z = projections(20, 8, dtype=torch.float64)
    unit = torch.nn.functional.normalize(z)
    losses = []
    for i in range(20):
        others = [j for j in range(20) if j != i]
        logits = (unit[i] * unit[others]).sum(1) / 0.5
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(others.index((i + 10) % 20))))
    torch.testing.assert_close(nt_xent(z, 2, 0.5), torch.stack(losses).mean(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("views", "temperature"), [(2, 0.5), (3, 0.07), (4, 1.0), (2, 0.02)])
def test_gradcheck_and_gradgradcheck(views: int, temperature: float) -> None:
    z = projections(views * 3, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: nt_xent(t, views, temperature), z)
    assert torch.autograd.gradgradcheck(lambda t: nt_xent(t, views, temperature), z)


def test_a_gradient_penalty_reaches_the_parameters_before_z() -> None:
    expected = gradient_penalty(lambda z: truth.nt_xent(z, 2, 0.3), torch.float64)
    assert expected.norm() > 1e-4
    found = gradient_penalty(lambda z: nt_xent(z, 2, 0.3), torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_grad_output_scales_the_gradient() -> None:
    z = projections(34, 16, dtype=torch.float64)
    torch.testing.assert_close(ours(z, 2, 0.1, scale=-3.5)[1], -3.5 * ours(z, 2, 0.1)[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", FINITE)
def test_edge_cases_are_as_in_the_truth(name: str) -> None:
    loss, gradient = ours(FINITE[name], 2, 0.2)
    expected_loss, expected = truth.loss_and_gradient(FINITE[name], 2, 0.2)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("temperature", [0.5, 0.02])
@pytest.mark.parametrize("bad", NOT_FINITE)
def test_what_is_not_finite_gives_nan_and_not_a_number(bad: float, temperature: float) -> None:
    z = projections(32, 8)
    z[6, 3] = bad
    loss, gradient = ours(z, 2, temperature)
    assert torch.isnan(loss)
    assert torch.isnan(gradient).any()


def test_one_sample_of_two_views_has_nothing_to_tell_apart() -> None:
    for seed, temperature in ((0, 0.5), (1, 0.07), (2, 0.02)):
        loss, gradient = ours(projections(2, 16, seed=seed), 2, temperature)
        assert float(loss) == 0.0 and not gradient.any()


def test_vectors_without_meaning_are_at_chance_level() -> None:
    loss = nt_xent(projections(2 * 500, 2048), 2, 1.0)  # nearly orthogonal
    assert abs(float(loss) - float(torch.log(torch.tensor(999.0)))) < 0.01


def test_non_contiguous_projections_work() -> None:
    z = projections(16, 48, dtype=torch.float64)
    for strided in (z.T, z[::2, ::3]):
        loss, gradient = ours(strided, 2, 0.3)
        expected_loss, expected = truth.loss_and_gradient(strided.contiguous(), 2, 0.3)
        torch.testing.assert_close(loss, expected_loss)
        torch.testing.assert_close(gradient, expected)


def test_autocast_does_not_lower_the_precision() -> None:
    z = projections(64, 32)
    expected = ours(z, 2, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = ours(z, 2, 0.1)
    assert torch.equal(inside[0], expected[0]) and torch.equal(inside[1], expected[1])


def test_the_result_is_repeatable_bit_for_bit() -> None:
    z = projections(300, 64)
    first, second = ours(z, 2, 0.1), ours(z, 2, 0.1)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


class _LargestTensor(TorchDispatchMode):
    """Remembers the most numbers that any operation returned."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


@pytest.mark.parametrize("temperature", [0.5, 0.02])
def test_the_square_matrix_is_never_held(temperature: float) -> None:
    z = projections(4096, 8)
    with _LargestTensor() as largest:
        ours(z, 2, temperature)
    assert 0 < largest.numbers <= chunked.STRIP_BYTES["cpu"] // 4 < 4096**2 // 4


def test_only_z_and_one_number_per_row_wait_for_backward() -> None:
    kept: list[torch.Tensor] = []
    z = projections(64, 16).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        nt_xent(z, 2, 0.5)
    assert sorted(t.numel() for t in kept) == [64, 64 * 16]


@pytest.mark.parametrize("where", ["before", "around"])
def test_torch_compile_before_and_around_the_loss(where: str) -> None:
    weight = projections(16, 8, seed=1).requires_grad_()
    x = projections(32, 16)

    def step(x: torch.Tensor) -> torch.Tensor:
        return nt_xent((x @ weight).relu() + 0.1, 2, 0.5) * 2

    def head(x: torch.Tensor) -> torch.Tensor:
        return (x @ weight).relu() + 0.1

    step(x).backward()
    expected, weight.grad = weight.grad, None
    if where == "around":
        torch.compile(step, backend="aot_eager")(x).backward()
    else:
        (nt_xent(torch.compile(head, backend="aot_eager")(x), 2, 0.5) * 2).backward()
    assert weight.grad is not None and expected is not None
    torch.testing.assert_close(weight.grad, expected)
