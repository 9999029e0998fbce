"""Products are with small dense matrices, in float64 unless the test is about float32."""

from collections.abc import Callable
from unittest import mock

import numpy as np
import pytest
import torch as th

from sb3_trpo import _conjugate_gradient as module
from sb3_trpo._conjugate_gradient import CGSolution, CGStatus, conjugate_gradient
from tests import reference

# Of a solve that ran to its end, with condition numbers up to 1e4 in float64.
SOLVED = 1e-9


def positive_definite(rng: np.random.Generator, size: int, condition: float = 100.0) -> th.Tensor:
    orthogonal, _ = np.linalg.qr(rng.normal(size=(size, size)))
    return th.tensor(orthogonal * np.geomspace(1.0, condition, size) @ orthogonal.T)


def vector(rng: np.random.Generator, size: int) -> th.Tensor:
    return th.tensor(rng.normal(size=size))


def solve(matrix: th.Tensor, b: th.Tensor, max_iter: int = 15, tol: float = 1e-5) -> CGSolution:
    return conjugate_gradient(lambda v: matrix @ v, b, max_iter, tol)


@pytest.fixture(params=["cpu", "accelerator"], autouse=True)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run every test with the loop of both."""
    if request.param == "accelerator":
        loop = module._iterate_without_waiting
        monkeypatch.setattr(module, "_iterate", loop)
    return str(request.param)


@pytest.mark.parametrize("condition", [1.0, 100.0, 1e4])
@pytest.mark.parametrize("size", [1, 5, 20])
def test_solution_equals_the_dense_solve(
    size: int, condition: float, rng: np.random.Generator
) -> None:
    matrix, b = positive_definite(rng, size, condition), vector(rng, size)
    solution = solve(matrix, b, max_iter=10 * size, tol=1e-13)
    assert solution.status is CGStatus.CONVERGED
    th.testing.assert_close(solution.x, th.linalg.solve(matrix, b), rtol=SOLVED, atol=SOLVED)


@pytest.mark.parametrize("steps", [1, 2, 5, 10])
def test_iterates_are_those_of_the_textbook(steps: int, rng: np.random.Generator) -> None:
    """A direction that shared its storage with the residual would differ from step 2 on."""
    matrix, b = positive_definite(rng, 20, 1e3), vector(rng, 20)
    solution = solve(matrix, b, max_iter=steps, tol=0.0)
    expected = reference.conjugate_gradient(matrix, b, steps)
    assert solution.iterations == steps
    th.testing.assert_close(solution.x, expected, rtol=1e-8, atol=1e-10)


def test_distinct_eigenvalues_bound_the_number_of_steps(rng: np.random.Generator) -> None:
    orthogonal, _ = np.linalg.qr(rng.normal(size=(30, 30)))
    matrix = th.tensor(orthogonal * np.repeat([1.0, 2.0, 7.0], 10) @ orthogonal.T)
    solution = solve(matrix, vector(rng, 30), max_iter=30, tol=1e-10)
    assert (solution.status, solution.iterations) == (CGStatus.CONVERGED, 3)


def test_iteration_limit_is_reported_and_kept(rng: np.random.Generator) -> None:
    matrix, b = positive_definite(rng, 20, 1e4), vector(rng, 20)
    products: list[th.Tensor] = []

    def product(v: th.Tensor) -> th.Tensor:
        products.append(v)
        return matrix @ v

    solution = conjugate_gradient(product, b, max_iter=4, residual_tol=1e-10)
    assert solution.status is CGStatus.ITERATION_LIMIT
    assert solution.iterations == len(products) == 4
    assert solution.residual > 1e-10


@pytest.mark.parametrize("tol", [1e-2, 1e-5, 1e-8])
def test_tolerance_is_relative_and_the_first_residual_below_it_stops(
    tol: float, rng: np.random.Generator
) -> None:
    matrix, b = positive_definite(rng, 20, 1e3), 1e-7 * vector(rng, 20)
    solution = solve(matrix, b, max_iter=100, tol=tol)
    assert solution.status is CGStatus.CONVERGED
    assert solution.residual <= tol
    earlier = solve(matrix, b, max_iter=solution.iterations - 1, tol=tol)
    assert earlier.status is CGStatus.ITERATION_LIMIT
    assert earlier.residual > tol


@pytest.mark.parametrize("steps", [1, 3, 40])
def test_reported_residual_is_that_of_the_solution(steps: int, rng: np.random.Generator) -> None:
    matrix, b = positive_definite(rng, 20), vector(rng, 20)
    solution = solve(matrix, b, max_iter=steps, tol=1e-9)
    true = float((b - matrix @ solution.x).norm() / b.norm())
    assert solution.residual == pytest.approx(true, rel=1e-4, abs=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5, 40])
def test_curvature_is_the_quadratic_form_at_the_solution(
    steps: int, rng: np.random.Generator
) -> None:
    matrix, b = positive_definite(rng, 20), vector(rng, 20)
    solution = solve(matrix, b, max_iter=steps)
    expected = float(solution.x @ matrix @ solution.x)
    assert solution.curvature == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(40))
def test_steps_beyond_the_precision_of_the_numbers_do_not_spoil_the_solution(seed: int) -> None:
    """Past it the residual of the recurrence would underflow, and the iterates run away."""
    generator = th.Generator().manual_seed(seed)
    for size in (5, 20, 60):
        half = th.randn(size, size // 2 + 1, generator=generator)
        matrix = half @ half.T / size + 0.1 * th.eye(size)
        b = th.randn(size, generator=generator)
        solution = solve(matrix, b, max_iter=200, tol=0.0)
        assert solution.status is CGStatus.CONVERGED
        assert float((b - matrix @ solution.x).norm() / b.norm()) < 1e-5


@pytest.mark.parametrize("power", [-60, -20, 3, 60])
def test_scaling_the_right_hand_side_scales_the_solution_bitwise(
    power: int, rng: np.random.Generator
) -> None:
    """Powers of two are exact, so that every other difference would be the method's."""
    matrix, b = positive_definite(rng, 20), vector(rng, 20)
    plain, scaled = solve(matrix, b), solve(matrix, 2.0**power * b)
    assert th.equal(scaled.x, 2.0**power * plain.x)
    assert (scaled.iterations, scaled.status) == (plain.iterations, plain.status)
    assert scaled.residual == plain.residual


def test_right_hand_side_of_zeros_is_solved_by_zeros_without_a_product(device: str) -> None:
    def product(v: th.Tensor) -> th.Tensor:
        if device == "cpu":
            raise AssertionError("nothing to solve")
        return v

    solution = conjugate_gradient(product, th.zeros(3))
    assert th.equal(solution.x, th.zeros(3))
    assert (solution.status, solution.iterations) == (CGStatus.CONVERGED, 0)
    assert (solution.residual, solution.curvature) == (0.0, 0.0)


@pytest.mark.parametrize("eigenvalue", [-1.0, 0.0])
def test_non_positive_curvature_at_the_start_gives_zeros(eigenvalue: float) -> None:
    solution = solve(eigenvalue * th.eye(3), th.ones(3))
    assert th.equal(solution.x, th.zeros(3))
    assert (solution.status, solution.iterations) == (CGStatus.NON_POSITIVE_CURVATURE, 0)
    assert (solution.residual, solution.curvature) == (1.0, 0.0)


def test_non_positive_curvature_later_keeps_the_last_good_iterate() -> None:
    matrix, b = th.diag(th.tensor([2.0, 1.0, -1.0])), th.tensor([1.0, 1.0, 0.5])
    solution = solve(matrix, b)
    assert solution.status is CGStatus.NON_POSITIVE_CURVATURE
    assert solution.iterations == 1
    th.testing.assert_close(solution.x, reference.conjugate_gradient(matrix, b, 1))
    assert solution.curvature == pytest.approx(float(solution.x @ matrix @ solution.x))


def spoiled(
    matrix: th.Tensor, at: int, value: float, calls: list[int] | None = None
) -> Callable[[th.Tensor], th.Tensor]:
    """Make a product whose result number ``at`` holds a number that is not finite."""
    calls = [] if calls is None else calls

    def product(v: th.Tensor) -> th.Tensor:
        result = matrix @ v
        if len(calls) == at:
            result[0] = value
        calls.append(1)
        return result

    return product


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 2])
def test_product_that_is_not_finite_keeps_the_last_good_iterate(
    at: int, value: float, rng: np.random.Generator
) -> None:
    matrix, b = positive_definite(rng, 10), vector(rng, 10)
    solution = conjugate_gradient(spoiled(matrix, at, value), b)
    assert (solution.status, solution.iterations) == (CGStatus.NOT_FINITE, at)
    th.testing.assert_close(
        solution.x, reference.conjugate_gradient(matrix, b, at), rtol=1e-8, atol=1e-10
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_right_hand_side_that_is_not_finite_is_reported(value: float) -> None:
    solution = solve(th.eye(2), th.tensor([1.0, value]))
    assert (solution.status, solution.iterations) == (CGStatus.NOT_FINITE, 0)


@pytest.mark.parametrize("scale", [1e-44, 1e-39, 1e38])
def test_iterate_is_finite_whatever_the_scale_of_the_matrix(scale: float) -> None:
    solution = solve(scale * th.eye(3), th.ones(3))
    assert solution.x.isfinite().all()
    assert solution.status in (CGStatus.CONVERGED, CGStatus.NOT_FINITE)


def test_large_solution_is_no_overflow() -> None:
    """Its sum is."""
    solution = solve(5e-39 * th.eye(3), th.ones(3))
    assert solution.status is CGStatus.CONVERGED
    th.testing.assert_close(solution.x, th.full((3,), 2e38), rtol=1e-3, atol=0)


def test_step_that_overflows_with_a_finite_factor_is_not_taken() -> None:
    solution = solve(1e-35 * th.eye(3), th.full((3,), 1e10))
    assert (solution.status, solution.iterations) == (CGStatus.NOT_FINITE, 0)
    assert th.equal(solution.x, th.zeros(3))


@pytest.mark.parametrize(
    "product",
    [
        lambda matrix: lambda v: matrix @ v,
        lambda matrix: lambda v: matrix @ v - 3 * v,
        lambda matrix: spoiled(matrix, 2, float("nan")),
    ],
    ids=["converges", "indefinite", "not_finite"],
)
@pytest.mark.parametrize("max_iter", [3, 12, 40])
@pytest.mark.parametrize("device", ["cpu"], indirect=True)
def test_an_accelerator_gets_the_same_numbers_from_frozen_iterations(
    product: Callable[[th.Tensor], Callable[[th.Tensor], th.Tensor]],
    max_iter: int,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    matrix, b = positive_definite(rng, 10), vector(rng, 10)
    plain = conjugate_gradient(product(matrix), b, max_iter)
    calls: list[int] = []
    multiply = product(matrix)

    def counted(v: th.Tensor) -> th.Tensor:
        calls.append(1)
        return multiply(v)

    monkeypatch.setattr(module, "_iterate", module._iterate_without_waiting)
    frozen = conjugate_gradient(counted, b, max_iter)
    assert len(calls) == max_iter  # the flag was never read
    th.testing.assert_close(frozen.x, plain.x, rtol=1e-7, atol=1e-9)
    assert (frozen.iterations, frozen.status) == (plain.iterations, plain.status)
    for name in ("residual", "curvature"):
        assert getattr(frozen, name) == pytest.approx(getattr(plain, name), abs=1e-7), name


@pytest.mark.parametrize("is_cpu", [True, False])
@pytest.mark.parametrize("device", ["cpu"], indirect=True)
def test_loop_is_chosen_by_the_device(is_cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {True: "_iterate", False: "_iterate_without_waiting"}
    loop = mock.Mock(return_value=(th.zeros(2), th.zeros(2), 0, CGStatus.CONVERGED))
    monkeypatch.setattr(module, names[is_cpu], loop)
    monkeypatch.setattr(module, names[not is_cpu], mock.Mock(side_effect=AssertionError))
    monkeypatch.setattr(th.Tensor, "is_cpu", is_cpu)
    conjugate_gradient(lambda v: v, th.ones(2))
    assert loop.call_count == 1


def test_no_random_numbers_are_used_and_the_right_hand_side_is_left_alone(
    rng: np.random.Generator,
) -> None:
    matrix, b = positive_definite(rng, 10), vector(rng, 10)
    state, copy = th.get_rng_state(), b.clone()
    first = solve(matrix, b)
    assert th.equal(th.get_rng_state(), state)
    assert th.equal(b, copy)
    assert th.equal(solve(matrix, b).x, first.x)


def test_a_tiny_right_hand_side_gives_a_tiny_solution(rng: np.random.Generator) -> None:
    """A start from noise, or an absolute tolerance, would make it a large one."""
    matrix, b = positive_definite(rng, 10), vector(rng, 10)
    x = solve(matrix, 1e-12 * b, max_iter=50, tol=1e-10).x
    th.testing.assert_close(1e12 * x, th.linalg.solve(matrix, b), rtol=1e-8, atol=1e-8)
