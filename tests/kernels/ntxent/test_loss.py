"""How PyTorch sees the fused NT-Xent, as far as no kernel has to run: shapes, strides, what is refused, what is chosen.

Kernels run in tests/interpreter (on the CPU) and tests/gpu.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from simclr_engine.kernels.ntxent import fused

CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("dimension", "temperature", "reason"),
    [
        (1, 0.03, ""),
        (256, 0.03, ""),
        (257, 0.5, "it needs projections of at most 256 numbers, not 257"),
        (128, 0.0299, "it needs a temperature of at least 0.03, not 0.0299"),
    ],
)
def test_widths_and_temperatures_out_of_range_are_refused(
    dimension: int, temperature: float, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "why_no_triton", lambda device, capability: "" if capability == (8, 0) else "too little")
    assert fused.why_not(CUDA, dimension, temperature) == reason


def test_without_triton_the_loss_loads_and_runs() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from simclr_engine.kernels.ntxent import fused\n"
        "from simclr_engine.kernels import nt_xent\n"
        "import torch; nt_xent(torch.ones(4, 4))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("dimension", "width"), [(1, 64), (16, 64), (64, 64), (65, 128), (128, 128), (129, 256), (256, 256)]
)
def test_vectors_are_padded_to_the_next_width(dimension: int, width: int) -> None:
    assert fused.padded(dimension) == width


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
            assert fused.products_of(torch.float32) == products
            assert fused.products_of(torch.bfloat16) == "bf16"
            assert fused.products_of(torch.float16) == "fp16"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_the_tiles_are_those_of_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, family in (((8, 6), 80), ((9, 0), 90), ((10, 0), 100)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, capability=capability: capability)
        assert fused.tiles.__wrapped__(CUDA, "bf16", 128) is fused.TILES[family]["bf16", 128]


def test_a_weight_in_fp16_can_not_overflow() -> None:
    assert 2 * fused.WEIGHT_SCALE[torch.float16] < torch.finfo(torch.float16).max
