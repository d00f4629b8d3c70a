"""The fused NT-Xent, host and device code, in Triton's interpreter against the plain M × M one in float64.

float32 and float16 only: the interpreter computes bfloat16 wrongly (kernels in it are checked on a GPU, tests/gpu).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures import ntxent_ranks
from fixtures.ntxent_edges import FINITE, NOT_FINITE, gradient_penalty, projections
from reference import ntxent_truth as truth
from simclr_engine.kernels import nt_xent, pick_nt_xent
from simclr_engine.kernels.ntxent import fused

# Past the ends of z there is nothing: zeros, whose logarithms and quotients are computed and not used.
pytestmark = pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value", "ignore:overflow encountered")

CPU = torch.device("cpu")
# Relative norm of the gradient's error; and the loss's error, relative or absolute, whichever is larger.
GRADIENT_TOLERANCE = {"fp32": 1e-5, "tf32": 5e-3, "fp16": 5e-3}
LOSS_TOLERANCE = {"fp32": 1e-6, "tf32": 1e-3, "fp16": 1e-3}


@pytest.fixture(autouse=True)
def _float32_products_are_exact() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.fixture
def tiles_of_16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small tiles, of different heights and widths, so that few rows make many programs and many turns."""
    tiles = fused.Tiles(fused.Tile(16, 16, 4, 2), fused.Tile(16, 32, 4, 2), fused.Tile(32, 16, 4, 2))
    monkeypatch.setattr(fused, "tiles", lambda device, products, width: tiles)


def ours(z: torch.Tensor, views: int, temperature: float, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient; the latter multiplied by `scale` on the way and divided again, as a GradScaler would."""
    leaf = z.detach().requires_grad_()
    loss = nt_xent(leaf, views, temperature, "triton")
    (gradient,) = torch.autograd.grad(loss, leaf, torch.tensor(scale))
    assert gradient.dtype == z.dtype and gradient.shape == z.shape
    return loss.detach(), gradient.double() / scale


def check(z: torch.Tensor, views: int, temperature: float, products: str = "") -> None:
    products = products or {torch.float32: "fp32", torch.float16: "fp16"}[z.dtype]
    loss, gradient = ours(z, views, temperature, 1024.0)
    expected_loss, expected = truth.loss_and_gradient(z, views, temperature)
    assert loss.dtype == torch.float32 and loss.shape == ()
    off = abs(float(loss.double() - expected_loss)) / max(1.0, float(expected_loss))
    # Whatever the products: a similarity is a float32 number of about 1, and is divided by τ.
    assert off < LOSS_TOLERANCE[products] + 5e-7 / temperature, f"loss {float(loss)}, should be {float(expected_loss)}"
    # Where the gradient vanishes (one sample of two views), two pulls of this size cancel.
    pull = 2 / (len(z) * temperature) * (1 / z.double().norm(dim=1)).norm()
    error = float((gradient - expected).norm() / (expected.norm() if expected.norm() > 1e-9 else pull))
    assert error < GRADIENT_TOLERANCE[products], f"gradient off by {error}"


# Every pair of values of two parameters occurs (and so does every dtype with each); M ≤ 600, which is 0.5 s here.
# B: 1, nothing to contrast; 2, the least; 17, 33, odd; 100, several tiles and no whole number of them.
# D: three widths of ẑ, filled or not, odd ones and the smallest.
PAIRWISE = [
    (1, 2, 16, 0.05), (1, 3, 64, 0.1), (1, 4, 128, 0.5), (1, 8, 256, 1.0), (1, 2, 37, 0.5), (1, 8, 1, 0.1),
    (2, 3, 16, 0.5), (2, 2, 64, 1.0), (2, 8, 128, 0.05), (2, 4, 256, 0.1), (2, 3, 37, 1.0), (2, 4, 200, 0.05),
    (17, 4, 16, 1.0), (17, 8, 64, 0.5), (17, 2, 128, 0.1), (17, 3, 256, 0.05), (17, 4, 37, 0.1), (17, 2, 200, 0.5),
    (33, 8, 16, 0.1), (33, 4, 64, 0.05), (33, 3, 128, 1.0), (33, 2, 256, 0.5), (33, 8, 37, 0.05), (33, 3, 200, 1.0),
    (100, 2, 16, 0.1), (100, 2, 64, 0.05), (100, 3, 128, 0.5), (100, 4, 256, 1.0), (100, 3, 200, 0.1),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize(("batch", "views", "width", "temperature"), PAIRWISE)
def test_loss_and_gradient_equal_the_truth(
    batch: int, views: int, width: int, temperature: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if batch == 100:  # the interpreter is slow at the small tiles of fp32, which the smaller batches go through
        tile = fused.Tile(64, 64, 4, 2)
        monkeypatch.setattr(fused, "tiles", lambda *_: fused.Tiles(tile, tile, tile))
    check(projections(views * batch, width, seed=batch, dtype=dtype), views, temperature)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("rows_owned", [False, True], ids=["symmetric", "by row"])
@pytest.mark.parametrize(("batch", "views"), [(24, 2), (25, 2), (16, 4), (5, 7), (3, 9), (17, 3), (33, 2), (47, 2)])
def test_every_way_of_tiling_gives_the_same(
    batch: int, views: int, rows_owned: bool, dtype: torch.dtype, tiles_of_16: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 3 blocks exactly; 4 blocks, the last with 2 rows; 4 exactly (half the circle twice); batches less than a tile; and
    # positives in the very corner of a tile that holds no other: lower left, lower left, upper right.
    if rows_owned:
        monkeypatch.setattr(fused, "SYMMETRIC_UP_TO", 0)
    check(projections(views * batch, 24, dtype=dtype), views, 0.1)


@pytest.mark.parametrize("chunk", [0, 16, 32])
def test_products_in_chunks_are_the_whole_product(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tile = fused.Tile(32, 32, 4, 2, chunk)
    monkeypatch.setattr(fused, "tiles", lambda *_: fused.Tiles(tile, tile, tile))
    check(projections(75, 100), 3, 0.2)
    monkeypatch.setattr(fused, "SYMMETRIC_UP_TO", 0)
    check(projections(75, 100), 3, 0.2)


@pytest.mark.parametrize("views", [2, 5])
def test_many_programs_finish_as_one_does(views: int, monkeypatch: pytest.MonkeyPatch, tiles_of_16: None) -> None:
    z = projections(20 * views, 16)
    monkeypatch.setattr(fused, "CELLS_OF_ONE_FINISH", 0)
    monkeypatch.setattr(fused, "FINISH", {"SAMPLES": 8, "PARTS": 2, "num_warps": 1})
    check(z, views, 0.5)
    monkeypatch.setattr(fused, "CELLS_OF_ONE_FINISH", 10**9)  # one program, many turns
    check(z, views, 0.5)


@pytest.mark.parametrize("rows", [16, 30, 48, 64, 66, 100])  # 1 to 7 blocks: odd and even numbers go round differently
def test_every_cell_of_the_sums_is_written_and_holds_its_own_block(
    rows: int, tiles_of_16: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit, _ = fused.prepare(projections(rows, 16), 2)
    new_empty = torch.Tensor.new_empty
    with monkeypatch.context() as patch:  # in fresh memory full of NaN, what nobody writes shows
        patch.setattr(torch.Tensor, "new_empty", lambda *a, **k: new_empty(*a, **k).fill_(torch.nan))
        part = fused.symmetric_sums(unit, 0.5)
    e = ((unit.double() @ unit.double().T - 1) / 0.5).exp().fill_diagonal_(0)
    expected = torch.stack([columns.sum(1) for columns in e.split(16, 1)])
    torch.testing.assert_close(part.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize(("batch", "views"), [(9, 2), (16, 2), (5, 3)])
def test_the_rows_of_one_rank_against_all_equal_the_whole(
    batch: int, views: int, ranks: int, tiles_of_16: None
) -> None:
    """What `loss` does on each rank, with the gathering done by hand."""
    whole = projections(ranks * batch * views, 24).view(views, ranks, batch, 24)
    expected_loss, expected = truth.loss_and_gradient(whole.reshape(-1, 24), views, 0.2)
    local = [whole[:, rank].reshape(-1, 24).contiguous() for rank in range(ranks)]
    prepared = [fused.prepare(z, views) for z in local]
    unit = torch.cat([u for u, _ in prepared])
    rows = batch * views
    finished = [
        fused.finish(fused.row_sums(unit, rank * rows, rows, 0.2), prepared[rank][1], views, 0.2)
        for rank in range(ranks)
    ]
    loss = sum(float(one) for _, one in finished) / ranks
    assert abs(loss - float(expected_loss)) < 1e-6 * max(1, float(expected_loss))
    inverse = torch.cat([i for i, _ in finished])
    for rank in range(ranks):
        gradient = fused.gradients(torch.ones(()), local[rank], unit, inverse, rank * rows, views, 0.2) / ranks
        target = expected.view(views, ranks, batch, 24)[:, rank].reshape(-1, 24)
        assert float((gradient - target).norm() / target.norm()) < 1e-5


def test_two_ranks_with_these_kernels_are_one_process(tmp_path: Path) -> None:
    x, weight = projections(2 * 2 * 20, 24).view(2, 2, 20, 24), projections(24, 24, seed=1)
    case = {"x": x, "weight": weight, "views": 2, "temperature": 0.2, "backend": "triton"}
    found = ntxent_ranks.run(2, [case], tmp_path)
    leaf = weight.double().requires_grad_()
    loss = truth.nt_xent(x.flatten(0, 2).double() @ leaf, 2, 0.2)
    (expected,) = torch.autograd.grad(loss, leaf)
    for rank in range(2):
        assert abs(float(found[rank][0]["loss"]) - float(loss.detach())) < 1e-5
        assert "has no second derivative" in found[rank][0]["error"]
    mean = torch.stack([found[rank][0]["weight"] for rank in range(2)]).double().mean(0)
    assert float((mean - expected).norm() / expected.norm()) < 1e-5


def test_tf32_rounds_to_the_nearest_and_keeps_nan() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    z = projections(66, 40)
    unit, positive = fused.prepare(z, 3)
    exact = torch.nn.functional.normalize(z.double())
    assert int((unit.view(torch.int32) & 0x1FFF).abs().max()) == 0  # ten bits of mantissa
    relative = ((unit[:, :40].double() - exact) / exact).abs()
    assert 2.0**-12 < float(relative.max()) < 2.0**-11 * 1.001
    s = unit.double() @ unit.double().T
    mean = torch.stack([(s[i, i + 22] + s[i, i + 44] + s[i + 22, i + 44]) / 3 for i in range(22)])
    torch.testing.assert_close(positive.double(), mean, rtol=0, atol=1e-6)  # from what the products will see
    check(z, 3, 0.2, "tf32")
    # A GPU's NaN has all bits set; one added to it would wrap around.
    z[3, 3] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    assert torch.isnan(fused.prepare(z, 3)[0][3, :40]).all()


def test_grad_output_scales_the_gradient() -> None:
    z = projections(34, 16)
    assert torch.equal(ours(z, 2, 0.1, -4.0)[1], ours(z, 2, 0.1)[1])  # by a power of two: exactly


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_gradient_late_in_training_is_as_good_as_the_frameworks_own(temperature: float, dtype: torch.dtype) -> None:
    # Positives almost aligned: the softmax is nearly certain, and the gradient a small difference of large terms.
    z = (projections(128, 64).repeat(2, 1) + 0.05 * projections(256, 64, seed=1)).to(dtype)
    _, gradient = ours(z, 2, temperature, 2.0**14)
    _, expected = truth.loss_and_gradient(z, 2, temperature)
    eager = z.clone().requires_grad_()
    (eager_gradient,) = torch.autograd.grad(truth.nt_xent(eager, 2, temperature), eager, torch.tensor(2.0**14))
    eager_error = (eager_gradient.double() / 2**14 - expected).norm() / expected.norm()
    error = float((gradient - expected).norm() / expected.norm())
    assert error < 1.5 * float(eager_error) + 1e-6
    # Eager fp16 is far off here. Ours is not, because the weights, of 1e-6 and less, are scaled before they are fp16.
    assert dtype == torch.float32 or error < GRADIENT_TOLERANCE["fp16"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_opposite_vectors_at_the_lowest_temperature_stay_finite(dtype: torch.dtype) -> None:
    # 1/ℓ reaches exp(2/τ); a tile's columns past the end, where s counts as 0, would weigh exp(1/τ), too much for fp16.
    z = projections(3, 16, dtype=dtype)
    check(torch.cat((z, -z)), 2, 0.03)
    check(torch.cat((z[:1], -z[:1])), 2, 0.03)


@pytest.mark.parametrize("name", FINITE)
def test_edge_cases_are_as_in_the_truth(name: str) -> None:
    loss, gradient = ours(FINITE[name], 2, 0.2)
    expected_loss, expected = truth.loss_and_gradient(FINITE[name], 2, 0.2)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)


def test_float16_rows_whose_squares_overflow_count_in_full() -> None:
    z = projections(32, 8, dtype=torch.float16)
    z[4] = z[4] / z[4].abs().max() * 60000
    assert torch.isfinite(z).all()
    check(z, 2, 0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("bad", NOT_FINITE)
@pytest.mark.parametrize("row", [0, 70])
def test_what_is_not_finite_gives_nan_and_not_a_number(bad: float, row: int, dtype: torch.dtype) -> None:
    z = projections(100, 8, dtype=dtype)
    z[row, 3] = bad
    loss, gradient = ours(z, 2, 0.2)
    assert torch.isnan(loss)
    assert torch.isnan(gradient).all()  # every row is compared with this one


def test_non_contiguous_projections_work() -> None:
    z = projections(16, 48)
    for strided in (z.T, z[::2, ::3], z[1:, 1:][:14], z[:1].expand(4, 48)):
        check(strided, 2, 0.3)


def test_the_result_is_repeatable_bit_for_bit(tiles_of_16: None) -> None:
    z = projections(100, 20)
    (loss, gradient), (again, gradient_again) = ours(z, 2, 0.1), ours(z, 2, 0.1)
    assert torch.equal(loss, again) and torch.equal(gradient, gradient_again)


def test_a_gradient_penalty_is_that_of_the_truth() -> None:
    expected = gradient_penalty(lambda z: truth.nt_xent(z, 2, 0.3), torch.float64)
    assert expected.norm() > 1e-4
    found = gradient_penalty(lambda z: nt_xent(z, 2, 0.3, "triton"), torch.float32)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


def test_double_precision_is_served_by_pytorch() -> None:
    z = projections(8, 4, dtype=torch.float64).requires_grad_()
    assert torch.equal(nt_xent(z, 2, 0.3, "triton"), nt_xent(z, 2, 0.3, "torch"))
    assert torch.autograd.gradcheck(lambda t: nt_xent(t, 2, 0.3, "triton"), z)


def test_opcheck_passes_for_both_operators() -> None:
    for dtype in (torch.float32, torch.float16):
        z = projections(12, 8, dtype=dtype)
        torch.library.opcheck(torch.ops.simclr_engine.nt_xent_forward.default, (z, 3, 0.5))
        torch.library.opcheck(torch.ops.simclr_engine.nt_xent_forward.default, (z.clone().requires_grad_(), 3, 0.5))
        _, unit, inverse = torch.ops.simclr_engine.nt_xent_forward(z, 3, 0.5)
        torch.library.opcheck(
            torch.ops.simclr_engine.nt_xent_backward.default, (torch.ones(()), z, unit, inverse, 3, 0.5)
        )


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_step_compiles_to_one_graph_that_holds_both_operators(dynamic: bool) -> None:
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    graphs: list[str] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph.code)
        return make_boxed_func(graph)

    weight = projections(16, 8, seed=1).requires_grad_()
    x = projections(32, 16)

    def step(x: torch.Tensor) -> torch.Tensor:
        return nt_xent((x @ weight).relu() + 0.1, 2, 0.5, backend="triton") * 2

    step(x).backward()
    expected, weight.grad = weight.grad, None
    compiled = torch.compile(
        step, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep), fullgraph=True, dynamic=dynamic
    )
    compiled(x).backward()
    assert weight.grad is not None and expected is not None
    torch.testing.assert_close(weight.grad, expected)
    forward, backward = graphs
    assert "nt_xent_forward" in forward and "nt_xent_backward" in backward
    # The plain formula, M × M, is for second derivatives: a compiled step must not contain it.
    assert "logsumexp" not in forward + backward and "eye" not in forward + backward


def test_torch_func_forward_mode_and_vmap_are_those_of_the_truth() -> None:
    def loss(x: torch.Tensor) -> torch.Tensor:
        return nt_xent(x, 3, 0.2, "triton")

    def exact(x: torch.Tensor) -> torch.Tensor:
        return truth.nt_xent(x.double(), 3, 0.2)

    z, tangent = projections(12, 8), projections(12, 8, seed=1)
    for transform in (torch.func.grad, torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(loss)(z), transform(exact)(z), rtol=1e-4, atol=1e-6, check_dtype=False)
    found, expected = (torch.func.jvp(f, (z,), (tangent,))[1] for f in (loss, exact))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, check_dtype=False)
    many = torch.stack((z, tangent))
    found, expected = (
        torch.func.vmap(torch.func.grad(loss))(many),
        torch.stack([torch.func.grad(exact)(x) for x in many]),
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, check_dtype=False)
    torch.testing.assert_close(
        torch.func.hessian(loss)(z), torch.func.hessian(exact)(z), rtol=1e-3, atol=1e-5, check_dtype=False
    )


def test_one_sample_of_two_views_has_a_loss_of_zero() -> None:
    loss, gradient = ours(projections(2, 16), 2, 0.1)
    assert float(loss) == 0.0 and not gradient.any()


def test_autocast_changes_nothing() -> None:
    z = projections(64, 32)
    expected = ours(z, 2, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = ours(z, 2, 0.1)
    assert torch.equal(inside[0], expected[0]) and torch.equal(inside[1], expected[1])


def test_the_public_function_reaches_it_by_name() -> None:
    assert pick_nt_xent("triton", CPU, 128, 0.5) == ("triton", "asked for by name")
    z = projections(20, 16)
    assert torch.equal(nt_xent(z, 2, 0.5, backend="triton"), torch.ops.simclr_engine.nt_xent_forward(z, 2, 0.5)[0])
