"""What a Triton kernel needs of a GPU, found out without one: compile it ahead of time and read the machine code.

A CPU-only machine cannot say how fast a kernel is, but it can say whether it spills registers, fits a device's shared
memory and uses its tensor cores.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource
from triton.runtime.jit import create_function_from_signature

# KiB of shared memory that one block can have (CUDA programming guide, "technical specifications per capability").
_SHARED_KIBIBYTES = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99}
SHARED_LIMIT = {capability: kibibytes * 1024 for capability, kibibytes in _SHARED_KIBIBYTES.items()}

TENSOR_CORE_OPCODES = ("mma.sync", "wgmma", "tcgen05.mma")
_CUOBJDUMP = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Resources:
    """Of one compiled kernel: registers per thread, bytes of stack per thread (spills), bytes of shared memory per
    block, and which of `TENSOR_CORE_OPCODES` its PTX holds."""

    registers: int
    stack_bytes: int
    shared_bytes: int
    opcodes: frozenset[str]


def compile_for(
    kernel: Any,
    signature: dict[str, str],
    constants: dict[str, object],
    capability: int,
    num_warps: int,
    num_stages: int,
) -> Resources:
    """Compile a `triton.jit` function for a compute capability (80 is 8.0) as a launch with aligned pointers would.

    Args:
        kernel: the function.
        signature: run-time argument → Triton type ("*fp32", "*bf16", "i32", "fp32").
        constants: `tl.constexpr` argument → value; a run-time argument named here is fixed to it (None: absent).
        capability: 75, 80, 86, 89, 90, 100, 103 or 120.
        num_warps: of the launch.
        num_stages: of the launch.
    """
    if missing := set(kernel.arg_names) - signature.keys() - constants.keys():
        raise TypeError(f"{kernel.__name__} also takes {', '.join(sorted(missing))}")
    types = {name: "constexpr" if name in constants else signature[name] for name in kernel.arg_names}
    # Without these the compiler must expect pointers at any address and shapes its loads for that.
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if types[name].startswith("*")
    }
    compiled = triton.compile(
        ASTSource(kernel, types, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": num_warps, "num_stages": num_stages},
    )
    registers, stack = usage(compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    opcodes = frozenset(name for name in TENSOR_CORE_OPCODES if re.search(rf"\b{re.escape(name)}\b", ptx))
    return Resources(registers, stack, compiled.metadata.shared, opcodes)


@cache
def usage(cubin: bytes) -> tuple[int, int]:
    """Registers per thread, and bytes of stack and other local memory per thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run(
            [_CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = {name: int(number) for name, number in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", said)}
    return found["REG"], found["STACK"] + found["LOCAL"]


class Binding:
    """In a kernel's place: binds the arguments of each launch as a launch on a device would, and keeps what Triton
    would compile for (types, constants, options)."""

    def __init__(self, kernel: Any) -> None:
        self.bind = create_function_from_signature(
            kernel.signature, kernel.params, CUDABackend(GPUTarget("cuda", 90, 32))
        )
        self.launches: list[tuple[object, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: object, **options: object) -> None:
            _, *compiled_for = self.bind(*arguments, **options)
            self.launches.append(tuple(compiled_for))

        return launch
