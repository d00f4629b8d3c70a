"""NT-Xent under torch.func, forward mode, vmap and torch.compile, against the plain M × M one in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fixtures.ntxent_edges import projections
from reference import ntxent_truth as truth
from simclr_engine.kernels import nt_xent

Function = Callable[[Tensor], Tensor]
F = torch.func
CASES = pytest.mark.parametrize(("views", "temperature"), [(2, 0.5), (3, 0.07), (2, 0.02), (4, 0.01)])


def both(views: int, temperature: float) -> tuple[Function, Function, Tensor]:
    """Ours, the truth, and projections `[3·V, 4]` in float64."""
    z = projections(3 * views, 4, dtype=torch.float64)
    return lambda x: nt_xent(x, views, temperature), lambda x: truth.nt_xent(x, views, temperature), z


def jvp_along(function: Function, vector: Tensor) -> Function:
    return lambda z: F.jvp(function, (z,), (vector,))[1]


FIRST: dict[str, Callable[[Function], Callable[[Tensor], Tensor]]] = {
    "grad": F.grad,
    "jacrev": F.jacrev,
    "jacfwd": F.jacfwd,
    "jvp": lambda f: lambda z: jvp_along(f, z.flip(0))(z),
    "vjp": lambda f: lambda z: F.vjp(f, z)[1](torch.tensor(-2.0, dtype=z.dtype))[0],
    "grad of a function of the loss": lambda f: F.grad(lambda z: f(z).square()),
}
SECOND: dict[str, Callable[[Function], Callable[[Tensor], Tensor]]] = {
    "hessian": F.hessian,
    "reverse over reverse": lambda f: F.jacrev(F.jacrev(f)),
    "forward over forward": lambda f: F.jacfwd(F.jacfwd(f)),
    "reverse over forward": lambda f: F.jacrev(F.jacfwd(f)),
    "torch.autograd.functional": lambda f: lambda z: torch.autograd.functional.hessian(f, z),
    "the same, vectorised": lambda f: lambda z: torch.autograd.functional.hessian(f, z, vectorize=True),
}


@CASES
@pytest.mark.parametrize("transform", FIRST)
def test_first_derivatives_of_torch_func_are_those_of_the_truth(transform: str, views: int, temperature: float) -> None:
    ours, exact, z = both(views, temperature)
    torch.testing.assert_close(FIRST[transform](ours)(z), FIRST[transform](exact)(z), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("views", "temperature"), [(2, 0.5), (3, 0.02)])
@pytest.mark.parametrize("transform", SECOND)
def test_second_derivatives_of_torch_func_are_those_of_the_truth(
    transform: str, views: int, temperature: float
) -> None:
    ours, exact, z = both(views, temperature)
    torch.testing.assert_close(SECOND[transform](ours)(z), F.hessian(exact)(z), rtol=1e-8, atol=1e-10)


@CASES
def test_vmap_gives_each_loss_and_each_gradient_by_itself(views: int, temperature: float) -> None:
    ours, exact, _ = both(views, temperature)
    many = projections(5 * 3 * views, 4, dtype=torch.float64).view(5, 3 * views, 4)
    torch.testing.assert_close(F.vmap(ours)(many), torch.stack([exact(z) for z in many]))
    torch.testing.assert_close(F.vmap(ours, in_dims=2)(many.movedim(0, 2)), torch.stack([exact(z) for z in many]))
    expected = torch.stack([F.grad(exact)(z) for z in many])
    torch.testing.assert_close(F.vmap(F.grad(ours))(many), expected)
    torch.testing.assert_close(F.grad(lambda x: F.vmap(ours)(x).sum())(many), expected)


@pytest.mark.parametrize(("views", "temperature"), [(2, 0.5), (3, 0.02)])
def test_gradcheck_passes_in_forward_mode_and_for_batched_gradients(views: int, temperature: float) -> None:
    ours, _, z = both(views, temperature)
    z.requires_grad_()
    everything = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(ours, z, **everything)
    assert torch.autograd.gradgradcheck(ours, z, check_fwd_over_rev=True, check_batched_grad=True)


def test_forward_mode_of_half_precision_does_not_underflow() -> None:
    z, tangent = projections(400, 16, dtype=torch.float16), projections(400, 16, seed=1, dtype=torch.float16)
    expected = F.jvp(lambda x: truth.nt_xent(x, 2, 0.5), (z.double(),), (tangent.double(),))[1]
    found = F.jvp(lambda x: nt_xent(x, 2, 0.5), (z,), (tangent,))[1]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=0)


@CASES
def test_the_loss_compiles_to_one_graph_forward_and_backward(views: int, temperature: float) -> None:
    torch.compiler.reset()
    ours, exact, z = both(views, temperature)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z), exact(z))
    leaf = z.clone().requires_grad_()
    (compiled(leaf) * -3).backward()
    torch.testing.assert_close(leaf.grad, -3 * F.grad(exact)(z), rtol=1e-9, atol=1e-11)
    with pytest.raises(RuntimeError, match="create_graph=False"):  # torch's own, for anything compiled
        (slope,) = torch.autograd.grad(compiled(leaf), leaf, create_graph=True)
        slope.square().sum().backward()


def test_a_derivative_taken_inside_a_compiled_function_is_right() -> None:
    torch.compiler.reset()
    ours, exact, z = both(2, 0.1)
    compiled = torch.compile(F.grad(ours), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z), F.grad(exact)(z), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("temperature", [0.5, 0.02])
def test_opcheck_passes_for_both_operators_of_pytorch(temperature: float) -> None:
    operators = torch.ops.simclr_engine
    z = projections(12, 8).requires_grad_()
    torch.library.opcheck(operators.nt_xent_chunked_forward.default, (z, 3, temperature))
    _, log_sum, gaps = operators.nt_xent_chunked_forward(z.detach(), 3, temperature)
    arguments = (torch.ones(()), z.detach(), log_sum, gaps, 3, temperature)
    torch.library.opcheck(operators.nt_xent_chunked_backward.default, arguments)
