"""What every backend of the augmentation keeps on the CPU, and what one says where it cannot serve."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fixtures.pictures import pictures
from simclr_engine.kernels import AugmentSpec, augment, draw_params
from simclr_engine.kernels.augmentation import dali, dispatch, native

CPU = torch.device("cpu")
STRONG = AugmentSpec(
    image_size=16, crop_scale=(0.08, 1.0), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.5, gray=0.3, blur=0.5
)  # fmt: skip
PLAIN = AugmentSpec(
    image_size=16, crop_scale=(1, 1), crop_ratio=(1, 1), flip=0, jitter=0, gray=0, mean=(0, 0, 0), std=(1, 1, 1)
)


@pytest.fixture(params=["torch", "native", "dali"])
def backend(request: pytest.FixtureRequest) -> str:
    if reason := dispatch.BACKENDS[request.param].why_not(CPU):
        pytest.skip(reason)
    name: str = request.param
    return name


def table(count: int, views: int = 2) -> torch.Tensor:
    return draw_params(STRONG, seed=3, epoch=1, sample_ids=torch.arange(count), views=views)


def test_row_v_times_batch_plus_i_is_view_v_of_image_i(backend: str) -> None:
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 16, 16, 3).contiguous()
    drawn = draw_params(PLAIN, 0, 0, torch.arange(5), views=3)
    views = augment(images, drawn, PLAIN, backend=backend)
    assert torch.equal((views[:, 0, 0, 0] * 255).round(), torch.arange(5.0).repeat(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_views_are_channels_last_in_the_asked_precision(backend: str, dtype: torch.dtype) -> None:
    images, drawn = pictures(20, 16), table(20)
    views = augment(images, drawn, STRONG, 12, dtype, backend)
    assert views.dtype == dtype and views.shape == (40, 3, 12, 12)
    assert views.is_contiguous(memory_format=torch.channels_last)
    exact = augment(images, drawn, STRONG, 12, torch.float64, backend).double()
    rounded = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(dtype, 0 if backend == "dali" else 1e-5)
    torch.testing.assert_close(views.double(), exact, rtol=0, atol=rounded)


def test_a_view_does_not_depend_on_the_rest_of_its_batch(backend: str) -> None:
    images, drawn = pictures(20, 16), table(20, views=1)
    dtype, off = {"torch": (torch.float64, 1e-13), "native": (torch.float32, 0), "dali": (torch.float32, 1e-6)}[backend]
    alone = [augment(images[i : i + 1], drawn[i : i + 1], STRONG, 12, dtype, backend) for i in range(20)]
    whole = augment(images, drawn, STRONG, 12, dtype, backend)
    torch.testing.assert_close(whole, torch.cat(alone), rtol=0, atol=off)


def test_read_only_and_strided_images_serve_and_are_left_unchanged(backend: str, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", pictures(20, 16).numpy())
    mapped, drawn = np.load(tmp_path / "images.npy", mmap_mode="r"), table(10)
    with warnings.catch_warnings():  # torch warns of it, once in a process
        warnings.simplefilter("ignore", UserWarning)
        images = torch.from_numpy(mapped)
    assert not mapped.flags.writeable
    kept = images.clone(), drawn.clone()
    expected = augment(pictures(20, 16)[::2].contiguous(), drawn, STRONG, backend=backend)
    assert torch.equal(augment(images[::2], drawn, STRONG, backend=backend), expected)
    augment(images, drawn, STRONG, backend=backend)
    assert torch.equal(images, kept[0]) and torch.equal(drawn, kept[1])


def test_the_same_table_gives_the_same_bits(backend: str) -> None:
    images, drawn = pictures(30, 16), table(30)
    first, second = (augment(images, drawn, STRONG, backend=backend) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("device", ["cuda", "meta"])
def test_the_compiled_module_serves_the_host_and_says_so(device: str) -> None:
    assert native.why_not(torch.device(device)) == "the compiled module computes on the CPU"
    assert native.why_not(torch.device("mps")) == native.why_not(CPU)


@pytest.mark.parametrize(
    ("compiler", "packages", "words"),
    [
        (False, False, ["C++17 compiler", "apt install g++"]),
        (True, False, ["pip install nanobind cmake"]),
        (True, True, ["-v"]),
    ],
)
def test_what_the_compiled_module_lacks_is_said_in_one_line(
    compiler: bool, packages: bool, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)

    def which(name: str) -> str | None:
        return name if (packages if name in ("cmake", "nanobind") else compiler) else None

    native._missing_module.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(native, "_native", None)
        patch.setattr(native.shutil, "which", which)
        patch.setattr(
            native.importlib.util, "find_spec", lambda name: None if name.endswith("._native") else packages or None
        )
        reason = native.why_not(CPU)
    native._missing_module.cache_clear()
    assert "the compiled module is not built" in reason and "pip install" in reason and "\n" not in reason
    assert all(word in reason for word in words), reason


def test_a_module_that_does_not_load_or_is_too_old_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_native", object())
    assert "older than this source" in native.why_not(CPU) and not native.can_draw()
    native._missing_module.cache_clear()
    monkeypatch.setattr(native, "_native", None)
    monkeypatch.setattr(native, "_why_not_loaded", "GLIBC_9.9 not found")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert "does not load (GLIBC_9.9 not found)" in native.why_not(CPU) and not native.can_draw()
    native._missing_module.cache_clear()


def test_a_device_or_a_system_without_dali_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "CPU and CUDA, not on mps" in dali.why_not(torch.device("mps"))
    for system in ("darwin", "win32"):
        monkeypatch.setattr(sys, "platform", system)
        assert dali.why_not(CPU) == f"NVIDIA publishes DALI for Linux, not for {system}"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="DALI is for Linux")
def test_without_the_package_dali_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    install = "pip install 'simclr-engine[dali]' (in a checkout: pip install '.[dali]')"
    assert dali.why_not(CPU) == f"nvidia-dali-cuda130 is not installed: {install}"
    with pytest.raises(ValueError, match="'dali' cannot serve cpu here: nvidia-dali-cuda130 is not installed"):
        augment(pictures(2, 16), table(2), replace(STRONG, blur=0), backend="dali")


def test_dali_is_imported_only_when_it_is_used() -> None:
    code = (
        "import sys; sys.modules['nvidia'] = None\n"
        "from simclr_engine.kernels.augmentation import dali\n"
        "import torch; assert 'is not installed' in dali.why_not(torch.device('cpu')) or sys.platform != 'linux'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
