"""The compiled CPU backend against the float64 reference, for every operation, size and instruction set.

And its manners as a neighbour: threads, forks, borrowed memory, tables that make no sense.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.pictures import pictures
from reference import params_truth
from simclr_engine.kernels import AugmentSpec, draw_params
from simclr_engine.kernels.augmentation import eager, native
from simclr_engine.kernels.augmentation import table as columns
from simclr_engine.recipe import Recipe, recipe_names

CPU = torch.device("cpu")
BUILT = not native.why_not(CPU)
pytestmark = pytest.mark.skipif(not BUILT, reason=native.why_not(CPU))
INSTRUCTION_SETS = native._native.instruction_sets() if BUILT else [""]

# float32's own error at the default std of 0.5: the reference in float32 is no nearer to float64.
TOLERANCE = 1e-5
PLAIN = AugmentSpec(flip=0, jitter=0, gray=0, crop_scale=(1, 1), crop_ratio=(1, 1))
STRONG = AugmentSpec(
    crop_scale=(0.05, 1.0), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.5, gray=0.3, blur=0.5
)  # fmt: skip
# One operation each, always on.
ALONE = {
    "crop": replace(PLAIN, crop_scale=(0.05, 1.0), crop_ratio=(0.5, 2.0)),
    "flip": replace(PLAIN, flip=1),
    "brightness": replace(PLAIN, jitter=1, brightness=1.0, contrast=0, saturation=0, hue=0),
    "contrast": replace(PLAIN, jitter=1, brightness=0, contrast=1.0, saturation=0, hue=0),
    "saturation": replace(PLAIN, jitter=1, brightness=0, contrast=0, saturation=1.0, hue=0),
    "hue": replace(PLAIN, jitter=1, brightness=0, contrast=0, saturation=0, hue=0.5),
    "gray": replace(PLAIN, gray=1),
    "blur": replace(PLAIN, blur=1),
    "wide blur": replace(PLAIN, blur=1, blur_kernel=23),
    "normalisation": replace(PLAIN, mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616)),
    "everything": STRONG,
}


def draw_torch(spec: AugmentSpec, seed: int, epoch: int, sample_ids: torch.Tensor, views: int) -> torch.Tensor:
    """`draw_params` as it is without the compiled module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_native", None)
        return draw_params(spec, seed, epoch, sample_ids, views)


def table(spec: AugmentSpec, count: int, views: int = 2, seed: int = 3) -> torch.Tensor:
    return draw_torch(spec, seed, 1, torch.arange(count), views)


def check(images: torch.Tensor, drawn: torch.Tensor, spec: AugmentSpec, size: int) -> None:
    ours = native.augment(images, drawn, spec, size, torch.float32)
    assert ours.dtype == torch.float32 and ours.is_contiguous(memory_format=torch.channels_last)
    expected = eager.augment(images, drawn, spec, size, torch.float64)
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=TOLERANCE)


@pytest.fixture(params=INSTRUCTION_SETS)
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(native, "INSTRUCTIONS", request.param)
    yield request.param


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize(
    ("image", "size"),
    # The sizes of CIFAR; shrinking and enlarging; odd, so that no vector of lanes comes out even.
    [(32, 32), (32, 24), (33, 17), (16, 37), (41, 12)],
)
def test_each_operation_equals_the_reference(name: str, image: int, size: int) -> None:
    spec = replace(ALONE[name], image_size=image)
    if spec.blur_kernel // 2 >= size:
        spec = replace(spec, blur_kernel=2 * size - 1)  # the widest that may be
    check(pictures(15, image), table(spec, 15), spec, size)


@pytest.mark.usefixtures("instructions")
def test_all_24_orders_of_the_jitter_equal_the_reference() -> None:
    spec = replace(STRONG, image_size=16, jitter=1)
    drawn = table(spec, 48)
    drawn[:, columns.ORDER] = torch.arange(96) % 24
    check(pictures(48, 16), drawn, spec, 16)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_equals_the_reference(name: str) -> None:
    for recipe in Recipe.load(name).variants():
        spec = replace(recipe.augment, image_size=32)
        for size in {32, *(pixels or 32 for _, pixels in recipe.train.resolution)}:
            check(pictures(28, 32), table(spec, 28, recipe.train.views), spec, size)


# Where the code takes another way: one pixel, a vector more or less, the first caches left behind.
SIZES = (1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 64, 97)


@pytest.mark.parametrize("image", SIZES)
def test_every_size_becomes_every_size(image: int) -> None:
    for size in SIZES:
        spec = replace(STRONG, image_size=image, blur_kernel=min(7, 2 * size - 1))
        check(pictures(6, image, seed=size), table(spec, 6, seed=size), spec, size)


@settings(deadline=None, max_examples=150)
@given(
    image=st.integers(1, 97),
    size=st.integers(1, 97),
    views=st.sampled_from((1, 2, 4)),
    strength=st.floats(0, 1),
    ratio=st.floats(0.1, 1),
    chance=st.floats(0, 1),
    reach=st.integers(0, 12),
    std=st.floats(0.5, 2),
    seed=st.integers(0, 2**64 - 1),
)
def test_any_distribution_equals_the_reference(
    image: int, size: int, views: int, strength: float, ratio: float, chance: float, reach: int, std: float, seed: int
) -> None:
    spec = AugmentSpec(
        image_size=image, crop_scale=(0.01, 1), crop_ratio=(ratio, 1 / ratio), flip=chance, jitter=chance,
        brightness=strength, contrast=strength, saturation=strength, hue=strength / 2, gray=1 - chance, blur=chance,
        blur_kernel=2 * min(reach, size - 1) + 1, mean=(0.1, 0.5, 0.9), std=(std, 0.5, 1),
    )  # fmt: skip
    check(pictures(3, image, seed % 1000), table(spec, 3, views, seed), spec, size)


def test_images_that_are_not_square_equal_the_reference() -> None:
    images = pictures(10, 48)[:, :20]
    spec = replace(STRONG, image_size=20)
    drawn = table(spec, 10)
    drawn[:, columns.X] += 28  # crops of the right end
    check(images, drawn, spec, 24)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("size", [32, 17])
def test_bfloat16_is_the_rounded_float32(size: int) -> None:
    images, drawn = pictures(40, 32), table(STRONG, 40)
    ours = native.augment(images, drawn, STRONG, size, torch.bfloat16)
    assert ours.dtype == torch.bfloat16 and ours.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(ours, native.augment(images, drawn, STRONG, size, torch.float32).to(torch.bfloat16))


@pytest.mark.usefixtures("instructions")
def test_bfloat16_rounds_ties_to_even_and_carries() -> None:
    # One pixel, one gray value v; brightness scales it to whatever float32 is wanted, here half-way between neighbours.
    wanted = torch.tensor([0x3F008000, 0x3F018000, 0x3F017FFF, 0x3F018001, 0x3F7F8000, 0x00000000], dtype=torch.int32)
    spec = replace(PLAIN, image_size=1, jitter=1, mean=(0, 0, 0), std=(1, 1, 1))
    drawn = table(spec, len(wanted), views=1)
    drawn[:, columns.BRIGHTNESS : columns.ORDER] = torch.tensor([1.0, 1.0, 1.0, 0.0])
    drawn[:, columns.BRIGHTNESS] = wanted.view(torch.float32)
    images = torch.full((len(wanted), 1, 1, 3), 255, dtype=torch.uint8)
    exact = native.augment(images, drawn, spec, 1, torch.float32)
    assert torch.equal(exact[:, 0, 0, 0].view(torch.int32), wanted)
    assert torch.equal(native.augment(images, drawn, spec, 1, torch.bfloat16), exact.to(torch.bfloat16))


def test_float16_is_rounded_and_float64_is_the_reference() -> None:
    images, drawn = pictures(10, 32), table(STRONG, 10)
    half = native.augment(images, drawn, STRONG, 24, torch.float16)
    assert half.dtype == torch.float16 and half.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(half, native.augment(images, drawn, STRONG, 24, torch.float32).half())
    double = native.augment(images, drawn, STRONG, 24, torch.float64)
    assert torch.equal(double, eager.augment(images, drawn, STRONG, 24, torch.float64))


def test_what_the_spec_never_asks_for_is_not_done() -> None:
    images, drawn = pictures(10, 16), table(replace(STRONG, image_size=16, jitter=1, gray=1, blur=1), 10)
    for off in ({"jitter": 0}, {"gray": 0}, {"blur": 0}):
        check(images, drawn, replace(STRONG, image_size=16, **off), 16)


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    images, drawn = pictures(101, 32), table(STRONG, 101)
    results = []
    for threads in (1, 2, 3, 7, 64):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(native.augment(images, drawn, STRONG, 24, torch.float32))
    assert all(torch.equal(result, results[0]) for result in results)


def test_torchs_number_of_threads_is_the_one_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    images, drawn = pictures(200, 32), table(STRONG, 200)
    task = Path("/proc/self/task")
    if not task.is_dir():
        pytest.skip("threads are counted in /proc")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    before = len(list(task.iterdir()))
    native.augment(images, drawn, STRONG, 32, torch.float32)
    assert len(list(task.iterdir())) == before
    monkeypatch.setattr(torch, "get_num_threads", lambda: 90)  # more than any other test has asked for
    for _ in range(2):
        native.augment(images, drawn, STRONG, 96, torch.float32)
        assert before < len(list(task.iterdir())) <= before + 89


def test_strided_and_other_tables_and_images_serve() -> None:
    images, drawn = pictures(20, 32), table(STRONG, 10)
    expected = native.augment(images[::2].contiguous(), drawn, STRONG, 32, torch.float32)
    wide = torch.empty(40, 2 * len(columns.COLUMNS))
    wide[::2, ::2] = drawn
    for same_images, same_table in (
        (images[::2], drawn),
        (images[::2].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1), drawn),
        (images[::2], wide[::2, ::2]),
        (images[::2], drawn.double()),
        (images[::2], drawn.clone().requires_grad_()),
    ):
        assert torch.equal(native.augment(same_images, same_table, STRONG, 32, torch.float32), expected)


def test_several_python_threads_may_call_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    specs = [replace(STRONG, image_size=size) for size in (16, 24, 32, 48)]
    work = [(pictures(40, spec.image_size), table(spec, 40), spec, spec.image_size, torch.float32) for spec in specs]
    expected = [native.augment(*arguments) for arguments in work]
    wrong: list[int] = []

    def call(number: int) -> None:
        for _ in range(20):
            if not torch.equal(native.augment(*work[number]), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_other_python_threads_run_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    images, drawn = pictures(100, 32), table(STRONG, 100, views=8)
    started, finished = threading.Event(), threading.Event()
    seen: list[float] = []

    def watch() -> None:
        started.set()
        while not finished.is_set():
            seen.append(time.perf_counter())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started.wait()
    begin = time.perf_counter()
    native.augment(images, drawn, STRONG, 96, torch.bfloat16)  # some 50 ms
    end = time.perf_counter()
    finished.set()
    watcher.join()
    span = end - begin
    assert any(begin + 0.2 * span < moment < end - 0.2 * span for moment in seen)


FORK = """
import os, sys, torch
from simclr_engine.kernels import AugmentSpec, draw_params
from simclr_engine.kernels.augmentation import native
torch.set_num_threads(1)  # torch's own threads do not survive a fork
torch.get_num_threads = lambda: 4
spec = AugmentSpec(blur=0.5)
images = torch.arange(64 * 32 * 32 * 3).remainder(251).view(64, 32, 32, 3).to(torch.uint8)
drawn = draw_params(spec, 0, 0, torch.arange(64), 2)
make = lambda: native.augment(images, drawn, spec, 32, torch.float32)
expected = make()  # its threads exist now, but not in the children
children = []
for _ in range(3):
    child = os.fork()
    if not child:
        good = all(torch.equal(make(), expected) for _ in range(3))
        os._exit(0 if good else 1)
    assert torch.equal(make(), expected)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
sys.exit(max(codes))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_forked_children_make_the_same_views() -> None:
    # In a process of its own: where a child waits for a thread that it does not have, the timeout says so.
    subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK], check=True, timeout=120)


# Column, value that cannot be meant, value that it counts as. The image is 16 × 16, the crop 8 × 8 at (4, 4).
HOSTILE = [
    *[(column, bad, 0.0) for column in (columns.Y, columns.X) for bad in (-1.0, -1e9, float("nan"), -float("inf"))],
    *[(column, bad, 8.0) for column in (columns.Y, columns.X) for bad in (9.0, 1e9, 2.0**31, float("inf"))],
    *[(column, bad, 1.0) for column in (columns.H, columns.W) for bad in (0.0, -7.0, float("nan"), -float("inf"))],
    (columns.ORDER, 24.0, 23.0), (columns.ORDER, 1e30, 23.0), (columns.ORDER, -1.0, 0.0),
    (columns.ORDER, float("nan"), 0.0),
    (columns.FLIP, float("nan"), 0.0), (columns.JITTER_ON, float("nan"), 0.0), (columns.GRAY, float("nan"), 0.0),
    (columns.SIGMA, float("nan"), 0.0), (columns.SIGMA, -1.0, 0.0),
]  # fmt: skip


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize(("column", "bad", "meant"), HOSTILE)
def test_values_that_cannot_be_meant_count_as_the_nearest_that_can(column: int, bad: float, meant: float) -> None:
    spec = replace(STRONG, image_size=16, blur=1)
    images, drawn = pictures(8, 16), table(spec, 8)
    drawn[:, : columns.FLIP] = torch.tensor([4.0, 4.0, 8.0, 8.0])
    drawn[:, columns.JITTER_ON] = 1
    good = drawn.clone()
    drawn[1::2, column], good[1::2, column] = bad, meant
    ours = native.augment(images, drawn, spec, 16, torch.float32)
    assert torch.equal(ours, native.augment(images, good, spec, 16, torch.float32))
    assert ours.isfinite().all()


def test_crops_larger_than_the_image_are_the_image() -> None:
    spec = replace(STRONG, image_size=16)
    images, drawn = pictures(8, 16), table(spec, 8)
    drawn[:, : columns.FLIP] = torch.tensor([5.0, 3.0, 1e9, float("inf")])
    good = drawn.clone()
    good[:, : columns.FLIP] = torch.tensor([0.0, 0.0, 16.0, 16.0])
    ours = native.augment(images, drawn, spec, 16, torch.float32)
    assert torch.equal(ours, native.augment(images, good, spec, 16, torch.float32))


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("column", [columns.BRIGHTNESS, columns.CONTRAST, columns.SATURATION, columns.HUE])
def test_a_factor_that_is_not_a_number_gives_views_that_are_none(column: int, dtype: torch.dtype) -> None:
    # Brightness, contrast, saturation, hue in this order; a colourful image, so that the hue means something.
    spec = replace(STRONG, image_size=8, jitter=1, gray=0, blur=0)
    images = torch.tensor([200, 100, 50], dtype=torch.uint8).expand(4, 8, 8, 3).contiguous()
    drawn = table(spec, 4)
    drawn[:, columns.ORDER] = 0
    drawn[:, columns.BRIGHTNESS : columns.ORDER] = torch.tensor([0.9, 0.9, 0.9, 0.1])
    drawn[::2, column] = float("nan")
    views = native.augment(images, drawn, spec, 8, dtype)
    assert views[::2].isnan().all() and views[1::2].isfinite().all()


# What the module itself takes.
ARGUMENTS: dict[str, Any] = {
    "images": np.zeros((2, 8, 8, 3), np.uint8), "table": np.zeros((4, 13), np.float32), "mean": (0.5, 0.5, 0.5),
    "inverse_std": (2.0, 2.0, 2.0), "jitter": True, "gray": True, "blur": True, "blur_kernel": 3, "threads": 1,
    "instructions": "", "views": np.zeros((4, 8, 8, 3), np.float32),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blur_kernel": 4}, "blur kernel must be odd"),
        ({"blur_kernel": 17}, "reach less far than the view"),
        ({"blur_kernel": -1}, "blur kernel must be odd"),
        ({"instructions": "avx1024"}, "does not have the instruction set avx1024"),
        ({"table": np.zeros((3, 13), np.float32), "views": np.zeros((3, 8, 8, 3), np.float32)}, "a row for each view"),
        ({"images": np.zeros((0, 8, 8, 3), np.uint8)}, "a row for each view"),
        ({"images": np.zeros((2, 0, 8, 3), np.uint8)}, "a side of 1 to"),
        ({"views": np.zeros((4, 8, 7, 3), np.float32)}, "views must be square"),
        ({"views": np.zeros((5, 8, 8, 3), np.float32)}, "as many views as rows"),
        ({"views": np.zeros((4, 0, 0, 3), np.float32)}, "a side of 1 to"),
    ],
)
def test_the_module_itself_refuses_what_does_not_fit(change: dict[str, Any], message: str) -> None:
    native._native.augment(**ARGUMENTS)
    with pytest.raises(ValueError, match=message):
        native._native.augment(**{**ARGUMENTS, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"images": np.zeros((2, 8, 8, 3), np.float32)},
        {"images": np.zeros((2, 8, 8, 4), np.uint8)},
        {"images": np.zeros((4, 8, 8, 3), np.uint8)[::2]},
        {"table": np.zeros((4, 12), np.float32)},
        {"table": np.zeros((4, 13))},
        {"views": np.zeros((4, 8, 8, 3))},
    ],
)
def test_the_module_itself_converts_nothing(change: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        native._native.augment(**{**ARGUMENTS, **change})


# Ordinary; failing often; never fitting (the fallback), from below and from above; tiny; every probability in use.
DRAWN = [
    AugmentSpec(image_size=5, crop_scale=(0.25, 0.25), crop_ratio=(1.0, 1.0)),  # 2.5 pixels: half to even, 2
    AugmentSpec(),
    AugmentSpec(image_size=11, crop_scale=(0.5, 1.0), crop_ratio=(0.2, 5.0)),
    AugmentSpec(image_size=20, crop_scale=(1.0, 1.0), crop_ratio=(0.4, 0.5)),
    AugmentSpec(image_size=20, crop_scale=(1.0, 1.0), crop_ratio=(2.0, 2.5)),
    AugmentSpec(image_size=1),
    AugmentSpec(image_size=224, crop_scale=(0.08, 1), crop_ratio=(0.01, 100), flip=0.3, jitter=0.6, brightness=1.5,
                contrast=0.3, saturation=2.5, hue=0.2, gray=0.25, blur=0.5, blur_sigma=(0.3, 1.7)),
]  # fmt: skip


@pytest.mark.parametrize("spec", DRAWN)
@pytest.mark.parametrize("seed", [0, -1, 2**63 + 11, 2**64 - 1])
def test_the_drawn_table_is_the_same_to_the_last_bit(spec: AugmentSpec, seed: int) -> None:
    ids = torch.cat([torch.arange(1000), torch.tensor([49_999, 2**32 - 1, 2**32, 2**40 + 3, 2**63 - 1, -1])])
    for epoch, views in ((0, 1), (2**32 - 1, 3)):
        ours = native.draw(spec, seed, epoch, ids, views)
        assert torch.equal(ours, draw_torch(spec, seed, epoch, ids, views))
    strided = torch.stack([ids, ids], 1)[:, 0].to(torch.int64)
    assert torch.equal(native.draw(spec, seed, epoch, strided, views), ours)


def test_drawing_equals_a_scalar_transcription() -> None:
    spec = DRAWN[-1]
    expected = [params_truth.row(spec, 77, 5, i, view) for view in range(2) for i in range(50)]
    ours = native.draw(spec, 77, 5, torch.arange(50), 2)
    torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64).float(), rtol=1e-6, atol=1e-6)


def test_no_samples_draw_no_rows() -> None:
    assert native.draw(STRONG, 0, 0, torch.arange(0), 2).shape == (0, len(columns.COLUMNS))


def test_why_not_has_nothing_to_say_where_it_serves() -> None:
    assert native.why_not(CPU) == "" and native.can_draw()
    assert native._native.instruction_sets()[-1] == "baseline"


def test_all_instruction_sets_make_the_same_views(monkeypatch: pytest.MonkeyPatch) -> None:
    images, drawn = pictures(30, 32), table(STRONG, 30)
    results = {}
    for name in INSTRUCTION_SETS:
        monkeypatch.setattr(native, "INSTRUCTIONS", name)
        results[name] = native.augment(images, drawn, STRONG, 32, torch.float32)
    for a, b in itertools.pairwise(results.values()):
        torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE)
