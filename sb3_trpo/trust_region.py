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

from sb3_trpo.conjugate_gradient import CGSolution, CGStatus, conjugate_gradient
from sb3_trpo.vectors import unflatten

# Least share of the curvature that is left without damping. A direction that F hardly sees would
# otherwise be stretched without bound.
_LEAST_SHARE = 1e-3


@dataclass(frozen=True)
class NaturalStep:
    """
    A step to the boundary of the trust region, or the reason why there is none.

    :param step: s, shape ``(P,)``; zeros where there is none
    :param max_step_size: β; 0 where there is none
    :param expected_improvement: gᵀs
    :param gradient_norm: ‖g‖
    :param cg: what the solver found; ``None`` where it was not asked
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
class LineSearch:
    """
    Where the backtracking search ended.

    :param accepted: whether the parameters moved
    :param shrinkage: αʲ, the fraction of the full step that was taken; 0 where none was
    :param backtracks: j, the number of candidates that were rejected
    :param improvement: L(θ_new) - L(θ_old); 0 where no step was taken
    :param kl: D(θ_new); 0 where no step was taken
    """

    accepted: bool
    shrinkage: float
    backtracks: int
    improvement: float
    kl: float


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
    :param subtract_damping: what is taken off λ before β is computed, from 0 to λ
    :return: the step; where none can be given ``failure`` says why and ``step`` is 0

    Source: Schulman et al. (2015), Trust Region Policy Optimization, appendix C.
    """
    # Dividing by the largest entry first keeps the squares inside the norm from under- and
    # overflowing.
    largest = gradient.abs().max()
    norm = (
        float(largest * th.linalg.vector_norm(gradient / largest))
        if largest > 0
        else float(largest)
    )
    reason = _reason_to_skip(norm, target_kl)
    if reason is not None:
        return _no_step(gradient, norm, None, reason)
    unit_gradient = gradient / largest
    unit_gradient = unit_gradient / th.linalg.vector_norm(unit_gradient)
    cg = conjugate_gradient(fisher, unit_gradient, cg_max_steps, cg_residual_tol)
    if cg.status is CGStatus.NOT_FINITE or not cg.curvature > 0:
        failure = (
            CGStatus.NOT_FINITE
            if cg.status is CGStatus.NOT_FINITE
            else CGStatus.NON_POSITIVE_CURVATURE
        )
        return _no_step(gradient, norm, cg, failure.value)
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


def backtrack(
    parameters: Sequence[th.Tensor],
    natural: NaturalStep,
    evaluate: Callable[[], tuple[float, float]],
    target_kl: float,
    shrinking_factor: float = 0.8,
    max_iter: int = 10,
    accept_ratio: float = 0.0,
) -> LineSearch:
    r"""
    Move the parameters to the first candidate that improves the objective inside the trust region.

    .. math:: \theta_{new} = \theta + \alpha^j s, \quad D(\theta_{new}) \le \delta, \quad
        L(\theta_{new}) - L(\theta) > 0 \text{ and} \ge \rho_{min} \alpha^j g^T s

    The parameters are written in place. Unless a candidate is accepted they are bitwise as before,
    whatever happens, an exception from ``evaluate`` included.

    :param parameters: the tensors that the step moves; P elements in total
    :param natural: the full step; where it has a ``failure`` nothing is tried
    :param evaluate: () -> (improvement, KL) at the current value of the parameters; non-finite
        values reject
    :param target_kl: δ
    :param shrinking_factor: α, between 0 and 1
    :param max_iter: number of candidates; 0 takes the full step without a test (natural policy
        gradient), as long as its improvement and KL are finite
    :param accept_ratio: ρ_min, least ratio of realised to expected improvement
    :return: what was found

    Source: Schulman et al. (2015), Trust Region Policy Optimization, appendix C.
    """
    if natural.failure is not None:
        return LineSearch(False, 0.0, 0, 0.0, 0.0)
    candidates = max(max_iter, 1)
    originals = [parameter.detach().clone() for parameter in parameters]
    accepted = False
    try:
        for backtracks in range(candidates):
            shrinkage = shrinking_factor**backtracks
            _move(parameters, originals, unflatten(natural.step * shrinkage, parameters))
            improvement, kl = evaluate()
            inside = improvement > 0 and kl <= target_kl
            enough = improvement >= accept_ratio * shrinkage * natural.expected_improvement
            untested = max_iter == 0 and math.isfinite(improvement) and math.isfinite(kl)
            if untested or (inside and enough and math.isfinite(improvement)):
                accepted = True
                return LineSearch(True, shrinkage, backtracks, improvement, kl)
    finally:
        if not accepted:
            _restore(parameters, originals)
    return LineSearch(False, 0.0, candidates, 0.0, 0.0)


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
