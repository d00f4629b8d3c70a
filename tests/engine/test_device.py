"""The precision and memory format that a device gets."""

from __future__ import annotations

import pytest
import torch

from simclr_engine.device import precisions


@pytest.mark.parametrize(("limit", "best"), [("AVX2", "fp32"), ("avx512_core", "fp32"), ("AVX512_CORE_BF16", "bf16")])
def test_bf16_is_chosen_only_where_onednn_may_use_it(limit: str, best: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert precisions(torch.device("cpu"))[0] == best
