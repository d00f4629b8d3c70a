"""How PyTorch sees the fused NT-Xent, as far as no kernel has to run: shapes, strides, what is refused, what is chosen.

Kernels run in tests/interpreter (on the CPU) and tests/gpu.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from simclr_engine.kernels.ntxent import triton

CUDA = torch.device("cuda")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Pretends that there is a card of some capability; forgets what was found out about devices."""

    def pretend(major: int, minor: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, minor))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card")

    triton._why_not_device_at_all.cache_clear()
    triton.plan.cache_clear()
    yield pretend
    triton._why_not_device_at_all.cache_clear()
    triton.plan.cache_clear()


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_cards_from_ampere_on_are_served(capability: tuple[int, int], card: Any) -> None:
    pytest.importorskip("triton")
    card(*capability)
    for dimension in (1, 128, 256):
        assert triton.why_not(CUDA, dimension, 0.03) == ""


@pytest.mark.parametrize(
    ("capability", "dimension", "temperature", "reason"),
    [
        ((7, 5), 128, 0.5, "it needs compute capability 8.0, and Card has 7.5"),
        ((9, 0), 257, 0.5, "it needs projections of at most 256 numbers, not 257"),
        ((9, 0), 128, 0.0299, "it needs a temperature of at least 0.03, not 0.0299"),
    ],
)
def test_what_keeps_it_is_said(
    capability: tuple[int, int], dimension: int, temperature: float, reason: str, card: Any
) -> None:
    pytest.importorskip("triton")
    card(*capability)
    assert triton.why_not(CUDA, dimension, temperature) == reason


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_other_devices_are_refused(device: str, card: Any) -> None:
    pytest.importorskip("triton")
    assert triton.why_not(torch.device(device), 128, 0.5) == "it needs an NVIDIA GPU"


def test_without_triton_or_without_a_device_the_module_loads_and_says_so(
    card: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "find_spec", lambda name: None)
    assert triton.why_not(CUDA, 128, 0.5) == "it needs Triton, which is not installed"
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from simclr_engine.kernels import nt_xent\n"
        "from simclr_engine.kernels.ntxent import triton, distributed\n"
        "import torch; nt_xent(torch.ones(4, 4))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("dimension", "width"), [(1, 64), (16, 64), (64, 64), (65, 128), (128, 128), (129, 256), (256, 256)]
)
def test_vectors_are_padded_to_the_next_width(dimension: int, width: int) -> None:
    assert triton.padded(dimension) == width


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_operators_promise_the_right_shapes_types_and_strides(dtype: torch.dtype) -> None:
    with FakeTensorMode():
        z = torch.empty(40, 12, dtype=dtype, device="cuda").T  # 12 rows, not contiguous
        loss, unit, inverse = torch.ops.simclr_engine.nt_xent_forward(z, 3, 0.5)
        gradient = torch.ops.simclr_engine.nt_xent_backward(loss, z, unit, inverse, 3, 0.5)
    assert (loss.shape, loss.dtype, loss.device.type) == ((), torch.float32, "cuda")
    assert (unit.shape, unit.dtype, unit.stride()) == ((12, 64), dtype, (64, 1))
    assert (inverse.shape, inverse.dtype) == ((12,), torch.float32)
    assert (gradient.shape, gradient.dtype, gradient.stride()) == ((12, 40), dtype, (40, 1))


def test_float32_is_multiplied_as_torch_is_told_to() -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for setting, products in (("ieee", "fp32"), ("tf32", "tf32"), ("none", "fp32")):
            torch.backends.cuda.matmul.fp32_precision = setting
            assert triton.products_of(torch.float32) == products
            assert triton.products_of(torch.bfloat16) == "bf16"
            assert triton.products_of(torch.float16) == "fp16"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_the_tiles_are_those_of_the_card(card: Any) -> None:
    for capability, family in (((8, 6), 80), ((9, 0), 90), ((10, 0), 100)):
        card(*capability)
        triton.plan.cache_clear()
        assert triton.plan(CUDA, "bf16", 128) is triton.TILES[family]["bf16", 128]


def test_a_weight_in_fp16_can_not_overflow() -> None:
    assert 2 * triton.WEIGHT_SCALE[torch.float16] < torch.finfo(torch.float16).max
