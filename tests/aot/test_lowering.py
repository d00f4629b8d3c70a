"""The training step lowered for sm_90 without a device: one graph for each view size, no layout copy, no waiting."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

from fixtures import TESTS
from fixtures.lowering import VERSIONS, counted

pytestmark = pytest.mark.skipif(
    not torch.__version__.startswith(VERSIONS),
    reason=f"lowering reaches into private parts of torch and is known to work with {', '.join(VERSIONS)}",
)


def lowered(views: int, size: int, layout: str = "channels_last") -> dict[str, Any]:
    """In a process of its own, which believes in a device that is not here."""
    command = [sys.executable, "-m", "fixtures.lowering", str(views), str(size), "cifar10-sgd", layout]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("views", "size"), [(1024, 32), (1024, 16)])
def test_the_step_is_one_graph_without_layout_copies_or_waiting(
    views: int, size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    found = lowered(views, size)
    forward, backward = found["halves"]
    launches, total = (forward[key] + backward[key] for key in ("launches", "bytes"))
    with capsys.disabled():
        print(f"\nsm_90  {views} views of {size} px  {launches} generated launches, {total / 1e9:.1f} GB")
    assert found["graphs"] == 1
    assert forward["layout_copies"] == backward["layout_copies"] == []
    assert forward["waiting"] == backward["waiting"] == []
    assert 100 < launches <= 240 and 5e9 < total * (32 / size) ** 2 < 17e9


def test_a_layout_copy_a_wait_and_every_byte_are_counted() -> None:
    code = """
a = async_compile.triton('triton_poi_fused_convolution_3', '''x 'signature': {'x': '*bf16', 'y': '*bf16'} ''')
b = async_compile.triton('triton_poi_fused_add_relu_4', '''x 'signature': {'in_out_ptr0': '*fp32', 'n': 'i32'} ''')
    def call(self, args):
        assert_size_stride(p, (2, 3, 4, 5), (60, 1, 15, 3))
        q = empty_strided_cuda((2, 60), (60, 1), torch.bfloat16)
        triton_poi_fused_convolution_3.run(p, q, stream=s)
        r = q; del q  # reuse
        triton_poi_fused_add_relu_4.run(r, 120, stream=s)
        n = p.item()
"""
    found = counted(code)
    assert found["launches"] == 2 and found["layout_copies"] == ["triton_poi_fused_convolution_3"]
    assert found["bytes"] == 120 * (2 + 2 + 2 * 4) and found["waiting"] == [".item()"]
