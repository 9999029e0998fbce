"""Everything here is a quadratic; the policy's side is tested with the algorithm."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch as th

from sb3_trpo._conjugate_gradient import CGStatus
from sb3_trpo._trust_region import (
    Candidate,
    NaturalStep,
    backtrack,
    inside_trust_region,
    natural_step,
)
from tests import reference

DELTA = 0.01
RULE = inside_trust_region(DELTA)


def fisher_matrix(rng: np.random.Generator, size: int = 12) -> th.Tensor:
    factor = rng.normal(size=(size, size))
    return th.tensor(factor @ factor.T / size + 0.1 * np.eye(size))


def solve(
    matrix: th.Tensor, gradient: th.Tensor, target_kl: float = DELTA, steps: int = 100
) -> NaturalStep:
    return natural_step(lambda v: matrix.to(v.dtype) @ v, gradient, target_kl, steps, 1e-12)


# natural_step


def test_step_equals_the_dense_natural_step(rng: np.random.Generator) -> None:
    matrix, gradient = fisher_matrix(rng), th.tensor(rng.normal(size=12))
    natural = solve(matrix, gradient)
    expected = reference.natural_step(matrix, gradient, DELTA)
    assert natural.failure is None
    th.testing.assert_close(natural.step, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 3, 100])
@pytest.mark.parametrize("target_kl", [1e-8, 0.01, 10.0])
def test_quadratic_kl_of_the_full_step_equals_the_radius(
    target_kl: float, steps: int, rng: np.random.Generator
) -> None:
    """It holds for a solver that stopped early too."""
    matrix, gradient = fisher_matrix(rng), th.tensor(rng.normal(size=12))
    step = solve(matrix, gradient, target_kl, steps).step
    assert float(step @ matrix @ step) / 2 == pytest.approx(target_kl, rel=1e-9)


@pytest.mark.parametrize("damping", [0.01, 1.0, 100.0])
def test_without_its_damping_the_kl_of_the_full_step_equals_the_radius(
    damping: float, rng: np.random.Generator
) -> None:
    fisher, gradient = fisher_matrix(rng), th.tensor(rng.normal(size=12))
    damped = fisher + damping * th.eye(12)

    def kl_of_step(subtract_damping: float) -> float:
        natural = natural_step(
            lambda v: damped @ v, gradient, DELTA, 100, 1e-12, subtract_damping=subtract_damping
        )
        assert natural.expected_improvement == pytest.approx(float(gradient @ natural.step))
        return float(natural.step @ fisher @ natural.step) / 2

    assert kl_of_step(damping) == pytest.approx(DELTA, rel=1e-6)
    assert kl_of_step(0.0) < DELTA * (1 - damping / (1 + 2 * damping) / 10)


def test_direction_without_curvature_is_not_stretched_without_bound() -> None:
    gradient = th.tensor([1.0, 0.0], dtype=th.float64)
    fisher = th.diag(th.tensor([0.0, 1.0], dtype=th.float64))
    damped = fisher + 0.1 * th.eye(2)
    short, stretched = (
        natural_step(lambda v: damped @ v, gradient, DELTA, subtract_damping=each).step
        for each in (0.0, 0.1)
    )
    assert stretched.norm() == pytest.approx(float(short.norm()) * 1000**0.5)


def test_expected_improvement_norm_and_step_size_are_what_their_names_say(
    rng: np.random.Generator,
) -> None:
    matrix, gradient = fisher_matrix(rng), th.tensor(rng.normal(size=12))
    natural = solve(matrix, gradient)
    x = th.linalg.solve(matrix, gradient)
    beta = math.sqrt(2 * DELTA / float(x @ matrix @ x))
    assert natural.expected_improvement == pytest.approx(float(gradient @ natural.step), rel=1e-9)
    assert natural.gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-12)
    assert natural.max_step_size == pytest.approx(beta, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e-6, 1e6, 1e12, 1e30])
def test_step_does_not_depend_on_the_scale_of_a_float32_gradient(
    scale: float, rng: np.random.Generator
) -> None:
    matrix, gradient = fisher_matrix(rng), th.tensor(rng.normal(size=12)).float()
    plain, scaled = solve(matrix, gradient), solve(matrix, scale * gradient)
    # Scaling rounds the gradient's entries, by at most 6e-8 of each.
    th.testing.assert_close(scaled.step, plain.step, rtol=1e-5, atol=1e-7)
    assert scaled.gradient_norm == pytest.approx(scale * plain.gradient_norm, rel=1e-5)
    assert scaled.expected_improvement == pytest.approx(
        scale * plain.expected_improvement, rel=1e-5
    )
    assert scaled.max_step_size == pytest.approx(plain.max_step_size / scale, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_gradient_whose_largest_entry_is_negative_is_scaled_by_its_absolute_value(
    scale: float,
) -> None:
    gradient = scale * th.tensor([-2.0, -1.0, -0.5])
    natural = solve(th.eye(3), gradient)
    expected = gradient / gradient.double().norm() * (2 * DELTA) ** 0.5
    th.testing.assert_close(natural.step, expected.float(), rtol=1e-5, atol=1e-7)
    assert natural.gradient_norm == pytest.approx(scale * 5.25**0.5, rel=1e-5)


def test_infinite_expected_improvement_is_no_step() -> None:
    """A long step along a large gradient: each is finite, their product is not."""
    gradient = th.full((3,), 1e300, dtype=th.float64)
    natural = solve(1e-20 * th.eye(3, dtype=th.float64), gradient)
    assert natural.failure == "not_finite"
    assert th.equal(natural.step, th.zeros(3, dtype=th.float64))
    assert (natural.max_step_size, natural.expected_improvement) == (0.0, 0.0)


INDEFINITE = th.diag(th.tensor([-1.0, -1.0, -1.0]))


@pytest.mark.parametrize(
    ("failure", "matrix", "gradient", "target_kl"),
    [
        ("target_kl_is_zero", th.eye(3), th.ones(3), 0.0),
        ("zero_gradient", th.eye(3), th.zeros(3), DELTA),
        ("not_finite", th.eye(3), th.tensor([1.0, math.nan, 1.0]), DELTA),
        ("not_finite", th.eye(3), th.tensor([1.0, math.inf, 1.0]), DELTA),
        ("not_finite", math.nan * th.eye(3), th.ones(3), DELTA),
        ("not_finite", math.inf * th.ones(3, 3), th.ones(3), DELTA),
        ("not_finite", 1e-42 * th.eye(3), th.ones(3), DELTA),
        ("non_positive_curvature", INDEFINITE, th.ones(3), DELTA),
        ("non_positive_curvature", th.zeros(3, 3), th.ones(3), DELTA),
    ],
)
def test_where_there_is_no_step_the_record_says_why_and_holds_zeros(
    failure: str, matrix: th.Tensor, gradient: th.Tensor, target_kl: float
) -> None:
    natural = solve(matrix, gradient, target_kl)
    assert natural.failure == failure
    assert th.equal(natural.step, th.zeros(3))
    assert (natural.max_step_size, natural.expected_improvement) == (0.0, 0.0)


@pytest.mark.parametrize("gradient", [th.zeros(3), th.full((3,), math.nan)])
def test_solver_is_not_asked_without_a_usable_gradient(gradient: th.Tensor) -> None:
    def fisher(v: th.Tensor) -> th.Tensor:
        raise AssertionError("no product is needed")

    assert natural_step(fisher, gradient, DELTA).cg is None


def test_indefinite_direction_found_later_still_gives_the_step_from_before() -> None:
    matrix, gradient = th.diag(th.tensor([2.0, 1.0, -1.0])), th.tensor([1.0, 1.0, 0.5])
    natural = solve(matrix, gradient)
    assert natural.failure is None
    assert natural.cg is not None
    assert natural.cg.status is CGStatus.NON_POSITIVE_CURVATURE
    assert float(natural.step @ matrix @ natural.step) / 2 == pytest.approx(DELTA, rel=1e-5)
    assert natural.expected_improvement > 0


def test_gradient_is_left_alone(rng: np.random.Generator) -> None:
    gradient = th.tensor(rng.normal(size=12))
    copy = gradient.clone()
    solve(fisher_matrix(rng), gradient)
    assert th.equal(gradient, copy)


# backtrack


def full_step(step: th.Tensor, expected_improvement: float = 1.0) -> NaturalStep:
    return NaturalStep(step, 1.0, expected_improvement, 1.0, None, None)


class Quadratic:
    """L = gᵀd - steepness · dᵀd / 2 and D = dᵀd / 2, d being the way from the start."""

    def __init__(self, steepness: float = 0.0, size: int = 4) -> None:
        self.parameters = [th.randn(size, 2, dtype=th.float64), th.randn(3, dtype=th.float64)]
        self.start = reference.flat(self.parameters)
        self.gradient = th.randn_like(self.start)
        self.steepness = steepness
        self.seen: list[th.Tensor] = []

    def at(self, d: th.Tensor) -> tuple[float, float]:
        square = float(d @ d)
        return float(self.gradient @ d) - self.steepness * square / 2, square / 2

    def evaluate(self) -> Candidate:
        self.seen.append(reference.flat(self.parameters))
        return Candidate(*self.at(self.seen[-1] - self.start))

    def untouched(self) -> bool:
        return th.equal(reference.flat(self.parameters), self.start)


@pytest.mark.parametrize("shrink", [0.5, 0.8])
@pytest.mark.parametrize("steepness", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("length", [0.1, 1.0, 3.0])
def test_first_acceptable_candidate_is_taken(
    length: float, steepness: float, shrink: float
) -> None:
    problem = Quadratic(steepness)
    step = length * problem.gradient
    j = reference.line_search(
        lambda fraction: problem.at(fraction * step)[0],
        lambda fraction: problem.at(fraction * step)[1],
        target_kl=0.5,
        shrinking_factor=shrink,
        max_iter=25,
    )
    assert j is not None
    search = backtrack(
        problem.parameters, full_step(step), problem.evaluate, inside_trust_region(0.5), shrink, 25
    )
    assert (search.accepted, search.backtracks) == (True, j)
    assert search.shrinkage == shrink**j
    moved = reference.flat(problem.parameters) - problem.start
    th.testing.assert_close(moved, shrink**j * step, rtol=1e-12, atol=1e-12)
    assert (search.improvement, search.kl) == pytest.approx(problem.at(moved), rel=1e-12)


def test_table_of_first_acceptable_candidates_has_more_than_one_answer() -> None:
    """The test above proves nothing if every search ends at j = 0."""
    found = set()
    for length in (0.1, 1.0, 3.0):
        problem = Quadratic()
        step = full_step(length * problem.gradient)
        found.add(
            backtrack(
                problem.parameters, step, problem.evaluate, inside_trust_region(0.5)
            ).backtracks
        )
    assert len(found) == 3


def test_candidates_are_the_shrunk_full_step_from_the_start_and_not_from_each_other() -> None:
    problem = Quadratic()
    step = full_step(100 * problem.gradient)
    backtrack(problem.parameters, step, problem.evaluate, inside_trust_region(0.01), 0.5, 4)
    for j, seen in enumerate(problem.seen):
        th.testing.assert_close(seen, problem.start + 0.5**j * step.step, rtol=1e-14, atol=1e-14)
    assert len(problem.seen) == 4


@pytest.mark.parametrize(
    "outcome",
    [
        (-1.0, 0.0),
        (0.0, 0.0),
        (1.0, 0.011),
        (math.nan, 0.0),
        (1.0, math.nan),
        (math.inf, 0.0),
        (-math.inf, 0.0),
        (1.0, math.inf),
        (math.nan, math.nan),
    ],
)
def test_rejected_step_leaves_parameters_bitwise_unchanged(outcome: tuple[float, float]) -> None:
    problem = Quadratic()
    step = full_step(1e3 * problem.gradient)
    search = backtrack(problem.parameters, step, lambda: Candidate(*outcome), RULE, max_iter=7)
    assert problem.untouched()
    assert (search.accepted, search.backtracks, search.shrinkage) == (False, 7, 0.0)
    assert (search.improvement, search.kl) == (0.0, 0.0)


def test_kl_of_exactly_the_radius_is_inside() -> None:
    problem = Quadratic()
    search = backtrack(
        problem.parameters, full_step(problem.gradient), lambda: Candidate(1.0, DELTA), RULE
    )
    assert search.accepted


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, RuntimeError, SystemExit])
@pytest.mark.parametrize("at", [0, 3])
def test_parameters_are_bitwise_unchanged_when_a_candidate_raises(
    at: int, error: type[BaseException]
) -> None:
    problem = Quadratic()

    def evaluate() -> Candidate:
        if len(problem.seen) == at:
            raise error
        problem.evaluate()
        return Candidate(-1.0, 0.0)

    with pytest.raises(error):
        backtrack(problem.parameters, full_step(problem.gradient), evaluate, RULE)
    assert problem.untouched()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_candidates_that_are_not_finite_never_stay(bad: float) -> None:
    """Whatever evaluation says: a saturated tanh hides an infinite weight."""
    problem = Quadratic()
    step = problem.gradient.clone()
    step[0] = bad
    for max_iter in (0, 10):
        search = backtrack(
            problem.parameters,
            full_step(step),
            lambda: Candidate(1.0, 0.0),
            RULE,
            max_iter=max_iter,
        )
        assert search.failure == "line_search_failed"
        assert problem.untouched()


def test_parameters_whose_sum_overflows_are_finite() -> None:
    parameter = th.full((4,), 3e38)
    assert backtrack([parameter], full_step(th.ones(4)), lambda: Candidate(1.0, 0.0), RULE).accepted


@pytest.mark.parametrize(
    ("divergences", "failure"),
    [
        ((math.nan, math.nan), "kl_is_nan"),
        ((math.nan, 1.0), "line_search_failed"),
        ((math.inf, math.nan), "line_search_failed"),
    ],
)
def test_record_says_when_the_kl_of_every_candidate_is_nan(
    divergences: tuple[float, float], failure: str
) -> None:
    problem, outcomes = Quadratic(), iter(divergences)
    search = backtrack(
        problem.parameters,
        full_step(problem.gradient),
        lambda: Candidate(1.0, next(outcomes)),
        RULE,
        max_iter=2,
    )
    assert (search.failure, search.backtracks) == (failure, 2)


def test_rule_decides_which_candidate_is_accepted() -> None:
    """It sees the finite candidates, each with its share of the expected improvement."""
    problem, seen = Quadratic(), []
    outcomes = iter([(-3.0, 9.0), (math.nan, 0.0), (-1.0, 7.0)])

    def accepts(candidate: Candidate, expected: float) -> bool:
        seen.append((candidate, expected))
        return candidate.kl < 8

    step = full_step(problem.gradient, expected_improvement=2.0)
    search = backtrack(
        problem.parameters, step, lambda: Candidate(*next(outcomes)), accepts, shrinking_factor=0.5
    )
    assert (search.accepted, search.backtracks, search.kl) == (True, 2, 7.0)
    assert seen == [(Candidate(-3.0, 9.0), 2.0), (Candidate(-1.0, 7.0), 0.5)]


def test_search_goes_on_after_a_candidate_that_is_not_finite() -> None:
    problem = Quadratic()
    outcomes = iter([(math.nan, math.nan), (1.0, math.nan), (1.0, 0.005)])
    search = backtrack(
        problem.parameters, full_step(problem.gradient), lambda: Candidate(*next(outcomes)), RULE
    )
    assert (search.accepted, search.backtracks) == (True, 2)


@pytest.mark.parametrize("outcome", [(1.0, 0.005), (-1.0, 5.0)])
def test_no_line_search_takes_the_full_step_untested(outcome: tuple[float, float]) -> None:
    problem = Quadratic()
    search = backtrack(
        problem.parameters,
        full_step(problem.gradient),
        lambda: Candidate(*outcome),
        RULE,
        max_iter=0,
    )
    assert (search.accepted, search.backtracks, search.shrinkage) == (True, 0, 1.0)
    assert (search.improvement, search.kl) == outcome
    th.testing.assert_close(
        reference.flat(problem.parameters), problem.start + problem.gradient, rtol=0, atol=0
    )


@pytest.mark.parametrize("outcome", [(math.nan, 0.1), (0.1, math.nan), (math.inf, 0.1)])
def test_no_line_search_still_refuses_numbers_that_are_not_finite(
    outcome: tuple[float, float],
) -> None:
    problem = Quadratic()
    search = backtrack(
        problem.parameters,
        full_step(problem.gradient),
        lambda: Candidate(*outcome),
        RULE,
        max_iter=0,
    )
    assert (search.accepted, search.backtracks) == (False, 1)
    assert problem.untouched()


@pytest.mark.parametrize(
    ("accept_ratio", "j"), [(0.0, 0), (0.39, 0), (0.41, 1), (0.69, 1), (0.71, 2), (0.86, 3)]
)
def test_realised_improvement_has_to_reach_its_share_of_the_expected_one(
    accept_ratio: float, j: int
) -> None:
    """L = fraction - 0.6 fraction², so that realised / expected = 1 - 0.6 αʲ."""
    parameter = th.zeros(1, dtype=th.float64)
    natural = full_step(th.ones(1, dtype=th.float64), expected_improvement=1.0)

    def evaluate() -> Candidate:
        fraction = float(parameter)
        return Candidate(fraction - 0.6 * fraction**2, 0.0)

    search = backtrack(
        [parameter], natural, evaluate, inside_trust_region(DELTA, accept_ratio), 0.5, 10
    )
    assert (search.accepted, search.backtracks) == (True, j)


def test_expected_improvement_is_shrunk_once_per_backtrack() -> None:
    """Shrunk twice it would accept the second candidate, which realises 0.4 of 0.5."""
    parameter = th.zeros(1, dtype=th.float64)
    realised = {1.0: -1.0, 0.5: 0.4, 0.25: 0.24}
    search = backtrack(
        [parameter],
        full_step(th.ones(1, dtype=th.float64), expected_improvement=1.0),
        lambda: Candidate(realised[float(parameter)], 0.0),
        inside_trust_region(DELTA, 0.9),
        shrinking_factor=0.5,
    )
    assert (search.accepted, search.backtracks) == (True, 2)


@pytest.mark.parametrize("max_iter", [0, 10])
def test_no_candidate_is_tried_without_a_step(max_iter: int) -> None:
    problem = Quadratic()
    natural = NaturalStep(th.zeros(11), 0.0, 0.0, 0.0, None, "zero_gradient")
    search = backtrack(problem.parameters, natural, problem.evaluate, RULE, max_iter=max_iter)
    assert (search.accepted, search.backtracks, problem.seen) == (False, 0, [])
    assert problem.untouched()


def frozen_copy(problem: Quadratic) -> Callable[[], bool]:
    pointers = [parameter.data_ptr() for parameter in problem.parameters]
    return lambda: pointers == [parameter.data_ptr() for parameter in problem.parameters]


def test_parameters_are_written_in_place() -> None:
    problem = Quadratic()
    same_memory = frozen_copy(problem)
    assert backtrack(
        problem.parameters, full_step(1e-3 * problem.gradient), problem.evaluate, RULE
    ).accepted
    assert same_memory()


def test_parameters_that_require_gradients_and_are_not_contiguous_move_too() -> None:
    leaf = th.randn(3, 2, dtype=th.float64).T.requires_grad_()
    start, step = leaf.detach().clone(), th.arange(6, dtype=th.float64)
    assert backtrack([leaf], full_step(step), lambda: Candidate(1.0, 0.0), RULE).accepted
    th.testing.assert_close(leaf.detach(), start + step.reshape(2, 3))
