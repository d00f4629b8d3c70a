"""What onnxruntime prints about CUDA's libraries must not become part of a `--json` document."""

from __future__ import annotations

import onnxruntime
import pytest

from fixtures.tiny_model import MakeTiny
from simclr_engine.export import OnnxEncoder


@pytest.mark.parametrize(("providers", "loads"), [(("cuda", "cpu"), 1), (("cpu",), 0)])
def test_the_libraries_of_cuda_are_loaded_for_cuda_alone_and_standard_output_stays_empty(
    make_tiny: MakeTiny,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    providers: tuple[str, ...],
    loads: int,
) -> None:
    real, made = onnxruntime.InferenceSession, []

    class Session:
        """A session on the CPU that calls itself one on whatever was asked."""

        def __init__(self, model: bytes, options: object, providers: list[str], provider_options: object) -> None:
            self._session, self._asked = real(model, options, providers=["CPUExecutionProvider"]), providers
            made.append(providers)

        def get_providers(self) -> list[str]:
            return self._asked

        def __getattr__(self, name: str) -> object:
            return getattr(self._session, name)

    path = make_tiny()
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcublasLt"))
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    assert OnnxEncoder(path, providers).providers == tuple(made[0])
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("libcublasLt") == loads
