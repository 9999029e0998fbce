"""The Fisher matrix of the action distribution, known by its products."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch as th

from sb3_trpo.actor import Actor
from sb3_trpo.batch import ActorBatch
from sb3_trpo.linearization import Linearization
from sb3_trpo.state_mean import state_mean


@dataclass(frozen=True)
class FisherProduct:
    r"""
    The damped Fisher matrix in Gauss-Newton form: exact, without second derivatives of the network.

    .. math:: (F + \lambda I) v, \quad F = E_s[J^T M J]

    It equals the Hessian of the mean KL divergence at θ_k. Called as ``fisher(v)``, as long as θ is
    θ_k.

    :param actor: at θ_k
    :param chunks: the states that F averages over
    :param damping: λ, added once, after the mean

    Source: Martens (2020), New insights and perspectives on the natural gradient method, section
    8.1; Schulman et al. (2015), Trust Region Policy Optimization, appendix C.1.
    """

    actor: Actor
    chunks: Sequence[ActorBatch]
    damping: float = 0.0
    _kept: dict[ActorBatch, Linearization] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __call__(self, vector: th.Tensor) -> th.Tensor:
        """
        Multiply.

        :param vector: v, shape ``(P,)``
        :return: (F + λI)v, shape ``(P,)``
        """
        product = state_mean(lambda chunk: self._weighted_sum(chunk, vector), self.chunks)
        return product.add_(vector, alpha=self.damping)

    def _weighted_sum(self, chunk: ActorBatch, vector: th.Tensor) -> th.Tensor:
        """Apply J, then M, then Jᵀ, summed over the states of a chunk."""
        linearization = self._linearize(chunk)
        tangent = linearization.metric(linearization.jacobian_product(vector))
        weighted = tuple(chunk.weigh(self.actor.kl_scale * u) for u in tangent)
        return linearization.transposed_product(weighted)

    def _linearize(self, chunk: ActorBatch) -> Linearization:
        """Linearize the actor, once for a chunk that stays in memory."""
        linearization = self._kept.get(chunk)
        if linearization is None:
            linearization = self.actor.linearize(chunk)
            if chunk in self._to_keep:
                self._kept[chunk] = linearization
        return linearization

    @cached_property
    def _to_keep(self) -> frozenset[ActorBatch]:
        """Take as many of the first chunks as fit into memory beside one of the others."""
        sizes = list(map(len, self.chunks))
        room = self.actor.max_states_in_memory
        room -= 0 if sum(sizes) <= room else max(sizes)
        pairs = zip(self.chunks, accumulate(sizes), strict=True)
        return frozenset(chunk for chunk, total in pairs if total <= room)
