"""
The trust-region step, for any objective and any constraint that are given as callables.

====  =================================================================
g     gradient of the surrogate objective L
F     Fisher matrix, known by products with F + λI
x     natural gradient direction (F + λI)⁻¹ g
δ     trust-region radius, ``target_kl``
β     length that takes x to the region's boundary in the quadratic model
s     full step βx
α, j  shrinking factor and number of backtracking steps
====  =================================================================
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch as th

from sb3_trpo._conjugate_gradient import CGSolution, CGStatus, conjugate_gradient
from sb3_trpo._vectors import is_finite, unflatten

# Least share of the curvature that remains when the damping is subtracted. It bounds the step along
# directions in which F has almost no curvature.
_LEAST_SHARE = 1e-3


@dataclass(frozen=True)
class NaturalStep:
    """
    A step to the boundary of the trust region, or the reason why there is none.

    :param step: s, shape ``(P,)``; zeros where there is none
    :param max_step_size: β; 0 where there is none
    :param expected_improvement: gᵀs
    :param gradient_norm: ‖g‖
    :param cg: the solver's result; ``None`` if it was not called
    :param failure: ``None``, or ``target_kl_is_zero``, ``zero_gradient``, ``not_finite`` or
        ``non_positive_curvature``
    """

    step: th.Tensor
    max_step_size: float
    expected_improvement: float
    gradient_norm: float
    cg: CGSolution | None
    failure: str | None


@dataclass(frozen=True)
class Candidate:
    """
    How a candidate θ changes objective and policy.

    :param improvement: L(θ) - L(θ_k); NaN where θ gives no distribution
    :param kl: D(θ), in nats per state; infinite where θ gives no distribution
    """

    improvement: float
    kl: float

    @property
    def is_finite(self) -> bool:
        """Return whether both numbers are finite."""
        return math.isfinite(self.improvement) and math.isfinite(self.kl)


# A finite candidate and its expected improvement αʲgᵀs -> whether to accept it.
Rule = Callable[[Candidate, float], bool]

# Stands for a candidate whose parameters are not finite.
_INVALID = Candidate(math.nan, math.inf)


@dataclass(frozen=True)
class LineSearch:
    """
    Where the backtracking search ended.

    :param failure: ``None`` if a candidate was accepted; otherwise the step's failure,
        ``line_search_failed``, or ``kl_is_nan`` if the KL divergence of every candidate was NaN
    :param shrinkage: αʲ, the fraction of the full step that was taken; 0 where none was
    :param backtracks: j, the number of candidates that were rejected
    :param improvement: L(θ_new) - L(θ_old); 0 where no step was taken
    :param kl: D(θ_new); 0 where no step was taken
    """

    failure: str | None
    shrinkage: float = 0.0
    backtracks: int = 0
    improvement: float = 0.0
    kl: float = 0.0

    @property
    def accepted(self) -> bool:
        """Return whether the parameters moved."""
        return self.failure is None


def natural_step(
    fisher: Callable[[th.Tensor], th.Tensor],
    gradient: th.Tensor,
    target_kl: float,
    cg_max_steps: int = 15,
    cg_residual_tol: float = 1e-5,
    subtract_damping: float = 0.0,
) -> NaturalStep:
    r"""
    Scale the natural gradient so that the quadratic model of the KL reaches the radius.

    .. math:: s = \beta x, \quad x = (F + \lambda I)^{-1} g, \quad \beta = \sqrt{2\delta / x^T (F +
        \lambda I) x}

    The system is solved for g/‖g‖: s does not depend on the scale of g.

    In the quadratic model the KL divergence of this step is ½ sᵀFs, which the damping in the root
    keeps below δ. With ``subtract_damping`` = λ the root has xᵀFx, and the KL divergence is δ.

    :param fisher: v -> (F + λI)v, both of shape ``(P,)``
    :param gradient: g, shape ``(P,)``
    :param target_kl: δ, in nats per state, at least 0
    :param cg_max_steps: largest number of Fisher products
    :param cg_residual_tol: relative residual at which the solver stops
    :param subtract_damping: the part of λ that is left out of β, from 0 to λ
    :return: the step; if there is none, ``failure`` says why and ``step`` is 0

    Source: Schulman et al. (2015), Trust Region Policy Optimization, appendix C.
    """
    # Dividing by the largest entry first keeps the squares inside the norm from under- and
    # overflowing.
    largest = gradient.abs().max()
    scaled = gradient / th.where(largest > 0, largest, 1.0)
    scaled_norm = th.linalg.vector_norm(scaled)
    norm = float(largest * scaled_norm)
    reason = _reason_to_skip(norm, target_kl)
    if reason is not None:
        return _no_step(gradient, norm, None, reason)
    unit_gradient = scaled / scaled_norm
    cg = conjugate_gradient(fisher, unit_gradient, cg_max_steps, cg_residual_tol)
    if cg.status is CGStatus.NOT_FINITE:
        return _no_step(gradient, norm, cg, cg.status.value)
    if not cg.curvature > 0:
        return _no_step(gradient, norm, cg, CGStatus.NON_POSITIVE_CURVATURE.value)
    curvature = cg.curvature - subtract_damping * float(th.dot(cg.x, cg.x))
    unit_step_size = math.sqrt(2 * target_kl / max(curvature, _LEAST_SHARE * cg.curvature))
    step = unit_step_size * cg.x
    expected_improvement = norm * float(th.dot(unit_gradient, step))
    if not math.isfinite(expected_improvement):
        return _no_step(gradient, norm, cg, CGStatus.NOT_FINITE.value)
    return NaturalStep(step, unit_step_size / norm, expected_improvement, norm, cg, None)


def _reason_to_skip(gradient_norm: float, target_kl: float) -> str | None:
    """Name what makes solving for a step pointless, if anything does."""
    if target_kl == 0:
        return "target_kl_is_zero"
    if not math.isfinite(gradient_norm):
        return CGStatus.NOT_FINITE.value
    return "zero_gradient" if gradient_norm == 0 else None


def _no_step(gradient: th.Tensor, norm: float, cg: CGSolution | None, failure: str) -> NaturalStep:
    """Record why there is no step."""
    return NaturalStep(th.zeros_like(gradient), 0.0, 0.0, norm, cg, failure)


def inside_trust_region(target_kl: float, accept_ratio: float = 0.0) -> Rule:
    r"""
    Make the rule of a line search.

    .. math:: D(\theta) \le \delta, \quad L(\theta) - L(\theta_k) > 0 \text{ and} \ge \rho_{min}
        \alpha^j g^T s

    :param target_kl: δ
    :param accept_ratio: ρ_min, least ratio of realised to expected improvement
    :return: the rule
    """

    def accepts(candidate: Candidate, expected_improvement: float) -> bool:
        enough = candidate.improvement >= accept_ratio * expected_improvement
        return candidate.improvement > 0 and enough and candidate.kl <= target_kl

    return accepts


def backtrack(
    parameters: Sequence[th.Tensor],
    natural: NaturalStep,
    evaluate: Callable[[], Candidate],
    accepts: Rule,
    shrinking_factor: float = 0.8,
    max_iter: int = 10,
) -> LineSearch:
    r"""
    Move the parameters to the first acceptable candidate.

    .. math:: \theta_{new} = \theta_k + \alpha^j s, \quad j = 0, 1, \dots

    The parameters are written in place. Unless a candidate is accepted they are bitwise as before,
    whatever happens, an exception from ``evaluate`` included. Parameters that are not finite are
    rejected without an evaluation, because a saturated tanh hides them from the outputs.

    :param parameters: the tensors that the step moves; P elements in total
    :param natural: the full step; where it has a ``failure`` nothing is tried
    :param evaluate: () -> the candidate at the current value of the parameters; one that is not
        finite is rejected
    :param accepts: which finite candidates to accept
    :param shrinking_factor: α, between 0 and 1
    :param max_iter: number of candidates; 0 takes the full step whatever ``accepts`` says (natural
        policy gradient)
    :return: the result

    Source: Schulman et al. (2015), Trust Region Policy Optimization, appendix C.
    """
    if natural.failure is not None:
        return LineSearch(natural.failure)
    originals = [parameter.detach().clone() for parameter in parameters]
    all_finite = _are_finite(originals, natural.step)
    rejected: list[Candidate] = []
    accepted = False
    try:
        for backtracks in range(max(max_iter, 1)):
            shrinkage = shrinking_factor**backtracks
            _move(parameters, originals, unflatten(natural.step * shrinkage, parameters))
            can_be_used = all_finite or all(is_finite(p.detach()) for p in parameters)
            candidate = evaluate() if can_be_used else _INVALID
            expected = shrinkage * natural.expected_improvement
            if candidate.is_finite and (max_iter == 0 or accepts(candidate, expected)):
                accepted = True
                return LineSearch(None, shrinkage, backtracks, candidate.improvement, candidate.kl)
            rejected.append(candidate)
    finally:
        if not accepted:
            _restore(parameters, originals)
    undefined = all(math.isnan(candidate.kl) for candidate in rejected)
    return LineSearch("kl_is_nan" if undefined else "line_search_failed", backtracks=len(rejected))


@th.no_grad()
def _are_finite(parameters: Sequence[th.Tensor], step: th.Tensor) -> bool:
    """
    Return whether θ and all candidates on the way to θ + s are sure to be finite.

    The sum of the largest entries bounds them all, and waits for an accelerator only once.
    """
    largest = th.stack([parameter.abs().max() for parameter in parameters if parameter.numel()])
    return float(largest.max() + step.abs().max()) <= th.finfo(step.dtype).max


@th.no_grad()
def _restore(parameters: Sequence[th.Tensor], originals: Sequence[th.Tensor]) -> None:
    """Set the parameters to their original values, in place."""
    for parameter, original in zip(parameters, originals, strict=True):
        parameter.copy_(original)


@th.no_grad()
def _move(
    parameters: Sequence[th.Tensor], originals: Sequence[th.Tensor], change: Sequence[th.Tensor]
) -> None:
    """Set the parameters to their original values plus a change, in place."""
    _restore(parameters, originals)
    for parameter, part in zip(parameters, change, strict=True):
        parameter.add_(part)
