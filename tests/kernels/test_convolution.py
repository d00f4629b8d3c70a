"""Convolutions of small maps by matrix products are torch's convolutions, in value and in every gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from simclr_engine.kernels.convolution import convolve, spans


def operands(
    channels: int, outputs: int, height: int, width: int, dtype: torch.dtype, last: bool = True
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(height * 10 + width)
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(3, channels, height, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(outputs, channels, 3, 3, generator=generator, dtype=torch.float64)
    return [t.to(dtype).contiguous(memory_format=layout).requires_grad_() for t in (x, weight)]


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 3), (8, 7)])
@pytest.mark.parametrize("last", [True, False])
def test_value_and_gradients_are_those_of_conv2d(stride: int, height: int, width: int, last: bool) -> None:
    x, weight = operands(5, 6, height, width, torch.float64, last)
    ours, truth = convolve(x, weight, stride), F.conv2d(x, weight, None, stride, 1)
    assert ours.shape == truth.shape and (ours - truth).abs().max() <= 1e-12
    grad = torch.randn_like(truth)
    for a, b in zip(
        torch.autograd.grad(ours, (x, weight), grad), torch.autograd.grad(truth, (x, weight), grad), strict=True
    ):
        assert a.shape == b.shape and (a - b).abs().max() <= 1e-12


@pytest.mark.parametrize("stride", [1, 2])
def test_it_is_differentiable_twice(stride: int) -> None:
    x, weight = operands(2, 3, 3, 3, torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: convolve(a, b, stride), (x, weight))
    assert torch.autograd.gradgradcheck(lambda a, b: convolve(a, b, stride), (x, weight))


def test_only_the_gradients_that_are_wanted_are_computed() -> None:
    x, weight = operands(4, 4, 2, 2, torch.float32)
    convolve(x.detach(), weight, 1).sum().backward()
    assert weight.grad is not None and x.grad is None


# In float32 both errors are those of the order in which a few dozen numbers are added; in bfloat16, of one rounding.
@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, 1.2), (torch.float32, 2.0)])
def test_low_precision_is_as_close_to_float64_as_torchs_own(dtype: torch.dtype, share: float) -> None:
    x, weight = operands(64, 64, 4, 4, dtype)
    grad = torch.randn(3, 64, 4, 4).to(dtype)

    def errors(call: object) -> list[float]:
        assert callable(call)
        truth = F.conv2d(x64, weight64, None, 1, 1)
        true = [truth.detach(), *torch.autograd.grad(truth, (x64, weight64), grad.double())]
        value = call(x, weight)
        found = [value, *torch.autograd.grad(value, (x, weight), grad)]
        return [float((a.detach().double() - b).norm() / b.norm()) for a, b in zip(found, true, strict=True)]

    x64, weight64 = (t.detach().double().requires_grad_() for t in (x, weight))
    ours, torchs = errors(lambda a, b: convolve(a, b, 1)), errors(lambda a, b: F.conv2d(a, b, None, 1, 1))
    assert all(a <= share * b for a, b in zip(ours, torchs, strict=True)), (ours, torchs)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_spans_name_every_output_and_the_taps_inside_the_map(size: int, stride: int) -> None:
    outputs = [(i, span.taps) for span in spans(size, stride) for i in range(span.outputs.start, span.outputs.stop)]
    assert [i for i, _ in outputs] == list(range(-(-size // stride)))
    for i, taps in outputs:
        assert list(range(taps.start, taps.stop)) == [t for t in range(3) if 0 <= i * stride - 1 + t < size]
