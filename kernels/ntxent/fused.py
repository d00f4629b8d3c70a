"""The Triton backend of NT-Xent: fused, in memory that grows with M·D, for NVIDIA GPUs from Ampere on.

Four launches: prepare → sums of E over tiles → finish (ℓ and the loss) → gradients; with many rows a fifth adds up the
loss. The device code and its formulas are in `fused_kernels`. Here is what is launched, with which tiles, and how
PyTorch sees it: for one process as two operators, `simclr_engine::nt_xent_forward` and `nt_xent_backward`.

Nothing waits for the device: what is launched depends on shapes alone, so a step with this loss can be captured in a
CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..dispatch import interpreting, why_no_triton
from .operators import register

WIDTHS = (64, 128, 256)
# From this many rows on, the sums of tiles (M²/BLOCK numbers) would cost more memory than they save time: each program
# then sums whole rows, which computes each tile twice.
SYMMETRIC_UP_TO = 16384
# One program finishes up to this many sums; beyond it is quicker to finish in many programs and to add their shares.
CELLS_OF_ONE_FINISH = 16384
FINISH = {"SAMPLES": 256, "PARTS": 16, "num_warps": 8}
# Numbers of one block of `prepare`, which holds a few of them in registers.
PREPARE_BLOCK = 1024

# exp((s − 1)/τ) reaches down to exp(−2/τ), which float32 holds while 2/τ < 87; fp16 weights need the room above it.
LEAST_TEMPERATURE = 0.03

LOG2_E = math.log2(math.e)


class Tile(NamedTuple):
    """Rows and columns of one tile of the M × M matrix, and how the program that computes it is compiled.

    chunk: how much of D one product takes at a time; 0 for all of it, which is what tensor cores take.
    """

    rows: int
    columns: int
    warps: int
    stages: int
    chunk: int = 0


class Tiles(NamedTuple):
    """The tiles of the three kernels that walk the M × M matrix; the symmetric ones are square."""

    symmetric: Tile
    sums: Tile
    gradients: Tile


# Chosen by compiling ahead of time with Triton 3.6 and 3.7 (tests/aot/test_aot_ntxent.py): no spills, within the
# shared memory, on tensor cores. Which of those that pass is fastest, only a GPU can say.
# Without tensor cores operands live in registers; the same tiles do everywhere.
_FP32 = {
    ("fp32", 64): Tiles(Tile(64, 64, 8, 2, 16), Tile(64, 64, 8, 2, 16), Tile(64, 32, 8, 2, 16)),
    ("fp32", 128): Tiles(Tile(64, 64, 8, 2, 16), Tile(64, 64, 8, 2, 16), Tile(64, 32, 8, 2, 16)),
    ("fp32", 256): Tiles(Tile(64, 64, 8, 2, 16), Tile(64, 64, 8, 2, 16), Tile(32, 16, 8, 2, 16)),
}
_AMPERE_TF32 = {
    ("tf32", 64): Tiles(Tile(64, 64, 4, 2), Tile(64, 64, 4, 2), Tile(64, 32, 8, 2)),
    ("tf32", 128): Tiles(Tile(64, 64, 8, 2), Tile(64, 32, 4, 2), Tile(32, 32, 4, 2)),
    ("tf32", 256): Tiles(Tile(64, 64, 8, 2, 64), Tile(64, 64, 8, 2, 64), Tile(32, 16, 8, 2)),
}
_HOPPER_TF32 = {
    ("tf32", 64): Tiles(Tile(128, 128, 8, 2), Tile(64, 64, 4, 3), Tile(64, 64, 4, 2)),
    ("tf32", 128): Tiles(Tile(64, 64, 4, 2), Tile(64, 64, 4, 2), Tile(64, 64, 8, 2)),
    ("tf32", 256): Tiles(Tile(64, 64, 4, 2), Tile(64, 32, 4, 2), Tile(64, 32, 8, 1)),
}
_BLACKWELL_TF32 = {
    ("tf32", 64): Tiles(Tile(128, 128, 8, 2), Tile(64, 64, 4, 2), Tile(64, 64, 8, 2)),
    ("tf32", 128): Tiles(Tile(128, 128, 8, 2), Tile(64, 64, 4, 2), Tile(64, 64, 8, 2)),
    ("tf32", 256): Tiles(Tile(64, 64, 4, 2), Tile(64, 32, 4, 2), Tile(64, 16, 8, 2)),
}


def _half(by_width: dict[int, Tiles]) -> dict[tuple[str, int], Tiles]:
    """The same tiles for both types of 16 bits."""
    return {(products, width): tiles for products in ("fp16", "bf16") for width, tiles in by_width.items()}


_AMPERE_HALF = {
    64: Tiles(Tile(128, 128, 8, 2), Tile(64, 64, 4, 3), Tile(64, 64, 8, 2)),
    128: Tiles(Tile(128, 128, 8, 2), Tile(64, 64, 4, 3), Tile(64, 64, 8, 3)),
    256: Tiles(Tile(128, 128, 8, 2, 64), Tile(64, 64, 8, 2), Tile(64, 32, 8, 2)),
}
_HOPPER_HALF = {
    64: Tiles(Tile(128, 128, 8, 2), Tile(128, 64, 8, 3), Tile(64, 64, 4, 3)),
    128: Tiles(Tile(128, 128, 8, 2), Tile(128, 64, 8, 3), Tile(64, 64, 4, 3)),
    256: Tiles(Tile(128, 128, 8, 2), Tile(128, 64, 8, 2), Tile(64, 64, 8, 2)),
}
_BLACKWELL_HALF = {
    64: Tiles(Tile(128, 128, 8, 2), Tile(128, 64, 8, 2), Tile(64, 64, 4, 2)),
    128: Tiles(Tile(128, 128, 8, 2), Tile(128, 64, 8, 2), Tile(64, 64, 4, 2)),
    256: Tiles(Tile(128, 128, 8, 2), Tile(64, 64, 4, 2), Tile(64, 64, 8, 2)),
}
# Family of compute capabilities → (type of the products, width of ẑ) → tiles.
TILES: dict[int, dict[tuple[str, int], Tiles]] = {
    80: _FP32 | _AMPERE_TF32 | _half(_AMPERE_HALF),
    90: _FP32 | _HOPPER_TF32 | _half(_HOPPER_HALF),
    100: _FP32 | _BLACKWELL_TF32 | _half(_BLACKWELL_HALF),
}

# Type of the products → scale of the weights. |W| ≤ 2, and with many rows nearly all of them are far less: in fp16 they
# would be subnormal. A power of two, so that nothing is rounded, with room up to 65,504.
WEIGHT_SCALE = {torch.float16: 2.0**14}


def why_not(device: torch.device, dimension: int, temperature: float) -> str:
    """What keeps this backend from serving such projections, as a sentence for users; "" if nothing does."""
    if dimension > WIDTHS[-1]:
        return f"it needs projections of at most {WIDTHS[-1]} numbers, not {dimension}"
    if temperature < LEAST_TEMPERATURE:
        return f"it needs a temperature of at least {LEAST_TEMPERATURE}, not {temperature}"
    # T4 (7.5): since Triton 3.3 products there are scalar, without the tensor cores it has, and spill.
    return why_no_triton(device, (8, 0))


def padded(dimension: int) -> int:
    """Numbers of a row of ẑ: a power of two, as Triton's blocks are. Few widths, so that each can be proved."""
    return next(width for width in WIDTHS if width >= dimension)


def products_of(dtype: torch.dtype) -> str:
    """How vectors of this type are multiplied just now: fp32, tf32, fp16 or bf16. float32 as torch's own matmul."""
    if dtype == torch.float32:
        return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "fp32"
    return {torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]


def family(capability: tuple[int, int]) -> int:
    """Which of `TILES` serve a compute capability.

    Hopper and data-centre Blackwell have matrix instructions of their own and 227 KiB of shared memory for a block. All
    others, and those not known yet, run what fits into the 99 KiB of the least of them.
    """
    return {(9, 0): 90, (10, 0): 100, (10, 3): 100}.get(capability, 80)


@cache
def tiles(device: torch.device, products: str, width: int) -> Tiles:
    """The tiles for ẑ `[M, width]` on this device."""
    capability = (8, 0) if device.type == "cpu" else torch.cuda.get_device_capability(device)
    return TILES[family(capability)][products, width]


def options(unit: Tensor, kernel: str) -> tuple[Tile, dict[str, Any]]:
    """The tile of a kernel for these ẑ `[M, width]`, and what it is compiled for beside the tile's rows and columns."""
    products, width = products_of(unit.dtype), unit.shape[1]
    tile: Tile = getattr(tiles(unit.device, products, width), kernel)
    return tile, {
        "PADDED": width,
        "CHUNK": tile.chunk or width,
        "PRECISION": "tf32" if products == "tf32" else "ieee",
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def forward(
    z: Tensor,
    views: int,
    temperature: float,
    first: int = 0,
    all_gather: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, None, Tensor]:
    """What `loss` needs of the rows z `[rows, D]`. Arguments as `chunked.forward`.

    float32 is multiplied as torch's own matrix products are at that moment (`torch.set_float32_matmul_precision`, or
    `torch.backends.cuda.matmul`): exactly, or in TF32.

    Returns:
        ẑ of all ranks `[M, padded D]` in the type of the products, 1/ℓ `[rows]`, None (nothing more), and the mean loss
        of these rows.
    """
    if all_gather is None:
        loss, unit, inverse = torch.ops.simclr_engine.nt_xent_forward(z, views, temperature)
        return unit, inverse, None, loss
    with on_device(z.device):
        unit, positive = prepare(z.contiguous(), views)
        everyone = all_gather(unit)
        inverse, loss = finish(row_sums(everyone, first, len(z), temperature), positive, views, temperature)
    return everyone, inverse, None, loss


def backward(
    grad_output: Tensor,
    z: Tensor,
    everyone: Tensor,
    inverse: Tensor,
    nothing: None,
    first: int,
    views: int,
    temperature: float,
) -> Tensor:
    """dz `[rows, D]` of the mean loss over these rows, from what `forward` returned, with 1/ℓ of all ranks."""
    if len(everyone) == len(z):
        grad: Tensor = torch.ops.simclr_engine.nt_xent_backward(grad_output, z, everyone, inverse, views, temperature)
        return grad
    with on_device(z.device):
        return gradients(grad_output, z.contiguous(), everyone, inverse, first, views, temperature)


def _forward_alone(z: Tensor, views: int, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and what the gradient needs: ẑ `[V·B, padded D]` in the type of the products, and 1/ℓ `[V·B]`."""
    with on_device(z.device):
        unit, positive = prepare(z.contiguous(), views)
        part = (
            symmetric_sums(unit, temperature) if len(z) <= SYMMETRIC_UP_TO else row_sums(unit, 0, len(z), temperature)
        )
        inverse, loss = finish(part, positive, views, temperature)
    return loss, unit, inverse


def _backward_alone(
    grad_output: Tensor, z: Tensor, unit: Tensor, inverse: Tensor, views: int, temperature: float
) -> Tensor:
    """The gradient `[V·B, D]` in z's dtype."""
    with on_device(z.device):
        return gradients(grad_output, z.contiguous(), unit, inverse, 0, views, temperature)


def _forward_shapes(z: Tensor, views: int, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    unit = z.new_empty(z.shape[0], padded(z.shape[1]))
    return z.new_empty((), dtype=torch.float32), unit, z.new_empty(z.shape[0], dtype=torch.float32)


register("nt_xent", _forward_alone, _backward_alone, _forward_shapes, ["CUDA", "CPU"] if interpreting() else ["CUDA"])


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be that of the tensors."""
    if device.type == "cpu" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def _blocks(count: int, size: int) -> int:
    return -(-count // size)


def prepare(z: Tensor, views: int) -> tuple[Tensor, Tensor]:
    """ẑ `[V·B, padded D]` in the type of the products, and each sample's mean similarity of two views `[B]`.

    This and the following take contiguous tensors, and launch on the current device.
    """
    from . import fused_kernels

    rows, width = z.shape
    batch = rows // views
    unit, positive = z.new_empty(rows, padded(width)), z.new_empty(batch, dtype=torch.float32)
    samples = PREPARE_BLOCK // unit.shape[1]
    fused_kernels.prepare[(_blocks(batch, samples),)](
        z, unit, positive, batch, views,
        WIDTH=width, PADDED=unit.shape[1], SAMPLES=samples, ROUND_TO_TF32=products_of(z.dtype) == "tf32", num_warps=4,
    )  # fmt: skip
    return unit, positive


def symmetric_sums(unit: Tensor, temperature: float) -> Tensor:
    """Sums of E over blocks of columns `[blocks, M]`; ℓ is their sum over blocks."""
    from . import fused_kernels

    rows = len(unit)
    tile, compiled_for = options(unit, "symmetric")
    blocks = _blocks(rows, tile.rows)
    part = unit.new_empty(blocks, rows, dtype=torch.float32)
    fused_kernels.symmetric_sums[(blocks * (blocks + 1) // 2,)](
        unit, part, rows, blocks, LOG2_E / temperature, BLOCK=tile.rows, **compiled_for
    )
    return part


def row_sums(unit: Tensor, first: int, rows: int, temperature: float) -> Tensor:
    """ℓ of `rows` rows from `first` on, against all: `[1, rows]`."""
    from . import fused_kernels

    tile, compiled_for = options(unit, "sums")
    part = unit.new_empty(1, rows, dtype=torch.float32)
    fused_kernels.row_sums[(_blocks(rows, tile.rows),)](
        unit, part, rows, len(unit), first, LOG2_E / temperature,
        ROWS=tile.rows, COLUMNS=tile.columns, **compiled_for,
    )  # fmt: skip
    return part


def finish(part: Tensor, positive: Tensor, views: int, temperature: float) -> tuple[Tensor, Tensor]:
    """1/ℓ of each row, and the mean loss."""
    from . import fused_kernels

    parts, rows = part.shape
    batch = len(positive)
    programs = 1 if part.numel() <= CELLS_OF_ONE_FINISH else _blocks(batch, FINISH["SAMPLES"])
    inverse, loss = part.new_empty(rows), part.new_empty(() if programs == 1 else (programs,))
    fused_kernels.finish[(programs,)](part, positive, inverse, loss, batch, views, parts, 1 / temperature, **FINISH)
    return inverse, loss if programs == 1 else loss.sum()


def gradients(
    grad_output: Tensor, z: Tensor, unit: Tensor, inverse: Tensor, first: int, views: int, temperature: float
) -> Tensor:
    """dz of the rows z `[rows, D]`, whose ẑ start at row `first` of unit; for the mean loss of these rows."""
    from . import fused_kernels

    rows, width = z.shape
    tile, compiled_for = options(unit, "gradients")
    scale = WEIGHT_SCALE.get(unit.dtype, 1.0)
    gradient = torch.empty_like(z)
    fused_kernels.gradients[(_blocks(rows, tile.rows),)](
        z, unit, inverse, grad_output, gradient, rows // views, rows, len(unit), first,
        LOG2_E / temperature, 2 / (views - 1), 1 / (rows * temperature * scale),
        WIDTH=width, ROWS=tile.rows, COLUMNS=tile.columns, WEIGHT_SCALE=scale, **compiled_for,
    )  # fmt: skip
    return gradient
