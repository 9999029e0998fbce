"""The Fisher matrix of the action distribution, as a matrix-vector product."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch as th

from sb3_trpo._actor import LinearizedActor
from sb3_trpo._batch import ActorBatch
from sb3_trpo._cuda_graph import as_cuda_graph
from sb3_trpo._linearization import ClosedForm
from sb3_trpo._processes import ALONE, Processes
from sb3_trpo._state_mean import state_mean

# Whether to record the products of one solve in a CUDA graph. It has not been measured on a GPU
# yet, so it is off unless this environment variable is 1.
USES_CUDA_GRAPHS = os.environ.get("SB3_TRPO_CUDA_GRAPHS") == "1"


@dataclass(frozen=True)
class FisherProduct:
    r"""
    The damped Fisher matrix in Gauss-Newton form: exact, without second derivatives of the network.

    .. math:: (F + \lambda I) v, \quad F = E_s[J^T M J]

    It equals the Hessian of the mean KL divergence at θ_k. Called as ``fisher(v)``, as long as θ is
    θ_k.

    :param linearized: the actor at θ_k
    :param chunks: the states that F averages over
    :param damping: λ, added once, after the mean
    :param processes: whose states F averages over, too

    Source: Martens (2020), New insights and perspectives on the natural gradient method, section
    8.1; Schulman et al. (2015), Trust Region Policy Optimization, appendix C.1.
    """

    linearized: LinearizedActor
    chunks: Sequence[ActorBatch]
    damping: float = 0.0
    processes: Processes = ALONE

    def __call__(self, vector: th.Tensor) -> th.Tensor:
        """
        Multiply.

        :param vector: v, shape ``(P,)``
        :return: (F + λI)v, shape ``(P,)``
        """
        weighted_sum = partial(self._weighted_sum, vector=vector)
        product = state_mean(weighted_sum, self.chunks, self.processes)
        return product.add_(vector, alpha=self.damping)

    def _weighted_sum(self, chunk: ActorBatch, vector: th.Tensor) -> th.Tensor:
        """Apply J, then M, then Jᵀ, summed over the states of a chunk."""
        linearization = self.linearized.at(chunk)
        # v -> Jv: how the outputs z move when the parameters move by v
        tangent = linearization.jacobian_product(vector)
        # Jv -> MJv: the gradient that this change of z gives the KL divergence, state by state
        cotangent = linearization.metric(tangent)
        # weighted for the mean over states, and scaled as the KL divergence is
        weighted = tuple(chunk.weigh(self.linearized.actor.kl_scale * u) for u in cotangent)
        # MJv -> JᵀMJv: the same gradient with respect to the parameters
        return linearization.transposed_product(weighted)


def for_one_solve(fisher: FisherProduct, like: th.Tensor) -> Callable[[th.Tensor], th.Tensor]:
    """
    Choose how to run the products of one solve.

    :param fisher: the product
    :param like: a vector of the same shape and device
    :return: the product itself; on a GPU, where CUDA graphs are on and can record it, as a graph
    """
    if not (USES_CUDA_GRAPHS and like.is_cuda and fisher.processes.size == 1):
        return fisher
    stay = fisher.linearized.stay
    is_recordable = all(
        chunk in stay and isinstance(fisher.linearized.at(chunk), ClosedForm)
        for chunk in fisher.chunks
    )
    return as_cuda_graph(fisher, like) if is_recordable else fisher
