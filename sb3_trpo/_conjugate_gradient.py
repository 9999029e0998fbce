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

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch as th

from sb3_trpo._vectors import is_finite


class CGStatus(str, Enum):
    """Why the iteration ended."""

    ITERATION_LIMIT = "iteration_limit"
    CONVERGED = "converged"
    NON_POSITIVE_CURVATURE = "non_positive_curvature"
    NOT_FINITE = "not_finite"


# The statuses as integers, with which an accelerator can compute.
_STATUSES = tuple(CGStatus)
_RUNNING, _CONVERGED, _NON_POSITIVE_CURVATURE, _NOT_FINITE = range(4)

Product = Callable[[th.Tensor], th.Tensor]


@dataclass(frozen=True)
class CGSolution:
    """
    The solver's result.

    :param x: approximate solution, shape ``(P,)``; always finite when ``b`` is
    :param residual: ‖b - Ax‖ / ‖b‖ as computed by the recurrence; 0 for b = 0
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
    product: Product,
    b: th.Tensor,
    max_iter: int = 15,
    residual_tol: float = 1e-5,
) -> CGSolution:
    r"""
    Solve Ax = b.

    .. math:: x_{i+1} = x_i + \alpha_i p_i, \quad \alpha_i = r_i^T r_i / p_i^T A p_i

    A direction of non-positive or non-finite curvature ends the iteration before it is used, so x
    is the last good iterate.

    Deviations from the source:

    1. The start is always 0, no random numbers are used.
    2. The residual is relative to ‖b‖, so scaling b scales x and changes nothing else.
    3. A residual below the numbers' precision is no longer that of x, and its square soon
       underflows: later steps would have no meaningful length. So the iteration ends there.
    4. xᵀAx is returned as xᵀ(b - r).

    :param product: v -> Av, both of shape ``(P,)``; A symmetric, positive definite up to rounding
    :param b: right-hand side, shape ``(P,)``, finite
    :param max_iter: largest number of steps, at least 1
    :param residual_tol: stop when ‖r‖ ≤ residual_tol ‖b‖, and at the latest when the ratio is
        below the precision of b's numbers
    :return: the solution; a failure shows in its ``status``

    Source: Hestenes and Stiefel (1952), Methods of conjugate gradients for solving linear systems,
    section 3.
    """
    iterate = _iterate if b.is_cpu else _iterate_without_waiting
    residual_tol = max(residual_tol, th.finfo(b.dtype).eps)
    x, r, iterations, status = iterate(product, b, max_iter, residual_tol)
    curvature = th.dot(x, b - r)
    residual = (th.dot(r, r) / th.dot(b, b)).sqrt().nan_to_num()
    return CGSolution(x, float(residual), float(curvature), iterations, status)


def _iterate(
    product: Product, b: th.Tensor, max_iter: int, residual_tol: float
) -> tuple[th.Tensor, th.Tensor, int, CGStatus]:
    """Return x, r, the number of steps and why they ended."""
    x, r, p = th.zeros_like(b), b.clone(), b.clone()
    x_next = th.empty_like(b)
    rr = bb = float(th.dot(b, b))
    if not 0 < bb < math.inf:
        return x, r, 0, CGStatus.CONVERGED if bb == 0 else CGStatus.NOT_FINITE
    for i in range(max_iter):
        Ap = product(p)
        pAp = float(th.dot(p, Ap))
        if not math.isfinite(pAp):
            return x, r, i, CGStatus.NOT_FINITE
        if pAp <= 0:
            return x, r, i, CGStatus.NON_POSITIVE_CURVATURE
        alpha = rr / pAp
        # A tiny positive curvature overflows.
        if alpha > th.finfo(b.dtype).max or not is_finite(th.add(x, p, alpha=alpha, out=x_next)):
            return x, r, i, CGStatus.NOT_FINITE
        x, x_next = x_next, x
        r.sub_(Ap, alpha=alpha)
        rr_next = float(th.dot(r, r))
        if rr_next <= residual_tol**2 * bb:
            return x, r, i + 1, CGStatus.CONVERGED
        p.mul_(rr_next / rr).add_(r)
        rr = rr_next
    return x, r, max_iter, CGStatus.ITERATION_LIMIT


def _iterate_without_waiting(
    product: Product, b: th.Tensor, max_iter: int, residual_tol: float
) -> tuple[th.Tensor, th.Tensor, int, CGStatus]:
    """
    Do the same without synchronising with the device.

    Once the iteration has stopped, x and r stay fixed.
    """
    x, r, p = th.zeros_like(b), b, b
    rr = bb = th.dot(b, b)
    target = residual_tol**2 * bb
    state = th.where(bb.isfinite(), th.where(bb > 0, _RUNNING, _CONVERGED), _NOT_FINITE)
    iterations = th.zeros_like(state)
    for _ in range(max_iter):
        Ap = product(p)
        pAp = th.dot(p, Ap)
        alpha = rr / pAp
        x_next = x + alpha * p
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
    return x, r, int(iterations), _STATUSES[int(state)]
