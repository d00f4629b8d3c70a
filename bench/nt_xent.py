"""Speed, memory and error of the loss, beside the usual ways to write it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from simclr_engine.device import Platform, choose_platform
from simclr_engine.kernels import nt_xent, pick_nt_xent
from simclr_engine.timing import interleave

from .baselines import nt_xent_boolean_mask, nt_xent_eager
from .rows import Floor, Row, missing_row, peak_extra_bytes, time_row

DIMENSION, TEMPERATURE, VIEWS = 128, 0.5, 2
# The largest M × M matrix that the usual ways are measured with; beyond it they are left out, and named. Indexing by
# masks copies it several times, and on a CPU takes minutes where the others take seconds.
MATRIX_BYTES = {"cpu": 2**30, "cuda": 16 * 2**30}
MASKED_BYTES = {"cpu": 2**28, "cuda": 4 * 2**30}

_LARGE = "NT-Xent M = 16384, D = 128, float32, forward + backward"
FLOORS = (
    Floor(_LARGE, "ours (torch)", of="eager", most=1.1),
    Floor(_LARGE, "ours (torch)", of="eager", most=0.1, field="peak_bytes"),
)
_BF16 = "NT-Xent M = {}, D = 128, bfloat16, forward + backward"
CUDA_FLOORS = (
    Floor(_BF16.format(8192), "ours (triton)", of="eager", most=1 / 5),
    Floor(_BF16.format(8192), "ours (triton)", of="torch.compile", most=1 / 2),
    Floor(_BF16.format(1024), "ours (triton)", of="eager", most=1),
    Floor(_BF16.format(1024), "ours (triton)", of="torch.compile", most=1),
)

CONTENDERS = ("ours (triton)", "ours (torch)", "eager", "boolean-mask eager", "torch.compile")

Loss = Callable[[Tensor], Tensor]


def floors() -> tuple[Floor, ...]:
    """What must hold on this machine's device."""
    return CUDA_FLOORS if choose_platform().device.type == "cuda" else FLOORS


def rows(repeats: int = 7, sizes: Sequence[int] | None = None) -> list[Row]:
    """`each_row`, all at once."""
    return list(each_row(repeats, sizes))


def each_row(repeats: int = 7, sizes: Sequence[int] | None = None, only: str | None = None) -> Iterator[Row]:
    """Milliseconds of forward and of forward + backward, contenders interleaved, for each number of rows M.

    Each row also holds `peak_bytes` (allocated beyond z), `loss_error` and `gradient_error` (relative, norm) against
    float64, and `tflops`, counting 2·M²·D for the forward and three times that with the backward: what the formula
    needs, whatever a contender really computes.

    Args:
        repeats: timed calls per contender.
        sizes: numbers of rows M = V·B; by default what the device can hold.
        only: one of CONTENDERS, to be measured alone.
    """
    platform = choose_platform()
    device = platform.device
    cuda = device.type == "cuda"
    if sizes is None:
        sizes = (256, 1024, 2048, 4096, 8192, 16384, 32768) if cuda else (1024, 4096, 16384)
    dtypes = (torch.bfloat16, torch.float32) if cuda else (torch.float32,)
    for dtype in dtypes:
        for total in sizes:
            yield from _rows_of(total, dtype, platform, repeats, only)


def _rows_of(total: int, dtype: torch.dtype, platform: Platform, repeats: int, only: str | None) -> Iterator[Row]:
    device = platform.device
    generator = torch.Generator().manual_seed(total)
    sample = torch.randn(total // VIEWS, DIMENSION, generator=generator).repeat(VIEWS, 1)
    z = (sample + torch.randn(total, DIMENSION, generator=generator)).to(device, dtype)
    truth, true_gradient = _with_gradient(lambda x: nt_xent(x, VIEWS, TEMPERATURE, backend="torch"), z.double())
    title = f"NT-Xent M = {total}, D = {DIMENSION}, {str(dtype).removeprefix('torch.')}"
    contenders, missing = _contenders(total, z, only)
    for mode, factor in (("forward", 1), ("forward + backward", 3)):
        calls = {name: _call(loss, z, mode) for name, loss in contenders.items()}
        timings = interleave(calls, repeats, warmup=2, synchronize=platform.synchronize)
        for name, timing in timings.items():
            loss, gradient = _with_gradient(contenders[name], z)
            more: dict[str, Any] = {
                "rows": total,
                "dtype": str(dtype).removeprefix("torch."),
                "peak_bytes": peak_extra_bytes(calls[name], device),
                "loss_error": float(((loss.double() - truth) / truth).abs()),
                "gradient_error": float((gradient.double() - true_gradient).norm() / true_gradient.norm()),
                "tflops": factor * 2 * total**2 * DIMENSION / timing.median / 1e12,
            }
            yield time_row(f"{title}, {mode}", name, timing, **more)
        yield from (missing_row(f"{title}, {mode}", name, "ms", note) for name, note in missing.items())


def compiled(loss: Loss, backend: str | Callable[..., Any] = "inductor") -> Loss:
    """The loss, compiled anew for each of few shapes.

    torch keeps at most eight versions of a function and runs it eagerly from then on, silently: what was compiled
    before is forgotten first, and a whole graph is asked for, which raises where there would be none.
    """
    torch.compiler.reset()
    return torch.compile(loss, fullgraph=True, dynamic=False, backend=backend)


def _contenders(total: int, z: Tensor, only: str | None) -> tuple[dict[str, Loss], dict[str, str]]:
    """The losses that run, and the reason for each that does not."""
    running: dict[str, Loss] = {}
    missing: dict[str, str] = {}
    for backend in ("triton", "torch"):
        try:
            pick_nt_xent(backend, z.device, DIMENSION, TEMPERATURE)
        except ValueError as reason:
            missing[f"ours ({backend})"] = str(reason)
        else:
            running[f"ours ({backend})"] = lambda x, b=backend: nt_xent(x, VIEWS, TEMPERATURE, backend=b)  # type: ignore[misc]  # b binds early
    usual: dict[str, Loss] = {
        "eager": lambda x: nt_xent_eager(x, TEMPERATURE),
        "boolean-mask eager": lambda x: nt_xent_boolean_mask(x, TEMPERATURE),
    }
    if z.is_cuda:  # on the CPU compiling takes a minute for each shape and gains nothing that is claimed
        usual["torch.compile"] = compiled(lambda x: nt_xent_eager(x, TEMPERATURE))
    else:
        missing["torch.compile"] = "compared on CUDA alone"
    matrix = total**2 * z.element_size()
    for name in list(usual):
        largest = MASKED_BYTES if name == "boolean-mask eager" else MATRIX_BYTES
        if matrix > largest.get(z.device.type, 2**28):
            missing[name] = f"left out: {total} × {total} matrices are too much for it here"
            del usual[name]
    found = running | usual
    if only is not None:
        found = {k: v for k, v in found.items() if k == only}
        missing = {k: v for k, v in missing.items() if k == only}
    return found, missing


def _call(loss: Loss, z: Tensor, mode: str) -> Callable[[], object]:
    if mode == "forward":

        @torch.no_grad()
        def forward() -> Tensor:
            return loss(z)

        return forward

    leaf = z.clone().requires_grad_()

    return lambda: torch.autograd.grad(loss(leaf), leaf)


def _with_gradient(loss: Loss, z: Tensor) -> tuple[Tensor, Tensor]:
    leaf = z.detach().clone().requires_grad_()
    value = loss(leaf)
    return value.detach(), torch.autograd.grad(value, leaf)[0]
