"""Every kernel of the fused NT-Xent, compiled ahead of time as it would be launched: registers, spills, shared memory,
tensor cores. The host code runs as it is, on tensors without memory, and its launches are written down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")

from fixtures.aot import SHARED_LIMIT, Binding, Resources, compile_for  # noqa: E402 (these need Triton)
from simclr_engine.kernels.ntxent import fused as ntxent  # noqa: E402
from simclr_engine.kernels.ntxent import fused_kernels  # noqa: E402

META = torch.device("meta")
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
KERNELS = ("prepare", "symmetric_sums", "row_sums", "finish", "gradients")
WITH_PRODUCTS = ("symmetric_sums", "row_sums", "gradients")
OPCODE = {
    80: "mma.sync", 86: "mma.sync", 89: "mma.sync", 90: "wgmma", 100: "tcgen05.mma", 103: "tcgen05.mma", 120: "mma.sync"
}  # fmt: skip
# Ada, consumer Ampere and consumer Blackwell run what was chosen for 8.0, in 99 KiB.
LEAST_SHARED = {80: SHARED_LIMIT[86], 90: SHARED_LIMIT[90], 100: SHARED_LIMIT[100]}


@dataclass
class Launch:
    """One launch that the host code made, in the words of the compiler."""

    name: str
    signature: dict[str, str]
    constants: dict[str, object]
    num_warps: int
    num_stages: int

    def compiled(self, capability: int) -> Resources:
        kernel = getattr(fused_kernels, self.name)
        return compile_for(kernel, self.signature, self.constants, capability, self.num_warps, self.num_stages)


@dataclass
class Recorder:
    """Stands for a kernel; `kernel[grid](…)` adds a launch."""

    kernel: Any
    launches: list[Launch] = field(default_factory=list)

    def __getitem__(self, grid: tuple[int]) -> Any:
        return self._launch

    def _launch(self, *values: Any, num_warps: int = 4, num_stages: int = 3, **constants: Any) -> None:
        signature = {}
        for value, parameter in zip(values, self.kernel.params, strict=False):
            if isinstance(value, torch.Tensor):
                assert value.is_contiguous()
                signature[parameter.name] = TYPES[value.dtype]
            elif isinstance(value, float):
                signature[parameter.name] = "fp32"
            else:
                assert parameter.do_not_specialize, f"{parameter.name} would be compiled for each kind of number"
                signature[parameter.name] = "i32"
        self.launches.append(Launch(self.kernel.__name__, signature, constants, num_warps, num_stages))


@pytest.fixture
def precision() -> Iterator[Any]:
    before = torch.backends.cuda.matmul.fp32_precision
    yield lambda products: setattr(
        torch.backends.cuda.matmul, "fp32_precision", "tf32" if products == "tf32" else "ieee"
    )
    torch.backends.cuda.matmul.fp32_precision = before


def launches(capability: int, products: str, width: int, dimension: int) -> list[Launch]:
    """One launch of each kernel, from the host code. `dimension` is that of z, `width` what it is padded to."""
    written: list[Launch] = []
    with pytest.MonkeyPatch.context() as patch:
        tiles = ntxent.TILES[ntxent.family((capability // 10, capability % 10))][products, width]
        patch.setattr(ntxent, "tiles", lambda *_: tiles)
        for name in KERNELS:
            patch.setattr(fused_kernels, name, Recorder(getattr(fused_kernels, name), written))
        z = torch.empty(1000, dimension, dtype=DTYPES[products], device=META)
        unit, positive = ntxent.prepare(z, 2)
        assert unit.shape == (1000, width)
        part = ntxent.symmetric_sums(unit, 0.5)
        ntxent.row_sums(unit, 0, 1000, 0.5)
        inverse, loss = ntxent.finish(part, positive, 2, 0.5)
        ntxent.gradients(loss, z, unit, inverse, 0, 2, 0.5)
    assert {launch.name for launch in written} == set(KERNELS)
    return written


def expected_opcodes(launch: Launch, capability: int, products: str) -> set[str]:
    return {OPCODE[capability]} if launch.name in WITH_PRODUCTS and products != "fp32" else set()


def check(launch: Launch, capability: int, products: str, shared_limit: int) -> Resources:
    found = launch.compiled(capability)
    name = f"{launch.name} on {capability}, {products}, {launch.constants}"
    assert found.stack_bytes == 0, f"{name} spills {found.stack_bytes} bytes"
    assert found.shared_bytes <= shared_limit, f"{name} needs {found.shared_bytes} bytes of shared memory"
    assert found.opcodes == expected_opcodes(launch, capability, products), f"{name} multiplies by {found.opcodes}"
    return found


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("products", ["fp32", "tf32", "fp16", "bf16"])
def test_every_configuration_fits_spills_nothing_and_uses_the_right_cores(
    capability: int, products: str, precision: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    precision(products)
    table = []
    for width in ntxent.WIDTHS:
        for launch in launches(capability, products, width, width):
            if launch.name == "finish" and (width, products) != (128, "bf16"):
                continue  # the same for all
            found = check(launch, capability, products, LEAST_SHARED[capability])
            shared = f"{found.shared_bytes / 1024:.1f} KiB"
            tile = "×".join(str(v) for k, v in launch.constants.items() if k in ("BLOCK", "ROWS", "COLUMNS", "SAMPLES"))
            table.append(
                f"| {capability / 10} | {products} | {width} | {launch.name} | {tile} | {launch.num_warps} | "
                f"{launch.num_stages} | {found.registers} | {found.stack_bytes} | {shared} | "
                f"{', '.join(found.opcodes) or 'none'} |"
            )
    with capsys.disabled():
        print(
            "\n| capability | products | width | kernel | tile | warps | stages | registers | stack | shared | matrix |"
        )
        print("\n".join(table))


@pytest.mark.slow
@pytest.mark.parametrize("capability", [86, 89, 103, 120])
@pytest.mark.parametrize("products", ["tf32", "bf16"])
def test_other_cards_of_a_family_run_what_was_chosen_for_it(capability: int, products: str, precision: Any) -> None:
    precision(products)
    for launch in launches(capability, products, 128, 128):
        check(launch, capability, products, SHARED_LIMIT[capability])


def test_odd_widths_compile_without_spilling(precision: Any) -> None:
    precision("fp32")
    for launch in launches(80, "fp16", 128, 100):
        if launch.name in ("prepare", "gradients"):  # those that read z
            check(launch, 80, "fp16", LEAST_SHARED[80])


def test_the_table_has_every_width_and_type_for_every_family() -> None:
    assert set(ntxent.TILES) == {80, 90, 100}
    for by_products in ntxent.TILES.values():
        assert set(by_products) == {(products, width) for products in DTYPES for width in ntxent.WIDTHS}
        for tiles in by_products.values():
            assert tiles.symmetric.rows == tiles.symmetric.columns


@pytest.mark.parametrize(
    ("capability", "family"),
    [((8, 0), 80), ((8, 6), 80), ((8, 9), 80),
     ((9, 0), 90), ((10, 0), 100), ((10, 3), 100), ((12, 0), 80), ((15, 0), 80)],
)  # fmt: skip
def test_every_capability_has_tiles(capability: tuple[int, int], family: int) -> None:
    assert ntxent.family(capability) == family


@pytest.mark.parametrize("products", list(DTYPES))
def test_batches_of_any_size_bind_to_the_same_compiled_kernels(
    products: str, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arguments are bound by Triton's own code for launches, which has locals of its own and says so."""
    precision(products)
    monkeypatch.setattr(ntxent, "tiles", lambda *_: ntxent.TILES[90][products, 128])
    bindings = {name: Binding(getattr(fused_kernels, name)) for name in KERNELS}
    for name, binding in bindings.items():
        monkeypatch.setattr(fused_kernels, name, binding)
    sizes = ((1, 2), (16, 2), (17, 3), (1000, 4))
    for batch, views in sizes:
        z = torch.zeros(batch * views, 128, dtype=DTYPES[products])
        unit, positive = ntxent.prepare(z, views)
        part = ntxent.symmetric_sums(unit, 0.5)
        ntxent.row_sums(unit, 0, len(z), 0.1)
        inverse, loss = ntxent.finish(part, positive, views, 0.5)
        ntxent.gradients(loss, z, unit, inverse, 0, views, 0.5)
    for name, binding in bindings.items():
        assert len(binding.launches) == len(sizes), name
        assert all(launch == binding.launches[0] for launch in binding.launches), name
