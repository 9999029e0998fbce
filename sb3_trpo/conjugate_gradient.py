"""
The conjugate gradient method, for an operator that is known only by its products.

====  ==========================================
A     the operator, ``product(v)`` returns Av
b     right-hand side
x     iterate, starts at 0
r     residual b - Ax
p     search direction, conjugate to all earlier ones
====  ==========================================
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch as th


class CGStatus(str, Enum):
    """Why the iteration ended."""

    ITERATION_LIMIT = "iteration_limit"
    CONVERGED = "converged"
    NON_POSITIVE_CURVATURE = "non_positive_curvature"
    NOT_FINITE = "not_finite"


_STATUSES = tuple(CGStatus)
_RUNNING, _CONVERGED, _NON_POSITIVE_CURVATURE, _NOT_FINITE = range(4)


@dataclass(frozen=True)
class CGSolution:
    """
    What the solver found.

    :param x: approximate solution, shape ``(P,)``; always finite when ``b`` is
    :param residual: ‖b - Ax‖ / ‖b‖ as the recurrence has it; 0 for b = 0
    :param curvature: xᵀAx, a by-product that costs no further product; 0 where x = 0
    :param iterations: number of steps that moved x, one product each
    :param status: why the iteration ended
    """

    x: th.Tensor
    residual: float
    curvature: float
    iterations: int
    status: CGStatus


def conjugate_gradient(
    product: Callable[[th.Tensor], th.Tensor],
    b: th.Tensor,
    max_iter: int = 15,
    residual_tol: float = 1e-5,
) -> CGSolution:
    r"""
    Solve Ax = b.

    .. math:: x_{i+1} = x_i + \alpha_i p_i, \quad \alpha_i = r_i^T r_i / p_i^T A p_i

    A direction of non-positive or non-finite curvature ends the iteration before it is used, so x
    is the last good iterate. An accelerator is never waited for inside the loop: there the
    remaining iterations run with the iterate frozen, and the numbers are the same.

    Deviations from the source:

    1. The start is always 0, no random numbers are used.
    2. The residual is relative to ‖b‖, so scaling b scales x and changes nothing else.
    3. xᵀAx is returned as xᵀ(b - r).

    :param product: v -> Av, both of shape ``(P,)``; A symmetric, positive definite up to rounding
    :param b: right-hand side, shape ``(P,)``, finite
    :param max_iter: largest number of steps, at least 1
    :param residual_tol: stop when ‖r‖ ≤ residual_tol ‖b‖; 0 runs to ``max_iter``
    :return: the solution; a failure shows in its ``status``

    Source: Hestenes and Stiefel (1952), Methods of conjugate gradients for solving linear systems,
    section 3.
    """
    x, r, p = th.zeros_like(b), b, b
    rr = bb = th.dot(b, b)
    target = residual_tol**2 * bb
    state = th.where(bb.isfinite(), th.where(bb > 0, _RUNNING, _CONVERGED), _NOT_FINITE)
    iterations = th.zeros_like(state)
    for _ in range(max_iter):
        if b.is_cpu and state != _RUNNING:  # reading a flag is free on the CPU only
            break
        Ap = product(p)
        pAp = th.dot(p, Ap)
        alpha = rr / pAp
        x_next = x + alpha * p
        # A tiny positive curvature overflows.
        step_fault = th.where(x_next.isfinite().all(), _RUNNING, _NOT_FINITE)
        step_fault = th.where(pAp > 0, step_fault, _NON_POSITIVE_CURVATURE)
        step_fault = th.where(pAp.isfinite(), step_fault, _NOT_FINITE)
        state = th.where(state == _RUNNING, step_fault, state)
        moves = state == _RUNNING
        x = th.where(moves, x_next, x)
        r = th.where(moves, r - alpha * Ap, r)
        rr_next = th.dot(r, r)
        p = th.where(moves, r + (rr_next / rr) * p, p)
        rr = rr_next
        iterations = iterations + moves
        state = th.where(moves & (rr <= target), _CONVERGED, state)
    curvature = th.dot(x, b - r)
    residual = (rr / bb).sqrt().nan_to_num()
    return CGSolution(x, float(residual), float(curvature), int(iterations), _STATUSES[int(state)])
