"""The precision and memory format that a device gets."""

from __future__ import annotations

import os
import subprocess
import sys


def test_bf16_is_not_chosen_where_onednn_may_not_use_it() -> None:
    asked = "import torch; from simclr_engine.device import precisions; print(precisions(torch.device('cpu')))"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    said = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "['fp32']"
