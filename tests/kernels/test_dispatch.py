"""What is refused at the door, in which words; what is picked; what is imported when."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from simclr_engine.kernels import AugmentSpec, augment, dispatch, draw_params, nt_xent, pick_augment, pick_nt_xent
from simclr_engine.kernels.augmentation import dispatch as augmentation
from simclr_engine.kernels.ntxent import loss as ntxent

SPEC = AugmentSpec(image_size=8)
IMAGES = torch.zeros(4, 8, 8, 3, dtype=torch.uint8)
PARAMS = draw_params(SPEC, 0, 0, torch.arange(4), 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": IMAGES.float()}, r"images must be uint8 \[B, H, W, 3\], not torch.float32 \[4, 8, 8, 3\]"),
        ({"images": IMAGES[0]}, r"not torch.uint8 \[8, 8, 3\]"),
        ({"images": IMAGES[..., :1]}, r"not torch.uint8 \[4, 8, 8, 1\]"),  # a grayscale store
        ({"images": torch.zeros(4, 8, 8, 4, dtype=torch.uint8)}, r"\[4, 8, 8, 4\]"),  # RGBA
        ({"images": torch.zeros(4, 8, 9, 3, dtype=torch.uint8)}, "images are 8×9 pixels, but spec.image_size is 8"),
        ({"images": torch.zeros(4, 16, 16, 3, dtype=torch.uint8)}, "images are 16×16 pixels"),
        ({"images": IMAGES[:0]}, "not 8 for 0 images"),
        ({"images": IMAGES[:3]}, "params must have a row for each view of each image, not 8 for 3 images"),
        ({"params": PARAMS[:, :-1]}, r"params must be float32 \[V·B, 13\], not torch.float32 \[8, 12\]"),
        ({"params": PARAMS.long()}, "not torch.int64"),
        ({"params": PARAMS[:0]}, "not 0 for 4 images"),
        ({"params": PARAMS.to("meta")}, "images are on cpu, params on meta"),
        ({"size": 0}, "size must be a whole number of pixels, at least 1, not 0"),
        ({"size": 8.0}, "not 8.0"),
        ({"spec": AugmentSpec(image_size=8, blur=0.5, blur_kernel=17)}, "too small for a blur kernel of 17"),
        ({"dtype": torch.int32}, "dtype must be one of torch.float32, .*, not torch.int32"),
        ({"backend": "cudnn"}, "there is no augmentation backend 'cudnn'; there are auto, triton, native, dali, torch"),
        ({"backend": "triton"}, "the augmentation backend 'triton' cannot serve cpu here: it needs"),
    ],
)
def test_augment_names_what_it_cannot_use(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"images": IMAGES, "params": PARAMS, "spec": SPEC, **change}
    with pytest.raises(ValueError, match=message):
        augment(**arguments)


@pytest.mark.parametrize(
    ("z", "views", "temperature", "backend", "message"),
    [
        (torch.zeros(4), 2, 0.5, "auto", r"z must be floating point \[V·B, D\], not torch.float32 \[4\]"),
        (torch.zeros(4, 2).long(), 2, 0.5, "auto", "not torch.int64"),
        (torch.zeros(4, 2), 1, 0.5, "auto", r"views must be at least 2 \(contrast needs a positive\), not 1"),
        (torch.zeros(4, 2), 2.0, 0.5, "auto", "not 2.0"),
        (torch.zeros(5, 2), 2, 0.5, "auto", r"z is \[5, 2\]: rows must be a positive multiple of views=2"),
        (torch.zeros(0, 2), 2, 0.5, "auto", r"\[0, 2\]"),
        (torch.zeros(4, 0), 2, 0.5, "auto", "D at least 1"),
        (torch.zeros(4, 2), 2, 0.0, "auto", "temperature must be positive and finite, not 0.0"),
        (torch.zeros(4, 2), 2, -1.0, "auto", "not -1.0"),
        (torch.zeros(4, 2), 2, float("nan"), "auto", "not nan"),
        (torch.zeros(4, 2), 2, float("inf"), "auto", "not inf"),
        (torch.zeros(4, 2), 2, 0.5, "triton", "the NT-Xent backend 'triton' cannot serve cpu here: it needs"),
        (torch.zeros(4, 2), 2, 0.5, "native", "there is no NT-Xent backend 'native'; there are auto, triton, torch"),
    ],
)
def test_nt_xent_names_what_it_cannot_use(
    z: torch.Tensor, views: Any, temperature: float, backend: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        nt_xent(z, views, temperature, backend)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 0}, "image_size must be a whole number of at least 1, not 0"),
        ({"flip": 1.5}, "flip must be between 0 and 1, not 1.5"),
        ({"jitter": float("nan")}, "jitter must be between 0 and 1, not nan"),
        ({"brightness": -0.1}, "brightness must be at least 0 and finite, not -0.1"),
        ({"hue": 0.6}, "hue must be between 0 and 0.5, not 0.6"),
        ({"crop_scale": (0.5, 0.2)}, r"crop_scale must be given as smallest, largest, not \(0.5, 0.2\)"),
        ({"crop_scale": (0.0, 1.0)}, "must start above 0"),
        ({"crop_scale": (0.2, 1.2)}, "crop_scale must be between 0 and 1, not 1.2"),
        ({"crop_ratio": (0.0, 1.0)}, "crop_ratio must be between 0.01 and 100"),
        ({"blur_kernel": 4}, "blur_kernel must be odd, not 4"),
        ({"blur_sigma": "soft"}, "blur_sigma must be 2 numbers, not 'soft'"),
        ({"mean": (0.5,)}, "mean must be 3 numbers"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be positive in every channel"),
    ],
)
def test_a_spec_names_what_it_cannot_mean(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentSpec(**fields)


def test_a_spec_from_lists_and_whole_numbers_equals_one_from_tuples() -> None:
    loose = AugmentSpec(crop_scale=[1, 1], flip=1, std=[1, 1, 1])
    strict = AugmentSpec(crop_scale=(1.0, 1.0), flip=1.0, std=(1.0, 1.0, 1.0))
    assert loose == strict and hash(loose) == hash(strict) and repr(loose) == repr(strict)


@pytest.mark.parametrize("pick", [pick_augment, pick_nt_xent])
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_auto_says_what_it_picks_and_why(pick: Any, device: str) -> None:
    name, reason = pick("auto", torch.device(device))
    assert device in reason
    assert pick(name, device) == (name, "asked for by name")
    assert pick("torch", device) == ("torch", "asked for by name")


def test_auto_takes_the_first_that_serves_and_says_what_kept_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augmentation.native, "why_not", lambda device: "")
    assert pick_augment("auto", "cpu")[0] == "native"
    monkeypatch.setattr(augmentation.native, "why_not", lambda device: "no compiler was there")
    assert pick_augment("auto", "cpu") == ("torch", "the fastest for cpu; no native: no compiler was there")
    for module in (augmentation.fused, ntxent.fused):
        monkeypatch.setattr(module, "why_not", lambda *a: "")
    assert (pick_augment("auto", "cuda")[0], pick_nt_xent("auto", "cuda")[0]) == ("triton", "triton")
    for module in (augmentation.fused, ntxent.fused):
        monkeypatch.setattr(module, "why_not", lambda *a: "an old card")
    assert pick_augment("auto", "cuda") == ("torch", "the fastest for cuda; no triton: an old card")
    assert pick_nt_xent("auto", "cuda") == ("torch", "the fastest for cuda; no triton: an old card")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Pretends that there is a GPU of some capability; forgets what was found out about devices."""

    def pretend(capability: tuple[int, int] | None) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Card")

    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(dispatch, "find_spec", lambda _: object())
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    dispatch._why_no_triton.cache_clear()
    yield pretend
    dispatch._why_no_triton.cache_clear()


@pytest.mark.parametrize(
    ("device", "capability", "reasons"),  # of augmentation, of the loss
    [
        ("cpu", (9, 0), ("it needs an NVIDIA GPU",) * 2),
        ("mps", (9, 0), ("it needs an NVIDIA GPU",) * 2),
        ("cuda", None, ("it needs an NVIDIA GPU",) * 2),
        ("cuda", (7, 0), [f"it needs compute capability {least}, and Card has 7.0" for least in ("7.5", "8.0")]),
        ("cuda:1", (7, 5), ("", "it needs compute capability 8.0, and Card has 7.5")),  # T4
        *[("cuda", capability, ("", "")) for capability in ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))],
    ],
)
def test_triton_says_which_devices_it_cannot_serve(
    device: str, capability: tuple[int, int] | None, reasons: tuple[str, str], card: Any
) -> None:
    card(capability)
    there = torch.device(device)
    assert (augmentation.fused.why_not(there), ntxent.fused.why_not(there, 128, 0.5)) == tuple(reasons)


def test_triton_serves_neither_amd_nor_a_machine_without_it(card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    card((9, 0))
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert dispatch.why_no_triton(torch.device("cuda"), (8, 0)) == "it needs an NVIDIA GPU, and this one is from AMD"
    dispatch._why_no_triton.cache_clear()
    monkeypatch.setattr(dispatch, "find_spec", lambda _: None)
    for why_not in (augmentation.fused.why_not, lambda device: ntxent.fused.why_not(device, 128, 0.5)):
        assert why_not(torch.device("cuda")) == "the package triton is not installed (it exists for Linux)"


def test_the_interpreter_serves_the_cpu_alone(card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    card((9, 0))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert dispatch.why_no_triton(torch.device("cpu"), (8, 0)) == ""
    assert "on the CPU while TRITON_INTERPRET=1" in dispatch.why_no_triton(torch.device("cuda"), (8, 0))


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_the_backend_that_is_picked_is_the_one_that_runs(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    for module in (augmentation.eager, augmentation.native):
        monkeypatch.setattr(module, "why_not", lambda device: "")
        monkeypatch.setattr(module, "augment", lambda *a, name=module.__name__: calls.append((*a, name)))
    forward = ntxent.chunked.forward
    monkeypatch.setattr(ntxent.chunked, "forward", lambda *a: (calls.append(a), forward(*a))[1])
    z = torch.zeros(4, 2)
    augment(IMAGES, PARAMS, SPEC, backend=backend)
    nt_xent(z, 2, 1, backend=backend)
    assert calls[0][3:5] == (8, torch.float32) and calls[1][1:] == (2, 1.0, 0, None)
    assert calls[0][5].endswith("native" if backend == "auto" else "eager")


def test_the_spec_and_its_package_are_read_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from simclr_engine.kernels import AugmentSpec; AugmentSpec()\n"
        "from simclr_engine.kernels.augmentation.spec import AugmentSpec\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there() -> None:
    from simclr_engine import kernels

    for name in kernels.__all__:
        assert callable(getattr(kernels, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = kernels.nothing
