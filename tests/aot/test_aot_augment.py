"""The augmentation's kernels compiled for real devices, without one: registers, shared memory, instructions. And what
the host side decides: which device is served, and how a view is cut."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import pytest
import torch

from simclr_engine.kernels.augmentation import fused as backend

pytest.importorskip("triton", reason="Triton exists for Linux only")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fixtures.aot import SHARED_LIMIT, TENSOR_CORE_OPCODES, Binding, Resources, usage
from simclr_engine.kernels import AugmentSpec
from simclr_engine.kernels.augmentation import fused_draw
from simclr_engine.kernels.augmentation.fused_apply import apply

CAPABILITIES = (75, 80, 90, 100)
# (image, size, blur's reach, type): each size at which the kernel is cut differently, with and without a blur, with
# crops that are never shrunk and with crops that are (image > size). The type decides the last instruction only, so
# the 16-bit ones stand for themselves where registers are scarcest.
CONFIGURATIONS = [
    *[
        (image, size, reach, "fp32")
        for size, reach in product((16, 24, 32, 64, 96), (0, 1))
        for image in (size, 32 if size < 32 else 96 if size < 96 else 224)
    ],
    *[(32, size, reach, half) for size, reach, half in product((32, 64), (0, 1), ("fp16", "bf16"))],
    *[(224, 224, 0, "bf16"), (224, 224, 11, "bf16"), (224, 96, 4, "bf16")],
]


def compiled(
    kernel: Any, signature: dict[str, str], constants: dict[str, object], capability: int, **options: object
) -> Any:
    """The kernel for a device; pointers may have any address, as the kernels ask for."""
    types = {name: "constexpr" if name in constants else signature[name] for name in kernel.arg_names}
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(ASTSource(kernel, types, constants), target=target, options=options)


def resources(kernel: Any) -> Resources:
    registers, stack = usage(kernel.asm["cubin"])
    opcodes = frozenset(name for name in TENSOR_CORE_OPCODES if name in kernel.asm["ptx"])
    return Resources(registers, stack, kernel.metadata.shared, opcodes)


def compiled_apply(image: int, size: int, reach: int, output: str, cut: backend.Tiling, capability: int) -> Any:
    """As `backend.augment` launches it."""
    numbers = {f"{name}_{channel}": "fp32" for name in ("mean", "scale") for channel in "rgb"}
    signature = {"images": "*u8", "drawn": "*fp32", "views": f"*{output}", "batch": "i32", **numbers}
    constants = {
        "IMAGE": image, "SIZE": size, "WINDOW": cut.window, "INNER": cut.inner, "BLOCK": cut.block, "REACH": reach,
        "WITH_JITTER": True, "WITH_GRAY": True,
    }  # fmt: skip
    options = {"num_warps": cut.warps, "num_stages": 1, "maxnreg": cut.registers}
    return compiled(apply, signature, constants, capability, **options)


def compiled_draw(capability: int, from_device: bool = False, **options: object) -> Any:
    """As `fused_draw.draw_in_one_launch` launches it, with those options."""
    annotated = {p.name: p.annotation_type or "i32" for p in fused_draw.draw.params if not p.is_constexpr}
    signature = {**annotated, "ids": "*i64", "drawn": "*fp32", "key": "*i64"}
    constants: dict[str, object] = {"BLOCK": fused_draw.ROWS_PER_PROGRAM, "FROM_DEVICE": from_device}
    return compiled(fused_draw.draw, signature, constants, capability, num_warps=fused_draw.WARPS, **options)


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_no_configuration_spills_or_asks_for_more_memory_than_there_is(
    capability: int, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, wrong = [], []
    for image, size, reach, output in CONFIGURATIONS:
        cut = backend.tiling(size, reach, image > size)
        assert cut is not None
        used = resources(compiled_apply(image, size, reach, output, cut, capability))
        lines.append(
            f"sm_{capability}  {image:3d} → {size:3d}  blur {2 * reach + 1 if reach else '–':>2}  {output}  "
            f"window {cut.window:2d}  warps {cut.warps:2d}  registers {used.registers:3d}  "
            f"stack {used.stack_bytes}  shared {used.shared_bytes:5d}"
        )
        # 65,536 registers per multiprocessor must hold the program at all.
        fits = used.registers * 32 * cut.warps <= 65_536 and used.shared_bytes <= SHARED_LIMIT[capability]
        if used.stack_bytes or used.opcodes or not fits:
            wrong.append(lines[-1])
    with capsys.disabled():
        print("", *lines, sep="\n")
    assert not wrong


@pytest.mark.parametrize("from_device", [False, True], ids=["by value", "by pointer"])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_draw_does_not_spill(capability: int, from_device: bool, capsys: pytest.CaptureFixture[str]) -> None:
    used = resources(compiled_draw(capability, from_device, **fused_draw.OPTIONS))
    with capsys.disabled():
        print(f"\nsm_{capability}  draw  registers {used.registers}  shared {used.shared_bytes}")
    assert used.stack_bytes == 0 and used.shared_bytes == 0 and not used.opcodes


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_draw_rounds_after_every_operation(capability: int) -> None:
    # What makes its table the CPU's, bit for bit: IEEE operations in float64, none of them contracted to another.
    operations = r"\b((?:add|sub|mul|div|sqrt|fma|mad|neg|rcp)\.[a-z.]*f64)\b"
    exact, contracted = (compiled_draw(capability, **options) for options in (fused_draw.OPTIONS, {}))
    assert set(re.findall(operations, exact.asm["ptx"])) == {"add.rn.f64", "mul.rn.f64", "div.rn.f64", "sqrt.rn.f64"}
    assert "fma.rn.f64" in re.findall(operations, contracted.asm["ptx"])  # the option is what does it


def test_a_smaller_last_batch_and_another_epoch_compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing, applying = Binding(fused_draw.draw), Binding(apply)
    monkeypatch.setattr(fused_draw, "draw", drawing)
    monkeypatch.setattr("simclr_engine.kernels.augmentation.fused_apply.apply", applying)
    spec = AugmentSpec(image_size=16)
    images, ids = torch.zeros(65, 16, 16, 3, dtype=torch.uint8), torch.arange(65)
    # Divisible by 16 and not, one, at odd addresses; seeds and epochs that need 32 bits, 64, or a sign.
    for first, count, seed, epoch in ((0, 64, 0, 0), (1, 1, 2**63 + 5, 2**32 - 1), (1, 17, -1, 16), (0, 16, 1, 1)):
        fused_draw.draw_in_one_launch(spec, seed, epoch, ids[first : first + count], views=2)
        table = torch.zeros(2 * count + 1, 13)[first : first + 2 * count]
        backend.augment(images[first : first + count], table, spec, 16, torch.bfloat16)
    for kernel in (drawing, applying):
        assert len(kernel.launches) == 4 and all(launch == kernel.launches[0] for launch in kernel.launches)
    types = [kind for kind, *_ in drawing.launches[0][0]]
    assert types.count("fp64") == 19 and types[3:5] == ["i64", "i64"]


def test_windows_cover_every_pixel_with_room_for_the_blur() -> None:
    for size, reach, shrinks in product(range(1, 257), (0, 1, 4, 11, 14), (False, True)):
        cut = backend.tiling(size, reach, shrinks)
        assert cut is not None
        assert cut.window**2 <= cut.block <= 4096 and cut.block & (cut.block - 1) == 0
        assert cut.window <= size and 1 <= cut.warps <= 16
        assert cut.inner == size or cut.inner + 2 * reach <= cut.window
        covered = set()
        for number in range(-(-size // cut.inner)):
            first = min(max(number * cut.inner - reach, 0), size - cut.window)
            kept = range(number * cut.inner, min((number + 1) * cut.inner, size))
            needed = {abs(p) if p < size else 2 * (size - 1) - p for k in kept for p in (k - reach, k, k + reach)}
            if reach < size:  # what dispatch allows
                assert needed <= set(range(first, first + cut.window)), (size, reach, cut)
            covered |= set(kept)
        assert covered == set(range(size))


def test_a_blur_too_wide_for_windows_has_no_tiling() -> None:
    assert backend.tiling(64, 31, False) is not None
    assert backend.tiling(65, 14, False) is not None and backend.tiling(65, 15, False) is None
