"""The fused NT-Xent on a CUDA device: the full grid against float64, memory, repeatability, graphs, no waiting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fixtures.ntxent_edges import FINITE, LENGTHS, NOT_FINITE, gradient_penalty
from reference import ntxent_truth as truth
from simclr_engine.kernels import nt_xent, pick_nt_xent
from simclr_engine.kernels.ntxent import chunked, fused

CUDA = torch.device("cuda")
# Type of the products → relative norm of the gradient's error; error of the loss, relative from 1 on, else absolute.
TOLERANCE = {"fp32": (1e-5, 1e-6), "tf32": (5e-3, 1e-3), "fp16": (5e-3, 1e-3), "bf16": (3e-2, 8e-3)}
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PRODUCTS = list(DTYPES)


def missing() -> str:
    return fused.why_not(CUDA, 128, 0.5) if torch.cuda.is_available() else ""  # without a device: see conftest


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(missing()), reason=missing())]


@pytest.fixture(autouse=True)
def _precision() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def projections(rows: int, width: int, products: str = "fp32", seed: int = 0) -> torch.Tensor:
    torch.backends.cuda.matmul.fp32_precision = "tf32" if products == "tf32" else "ieee"
    z = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return z.to(DTYPES[products]).to(CUDA)


def ours(z: torch.Tensor, views: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient; the latter scaled on the way as a GradScaler would, so that it does not underflow in fp16."""
    leaf = z.detach().requires_grad_()
    loss = nt_xent(leaf, views, temperature, "triton")
    scale = 2.0**14
    (gradient,) = torch.autograd.grad(loss, leaf, torch.tensor(scale, device=CUDA))
    assert gradient.dtype == z.dtype and gradient.is_cuda and loss.dtype == torch.float32 and loss.shape == ()
    return loss.detach(), gradient.double() / scale


def exact(z: torch.Tensor, views: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """In float64 by the PyTorch backend, which the tests of every machine compare with the plain formula."""
    leaf = z.detach().double().requires_grad_()
    loss = nt_xent(leaf, views, temperature, "torch")
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def check(z: torch.Tensor, views: int, temperature: float, products: str, what: Any = "") -> None:
    loss, gradient = ours(z, views, temperature)
    expected_loss, expected = exact(z, views, temperature)
    for_gradient, for_loss = TOLERANCE[products]
    off = abs(float(loss.double() - expected_loss)) / max(1.0, float(expected_loss))
    # Whatever the products: a similarity is a float32 number of about 1, and is divided by τ.
    for_loss += 5e-7 / temperature
    assert off < for_loss, f"loss {float(loss)}, should be {float(expected_loss)} {what}"
    # Where the gradient vanishes (one sample of two views), two pulls of this size cancel.
    pull = 2 / (len(z) * temperature) * (1 / z.double().norm(dim=1)).norm()
    error = float((gradient - expected).norm() / (expected.norm() if expected.norm() > 1e-9 else pull))
    assert error < for_gradient, f"gradient off by {error} {what}"


# 1: nothing to contrast with; 2: the least; 17, 33: odd; 100: several tiles and no whole number of them; 513: many.
@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("batch", [1, 2, 17, 33, 100, 513])
@pytest.mark.parametrize("views", [2, 3, 4, 8])
def test_loss_and_gradient_equal_the_truth(batch: int, views: int, products: str) -> None:
    for width in (16, 64, 128, 256):
        z = projections(views * batch, width, products, seed=width)
        for temperature in (0.05, 0.1, 0.5, 1.0):
            check(z, views, temperature, products, (width, temperature))


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("width", [1, 3, 37, 100, 200, 255])
def test_odd_widths_equal_the_truth(width: int, products: str) -> None:
    check(projections(3 * 77, width, products), 3, 0.2, products)


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("rows", [fused.SYMMETRIC_UP_TO, 2 * fused.SYMMETRIC_UP_TO], ids=["by tiles", "by rows"])
def test_many_rows_equal_the_truth(rows: int, products: str) -> None:
    check(projections(rows, 128, products), 2, 0.1, products)


@pytest.mark.parametrize("products", PRODUCTS)
def test_both_ways_of_summing_agree(products: str, monkeypatch: pytest.MonkeyPatch) -> None:
    z = projections(2 * 777, 128, products)
    monkeypatch.setattr(fused, "SYMMETRIC_UP_TO", 0)
    check(z, 2, 0.1, products)


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.2])
def test_gradient_late_in_training_is_as_good_as_the_frameworks_own(temperature: float, products: str) -> None:
    # Positives almost aligned: the softmax is nearly certain, and the gradient a small difference of large terms.
    close = projections(128, 64, products).repeat(2, 1) + 0.05 * projections(256, 64, products, seed=1)
    _, gradient = ours(close, 2, temperature)
    _, expected = exact(close, 2, temperature)
    eager = close.clone().requires_grad_()
    unit = torch.nn.functional.normalize(eager)
    logits = (unit @ unit.T / temperature).fill_diagonal_(-torch.inf)
    loss = torch.nn.functional.cross_entropy(logits, torch.arange(256, device=CUDA).roll(128))
    (eager_gradient,) = torch.autograd.grad(loss, eager, torch.tensor(2.0**14, device=CUDA, dtype=loss.dtype))
    eager_error = float((eager_gradient.double() / 2**14 - expected).norm() / expected.norm())
    assert float((gradient - expected).norm() / expected.norm()) < 2 * eager_error + 1e-5


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("bad", NOT_FINITE)
def test_what_is_not_finite_gives_nan_and_not_a_number(bad: float, products: str) -> None:
    z = projections(300, 40, products)
    z[170, 3] = bad
    loss, gradient = ours(z, 2, 0.2)
    assert torch.isnan(loss) and torch.isnan(gradient).all()


@pytest.mark.parametrize("products", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("length", LENGTHS)
def test_the_length_of_a_row_does_not_matter(length: float, products: str) -> None:
    z = torch.nn.functional.normalize(projections(300, 64, products).float())
    z[4] *= length
    check(z.to(DTYPES[products]), 2, 0.2, products)


@pytest.mark.parametrize("name", FINITE)
def test_edge_cases_are_as_in_the_truth(name: str) -> None:
    z = FINITE[name].to(CUDA)
    loss, gradient = ours(z, 2, 0.2)
    expected_loss, expected = exact(z, 2, 0.2)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("products", ["fp16", "bf16"])
def test_opposite_vectors_at_the_lowest_temperature_stay_finite(products: str) -> None:
    z = projections(3, 16, products)
    loss, gradient = ours(torch.cat((z, -z)), 2, 0.03)
    assert torch.isfinite(loss) and torch.isfinite(gradient).all()


def test_non_contiguous_and_unaligned_projections_work() -> None:
    z = projections(96, 48)
    for strided in (z.T, z[::2, ::3], z[1:, 1:][:94], z[:1].expand(4, 48), z.flatten()[1 : 1 + 40 * 33].view(40, 33)):
        check(strided, 2, 0.3, "fp32")


@pytest.mark.parametrize("products", PRODUCTS)
def test_the_result_is_repeatable_bit_for_bit(products: str) -> None:
    z = projections(2 * 3000, 128, products)
    first = ours(z, 2, 0.1)
    for _ in range(5):
        again = ours(z, 2, 0.1)
        assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


@pytest.mark.parametrize("products", PRODUCTS)
def test_nothing_waits_for_the_device(products: str) -> None:
    z = projections(2 * 1000, 128, products).requires_grad_()
    nt_xent(z, 2, 0.5).backward()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        nt_xent(z, 2, 0.5).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("rows", [2 * 400, 2 * 4000, 2 * 9000])
def test_a_captured_graph_replays_with_new_numbers(rows: int, products: str) -> None:
    z = projections(rows, 128, products).requires_grad_()
    other = projections(rows, 128, products, seed=1)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        nt_xent(z, 2, 0.2).backward()
        z.grad = None
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = nt_xent(z, 2, 0.2)
        loss.backward()
    for numbers in (other, projections(rows, 128, products, seed=2)):
        with torch.no_grad():
            z.copy_(numbers)
        graph.replay()
        fresh = numbers.clone().requires_grad_()
        expected = nt_xent(fresh, 2, 0.2)
        expected.backward()
        assert torch.equal(loss, expected) and z.grad is not None and torch.equal(z.grad, fresh.grad)


def test_memory_grows_with_the_rows_and_not_with_their_square() -> None:
    peaks = {}
    for rows in (8192, 16384, 32768, 65536):
        z = projections(rows, 128, "bf16").requires_grad_()
        nt_xent(z, 2, 0.1).backward()
        z.grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        nt_xent(z, 2, 0.1).backward()
        peaks[rows] = torch.cuda.max_memory_allocated() - before
    # ẑ, the gradient and at most one copy of it, 2 bytes a number; partial sums of the symmetric way, 8 MiB at most; a
    # few numbers a row. The matrix would be 8 GiB in the end.
    for rows, peak in peaks.items():
        assert peak <= 3 * rows * 128 * 2 + (8 if rows <= fused.SYMMETRIC_UP_TO else 0) * 2**20 + 64 * rows, peaks
    assert peaks[65536] < 2.2 * peaks[32768], peaks


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_step_compiles_to_one_graph_and_gives_the_same(dynamic: bool) -> None:
    weight = projections(64, 128).requires_grad_()
    x = projections(2 * 300, 64, seed=1)

    def step(x: torch.Tensor) -> torch.Tensor:
        return nt_xent((x @ weight).relu() + 0.1, 2, 0.5) * 2

    step(x).backward()
    expected, weight.grad = weight.grad, None
    torch.compile(step, fullgraph=True, dynamic=dynamic)(x).backward()
    assert weight.grad is not None and expected is not None
    assert float((weight.grad - expected).norm() / expected.norm()) < 1e-4


@pytest.mark.parametrize("products", PRODUCTS)
def test_a_compiled_step_with_cuda_graphs_gives_the_same(products: str) -> None:
    projections(1, 1, products)
    step = torch.compile(lambda z: nt_xent(z, 2, 0.5) * 2, mode="reduce-overhead", fullgraph=True)
    for seed in range(4):
        z = projections(2 * 300, 128, products, seed=seed).requires_grad_()
        (found,) = torch.autograd.grad(step(z), z)
        (expected,) = torch.autograd.grad(nt_xent(z, 2, 0.5) * 2, z)
        assert torch.equal(found, expected)


def test_opcheck_passes_for_both_operators() -> None:
    z = projections(30, 24)
    torch.library.opcheck(torch.ops.simclr_engine.nt_xent_forward.default, (z, 3, 0.5))
    _, unit, inverse = torch.ops.simclr_engine.nt_xent_forward(z, 3, 0.5)
    arguments = (torch.ones((), device=CUDA), z, unit, inverse, 3, 0.5)
    torch.library.opcheck(torch.ops.simclr_engine.nt_xent_backward.default, arguments)


def test_a_gradient_penalty_is_that_of_the_truth() -> None:
    expected = gradient_penalty(lambda z: chunked.plain(z, 2, 0.3), torch.float64, "cuda")
    found = gradient_penalty(lambda z: nt_xent(z, 2, 0.3, "triton"), torch.float32, "cuda")
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("products", PRODUCTS)
def test_the_rows_of_one_rank_against_all_equal_the_whole(products: str) -> None:
    """What `loss` does on each rank, with the gathering done by hand."""
    ranks, batch, views = 3, 150, 2
    whole = projections(ranks * batch * views, 128, products).view(views, ranks, batch, 128)
    expected_loss, expected = exact(whole.reshape(-1, 128), views, 0.2)
    local = [whole[:, rank].reshape(-1, 128).contiguous() for rank in range(ranks)]
    prepared = [fused.prepare(z, views) for z in local]
    unit, rows = torch.cat([u for u, _ in prepared]), batch * views
    finished = [
        fused.finish(fused.row_sums(unit, rank * rows, rows, 0.2), prepared[rank][1], views, 0.2)
        for rank in range(ranks)
    ]
    for_gradient, for_loss = TOLERANCE[products]
    loss = sum(float(one) for _, one in finished) / ranks
    assert abs(loss - float(expected_loss)) < for_loss * max(1.0, float(expected_loss))
    inverse = torch.cat([i for i, _ in finished])
    scale = torch.tensor(1024.0, device=CUDA)
    for rank in range(ranks):
        gradient = fused.gradients(scale, local[rank], unit, inverse, rank * rows, views, 0.2).double() / 1024 / ranks
        target = expected.view(views, ranks, batch, 128)[:, rank].reshape(-1, 128)
        assert float((gradient - target).norm() / target.norm()) < for_gradient


def test_it_works_on_a_device_that_is_not_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device only")
    z = projections(200, 64).to("cuda:1")
    here = ours(z.to("cuda:0"), 2, 0.2)
    leaf = z.requires_grad_()
    loss = nt_xent(leaf, 2, 0.2, "triton")
    assert torch.equal(loss.to("cuda:0"), here[0])


def test_auto_picks_it_here() -> None:
    assert pick_nt_xent("auto", CUDA, 128, 0.5)[0] == "triton"
    assert pick_nt_xent("auto", CUDA, 512, 0.5)[0] == "torch"
    assert pick_nt_xent("auto", CUDA, 128, 0.02)[0] == "torch"


def test_the_truth_of_this_file_is_the_truth() -> None:
    z = projections(64, 16)
    loss, gradient = exact(z, 2, 0.2)
    expected_loss, expected = truth.loss_and_gradient(z.cpu(), 2, 0.2)
    torch.testing.assert_close(loss.cpu(), expected_loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient.cpu(), expected, rtol=1e-9, atol=1e-15)
